"""Distances between sets of slices: the mathematics of metrics.py, and of the evaluations that training makes.

Features of random or trained networks and what is measured between them (KID, precision, recall, density, coverage), sliced
Wasserstein distance, radial power spectrum, MS-SSIM, and the distance of generated slices to their nearest training slice.
"""

import math
import os
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from dataset import to_float
from utils import UserError

NEIGHBOURS = 5  # k of precision, recall, density and coverage
BATCH = 16  # images at once; bounds the memory of activations
FEATURE_SIDE, NEAREST_SIDE = 64, 64  # larger images are averaged down to this for features, for nearest
VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")
PATCHES, PATCH, REPEATS, DIRECTIONS = 128, 7, 4, 128  # of the sliced Wasserstein distance
PAIRS = 256  # for MS-SSIM, whose mean they give to about 0.01
SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # per scale, finest first (Wang et al. 2003)


def as_batch(images, device="cpu"):
    """uint8 [N, R, R] or float [N, 1, R, R] in [-1, 1], numpy or torch -> float32 [N, 1, R, R] in [-1, 1] on `device`."""
    images = torch.as_tensor(np.array(images) if isinstance(images, np.ndarray) else images).to(device)
    return to_float(images) if images.dtype == torch.uint8 else images.float()


def in_batches(images, device, label=None, size=BATCH):
    """Yield `as_batch` of `size` images after the other; `label` names a progress bar (None: none)."""
    with tqdm(total=len(images), desc=label, unit=" images", disable=None if label else True) as bar:
        for start in range(0, len(images), size):
            batch = as_batch(images[start : start + size], device)
            yield batch
            bar.update(len(batch))


# ---------------------------------------------------------------------------------------------------------------------
# Features, and distances between sets of them


class Features:
    """Maps images to feature vectors: `Features("vgg16", device)(images)` is float32 [N, D] on the CPU.

    "vgg16": the last pooling of a VGG16 (Simonyan and Zisserman 2015) with one input channel, no biases and random
    He-normal weights: random features judge pictures far from ImageNet better than trained ones (Naeem et al. 2020).
    The weights depend on `seed` alone. Images must be at least 32 wide; those wider than FEATURE_SIDE are reduced to
    it by area averaging, for speed, so that finer detail is left to the other metrics. D = 512 (side / 32)^2: 512 or 2048.
    "inception": the 2048 pooled features of torchvision's Inception v3; UserError when its weights cannot be had.
    """

    def __init__(self, name="vgg16", device="cpu", seed=0):
        self.name, self.device = name, torch.device(device)
        network = pretrained_inception() if name == "inception" else random_vgg16(seed)
        self.network = network.eval().requires_grad_(False).to(self.device, memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, images, label=None):
        """images: uint8 [N, R, R] or float [N, 1, R, R] in [-1, 1], numpy or torch; `label` names a progress bar."""
        return torch.cat([self._of_batch(batch).cpu() for batch in in_batches(images, self.device, label)])

    def _of_batch(self, images):
        if self.name == "inception":
            images = F.interpolate(images, (299, 299), mode="bilinear", antialias=True).expand(-1, 3, -1, -1)
            return self.network(images)
        images = F.adaptive_avg_pool2d(images, min(FEATURE_SIDE, images.shape[-1]))
        features = self.network(images.contiguous(memory_format=torch.channels_last)).flatten(1)
        # Length 1: without biases it tells contrast alone, yet 40% of all variance. On 300 real slices of 64x64, this lifts
        # the KID of AD against NC from 3 to 26 times its error between equals. fc2 (4096) does no better, R64 worse.
        return F.normalize(features)


def random_vgg16(seed):
    """The convolutions of VGG16, weights N(0, 2 / fan-in), which keeps the size of the signal (He et al. 2015)."""
    rng, layers, channels = torch.Generator().manual_seed(seed), [], 1
    for width in VGG16:
        if width == "M":
            layers.append(nn.MaxPool2d(2))
            continue
        convolution = nn.utils.skip_init(nn.Conv2d, channels, width, 3, padding=1, bias=False)
        convolution.weight.data.normal_(0, math.sqrt(2 / (9 * channels)), generator=rng)
        layers += [convolution, nn.ReLU(inplace=True)]
        channels = width
    return nn.Sequential(*layers)


def pretrained_inception():
    """torchvision's Inception v3 for images in [-1, 1], up to its last pooling; downloads its weights once."""
    from torchvision.models import Inception_V3_Weights, inception_v3  # seconds to import

    weights = Inception_V3_Weights.IMAGENET1K_V1
    try:
        network = inception_v3(weights=weights, progress=False)
    except Exception as error:  # no network, a proxy's page, a damaged file, a full disk
        folder = os.path.join(torch.hub.get_dir(), "checkpoints")
        raise UserError(
            f"--features inception: cannot load its weights ({str(error).splitlines()[0][:80]}); put "
            f"{weights.url} into {folder}, or take --features vgg16"
        ) from None
    network.transform_input, network.fc = False, nn.Identity()
    return network


def standardise(real, fake):
    """Both features [N, D], [M, D] less the mean of `real`, over its RMS (one number): float64, E|x|^2 = D for `real`."""
    real, fake = torch.as_tensor(real, dtype=torch.float64), torch.as_tensor(fake, dtype=torch.float64)
    mean = real.mean(0)
    scale = (real - mean).square().mean().sqrt().clamp_min(1e-12)
    return (real - mean) / scale, (fake - mean) / scale


def polynomial_mmd(x, y, blocks=10):
    """Unbiased MMD^2 between float64 x [N, D], y [M, D] under (x.y / D + 1)^3 (Binkowski et al. 2018), and its error.

    The standard error is the jackknife's over `blocks` blocks of each. It takes slices for independent of each other, and
    errs to the large side where both sets are alike (there the estimate is degenerate).
    """
    blocks = min(blocks, len(x), len(y))
    x, y = x.tensor_split(blocks), y.tensor_split(blocks)

    def block_sums(a, b):  # of the kernel, [blocks, blocks]
        return torch.stack([torch.stack([(p @ q.T / p.shape[1] + 1).pow(3).sum() for q in b]) for p in a])

    def itself(a):  # kernel of each point with itself, no part of an unbiased sum
        return torch.stack([(p.square().sum(1) / p.shape[1] + 1).pow(3).sum() for p in a]).diag()

    xx, yy, xy = block_sums(x, x) - itself(x), block_sums(y, y) - itself(y), block_sums(x, y)
    sizes = [torch.tensor([len(part) for part in parts]) for parts in (x, y)]

    def estimate(kept):
        n, m = (size[kept].sum().item() for size in sizes)
        kept = kept[:, None] & kept
        return (xx[kept].sum() / (n * (n - 1)) + yy[kept].sum() / (m * (m - 1)) - 2 * xy[kept].sum() / (n * m)).item()

    less_one = [estimate(torch.arange(blocks) != i) for i in range(blocks)]
    return estimate(torch.ones(blocks, dtype=torch.bool)), math.sqrt((blocks - 1) * np.var(less_one))


def kid(real, fake):
    """Kernel Inception distance of features [N, D], [M, D], which are standardised first: a float, 0 when alike.

    Standardising makes it free of the features' scale, and takes out the direction in which all random features lie.
    """
    return polynomial_mmd(*standardise(real, fake))[0]


def prdc(real, fake, k=NEIGHBOURS):
    """Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020): a dict of floats.

    Features [N, D], [M, D] with N, M > k. A ball is what lies no farther from a point than its k-th nearest of its own set.
    Precision: share of fakes in some real ball; recall: of reals in some fake ball; density: real balls a fake lies in, over
    k (about 1, may exceed it); coverage: share of real balls with a fake in them. Sets of other sizes give other values.
    """
    real, fake = torch.as_tensor(real, dtype=torch.float64), torch.as_tensor(fake, dtype=torch.float64)
    if min(len(real), len(fake)) <= k:
        raise UserError(f"{min(len(real), len(fake))} slices are too few: each set needs at least {k + 1}")

    def radii(points):  # k + 1, since a point is its own nearest
        return torch.cat([torch.cdist(part, points).kthvalue(k + 1).values for part in points.split(512)])

    real_radii, fake_radii = radii(real), radii(fake)
    recalled, covered = torch.zeros(2, len(real), dtype=torch.bool)
    balls = []  # how many real balls each fake lies in
    for part, part_radii in zip(fake.split(512), fake_radii.split(512)):
        distance = torch.cdist(part, real)  # [512, N]
        balls.append((distance <= real_radii).sum(1))
        covered |= (distance <= real_radii).any(0)
        recalled |= (distance <= part_radii[:, None]).any(0)
    balls = torch.cat(balls).double()
    return {
        "precision": (balls > 0).double().mean().item(),
        "recall": recalled.double().mean().item(),
        "density": balls.mean().item() / k,
        "coverage": covered.double().mean().item(),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Sliced Wasserstein distance over the Laplacian pyramid


def filter_plane(images, taps, stride=1):
    """[N, 1, H, W] under the separable filter `taps`, within its bounds only. Sums, since convolutions may round to TF32."""
    for _ in range(2):  # along rows, then along columns
        span = images.shape[-1] - len(taps) + 1
        rows = images[..., :span:stride] * taps[0]
        for i, tap in enumerate(taps[1:], 1):
            rows.add_(images[..., i : i + span : stride], alpha=tap)
        images = rows.mT
    return images


def smooth(images, stride=1):
    """[N, 1, H, W] under the 5x5 binomial filter of Burt and Adelson (1983), mirrored at the border."""
    return filter_plane(F.pad(images, (2, 2, 2, 2), mode="reflect"), (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16), stride)


def laplacian_pyramid(images):
    """[N, 1, R, R] -> its bands at R, R/2, ..., 32, and what is left at 16 (Karras et al. 2018, section 5)."""
    bands = []
    while images.shape[-1] > 16:
        half = smooth(images, stride=2)
        up = torch.zeros_like(images)
        up[:, :, ::2, ::2] = 4 * half  # three of four pixels are 0
        bands.append(images - smooth(up))
        images = half
    return [*bands, images]


def draw_patches(images, rng):
    """PATCHES random 7x7 patches of each of [N, 1, S, S], flat: [N, PATCHES, 49]; `rng`: NumPy Generator."""
    windows = images.squeeze(1).unfold(1, PATCH, 1).unfold(2, PATCH, 1)  # a view, [N, S - 6, S - 6, 7, 7]
    y, x = torch.from_numpy(rng.integers(windows.shape[1], size=(2, len(images), PATCHES))).to(images.device)
    return windows[torch.arange(len(images), device=images.device)[:, None], y, x].flatten(2)


def sliced_wasserstein(a, b, rng):
    """Mean 1-Wasserstein distance between a [N, D] and b [N, D] along REPEATS x DIRECTIONS random directions; a float.

    Both are first brought to mean 0 and standard deviation 1 (over all entries), each by its own statistics.
    """
    a, b = ((x - x.mean()) / x.std().clamp_min(1e-8) for x in (a, b))
    total = 0.0
    for _ in range(4 * REPEATS):  # in quarters, which bounds the memory
        direction = torch.from_numpy(rng.standard_normal((DIRECTIONS // 4, a.shape[1]))).to(a)
        direction = F.normalize(direction)  # [32, D]
        total += (_sort_rows(direction @ a.T) - _sort_rows(direction @ b.T)).abs().mean().item()
    return total / (4 * REPEATS)


def _sort_rows(x):
    """On a CPU, NumPy's sort is ten times as fast as PyTorch's, which also wants the indices."""
    return torch.from_numpy(np.sort(x.numpy(), axis=1)) if x.device.type == "cpu" else x.sort(1).values


# ---------------------------------------------------------------------------------------------------------------------
# Radial power spectrum and multi-scale structural similarity


def radial_power(images):
    """Power of [N, 1, R, R], mean over rings of 1 ... R/2 cycles a picture: float64 [N, R/2]; white noise: its variance."""
    side = images.shape[-1]
    power = torch.fft.rfft2(images).abs().square().flatten(1) / side**2  # half the plane, mirrored in the other
    x, y = np.arange(side // 2 + 1), np.fft.fftfreq(side, 1 / side)
    ring = np.rint(np.hypot(x, y[:, None])).astype(int).ravel()
    weight = np.broadcast_to(np.where((x == 0) | (x == side // 2), 1.0, 2.0), (side, len(x))).ravel()
    sums = np.stack([np.bincount(ring, weight * row, ring.max() + 1) for row in power.cpu().numpy()])
    return torch.from_numpy(sums / np.bincount(ring, weight))[:, 1 : side // 2 + 1]


def spectrum_db(power):
    """Mean spectrum of a set in dB from `radial_power` [N, R/2]; rounding to 8 bits counts as noise that all have."""
    return 10 * torch.log10(power.mean(0) + (1 / 127.5) ** 2 / 12)


def ms_ssim(a, b):
    """Multi-scale structural similarity of images [N, 1, R, R] in [-1, 1], pair by pair: [N] in [0, 1] (Wang et al. 2003).

    11x11 Gaussian window of deviation 1.5. Of the five scales, those on which it fits (5 from R = 176 on, 3 at 64, 2 at
    32), their weights brought back to the sum 1; negative contrast terms count as 0 (as in Odena et al. 2017).
    """
    scales = min(len(SSIM_WEIGHTS), int(math.log2(a.shape[-1] / 11)) + 1)
    weights = np.array(SSIM_WEIGHTS[:scales]) / sum(SSIM_WEIGHTS[:scales])
    window = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = (window / window.sum()).tolist()
    a, b, product = (a + 1) / 2, (b + 1) / 2, 1.0
    for scale, weight in enumerate(weights):
        mean_a, mean_b, aa, bb, ab = filter_plane(torch.cat([a, b, a * a, b * b, a * b]), window).chunk(5)
        contrast = (2 * (ab - mean_a * mean_b) + 0.03**2) / (aa + bb - mean_a**2 - mean_b**2 + 0.03**2)
        if scale == scales - 1:
            contrast = contrast * (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
        product = product * contrast.mean((1, 2, 3)).clamp_min(0) ** weight
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return product


# ---------------------------------------------------------------------------------------------------------------------
# Memorisation


class Memory(NamedTuple):
    """How near slices lie to the training set: see `memorisation`."""

    share: float  # of generated slices nearer than the 1st percentile of held-out ones
    fake: torch.Tensor  # relative distance of each generated slice [M]
    held_out: torch.Tensor  # of each held-out one [N], less those that the training set holds too
    nearest: torch.Tensor  # row of the training slice nearest to each generated one [M]
    mirrored: torch.Tensor  # True where it is nearest when mirrored [M]


def nearest(images, train, device="cpu", label=None, count=50):
    """Relative distance [N], row and mirroredness of the slice of `train` nearest to each of `images`, uint8 [N, R, R].

    Distance in pixels, averaged down to NEAREST_SIDE, over the mean distance of the `count` nearest (Carlini et al. 2023):
    bare distances would blame a blurry generator, whose slices lie near to everything. Training mirrors at random, so
    a mirrored copy is a copy too. Memory: 64 kB per image, and 256 slices of `train`, an array or `Slices`, at a time.
    """

    def pixels(batch):
        return F.adaptive_avg_pool2d(batch, min(NEAREST_SIDE, batch.shape[-1])).double()

    queries = torch.cat([pixels(batch) for batch in in_batches(images, device)])
    queries = torch.cat([queries, queries.flip(-1)]).flatten(1)  # the mirrored ones behind the others
    best = torch.full((len(queries), count), math.inf, dtype=torch.float64, device=device)
    rows, start = torch.zeros(best.shape, dtype=torch.long, device=device), 0
    for batch in in_batches(train, device, label, 256):
        distance = torch.cdist(queries, pixels(batch).flatten(1))  # [2 N, 256]
        found = torch.arange(start, start + len(batch), device=device).expand(len(queries), -1)
        best, order = torch.cat([best, distance], 1).topk(count, largest=False)
        rows, start = torch.cat([rows, found], 1).gather(1, order), start + len(batch)
    best, rows = (torch.cat(x.chunk(2), 1) for x in (best, rows))  # [N, 2 count]
    best, order = best.sort(1)
    relative = best[:, 0] / best[:, : min(count, 2 * start)].mean(1).clamp_min(1e-12)
    return relative.cpu(), rows.gather(1, order)[:, 0].cpu(), (order[:, 0] >= count).cpu()


def memorisation(real, fake, train, device="cpu", progress=False):
    """Are generated slices nearer to the training set than held-out ones are? All uint8 [*, R, R]; a `Memory`.

    An honest generator has a share of about 0.01; copying every tenth slice gives 0.1 more. This is only as sharp as
    `real` is held out: where it shows the subjects of `train`, its slices lie near too, and only close copies stand out.
    """
    found = {
        name: nearest(images, train, device, f"nearest to {name}" if progress else None)
        for name, images in (("real", real), ("generated", fake))
    }
    held_out, (distance, rows, mirrored) = found["real"][0], found["generated"]
    held_out = held_out[held_out > 1e-6]
    if not len(held_out):
        raise UserError("memorisation needs real slices that are not in the training set, but it holds them all")
    share = (distance < held_out.quantile(0.01)).double().mean().item()
    return Memory(share, distance, held_out, rows, mirrored)
