"""The diagrams get written, and the sizes and numbers of parameters in them are those of the networks."""

import pytest
import torch
from PIL import Image

from modules import Discriminator, Generator, ModulatedConv2d, ToImage
from tools import diagrams

SIZE = 64, 1024, 64  # resolution, channel_base, channel_max: blocks of 64, 64, 64, 32, 16 channels


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def widths(drawn, name):
    """The "in → out" of the boxes whose text starts with `name`, in the order of drawing."""
    return [text.split(",  ")[1] for text in drawn if text.startswith(name)]


def count(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.slow
def test_command_writes_complete_images(tmp_path):
    folder = tmp_path / "model_images"
    diagrams.main(["--output_dir", str(folder)])
    assert sorted(path.name for path in folder.iterdir()) == ["discriminator.png", "generator.png"]
    for path in folder.iterdir():
        with Image.open(path) as image:
            image.load()
            assert abs(image.width - 2 * diagrams.WIDTH) <= 1
            assert len(image.getcolors()) > 8  # not a single flat colour
        assert path.stat().st_size < 150_000


def test_generator_diagram_has_the_sizes_of_the_network():
    network, drawn = Generator(*SIZE), texts(diagrams.draw_generator(*SIZE))
    lasts = [block.styles[-1] for block in network.blocks]
    built = [(last.fixed_noise.shape[-1], last.conv.weight.shape[0]) for last in lasts]
    assert diagrams.block_table(*SIZE) == built
    for block, (size, _channels) in zip(network.blocks, built):
        assert f"{size} × {size}" in drawn
        assert f"to image, 1 × 1\n{block.to_image.weight.shape[1]} → 1" in drawn
    shapes = [style.conv.weight.shape for block in network.blocks for style in block.styles]
    assert widths(drawn, "style block") == [f"{i} → {o}" for o, i, *_ in shapes]
    assert f"Generator: {count(network) / 1e6:.2f} M parameters" in drawn


def test_generator_diagram_shows_the_w_that_each_layer_gets():
    """Layer i of ws is filled with i; what reaches each modulated convolution is compared with what is drawn."""
    network, drawn, used = Generator(*SIZE), texts(diagrams.draw_generator(*SIZE)), []
    for module in network.modules():
        if isinstance(module, (ModulatedConv2d, ToImage)):
            module.register_forward_pre_hook(lambda _, inputs: used.append(int(inputs[2][0, 0])))
    network(torch.arange(float(network.num_ws))[None, :, None].expand(1, -1, network.w_dim))
    assert sorted(text for text in drawn if text.startswith("$w_{")) == sorted(f"$w_{{{i}}}$" for i in used)


def test_discriminator_diagram_has_the_sizes_of_the_network():
    network, drawn = Discriminator(*SIZE), texts(diagrams.draw_discriminator(*SIZE))
    shapes = [block.conv2.weight.shape for block in network.blocks]
    assert widths(drawn, "residual block") == [f"{i} → {o}" for o, i, *_ in shapes]
    for name, layer in (("convolution 3 × 3", network.conv), ("flatten, linear", network.linear)):
        assert f"{name},  {layer.weight.shape[1]} → {layer.weight.shape[0]}, leaky ReLU" in drawn
    assert f"Discriminator: {count(network) / 1e6:.2f} M parameters" in drawn


@pytest.mark.slow
@pytest.mark.parametrize("resolution", [32, 256, 1024])
def test_nothing_is_drawn_outside_the_page(resolution):
    for figure in (diagrams.draw_generator(resolution, 1024, 16), diagrams.draw_discriminator(resolution, 1024, 16)):
        figure.draw_without_rendering()
        page = figure.bbox
        for artist in [*figure.axes[0].texts, *figure.axes[0].patches]:
            extent = artist.get_window_extent()
            assert page.x0 <= extent.x0 and extent.x1 <= page.x1 and page.y0 <= extent.y0 and extent.y1 <= page.y1
