"""Numbers with their uncertainty: bootstrap intervals that respect subjects, and the area under the ROC curve.

bootstrap(lambda weights: auc(scores, positive, weights), groups=subjects, strata=positive)         # 0.81 (0.77 to 0.85)
"""

from typing import NamedTuple

import numpy as np

RESAMPLED = 1000


class Interval(NamedTuple):
    """A number and its 95% bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self):
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def bootstrap(statistic, groups, strata=None, seed=0):
    """The 95% percentile interval of statistic(weights [N]) around statistic(ones) (Efron and Tibshirani 1993, chapter 13).

    A weight says how often a row was drawn. groups [N]: what varies together and is drawn as a whole, with replacement, such as
    the slices of one subject or the vectors of one latent; strata [N], such as classes: each keeps its number of groups.
    """
    rng, strata, weights = np.random.default_rng(seed), np.zeros(len(groups)) if strata is None else strata, np.ones(len(groups))
    members = []  # of each stratum: its rows, and which of its groups each belongs to
    for stratum in np.unique(strata):
        rows = np.flatnonzero(strata == stratum)
        members.append((rows, np.unique(np.asarray(groups)[rows], return_inverse=True)[1]))
    value, values = statistic(weights), []
    for _ in range(RESAMPLED):
        for rows, place in members:
            count = place.max() + 1
            weights[rows] = rng.multinomial(count, np.full(count, 1 / count))[place]
        values.append(statistic(weights))
    return Interval(float(value), *map(float, np.nanquantile(values, (0.025, 0.975))))


def auc(scores, positive, weights=None):
    """Area under the ROC curve: P(score of a positive > that of a negative), ties counting half; nan without both classes.

    By ranks (Mann and Whitney 1947). scores [N], positive bool [N], weights [N]: how often each counts (None: once).
    """
    values, place = np.unique(scores, return_inverse=True)
    weights = np.ones(len(scores)) if weights is None else weights
    up, down = (np.bincount(place, weights * of, len(values)) for of in (positive, ~positive))
    below = np.cumsum(down) - down / 2  # negatives below each value, and half of those at it
    with np.errstate(invalid="ignore"):
        return float((up * below).sum() / np.float64(up.sum() * down.sum()))
