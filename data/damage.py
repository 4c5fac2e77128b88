"""Which scans of a data set are damaged: black, far darker than the others, or noise?

    find_damaged(slices, scans)          # {"218391": "noise (neighbouring pixels correlate at 0.02, the median scan's at 0.57)"}
    slices = leave_out(slices, find_damaged(slices, scans))          # what train.py does, unless --keep_damaged True

A scan is compared with the median scan of the set, so that a set is never damaged as a whole. Its slices are averaged to 32x32
pixels first, where noise is uncorrelated even if it was resampled once, and where each resolution gives the same answer.
"""

import warnings

import numpy as np

from data.checks import warn_once
from data.subject_tables import scan_id
from utils import UserError, plural, printable

SIDE = 32  # pixels at which slices are judged
PER_SCAN = 8  # slices of each scan, at most, evenly spaced
MIN_SCANS = 3  # below which there is no telling which scan is damaged
DARK, MANY_DEVIATIONS = 1 / 3, 5  # of the median scan's mean grey level; and this many robust standard deviations below it
BLACK = 0.05  # of the same, for the words
NOISE, STRUCTURE = 0.4, 0.35  # of the median scan's correlation of neighbouring pixels, if that is at least STRUCTURE
FEW_PAIRS = 100  # of neighbouring pixels, of 1984, below which their correlation says nothing
TOP = 0.02, 0.6  # share of the uppermost row that a head fills where it touches the edge; a background that is bright fills more
SEVERAL = 5  # slices of a scan from which a low mean is not for showing the tip of the brain alone


def scans_of(names):
    """The scan of each slice, given file names such as "AD/218391_78.jpeg": its Image Data ID, or the name where it gives none."""
    return [scan_id(name) or name for name in names]


def find_damaged(pixels, scans):
    """{scan: reason} of the damaged scans, in the order of the slices.

    pixels: uint8 [N, R, R], R a multiple of 32, an array or `dataset.Slices`; scans: the scan of each slice, [N].
    far darker: the mean grey level is below DARK of the median scan's, and its logarithm more than MANY_DEVIATIONS robust standard
    deviations below (1.4826 times the median absolute deviation); of a scan of under SEVERAL slices, which may show little of the
    brain, the mean over the foreground is also below half. noise: neighbouring pixels in the foreground correlate at less than
    NOISE of what they do in the median scan, if that shows structure (brains: 0.5 to 0.65).
    """
    rows = {}
    for i, scan in enumerate(scans):
        rows.setdefault(str(scan), []).append(i)
    if len(rows) < MIN_SCANS:
        return {}
    chosen = [np.array(of)[np.unique(np.linspace(0, len(of) - 1, PER_SCAN).astype(int))] for of in rows.values()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of scans without a foreground, whose correlation is nan
        grey, level, correlation = np.array([np.nanmean(slice_statistics(pixels[of]), 0) for of in chosen]).T
        usual = np.nan_to_num(np.nanmedian(correlation))
    count, logarithm = np.array(list(map(len, rows.values()))), np.log(np.maximum(grey, 0.01))
    below = logarithm - np.median(logarithm)
    dark = (grey < DARK * np.median(grey)) & (below < -MANY_DEVIATIONS * 1.4826 * np.median(np.abs(below)))
    dark &= (count >= SEVERAL) | (level < np.median(level) / 2)
    noise = (correlation < NOISE * usual) & (usual >= STRUCTURE)
    reasons = {}
    for i, scan in enumerate(rows):
        found = []
        if dark[i]:
            words = "black" if grey[i] < BLACK * np.median(grey) else "far darker than the others"
            found.append(f"{words} (mean grey level {grey[i]:.1f}, the median scan's {np.median(grey):.1f})")
        if noise[i]:
            found.append(f"noise (neighbouring pixels correlate at {correlation[i]:.2f}, the median scan's at {usual:.2f})")
        if found:
            reasons[scan] = " and ".join(found)
    return reasons


def damaged_text(reasons):
    """Text that names the first scans in {scan: reason}: "2 damaged scans: 218391, black (...); 218395, noise (...)"."""
    named = [f"{scan}, {reason}" for scan, reason in reasons.items()]
    more = [f"and {len(named) - 10} more"] if len(named) > 10 else []
    return printable(f"{plural(len(named), 'damaged scan')}: {'; '.join(named[:10] + more)}")


def leave_out(slices, scans, flag="--dataset_dir"):
    """`dataset.Slices` without those of `scans`; UserError, which names `flag`, if a class would be empty."""
    if not scans:
        return slices
    part = slices.only(np.array([scan not in scans for scan in scans_of(slices.names)]))
    if empty := " and ".join(name for name, count in part.counts.items() if not count):
        raise UserError(f"{flag}: each scan of {empty} is damaged (dataset.py shows them); --keep_damaged True keeps them")
    return part


def note_damaged(pixels, names, place):
    """Name the damaged scans among slices uint8 [N, R, R] of these file names, read from `place`, on stderr, once."""
    if reasons := find_damaged(pixels, scans_of(names)):
        warn_once(f"note: {place} holds {damaged_text(reasons)}")


def touches_upper_edge(pixels):
    """Whether the head in a slice uint8 [H, W], as it is stored, reaches the upper edge, where it may be cut off."""
    # foreground: above a fifth of the 98th percentile, twice as much as in `slice_statistics`, for JPEG's ringing
    share = (pixels[0] > max(0.2 * np.quantile(pixels, 0.98), 8)).mean()
    return bool(TOP[0] <= share <= TOP[1])


def slice_statistics(pixels):
    """Of slices uint8 [n, R, R]: mean grey level, mean over the foreground, correlation of neighbours in it (nan: too few); [n, 3].

    Foreground is what is above a tenth of the slice's 98th percentile.
    """
    step = pixels.shape[-1] // SIDE
    x = pixels.reshape(len(pixels), SIDE, step, SIDE, step).mean((2, 4), dtype=np.float32)
    inside = x > np.maximum(0.1 * np.quantile(x, 0.98, axis=(1, 2), keepdims=True), 0.5)
    a, b = neighbours(x)
    weight = np.logical_and(*neighbours(inside))
    number = np.maximum(weight.sum(1, keepdims=True), 1)
    few = number[:, 0] < FEW_PAIRS
    a, b = (weight * (z - (weight * z).sum(1, keepdims=True) / number) for z in (a, b))
    with np.errstate(all="ignore"):
        correlation = np.where(few, np.nan, (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1)))
        level = (x * inside).sum((1, 2)) / np.maximum(inside.sum((1, 2)), 1)
    return np.stack([x.mean((1, 2)), level, correlation], 1)


def neighbours(images):
    """Two arrays [n, 2 * H * (H - 1)] of [n, H, H]: each pixel, and the next one below it or to its right."""
    both = images, images.swapaxes(1, 2)
    return [np.concatenate([image[:, part].reshape(len(image), -1) for image in both], 1) for part in (np.s_[1:], np.s_[:-1])]
