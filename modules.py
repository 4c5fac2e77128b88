"""StyleGAN2's networks for one-channel images, in the order in which a latent becomes an image becomes a score.

    z -> MappingNetwork -> w -> Generator -> image -> Discriminator -> score

Follows Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN" (arXiv:1912.04958), called K20 below:
weight modulation and demodulation, an output-skip generator, a residual discriminator. All layers use the equalised
learning rate of Karras et al. 2018 (arXiv:1710.10196), called K18. Everything can be differentiated twice, which WGAN-GP
needs of the discriminator. Shapes: N images, C channels, R = resolution; images are [N, 1, R, R] with values of about [-1, 1].
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from ops import BLACK, CLAMP, SLOPE, blur, convolve, downsample, leaky_relu, upsample

RELU_GAIN = math.sqrt(2 / (1 + SLOPE**2))  # of a leaky ReLU, to keep a unit-variance input at unit mean square
NOISE, NOISE_LR = 0.25, 0.1  # noise inputs: initial strength (the signal has variance 1) and relative learning rate
FLOAT16_ABOVE = 16  # pixels a side up to which float32 stands in for float16, whose range is small
GROUP_SIZE = 4  # images that share one minibatch standard deviation
EXAMPLES = 512  # training slices of each class whose values a conditional model keeps, to be asked for the like


def channels_at(resolution, channel_base=8192, channel_max=256):
    """Number of feature maps at `resolution`: min(channel_max, channel_base / resolution), at least 1."""
    return max(1, min(channel_max, channel_base // resolution))


# ---------------------------------------------------------------------------------------------------------------------
# Layers with equalised learning rate (K18, section 4.1): weights are stored with unit variance and scaled in the forward pass


class Linear(nn.Module):
    """y = gain (W x / sqrt(in) + b), [N, in] -> [N, out].

    lr_multiplier: learning rate relative to other layers. gain: RELU_GAIN before a leaky ReLU, else 1.
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
    """N(0, 1) of shape [out, in, size, size], channels last like the features, so that no convolution has to reorder it."""
    return torch.randn(out_channels, in_channels, size, size).contiguous(memory_format=torch.channels_last)


class Conv2d(nn.Module):
    """Convolution, [N, C_in, H, W] -> [N, C_out, H / stride, W / stride]; stride 2 filters first (K20, appendix B).

    gain: RELU_GAIN before a leaky ReLU, else 1. It is part of the weights: leaky_relu(g x) = g leaky_relu(x) for g > 0.
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
        if weight.shape[-1] == 1:  # a matrix product over channels
            return F.linear(x.permute(0, 2, 3, 1), weight[:, :, 0, 0], bias).permute(0, 3, 1, 2)
        return convolve(x, weight, bias, self.stride, padding)


# ---------------------------------------------------------------------------------------------------------------------
# What both networks may be told


class LabelEmbedding(nn.Embedding):
    """Labels -> [N, width]. Labels are classes, int64 [N] in [0, num_classes), or with num_values > 0 float [N, 1 + num_values]:
    the class and values such as the slice index or the age in years, nan where one is unknown.

    Values enter standardised by the buffers `mean` and `std` [num_values], each beside whether it is known, and a network of one
    hidden layer adds its output to the class's embedding (the label input of Ding et al. 2021, CcGAN, arXiv:2011.07466).
    """

    def __init__(self, num_classes, width, num_values=0):
        super().__init__(num_classes, width)
        self.num_values = num_values
        if num_values:
            self.hidden, self.output = Linear(2 * num_values, width, gain=RELU_GAIN), Linear(width, width)
            self.register_buffer("mean", torch.zeros(num_values))
            self.register_buffer("std", torch.ones(num_values))

    def forward(self, labels):
        embedded = super().forward(classes_of(labels))
        if not self.num_values:
            return embedded
        values = (labels[:, 1:] - self.mean) / self.std
        known = values.isfinite()
        x = torch.cat([values.where(known, 0.0), known.to(values)], 1)
        return embedded + self.output(F.leaky_relu(self.hidden(x), SLOPE))


def classes_of(labels):
    """The classes int64 [N] of labels as `LabelEmbedding` takes them."""
    return labels if labels.ndim == 1 else labels[:, 0].long()


# ---------------------------------------------------------------------------------------------------------------------
# z -> w


class MappingNetwork(nn.Module):
    """z [N, z_dim] ~ N(0, 1), labels as of `LabelEmbedding` if num_classes > 0 -> w [N, w_dim].

    z is scaled to unit mean square. With num_classes > 0 a learned embedding of the label, scaled likewise, is concatenated.
    With num_values > 0 the buffer `examples` [num_classes, EXAMPLES, num_values] keeps values of training slices of each class.
    num_layers layers at a hundredth of the learning rate (eight in Karras et al. 2019, arXiv:1812.04948, two in Karras et al.
    2021, arXiv:2106.12423). The buffer w_mean [max(1, num_classes), w_dim] is a running mean of w per class, for truncation.
    """

    def __init__(self, z_dim=256, w_dim=256, num_classes=0, num_layers=8, num_values=0, lr_multiplier=0.01, mean_beta=0.995):
        super().__init__()
        self.z_dim, self.w_dim, self.num_classes, self.mean_beta = z_dim, w_dim, num_classes, mean_beta
        self.embedding = LabelEmbedding(num_classes, z_dim, num_values) if num_classes else None
        widths = [z_dim * 2 if num_classes else z_dim] + [w_dim] * num_layers
        self.layers = nn.ModuleList(Linear(a, b, lr_multiplier=lr_multiplier, gain=RELU_GAIN) for a, b in zip(widths, widths[1:]))
        self.register_buffer("w_mean", torch.zeros(max(1, num_classes), w_dim))
        if num_values:
            self.register_buffer("examples", torch.zeros(num_classes, EXAMPLES, num_values))

    def forward(self, z, labels=None):
        x = _unit_mean_square(z)
        if self.embedding is not None:
            x = torch.cat([x, _unit_mean_square(self.embedding(labels))], dim=1)
        for layer in self.layers:
            x = F.leaky_relu(layer(x), SLOPE)
        return x

    def labels_of(self, z, classes, held=False):
        """Labels for latents z [N, z_dim] of these classes int64 [N]: the classes, or with values also those of a training slice.

        Which slice depends on z alone, on digits that have nothing to do with its size. It is one of the same class, unless
        `held`: then it is the same for all classes, so that between them nothing but the class differs.
        """
        if not self.embedding.num_values:
            return classes
        digits = (z[:, 0].abs() * 2**20).long()  # exact: a power of two
        chosen = digits // EXAMPLES % self.num_classes if held else classes
        return torch.cat([classes[:, None].to(self.examples), self.examples[chosen, digits % EXAMPLES]], 1)

    @torch.no_grad()
    def class_sums(self, w, labels=None):
        """Per class the sum of w [N, w_dim] and, in the last column, their number: [max(1, num_classes), w_dim + 1]."""
        rows = torch.zeros(len(w), dtype=torch.long, device=w.device) if self.embedding is None else classes_of(labels)
        is_class = (rows[:, None] == torch.arange(len(self.w_mean), device=w.device)).to(self.w_mean)  # [N, classes]
        return is_class.T @ F.pad(w.to(self.w_mean), (0, 1), value=1.0)

    @torch.no_grad()
    def update_w_mean(self, class_sums):
        """Move w_mean towards the class means in `class_sums`, which may be scaled; classes without samples stay."""
        total, count = class_sums[:, :-1], class_sums[:, -1:]
        mean = torch.where(count > 0, total / count, self.w_mean)
        self.w_mean.lerp_(mean, 1 - self.mean_beta)

    def truncate(self, w, psi, labels=None):
        """Move w [N, w_dim] towards its (class) mean: w_mean + psi (w - w_mean); psi = 1 changes nothing (K20, section 2)."""
        mean = self.w_mean if self.embedding is None else self.w_mean[classes_of(labels)]
        return mean + psi * (w - mean)


def _unit_mean_square(x):
    """Scale every row to unit mean square."""
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


# ---------------------------------------------------------------------------------------------------------------------
# w -> image


class ModulatedConv2d(nn.Module):
    """Weight-modulated convolution (K20, section 2.2): x [N, C_in, H, W], w [N, w_dim] -> [N, C_out, H or 2H, W or 2W].

    With style s = A(w), the paper's weights for one sample are  w''_oik = s_i w_oik / sqrt(sum_ik (s_i w_oik)^2 + eps)
    (eq. 1 and 3). Convolution is linear: scaling its input by s and its output by d, the inverse of that root, gives the
    same features from one kernel shared by the batch, much faster than a grouped convolution per sample. And since
    leaky_relu(d y) = d leaky_relu(y), d can be multiplied into the next style instead of into the feature maps. Features are
    therefore passed on as two tensors, x and scale [N, C] > 0, which stand for x * scale[:, :, None, None].

    In float16 the scale returned is 1, and the largest style and weights are divided out before and multiplied in again behind
    the convolution, so that nothing overflows (Karras et al. 2020, arXiv:2006.06676, appendix D).
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
        factor, kernel = style * scale, weight
        if x.dtype == torch.float16:
            largest = factor.detach().abs().amax(1, keepdim=True).clamp(min=1e-12)  # [N, 1]
            largest_weight = weight.detach().abs().amax((1, 2, 3)).clamp(min=1e-12) / self.weight_gain  # [C_out]
            factor, kernel = factor / largest, weight / largest_weight[:, None, None, None]
        x = x * factor[:, :, None, None].to(x.dtype)
        if self.up:  # zero insertion and convolution in one, then the filter (gain 4 for zeros)
            x = blur(F.conv_transpose2d(x, 4 * kernel.transpose(0, 1).to(x.dtype), stride=2), padding=1)
        else:
            x = convolve(x, kernel.to(x.dtype), padding=kernel.shape[-1] // 2)
        norm = style.square() @ weight.square().sum((2, 3)).T  # [N, C_out]
        demodulation = self.gain * (norm + 1e-8).rsqrt()
        if x.dtype == torch.float16:
            return x * (demodulation * largest * largest_weight)[:, :, None, None].to(x.dtype), torch.ones_like(demodulation)
        return x, demodulation


class ToImage(nn.Module):
    """Weight-modulated 1x1 convolution to one channel, not demodulated (K20, section 4.1): x, scale, w -> [N, 1, H, W].

    A kernel per sample is the faster way here: it is a vector, so the convolution is a matrix product.
    """

    def __init__(self, in_channels, w_dim):
        super().__init__()
        self.affine = Linear(w_dim, in_channels, bias=1.0)
        self.weight = nn.Parameter(random_kernel(1, in_channels, 1))
        self.weight_gain = 1 / math.sqrt(in_channels)

    def forward(self, x, scale, w):
        kernel = self.affine(w) * scale * self.weight.flatten() * self.weight_gain  # [N, C]
        pixels = x.permute(0, 2, 3, 1).flatten(1, 2)  # [N, H W, C]
        size = None
        if x.dtype == torch.float16:  # the sum over channels ends within CLAMP, and has its size back in float32
            size = kernel.detach().abs().sum(1, keepdim=True).clamp(min=1)  # by less, gradients would vanish
            kernel = kernel / size
        y = torch.bmm(pixels, kernel[:, :, None].to(x.dtype)).transpose(1, 2).unflatten(2, x.shape[2:])
        return y if size is None else y.to(size.dtype) * size[:, :, None, None]


class StyleBlock(nn.Module):
    """Modulated convolution, noise with a learned strength, bias, leaky ReLU (K20, figure 2d).

    Every channel has its own noise strength, as in Karras et al. 2019 (section 2); strengths start above 0 and learn slowly.
    K20's single strength per layer, starting at 0, stayed near 0 in short runs, and so every cortical fold stayed in place:
    w acts everywhere alike, while noise varies over the image.
    noise: "random" draws it from `rng` (None: PyTorch's global generator); "fixed" uses a constant map, seeded per block,
    for all images; "none" omits it; a tensor [N or 1, 1, H, W] is used as given.
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
        maps, strengths = [x.new_ones(n, 1, height, width)], [self.bias[:, None]]  # the bias multiplies a map of ones
        if torch.is_tensor(noise):
            maps.append(noise.expand(n, 1, height, width).to(x.dtype))
        elif noise == "random":
            maps.append(torch.randn(n, 1, height, width, device=x.device, generator=rng).to(x.dtype))
        elif noise == "fixed":
            maps.append(self.fixed_noise.expand(n, 1, height, width).to(x.dtype))
        if len(maps) == 2:
            strengths.append(NOISE_LR * self.noise_strength[:, 0])
        # Bias and noise in one pass, as a matrix product: broadcasting a [C, 1, 1] bias over channels-last features is slow in
        # bfloat16 on a CPU (16 channels at 64x64: four times as long as the convolution).
        pixels = x.permute(0, 2, 3, 1).reshape(n, height * width, c)
        maps = torch.cat(maps, 1).flatten(2).transpose(1, 2)  # [N, H W, 2]
        strengths = (torch.cat(strengths, 1).T / scale[:, None]).to(x.dtype)  # [N, 2, C]
        pixels = leaky_relu(torch.baddbmm(pixels, maps, strengths), in_place=True)
        return pixels.reshape(n, height, width, c).permute(0, 3, 1, 2), scale


class GeneratorBlock(nn.Module):
    """One resolution of the generator: two style blocks, the first of which upsamples, and this resolution's image layer.

    The first resolution, 4x4, has nothing to upsample and one style block.
    """

    def __init__(self, in_channels, out_channels, resolution, w_dim):
        super().__init__()
        first = [] if in_channels is None else [StyleBlock(in_channels, out_channels, resolution, w_dim, up=True)]
        self.styles = nn.ModuleList(first + [StyleBlock(out_channels, out_channels, resolution, w_dim)])
        self.to_image = ToImage(out_channels, w_dim)
        self.image_bias = nn.Parameter(torch.zeros([]))

    def forward(self, x, scale, image, ws, noise, rng):
        """Features x [N, C_in, H, W], scale [N, C_in] and image [N, 1, H, W] (or None) -> the same three at this resolution.

        ws: w [N, w_dim] for every style block and for the image layer; noise: for every style block.
        """
        for style, w, block_noise in zip(self.styles, ws, noise):
            x, scale = style(x, scale, w, block_noise, rng)
        contribution = self.to_image(x, scale, ws[-1]).to(ws[-1].dtype) + self.image_bias
        return x, scale, contribution if image is None else upsample(image) + contribution


class Generator(nn.Module):
    """w [N, w_dim], or one w per layer [N, num_ws, w_dim] (style mixing) -> images [N, 1, R, R], about [-1, 1] but unbounded.

    A learned 4x4 constant, then a block per resolution. The image is the sum of all blocks' upsampled contributions, K20's
    alternative to progressive growing (section 4.1, "output skips"). num_ws = 2 log2(R) - 2: one w per style block and one
    for the last image layer; earlier image layers share the w of the style block that follows, as in K20.
    The background is the last block's bias: upsampling meets zeros beyond the border, so one that came from an earlier block
    would be grey in the outermost rows and columns, and every later block would have to blacken them.
    noise, rng: see StyleBlock; noise may also be a list of num_ws - 1 maps, one per style block. dtype: of the activations
    (None: that of w); weights and image keep theirs.
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
        self.blocks[-1].image_bias.data.fill_(BLACK)

    def forward(self, w, noise="random", rng=None, dtype=None):
        ws = (w[:, None].expand(-1, self.num_ws, -1) if w.ndim == 2 else w).unbind(1)
        noises = [noise] * (self.num_ws - 1) if isinstance(noise, str) else noise
        x, image, layer = self.constant.expand(len(w), -1, -1, -1), None, 0
        scale = w.new_ones(len(w), x.shape[1])
        x = x.to(w.dtype if dtype == torch.float16 else dtype or w.dtype).contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            if dtype == torch.float16 and x.shape[2] == FLOAT16_ABOVE:  # what this block works in
                x, scale = (x * scale[:, :, None, None]).clamp(-CLAMP, CLAMP).to(dtype), torch.ones_like(scale)
            styles = len(block.styles)
            x, scale, image = block(x, scale, image, ws[layer : layer + styles + 1], noises[layer : layer + styles], rng)
            layer += styles
        return image


def build_generator(network):
    """Untrained ModuleDict of "mapping" and "generator" from the network settings in config.json and generator.pt."""
    told = network["num_classes"], network["mapping_layers"], len(network.get("values", ()))
    return nn.ModuleDict(
        {
            "mapping": MappingNetwork(network["z_dim"], network["w_dim"], *told),
            "generator": Generator(network["resolution"], network["channel_base"], network["channel_max"], network["w_dim"]),
        }
    )


# ---------------------------------------------------------------------------------------------------------------------
# image -> score


class ResidualBlock(nn.Module):
    """Two convolutions beside a 1x1 skip (K20, figure 7c), [N, C_in, H, W] -> [N, C_out, H / 2, W / 2].

    Each branch contributes half of the variance, so that their sum keeps its scale.
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


def minibatch_std(x, group_size=GROUP_SIZE):
    """Append a map of the mean standard deviation within groups of images (K18, section 3): [N, C, H, W] -> [N, C + 1, H, W].

    Image i of N belongs to group i mod N / group_size. A batch that `group_size` does not divide has smaller groups; groups
    of one image have a map of zeros.
    """
    n, c, h, w = x.shape
    group = next(g for g in range(min(group_size, n), 0, -1) if n % g == 0)
    groups = x.reshape(group, n // group, c, h, w)
    std = ((groups - groups.mean(0)).square().mean(0) + 1e-8).sqrt().mean((1, 2, 3))  # [n / group]
    return torch.cat([x, std.repeat(group)[:, None, None, None].expand(n, 1, h, w)], dim=1)


class Discriminator(nn.Module):
    """The critic: images [N, 1, R, R] (and labels as of `LabelEmbedding` if num_classes > 0) -> scores [N]; high means real.

    Residual blocks down to 4x4, minibatch standard deviation, a convolution, a linear layer and a linear score. Labels enter
    by projection: score = psi(h) + <embedding(label), h> (Miyato and Koyama 2018, arXiv:1802.05637, eq. 3).
    dtype: of the activations (None: that of the images); blocks of at most `float32_up_to` pixels a side keep that of the images.
    groups: equal parts of the batch, such as real and generated images, that minibatch standard deviation keeps apart.
    fade: None, or a training.growth.Fade while the blocks of the highest resolutions are new.
    """

    def __init__(self, resolution=256, channel_base=8192, channel_max=256, num_classes=0, num_values=0):
        super().__init__()
        sizes = [2**i for i in range(int(math.log2(resolution)), 1, -1)]  # R, ..., 8, 4
        channels = [channels_at(size, channel_base, channel_max) for size in sizes]
        last = channels[-1]
        self.from_image = Conv2d(1, channels[0], 1, gain=RELU_GAIN)
        self.blocks = nn.ModuleList(ResidualBlock(here, below) for here, below in zip(channels, channels[1:]))
        self.conv = Conv2d(last + 1, last, 3, gain=RELU_GAIN)
        self.linear = Linear(last * 16, last, gain=RELU_GAIN)
        self.score = Linear(last, 1)
        self.embedding = LabelEmbedding(num_classes, last, num_values) if num_classes else None
        self.fade = None

    def forward(self, images, labels=None, dtype=None, groups=1, float32_up_to=4):
        if dtype == torch.float16:
            float32_up_to = max(float32_up_to, FLOAT16_ABOVE)
            dtype = None if images.shape[2] <= float32_up_to else dtype
        x = self.from_image(images.to(dtype or images.dtype)).contiguous(memory_format=torch.channels_last)
        x = leaky_relu(x)
        for block in self.blocks:
            x = block(x.to(images.dtype) if x.shape[2] <= float32_up_to else x)
            if self.fade is not None and x.shape[2] == self.fade.resolution:
                x = self.fade(images, x)
        x = torch.cat([minibatch_std(group) for group in x.to(images.dtype).chunk(groups)])
        x = leaky_relu(self.conv(x))
        x = leaky_relu(self.linear(x.flatten(1)))
        score = self.score(x)[:, 0]
        if self.embedding is not None:
            score = score + (self.embedding(labels) * x).sum(1) / math.sqrt(x.shape[1])
        return score


def build_networks(network):
    """Untrained (`build_generator(network)`, Discriminator) from the network settings in config.json."""
    told = network["num_classes"], len(network.get("values", ()))
    critic = Discriminator(network["resolution"], network["channel_base"], network["channel_max"], *told)
    return build_generator(network), critic
