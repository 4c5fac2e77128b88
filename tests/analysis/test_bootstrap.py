"""Bootstrap intervals and the AUC against closed forms and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from analysis import bootstrap as intervals
from analysis.bootstrap import Interval, auc, bootstrap


@pytest.mark.parametrize("levels", [3, 20, 10**9])
def test_auc_is_that_of_scikit_learn_ties_and_weights_included(levels):
    rng = np.random.default_rng(levels)
    positive, weights = rng.random(300) < 0.3, rng.integers(0, 4, 300)
    scores = rng.integers(0, levels, 300) + positive * levels * 0.2
    assert auc(scores, positive) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)
    assert auc(scores, positive, weights) == pytest.approx(roc_auc_score(positive, scores, sample_weight=weights), abs=1e-12)


def test_auc_in_closed_form():
    positive = np.repeat([True, False], [2, 3])
    assert auc(np.array([5, 4, 3, 2, 1]), positive) == 1
    assert auc(np.array([1, 2, 3, 4, 5]), positive) == 0
    assert auc(np.zeros(5), positive) == 0.5
    assert auc(np.array([3, 1, 3, 0, 2]), positive) == 3.5 / 6
    assert np.isnan(auc(np.arange(5), np.ones(5, bool)))
    rng, many = np.random.default_rng(0), np.repeat([True, False], 20000)
    assert auc(rng.standard_normal(40000) + many, many) == pytest.approx(0.76025, abs=0.01)  # Phi(1 / sqrt(2))


def mean(values):
    return lambda weights: np.average(values, weights=weights)


def test_interval_covers_the_truth_about_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLED", 300)
    rng, covered = np.random.default_rng(1), 0
    for seed in range(100):
        _, low, high = bootstrap(mean(rng.normal(2, 1, 50)), np.arange(50), seed=seed)
        covered += low <= 2 <= high
    assert 86 <= covered <= 100  # 95, and 2.2 of standard deviation


def test_interval_is_around_the_value_of_all():
    x = np.random.default_rng(0).normal(5, 2, 400)
    found = bootstrap(mean(x), np.arange(400))
    assert found.value == pytest.approx(x.mean()) and found.low < found.value < found.high
    assert str(Interval(0.5, 0.444, 0.556)) == "0.50 (0.44 to 0.56)"


def test_whole_groups_are_drawn_and_strata_keep_their_size():
    strata, groups, seen = np.repeat([0, 1], [12, 6]), np.arange(18) // 3, []
    bootstrap(lambda weights: seen.append(weights.copy()) or 0.0, groups, strata)
    counts = np.array(seen[1:])  # the first is of ones
    assert (counts.reshape(-1, 6, 3) == counts[:, ::3, None]).all()  # the slices of a subject always together
    assert (counts[:, :12].sum(1) == 12).all() and (counts[:, 12:].sum(1) == 6).all()
    assert counts[:, ::3].max() > 1 and counts[:, ::3].min() == 0  # with replacement
    assert (seen[0] == 1).all()


def test_subjects_widen_the_interval_as_they_should():
    rng = np.random.default_rng(2)
    subjects = np.repeat([f"s{i}" for i in rng.permutation(200)], 10)
    values = np.repeat(rng.standard_normal(200), 10)  # slices of a subject are all the same
    by_subject, by_slice = (bootstrap(mean(values), groups) for groups in (subjects, np.arange(2000)))
    assert by_subject.high - by_subject.low == pytest.approx(2 * 1.96 * 200**-0.5, rel=0.2)
    assert by_slice.high - by_slice.low == pytest.approx(2 * 1.96 * 2000**-0.5, rel=0.2)
