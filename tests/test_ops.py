"""ops.py: filters and convolutions against sums written out, and their first and second derivatives."""

import contextlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import direct_filter, direct_upsample
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

import ops
from modules import Discriminator
from ops import SLOPE, blur, convolve, downsample, input_gradients_only, leaky_relu, resample, upsample


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# ---------------------------------------------------------------------------------------------------------------------
# Resampling


@pytest.mark.parametrize(
    "ours, direct",
    [
        (lambda x: blur(x, 1), lambda image: direct_filter(image, 1, 1)),
        (lambda x: blur(x, 2), lambda image: direct_filter(image, 2, 1)),
        (downsample, lambda image: direct_filter(image, 1, 2)),
        (upsample, direct_upsample),
    ],
)
def test_resampling_matches_the_direct_sum(ours, direct):
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for layout in (torch.contiguous_format, torch.channels_last):
        y = ours(x.contiguous(memory_format=layout))
        expected = np.array([[direct(image) for image in sample] for sample in x.numpy()])
        np.testing.assert_allclose(y.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 3, 16])
def test_upsampling_in_bfloat16_is_exact_where_no_value_needs_rounding(channels):
    x = torch.randint(-3, 4, (2, channels, 4, 8)) / 4  # sums of multiples of 1/64 below 1
    assert torch.equal(upsample(x.bfloat16()).double(), upsample(x.double()))


def test_resample_takes_means_of_squares_and_upsamples():
    x = torch.randn(2, 1, 16, 8, dtype=torch.float64)[:, :, ::2]  # 8x8, not contiguous
    for side in (4, 2):
        means = x.reshape(2, 1, side, 8 // side, side, 8 // side).mean((3, 5))
        torch.testing.assert_close(resample(x, side), means, rtol=1e-12, atol=1e-12)
    assert resample(x, 8) is x
    torch.testing.assert_close(resample(x, 16), upsample(x + 1) - 1, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(resample(x, 32), upsample(upsample(x + 1)) - 1, rtol=1e-12, atol=1e-12)
    assert (resample(torch.full((1, 1, 4, 4), -1.0), 16) == -1).all()  # black stays black up to the border


def test_resampling_keeps_a_flat_image_away_from_the_edge():
    flat = torch.full((1, 1, 16, 16), 3.0)
    assert torch.allclose(upsample(flat)[..., 2:-2, 2:-2], torch.tensor(3.0))
    assert torch.allclose(downsample(flat)[..., 1:-1, 1:-1], torch.tensor(3.0))


@pytest.mark.parametrize("resample", [lambda x: blur(x, 1), lambda x: blur(x, 2), downsample, upsample])
def test_resampling_derivatives_match_finite_differences(resample):
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(resample, x)
    assert gradgradcheck(lambda x: resample(x).pow(3), x)


# ---------------------------------------------------------------------------------------------------------------------
# Convolution


@pytest.mark.parametrize("stride, padding, size", [(1, 1, 4), (2, 0, 5)])
def test_convolution_matches_pytorch_and_its_derivatives_finite_differences(stride, padding, size):
    shapes = (2, 2, size, size), (3, 2, 3, 3), (3,)
    x, weight, bias = (torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes)
    found, expected = convolve(x, weight, bias, stride, padding), F.conv2d(x, weight, bias, stride, padding)
    assert torch.equal(found, expected)
    probe = torch.randn(found.shape, dtype=torch.float64)
    for a, b in zip(*(torch.autograd.grad((y * probe).sum(), (x, weight, bias)) for y in (found, expected))):
        assert torch.allclose(a, b)

    def call(x, weight, bias):
        return convolve(x, weight, bias, stride, padding)

    assert gradcheck(call, (x, weight, bias)) and gradgradcheck(call, (x, weight, bias))


@pytest.mark.parametrize("n, channels, size", [(2, 4, 16), (4, 4, 32), (4, 16, 32), (8, 16, 16), (3, 32, 8)])
def test_second_derivative_of_a_convolution_is_right_in_bfloat16(n, channels, size):
    """d/dw |d/dx sum(y * probe)|^2; PyTorch's own is wrong by its whole size in small batches on some CPUs."""
    x, probe = (torch.randn(n, channels, size, size).bfloat16() for _ in range(2))
    weight = torch.randn(channels, channels, 3, 3).bfloat16()

    def derivative(dtype):
        w, image = weight.to(dtype).requires_grad_(), x.to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
        slope = (convolve(image, w, padding=1) * probe.to(dtype)).sum()
        (gradient,) = torch.autograd.grad(slope, image, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), w)[0].double()

    exact = derivative(torch.float64)
    assert (derivative(torch.bfloat16) - exact).norm() / exact.norm() < 0.02


def test_input_gradients_only_skips_weight_gradients_and_changes_no_other(monkeypatch):
    critic, images = Discriminator(16, 128, 8).double(), torch.randn(4, 1, 16, 16, dtype=torch.float64, requires_grad=True)
    wanted, backward = [], ops._convolution_backward
    monkeypatch.setattr(ops, "_convolution_backward", lambda *args: wanted.append(args[-1][:2]) or backward(*args))

    def penalty(context):
        wanted.clear()
        with context:
            (gradient,) = torch.autograd.grad(critic(images).sum(), images, create_graph=True)
        first = list(wanted)
        return first, torch.autograd.grad(gradient.square().sum(), critic.parameters(), materialize_grads=True)

    spared, found = penalty(input_gradients_only())
    whole, expected = penalty(contextlib.nullcontext())
    assert spared == [[True, False]] * (len(whole) // 2) and len(spared) == 5  # one per 3x3 convolution
    assert [False, True] in wanted  # the second derivatives are with respect to weights
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    with input_gradients_only(), pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(critic(images).sum(), critic.conv.weight)


# ---------------------------------------------------------------------------------------------------------------------
# Leaky ReLU


def test_slope_is_that_of_stylegan2():
    assert SLOPE == 0.2  # Karras et al. 2018 (arXiv:1710.10196), table 2, and StyleGAN2 after it
    torch.testing.assert_close(leaky_relu(torch.tensor([-2.0, 0.0, 3.0])), torch.tensor([-0.4, 0.0, 3.0]))


@pytest.mark.parametrize("in_place", [False, True])
def test_leaky_relu_matches_pytorch_and_its_derivatives_finite_differences(in_place):
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(leaky_relu(1 * x, in_place), F.leaky_relu(x, SLOPE))

    def call(x):
        return leaky_relu(1 * x, in_place)

    assert gradcheck(call, x) and gradgradcheck(call, x)


def test_leaky_relu_passes_on_no_tensor_of_zeros():
    """As PyTorch's own leaky ReLU does for its second derivative with respect to its input."""

    class Zeros(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += function is torch.ops.aten.zeros_like.default
            return function(*args, **(kwargs or {}))

    x = torch.randn(1, 2, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(leaky_relu(x * x).sum(), x, create_graph=True)
    with Zeros() as zeros:
        gradient.sum().backward()
    assert zeros.count == 0
