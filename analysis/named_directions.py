"""Directions of w that are named by what they change: brightness, brain size, ventricle area.

    directions = name_directions(model, seed=0, progress=True)      # [NamedDirection]

Each quantity is measured in generated slices and regressed on the principal components of their w, in standard deviations. The
direction is the gradient of the regression there: of all moves of w by one standard deviation (one unit of Mahalanobis distance) it
changes the prediction most. R^2 is that on slices that the regression has not seen. What a move changes, wanted or not, is then
measured in slices drawn at both of its ends, with the same noise.
"""

from typing import NamedTuple

import numpy as np
import torch
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
    """{name of UNITS: float [N]} of slices uint8 [N, R, R]; without the ventricle area if view is None (`areas.view_or_note`)."""
    flat = pixels.reshape(len(pixels), -1).astype(float)
    foreground = flat > FOREGROUND * flat.max(1, keepdims=True)
    found = {"brightness": (flat * foreground).sum(1) / np.maximum(foreground.sum(1), 1), "brain size": 100 * foreground.mean(1)}
    return found if view is None else found | {"ventricle area": measure_areas(pixels, view)["ventricle"]}


def regress(points, values, held_out):
    """(direction [K] of unit length, R^2) of the regression of values [N] on points [N, K]; the last `held_out` are for R^2.

    Both are 0 if the values are constant.
    """
    x, y = points[:-held_out], values[:-held_out]
    centre, level = x.mean(0), y.mean()
    slope = np.linalg.solve((x - centre).T @ (x - centre) + RIDGE * np.eye(x.shape[1]), (x - centre).T @ (y - level))
    left, spread = (values - level - (points - centre) @ slope)[-held_out:], values[-held_out:] - values[-held_out:].mean()
    length = np.linalg.norm(slope)
    if not length or not spread.any():
        return np.zeros(len(slope)), 0.0
    return slope / length, 1 - float((left**2).sum() / (spread**2).sum())


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
        points, found = (w.cpu().numpy() - mean) @ np.linalg.pinv(basis), []
        measured = measure_quantities(pixels, view)
        bar.total = count + 2 * MOVED * len(measured)
        for name, values in measured.items():
            direction, r2 = regress(points, values, HELD_OUT)
            vector = direction @ basis
            found.append(NamedDirection(name, vector, r2, effects(model, w[-MOVED:], vector, view, seed, bar)))
    return found


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
