"""What is doubtful about slices that could be read: kinds of files, levels, darkness, classes that differ in brightness."""

import functools
import os
import sys

import numpy as np

from data.decode import FULL_RANGE, KINDS, PAGES, Light, code_of
from utils import UserError, plural, printable

DARK, DIM = 16, 64  # grey levels below which even the brightest parts of a slice look black, and dark
PALE = 32  # grey level from which on a background does not look black
SEPARATED, BRIGHTNESS_RATIO = 0.95, 1.25  # AUC and ratio from which on classes are told apart by their brightness
SHARE = 0.05  # of the slices of a class, from which on something is said of them


def warn(line):
    """Print a line on stderr, but of the processes of torchrun only in the first."""
    if os.environ.get("RANK", "0") == "0":
        print(printable(line), file=sys.stderr)


@functools.cache
def warn_once(line):
    """`warn`, but not again in this process of the same: several parts of a command read the same folders."""
    warn(line)


def warn_of_kinds(place, status, levels):
    """Print what is doubtful in how the files below `place` were read, a line for each doubt.

    status, levels: {class: those of `decode.Files`}.
    """
    chosen = [
        f"{name} {black:.5g} and {white:.5g} ({kind})"
        for name, by_kind in levels.items()
        for kind, (black, white) in by_kind.items()
        if (kind, black, white) != ("16-bit", *FULL_RANGE)
    ]
    if chosen:
        warn_once(f"warning: {place}: values read as black and white, decided for each folder: {'; '.join(chosen)}")
    counts = {name: {kind: n for kind in KINDS if (n := (codes == code_of(kind)).sum())} for name, codes in status.items()}
    if len({kind for by_kind in counts.values() for kind in by_kind}) > 1:
        text = "; ".join(f"{name} {', '.join(f'{n} {kind}' for kind, n in by_kind.items())}" for name, by_kind in counts.items())
        warn_once(f"warning: {place}: files of several kinds, which may differ in brightness: {text}")
    if pages := sum((codes == PAGES).sum() for codes in status.values()):
        text = f"{plural(pages, 'file')} with several images cannot be used"
        warn_once(f"warning: {place}: {text}: save each image as a file of its own")


def check_brightness(place, lights, flag="--dataset_dir"):
    """Look at the `Light` of slices below `place`, {class: [Light] * n}.

    UserError, which names `flag`, if most slices of a class are nearly black; a line on stderr if it is dark, if some of its slices
    are far darker than others or have a background that is not black, or if brightness alone tells the classes apart.
    """
    lights = {name: Light(*np.array(values).T) for name, values in lights.items()}
    for name, (bright, edges) in lights.items():
        if (level := int(np.median(bright))) < DARK:
            raise UserError(
                f"{flag} {place}: {name} is nearly black: the brightest parts of most of its slices are at {level} of 255; "
                "save them again, scaled to 0 to 255"
            )
        if (level := int(np.quantile(bright, 0.9, method="higher"))) < DIM:
            warn_once(f"warning: {place}: {name} is dark: the brightest parts of its slices are at {level} of 255")
        if (dark := (bright < level / 4).mean()) >= SHARE:
            warn_once(f"warning: {place}: {dark:.0%} of the slices of {name} are black or far darker than the others")
        if (pale := (edges >= PALE).mean()) >= SHARE:
            text = "have a background that is not black: inverted, or not scaled from 0?"
            warn_once(f"warning: {place}: {pale:.0%} of the slices of {name} {text}")
    if len(lights) == 2 and min(len(light.bright) for light in lights.values()) >= 5:
        (first, a), (second, b) = ((name, light.bright) for name, light in lights.items())
        auc = (a[:, None] > b).mean() + (a[:, None] == b).mean() / 2
        medians = np.median(a), np.median(b)
        if max(auc, 1 - auc) >= SEPARATED and max(medians) >= BRIGHTNESS_RATIO * min(medians):
            levels = f"({medians[0]:.0f} and {medians[1]:.0f} of 255)"
            text = f"{first} and {second} differ in brightness {levels}, which a model will learn as the difference between them"
            warn_once(f"warning: {place}: {text}: scale both alike")
