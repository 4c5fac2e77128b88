"""Operations that training differentiates twice, and their first and second derivatives written out.

A gradient penalty is a derivative of a derivative. PyTorch finds it by itself, but slowly on a CPU, and in bfloat16 not always
rightly; filters, convolutions and leaky ReLUs are simple enough to say what their derivatives are.
"""

import contextlib
import functools

import torch
import torch.nn.functional as F

SLOPE = 0.2  # of the leaky ReLU, everywhere


# ---------------------------------------------------------------------------------------------------------------------
# Resampling with the binomial filter [1, 3, 3, 1]


@functools.cache
def _kernel(channels, dtype, device):
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=dtype, device=device) / 8
    return torch.outer(taps, taps).expand(channels, 1, 4, 4)  # sums to 1


class _Filter(torch.autograd.Function):
    """Depthwise convolution with the filter. Linear, so its derivative is its transpose, and the other way round.

    Autograd would reach the same second derivatives, at two to seven times the cost on a CPU: it also derives by the kernel.
    """

    @staticmethod
    def forward(ctx, x, stride, padding):
        ctx.geometry = stride, padding
        return F.conv2d(x, _kernel(x.shape[1], x.dtype, x.device), stride=stride, padding=padding, groups=x.shape[1])

    @staticmethod
    def backward(ctx, grad):
        stride, padding = ctx.geometry
        if stride == 1:  # the kernel is symmetric
            return _Filter.apply(grad, 1, 3 - padding), None, None
        return _Spread.apply(grad), None, None  # stride 2, padding 1


class _Spread(torch.autograd.Function):
    """The transpose of `_Filter` with stride 2 and padding 1: zeros between the pixels, then the filter.

    That is bilinear doubling, over 4, but for the edge: there bilinear doubling repeats the last pixel, the filter meets zeros.
    """

    @staticmethod
    def forward(ctx, x):
        y = F.interpolate(x / 4, scale_factor=2, mode="bilinear")
        for edge in (y[:, :, 0], y[:, :, -1], y[:, :, :, 0], y[:, :, :, -1]):
            edge.mul_(0.75)
        return y

    @staticmethod
    def backward(ctx, grad):
        return _Filter.apply(grad, 2, 1)


def blur(x, padding):
    """Low-pass filter: [N, C, H, W] -> [N, C, H + 2 padding - 3, W + 2 padding - 3]; zeros beyond the edge."""
    return _Filter.apply(x, 1, padding)


def downsample(x):
    """Filter and keep every second pixel: [N, C, H, W] -> [N, C, H / 2, W / 2], H and W even; zeros beyond the edge."""
    return _Filter.apply(x, 2, 1)


def upsample(x):
    """Insert zeros and filter: [N, C, H, W] -> [N, C, 2H, 2W], same mean; zeros beyond the edge."""
    return _Spread.apply(4 * x)


# ---------------------------------------------------------------------------------------------------------------------
# What is differentiated twice: convolution and leaky ReLU. A convolution and its derivatives by picture and by weight are
# bilinear all three, so each one's derivatives are the other two.

_weights_count = True


@contextlib.contextmanager
def by_pictures_alone():
    """Of derivatives taken in here nobody asks those by a convolution's weight and bias, as in a gradient penalty's first half.

    Autograd tells its own operations which of a pass's derivatives are asked for, but not a Function.
    """
    global _weights_count
    _weights_count = False
    try:
        yield
    finally:
        _weights_count = True


class _Convolve(torch.autograd.Function):
    """F.conv2d, for higher derivatives than the first (as conv2d_gradfix of NVlabs/stylegan2-ada-pytorch, which is for CUDA).

    Autograd itself takes the weight's part of the second derivative as a convolution with a kernel as large as the picture:
    on a CPU up to thirty times slower than a weight's gradient, and wrong in bfloat16 in batches of 4 and of 8 (PyTorch 2.15,
    AMX).
    """

    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding):
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        ctx.sizes, ctx.geometry = (x.shape, weight.shape), (stride, padding)
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx, grad):
        (x, weight), (by_x, by_weight, by_bias, *_) = ctx.saved_tensors, ctx.needs_input_grad
        grad_x = _GradInput.apply(grad, weight, ctx.sizes[0], *ctx.geometry) if by_x else None
        by_weight, by_bias = by_weight and _weights_count, by_bias and _weights_count
        grad_weight = _GradWeight.apply(grad, x, ctx.sizes[1], *ctx.geometry) if by_weight else None
        return grad_x, grad_weight, grad.sum((0, 2, 3)) if by_bias else None, None, None


class _GradInput(torch.autograd.Function):
    """The derivative of sum(grad * conv2d(x, weight)) by x, of `size` [N, C_in, H, W]."""

    @staticmethod
    def forward(ctx, grad, weight, size, stride, padding):
        ctx.save_for_backward(grad, weight)
        ctx.geometry = stride, padding
        return _derivatives(grad, _of_shape(size, grad), weight, stride, padding, [True, False, False])[0]

    @staticmethod
    def backward(ctx, grad_x):
        grad, weight = ctx.saved_tensors
        by_grad, by_weight, *_ = ctx.needs_input_grad
        grad_grad = _Convolve.apply(grad_x, weight, None, *ctx.geometry) if by_grad else None
        return grad_grad, _GradWeight.apply(grad, grad_x, weight.shape, *ctx.geometry) if by_weight else None, None, None, None


class _GradWeight(torch.autograd.Function):
    """The derivative of sum(grad * conv2d(x, weight)) by the weight, of `size` [C_out, C_in, k, k]."""

    @staticmethod
    def forward(ctx, grad, x, size, stride, padding):
        ctx.save_for_backward(grad, x)
        ctx.geometry = stride, padding
        return _derivatives(grad, x, _of_shape(size, grad), stride, padding, [False, True, False])[1]

    @staticmethod
    def backward(ctx, grad_weight):
        grad, x = ctx.saved_tensors
        by_grad, by_x, *_ = ctx.needs_input_grad
        grad_grad = _Convolve.apply(x, grad_weight, None, *ctx.geometry) if by_grad else None
        return grad_grad, _GradInput.apply(grad, grad_weight, x.shape, *ctx.geometry) if by_x else None, None, None, None


def _derivatives(grad, x, weight, stride, padding, which):
    """PyTorch's own first derivatives: by x, by weight and by bias, None where `which` says False."""
    geometry = [stride, stride], [padding, padding], [1, 1], False, [0, 0], 1
    return torch.ops.aten.convolution_backward(grad, x, weight, None, *geometry, which)


def _of_shape(size, like):
    """What stands for a picture or a weight of which only the shape counts."""
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def convolve(x, weight, bias=None, stride=1, padding=0):
    """x [N, C_in, H, W], weight [C_out, C_in, k, k], bias [C_out] or None -> [N, C_out, H', W'], as F.conv2d gives it."""
    return _Convolve.apply(x, weight, bias, stride, padding)


class _LeakyReLU(torch.autograd.Function):
    """F.leaky_relu, but for its second derivative by x: that is 0, and autograd hands on a picture of zeros in its place."""

    @staticmethod
    def forward(ctx, x, in_place):
        if in_place:
            ctx.mark_dirty(x)
        y = F.leaky_relu(x, SLOPE, in_place)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return torch.ops.aten.leaky_relu_backward(grad, y.detach(), SLOPE, True), None  # True: y is the result, not x


def leaky_relu(x, in_place=False):
    """max(x, 0.2 x), for where it is differentiated twice; a view in place would make autograd copy it three times over."""
    return _LeakyReLU.apply(x, in_place)
