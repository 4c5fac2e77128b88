"""How good generated images are: what metrics.py and predict.py --evaluate compute from sets of images.

    quality = measure_quality(real, fake, train)  # uint8 [N, R, R] each

Every value comes with its floor, which a generator that draws new slices of the training people would reach: the same measure of
as many training slices in place of the generated ones. Without a training set it is the measure between two halves of the real
set, of different people where known.
"""

import math
from typing import NamedTuple

import numpy as np
import torch

from analysis.distances import (
    NEIGHBOURS,
    PATCH,
    PATCHES,
    Features,
    Memorisation,
    draw_patches,
    expected_share,
    in_batches,
    laplacian_pyramid,
    memorisation,
    mirror_half,
    polynomial_mmd,
    prdc,
    radial_power,
    sliced_wasserstein,
    spectrum_db,
    split_groups,
    standardise,
)
from utils import UserError


class Description(NamedTuple):
    """What the comparison of two sets needs to know about a set of N images."""

    features: torch.Tensor  # [N, D]
    patches: list  # of each band of the Laplacian pyramid, finest first: [N, PATCHES, 49]
    power: torch.Tensor  # from `radial_power`, [N, R/2]
    groups: np.ndarray | None = None  # such as the people that the images show, [N]; None: each image is one


class Quality(NamedTuple):
    """What `measure_quality` returns: the values, and what the figures need."""

    values: dict  # {name: float}
    real: Description
    fake: Description
    memory: Memorisation | None  # None without a training set
    floor: str  # what the values with the prefix floor_ compare with the real set; "" if there are none
    size: int  # images of each set that precision, recall, density and coverage compare, and their floors


@torch.inference_mode()
def describe(images, extract, seed=0, label=None):
    """Compute the Description of uint8 `images` [N, R, R] in random order, on the device of `extract` (Features)."""
    rng, power, start = np.random.default_rng(seed), [], 0
    bands = int(math.log2(images.shape[-1] / 16)) + 1
    patches = [torch.empty(len(images), PATCHES, PATCH**2, device=extract.device) for _ in range(bands)]
    for batch in in_batches(images, extract.device, label and f"pixels of {label}"):
        for drawn, band in zip(patches, laplacian_pyramid(batch)):
            drawn[start : start + len(batch)] = draw_patches(band, rng)
        start += len(batch)
        power.append(radial_power(batch))
    features = extract(images, label and f"features of {label}")
    return Description(features, patches, torch.cat(power))


def halves(description, size):
    """Two Descriptions of equally many images, at most `size`, with none of the groups in both.

    Without groups, they are the images at even and at odd positions.
    """
    features, patches, power, groups = description
    rows, parts = split_groups(np.arange(2 * size) if groups is None else groups, 2), []
    for half in (rows[0][: len(rows[1])][:size], rows[1][: len(rows[0])][:size]):
        half_groups = None if groups is None else groups[half]
        parts.append(Description(features[half], [band[half] for band in patches], power[half], half_groups))
    return parts


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
    return values


def measure_quality(real, fake, train=None, device="cpu", seed=0, progress=False, groups=None, train_groups=None, mirror=False):
    """Compare uint8 real [N, R, R] with fake [M, R, R], both in random order, and with `train` (may be `Slices`): `Quality`.

    values: those of `compare_sets`; with the prefix floor_, at the same sizes, those of training slices drawn in place of the
    generated ones, or, without `train`, those of two halves of `real`, if these are large enough; with them lost: `share_lost`;
    given `train`, memorised (the share from `memorisation`, with its interval and what is expected of new images), nearest_fake and
    nearest_real (median relative distances). groups, train_groups [N]: people, see Description. mirror: of a generator that was
    trained on mirrored images, too: compare with `mirror_half` of `real`, and count mirrored copies.
    Memory at R = 256: 150 kB per image besides the images. UserError: too few images, or images of different sizes.
    """
    sides = {images.shape[-1] for images in (real, fake, *([] if train is None else [train[[0]]]))}
    if len(sides) > 1:
        raise UserError(f"slices of one size are needed, not of {' and '.join(map(str, sorted(sides)))} pixels")
    for name, images in (("real", real), ("generated", fake)):
        if len(images) <= NEIGHBOURS:
            raise UserError(f"{len(images)} {name} slices are too few: each set needs at least {NEIGHBOURS + 1}")
    extract = Features(device, seed)

    def described(images, label, groups=None):
        description = describe(images, extract, seed, label if progress else None)
        return description._replace(groups=None if groups is None else np.asarray(groups))

    real_set = described(mirror_half(real, seed) if mirror else real, "real", groups)
    fake_set = described(fake, "generated")
    size, floor = min(len(real), len(fake)), "real halves"
    if train is not None and len(train) > NEIGHBOURS:
        rows = np.random.default_rng(seed).permutation(len(train))[: len(fake)]
        drawn = mirror_half(train[rows], seed) if mirror else train[rows]
        drawn_groups = None if train_groups is None else np.asarray(train_groups)[rows]
        floor, floor_sets = "training slices", [real_set, described(drawn, "training slices", drawn_groups)]
    else:
        floor_sets = halves(real_set, size // 2)
    count = min(size, *(len(description.features) for description in floor_sets))
    if count <= NEIGHBOURS:
        count, floor = size, ""
    values = compare_sets(real_set, fake_set, count, min(size // 2, count), seed)
    if floor:
        floor_values = compare_sets(*floor_sets, count, min(size // 2, count), seed)
        values |= {f"floor_{name}": value for name, value in floor_values.items()}
        values["lost"] = share_lost(values, floor_values)
    memory = None
    if train is not None:
        memory = memorisation(real, fake, train, progress, groups, mirror)
        values |= dict(zip(("memorised", "memorised_low", "memorised_high"), memory.share))
        values["floor_memorised"] = expected_share(len(memory.held_out))
        values["nearest_fake"], values["floor_nearest_fake"] = memory.fake.median().item(), memory.held_out.median().item()
    return Quality(values, real_set, fake_set, memory, floor, count)


def share_lost(values, floor):
    """How far the worst of precision, recall and coverage lies on the way from its floor (0) to nothing (1), a share.

    Sets without any overlap have 0 of each, so the share is 1 - value / floor. Distances such as KID have no such end.
    """
    shares = [1 - values[name] / floor[name] if floor[name] else math.nan for name in ("precision", "recall", "coverage")]
    return max(shares, key=lambda share: (math.isnan(share), share))  # nan if one is
