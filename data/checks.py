"""What is doubtful about slices that could be read: kinds of files, levels, darkness, classes that differ in brightness."""

import functools
import sys

import numpy as np

from data.decode import FULL_RANGE, KINDS, PAGES, code_of
from utils import UserError, printable

DARK, DIM = 16, 64  # grey levels below which even the brightest parts of a slice look black, and dark
SEPARATED, APART = 0.95, 1.25  # AUC and ratio from which on classes are told apart by their brightness


@functools.cache
def warn_once(line):
    """Print a line on stderr, but not again in this process: several parts of a command read the same folders."""
    print(printable(line), file=sys.stderr)


def warn_of_kinds(place, status, levels):
    """Print what is doubtful in how the files below `place` were read, a line for each doubt.

    status, levels: {class: those of `decode.Files`}.
    """
    chosen = [
        f"{name} {black:.4g} and {white:.4g} ({kind})"
        for name, by_kind in levels.items()
        for kind, (black, white) in by_kind.items()
        if (kind, black, white) != ("16-bit", *FULL_RANGE)
    ]
    if chosen:
        warn_once(f"warning: {place}: values read as black and white, decided for each folder: {'; '.join(chosen)}")
    counts = {name: [(kind, (of_class == code_of(kind)).sum()) for kind in KINDS] for name, of_class in status.items()}
    if len({kind for of_class in counts.values() for kind, count in of_class if count}) > 1:
        text = "; ".join(f"{name} {', '.join(f'{n} {kind}' for kind, n in of_class if n)}" for name, of_class in counts.items())
        warn_once(f"warning: {place}: files of several kinds, which may differ in brightness: {text}")
    if pages := sum((of_class == PAGES).sum() for of_class in status.values()):
        text = f"{pages} file{'s hold' if pages > 1 else ' holds'} several images and cannot be used"
        warn_once(f"warning: {place}: {text}: save each image as a file of its own")


def check_brightness(place, values):
    """Look at the `brightness` of slices below `place`, {class: int [n]}.

    UserError if a class is nearly black; a line on stderr if it is dark, if many of its slices are far darker than others, or if
    brightness alone tells the classes apart.
    """
    values = {name: np.asarray(of_class) for name, of_class in values.items()}
    typical = {name: int(np.quantile(of_class, 0.9, method="higher")) for name, of_class in values.items()}
    for name, level in typical.items():
        if level < DARK:
            raise UserError(
                f"--dataset_dir {place}: {name} is nearly black: the brightest parts of its slices are at {level} of 255; "
                "save them again, scaled to 0 to 255"
            )
        if level < DIM:
            warn_once(f"warning: {place}: {name} is dark: the brightest parts of its slices are at {level} of 255")
        dark = (values[name] < level / 4).mean()
        if dark > 0.25:
            warn_once(f"warning: {place}: {dark:.0%} of the slices of {name} are black or far darker than the others")
    if len(values) == 2 and min(map(len, values.values())) >= 5:
        (first, a), (second, b) = values.items()
        auc = (a[:, None] > b).mean() + (a[:, None] == b).mean() / 2
        medians = np.median(a), np.median(b)
        if max(auc, 1 - auc) >= SEPARATED and max(medians) >= APART * min(medians):
            levels = f"({medians[0]:.0f} and {medians[1]:.0f} of 255)"
            text = f"{first} and {second} differ in brightness {levels}, which a model will learn as the difference between them"
            warn_once(f"warning: {place}: {text}: scale both alike")
