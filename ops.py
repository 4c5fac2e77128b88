"""Operations that training differentiates twice, with their derivatives written out.

A gradient penalty contains the derivative of a derivative. Autograd finds it for any operation, but for filters, convolutions
and leaky ReLUs it takes long ways round on a CPU (and, for convolutions in bfloat16, wrong ones). Here they are autograd
Functions whose backward pass consists of such Functions again. Images are [N, C, H, W].
"""

import contextlib
import functools

import torch
import torch.nn.functional as F

SLOPE = 0.2  # of all leaky ReLUs
BLACK = -1.0  # in images
CLAMP = 256.0  # no activation in float16, which ends at 65504, is larger (Karras et al. 2020, arXiv:2006.06676, appendix D)


# ---------------------------------------------------------------------------------------------------------------------
# Resampling with the binomial filter [1, 3, 3, 1] (Karras et al. 2019, arXiv:1812.04948, section 2)


@functools.cache
def _binomial_kernel(channels, dtype, device):
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=dtype, device=device) / 8
    return torch.outer(taps, taps).expand(channels, 1, 4, 4)  # sums to 1


class _Filter(torch.autograd.Function):
    """Depthwise convolution with the filter. It is linear: its derivative is its transpose, and vice versa.

    Autograd's own derivatives cost two to seven times as much on a CPU, since they include those with respect to the kernel.
    """

    @staticmethod
    def forward(ctx, x, stride, padding):
        ctx.geometry = stride, padding
        kernel = _binomial_kernel(x.shape[1], x.dtype, x.device)
        return F.conv2d(x, kernel, stride=stride, padding=padding, groups=x.shape[1])

    @staticmethod
    def backward(ctx, grad):
        stride, padding = ctx.geometry
        if stride == 1:  # the kernel is symmetric
            return _Filter.apply(grad, 1, 3 - padding), None, None
        return _FilterTransposed.apply(grad), None, None  # stride 2 always has padding 1


class _FilterTransposed(torch.autograd.Function):
    """The transpose of `_Filter` with stride 2 and padding 1: insert zeros between the pixels, then filter.

    This equals bilinear upsampling divided by 4, except at the border: there bilinear upsampling repeats the last pixel, and
    the filter meets zeros. In bfloat16 PyTorch's bilinear upsampling takes up to 2.5 times as long on a CPU.
    """

    @staticmethod
    def forward(ctx, x):
        if x.dtype == torch.bfloat16:
            n, channels, height, width = x.shape
            spread = x.new_zeros(n, 2 * height + 1, 2 * width + 1, channels).permute(0, 3, 1, 2)  # channels last
            spread[:, :, 1::2, 1::2] = x
            return F.conv2d(spread, _binomial_kernel(channels, x.dtype, x.device), padding=1, groups=channels)
        y = F.interpolate(x / 4, scale_factor=2, mode="bilinear")
        for border in (y[:, :, 0], y[:, :, -1], y[:, :, :, 0], y[:, :, :, -1]):
            border.mul_(0.75)
        return y

    @staticmethod
    def backward(ctx, grad):
        return _Filter.apply(grad, 2, 1)


def blur(x, padding):
    """Low-pass filter: [N, C, H, W] -> [N, C, H + 2 padding - 3, W + 2 padding - 3], with zeros beyond the border."""
    return _Filter.apply(x, 1, padding)


def downsample(x):
    """Filter and keep every second pixel: [N, C, H, W] -> [N, C, H / 2, W / 2], with zeros beyond the border; H, W even."""
    return _Filter.apply(x, 2, 1)


def upsample(x):
    """Insert zeros between the pixels and filter: [N, C, H, W] -> [N, C, 2H, 2W] of the same mean, with zeros beyond the border."""
    return _FilterTransposed.apply(4 * x)


def resample(images, resolution):
    """Images [N, C, R, R] at another power of two.

    Means of squares of pixels if it is smaller; upsampled if it is larger, with black instead of zeros beyond the border.
    """
    if resolution < images.shape[-1]:
        images = F.avg_pool2d(images, images.shape[-1] // resolution)
    while resolution > images.shape[-1]:
        images = upsample(images - BLACK) + BLACK
    return images


# ---------------------------------------------------------------------------------------------------------------------
# Convolution. It and its derivatives with respect to input and weight are bilinear, so the derivatives of each of the three
# are the other two.

_weight_gradients_wanted = True


@contextlib.contextmanager
def input_gradients_only():
    """Within this context, backward passes skip the gradients of `convolve` with respect to weights and biases.

    For the first derivative of a gradient penalty, which is taken with respect to images alone. Autograd tells its own
    operations which gradients are wanted, but not a custom Function.
    """
    global _weight_gradients_wanted
    _weight_gradients_wanted = False
    try:
        yield
    finally:
        _weight_gradients_wanted = True


class _Convolve(torch.autograd.Function):
    """F.conv2d for higher derivatives (after the idea of conv2d_gradfix in NVlabs/stylegan2-ada-pytorch, which needs CUDA).

    For the second derivative autograd convolves with a kernel as large as the image: up to thirty times slower than a weight
    gradient on a CPU, and wrong in bfloat16 for batches of 4 and 8 (PyTorch 2.15 on AMX).
    """

    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding):
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.shapes, ctx.geometry = (x.shape, weight.shape), (stride, padding)
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx, grad):
        (x, weight), (x_shape, weight_shape) = ctx.saved_tensors, ctx.shapes
        x_wanted, weight_wanted, bias_wanted, *_ = ctx.needs_input_grad
        weight_wanted, bias_wanted = weight_wanted and _weight_gradients_wanted, bias_wanted and _weight_gradients_wanted
        grad_x = _InputGradient.apply(grad, weight, x_shape, *ctx.geometry) if x_wanted else None
        grad_weight = _WeightGradient.apply(grad, x, weight_shape, *ctx.geometry) if weight_wanted else None
        return grad_x, grad_weight, grad.sum((0, 2, 3)) if bias_wanted else None, None, None


class _InputGradient(torch.autograd.Function):
    """The gradient of sum(grad * conv2d(x, weight)) with respect to x, of shape [N, C_in, H, W]."""

    @staticmethod
    def forward(ctx, grad, weight, shape, stride, padding):
        ctx.save_for_backward(grad, weight)
        ctx.geometry = stride, padding
        return _convolution_backward(grad, _placeholder(shape, grad), weight, stride, padding, [True, False, False])[0]

    @staticmethod
    def backward(ctx, grad_x):
        (grad, weight), (grad_wanted, weight_wanted, *_) = ctx.saved_tensors, ctx.needs_input_grad
        grad_grad = _Convolve.apply(grad_x, weight, None, *ctx.geometry) if grad_wanted else None
        grad_weight = _WeightGradient.apply(grad, grad_x, weight.shape, *ctx.geometry) if weight_wanted else None
        return grad_grad, grad_weight, None, None, None


class _WeightGradient(torch.autograd.Function):
    """The gradient of sum(grad * conv2d(x, weight)) with respect to the weight, of shape [C_out, C_in, k, k]."""

    @staticmethod
    def forward(ctx, grad, x, shape, stride, padding):
        ctx.save_for_backward(grad, x)
        ctx.geometry = stride, padding
        return _convolution_backward(grad, x, _placeholder(shape, grad), stride, padding, [False, True, False])[1]

    @staticmethod
    def backward(ctx, grad_weight):
        (grad, x), (grad_wanted, x_wanted, *_) = ctx.saved_tensors, ctx.needs_input_grad
        grad_grad = _Convolve.apply(x, grad_weight, None, *ctx.geometry) if grad_wanted else None
        grad_x = _InputGradient.apply(grad, grad_weight, x.shape, *ctx.geometry) if x_wanted else None
        return grad_grad, grad_x, None, None, None


def _convolution_backward(grad, x, weight, stride, padding, wanted):
    """PyTorch's first derivatives with respect to input, weight and bias; None where `wanted` is False."""
    geometry = [stride, stride], [padding, padding], [1, 1], False, [0, 0], 1
    return torch.ops.aten.convolution_backward(grad, x, weight, None, *geometry, wanted)


def _placeholder(shape, like):
    """An uninitialised tensor in place of an input or a weight of which only the shape matters."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def convolve(x, weight, bias=None, stride=1, padding=0):
    """x [N, C_in, H, W], weight [C_out, C_in, k, k], bias [C_out] or None -> [N, C_out, H', W'], the values of F.conv2d."""
    return _Convolve.apply(x, weight, bias, stride, padding)


# ---------------------------------------------------------------------------------------------------------------------
# Leaky ReLU


class _LeakyReLU(torch.autograd.Function):
    """F.leaky_relu without its second derivative with respect to x, which is 0: autograd passes on a tensor of zeros instead."""

    @staticmethod
    def forward(ctx, x, in_place):
        if in_place:
            ctx.mark_dirty(x)
        y = _activate(x, in_place)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        if y.dtype == torch.float16:
            grad = grad.masked_fill(y.detach().abs() >= CLAMP, 0)
        return torch.ops.aten.leaky_relu_backward(grad, y.detach(), SLOPE, True), None  # True: y is the output, of the same sign


def _activate(x, in_place):
    y = F.leaky_relu(x, SLOPE, in_place)
    return y.clamp_(-CLAMP, CLAMP) if y.dtype == torch.float16 else y


def leaky_relu(x, in_place=False):
    """max(x, 0.2 x) elementwise; float16 is clamped to CLAMP. Never `in_place` on a view: autograd would copy it."""
    return _LeakyReLU.apply(x, in_place) if torch.is_grad_enabled() else _activate(x, in_place)
