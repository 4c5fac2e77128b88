"""The networks against float64 loops, finite differences and closed forms."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import TAPS, direct_filter, direct_upsample
from torch.autograd import gradcheck, gradgradcheck

import modules
from modules import (
    GROUP_SIZE,
    NOISE,
    NOISE_LR,
    RELU_GAIN,
    Conv2d,
    Discriminator,
    Generator,
    Linear,
    MappingNetwork,
    ModulatedConv2d,
    StyleBlock,
    ToImage,
    channels_at,
    minibatch_std,
)
from ops import SLOPE


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def count_parameters(network):
    return sum(p.numel() for p in network.parameters())


# ---------------------------------------------------------------------------------------------------------------------
# Sizes


def test_channels_and_parameter_counts_of_the_default_network():
    assert [channels_at(2**i) for i in range(2, 9)] == [256, 256, 256, 256, 128, 64, 32]
    assert channels_at(1024, 1024, 64) == 1
    assert count_parameters(MappingNetwork()) + count_parameters(Generator()) == pytest.approx(6.2e6, rel=0.01)
    assert count_parameters(Discriminator()) == pytest.approx(6.0e6, rel=0.02)


def test_constants_of_the_networks():
    assert RELU_GAIN == pytest.approx(math.sqrt(2 / 1.04))  # E[leaky_relu(x)^2] = (1 + 0.2^2) / 2 of x ~ N(0, 1)
    assert GROUP_SIZE == 4  # Karras et al. 2018 (arXiv:1710.10196), section 3
    assert (NOISE, NOISE_LR) == (0.25, 0.1)  # docs/networks.md, "Noise"
    mapping = MappingNetwork()  # 8 layers: arXiv:1812.04948, section 2; w_mean by 0.995: arXiv:1812.04948, appendix B
    assert (mapping.z_dim, mapping.w_dim, len(mapping.layers), mapping.mean_beta) == (256, 256, 8, 0.995)


def test_biases_and_noise_strengths_start_at_their_values():
    network = {
        "resolution": 16,
        "channel_base": 64,
        "channel_max": 8,
        "z_dim": 4,
        "w_dim": 8,
        "mapping_layers": 8,
        "num_classes": 0,
    }
    model, critic = modules.build_networks(network)
    assert sorted(model) == ["generator", "mapping"] and model["mapping"].w_mean.shape == (1, 8)
    for block in model["generator"].blocks:
        for layer in (block.to_image, *(style.conv for style in block.styles)):
            assert (layer.affine.bias == 1).all()  # Karras et al. 2020, appendix B: styles start at 1
        for style in block.styles:
            assert (style.bias == 0).all() and torch.allclose(modules.NOISE_LR * style.noise_strength, torch.tensor(0.25))
    assert model["generator"].constant.shape == (1, 8, 4, 4)
    for block in critic.blocks:
        assert block.skip.bias is None and (block.conv1.bias == 0).all() and (block.conv2.bias == 0).all()
    assert (critic.from_image.bias == 0).all() and (critic.conv.bias == 0).all()


@pytest.mark.parametrize("classes", [0, 3])
def test_mapping_is_the_paper_written_out(classes):
    mapping, z, labels = MappingNetwork(5, 7, classes).double(), torch.randn(4, 5, dtype=torch.float64), torch.tensor([0, 2, 1, 2])
    for layer in mapping.layers:
        torch.nn.init.normal_(layer.bias, std=30)
    inputs = [z, mapping.embedding.weight[labels]] if classes else [z]
    x = torch.cat([part / (part.square().mean(1, keepdim=True) + 1e-8).sqrt() for part in inputs], 1).detach().numpy()
    for layer in mapping.layers:
        weight, bias = (0.01 * math.sqrt(2 / 1.04) * p.detach().numpy() for p in (layer.weight, layer.bias))
        x = x @ weight.T / math.sqrt(x.shape[1]) + bias
        x = np.where(x > 0, x, 0.2 * x)
    w = mapping(z, labels if classes else None)
    np.testing.assert_allclose(w.detach().numpy(), x, rtol=1e-10, atol=1e-12)
    assert mapping.truncate(w, 1.0, labels if classes else None).shape == w.shape


@pytest.mark.parametrize("dtype, expected", [(None, torch.float64), (torch.float32, torch.float32)])
def test_generator_computes_in_the_dtype_given_or_that_of_w(dtype, expected):
    generator, found = Generator(16, 64, 4, 8).double(), []
    for block in generator.blocks:
        block.styles[-1].conv.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].dtype))
    assert generator(torch.randn(2, 8, dtype=torch.float64), dtype=dtype).dtype == torch.float64
    assert found == [expected] * 3


def test_critic_blocks_up_to_so_many_pixels_keep_the_images_dtype():
    critic, images = Discriminator(32, 64, 4), torch.randn(4, 1, 32, 32)

    def dtypes(**options):
        found = []
        hooks = [block.register_forward_pre_hook(lambda _, x: found.append(x[0].dtype)) for block in critic.blocks]
        critic(images, **options)
        for hook in hooks:
            hook.remove()
        return found

    assert dtypes() == [torch.float32] * 3  # blocks at 32, 16 and 8
    assert dtypes(dtype=torch.bfloat16) == [torch.bfloat16] * 3
    assert dtypes(dtype=torch.bfloat16, float32_up_to=16) == [torch.bfloat16, torch.float32, torch.float32]


def test_mapping_network_learns_at_a_hundredth_of_the_learning_rate():
    """Karras et al. 2019, section C: a step of Adam moves every stored weight alike, and weights count a hundredth."""
    mapping = MappingNetwork(16, 8)
    for layer in mapping.layers:
        fan_in = layer.weight.shape[1]
        assert layer.weight_gain == pytest.approx(0.01 * RELU_GAIN / math.sqrt(fan_in))
        assert layer.bias_gain == pytest.approx(0.01 * RELU_GAIN)
        root_mean_square = (layer.weight * 0.01).square().mean().sqrt().item()  # 1, with a standard deviation of sqrt(1 / 2n)
        assert root_mean_square == pytest.approx(1, abs=5 * math.sqrt(1 / (2 * layer.weight.numel())))


@pytest.mark.parametrize("resolution", [32, 128, 1024])
def test_resolutions_from_32_to_1024(resolution):
    image = Generator(resolution, 64, 8, 16)(torch.randn(1, 16))
    assert image.shape == (1, 1, resolution, resolution) and image.dtype == torch.float32
    assert Discriminator(resolution, 64, 8)(image).shape == (1,)


# ---------------------------------------------------------------------------------------------------------------------
# Layers


def test_equalised_learning_rate_scales_weights_in_the_forward_pass():
    linear = Linear(400, 300, lr_multiplier=0.01, gain=2.0)
    assert linear.weight.std().item() == pytest.approx(100, rel=0.02)  # stored at 1 / lr_multiplier ...
    assert linear(torch.randn(500, 400)).std().item() == pytest.approx(2, rel=0.05)  # ... used at gain / sqrt(in)
    conv = Conv2d(64, 32, 3)
    assert conv.weight.std().item() == pytest.approx(1, rel=0.02)
    x = torch.randn(2, 64, 16, 16, dtype=torch.float64)
    expected = F.conv2d(x, conv.weight.double() / math.sqrt(64 * 9), padding=1)
    torch.testing.assert_close(conv.double()(x), expected)


def test_bias_starts_at_its_value_and_learns_with_the_multiplier():
    linear = Linear(4, 3, bias=1.0, lr_multiplier=0.5)
    torch.testing.assert_close(linear(torch.zeros(1, 4)), torch.ones(1, 3))
    linear(torch.zeros(1, 4)).sum().backward()
    torch.testing.assert_close(linear.bias.grad, torch.full((3,), 0.5))


def test_strided_convolution_is_filter_then_convolution():
    conv = Conv2d(3, 5, 3, stride=2).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    blurred = torch.tensor(np.array([[direct_filter(image, 2, 1) for image in sample] for sample in x.numpy()]))
    expected = F.conv2d(blurred, conv.weight / math.sqrt(27))[:, :, ::2, ::2]
    torch.testing.assert_close(conv(x), expected)


def features(x, scale):
    """The features that x and scale stand for."""
    return x * scale[:, :, None, None]


def binomial(x, padding):
    """The filter [1, 3, 3, 1] over [N, C, H, W], by PyTorch."""
    taps = torch.tensor(TAPS).expand(x.shape[1], 1, 4, 4)
    return F.conv2d(x, taps, padding=padding, groups=x.shape[1])


def per_sample_modulated(conv, x, w):
    """Equations 1 and 3 of K20 as written: every sample has its own weights; upsampling is zeros between the pixels."""
    outputs = []
    styles = w @ conv.affine.weight.T / math.sqrt(w.shape[1]) + conv.affine.bias
    for image, style in zip(x, styles):
        weight = conv.weight / math.sqrt(conv.weight[0].numel()) * style[None, :, None, None]
        if isinstance(conv, ModulatedConv2d):
            weight = conv.gain * weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if getattr(conv, "up", False):
            spaced = torch.zeros(1, len(image), 2 * image.shape[1] - 1, 2 * image.shape[2] - 1, dtype=x.dtype)
            spaced[0, :, ::2, ::2] = image
            spread = F.conv2d(spaced, weight.flip(2, 3), padding=2)  # a transposed convolution reads its kernel backwards
            outputs.append(4 * binomial(spread, 1))
        else:
            outputs.append(F.conv2d(image[None], weight, padding=weight.shape[-1] // 2))
    return torch.cat(outputs)


@pytest.mark.parametrize(
    "conv, up",
    [(ModulatedConv2d(6, 4, 3, 5, gain=1.3), False), (ModulatedConv2d(6, 4, 3, 5, up=True), True), (ToImage(6, 5), False)],
    ids=["plain", "up", "to image"],
)
def test_modulated_convolution_matches_a_loop_over_samples(conv, up):
    conv.double().requires_grad_(False)
    x, w = torch.randn(3, 6, 4, 4, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    scale = torch.rand(3, 6, dtype=torch.float64) + 0.5
    ours, loop = conv(x, scale, w), per_sample_modulated(conv, features(x, scale), w)
    ours = features(*ours) if isinstance(ours, tuple) else ours
    assert ours.shape[-1] == (8 if up else 4)
    torch.testing.assert_close(ours, loop, rtol=1e-9, atol=1e-12)


def test_upsampling_in_a_modulated_convolution_is_upsampling_before_it():
    """Filter and convolution commute, except for what they meet beyond the edge."""
    conv = ModulatedConv2d(6, 4, 3, 5, up=True).double().requires_grad_(False)
    x, w = torch.randn(3, 6, 8, 8, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    larger = torch.tensor(np.array([[direct_upsample(channel) for channel in image] for image in x.numpy()]))
    plain = ModulatedConv2d(6, 4, 3, 5).double().requires_grad_(False)
    plain.load_state_dict(conv.state_dict())
    plain.weight.copy_(conv.weight.flip(2, 3))
    ones = torch.ones(3, 6, dtype=torch.float64)
    ours, expected = features(*conv(x, ones, w)), features(*plain(larger, ones, w))
    torch.testing.assert_close(ours[..., 3:-3, 3:-3], expected[..., 3:-3, 3:-3], rtol=1e-9, atol=1e-12)


def randomise(network):
    """Float64, with biases, noise strengths and the constant drawn too, which start at one value."""
    network.double().requires_grad_(False)
    for name, parameter in network.named_parameters():
        if not name.endswith("weight"):
            parameter.normal_()
    return network


def relu(x):
    return torch.where(x < 0, 0.2 * x, x)


def test_generator_is_the_paper_written_out():
    """Karras et al. 2020, figure 2d and, for the sum of images, figure 7b; every layer with a w and a noise map of its own."""
    generator = randomise(Generator(8, 64, 5, 7))
    ws, (first, second) = torch.randn(3, 4, 7, dtype=torch.float64), generator.blocks
    maps = [torch.randn(3, 1, side, side, dtype=torch.float64) for side in (4, 8, 8)]
    x, images = generator.constant.expand(3, -1, -1, -1), []
    for layer, style in enumerate((*first.styles, *second.styles)):
        assert style.conv.gain == pytest.approx(math.sqrt(2 / 1.04)) and style.conv.up == (layer == 1)
        noise = 0.1 * style.noise_strength * maps[layer]
        x = relu(per_sample_modulated(style.conv, x, ws[:, layer]) + noise + style.bias[:, None, None])
        if layer != 1:  # after the last style block of a resolution
            block, w = (first, ws[:, 1]) if layer == 0 else (second, ws[:, 3])
            images.append(per_sample_modulated(block.to_image, x, w) + block.image_bias)
    before = torch.tensor(np.array([[direct_upsample(image[0])] for image in images[0].numpy()]))
    torch.testing.assert_close(generator(ws, maps), before + images[1], rtol=1e-9, atol=1e-12)


def test_generator_draws_on_black_up_to_the_border():
    generator = Generator(32, 64, 5, 7)
    for block in generator.blocks:
        torch.nn.init.zeros_(block.to_image.weight)
    assert (generator(torch.randn(2, 7)) == -1).all()


def test_critic_is_the_paper_written_out():
    """Karras et al. 2020, figure 7c, with the projection of Miyato and Koyama 2018."""
    critic, gain = randomise(Discriminator(8, 40, 6, num_classes=2)), math.sqrt(2 / 1.04)
    images, labels = torch.randn(8, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1, 1, 1, 0])

    def convolution(layer, x, gain, padding=0):
        bias = None if layer.bias is None else gain * layer.bias
        return F.conv2d(x, gain * layer.weight / math.sqrt(layer.weight[0].numel()), bias, padding=padding)

    x = relu(convolution(critic.from_image, images, gain))
    for block in critic.blocks:
        y = relu(convolution(block.conv1, x, gain, 1))
        y = relu(convolution(block.conv2, binomial(y, 2), gain)[:, :, ::2, ::2])
        x = (y + convolution(block.skip, binomial(x, 1)[:, :, ::2, ::2], 1)) / math.sqrt(2)
    spread = [x[i::2].numpy().std(0).mean() for i in range(2)]  # of groups of four images: 0, 2, 4, 6 and 1, 3, 5, 7
    spread = torch.tensor(spread).repeat(4)[:, None, None, None].expand(8, 1, 4, 4)
    x = relu(convolution(critic.conv, torch.cat([x, spread], 1), gain, 1)).flatten(1)
    x = relu(gain * (x @ critic.linear.weight.T / math.sqrt(x.shape[1]) + critic.linear.bias))
    expected = (x @ critic.score.weight[0] + (x * critic.embedding.weight[labels]).sum(1)) / math.sqrt(6) + critic.score.bias
    torch.testing.assert_close(critic(images, labels), expected, rtol=1e-7, atol=1e-7)  # but for 1e-8 beside the variance


@pytest.mark.parametrize("conv", [ModulatedConv2d(3, 2, 3, 4), ModulatedConv2d(3, 2, 3, 4, up=True), ToImage(3, 4)])
def test_modulated_convolution_derivatives_match_finite_differences(conv):
    conv.double()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    scale = (torch.rand(2, 3, dtype=torch.float64) + 0.5).requires_grad_()
    assert gradcheck(conv, (x, scale, w))
    assert gradgradcheck(conv, (x, scale, w))


def test_minibatch_std_matches_numpy():
    x = torch.randn(8, 3, 4, 4, dtype=torch.float64)
    y = minibatch_std(x)
    torch.testing.assert_close(y[:, :3], x)
    for first in range(2):  # images 0, 2, 4, 6 make one group, 1, 3, 5, 7 the other
        expected = x[first::2].numpy().std(axis=0).mean()
        np.testing.assert_allclose(y[first::2, 3].numpy(), expected, rtol=1e-6)
    assert minibatch_std(x[:1])[:, 3].abs().max() < 1e-3  # one image has no spread
    assert minibatch_std(x[:6]).shape == (6, 4, 4, 4) and minibatch_std(x[:7]).shape == (7, 4, 4, 4)


# ---------------------------------------------------------------------------------------------------------------------
# Mapping, truncation, style vectors per layer, noise, labels


def test_mapping_ignores_the_length_of_z():
    mapping, z = MappingNetwork(16, 8).double(), torch.randn(5, 16, dtype=torch.float64)
    torch.testing.assert_close(mapping(3 * z), mapping(z), rtol=1e-7, atol=1e-7)  # but for the 1e-8 beside the mean square
    w = MappingNetwork(num_layers=8)(torch.randn(50, 256))
    assert 0.2 < w.square().mean() < 5  # 1, give or take a factor of about exp(sqrt(8 layers * 5 / 256)) for the weights drawn


def test_w_mean_approaches_the_mean_of_w():
    mapping = MappingNetwork(16, 8, mean_beta=0.9)
    for _ in range(100):
        mapping.update_w_mean(mapping.class_sums(mapping(torch.randn(256, 16))))
    w = mapping(torch.randn(20000, 16))
    error = math.sqrt(0.1 / 1.9 / 256 + 1 / 20000)  # standard error, in standard deviations of w: weights 0.1 * 0.9^k of 256 each
    assert ((mapping.w_mean[0] - w.mean(0)).abs() < 6 * error * w.std(0)).all()


def test_conditional_mapping_has_a_w_mean_per_class():
    mapping = MappingNetwork(16, 8, num_classes=2, mean_beta=0.0)
    z, labels = torch.randn(6, 16), torch.tensor([0, 0, 1, 0, 1, 0])
    w = mapping(z, labels).detach()
    expected = torch.stack([w[labels == 0].mean(0), w[labels == 1].mean(0)])
    mapping.update_w_mean(mapping.class_sums(w, labels))
    torch.testing.assert_close(mapping.w_mean, expected)
    parts = [mapping.class_sums(w[i : i + 3], labels[i : i + 3]) for i in (0, 3)]
    mapping.w_mean.zero_()
    mapping.update_w_mean(sum(parts) / 2)  # as averaged over two processes
    torch.testing.assert_close(mapping.w_mean, expected)
    mapping.update_w_mean(mapping.class_sums(w[:2], torch.zeros(2, dtype=torch.long)))
    torch.testing.assert_close(mapping.w_mean, torch.stack([w[:2].mean(0), expected[1]]))  # a class without samples keeps its mean


def test_truncation_interpolates_towards_the_class_mean():
    mapping = MappingNetwork(16, 8, num_classes=2).eval()
    mapping.w_mean.normal_()
    w, labels = torch.randn(4, 8), torch.tensor([0, 1, 1, 0])
    torch.testing.assert_close(mapping.truncate(w, 1.0, labels), w)
    torch.testing.assert_close(mapping.truncate(w, 0.0, labels), mapping.w_mean[labels])
    torch.testing.assert_close(mapping.truncate(w, 0.5, labels), (w + mapping.w_mean[labels]) / 2)


def test_a_style_vector_changes_only_its_layer_and_later_ones():
    generator = Generator(32, 256, 8, 16).eval()
    outputs = []
    for block in generator.blocks:
        block.register_forward_hook(lambda module, args, output: outputs.append(output))
    w, other = torch.randn(2, 16), torch.randn(2, 16)
    plain = generator(w, noise="none")
    ws = w[:, None].repeat(1, generator.num_ws, 1)
    torch.testing.assert_close(generator(ws, noise="none"), plain)
    ws[:, 3:] = other[:, None]  # blocks 4 and 8 take ws 0 and 1 2, and 8's image layer takes ws 3
    outputs.clear()
    mixed = generator(ws, noise="none")
    mixed_outputs = list(outputs)
    outputs.clear()
    generator(w, noise="none")
    for block, ((x, scale, image), (x_plain, scale_plain, image_plain)) in enumerate(zip(mixed_outputs, outputs)):
        assert torch.equal(x, x_plain) == torch.equal(scale, scale_plain) == (block < 2), block
        assert torch.equal(image, image_plain) == (block < 1), block
    assert not torch.allclose(mixed, plain)


def test_noise_is_random_fixed_or_none():
    generator = Generator(32, 256, 8, 16).eval()
    for block in generator.blocks:
        for style in block.styles:
            torch.nn.init.constant_(style.noise_strength, 1 / modules.NOISE_LR)
    w = torch.randn(1, 16)
    none, fixed = generator(w, "none"), generator(w, "fixed")
    torch.testing.assert_close(generator(w, "none"), none)
    torch.testing.assert_close(generator(w, "fixed"), fixed)
    first, again, other = (generator(w, "random", torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    torch.testing.assert_close(first, again)
    for a, b in ((none, fixed), (first, other), (first, none)):
        assert (a - b).abs().mean() > 0.05
    with pytest.raises(ValueError, match="noise"):
        generator(w, "some")
    assert not [key for key in generator.state_dict() if "fixed_noise" in key]


def test_fixed_noise_is_seeded_by_resolution_and_place():
    """Not saved with the weights: another seed would change the images of every saved generator."""
    generator = Generator(16, 64, 4, 8)
    for block, seeds in zip(generator.blocks, ([8], [17, 16], [33, 32])):
        for style, seed in zip(block.styles, seeds, strict=True):
            side = style.fixed_noise.shape[-1]
            expected = torch.randn(1, 1, side, side, generator=torch.Generator().manual_seed(seed))
            torch.testing.assert_close(style.fixed_noise, expected, rtol=0, atol=0)


@pytest.mark.parametrize("noise", ["random", "fixed", "none", "map"])
def test_every_kind_of_noise_works_in_bfloat16(noise):
    """One rounding of noise and one of the sum, of a few units: a few times 2^-9."""
    block, x, w = StyleBlock(4, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.randn(2, 8)
    noise = torch.randn(2, 1, 8, 8) if noise == "map" else noise
    exact, narrow = (
        features(*block(x.to(dtype), torch.ones(2, 4), w, noise, torch.Generator().manual_seed(0))).float()
        for dtype in (torch.float32, torch.bfloat16)
    )
    torch.testing.assert_close(narrow, exact, rtol=0.05, atol=0.05)


def test_networks_are_built_from_their_settings():
    network = {
        "resolution": 16,
        "channel_base": 96,
        "channel_max": 13,
        "z_dim": 5,
        "w_dim": 7,
        "mapping_layers": 2,
        "num_classes": 3,
    }
    (mapping, generator), critic = (lambda model, critic: (model.values(), critic))(*modules.build_networks(network))
    assert mapping(torch.randn(2, 5), torch.tensor([0, 2])).shape == (2, 7) and mapping.num_classes == 3
    assert [block.styles[-1].conv.weight.shape[:2] for block in generator.blocks] == [(13, 13), (12, 12), (6, 6)]
    assert generator(torch.randn(2, 7)).shape == (2, 1, 16, 16)
    assert [block.conv2.weight.shape[:2] for block in critic.blocks] == [(12, 6), (13, 12)]
    assert critic.embedding.weight.shape == (3, 13)
    assert len(mapping.layers) == 2


def test_fade_is_given_images_and_features_at_its_resolution():
    class Fade:
        resolution = 8

        def __call__(self, images, x):
            seen.append((images, x.shape[2]))
            return 0 * x

    critic, images, seen = Discriminator(16, 64, 4), torch.randn(4, 1, 16, 16), []
    plain, critic.fade = critic(images), Fade()
    faded = critic(images)
    assert len(seen) == 1 and seen[0][0] is images and seen[0][1] == 8
    assert not torch.allclose(plain, faded) and torch.allclose(faded, critic(torch.zeros_like(images)))


def test_noise_maps_can_be_given_one_per_style_block_and_image():
    generator, w = Generator(32, 256, 8, 16).eval(), torch.randn(2, 16)
    blocks = [style for block in generator.blocks for style in block.styles]
    maps = [style.fixed_noise for style in blocks]
    assert len(maps) == generator.num_ws - 1
    torch.testing.assert_close(generator(w, maps), generator(w, "fixed"), rtol=0, atol=0)
    torch.testing.assert_close(generator(w, [torch.zeros_like(noise) for noise in maps]), generator(w, "none"))
    maps = [torch.randn(2, *noise.shape[1:], requires_grad=True) for noise in maps]
    together = generator(w, maps)
    torch.testing.assert_close(together, torch.cat([generator(w[i : i + 1], [noise[i : i + 1] for noise in maps]) for i in (0, 1)]))
    gradients = torch.autograd.grad(together[0].square().sum(), maps)
    assert all(g[0].abs().max() > 0 and g[1].abs().max() == 0 for g in gradients)  # each map affects its own image alone


def test_noise_has_the_learned_strength():
    block = StyleBlock(4, 4, 32, 8)
    with torch.no_grad():
        block.noise_strength.copy_(torch.tensor([0.5, 0.25, 0.0, -0.5])[:, None, None] / modules.NOISE_LR)
    x, w = torch.zeros(64, 4, 32, 32), torch.zeros(64, 8)
    y = features(*block(x, torch.ones(64, 4), w))  # leaky ReLU of the noise: undo it
    y = torch.where(y < 0, y / SLOPE, y)
    assert y[:, 0].std().item() == pytest.approx(0.5, rel=0.02)
    torch.testing.assert_close(y, y[:, :1] * torch.tensor([1, 0.5, 0, -1])[:, None, None])  # one map for all channels


def test_parts_of_a_batch_are_scored_as_if_in_batches_of_their_own():
    critic, images = Discriminator(32, 128, 8, num_classes=2).double(), torch.randn(12, 1, 32, 32, dtype=torch.float64)
    torch.nn.init.normal_(critic.embedding.weight)
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    alone = torch.cat([critic(part, labels) for part in images.chunk(2)])
    torch.testing.assert_close(critic(images, labels.repeat(2), groups=2), alone)
    assert not torch.allclose(critic(images, labels.repeat(2)), alone)  # groups then span both parts


def test_labels_change_image_and_score():
    mapping, critic = MappingNetwork(16, 8, num_classes=2).double(), Discriminator(8, 64, 8, num_classes=2).double()
    generator, z = Generator(8, 64, 8, 8).double(), torch.randn(3, 16, dtype=torch.float64)
    ad, nc = torch.zeros(3, dtype=torch.long), torch.ones(3, dtype=torch.long)
    images = generator(mapping(z, ad), "none")
    assert (images - generator(mapping(z, nc), "none")).abs().mean() > 0.01
    scores, features = [critic(images, labels) for labels in (ad, nc)], {}
    critic.linear.register_forward_hook(lambda module, args, output: features.update(h=F.leaky_relu(output, SLOPE)))
    critic(images, ad)
    projection = features["h"] @ (critic.embedding.weight[1] - critic.embedding.weight[0]) / math.sqrt(8)
    torch.testing.assert_close(scores[1] - scores[0], projection, rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# Whole networks


def test_critic_second_derivative_matches_finite_differences():
    critic = Discriminator(16, 64, 4).double()
    image = torch.randn(4, 1, 16, 16, dtype=torch.float64, requires_grad=True)

    def slope():  # as in a gradient penalty
        return torch.autograd.grad(critic(image).sum(), image, create_graph=True)[0].square().sum()

    parameters = [p for p in critic.parameters() if p.ndim > 1]
    gradients = torch.autograd.grad(slope(), parameters)

    def difference(parameter, direction, step=1e-6):
        values = []
        for move in (step, -step):
            with torch.no_grad():
                parameter += move * direction
            values.append(slope().item())
            with torch.no_grad():
                parameter -= move * direction
        return (values[0] - values[1]) / (2 * step)

    for parameter, gradient in zip(parameters, gradients):
        directions = torch.randn(3, *parameter.shape, dtype=torch.float64)  # of which one or two may cross a ReLU's kink
        assert any(
            (gradient * direction).sum().item() == pytest.approx(difference(parameter, direction), rel=1e-4, abs=1e-8)
            for direction in directions
        )


@torch.no_grad()
def test_every_block_keeps_its_scale_at_the_start():
    """The geometric mean over nine networks: one alone may be off by a factor of two, since its widths are small."""
    scales = {}

    def note(name):
        def hook(module, args, out):
            scales.setdefault(name, []).append((features(*out[:2]) if isinstance(out, tuple) else out).std().log())

        return hook

    for _ in range(9):
        mapping, generator, critic = MappingNetwork(), Generator(64, 1024, 64), Discriminator(64, 1024, 64)
        for i, block in enumerate(generator.blocks):
            block.register_forward_hook(note(f"generator block {i}"))
        for i, block in enumerate(critic.blocks):
            block.register_forward_hook(note(f"critic block {i}"))
        generator.register_forward_hook(note("image"))
        critic(generator(mapping(torch.randn(4, 256))))
    means = {name: torch.stack(of_block).mean().exp().item() for name, of_block in scales.items()}
    assert len(means) == 5 + 4 + 1
    assert all(0.3 < std < 3 for std in means.values()), means


@pytest.mark.parametrize("dtype, bound", [(torch.bfloat16, 0.02), (torch.float16, 0.003)])
def test_narrow_activations_stay_near_float32(dtype, bound):
    """Each of about twenty layers rounds to 8 bits, by up to 2^-9: together 1%, more in gradients, which pass them twice; to 11
    bits: an eighth of that."""
    generator, critic = Generator(64, 1024, 64, 16), Discriminator(64, 1024, 64)
    w = torch.randn(4, 16)
    image, narrow = generator(w, "none"), generator(w, "none", dtype=dtype)
    assert narrow.dtype == torch.float32
    assert (narrow - image).norm() / image.norm() < bound

    def gradients(dtype):
        return torch.cat(
            [g.flatten() for g in torch.autograd.grad(critic(image.detach(), dtype=dtype).mean(), list(critic.parameters()))]
        )

    exact = gradients(torch.float32)
    assert (gradients(dtype) - exact).norm() / exact.norm() < 2.5 * bound


@pytest.mark.parametrize("size", [0.0, 1e-4, 1.0])
def test_image_layers_learn_in_float16_whatever_the_size_of_their_weights(size):
    """They are 0 in the new blocks of a run that grows, where gradients once were lost in float16."""
    generator, w, direction = Generator(64, 256, 16, 16), torch.randn(4, 16), torch.randn(4, 1, 64, 64)
    layers = [block.to_image.weight for block in generator.blocks]
    with torch.no_grad():
        for weight in layers:
            weight *= size

    def gradients(dtype):
        return torch.autograd.grad((generator(w, "none", dtype=dtype) * direction).mean(), layers)

    for narrow, exact in zip(gradients(torch.float16), gradients(torch.float32)):
        assert exact.norm() > 0 and (narrow - exact).norm() / exact.norm() < 0.02


@pytest.mark.parametrize("style", [0.0, 1e-6, 1.0, 1e6])
@pytest.mark.parametrize("weight", [1e-3, 1.0, 1e3])
def test_float16_is_finite_and_near_float32_at_extreme_styles_and_weights(style, weight):
    """Demodulation takes them out again, but in the float16 between its two ends they must not overflow."""
    generator, w = Generator(64, 256, 16, 16), torch.randn(3, 16)
    with torch.no_grad():
        for block in generator.blocks[3:]:
            for layer in block.styles:
                layer.conv.affine.weight *= style
                layer.conv.affine.bias *= style
                layer.conv.weight *= weight
        exact, narrow = generator(w, "fixed"), generator(w, "fixed", dtype=torch.float16)
        assert narrow.isfinite().all() and (narrow - exact).norm() / exact.norm() < 0.01
        for block in generator.blocks[2:]:
            block.styles[-1].bias.fill_(1e5)  # is clamped
        narrow = generator(1e4 * w, "fixed", dtype=torch.float16)
        score = Discriminator(64, 256, 16)(1e4 * exact, dtype=torch.float16)
        assert narrow.isfinite().all() and score.isfinite().all()
