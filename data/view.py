"""Which view do slices show, and may they be mirrored? Told by how like their own mirror images they are.

    find_view(slices)         # View("sagittal", likeness=0.56, symmetric=0.0, upright=0.0, mean_slice=0.62)
    mirror_warning(slices)    # a line about --mirror True, or None

An axial or coronal slice of a head is like its left-right mirror image; a sagittal one, which shows front and back, is like none.
These two kinds are what can be told apart: "axial" means axial or coronal.

The *likeness* of a slice is the correlation of its pixels with those of its mirror image, over the brain, after the head was
brought to one place and size and divided by its local mean: the greatest over tilts, shifts and two axes (heads on their side).
Measured at 64x64, as median (2% to 98% of the slices): sagittal slices of 58 people 0.54 (0.36 to 0.75), sagittal phantoms 0.54
(0.39 to 0.72); axial slices of 161 people 0.93 (0.88 to 0.97), axial phantoms 0.91 (0.85 to 0.95); axial and coronal slices of six
volumes 0.94 (0.77 to 0.97) and 0.93 (0.83 to 0.97), sagittal ones 20 to 60 mm beside the middle 0.65 (0.48 to 0.81).
What is no head is not called one: there is a dark background, slices resemble others of the set, and symmetric ones are more so
about one axis than about the other. So a few neighbouring axial slices may stay "unknown", and so do pictures as noisy as bright.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

SIDE = 32  # pixels at which slices are compared
EXAMINED = 400  # slices, at most, drawn at random
NEIGHBOURS = 8  # slices with which each is compared
TILT, SHIFT = 12, 3  # degrees and pixels by which the axis may be off
SYMMETRIC = 0.8  # likeness from which a slice is called symmetric: between those of sagittal and axial slices
ALIKE = 0.7  # median correlation with the most similar other slice from which a set shows one thing: brains 0.81 to 0.92, noise 0
ONE_AXIS = 0.06  # median difference of the likeness about both axes from which one counts: axial slices 0.07 to 0.22, discs 0.01
CLEAR = 0.15  # difference of the median likeness of two groups, below which they are one, some of them noisy
SOME = 0.15  # share of the slices from which a second view makes a set mixed


WORDS = {
    "sagittal": "sagittal: slices are unlike their own mirror images",
    "axial": "axial or coronal: slices are like their own mirror images",
    "mixed": "mixed: sagittal, and axial or coronal",
    "unknown": "cannot be told: not the slices of heads of one or two views",
}


class View(NamedTuple):
    """What `find_view` found; the numbers are nan where no slice shows anything on a dark background."""

    name: str  # "sagittal", "axial" (or coronal), "mixed" of both, or "unknown"
    likeness: float  # median over the slices, of each about its better axis
    symmetric: float  # share of slices with a likeness of at least SYMMETRIC about either axis
    upright: float  # share of slices with such a likeness about the vertical axis: a mirrored slice could be another head
    mean_slice: float  # likeness of the mean slice

    def __str__(self):
        """The view in words, with the numbers behind it."""
        if np.isnan(self.likeness):
            return "cannot be told: no bright heads on a dark background"
        words = WORDS[self.name]
        if self.name == "axial" and self.upright < self.symmetric / 2:
            words += ", but heads lie on their side"
        numbers = f"correlation with them {self.likeness:.2f} in the median, {self.mean_slice:.2f} of the mean slice"
        return f"{words} ({numbers}; {self.symmetric:.0%} reach {SYMMETRIC:g})"


def find_view(pixels):
    """The View of slices uint8 [N, R, R], an array or `dataset.Slices`, of one or more scans; at best five slices or more.

    Scans may be turned by 90 degrees, tilted, shifted and shaded. A group of slices (symmetric or not) counts if it holds at
    least SOME of them, and shows one thing; "mixed" needs both.
    """
    rows = np.arange(len(pixels))
    if len(rows) > EXAMINED:
        rows = np.sort(np.random.default_rng(0).choice(rows, EXAMINED, replace=False))
    flat, brain = fit_to_frame(np.asarray(pixels[rows])) if len(rows) else 2 * [torch.zeros(0, SIDE, SIDE)]
    if 2 * len(flat) <= len(rows):
        return View("unknown", *[float("nan")] * 4)
    by_axis = likeness(flat, brain)  # [2, n]
    best, symmetric = by_axis.amax(0), by_axis.amax(0) >= SYMMETRIC
    apart = (by_axis[0] - by_axis[1]).abs()
    kinds = {
        "sagittal": ~symmetric if len(flat) > 1 else symmetric & False,  # what one slice shows may be anything
        "axial": symmetric if not symmetric.any() or apart[symmetric].median() >= ONE_AXIS else symmetric & False,
    }
    shares = {
        name: float(rows.float().mean())
        for name, rows in kinds.items()
        if rows.float().mean() >= SOME and resemblance(flat[rows], brain[rows]).median() >= ALIKE
    }
    name = max(shares, key=shares.get, default="unknown")
    if len(shares) == 2 and best[symmetric].median() - best[~symmetric].median() > CLEAR:
        name = "mixed"
    if sum(shares.values()) < 0.5:
        name = "unknown"
    mean = likeness(flat.mean(0, keepdim=True), (brain.mean(0, keepdim=True) > 0.5).float()).max()
    upright = (by_axis[0] >= SYMMETRIC).float().mean()
    return View(name, *map(float, (best.median(), symmetric.float().mean(), upright, mean)))


def mirror_warning(pixels):
    """A line for a run that mirrors slices uint8 [N, R, R] although many are, as they are stored, unlike their left-right mirror
    images; None otherwise, or where the view cannot be told."""
    view = find_view(pixels)
    unlike = 1 - view.upright
    if view.name == "unknown" or unlike < SOME:
        return None
    words = {"sagittal": "sagittal", "axial": "axial or coronal, but lie on their side", "mixed": "partly sagittal"}[view.name]
    text = f"--mirror True: {unlike:.0%} of the slices are unlike their left-right mirror images (they are {words})"
    return f"{text}, so the model will also learn heads that nobody has; --mirror False is better here"


def fit_to_frame(pixels):
    """(flat, brain), float32 [n, 32, 32] each, of the n slices of uint8 [N, R, R] that show something on a dark background.

    flat: the slice at a common place and size, divided by its local mean, blurred, 0 outside; brain: 1 in the foreground, else 0.
    """
    images = functional.interpolate(torch.from_numpy(pixels)[:, None].float(), size=min(2 * SIDE, pixels.shape[-1]), mode="area")
    edge = torch.cat([images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1]], -1).median(-1).values  # [N, 1]
    threshold = torch.maximum(0.1 * images.flatten(1).quantile(0.98, 1, keepdim=True), 3 * edge).clamp(min=1)  # above the noise
    inside = (images > threshold[:, :, None, None]).float()
    on_edge = (inside[..., 0, :] + inside[..., -1, :] + inside[..., 0] + inside[..., -1]).mean((1, 2)) / 4
    usable = (inside.mean((1, 2, 3)) > 0.01) & (on_edge < 1 / 3)
    if not usable.any():
        return 2 * [torch.zeros(0, SIDE, SIDE)]
    images, inside, threshold = images[usable], inside[usable], threshold[usable]
    place = torch.linspace(-1, 1, images.shape[-1] + 1)[:-1] + 1 / images.shape[-1]
    weight = inside / inside.sum((2, 3), keepdim=True)
    x, y = weight.sum(2) @ place, weight.sum(3) @ place  # [n, 1]
    spread = (weight.sum(2) @ place**2 + weight.sum(3) @ place**2 - x**2 - y**2).sqrt()  # 0.71 radii of a disc
    images = place_images(images, 1.7 * spread, x, y)
    brain = (images > threshold[:, :, None, None]).float()
    local = blur(images * brain, 4) / blur(brain, 4).clamp(min=1e-3)
    flat = blur(brain * (images / local.clamp(min=1e-3)).clamp(max=2), 1)
    return flat[:, 0], brain[:, 0]


def place_images(images, half_side, x=0.0, y=0.0, degrees=0.0):
    """[n, 1, 32, 32]: the turned square around (x, y) of [n, 1, R, R], with half_side, x, y [n, 1] in units of R / 2; 0 outside."""
    angle, ones = torch.deg2rad(torch.tensor(degrees)), torch.ones(len(images), 1)
    rows = [angle.cos() * half_side, -angle.sin() * half_side, x, angle.sin() * half_side, angle.cos() * half_side, y]
    matrix = torch.cat([value * ones for value in rows], 1).reshape(-1, 2, 3)
    grid = functional.affine_grid(matrix, [len(images), 1, SIDE, SIDE], align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def blur(images, sigma):
    """Gaussian blur of [n, 1, H, W]; beyond the edges is 0."""
    reach = 3 * sigma
    kernel = torch.exp(-(torch.arange(-reach, reach + 1.0) ** 2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).reshape(1, 1, 1, -1)
    images = functional.conv2d(images, kernel, padding=(0, reach))
    return functional.conv2d(images, kernel.mT, padding=(reach, 0))


def likeness(flat, brain):
    """Greatest correlation of each slice (of `fit_to_frame`) with its mirror image over tilts and shifts: [2, n].

    First about the vertical, then about the horizontal axis; over the union of the brain and its mirror image.
    """
    best = torch.full([2, len(flat)], -1.0)
    for degrees in range(-TILT, TILT + 1, 4):
        turned = [place_images(x[:, None], 1.0, degrees=float(degrees))[:, 0] for x in (flat, brain)]
        for axis in range(2):
            for shift in range(-SHIFT, SHIFT + 1):
                mirrored = [x.flip(2 - axis).roll(shift, 2 - axis) for x in turned]
                where = torch.maximum(turned[1], mirrored[1])
                best[axis] = torch.maximum(best[axis], correlation(turned[0], mirrored[0], where))
    return best


def resemblance(flat, brain):
    """Correlation of each slice (of `fit_to_frame`) with the most similar of up to NEIGHBOURS others, [n]; -1 if there is none."""
    best = torch.full([len(flat)], -1.0)
    for step in range(1, min(len(flat) - 1, NEIGHBOURS) + 1):
        far = step * max(1, (len(flat) - 1) // NEIGHBOURS)
        other, other_brain = flat.roll(far, 0), brain.roll(far, 0)
        best = torch.maximum(best, correlation(flat, other, torch.maximum(brain, other_brain)))
    return best


def correlation(a, b, weight):
    """Pearson's, of [n, H, W] each, weighted: [n]; 0 where one is constant."""
    a, b = (x - (weight * x).sum((1, 2), keepdim=True) / weight.sum((1, 2), keepdim=True).clamp(min=1) for x in (a, b))
    variances = (weight * a * a).sum((1, 2)) * (weight * b * b).sum((1, 2))
    return (weight * a * b).sum((1, 2)) / variances.clamp(min=1e-6).sqrt()
