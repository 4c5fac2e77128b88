"""Values that a model can be told beside the class: those of slices, and whether a model follows what it is told.

values = slice_values(slices.names, ["position", "age"], scans)         # float32 [N, 2]
follows(model, pixels, values, groups, seed=0)["position"].generated    # 0.97
"""

import sys
from collections.abc import Callable
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
PENALTIES = np.logspace(-2, 4, 7)  # of ridge regressions, of which each chooses one by leaving slices out


def slice_values(names, wanted, scans):
    """float32 [N, k] of slices' file names and `subjects.Scan`s: their values `wanted`, some of VALUES, nan where unknown."""
    columns = {
        "position": slice_indices(names),
        "age": [scan.age for scan in scans],
        "sex": [{"M": 1, "F": 0}.get(scan.sex) for scan in scans],
    }
    return np.array([columns[name] for name in wanted], np.float32).T


def check_values(values, wanted, quiet=False):
    """Note on stderr, unless `quiet`, which values [N, k] of training slices are unknown; UserError if one is of all.

    The error names train.py's flag.
    """
    for name, missing in zip(wanted, np.isnan(values).sum(0)):
        source = "file names do not give it (218391_78.jpeg is slice 78)" if name == "position" else "--subjects lacks it"
        if missing == len(values):
            raise UserError(f"--conditional {name}: unknown of all {missing} slices: {source}")
        if missing and not quiet:
            print(f"note: {name} unknown of {missing} of {len(values)} slices: {source}; the model is told so", file=sys.stderr)


class Followed(NamedTuple):
    """How a value that a model was asked for is found again in its slices, by a ridge regression of real slices' pixels."""

    measured: str  # what was measured, in words
    generated: float  # correlation of what was asked with what is measured, over latents and classes
    real: float  # the same of true values of real slices of people whom the regression was not fitted to: the most to expect
    others: dict  # {other value: how far its measured mean moves from the first to the last step, in SDs of real slices}


class Fit(NamedTuple):
    """A regression of one value."""

    measured: str  # what of the value, in words
    transform: Callable  # of the value, to what is measured
    ridge: object  # fitted to pixels [N, SIDE^2]
    deviation: float  # standard deviation of the real slices'
    real: float  # correlation, as of Followed


def follows(model, pixels, values, groups, seed=0):
    """{name: Followed} of each value of a Model that FOLDS or more people are known to have.

    pixels uint8 [N, R, R], values [N, len(model.values)], groups [N]: of real slices, their values and their people.
    """
    flat, z = flatten(pixels), draw_z(LATENTS, model.mapping.z_dim, seed).to(model.device)
    fits = {}
    for name, column in zip(model.values, values.T):
        known = np.isfinite(column)
        if len(np.unique(groups[known])) >= FOLDS:
            kinds = [(name, lambda x: x)]
            if name == "position":  # left and right are nearly mirror images: a slice may tell how far it is from the middle alone
                planes = np.quantile(column[known], np.linspace(0.2, 0.8, 7)).round()
                kinds += [(f"distance from slice {plane:.0f}", lambda x, plane=plane: np.abs(x - plane)) for plane in planes]
            tried = [fit(*kind, flat[known], column[known], groups[known]) for kind in kinds]
            fits[name] = max(tried, key=lambda one: one.real)
    found = {}
    for name, own in fits.items():
        images, asked = move_value(model, z, name)
        shape, drawn = images.shape[:3], flatten(images.reshape(-1, *images.shape[3:]))
        measured = {other: one.ridge.predict(drawn).reshape(shape) for other, one in fits.items()}
        ends = {other: (x[..., -1] - x[..., 0]).mean() for other, x in measured.items() if other != name}
        asked = np.broadcast_to(own.transform(np.array(asked)), shape)
        correlation = np.corrcoef(asked.ravel(), measured[name].ravel())[0, 1]
        moved = {other: end / fits[other].deviation for other, end in ends.items()}
        found[name] = Followed(own.measured, correlation, own.real, moved)
    return found


def fit(measured, transform, flat, values, groups):
    """The Fit of transform(values [N]) on pixels flat [N, SIDE^2] of slices of groups [N]."""
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import GroupKFold, cross_val_predict

    ridge, true = RidgeCV(PENALTIES), transform(values)
    of_others = cross_val_predict(ridge, flat, true, groups=groups, cv=GroupKFold(FOLDS))
    return Fit(measured, transform, ridge.fit(flat, true), true.std(), np.corrcoef(true, of_others)[0, 1])


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
