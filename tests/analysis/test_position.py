"""Slice position: the rule that knows the index alone, windows, and the AUC with the index held, on planted truths."""

import numpy as np
import pytest

from analysis import bootstrap as bootstrap_module
from analysis.bootstrap import auc
from analysis.position import (
    beyond_position,
    fitted_odds,
    held_out_folds,
    index_auc,
    log_odds,
    position_probe,
    position_text,
    slice_indices,
    unknown_text,
    windows,
)
from analysis.style_space import probe_scores

# ---------------------------------------------------------------------------------------------------------------------
# Slice indices


def test_slice_indices_are_nan_where_a_name_gives_none():
    np.testing.assert_array_equal(slice_indices(["AD/218391_78.jpeg", "NC/noname.png", "NC/2_090.png"]), [78, np.nan, 90])
    np.testing.assert_array_equal(slice_indices(["AD/mild_12.png", "NC/sub-01_T1w_91.png"]), [np.nan, 91])  # 12 may be any number
    assert slice_indices([]).shape == (0,)


def test_unknown_text_is_one_line_that_counts_and_names_the_slices():
    assert unknown_text(["AD/1_78.jpeg", "NC/2_79.png"]) == "" == unknown_text([])
    assert unknown_text(["AD/1_78.jpeg", "NC/b.png"]).startswith("slice index unknown: 1 of 2 file names give none (NC/b.png; ")
    text = unknown_text([f"AD/{letter}\n.png" for letter in "abcde"])
    assert text.startswith("slice index unknown: no file name gives one") and "and 2 more" in text and "\n" not in text


def test_windows_are_of_scans_by_class():
    names = [f"AD/{scan}_{first + i}.png" for scan, first, count in ((1, 70, 20), (2, 78, 20), (3, 80, 18)) for i in range(count)]
    names += [f"NC\\9_{i}.png" for i in (88, 90, 89)] + ["NC/unknown.png", "NC/a_99.png"]
    assert windows(names) == {"AD": ([70, 78, 80], [20, 20, 18]), "NC": ([88], [3])}
    assert windows(["AD/unknown.png"]) == {}


# ---------------------------------------------------------------------------------------------------------------------
# The rule


def test_log_odds_count_the_slices_near_an_index():
    levels, ad, nc = np.array([80.0, 81, 83, 90]), np.array([1, 1, 0, 0]), np.array([1, 0, 1, 1])

    def near(index, counts):
        every = np.exp(-0.5 * (np.arange(-6, 7) / 2) ** 2).sum()
        return sum(n * np.exp(-0.5 * ((at - index) / 2) ** 2) / every for at, n in zip(levels, counts) if abs(at - index) <= 6)

    at = np.array([78.0, 80.0, 88.0, 500.0])
    for index, odds in zip(at, log_odds(ad, nc, levels, at)):
        assert odds == pytest.approx(np.log((near(index, ad) + 0.4) / (near(index, nc) + 0.6)))
    assert odds == pytest.approx(np.log(2 / 3))  # far from all others: the odds of the whole set
    both = log_odds(np.stack([ad, nc]), np.stack([nc, 0 * ad]), levels, at)
    np.testing.assert_array_equal(both, [log_odds(ad, nc, levels, at), np.zeros(4)])  # without a class: 0


def test_fitted_odds_are_of_the_known_slices():
    indices, positive, at = np.array([80.0, 80, np.nan, 83]), np.array([True, False, True, False]), np.array([80.0, 83.0])
    expected = log_odds(np.array([1, 0]), np.array([1, 1]), at, at)
    np.testing.assert_array_equal(fitted_odds(indices, positive, at), expected)
    assert not fitted_odds(np.full(2, np.nan), np.array([True, False]), at).any()


def slices(firsts, count=20):
    """(indices, people) of a scan for each first index, of a person of its own."""
    firsts = np.asarray(firsts)
    return (firsts[:, None] + np.arange(count)).ravel().astype(float), np.repeat(np.arange(len(firsts)), count)


def test_held_out_folds_keep_people_together_and_share_the_classes():
    people = np.repeat(np.arange(24), 20)
    fold = held_out_folds(people < 9, people)
    assert set(fold) == set(range(5)) and all(len(set(fold[people == person])) == 1 for person in range(24))
    assert all(len(set(people[(fold == i) & (people < 9)])) in (1, 2) for i in range(5))


def test_index_auc_compares_slices_of_one_fold_by_a_rule_of_the_others(monkeypatch):
    monkeypatch.setattr(bootstrap_module, "RESAMPLED", 2)
    indices, people = slices(np.random.default_rng(0).integers(70, 95, 24))
    positive, strata = people < 9, people % 2
    fold, won, pairs = held_out_folds(positive, people), 0.0, 0
    for i in range(5):
        odds = fitted_odds(indices[fold != i], positive[fold != i], indices)
        for stratum in (0, 1):
            ad, nc = (odds[(fold == i) & (strata == stratum) & (positive == of_class)] for of_class in (True, False))
            won += (ad[:, None] > nc).sum() + 0.5 * (ad[:, None] == nc).sum()
            pairs += len(ad) * len(nc)
    assert index_auc(indices, positive, people, strata=strata).value == pytest.approx(won / pairs)


def test_index_auc_learns_a_relation_that_is_not_monotonic(monkeypatch):
    monkeypatch.setattr(bootstrap_module, "RESAMPLED", 100)
    indices, people = slices([80] * 20 + [70] * 10 + [90] * 10, count=8)
    positive = people < 20  # AD in the middle
    assert auc(indices, positive) == 0.5
    assert index_auc(indices, positive, people).low > 0.95


def test_index_auc_is_chance_where_the_windows_are_equal(monkeypatch):
    monkeypatch.setattr(bootstrap_module, "RESAMPLED", 100)
    indices, people = slices([80] * 30)
    assert index_auc(indices, people < 11, people)[:3] == (0.5, 0.5, 0.5)


def test_index_auc_of_a_rule_fitted_to_training_slices(monkeypatch):
    monkeypatch.setattr(bootstrap_module, "RESAMPLED", 100)
    train, train_people = slices([78] * 6 + [88] * 6)
    test, people = slices([78] * 5 + [88] * 5)
    found = index_auc(test, people < 5, people, (train, train_people < 6))
    odds = fitted_odds(train, train_people < 6, test)
    ad, nc = odds[people < 5], odds[people >= 5]
    won = np.mean((ad[:, None] > nc) + 0.5 * (ad[:, None] == nc))
    assert found.value == pytest.approx(won) and found.low == pytest.approx(found.high)
    reversed_rule = index_auc(test, people < 5, people, (train, train_people >= 6))
    assert reversed_rule.value == pytest.approx(1 - won)
    with_unknown = np.r_[test, np.nan], np.r_[people < 5, True], np.r_[people, 99]
    assert index_auc(*with_unknown, (np.r_[train, np.nan], np.r_[train_people < 6, False])) == found


def test_index_auc_of_too_few_people_is_none():
    indices, people = slices([80] * 9)
    for ad in (0, 1, 4, 8, 9):
        assert index_auc(indices, people < ad, people) is None
    assert index_auc(np.full(20, np.nan), np.arange(20) < 10, np.arange(20)) is None


@pytest.mark.slow
def test_index_auc_without_a_relation_is_chance_on_average_and_in_its_interval(monkeypatch):
    monkeypatch.setattr(bootstrap_module, "RESAMPLED", 50)
    rng, found = np.random.default_rng(2), []
    for seed in range(60):
        indices, people = slices(rng.integers(78, 87, 40))
        found.append(index_auc(indices, people < 14, people, seed=seed))
    values = [interval.value for interval in found]
    assert np.mean(values) == pytest.approx(0.5, abs=3 * np.std(values, ddof=1) / 60**0.5)
    assert sum(interval.low > 0.5 or interval.high < 0.5 for interval in found) <= 6  # of 3 expected


# ---------------------------------------------------------------------------------------------------------------------
# With the index held

PEOPLE, SLICES = 80, 8


def planted(seed, lower=0, disease=0.0):
    """(scores of AD by a linear probe, AD, people, names): w has a part that follows the index, one of the disease, and the
    people's own. The windows of AD begin `lower` indices below those of NC."""
    rng = np.random.default_rng(seed)
    ad = np.arange(PEOPLE) < PEOPLE // 2
    indices, people = slices(rng.integers(78, 90, PEOPLE) - lower * ad, SLICES)
    own = rng.normal(size=(PEOPLE, 4))
    own[:, 0] += disease * ad
    w = own[people] + 0.3 * rng.normal(size=(len(people), 4))
    w[:, 1] += (indices - 85) / 3
    is_ad = ad[people]
    names = [f"{'AD' if of_ad else 'NC'}/{person}_{index:.0f}.png" for of_ad, person, index in zip(is_ad, people, indices)]
    return -probe_scores(w, np.where(is_ad, 0, 1), people), is_ad, people, names


WINDOWS, DISEASE = {"lower": 8}, {"disease": 1.5}


@pytest.mark.parametrize("plan, alone, above, stratified", [
    (WINDOWS, True, True, False),
    (DISEASE, False, True, True),
    (WINDOWS | DISEASE, True, True, True),
])  # fmt: skip
def test_stratified_auc_is_above_chance_with_the_disease_and_not_with_windows_alone(monkeypatch, plan, alone, above, stratified):
    monkeypatch.setattr(bootstrap_module, "RESAMPLED", 300)
    scores, is_ad, people, names = planted(0, **plan)
    position = position_probe(scores, is_ad, people, names)
    plain = bootstrap_module.auc_interval(scores, is_ad, people)
    for interval, expected in (
        (position["slice index alone"], alone), (plain, above), (position["position-stratified"], stratified)
    ):  # fmt: skip
        assert interval.low > 0.5 if expected else interval.low < 0.5 < interval.high
    assert beyond_position(position) == stratified
    assert ("no AD/NC difference beyond slice position was shown" in position_text(position)[1]) != stratified


@pytest.mark.slow
@pytest.mark.parametrize("plan, expected", [(WINDOWS, 0.5), (DISEASE, None), (WINDOWS | DISEASE, None)])
def test_stratified_auc_over_many_draws_is_that_of_the_planted_truth(plan, expected):
    found, plain = [], []
    for seed in range(24):
        scores, is_ad, people, names = planted(seed, **plan)
        found.append(auc(scores, is_ad, strata=slice_indices(names)))
        plain.append(auc(scores, is_ad))
    assert np.mean(plain) > 0.65
    if expected is None:
        assert 0.7 < np.mean(found) < 0.85  # Phi(1.5 / sqrt(2 * 1.09)) = 0.845; no probe can do better
    else:
        assert np.mean(found) == pytest.approx(expected, abs=3 * np.std(found, ddof=1) / 24**0.5)


def test_position_probe_of_several_scores_is_their_mean_and_leaves_out_unknown_indices(monkeypatch):
    monkeypatch.setattr(bootstrap_module, "RESAMPLED", 50)
    scores, is_ad, people, names = planted(1, **DISEASE)
    noise = np.random.default_rng(0).normal(size=len(scores))
    names[::4] = [f"AD/noname{i}.png" for i in range(len(names[::4]))]
    position = position_probe([scores, noise], is_ad, people, names)
    rows = np.arange(len(names)) % 4 > 0
    strata = slice_indices(names)[rows]
    mean = np.mean([auc(row[rows], is_ad[rows], strata=strata) for row in (scores, noise)])
    assert position["position-stratified"].value == pytest.approx(mean)
    assert position["known"] == rows.sum()
    assert position_text(position)[-1].startswith(f"slice index unknown: {(~rows).sum()} of {len(rows)} file names give none")


def test_where_no_index_is_known_there_is_one_line_and_no_row():
    scores, is_ad = np.arange(20.0), np.arange(20) >= 10
    position = position_probe(scores, is_ad, np.arange(20), [f"AD/x{i}.png" for i in range(20)])
    assert position["slice index alone"] is position["position-stratified"] is None and position["known"] == 0
    (line,) = position_text(position)
    assert line.startswith("slice index unknown: no file name gives one")
    assert beyond_position(position)


def test_position_text_of_too_few_people():
    indices = np.repeat([80, 81], 10)  # no index has both classes
    names = [f"AD/{i}_{index}.png" for i, index in enumerate(indices)]
    position = position_probe(np.arange(20.0), indices == 80, np.arange(20), names)
    assert position["slice index alone"].low > 0.9 and position["position-stratified"] is None
    text = position_text(position, "the classifier")[1]
    assert "Position-stratified AUC of the classifier" in text and "too few people (under 5 of a class)" in text and "open" in text
    assert not beyond_position(position)
    few = position_probe(np.arange(4.0), np.arange(4) < 2, np.arange(4), names[:4])
    assert position_text(few)[0] == "Slice index alone: too few people (under 5 of a class)."
