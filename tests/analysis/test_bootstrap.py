"""Bootstrap intervals and the AUC, compared with closed forms and scikit-learn."""

import numpy as np
import pytest
from scipy.stats import norm as normal
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score

from analysis import bootstrap as bootstrap_module
from analysis.bootstrap import POWER, Auc, Interval, auc, auc_interval, bootstrap, bootstrap_auc, fewest_groups, shared_strata
from analysis.style_space import SIGNIFICANT, permutation_test


@pytest.mark.parametrize("levels", [3, 20, 10**9])
def test_auc_equals_scikit_learn_with_ties_and_weights(levels):
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
    rng, many = np.random.default_rng(0), np.repeat([True, False], 20000)
    assert auc(rng.standard_normal(40000) + many, many) == pytest.approx(0.76025, abs=0.01)  # Phi(1 / sqrt(2))


def test_auc_is_nan_without_both_classes():
    assert np.isnan(auc(np.arange(5), np.ones(5, bool)))
    assert np.isnan(auc(np.arange(4), np.arange(4) < 2, np.array([1.0, 2.0, 0.0, 0.0])))  # no negative was drawn


@pytest.mark.parametrize("levels", [3, 10**6])
def test_stratified_auc_equals_counted_pairs_of_one_stratum_with_ties_and_weights(levels):
    rng = np.random.default_rng(levels)
    scores, positive, strata = rng.integers(0, levels, 60), rng.random(60) < 0.4, rng.integers(0, 4, 60)
    weights = rng.integers(0, 3, 60)
    won = pairs = 0.0
    for i in np.flatnonzero(positive):
        for j in np.flatnonzero(~positive):
            if strata[i] == strata[j]:
                pairs += weights[i] * weights[j]
                won += weights[i] * weights[j] * ((scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j]))
    assert auc(scores, positive, weights, strata) == pytest.approx(won / pairs, abs=1e-12)
    assert auc(scores, positive, weights, np.zeros(60)) == pytest.approx(auc(scores, positive, weights), abs=1e-12)


def test_stratified_auc_leaves_out_what_lies_between_strata_and_is_nan_without_a_pair():
    strata = np.repeat([0, 1], 4)
    scores, positive = np.array([1, 2, 3, 4, 11, 12, 13, 14.0]), np.array([0, 0, 0, 1, 0, 1, 1, 1], bool)
    assert auc(scores, positive, strata=strata) == 1
    assert auc(-scores - 100 * strata, positive, strata=strata) == 0
    assert np.isnan(auc(scores, strata == 1, strata=strata))


def test_auc_interval_is_over_groups_that_can_be_compared(monkeypatch):
    monkeypatch.setattr(bootstrap_module, "RESAMPLED", 20)
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(14), 3)
    scores, positive, strata = rng.normal(size=42), groups < 6, np.where(groups == 5, 9, groups % 2)  # one has its own stratum
    found = auc_interval(scores, positive, groups, strata)
    rows = groups != 5
    expected = bootstrap(lambda weights: auc(scores[rows], positive[rows], weights, strata[rows]), groups[rows])
    assert found[:3] == pytest.approx(expected)
    pair = auc_interval(np.stack([scores, np.zeros(42)]), positive, groups, strata)
    assert pair.value == pytest.approx((found.value + 0.5) / 2)
    np.testing.assert_array_equal(shared_strata(positive, strata), rows)
    assert fewest_groups(positive[rows], groups[rows]) == 5 and fewest_groups(positive, groups) == 6
    strata[groups == 4] = 10
    assert auc_interval(scores, positive, groups, strata) is None  # four people of a class are left
    assert auc_interval(scores, positive, groups) is not None


def weighted_mean(values):
    return lambda weights: np.average(values, weights=weights)


def test_bootstrap_interval_covers_the_true_mean_in_95_percent_of_samples(monkeypatch):
    monkeypatch.setattr(bootstrap_module, "RESAMPLED", 300)
    rng, covered = np.random.default_rng(1), 0
    for seed in range(100):
        _, low, high = bootstrap(weighted_mean(rng.normal(2, 1, 50)), np.arange(50), seed=seed)
        covered += low <= 2 <= high
    assert 86 <= covered <= 100  # 95, with a standard deviation of 2.2


def test_bootstrap_interval_is_from_the_percentile_2_5_to_97_5_of_1000_samples_of_many_groups():
    numbers = iter([7.0, *np.random.default_rng(0).permutation(1000)])  # the value, then every sample's
    found = bootstrap(lambda weights: next(numbers), np.arange(10**5))
    assert found == pytest.approx((7, 0.025 * 999, 0.975 * 999), abs=0.02)
    assert next(numbers, None) is None


@pytest.mark.parametrize("count", [8, 15, 30])
def test_the_interval_of_a_mean_of_few_groups_is_students(monkeypatch, count):
    monkeypatch.setattr(bootstrap_module, "RESAMPLED", 20000)
    x = np.random.default_rng(count).uniform(size=count)
    _, low, high = bootstrap(weighted_mean(x), np.arange(count))
    expected = 2 * student.ppf(0.975, count - 1) * x.std(ddof=1) / count**0.5
    assert high - low == pytest.approx(expected, rel=0.1)  # percentiles of 8 groups are 23% narrower
    in_x, values = np.arange(count + 100) < count, np.append(x, np.zeros(100))

    def mean_of_x(weights):
        return np.average(values[in_x], weights=weights[in_x])

    _, low, high = bootstrap(mean_of_x, np.arange(len(values)), in_x)  # the smaller stratum decides
    assert high - low == pytest.approx(expected, rel=0.1)


@pytest.mark.slow
def test_an_auc_of_nothing_leaves_one_half_out_about_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr(bootstrap_module, "RESAMPLED", 400)
    count, rng, sets, outside = 5, np.random.default_rng(5), 120, 0  # people of each class
    people = np.repeat(np.arange(2 * count), 10)
    for seed in range(sets):
        scores = rng.standard_normal(2 * count)[people] + 0.7 * rng.standard_normal(len(people))
        _, low, high = bootstrap(lambda weights: auc(scores, people < count, weights), people, people < count, seed)
        outside += not low <= 0.5 <= high
    assert outside / sets < 0.05 + 3 * (0.05 * 0.95 / sets) ** 0.5  # it is 3%, and 17% with percentiles that are not expanded


def test_bootstrap_leaves_out_samples_without_a_value():
    numbers = iter([1.0, *[0.0] * 300, *[np.nan] * 400, *[2.0] * 300])
    assert bootstrap(lambda weights: next(numbers), np.arange(5)) == (1, 0, 2)


def test_bootstrap_value_is_the_statistic_of_the_sample_and_lies_in_the_interval():
    x = np.random.default_rng(0).normal(5, 2, 400)
    interval = bootstrap(weighted_mean(x), np.arange(400))
    assert interval.value == pytest.approx(x.mean()) and interval.low < interval.value < interval.high


def test_interval_as_text():
    assert str(Interval(0.5, 0.444, 0.556)) == "0.50 (0.44 to 0.56)"
    assert str(Auc(0.5, 0.444, 0.556, 0.5812)) == "0.50 (0.44 to 0.56; 80% power from 0.58)"


# ---------------------------------------------------------------------------------------------------------------------
# Power


def test_the_detectable_auc_of_many_people_is_that_of_the_rank_sum_test():
    """One score a person: the AUC of no difference has the variance (P + N + 1) / 12 P N (Mann and Whitney 1947)."""
    rng, positive = np.random.default_rng(1), np.arange(700) < 400
    scores = rng.standard_normal(700)
    found = bootstrap_auc(lambda weights: auc(scores, positive, weights), positive, np.arange(700), True)
    expected = (1.96 + 0.8416) * np.sqrt(701 / (12 * 400 * 300))
    assert found[:3] == bootstrap(lambda weights: auc(scores, positive, weights), np.arange(700), positive)
    assert found.detectable - 0.5 == pytest.approx(expected, rel=0.1)
    given = bootstrap_auc(lambda weights: auc(scores, positive, weights), positive, np.arange(700), True, critical=0.6)
    assert given.detectable - 0.6 == pytest.approx(expected * 0.8416 / (1.96 + 0.8416), rel=0.1)


def test_the_detectable_auc_depends_on_people_not_on_their_slices_or_on_what_is_found():
    rng, detectable = np.random.default_rng(2), {}
    for people, slices, shift in ((12, 1, 0), (12, 20, 0), (12, 20, 2), (12, 20, 9), (48, 1, 0)):
        groups = np.repeat(np.arange(2 * people), slices)
        scores, positive = rng.standard_normal(2 * people)[groups] + shift * (groups < people), groups < people
        found = bootstrap_auc(lambda weights: auc(scores, positive, weights), positive, groups, True)
        detectable[people, slices, shift] = found.detectable
    few = [value for (people, *_), value in detectable.items() if people == 12]
    assert max(few) - min(few) < 0.1 and min(few) > detectable[48, 1, 0] + 0.05
    assert found.detectable == pytest.approx(0.5 + 2.8 * np.sqrt(97 / (12 * 48 * 48)), abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("people, permuted", [((15, 15), False), ((10, 30), True)])
def test_a_detectable_difference_is_found_in_four_of_five_sets_and_none_in_few(monkeypatch, people, permuted):
    """By the interval (of 300 sets 80%, 3% without a difference) and by permutation, with four slices a person."""
    monkeypatch.setattr(bootstrap_module, "RESAMPLED", 150)
    monkeypatch.setattr("analysis.style_space.PERMUTATIONS", 119)
    groups, rng, sets = np.repeat(np.arange(sum(people)), 4), np.random.default_rng(0), 120
    positive = groups < people[0]

    def draw(true_auc):
        """(`Auc`, whether it is shown to exceed 0.5) of people and slices of equal variance."""
        scores = 2**0.5 * normal.ppf(true_auc) * positive + 0.5**0.5 * rng.standard_normal(sum(people))[groups]
        scores += 0.5**0.5 * rng.standard_normal(len(groups))
        critical = p = None
        if permuted:
            p, critical = permutation_test(lambda labels: auc(scores, labels == 1), positive.astype(int), groups)
        found = bootstrap_auc(lambda weights: auc(scores, positive, weights), positive, groups, True, critical=critical)
        return found, p <= SIGNIFICANT if permuted else found.low > 0.5

    null = [draw(0.5) for _ in range(sets)]
    true_auc = np.mean([found.detectable for found, _ in null])
    power = np.mean([shown for _, shown in (draw(true_auc) for _ in range(sets))])
    assert power == pytest.approx(POWER, abs=3 * (POWER * (1 - POWER) / sets) ** 0.5)
    assert np.mean([shown for _, shown in null]) <= SIGNIFICANT + 3 * (SIGNIFICANT / sets) ** 0.5  # one-sided


def test_bootstrap_draws_whole_groups_and_keeps_the_size_of_strata():
    strata, groups, drawn = np.repeat([0, 1], [12, 6]), np.arange(18) // 3, []
    bootstrap(lambda weights: drawn.append(weights.copy()) or 0.0, groups, strata)
    assert (drawn[0] == 1).all()  # the value itself
    counts = np.array(drawn[1:])
    assert (counts.reshape(-1, 6, 3) == counts[:, ::3, None]).all()  # the slices of a person are drawn together
    assert (counts[:, :12].sum(1) == 12).all() and (counts[:, 12:].sum(1) == 6).all()
    assert counts[:, ::3].max() > 1 and counts[:, ::3].min() == 0  # with replacement


def test_bootstrap_over_people_is_as_wide_as_independent_people_make_it():
    rng = np.random.default_rng(2)
    people = np.repeat([f"s{i}" for i in rng.permutation(200)], 10)
    values = np.repeat(rng.standard_normal(200), 10)  # the slices of a person are all the same
    by_person, by_slice = (bootstrap(weighted_mean(values), groups) for groups in (people, np.arange(2000)))
    assert by_person.high - by_person.low == pytest.approx(2 * 1.96 * 200**-0.5, rel=0.2)
    assert by_slice.high - by_slice.low == pytest.approx(2 * 1.96 * 2000**-0.5, rel=0.2)


PEOPLE, SCANS, SLICES = 30, 3, 8  # three scans of each person, eight slices of each scan
DEVIATIONS = 1.0, 0.3, 0.5  # between people, between scans of a person, between slices of a scan
GROUPS = {  # the group of each slice
    "people": np.repeat(np.arange(PEOPLE), SCANS * SLICES),
    "scans": np.repeat(np.arange(PEOPLE * SCANS), SLICES),
    "slices": np.arange(PEOPLE * SCANS * SLICES),
}


def draw_slices(rng):
    """A value for each slice, of mean 0."""
    return sum(
        rng.normal(0, sd, len(np.unique(of))).repeat(len(of) // len(np.unique(of))) for sd, of in zip(DEVIATIONS, GROUPS.values())
    )


@pytest.mark.slow
@pytest.mark.parametrize("unit", GROUPS)
def test_bootstrap_over_scans_or_slices_is_too_narrow_by_as_much_as_people_differ(monkeypatch, unit):
    """How often the interval of a mean holds the truth, against a t interval of the width that each unit gives it."""
    monkeypatch.setattr(bootstrap_module, "RESAMPLED", 250)
    rng, count = np.random.default_rng(4), 200
    intervals = [bootstrap(weighted_mean(draw_slices(rng)), GROUPS[unit], seed=seed) for seed in range(count)]
    covered = np.mean([low <= 0 <= high for _, low, high in intervals])
    a, b, c = np.square(DEVIATIONS)  # variance of the mean, and what resampling this unit takes for it:
    variance = a / PEOPLE + b / (PEOPLE * SCANS) + c / (PEOPLE * SCANS * SLICES)
    assumed = {
        "people": variance,
        "scans": (a + b + c / SLICES) / (PEOPLE * SCANS),
        "slices": (a + b + c) / (PEOPLE * SCANS * SLICES),
    }[unit]
    width = student.ppf(0.975, {"people": PEOPLE, "scans": PEOPLE * SCANS, "slices": PEOPLE * SCANS * SLICES}[unit] - 1)
    expected = 2 * student.cdf(width * (assumed / variance) ** 0.5, PEOPLE - 1) - 1  # 0.95, 0.76 and 0.35
    assert covered == pytest.approx(expected, abs=3 * (expected * (1 - expected) / count) ** 0.5)


@pytest.mark.slow
def test_bootstrap_of_an_auc_covers_the_truth_over_people_and_seldom_over_slices(monkeypatch):
    monkeypatch.setattr(bootstrap_module, "RESAMPLED", 200)
    rng, count, covered = np.random.default_rng(5), 120, {"people": 0, "slices": 0}
    truth = normal.cdf(1 / (2 * np.square(DEVIATIONS).sum()) ** 0.5)  # of two classes whose means are 1 apart
    is_ad = np.repeat([True, False], PEOPLE * SCANS * SLICES)
    for seed in range(count):
        scores = np.concatenate([draw_slices(rng) + 1, draw_slices(rng)])
        for unit in covered:
            _, low, high = bootstrap(lambda weights: auc(scores, is_ad, weights), np.tile(GROUPS[unit], 2), is_ad, seed)
            covered[unit] += low <= truth <= high
    assert covered["people"] / count > 0.93 - 3 * (0.93 * 0.07 / count) ** 0.5
    assert covered["slices"] / count < 0.5


def test_bootstrap_intervals_are_reproducible_and_depend_on_the_seed():
    x = np.random.default_rng(0).normal(size=20)
    first, again, other = (bootstrap(weighted_mean(x), np.arange(20), seed=seed) for seed in (3, 3, 4))
    assert first == again != other
