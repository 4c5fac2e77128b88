"""Is it the disease or the position of the slice? What the slice index alone tells of AD, and the position-stratified AUC.

    indices = slice_indices(["AD/218391_78.jpeg", "NC/218393_88.jpeg", ...])        # float [N], nan where a name gives none
    index_auc(indices, is_ad, people)                                               # 0.68 (0.63 to 0.73)
    results = position_probe(scores, is_ad, people, indices)                        # of a classifier or a probe

If AD scans were cut in another window than NC scans (in AD_NC the first index is 78 in the median for AD and 88 for NC), whatever
tells positions apart tells AD from NC. So beside the AUC of a classifier or a probe stand two others:

- slice index alone: a rule that knows nothing but the index, for people that it was not fitted to (`log_odds`, `index_auc`).
- position-stratified: the same scores, but an AD slice is compared with NC slices of the same index only (`bootstrap.auc` with
  strata), where the index cannot help. Above 0.5, something else than position tells AD from NC.
"""

import numpy as np

from analysis.bootstrap import FOLDS, MIN_PEOPLE, auc, auc_interval, bootstrap_auc, fewest_groups, shared_strata
from data.folders import some_of
from data.subject_tables import scan_id
from data.subjects import slice_index
from utils import CLASSES

SMOOTHING = 2  # standard deviation of the Gaussian that smooths counts over neighbouring indices

# ---------------------------------------------------------------------------------------------------------------------
# Slice indices


def slice_indices(names):
    """The slice index in each file name, float [N]; nan where the name gives none, or no scan (12 of mild_12.png may be any)."""
    return np.array([slice_index(name) if scan_id(name) else None for name in names], float)


def unknown_text(names):
    """A line that says of which slices the index is unknown, and that they are left out; "" if all are known."""
    unknown = [name for name, index in zip(names, slice_indices(names)) if np.isnan(index)]
    if not unknown:
        return ""
    which = f"{len(unknown)} of {len(names)} file names give none" if len(unknown) < len(names) else "no file name gives one"
    return f"slice index unknown: {which} ({some_of(unknown, 3)}; 218391_78.jpeg would be slice 78 of scan 218391)"


def windows(names):
    """{class: (first indices, numbers of slices)}, of each scan one of both, of slices' names such as "AD/218391_78.jpeg".

    A class without a scan whose indices are known is left out.
    """
    scans = {name: {} for name in CLASSES}  # {class: {scan: indices}}
    for name in names:
        label, scan, index = name.replace("\\", "/").split("/")[0], scan_id(name), slice_index(name)
        if label in scans and scan and index is not None:
            scans[label].setdefault(scan, []).append(index)
    return {label: ([*map(min, found.values())], [*map(len, found.values())]) for label, found in scans.items() if found}


# ---------------------------------------------------------------------------------------------------------------------
# A rule that knows nothing but the index


def log_odds(ad, nc, levels, at):
    """Log-odds of AD [..., L] at the indices `at` [L], of AD and NC slices counted [..., M] at the indices `levels` [M], ascending.

    log (A + a) / (N + 1 - a), with A and N the AD and NC slices at the index and near it (weights of a Gaussian, SMOOTHING) and a
    the share of AD: as if there were one slice more at each index, which far from all others leaves the odds of the whole set.
    Any relation can be learnt, also one that rises and falls. 0 where a class has no slices.
    """
    steps = np.arange(-3 * SMOOTHING, 3 * SMOOTHING + 1)
    kernel = np.exp(-0.5 * (steps / SMOOTHING) ** 2)
    wanted = at[:, None] + steps  # [L, steps]
    place = np.searchsorted(levels, wanted).clip(max=len(levels) - 1)
    weights = (levels[place] == wanted) * kernel / kernel.sum()
    near_ad, near_nc = ((counts[..., place] * weights).sum(-1) for counts in (ad, nc))
    total_ad, total_nc = (counts.sum(-1, keepdims=True) for counts in (ad, nc))
    share = total_ad / np.maximum(1e-12, total_ad + total_nc)
    with np.errstate(divide="ignore", invalid="ignore"):
        odds = np.log((near_ad + share) / (near_nc + 1 - share))
    return np.where((total_ad > 0) & (total_nc > 0), odds.round(9), 0.0)  # rounded, so that equal odds tie


def index_auc(indices, positive, groups, fitted=None, seed=0, strata=None):
    """The `Auc` of AD against NC that the slice index alone reaches, over groups (people); None if they are too few.

    indices [N] (slices of nan are left out), positive bool [N]: AD, groups [N]: of `resampling_groups`. The rule, `log_odds`, is
    fitted up to FOLDS times without a fold's groups and scores these, and again for each bootstrap sample. Only slices of the same
    fold are compared (and of the same stratum, given strata [N]): what a fold has too much of the others lack, so compared over
    all folds an index that tells nothing would have an AUC below 0.5. fitted: (indices, positive) of training slices, to which
    the rule is fitted once instead. 0.5 by chance; None with fewer than MIN_PEOPLE groups of a class.
    """
    strata = np.zeros(len(indices)) if strata is None else strata
    rows = np.isfinite(indices)
    rows[rows] = shared_strata(positive[rows], strata[rows])
    indices, positive, groups, strata = indices[rows], positive[rows], groups[rows], strata[rows]
    if fewest_groups(positive, groups) < MIN_PEOPLE:
        return None
    levels, level = np.unique(indices, return_inverse=True)
    fold, fixed = np.zeros(len(level), int), None
    if fitted is None:
        fold = held_out_folds(positive, groups, seed)
    else:
        fixed = fitted_odds(*fitted, levels)
    size = FOLDS * len(levels)
    cells, cell = np.unique(np.unique(strata, return_inverse=True)[1] * size + fold * len(levels) + level, return_inverse=True)

    def statistic(weights):
        of_classes = [np.bincount(cell, weights * of_class) for of_class in (positive, ~positive)]  # slices in each cell
        odds = fixed
        if odds is None:
            counts = [np.bincount(cells % size, of_cell, size).reshape(FOLDS, -1) for of_cell in of_classes]
            odds = log_odds(*(of_fold.sum(0) - of_fold for of_fold in counts), levels, levels)
        scores = np.broadcast_to(odds, (FOLDS, len(levels))).ravel()[cells % size]
        is_ad = np.repeat([True, False], len(cells))
        return auc(np.tile(scores, 2), is_ad, np.concatenate(of_classes), np.tile(cells // len(levels), 2))

    return bootstrap_auc(statistic, positive, groups, seed=seed)


def fitted_odds(indices, positive, at):
    """`log_odds` at the indices `at` [L] by slices of the indices [M], of which nan is left out, and positive bool [M] are AD."""
    known = np.isfinite(indices)
    levels, level = np.unique(indices[known], return_inverse=True)
    if not len(levels):
        return np.zeros(len(at))
    return log_odds(*(np.bincount(level, of_class[known], len(levels)) for of_class in (positive, ~positive)), levels, at)


def held_out_folds(positive, groups, seed=0):
    """The fold [N], below FOLDS, in which each slice is held out: groups stay together, and classes have their share of each."""
    from sklearn.model_selection import StratifiedGroupKFold

    fold = np.empty(len(groups), int)
    split = StratifiedGroupKFold(min(FOLDS, fewest_groups(positive, groups)), shuffle=True, random_state=seed)
    for i, (_, held_out) in enumerate(split.split(groups, positive, groups)):
        fold[held_out] = i
    return fold


# ---------------------------------------------------------------------------------------------------------------------
# Position-stratified


def position_probe(scores, positive, groups, names, fitted=None, seed=0):
    """What stands beside the AUC of `scores`: {"slice index alone", "position-stratified": `Auc`, "unknown": `unknown_text`}.

    scores [N] or [S, N] (the mean AUC of S classifiers) of AD, positive bool [N], groups [N], names of the files [N]; fitted: see
    `index_auc`. None in place of an `Auc` where fewer than MIN_PEOPLE people of a class can be compared.
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


def beyond_position(position):
    """Whether what tells AD from NC is shown to be more than slice position, by a `position_probe`.

    True where no index is known; `position_text` then says so.
    """
    stratified = position["position-stratified"]
    return not position["known"] or (stratified is not None and stratified.low > 0.5)


def position_text(position, scorer="the probe", shown=True):
    """Sentences on the `position_probe` of a scorer: what the slice index alone tells, and the position-stratified AUC.

    shown: whether the scorer was shown to tell AD from NC at all, without which nothing is concluded.
    """
    sentences = []
    alone, stratified = position["slice index alone"], position["position-stratified"]
    few = f"too few people (under {MIN_PEOPLE} of a class)"
    if position["known"]:
        sentences.append(f"Slice index alone: {few if alone is None else f'AUC {alone}'}.")
        if stratified is None:
            told = f"{few} share a slice index, so whether anything but position tells AD from NC is open"
        elif stratified.low <= 0.5:
            told = f"{stratified}, so no AD/NC difference beyond slice position was shown"
        elif shown:
            told = f"{stratified}, so something else than slice position tells AD from NC"
        else:
            told = f"{stratified}"
        sentences.append(f"Position-stratified AUC of {scorer} (AD and NC compared within equal slice indices): {told}.")
    if position["unknown"]:
        sentences.append(position["unknown"] + ".")
    return sentences
