"""How good generated images are: what metrics.py and predict.py --evaluate compute from sets of images, and its figures.

    quality = measure_quality(real, fake, train)  # uint8 [N, R, R] each
    print(quality_table(quality.values))

Every value comes with its floor: the same measure between two halves of the real set, of different people where known, which
a perfect generator would reach.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure

from analysis.distances import (
    BATCH,
    NEIGHBOURS,
    PAIRS,
    PATCH,
    PATCHES,
    Features,
    Memorisation,
    draw_patches,
    in_batches,
    laplacian_pyramid,
    memorisation,
    mirror_half,
    ms_ssim,
    polynomial_mmd,
    prdc,
    radial_power,
    sliced_wasserstein,
    spectrum_db,
    split_groups,
    standardise,
)
from report import figures
from utils import UserError


class Description(NamedTuple):
    """What the comparison of two sets needs to know about a set of N images."""

    features: torch.Tensor  # [N, D]
    patches: list  # of each band of the Laplacian pyramid, finest first: [N, PATCHES, 49]
    power: torch.Tensor  # from `radial_power`, [N, R/2]
    similarity: torch.Tensor  # MS-SSIM of images 0 and 1, 2 and 3, ...: [min(N // 2, PAIRS)]
    groups: np.ndarray | None = None  # such as the people that the images show, [N]; None: each image is one


class Quality(NamedTuple):
    """What `measure_quality` returns: the values, and what the figures need."""

    values: dict  # {name: float}
    real: Description
    fake: Description
    memory: Memorisation | None  # None without a training set


@torch.inference_mode()
def describe(images, extract, seed=0, label=None):
    """Compute the Description of uint8 `images` [N, R, R] in random order, on the device of `extract` (Features)."""
    rng, power, similarity, start = np.random.default_rng(seed), [], [], 0
    bands = int(math.log2(images.shape[-1] / 16)) + 1
    patches = [torch.empty(len(images), PATCHES, PATCH**2, device=extract.device) for _ in range(bands)]
    for batch in in_batches(images, extract.device, label and f"pixels of {label}"):
        for drawn, band in zip(patches, laplacian_pyramid(batch)):
            drawn[start : start + len(batch)] = draw_patches(band, rng)
        start += len(batch)
        power.append(radial_power(batch))
        if len(similarity) * BATCH < 2 * PAIRS:
            similarity.append(ms_ssim(batch[0 : len(batch) // 2 * 2 : 2], batch[1::2]))
    features = extract(images, label and f"features of {label}")
    return Description(features, patches, torch.cat(power), torch.cat(similarity).cpu())


def halves(description, size):
    """Two Descriptions of equally many images, at most `size`, with the same `similarity` and none of the groups in both.

    Without groups, they are the images at even and at odd positions.
    """
    features, patches, power, similarity, groups = description
    rows = split_groups(np.arange(2 * size) if groups is None else groups, 2)
    size = min(size, *map(len, rows))
    return [
        Description(
            features[part], [band[part] for band in patches], power[part], similarity, None if groups is None else groups[part]
        )
        for part in (of_half[:size] for of_half in rows)
    ]


def compare_sets(real, fake, size, swd_size, seed=0):
    """All distances between two Descriptions: {name: float}.

    Some depend on the number of images: precision, recall, density and coverage use the first `size` of each set, the sliced
    Wasserstein distances the first `swd_size`.
    """
    mmd, error = polynomial_mmd(*standardise(real.features, fake.features), x_groups=real.groups, y_groups=fake.groups)
    real_groups, fake_groups = (None if x.groups is None else x.groups[:size] for x in (real, fake))
    neighbourhoods = prdc(real.features[:size], fake.features[:size], NEIGHBOURS, real_groups, fake_groups)
    values = {"kid_x1000": 1000 * mmd, "kid_x1000_error": 1000 * error, **neighbourhoods}
    rng, swd = np.random.default_rng(seed), []
    for a, b in zip(real.patches, fake.patches):
        swd.append(1000 * sliced_wasserstein(a[:swd_size].flatten(0, 1), b[:swd_size].flatten(0, 1), rng))
    finest = 16 << (len(swd) - 1)
    values |= {f"swd_x1000_{finest >> i}": value for i, value in enumerate(swd)}
    values["swd_x1000"] = sum(swd) / len(swd)
    values["spectrum_db"] = (spectrum_db(real.power) - spectrum_db(fake.power)).abs().mean().item()
    return values | {"ms_ssim": fake.similarity.mean().item(), "ms_ssim_real": real.similarity.mean().item()}


def measure_quality(real, fake, train=None, features="vgg16", device="cpu", seed=0, progress=False, groups=None, mirror=False):
    """Compare uint8 real [N, R, R] with fake [M, R, R], both in random order, and with `train` (may be `Slices`): `Quality`.

    values: those of `compare_sets`; with the prefix floor_ the same between two halves of `real`, if these are large enough;
    given `train`, memorised (the share from `memorisation`, with its interval), nearest_fake and nearest_real (median relative
    distances). groups [N]: see Description; for the balls of `prdc`, the standard error, the interval and the floor. mirror: of a generator that
    was trained on mirrored images, too: compare with `mirror_half` of `real`, and count mirrored copies.
    Memory at R = 256: 150 kB per image besides the images. UserError: too few images, or images of different sizes.
    """
    sides = {images.shape[-1] for images in (real, fake, *([] if train is None else [train[[0]]]))}
    if len(sides) > 1:
        raise UserError(f"slices of one size are needed, not of {' and '.join(map(str, sorted(sides)))} pixels")
    for name, images in (("real", real), ("generated", fake)):
        if len(images) <= NEIGHBOURS:
            raise UserError(f"{len(images)} {name} slices are too few: each set needs at least {NEIGHBOURS + 1}")
    extract = Features(features, device, seed)
    real_set = describe(mirror_half(real, seed) if mirror else real, extract, seed, "real" if progress else None)
    real_set = real_set._replace(groups=None if groups is None else np.asarray(groups))
    fake_set = describe(fake, extract, seed, "generated" if progress else None)
    size = min(len(real), len(fake))
    values = compare_sets(real_set, fake_set, size, size // 2, seed)  # the SWD falls with size: the floor has only half
    half = halves(real_set, size // 2)
    if (count := len(half[0].features)) > NEIGHBOURS:
        floor = compare_sets(*half, count, count, seed)
        values |= {f"floor_{name}": value for name, value in floor.items()}
    memory = None
    if train is not None:
        memory = memorisation(real, fake, train, progress, groups, mirror)
        values |= {"memorised": memory.share, "memorised_low": memory.low, "memorised_high": memory.high}
        values["nearest_fake"], values["nearest_real"] = memory.fake.median().item(), memory.held_out.median().item()
    return Quality(values, real_set, fake_set, memory)


# ---------------------------------------------------------------------------------------------------------------------
# Table and figures


def quality_table(values):
    """The values as lines of text, each beside its floor."""
    rows = [("KID x 1000", "kid_x1000"), ("  standard error", "kid_x1000_error")]
    rows += [(name, name) for name in ("precision", "recall", "density", "coverage")]
    rows.append(("SWD x 1000", "swd_x1000"))
    rows += [(f"  at {name.removeprefix('swd_x1000_')}", name) for name in values if name.startswith("swd_x1000_")]
    rows += [("spectrum, dB", "spectrum_db"), ("MS-SSIM of pairs", "ms_ssim")]
    lines = [(label, values[name], values.get(f"floor_{name}")) for label, name in rows]
    if "memorised" in values:
        lines += [
            ("memorised, share", values["memorised"], 0.01),
            ("  95%, from", values["memorised_low"], None),
            ("  95%, to", values["memorised_high"], None),
            ("nearest, median", values["nearest_fake"], values["nearest_real"]),
        ]
    return "\n".join(
        [f"{'':18}{'generated':>10}{'real halves':>13}"]
        + [f"{label:18}{value:10.3f}" + (f"{'-':>13}" if floor is None else f"{floor:13.3f}") for label, value, floor in lines]
    )


def plot_quality(quality, path):
    """Draw metrics.png: the table, radial power spectra, SWD per band and, given a training set, distances to it."""
    figure = Figure(figsize=(11, 8.5), layout="constrained")
    (text_axes, spectrum_axes), (swd_axes, memory_axes) = figure.subplots(2, 2)
    _draw_table(text_axes, quality.values)
    _draw_spectra(spectrum_axes, quality)
    _draw_swd(swd_axes, quality.values)
    if quality.memory:
        _draw_memorisation(memory_axes, quality.memory)
    else:
        memory_axes.axis("off")
    for axes in (spectrum_axes, swd_axes, *([memory_axes] if quality.memory else [])):
        axes.legend(frameon=False)
        axes.grid(alpha=0.2)
    figures.save_figure(figure, path)


def _draw_table(axes, values):
    explanation = (
        "Real halves: what a perfect generator would reach. Lower is better,\nexcept for precision, recall, density and coverage "
        "(higher)\nand MS-SSIM, memorised and nearest (equal to the real set's)."
    )
    axes.axis("off")
    axes.text(0, 1, quality_table(values), family="monospace", fontsize=10, va="top", transform=axes.transAxes)
    axes.text(0, 0, explanation, fontsize=9, va="bottom", transform=axes.transAxes)


def _draw_spectra(axes, quality):
    for name, power, colour in (("real", quality.real.power, figures.REAL), ("generated", quality.fake.power, figures.FAKE)):
        axes.plot(range(1, power.shape[1] + 1), spectrum_db(power), color=colour, label=name)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set(xlabel="cycles per image", ylabel="mean power, dB", title="Radial power spectrum")


def _draw_swd(axes, values):
    sides = [name.removeprefix("swd_x1000_") for name in values if name.startswith("swd_x1000_")]
    x = np.arange(len(sides))
    series = [("swd_x1000", figures.FAKE, "generated and real"), ("floor_swd_x1000", figures.NEUTRAL, "two halves of the real set")]
    series = [row for row in series if row[0] in values]
    for i, (name, colour, label) in enumerate(series):
        heights = [values[f"{name}_{side}"] for side in sides]
        axes.bar(x + 0.4 * (i - (len(series) - 1) / 2), heights, 0.4, color=colour, label=label)
    axes.margins(y=0.25)
    axes.set(xlabel="band of the Laplacian pyramid, pixels", ylabel="SWD x 1000", title="Sliced Wasserstein distance")
    axes.set(xticks=x, xticklabels=sides)


def _draw_memorisation(axes, memory):
    for name, values, colour in (("real, held out", memory.held_out, figures.REAL), ("generated", memory.fake, figures.FAKE)):
        shares = np.full(len(values), 1 / len(values))
        axes.hist(values.numpy(), np.linspace(0, 1, 41), weights=shares, color=colour, alpha=0.6, label=name)
    limit = memory.held_out.quantile(0.01).item()
    axes.axvline(limit, color="black", linewidth=1, linestyle=":", label="1st percentile of held out")
    axes.set(xlabel="distance to the nearest training image / mean of the 50 nearest", ylabel="share of images")
    axes.margins(y=0.3)  # room for the legend
    axes.set(title="Memorisation")


def save_nearest(fake, train, memory, path, count=12):
    """Write nearest.png: the generated images closest to the training set, beside the training images closest to them."""
    closest = memory.fake.argsort()[:count].numpy()
    pairs = zip(train[memory.nearest[closest].numpy()], memory.mirrored[closest])
    nearest = np.stack([image[:, ::-1] if mirrored else image for image, mirrored in pairs])
    figures.save_grids({"generated, nearest first": fake[closest], "nearest training slices": nearest}, path)
