"""Values that a model can be told beside the class: those of slices, and whether a model follows what it is told.

values = slice_values(slices.names, ["position", "age"], scans)         # float32 [N, 2]
follows(model, pixels, values, groups, seed=0)["position"].generated    # 0.97
"""

import sys
from typing import NamedTuple

import numpy as np

from analysis.latents import move_value
from analysis.models import draw_z
from analysis.position import slice_indices
from dataset import resize
from utils import UserError

SIDE = 32  # pixels a side of what a regression sees
FOLDS = 5
LATENTS = 64


def slice_values(names, wanted, scans):
    """float32 [N, k] of slices' file names and `subjects.Scan`s: their values `wanted`, some of VALUES, nan where unknown."""
    columns = {
        "position": slice_indices(names),
        "age": [scan.age for scan in scans],
        "sex": [{"M": 1, "F": 0}.get(scan.sex) for scan in scans],
    }
    return np.array([columns[name] for name in wanted], np.float32).T


def check_values(values, wanted):
    """Note on stderr which values [N, k] are unknown; UserError, which names train.py's flag, if one is unknown of all slices."""
    for name, missing in zip(wanted, np.isnan(values).sum(0)):
        source = "file names do not give it (218391_78.jpeg is slice 78)" if name == "position" else "--subjects lacks it"
        if missing == len(values):
            raise UserError(f"--conditional {name}: unknown of all {missing} slices: {source}")
        if missing:
            print(f"note: {name} unknown of {missing} of {len(values)} slices: {source}; the model is told so", file=sys.stderr)


class Followed(NamedTuple):
    """How a value that a model was asked for is found again in its slices, by a ridge regression of real slices' pixels."""

    measured: str  # what was measured, in words
    generated: float  # correlation of what was asked with what is measured, over latents and classes
    real: float  # the same of true values of real slices of people whom the regression was not fitted to: the most to expect
    others: dict  # {other value: how far its measured mean moves from the first to the last step, in SDs of real slices}


def follows(model, pixels, values, groups, seed=0):
    """{name: Followed} of each value of a Model that FOLDS or more people are known to have.

    pixels uint8 [N, R, R], values [N, len(model.values)], groups [N]: of real slices, their values and their people.
    """
    flat, z = flatten(pixels), draw_z(LATENTS, model.mapping.z_dim, seed).to(model.device)
    fitted = {}
    for name, column in zip(model.values, values.T):
        known = np.isfinite(column)
        if len(np.unique(groups[known])) >= FOLDS:
            kinds = [(name, lambda x: x)]
            if name == "position":  # left and right are nearly mirror images: a slice may tell how far it is from the middle alone
                planes = np.quantile(column[known], np.linspace(0.2, 0.8, 7)).round()
                kinds += [(f"distance from slice {plane:.0f}", lambda x, plane=plane: np.abs(x - plane)) for plane in planes]
            fits = [(*kind, *fit(flat[known], kind[1](column[known]), groups[known])) for kind in kinds]
            fitted[name] = max(fits, key=lambda found: found[-1])
    found = {}
    for name, (kind, of, _, _, real) in fitted.items():
        images, asked = move_value(model, z, name)
        shape, drawn = images.shape[:3], flatten(images.reshape(-1, *images.shape[3:]))
        measured = {other: ridge.predict(drawn).reshape(shape) for other, (_, _, ridge, *_) in fitted.items()}
        moved = {
            other: (x[..., -1] - x[..., 0]).mean() / deviation
            for (other, x), (*_, deviation, _) in zip(measured.items(), fitted.values())
            if other != name
        }
        asked = np.broadcast_to(of(np.array(asked)), shape)
        found[name] = Followed(kind, np.corrcoef(asked.ravel(), measured[name].ravel())[0, 1], real, moved)
    return found


def fit(flat, true, groups):
    """(ridge regression fitted to flat [N, D], correlation with `true` [N] of other people's slices, SD of `true`)."""
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import GroupKFold, cross_val_predict

    ridge = RidgeCV(np.logspace(-2, 4, 7))
    told = cross_val_predict(ridge, flat, true, groups=groups, cv=GroupKFold(FOLDS))
    return ridge.fit(flat, true), true.std(), np.corrcoef(true, told)[0, 1]


def flatten(pixels):
    """float32 [N, SIDE^2] in [0, 1] of slices uint8 [N, R, R]; not standardised, which would magnify the background's noise."""
    return resize(pixels, SIDE).reshape(len(pixels), -1) / np.float32(255)


def sentences(found):
    """What `follows` found, in words."""
    lines = []
    for one in found.values():
        text = (
            f"{one.measured}: asked against measured, correlation {one.generated:.2f} (real slices of other people {one.real:.2f})"
        )
        moved = [f"{other} by {shift:+.2f} standard deviations" for other, shift in one.others.items()]
        lines.append(text + (f"; with it moves {', '.join(moved)}" if moved else ""))
    return lines
