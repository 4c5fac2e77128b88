"""Directions of w that are named by what they change: brightness, brain size, ventricle area.

    directions = name_directions(model, seed=0, progress=True)      # [NamedDirection]

Each quantity is measured in generated slices and regressed on the principal components of their w, in standard deviations. Of all
moves of w by one standard deviation (one unit of Mahalanobis distance) that leave the predictions of the other quantities as they
are, a direction changes that of its own most (the conditional manipulation of Shen et al. 2020, arXiv:2005.09635).
R^2 is that of slices that the regression has not seen. What a move changes, wanted or not, is then measured in slices drawn at both
of its ends, with the same noise.
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import binary_fill_holes
from tqdm import tqdm

from analysis.areas import SIDE, measure_areas, view_or_note
from analysis.encoder import COMPONENTS, DRAWN, principal_components
from analysis.models import draw_z, style_vectors
from dataset import resize, to_uint8
from utils import random_stream

SLICES, HELD_OUT, MOVED = 1536, 512, 96  # slices for a regression, for its R^2, and moved along each direction
RIDGE = 1.0  # added to the diagonal of the normal equations, of components of unit variance
UNITS = {"brightness": "grey levels", "brain size": "% of the picture", "ventricle area": "mm\N{SUPERSCRIPT TWO}"}
FOREGROUND = 0.2  # of a slice's brightest pixel


class NamedDirection(NamedTuple):
    """A direction of w. It is worth a slider if R^2 is well above 0."""

    name: str  # of UNITS
    vector: np.ndarray  # [w_dim], one standard deviation of w
    r2: float  # of the quantity, on held-out slices
    effects: dict  # {quantity: (mean, standard deviation over latents)} of its change per standard deviation of w


def measure_quantities(pixels, view):
    """{name of UNITS: float [N]} of slices uint8 [N, R, R]; without the ventricle area if view is None (`areas.view_or_note`).

    Brightness is the mean of the foreground; the brain is that with its holes, such as ventricles.
    """
    foreground = pixels > FOREGROUND * pixels.max((1, 2), keepdims=True)
    brain = np.stack([binary_fill_holes(mask) for mask in foreground])
    found = {"brightness": (pixels * foreground).sum((1, 2)) / np.maximum(foreground.sum((1, 2)), 1)}
    found["brain size"] = 100 * brain.mean((1, 2))
    return found if view is None else found | {"ventricle area": measure_areas(pixels, view)["ventricle"]}


def regress(points, values, held_out):
    """(slope [K], R^2) of the regression of values [N] on points [N, K]; R^2 is that of the last `held_out`, 0 if constant."""
    x, y = points[:-held_out], values[:-held_out]
    centre, level = x.mean(0), y.mean()
    slope = np.linalg.solve((x - centre).T @ (x - centre) + RIDGE * np.eye(x.shape[1]), (x - centre).T @ (y - level))
    left, spread = (values - level - (points - centre) @ slope)[-held_out:], values[-held_out:] - values[-held_out:].mean()
    return slope, 1 - float((left**2).sum() / (spread**2).sum()) if spread.any() else 0.0


def apart(slopes):
    """Unit vectors along what each of slopes [Q, K] has that the others have not, [Q, K]; 0 where that is nothing."""
    found = np.zeros_like(slopes)
    for i, slope in enumerate(slopes):
        others = np.delete(slopes, i, 0)
        own = slope - np.linalg.pinv(others) @ (others @ slope)
        if np.linalg.norm(own) > 1e-6 * np.linalg.norm(slope):
            found[i] = own / np.linalg.norm(own)
    return found


@torch.no_grad()
def name_directions(model, seed=0, progress=False):
    """The NamedDirections of a Model, one per quantity that can be measured in its slices."""
    count, rng = SLICES + HELD_OUT, random_stream("directions", seed, model.device)
    z = draw_z(count, model.mapping.z_dim, seed).to(model.device)
    classes = [style_vectors(model.mapping, z, label)[0] for label in model.labels]
    w = torch.stack([classes[i % len(classes)][i] for i in range(count)])
    mean, basis = (x.cpu().numpy() for x in principal_components(w[:SLICES], min(COMPONENTS, w.shape[1])))
    with tqdm(total=count, desc="named directions", unit=" slices", disable=None if progress else True) as bar:
        pixels = draw(model, w, rng, bar)
        view = view_or_note(pixels, "ventricle area")
        points, measured = (w.cpu().numpy() - mean) @ np.linalg.pinv(basis), measure_quantities(pixels, view)
        bar.total = count + 2 * MOVED * len(measured)
        slopes, r2 = zip(*(regress(points, values, HELD_OUT) for values in measured.values()))
        vectors = apart(np.array(slopes)) @ basis
        changed = [effects(model, w[-MOVED:], vector, view, seed, bar) for vector in vectors]
    return [NamedDirection(*one) for one in zip(measured, vectors, r2, changed)]


def effects(model, w, vector, view, seed, bar):
    """The effects of a NamedDirection, from one standard deviation below to one above each of w [N, w_dim]."""
    step, ends = torch.from_numpy(vector).to(w), []
    for end in (w - step, w + step):
        pixels = draw(model, end, random_stream("effects", seed, model.device), bar)
        ends.append(measure_quantities(pixels, view))
    changes = {name: (ends[1][name] - ends[0][name]) / 2 for name in ends[0]}
    return {name: (float(change.mean()), float(change.std(ddof=1))) for name, change in changes.items()}


def draw(model, w, rng, bar):
    """Slices uint8 [N, r, r], r at most SIDE, of w [N, w_dim] with noise from `rng`; `bar` counts them."""
    parts = []
    for part in w.split(DRAWN):
        drawn = to_uint8(model.generator(part, "random", rng)).cpu().numpy()
        parts.append(resize(drawn, min(SIDE, model.resolution)))
        bar.update(len(part))
    return np.concatenate(parts)
