"""The picture of the networks gets written, and the sizes and numbers of parameters in it are those of the networks."""

import pytest
from PIL import Image

from modules import Discriminator, Generator
from tools import diagrams

SIZE = 64, 1024, 64  # resolution, channel_base, channel_max: blocks of 64, 64, 64, 32, 16 channels


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def channels(drawn, name):
    """The "in → out" of the boxes whose text starts with `name`, in the order of drawing."""
    return [text.split("\n")[1] for text in drawn if text.startswith(name)]


@pytest.mark.slow
def test_command_writes_a_complete_image(tmp_path):
    diagrams.main(["--output_dir", str(tmp_path / "model_images")])
    (path,) = (tmp_path / "model_images").iterdir()
    with Image.open(path) as image:
        image.load()
        assert path.name == "networks.png" and abs(image.width - 2 * diagrams.WIDTH) <= 1
        assert len(image.getcolors()) > 8  # not a single flat colour
    assert path.stat().st_size < 150_000


def test_picture_has_the_sizes_of_the_networks():
    generator, critic, drawn = Generator(*SIZE), Discriminator(*SIZE), texts(diagrams.draw(*SIZE))
    for name, network in (("Generator", generator), ("Critic", critic)):
        assert f"{name}\n{sum(p.numel() for p in network.parameters()) / 1e6:.2f} M parameters" in drawn
    shapes = [block.styles[0].conv.weight.shape for block in generator.blocks]
    assert channels(drawn, "constant") + channels(drawn, "2 style blocks") == [f"{i} → {o}" for o, i, *_ in shapes]
    assert channels(drawn, "to image") == [f"{block.to_image.weight.shape[1]} → 1" for block in generator.blocks]
    sides = [f"{block.styles[0].fixed_noise.shape[-1]} × {block.styles[0].fixed_noise.shape[-1]}" for block in generator.blocks]
    assert [text for text in drawn if text in sides] == sides
    shapes = [block.conv2.weight.shape for block in critic.blocks]
    assert channels(drawn, "residual block") == [f"{i} → {o}" for o, i, *_ in shapes]
    assert any(text.endswith(f"linear {critic.linear.weight.shape[1]} → {critic.linear.weight.shape[0]} → 1") for text in drawn)


@pytest.mark.slow
@pytest.mark.parametrize("resolution", [32, 256, 1024])
def test_nothing_is_drawn_outside_the_page(resolution):
    figure = diagrams.draw(resolution, 1024, 16)
    figure.draw_without_rendering()
    page = figure.bbox
    for artist in [*figure.axes[0].texts, *figure.axes[0].patches]:
        extent = artist.get_window_extent()
        assert page.x0 <= extent.x0 and extent.x1 <= page.x1 and page.y0 <= extent.y0 and extent.y1 <= page.y1
