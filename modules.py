"""StyleGAN2's networks for one-channel images, in the order in which a latent becomes an image becomes a score.

    z -> MappingNetwork -> w -> Generator -> image -> Discriminator -> score

Follows Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN" (arXiv:1912.04958), called K20 below:
weight modulation and demodulation, an output-skip generator, a residual discriminator. All layers use the equalised
learning rate of Karras et al. 2018 (arXiv:1710.10196), called K18. Everything can be differentiated twice, which WGAN-GP
needs of the discriminator. Shapes: N images, C channels, R = resolution, images [N, 1, R, R] with values about [-1, 1].
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from ops import SLOPE, blur, convolve, downsample, leaky_relu, upsample

GROUP = 4  # images of a minibatch standard deviation

RELU_GAIN = math.sqrt(2 / (1 + SLOPE**2))  # keeps a unit-variance input at unit mean square
NOISE, NOISE_LR = 0.25, 0.1  # noise inputs: strength at the start (a signal's is 1), relative learning rate


def channels_at(resolution, channel_base=8192, channel_max=256):
    """Feature maps of the layers that work at `resolution`: min(channel_max, channel_base / resolution)."""
    return max(1, min(channel_max, channel_base // resolution))


# ---------------------------------------------------------------------------------------------------------------------
# Layers with equalised learning rate (K18, section 4.1): weights are stored at unit variance and scaled at run time


class Linear(nn.Module):
    """y = gain (W x / sqrt(in) + b), [N, in] -> [N, out].

    lr_multiplier: learning rate of this layer relative to the others'. gain: of a leaky ReLU that follows, or 1.
    """

    def __init__(self, in_features, out_features, bias=0.0, lr_multiplier=1.0, gain=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full([out_features], bias / lr_multiplier))
        self.weight_gain = gain * lr_multiplier / math.sqrt(in_features)
        self.bias_gain = gain * lr_multiplier

    def forward(self, x):
        return F.linear(x, self.weight * self.weight_gain, self.bias * self.bias_gain)


def random_kernel(out_channels, in_channels, size):
    """N(0, 1), [out, in, size, size], channels last as the pictures: else every convolution would lay it out anew."""
    return torch.randn(out_channels, in_channels, size, size).contiguous(memory_format=torch.channels_last)


class Conv2d(nn.Module):
    """Convolution, [N, C_in, H, W] -> [N, C_out, H / stride, W / stride]; with stride 2 it filters first (K20, App. B).

    gain: of a leaky ReLU that follows, or 1; since leaky_relu(g x) = g leaky_relu(x) it costs nothing here.
    """

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, bias=True, gain=1.0):
        super().__init__()
        self.weight = nn.Parameter(random_kernel(out_channels, in_channels, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.weight_gain = gain / math.sqrt(in_channels * kernel_size**2)
        self.bias_gain = gain
        self.stride = stride

    def forward(self, x):
        padding = self.weight.shape[-1] // 2
        if self.stride == 2:
            x, padding = blur(x, padding + 1), 0
        weight = (self.weight * self.weight_gain).to(x.dtype)
        bias = None if self.bias is None else (self.bias * self.bias_gain).to(x.dtype)
        if weight.shape[-1] == 1:  # a matrix product of channels
            return F.linear(x.permute(0, 2, 3, 1), weight[:, :, 0, 0], bias).permute(0, 3, 1, 2)
        return convolve(x, weight, bias, self.stride, padding)


# ---------------------------------------------------------------------------------------------------------------------
# z -> w


class MappingNetwork(nn.Module):
    """z [N, z_dim] ~ N(0, 1), labels [N] int64 in [0, num_classes) -> w [N, w_dim].

    z is scaled to unit mean square; with num_classes > 0 a learned embedding of the label, scaled alike, stands beside it.
    Eight layers at a hundredth of the learning rate (Karras et al. 2019, arXiv:1812.04948). `track` follows the mean of w, one
    row a class (one row in all without classes), for truncation.
    """

    def __init__(self, z_dim=256, w_dim=256, num_classes=0, num_layers=8, lr_multiplier=0.01, mean_beta=0.995):
        super().__init__()
        self.z_dim, self.w_dim, self.num_classes, self.mean_beta = z_dim, w_dim, num_classes, mean_beta
        self.embedding = nn.Embedding(num_classes, z_dim) if num_classes else None
        widths = [z_dim * 2 if num_classes else z_dim] + [w_dim] * num_layers
        self.layers = nn.ModuleList(Linear(a, b, lr_multiplier=lr_multiplier, gain=RELU_GAIN) for a, b in zip(widths, widths[1:]))
        self.register_buffer("w_mean", torch.zeros(max(1, num_classes), w_dim))

    def forward(self, z, labels=None):
        x = _unit(z)
        if self.embedding is not None:
            x = torch.cat([x, _unit(self.embedding(labels))], dim=1)
        for layer in self.layers:
            x = F.leaky_relu(layer(x), SLOPE)
        return x

    @torch.no_grad()
    def sums(self, w, labels=None):
        """What `track` needs of w [N, w_dim]: their sum and number, a row a class, [classes, w_dim + 1]."""
        rows = torch.zeros(len(w), dtype=torch.long, device=w.device) if self.embedding is None else labels
        member = (rows[:, None] == torch.arange(len(self.w_mean), device=w.device)).to(self.w_mean)  # [N, classes]
        return member.T @ F.pad(w.to(self.w_mean), (0, 1), value=1.0)

    @torch.no_grad()
    def track(self, sums):
        """Move w_mean towards the means that `sums`, or a multiple of it, holds."""
        total, count = sums[:, :-1], sums[:, -1:]
        mean = torch.where(count > 0, total / count, self.w_mean)
        self.w_mean.lerp_(mean, 1 - self.mean_beta)

    def truncate(self, w, psi, labels=None):
        """Draw w [N, w_dim] towards the tracked mean (of its class): w_mean + psi (w - w_mean). psi = 1 changes nothing."""
        mean = self.w_mean if self.embedding is None else self.w_mean[labels]
        return mean + psi * (w - mean)


def _unit(x):
    """Scale every row to unit mean square."""
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


# ---------------------------------------------------------------------------------------------------------------------
# w -> image


class ModulatedConv2d(nn.Module):
    """Weight-modulated convolution (K20, section 2.2): x [N, C_in, H, W], w [N, w_dim] -> [N, C_out, H or 2H, W or 2W].

    With style s = A(w) the paper's weights for one sample are  w''_oik = s_i w_oik / sqrt(sum_ik (s_i w_oik)^2 + eps)
    (eq. 1 and 3). A convolution is linear, so scaling its input by s and its output by the root's inverse d gives the same
    image with one kernel shared by the batch: a large saving over one grouped convolution per sample. And since
    leaky_relu(d y) = d leaky_relu(y), d can wait for the next style, and meet it before either meets a picture. So features
    are two tensors here, x and a scale [N, C] > 0: they are x * scale[:, :, None, None], which nobody has to compute.
    """

    def __init__(self, in_channels, out_channels, kernel_size, w_dim, up=False, gain=1.0):
        super().__init__()
        self.affine = Linear(w_dim, in_channels, bias=1.0)  # A: a style of 1 at the start
        self.weight = nn.Parameter(random_kernel(out_channels, in_channels, kernel_size))
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)
        self.up, self.gain = up, gain

    def forward(self, x, scale, w):
        style = self.affine(w)  # [N, C_in]
        weight = self.weight * self.weight_gain  # [C_out, C_in, k, k]
        x = x * (style * scale)[:, :, None, None].to(x.dtype)
        if self.up:  # zero insertion and convolution in one, then the filter (gain 4 for zeros)
            x = blur(F.conv_transpose2d(x, 4 * weight.transpose(0, 1).to(x.dtype), stride=2), padding=1)
        else:
            x = convolve(x, weight.to(x.dtype), padding=weight.shape[-1] // 2)
        norm = style.square() @ weight.square().sum((2, 3)).T  # [N, C_out]
        return x, self.gain * (norm + 1e-8).rsqrt()


class ToImage(nn.Module):
    """Weight-modulated 1x1 convolution to one channel, not demodulated (K20, section 4.1): x, scale, w -> [N, 1, H, W].

    Here a kernel of its own for every sample is the faster way: it is a vector, so the convolution is a matrix product.
    """

    def __init__(self, in_channels, w_dim):
        super().__init__()
        self.affine = Linear(w_dim, in_channels, bias=1.0)
        self.weight = nn.Parameter(random_kernel(1, in_channels, 1))
        self.weight_gain = 1 / math.sqrt(in_channels)

    def forward(self, x, scale, w):
        kernel = self.affine(w) * scale * self.weight.flatten() * self.weight_gain  # [N, C]
        pixels = x.permute(0, 2, 3, 1).flatten(1, 2)  # [N, H W, C]
        return torch.bmm(pixels, kernel[:, :, None].to(x.dtype)).transpose(1, 2).unflatten(2, x.shape[2:])


class StyleBlock(nn.Module):
    """Modulated convolution, noise with a learned strength, bias, leaky ReLU (K20, figure 2d).

    Every channel has a noise strength of its own, as in Karras et al. 2019 (section 2). They start above 0 and learn slowly.
    K20's one strength for all channels, from 0, stayed near it in short runs, and every fold of the cortex in its place: w
    acts alike all over a slice, noise differs from place to place.
    noise: "random" draws it anew from `rng` (None: PyTorch's global generator), "fixed" takes the same for every image and
    call (it is not a weight: each block seeds its own), "none" leaves it out, a tensor [N or 1, 1, H, W] is taken as it is.
    """

    def __init__(self, in_channels, out_channels, resolution, w_dim, up=False):
        super().__init__()
        self.conv = ModulatedConv2d(in_channels, out_channels, 3, w_dim, up, gain=RELU_GAIN)
        self.noise_strength = nn.Parameter(torch.full([out_channels, 1, 1], NOISE / NOISE_LR))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        seeded = torch.Generator().manual_seed(2 * resolution + up)
        self.register_buffer("fixed_noise", torch.randn(1, 1, resolution, resolution, generator=seeded), persistent=False)

    def forward(self, x, scale, w, noise="random", rng=None):
        if not torch.is_tensor(noise) and noise not in ("random", "fixed", "none"):
            raise ValueError(f'noise must be "random", "fixed", "none" or a map, not {noise!r}')
        x, scale = self.conv(x, scale, w)  # [N, C, H, W], [N, C]
        n, c, height, width = x.shape
        maps, strengths = [x.new_ones(n, 1, height, width)], [self.bias[:, None]]  # the bias: a map of ones
        if torch.is_tensor(noise):
            maps.append(noise.expand(n, 1, height, width).to(x.dtype))
        elif noise == "random":
            maps.append(torch.randn(n, 1, height, width, device=x.device, generator=rng).to(x.dtype))
        elif noise == "fixed":
            maps.append(self.fixed_noise.expand(n, 1, height, width).to(x.dtype))
        if len(maps) == 2:
            strengths.append(NOISE_LR * self.noise_strength[:, 0])
        # One pass over x, as a matrix product: few channels last, a [C, 1, 1] bias is slow to add in bfloat16 on a CPU (16
        # channels at 64x64: four times as long as the convolution).
        pixels = x.permute(0, 2, 3, 1).reshape(n, height * width, c)
        maps = torch.cat(maps, 1).flatten(2).transpose(1, 2)  # [N, H W, 2]
        strengths = (torch.cat(strengths, 1).T / scale[:, None]).to(x.dtype)  # [N, 2, C]
        pixels = F.leaky_relu_(torch.baddbmm(pixels, maps, strengths), SLOPE)
        return pixels.reshape(n, height, width, c).permute(0, 3, 1, 2), scale


class GeneratorBlock(nn.Module):
    """One resolution of the generator: style blocks (the first upsamples), then this resolution's share of the image.

    The 4x4 block, which nothing comes before, has one style block; the others have two.
    """

    def __init__(self, in_channels, out_channels, resolution, w_dim):
        super().__init__()
        first = [] if in_channels is None else [StyleBlock(in_channels, out_channels, resolution, w_dim, up=True)]
        self.styles = nn.ModuleList(first + [StyleBlock(out_channels, out_channels, resolution, w_dim)])
        self.to_image = ToImage(out_channels, w_dim)
        self.image_bias = nn.Parameter(torch.zeros([]))

    def forward(self, x, scale, image, ws, noise, rng):
        """x [N, C_in, H, W], scale [N, C_in], image [N, 1, H, W] or None, ws, noise: one per style block, ws one more for the
        image. Returns the first three anew."""
        for style, w, its_noise in zip(self.styles, ws, noise):
            x, scale = style(x, scale, w, its_noise, rng)
        share = self.to_image(x, scale, ws[-1]).float() + self.image_bias
        return x, scale, share if image is None else upsample(image) + share


class Generator(nn.Module):
    """w [N, w_dim], or one w per layer [N, num_ws, w_dim] (style mixing) -> images [N, 1, R, R], unbounded, about [-1, 1].

    A learned 4x4 constant, then a block per resolution; the image is the sum of every block's share, upsampled: K20's
    replacement of progressive growing (section 4.1, "output skips"). num_ws = 2 log2(R) - 2: one w per style block and one
    for the last image layer; the image layers before it share the w of the style block that follows them, as in K20.
    noise, rng: see StyleBlock, noise may also be a list of maps, one per style block (num_ws - 1 of them); dtype: of the
    activations (None: that of w); weights and image stay as they are.
    """

    def __init__(self, resolution=256, channel_base=8192, channel_max=256, w_dim=256):
        super().__init__()
        sizes = [2**i for i in range(2, int(math.log2(resolution)) + 1)]  # 4, 8, ..., R
        channels = [channels_at(size, channel_base, channel_max) for size in sizes]
        self.resolution, self.w_dim, self.num_ws = resolution, w_dim, 2 * len(sizes)
        self.constant = nn.Parameter(torch.randn(1, channels[0], 4, 4))
        self.blocks = nn.ModuleList(
            GeneratorBlock(before, here, size, w_dim) for before, here, size in zip([None] + channels, channels, sizes)
        )

    def forward(self, w, noise="random", rng=None, dtype=None):
        ws = (w[:, None].expand(-1, self.num_ws, -1) if w.ndim == 2 else w).unbind(1)
        noises = [noise] * (self.num_ws - 1) if isinstance(noise, str) else noise
        x, image, layer = self.constant.expand(len(w), -1, -1, -1), None, 0
        scale = w.new_ones(len(w), x.shape[1])
        x = x.to(dtype or w.dtype).contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            styles = len(block.styles)
            x, scale, image = block(x, scale, image, ws[layer : layer + styles + 1], noises[layer : layer + styles], rng)
            layer += styles
        return image


def build_generator(network):
    """ModuleDict of the untrained mapping network and generator, from the settings that config.json and generator.pt keep."""
    return nn.ModuleDict(
        {
            "mapping": MappingNetwork(network["z_dim"], network["w_dim"], network["num_classes"]),
            "generator": Generator(network["resolution"], network["channel_base"], network["channel_max"], network["w_dim"]),
        }
    )


# ---------------------------------------------------------------------------------------------------------------------
# image -> score


class ResidualBlock(nn.Module):
    """Two convolutions beside a 1x1 skip (K20, figure 7c), [N, C_in, H, W] -> [N, C_out, H / 2, W / 2].

    Each branch carries half of the variance, so that their sum keeps the scale.
    """

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.conv1 = Conv2d(in_channels, in_channels, 3, gain=RELU_GAIN)
        self.conv2 = Conv2d(in_channels, out_channels, 3, stride=2, gain=RELU_GAIN * math.sqrt(0.5))
        self.skip = Conv2d(in_channels, out_channels, 1, bias=False, gain=math.sqrt(0.5))

    def forward(self, x):
        y = leaky_relu(self.conv1(x), in_place=True)
        y = leaky_relu(self.conv2(y), in_place=True)
        return y + self.skip(downsample(x))


def minibatch_std(x, group_size=GROUP):
    """Append one map with the mean standard deviation over groups of images (K18, section 3): [N, C, ...] -> [N, C+1, ...].

    A batch that four does not divide is grouped by three or two, or not at all (a map of zeros).
    """
    n, c, h, w = x.shape
    group = next(g for g in range(min(group_size, n), 0, -1) if n % g == 0)
    spread = x.reshape(group, n // group, c, h, w)  # images n / group apart together
    spread = ((spread - spread.mean(0)).square().mean(0) + 1e-8).sqrt().mean((1, 2, 3))  # [n / group]
    return torch.cat([x, spread.repeat(group)[:, None, None, None].expand(n, 1, h, w)], dim=1)


class Discriminator(nn.Module):
    """images [N, 1, R, R] (and labels [N] int64 when num_classes > 0) -> scores [N], unbounded; high means real.

    Residual blocks down to 4x4, minibatch standard deviation, a convolution, a linear layer, a linear score. Labels enter by
    projection: score = psi(h) + <embedding(label), h> (Miyato and Koyama 2018, arXiv:1802.05637, eq. 3). dtype: of the
    activations (None: that of the images), but in blocks of up to `exact` pixels a side. parts: equal parts of the batch, such
    as real and generated slices, of which none is to meet another in the minibatch standard deviation.
    """

    def __init__(self, resolution=256, channel_base=8192, channel_max=256, num_classes=0):
        super().__init__()
        sizes = [2**i for i in range(int(math.log2(resolution)), 1, -1)]  # R, ..., 8, 4
        channels = [channels_at(size, channel_base, channel_max) for size in sizes]
        last = channels[-1]
        self.from_image = Conv2d(1, channels[0], 1, gain=RELU_GAIN)
        self.blocks = nn.ModuleList(ResidualBlock(here, below) for here, below in zip(channels, channels[1:]))
        self.conv = Conv2d(last + 1, last, 3, gain=RELU_GAIN)
        self.linear = Linear(last * 16, last, gain=RELU_GAIN)
        self.score = Linear(last, 1)
        self.embedding = nn.Embedding(num_classes, last) if num_classes else None

    def forward(self, images, labels=None, dtype=None, parts=1, exact=4):
        x = self.from_image(images.to(dtype or images.dtype)).contiguous(memory_format=torch.channels_last)
        x = leaky_relu(x)
        for block in self.blocks:
            x = block(x.to(images.dtype) if x.shape[2] <= exact else x)
        x = torch.cat([minibatch_std(part) for part in x.to(images.dtype).chunk(parts)])
        x = leaky_relu(self.conv(x))
        x = leaky_relu(self.linear(x.flatten(1)))
        score = self.score(x)[:, 0]
        if self.embedding is not None:
            score = score + (self.embedding(labels) * x).sum(1) / math.sqrt(x.shape[1])
        return score
