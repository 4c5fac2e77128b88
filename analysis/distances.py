"""Distances between sets of images: the mathematics behind metrics.py and the validation during training.

In order: features of a random network; standardised KID, FID, precision, recall, density and coverage between sets of
features; sliced Wasserstein distance; radial power spectrum; distance to the nearest training image.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from analysis.bootstrap import Interval, bootstrap
from dataset import to_float
from utils import UserError

NEIGHBOURS = 5  # k of precision, recall, density and coverage
BATCH = 16  # images at a time, which limits the memory for activations
FEATURE_SIDE, NEAREST_SIDE = 64, 64  # larger images are averaged down to this size, for features and for nearest neighbours
VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")  # channels, "M": max pooling
PATCHES, PATCH = 128, 7  # sliced Wasserstein distance: patches per image and band, and their side in pixels
REPEATS, DIRECTIONS = 4, 128  # sliced Wasserstein distance: it averages over REPEATS x DIRECTIONS directions
IDENTICAL = 1e-5  # relative distance below which two images are the same; rounding gives up to 1e-6


def as_batch(images, device="cpu"):
    """uint8 [N, R, R] or float [N, 1, R, R] in [-1, 1], NumPy or torch -> float32 [N, 1, R, R] in [-1, 1] on `device`."""
    images = torch.as_tensor(np.array(images) if isinstance(images, np.ndarray) else images).to(device)
    return to_float(images) if images.dtype == torch.uint8 else images.float()


def mirror_half(images, seed=0):
    """A copy of uint8 [N, R, R] in which each image is mirrored left-right with probability 1/2, as a run with --mirror sees it."""
    mirrored = np.random.default_rng(seed).random(len(images)) < 0.5
    return np.where(mirrored[:, None, None], images[:, :, ::-1], images)


def in_batches(images, device, label=None, size=BATCH):
    """Yield `as_batch` of `size` images at a time; shows a progress bar if it is given a `label`."""
    with tqdm(total=len(images), desc=label, unit=" images", disable=None if label else True) as bar:
        for start in range(0, len(images), size):
            batch = as_batch(images[start : start + size], device)
            yield batch
            bar.update(len(batch))


# ---------------------------------------------------------------------------------------------------------------------
# Features


class Features:
    """Maps images to feature vectors: `Features(device)(images)` is float32 [N, D] on the CPU.

    The last pooling layer of a VGG16 (Simonyan and Zisserman 2015) with one input channel, no biases and random He-normal
    weights, which depend on `seed` alone; random features judge images unlike ImageNet's better than trained ones (Naeem et al.
    2020). Images must be at least 32 pixels wide; wider than FEATURE_SIDE, they are averaged down to it for speed, so other metrics
    must judge finer detail. D = 512 (side / 32)^2, which is 512 or 2048.
    """

    def __init__(self, device="cpu", seed=0):
        self.device = torch.device(device)
        self.network = random_vgg16(seed).eval().requires_grad_(False).to(self.device, memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, images, label=None):
        """Features of uint8 [N, R, R] or float [N, 1, R, R] in [-1, 1], NumPy or torch; `label` names a progress bar."""
        return torch.cat([self._extract(batch).cpu() for batch in in_batches(images, self.device, label)])

    def _extract(self, images):
        images = F.adaptive_avg_pool2d(images, min(FEATURE_SIDE, images.shape[-1]))
        features = self.network(images.contiguous(memory_format=torch.channels_last)).flatten(1)
        # Without biases a vector's length only measures contrast, yet makes up 40% of the variance: all get length 1.
        # On 300 real slices of 64x64 this raises the KID of AD against NC from 3 to 26 standard errors.
        return F.normalize(features)


def random_vgg16(seed):
    """The convolutional layers of VGG16 with weights N(0, 2 / fan-in), which keep the signal's size (He et al. 2015)."""
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


# ---------------------------------------------------------------------------------------------------------------------
# Distances between sets of features


def standardise(real, fake):
    """Subtract the mean of `real` from features [N, D] and [M, D], and divide by the RMS of what is left of `real`.

    The RMS is one number for all D features. Returns float64; E|x|^2 = D for `real`.
    """
    real, fake = torch.as_tensor(real, dtype=torch.float64), torch.as_tensor(fake, dtype=torch.float64)
    mean = real.mean(0)
    scale = (real - mean).square().mean().sqrt().clamp_min(1e-12)
    return (real - mean) / scale, (fake - mean) / scale


def split_groups(groups, blocks):
    """Rows of `groups` [N] in `blocks` blocks of about equal size, none of the groups in two: [int64 [n], ...]."""
    _, number, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    filled, block = np.zeros(blocks, int), np.zeros(len(sizes), int)
    for group in np.argsort(-sizes, kind="stable"):  # the largest first, each into the emptiest block
        block[group] = filled.argmin()
        filled[block[group]] += sizes[group]
    return [np.flatnonzero(block[number] == i) for i in range(blocks)]


def split_blocks(x, y, blocks, x_groups=None, y_groups=None):
    """Features x [N, D] and y [M, D] in as many blocks each, at most `blocks`, of whole groups where x_groups [N] or y_groups [M]
    are given: two lists of tensors [n, D]."""
    sets = (x, x_groups), (y, y_groups)
    blocks = min(blocks, *(len(points if groups is None else np.unique(groups)) for points, groups in sets))
    return (
        points.tensor_split(blocks) if groups is None else [points[rows] for rows in split_groups(groups, blocks)]
        for points, groups in sets
    )


def polynomial_mmd(x, y, blocks=50, x_groups=None, y_groups=None):
    """Unbiased MMD^2 of float64 x [N, D], y [M, D] under the kernel (x.y / D + 1)^3 (Binkowski et al. 2018), and its error.

    The standard error is a jackknife over `blocks` blocks of each set, of whole groups (people) where x_groups [N] or y_groups [M]
    are given: else it assumes independent images. nan with fewer than two groups. It is too large where both sets have the same
    distribution (the estimate is degenerate there).
    """
    x, y = split_blocks(x, y, blocks, x_groups, y_groups)
    blocks = len(x)

    def kernel_sums(a, b):  # over pairs of a block of a and a block of b, [blocks, blocks]
        return torch.stack([torch.stack([(p @ q.T / p.shape[1] + 1).pow(3).sum() for q in b]) for p in a])

    def kernel_self(a):  # each point with itself, which an unbiased sum leaves out
        return torch.stack([(p.square().sum(1) / p.shape[1] + 1).pow(3).sum() for p in a]).diag()

    xx, yy, xy = kernel_sums(x, x) - kernel_self(x), kernel_sums(y, y) - kernel_self(y), kernel_sums(x, y)
    x_sizes, y_sizes = (torch.tensor([len(block) for block in split]) for split in (x, y))

    def estimate(used):  # used: bool [blocks]
        n, m = x_sizes[used].sum().item(), y_sizes[used].sum().item()
        if min(n, m) < 2:
            return math.nan
        pairs = used[:, None] & used
        return (xx[pairs].sum() / (n * (n - 1)) + yy[pairs].sum() / (m * (m - 1)) - 2 * xy[pairs].sum() / (n * m)).item()

    without_one = [estimate(torch.arange(blocks) != i) for i in range(blocks)]
    return estimate(torch.ones(blocks, dtype=torch.bool)), math.sqrt((blocks - 1) * np.var(without_one))


def frechet_distance(x, y):
    """Squared Frechet distance of Gaussians with the means and covariances of x [N, D] and y [M, D], the FID of features (Heusel et
    al. 2017): |m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)); a float.

    With S_x = A'A and S_y = B'B, the trace of the root is the sum of the singular values of AB', which is exact where there are
    fewer images than features, too. It is biased upwards, about as 1 / N: only values of sets of equal sizes can be compared.
    """
    x, y = (torch.as_tensor(points, dtype=torch.float64) for points in (x, y))
    roots = [torch.linalg.qr((points - points.mean(0)) / math.sqrt(len(points) - 1), mode="r").R for points in (x, y)]
    traces = sum(root.square().sum() for root in roots)
    return ((x.mean(0) - y.mean(0)).square().sum() + traces - 2 * torch.linalg.svdvals(roots[0] @ roots[1].T).sum()).item()


def frechet_error(x, y, x_groups=None, y_groups=None, blocks=10, progress=iter):
    """Standard error of `frechet_distance` by a jackknife over blocks as in `polynomial_mmd`; nan where too little is left.

    Of normal features it is 1.1 times too large with many images, 1.4 times with fewer images than features (100 and 256).
    progress: wraps what is iterated over, such as in a bar.
    """
    x, y = split_blocks(x, y, blocks, x_groups, y_groups)
    if min(len(x), *(sum(map(len, parts)) - max(map(len, parts)) - 1 for parts in (x, y))) < 2:
        return math.nan
    without_one = [
        frechet_distance(*(torch.cat([*parts[:i], *parts[i + 1 :]]) for parts in (x, y))) for i in progress(range(len(x)))
    ]
    return math.sqrt((len(x) - 1) * np.var(without_one))


def kid(real, fake):
    """Standardised KID: kernel Inception distance between features [N, D] and [M, D] after `standardise`; a float.

    0 on average for equal distributions. Standardising makes it independent of the features' scale and removes their common
    direction, which dominates random features. Values are not comparable with published KIDs.
    """
    return polynomial_mmd(*standardise(real, fake))[0]


def prdc(real, fake, k=NEIGHBOURS, real_groups=None, fake_groups=None):
    """Precision, recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020) of features; a dict of floats.

    real [N, D], fake [M, D] with N, M > k. The ball of a point reaches to its k-th nearest neighbour in its own set that is of
    another of the groups [N] or [M] (people): neighbouring slices of one brain would make it too small. nan without k of them.
    precision: share of fakes in at least one real ball; recall: share of reals in at least one fake ball;
    density: mean number of real balls that a fake is in, over k (about 1, can exceed it); coverage: share of real balls that
    contain a fake. Only values from sets of equal sizes can be compared. UserError if a set is too small.
    """
    balls, recalled, covered = in_balls(real, fake, k, real_groups, fake_groups)
    return {
        "precision": (balls > 0).double().where(~balls.isnan(), math.nan).mean().item(),
        "recall": recalled.mean().item(),
        "density": balls.mean().item() / k,
        "coverage": covered.mean().item(),
    }


def ball_radii(points, k, groups=None):
    """Distance of each of float64 points [N, D] to its k-th nearest of other groups [N] (None: each is one): float64 [N].

    nan where fewer than k points are of other groups.
    """
    number = torch.arange(len(points))
    if groups is not None:
        number = torch.from_numpy(np.unique(groups, return_inverse=True)[1])
    radii = []
    for part, part_number in zip(points.split(512), number.split(512)):
        distance = torch.cdist(part, points).masked_fill_(part_number[:, None] == number, math.inf)
        radii.append(distance.kthvalue(k, dim=1).values)
    radii = torch.cat(radii)
    return radii.where(radii.isfinite(), math.nan)


def in_balls(real, fake, k=NEIGHBOURS, real_groups=None, fake_groups=None):
    """What `prdc` averages, float64: the number of real balls around each fake [M]; whether each real is in a fake ball [N], and
    whether its own ball holds a fake [N]. nan where a set has balls without radius."""
    real, fake = torch.as_tensor(real, dtype=torch.float64), torch.as_tensor(fake, dtype=torch.float64)
    if min(len(real), len(fake)) <= k:
        raise UserError(f"{min(len(real), len(fake))} slices are too few: each set needs at least {k + 1}")
    real_radii, fake_radii = ball_radii(real, k, real_groups), ball_radii(fake, k, fake_groups)
    recalled, covered = torch.zeros(2, len(real), dtype=torch.bool)
    balls = []
    for part, part_radii in zip(fake.split(512), fake_radii.split(512)):
        distance = torch.cdist(part, real)  # [512, N]
        balls.append((distance <= real_radii).sum(1))
        covered |= (distance <= real_radii).any(0)
        recalled |= (distance <= part_radii[:, None]).any(0)
    no_real, no_fake = (0 * radii.sum() for radii in (real_radii, fake_radii))  # nan if any is
    return torch.cat(balls) + no_real, recalled + no_fake, covered + no_real


# ---------------------------------------------------------------------------------------------------------------------
# Sliced Wasserstein distance over the Laplacian pyramid


def filter_separable(images, taps, stride=1):
    """Filter the rows and the columns of [N, 1, H, W] with `taps`, without padding.

    By sums of shifted images: convolutions may round to TF32 on a GPU.
    """
    for _ in range(2):  # along rows, then along columns
        span = images.shape[-1] - len(taps) + 1
        rows = images[..., :span:stride] * taps[0]
        for i, tap in enumerate(taps[1:], 1):
            rows.add_(images[..., i : i + span : stride], alpha=tap)
        images = rows.mT
    return images


def smooth(images, stride=1):
    """Apply the 5x5 binomial filter of Burt and Adelson (1983) to [N, 1, H, W], mirrored at the border."""
    return filter_separable(F.pad(images, (2, 2, 2, 2), mode="reflect"), (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16), stride)


def laplacian_pyramid(images):
    """Bands of [N, 1, R, R] at R, R/2, ..., 32, and the remaining image at 16 (Karras et al. 2018, section 5)."""
    bands = []
    while images.shape[-1] > 16:
        half = smooth(images, stride=2)
        up = torch.zeros_like(images)
        up[:, :, ::2, ::2] = 4 * half  # the factor makes up for the zeros between
        bands.append(images - smooth(up))
        images = half
    return [*bands, images]


def draw_patches(images, rng):
    """Draw PATCHES random 7x7 patches of each of [N, 1, S, S] with a NumPy Generator: [N, PATCHES, 49]."""
    windows = images.squeeze(1).unfold(1, PATCH, 1).unfold(2, PATCH, 1)  # a view, [N, S - 6, S - 6, 7, 7]
    y, x = torch.from_numpy(rng.integers(windows.shape[1], size=(2, len(images), PATCHES))).to(images.device)
    return windows[torch.arange(len(images), device=images.device)[:, None], y, x].flatten(2)


def sliced_wasserstein(a, b, rng):
    """Mean 1-Wasserstein distance between a [N, D] and b [N, D] projected on random directions; a float.

    Each is first scaled to mean 0 and standard deviation 1 over all its entries.
    """
    a, b = ((x - x.mean()) / x.std().clamp_min(1e-8) for x in (a, b))
    total = 0.0
    for _ in range(4 * REPEATS):  # a quarter of the directions at a time, which limits the memory
        directions = torch.from_numpy(rng.standard_normal((DIRECTIONS // 4, a.shape[1]))).to(a)
        directions = F.normalize(directions)  # [32, D]
        total += (_sort_rows(directions @ a.T) - _sort_rows(directions @ b.T)).abs().mean().item()
    return total / (4 * REPEATS)


def _sort_rows(x):
    """On a CPU, NumPy sorts ten times faster than PyTorch, which also returns the indices."""
    return torch.from_numpy(np.sort(x.numpy(), axis=1)) if x.device.type == "cpu" else x.sort(1).values


# ---------------------------------------------------------------------------------------------------------------------
# Radial power spectrum


def radial_power(images):
    """Power of [N, 1, R, R], averaged over rings of 1 ... R/2 cycles per image: float64 [N, R/2].

    White noise has its variance in every ring.
    """
    side = images.shape[-1]
    power = torch.fft.rfft2(images).abs().square().flatten(1) / side**2  # half of the plane; the other half mirrors it
    x, y = np.arange(side // 2 + 1), np.fft.fftfreq(side, 1 / side)
    ring = np.rint(np.hypot(x, y[:, None])).astype(int).ravel()
    weight = np.broadcast_to(np.where((x == 0) | (x == side // 2), 1.0, 2.0), (side, len(x))).ravel()
    sums = np.stack([np.bincount(ring, weight * row) for row in power.cpu().numpy()])
    return torch.from_numpy(sums / np.bincount(ring, weight))[:, 1 : side // 2 + 1]


def spectrum_db(power):
    """Mean spectrum in dB of a set from its `radial_power` [N, R/2], plus the noise of rounding to 8 bits, as a lower limit."""
    return 10 * torch.log10(power.mean(0) + (1 / 127.5) ** 2 / 12)


# ---------------------------------------------------------------------------------------------------------------------
# Memorisation


class Memorisation(NamedTuple):
    """How close generated and held-out images are to the training set; see `memorisation`."""

    share: Interval  # of generated images that are closer than the 1st percentile of the held-out ones
    fake: torch.Tensor  # relative distance of each generated image, [M]
    held_out: torch.Tensor  # relative distance of each held-out image that is not itself in the training set, [up to N]
    nearest: torch.Tensor  # row of the training image nearest to each generated image, [M]
    mirrored: torch.Tensor  # whether that training image is nearest when mirrored, bool [M]


def memorisation(real, fake, train, progress=False, groups=None, mirror=False):
    """Compare how close generated and held-out real images are to the training set, all uint8 [*, R, R]: `Memorisation`.

    `train` may be `Slices`. Without memorisation the share is `expected_share`; copying a tenth of the images adds 0.1. If `real`
    shows people of the training set, only close copies are noticed. The interval resamples generated images, and of `real` the
    groups [N] (people; None: each image is one). mirror: whether mirrored copies count. UserError if `train` holds all of `real`.
    """
    neighbours = fit_neighbours(train, "training images" if progress else None)
    held_out, _, _ = nearest_images(real, neighbours, mirror, label="nearest to real" if progress else None)
    distances, rows, mirrored = nearest_images(fake, neighbours, mirror, label="nearest to generated" if progress else None)
    new = held_out > IDENTICAL
    held_out, groups = held_out[new], (np.arange(len(new)) if groups is None else np.asarray(groups))[new.numpy()]
    if not len(held_out):
        raise UserError("memorisation needs real slices that are not in the training set, but it holds them all")

    def share(weights):
        drawn, fake_weights = np.repeat(held_out.numpy(), weights[: len(groups)].astype(int)), weights[len(groups) :]
        return np.average(distances.numpy() < np.quantile(drawn, 0.01), weights=fake_weights)

    units = np.r_[np.unique(groups, return_inverse=True)[1], np.arange(len(distances))]
    return Memorisation(bootstrap(share, units, np.arange(len(units)) < len(groups)), distances, held_out, rows, mirrored)


def expected_share(count):
    """The share of new images expected below the 1st percentile of `count` others of the same distribution: 0.01 for many.

    The percentile lies between the first two order statistics, below the k-th of which k / (count + 1) are expected.
    """
    return (1 + 0.01 * (count - 1)) / (count + 1)


def fit_neighbours(images, label=None):
    """scikit-learn's NearestNeighbors over uint8 [N, R, R], averaged down to NEAREST_SIDE. Memory: up to 32 kB per image."""
    from sklearn.neighbors import NearestNeighbors  # takes a second to import

    pixels = np.concatenate([_small_pixels(batch) for batch in in_batches(images, "cpu", label)])
    return NearestNeighbors(algorithm="brute").fit(pixels.reshape(len(pixels), -1))


def nearest_images(images, neighbours, mirror=False, count=50, label=None):
    """Find the training image nearest to each of uint8 [N, R, R]: relative distance float64 [N], its row [N], mirrored [N].

    neighbours: of the training set, from `fit_neighbours`. The relative distance is the distance over the mean distance to
    the `count` nearest (Carlini et al. 2023): the plain distance would blame a blurry generator, whose images are close to
    everything. mirror: look for mirrored copies, too.
    """
    parts = []  # (distances, rows) of each batch, [n, count], or [n, 2 * count] with those of the mirrored images second
    for batch in in_batches(images, "cpu", label, 256):
        pixels = _small_pixels(batch)
        shown = [pixels, pixels[..., ::-1]] if mirror else [pixels]
        found = [neighbours.kneighbors(x.reshape(len(x), -1), min(count, neighbours.n_samples_fit_)) for x in shown]
        parts.append([np.concatenate(arrays, 1) for arrays in zip(*found)])
    distances, rows = (torch.from_numpy(np.concatenate(arrays)) for arrays in zip(*parts))
    sorted_distances, order = distances.sort(dim=1, stable=True)
    relative = sorted_distances[:, 0] / sorted_distances[:, :count].mean(1).clamp_min(1e-12)
    return relative, rows.gather(1, order)[:, 0], order[:, 0] >= distances.shape[1] // len(shown)


def _small_pixels(batch):
    """Float [N, 1, R, R] averaged down to NEAREST_SIDE: float32 [N, side, side] as a NumPy array."""
    return F.adaptive_avg_pool2d(batch, min(NEAREST_SIDE, batch.shape[-1])).squeeze(1).numpy()
