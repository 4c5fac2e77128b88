"""Is it the disease or the position of the slice? What the slice index alone tells of AD, and the AUC with the index held.

    indices = slice_indices(["AD/218391_78.jpeg", "NC/218393_88.jpeg", ...])        # float [N], nan where a name gives none
    index_auc(indices, is_ad, people)                                               # 0.68 (0.63 to 0.73)
    results = position_probe(scores, is_ad, people, indices)                        # of a classifier or a probe

If AD scans were cut in another window than NC scans (in AD_NC the first index is 78 in the median for AD and 88 for NC), whatever
tells positions apart tells AD from NC. So beside the AUC of a classifier or a probe stand two others:

- slice index alone: a rule that knows nothing but the index, for people that it was not fitted to (`log_odds`, `held_out_odds`).
- position-stratified: the same scores, but an AD slice is compared with NC slices of the same index only (`bootstrap.auc` with
  strata), where the index cannot help. Above 0.5, something else than position tells AD from NC.
"""

from typing import NamedTuple

import numpy as np

from analysis.bootstrap import MIN_PEOPLE, auc_interval
from analysis.style_space import FOLDS
from analysis.subjects import scan_id, slice_index
from dataset import some_of
from utils import CLASSES

SMOOTHING = 2  # standard deviation of the Gaussian that smooths counts over neighbouring indices

# ---------------------------------------------------------------------------------------------------------------------
# Slice indices


def slice_indices(names):
    """The slice index in each file name (`subjects.slice_index`), float [N], nan where there is none."""
    return np.array([np.nan if (index := slice_index(name)) is None else index for name in names], float)


def unknown_text(names):
    """A line that says of which slices the index is unknown, and that they are left out; "" if all are known."""
    unknown = [name for name in names if slice_index(name) is None]
    if not unknown:
        return ""
    which = f"{len(unknown)} of {len(names)} file names give none" if len(unknown) < len(names) else "no file name gives one"
    return f"slice index unknown: {which} ({some_of(unknown, 3)}; 218391_78.jpeg would be slice 78 of scan 218391)"


class Windows(NamedTuple):
    """The slices that the scans of a class consist of; the triples are the lowest, the median and the highest of its scans."""

    scans: int
    first: tuple  # the first index of a scan
    slices: tuple  # the number of slices of a scan


def windows(names):
    """{class: Windows} of slices' names such as "AD/218391_78.jpeg"; a class without a scan whose indices are known is left out."""
    scans = {name: {} for name in CLASSES}  # {class: {scan: indices}}
    for name in names:
        label, index = name.replace("\\", "/").split("/")[0], slice_index(name)
        if label in scans and scan_id(name) and index is not None:
            scans[label].setdefault(scan_id(name), []).append(index)

    def spread(values):
        return min(values), float(np.median(values)), max(values)

    return {
        label: Windows(len(of_class), spread([min(scan) for scan in of_class.values()]), spread(list(map(len, of_class.values()))))
        for label, of_class in scans.items()
        if of_class
    }


# ---------------------------------------------------------------------------------------------------------------------
# A rule that knows nothing but the index


def log_odds(indices, fitted, positive):
    """Log-odds of AD at each of the indices [n], by slices of the indices `fitted` [m], of which positive bool [m] are AD.

    log (A + a) / (N + 1 - a), with A and N the AD and NC slices at the index and near it (weights of a Gaussian, SMOOTHING) and a
    the share of AD: as if there were one slice more at each index, which far from all others leaves the odds of the whole set.
    Any relation can be learnt, also one that rises and falls. Without a slice of both classes all are 0.
    """
    share = positive.mean() if len(positive) else 0.0
    if share in (0, 1):
        return np.zeros(len(indices))
    steps = np.arange(-3 * SMOOTHING, 3 * SMOOTHING + 1)
    kernel = np.exp(-0.5 * (steps / SMOOTHING) ** 2)

    def near(values):
        values, at = np.sort(values), indices[:, None] + steps  # [n, steps]
        return (np.searchsorted(values, at, "right") - np.searchsorted(values, at)) @ kernel / kernel.sum()

    return np.log((near(fitted[positive]) + share) / (near(fitted[~positive]) + 1 - share))


def held_out_odds(indices, positive, groups, seed=0):
    """(log-odds [N] of slices by a rule fitted to other groups (people), the fold that each was held out in [N]).

    The rules of different folds differ, so only scores of the same fold may be compared: what one fold has too much of the others
    lack, and compared over all folds an index that tells nothing would have an AUC below 0.5.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    folds = min(FOLDS, *(len(np.unique(groups[positive == of_class])) for of_class in (True, False)))
    scores, fold = np.zeros(len(indices)), np.zeros(len(indices), int)
    split = StratifiedGroupKFold(max(2, folds), shuffle=True, random_state=seed).split(indices, positive, groups)
    for i, (fitted, held_out) in enumerate(split):
        scores[held_out] = log_odds(indices[held_out], indices[fitted], positive[fitted])
        fold[held_out] = i
    return scores, fold


def index_auc(indices, positive, groups, fitted=None, seed=0):
    """Interval of the AUC of AD against NC that the slice index alone reaches, over groups (people); None if they are too few.

    indices [N] (slices of nan are left out), positive bool [N]: AD, groups [N]: of `resampling_groups`. fitted: (indices,
    positive) of the training slices where these here are the test slices of other people; None: the rule is fitted without the
    people that it is tested on, by `held_out_odds`. 0.5 by chance; None with fewer than MIN_PEOPLE groups of a class.
    """
    known = np.isfinite(indices)
    indices, positive, groups = indices[known], positive[known], groups[known]
    if fitted is not None:
        known = np.isfinite(fitted[0])
        return auc_interval(log_odds(indices, fitted[0][known], fitted[1][known]), positive, groups, seed=seed)
    if min(len(np.unique(groups[positive == of_class])) for of_class in (True, False)) < 2:
        return None
    scores, fold = held_out_odds(indices, positive, groups, seed)
    return auc_interval(scores, positive, groups, fold, seed)


# ---------------------------------------------------------------------------------------------------------------------
# With the index held


def position_probe(scores, positive, groups, names, fitted=None, seed=0):
    """What stands beside the AUC of `scores`: {"slice index alone", "position-stratified": Interval, "unknown": `unknown_text`}.

    scores [N] or [S, N] (the mean AUC of S classifiers) of AD, positive bool [N], groups [N], names of the files [N]; fitted: see
    `index_auc`. None in place of an Interval where fewer than MIN_PEOPLE people of a class can be compared.
    """
    indices = slice_indices(names)
    known = np.isfinite(indices)
    stratified = None
    if known.any():
        stratified = auc_interval(np.asarray(scores)[..., known], positive[known], groups[known], indices[known], seed)
    return {
        "slice index alone": index_auc(indices, positive, groups, fitted, seed) if known.any() else None,
        "position-stratified": stratified,
        "unknown": unknown_text(names),
        "known": int(known.sum()),
    }


def beyond_position(auc_all, position):
    """Whether more than slice position was shown to tell AD from NC, by an Interval and the `position_probe` beside it.

    Where no index is known, the interval alone decides; `position_text` then says so.
    """
    stratified = position["position-stratified"]
    return auc_all.low > 0.5 and (not position["known"] or (stratified is not None and stratified.low > 0.5))


def position_text(position):
    """Sentences on a `position_probe`: what the slice index alone tells, and what is left with the index held."""
    sentences = []
    alone, stratified = position["slice index alone"], position["position-stratified"]
    few = f"too few people (under {MIN_PEOPLE} of a class)"
    if position["known"]:
        sentences.append(f"Slice index alone: {few if alone is None else f'AUC {alone}'}.")
        if stratified is None:
            told = f"{few} share a slice index, so whether anything but position tells AD from NC is open"
        elif stratified.low > 0.5:
            told = f"AUC {stratified}, so something else than slice position tells AD from NC"
        else:
            told = f"AUC {stratified}, not shown to be above 0.5, so no AD/NC difference beyond slice position was shown"
        sentences.append(f"Position-stratified (AD and NC compared within equal slice indices): {told}.")
    if position["unknown"]:
        sentences.append(position["unknown"] + ".")
    return sentences
