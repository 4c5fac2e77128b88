"""The probe with age held: against pairs counted one by one, SciPy, and planted truths."""

import numpy as np
import pytest
from scipy.stats import norm as normal
from scipy.stats import spearmanr
from sklearn.model_selection import StratifiedGroupKFold

from analysis import age_probe as module
from analysis import bootstrap as bootstrap_module
from analysis.age_probe import age_probe, age_sentences, age_thirds, predicted_ages, rank_correlation
from analysis.bootstrap import auc, bootstrap
from analysis.style_space import probe_scores
from data.subjects import Scan
from report.maps import age_section, age_tables

# ---------------------------------------------------------------------------------------------------------------------
# Statistics


@pytest.mark.parametrize("levels", [4, 10**6])
def test_rank_correlation_equals_scipy_with_ties_and_repeated_rows(levels):
    rng = np.random.default_rng(levels)
    a = rng.integers(0, levels, 80)
    b, weights = a + rng.integers(0, 2 * levels, 80), rng.integers(0, 4, 80)
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
    repeated = spearmanr(a.repeat(weights), b.repeat(weights)).statistic
    assert rank_correlation(a, b, weights) == pytest.approx(repeated, abs=1e-12)
    assert np.isnan(rank_correlation(a, np.ones(80)))


def test_age_thirds_hold_as_many_people_and_not_as_many_slices():
    people = np.repeat(np.arange(30), [10] * 10 + [1] * 20)
    third, edges = age_thirds(60.0 + people, people)
    assert [len(np.unique(people[third == i])) for i in range(3)] == [10, 10, 10]
    assert 69 < edges[0] < 70 and 79 < edges[1] < 80


def test_predicted_ages_are_those_of_ridge_regression_by_its_normal_equations():
    rng = np.random.default_rng(0)
    people = np.repeat(np.arange(20), 3)
    ages = (60 + rng.permutation(20).astype(float)).repeat(3)
    points = rng.normal(size=(60, 4)) * (1, 7, 0.2, 3) + ages[:, None]
    expected, (thirds, _) = np.empty(60), age_thirds(ages, people)
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    for fitted, held_out in folds.split(points, thirds, people):
        assert not set(people[fitted]) & set(people[held_out])
        mean, deviation = points[fitted].mean(0), points[fitted].std(0)
        x = (points[fitted] - mean) / deviation
        slope = np.linalg.solve(x.T @ x + 100 * np.eye(4), x.T @ (ages[fitted] - ages[fitted].mean()))
        expected[held_out] = ages[fitted].mean() + (points[held_out] - mean) / deviation @ slope
    np.testing.assert_allclose(predicted_ages(points, ages, people), expected, rtol=1e-9)


@pytest.mark.slow
def test_predicted_ages_of_points_that_know_people_but_not_age_have_no_rank_correlation():
    """The slices of a person are nearly the same: fitted to them, a regression would know their age."""
    rng, found, leaking = np.random.default_rng(1), [], []
    for _ in range(16):
        people, ages = np.repeat(np.arange(40), 5), rng.normal(75, 7, 40).repeat(5)
        points = rng.normal(size=(40, 60)).repeat(5, axis=0) + 0.01 * rng.normal(size=(200, 60))
        found.append(rank_correlation(predicted_ages(points, ages, people), ages))
        leaking.append(rank_correlation(predicted_ages(points, ages, np.arange(200)), ages))
    assert np.mean(found) == pytest.approx(0, abs=3 * np.std(found, ddof=1) / 4)
    assert np.mean(leaking) > 0.5


@pytest.mark.parametrize("ages", [70.0 + np.arange(10), np.full(10, 70.0), np.repeat([60.0, 80.0], [9, 1])])
def test_predicted_ages_of_few_people_with_a_slice_each_are_finite(ages):
    assert np.isfinite(predicted_ages(np.random.default_rng(0).normal(size=(10, 3)), ages, np.arange(10))).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["age-stratified AUC", "rank correlation"])
def test_intervals_over_people_cover_the_truth_in_about_95_percent_of_samples(monkeypatch, name):
    """60 people with four slices each, whose scores have a part that is the person's own."""
    monkeypatch.setattr(bootstrap_module, "RESAMPLED", 200)
    rng, covered, count = np.random.default_rng(3), 0, 100
    for seed in range(count):
        people, own = np.repeat(np.arange(60), 4), rng.normal(size=(2, 60))
        a = own[0].repeat(4) + 0.7 * rng.normal(size=240)
        if name == "rank correlation":
            b = (0.6 * own[0] + 0.8 * own[1]).repeat(4)
            truth = 6 / np.pi * np.arcsin(0.6 / 1.49**0.5 / 2)  # of normal variables of this correlation
            interval = bootstrap(lambda weights, pair=(a, b): rank_correlation(*pair, weights), people, seed=seed)
        else:
            third, positive = np.arange(60).repeat(4) % 3, (rng.random(60) < 0.4).repeat(4)
            scores, truth = a + positive + 10 * third, normal.cdf(1 / (2 * 1.49) ** 0.5)
            interval = bootstrap(
                lambda weights, part=(scores, positive, third): auc(*part[:2], weights, part[2]), people, seed=seed
            )
        covered += interval.low <= truth <= interval.high
    assert 0.86 <= covered / count  # 0.95 less four standard errors of 0.022
    assert covered < count


# ---------------------------------------------------------------------------------------------------------------------
# Planted truths

PEOPLE, SLICES = 120, 3


def planted(seed, share_of_ad, by_age=0.0, by_class=0.0):
    """(w [360, 4], classes, scans) of people aged 60 to 90, of whom a share of each third has AD; w shifts by the SD of age, and
    by class."""
    rng = np.random.default_rng(seed)
    third = np.arange(PEOPLE) * 3 // PEOPLE
    ages, ad = np.linspace(60, 90, PEOPLE), rng.random(PEOPLE) < np.array(share_of_ad)[third]
    own = rng.normal(size=(PEOPLE, 4))
    own[:, 0] += by_age * (ages - 75) / ages.std()
    own[:, 1] += by_class * ad
    w = own.repeat(SLICES, axis=0) + 0.3 * rng.normal(size=(PEOPLE * SLICES, 4))
    sexes = rng.choice(["F", "M"], PEOPLE)
    scans = [Scan(str(i), f"p{i}", None, sexes[i], ages[i]) for i in range(PEOPLE) for _ in range(SLICES)]
    return w, np.where(ad, 0, 1).repeat(SLICES), scans


AGE_ALONE = {"share_of_ad": (0.1, 0.5, 0.9), "by_age": 4.0}
DISEASE = {"share_of_ad": (0.5, 0.5, 0.5), "by_class": 1.5}


def found(monkeypatch, **plan):
    monkeypatch.setattr(bootstrap_module, "RESAMPLED", 300)
    results = age_probe(*planted(0, **plan))
    return {row["among"]: row for row in results["compared"]}, results


@pytest.mark.slow
def test_a_probe_that_knows_age_alone_does_not_survive_when_age_is_held(monkeypatch):
    rows, results = found(monkeypatch, **AGE_ALONE)
    assert rows["all"]["probe"].low > 0.6 and rows["all"]["age"].low > 0.6
    for among in ("age-stratified", "of them, 70.0 to 80.0 years"):
        assert rows[among]["probe"].low < 0.5 < rows[among]["probe"].high
    assert rows["sex-stratified"]["probe"].low > 0.6
    assert results["age from w"][0]["rank correlation"].low > 0.9
    text = " ".join(age_sentences(results))
    assert (
        "that interval includes 0.5: with age held, nothing of AD was shown to be left" in text
        and "w knows something of age" in text
    )


@pytest.mark.slow
def test_a_probe_that_knows_the_disease_alone_survives(monkeypatch):
    rows, results = found(monkeypatch, **DISEASE)
    assert rows["age-stratified"]["probe"].low > 0.65
    assert rows["age-stratified"]["probe"].value == pytest.approx(rows["all"]["probe"].value, abs=0.04)
    assert rows["all"]["age"].low < 0.5 < rows["all"]["age"].high
    assert results["age from w"][0]["rank correlation"].low < 0 < results["age from w"][0]["rank correlation"].high
    text = " ".join(age_sentences(results))
    assert "sees something of AD that is not age" in text and "that w knows of age was not shown" in text


@pytest.mark.slow
@pytest.mark.parametrize("plan, expected", [(AGE_ALONE, 0.5), (DISEASE, None)])
def test_auc_within_thirds_over_many_draws_is_that_of_the_planted_truth(plan, expected):
    """Of age alone 0.5. Of the disease that of one coordinate's shift, less what three others cost the probe."""
    aucs = []
    for seed in range(16):
        w, classes, scans = planted(seed, **plan)
        people, ages = (np.array([getattr(scan, field) for scan in scans]) for field in ("person", "age"))
        aucs.append(auc(-probe_scores(w, classes, people), classes == 0, strata=age_thirds(ages, people)[0]))
    if expected is None:
        best = normal.cdf(1.5 / (2 * 1.09) ** 0.5)  # 0.845; no probe can do better than the shift in units of its spread
        assert best - 0.08 < np.mean(aucs) < best + 0.01
    else:
        assert np.mean(aucs) == pytest.approx(expected, abs=3 * np.std(aucs, ddof=1) / 4)


@pytest.mark.slow
def test_what_is_left_of_age_within_thirds_is_named(monkeypatch):
    """AD from 75 years on: within the middle third, too, people with AD are older."""
    monkeypatch.setattr(bootstrap_module, "RESAMPLED", 300)
    w, _, scans = planted(0, **AGE_ALONE)
    rng = np.random.default_rng(1)
    ill = np.array([scan.age for scan in scans[::SLICES]]) + rng.normal(0, 5, PEOPLE) > 75
    results = age_probe(w, np.where(ill, 0, 1).repeat(SLICES), scans)
    within = results["compared"][1]
    assert within["age"].low > 0.5
    assert "age is held only in part" in " ".join(age_sentences(results))


def test_slices_of_unknown_age_are_left_out_and_counted(monkeypatch):
    monkeypatch.setattr(bootstrap_module, "RESAMPLED", 40)
    w, classes, scans = planted(0, **DISEASE)
    scans[::3] = [scan._replace(age=None) for scan in scans[::3]]
    results = age_probe(w, classes, scans)
    assert (results["slices"], results["unknown"]) == (240, 120)
    assert results["compared"][0]["people"] == {"AD": sum(classes[::3] == 0), "NC": sum(classes[::3] == 1)}
    section = age_section("ages", results)
    assert "120 slices of unknown age are left out" in section.tables[0].caption
    assert all(len(row) == len(table.columns) for table in section.tables for row in table.rows)
    assert section.text[-1] == "Intervals and standard errors resample people." and section.numbers is results
    assert age_probe(w, classes, [scan._replace(age=None) for scan in scans]) is None


def test_few_people_get_no_figure_but_a_sentence(monkeypatch):
    monkeypatch.setattr(bootstrap_module, "RESAMPLED", 40)
    w, _, scans = planted(0, **DISEASE)
    few = slice(0, 13 * SLICES)  # 13 people, of whom four have AD
    results = age_probe(w[few], np.where(np.arange(39) < 12, 0, 1), scans[few])
    assert all(row["probe"] is row["age"] is None for row in results["compared"])
    assert age_sentences(results) == [
        "Age: known of 4 AD and 9 NC people, too few for any figure (at least 5 of each class are needed)."
    ]
    results = age_probe(w[few], np.where(np.arange(39) < 15, 0, 1), scans[few])  # the five youngest have AD
    assert results["compared"][0]["probe"] is not None and results["compared"][1]["probe"] is None
    assert "Too few people of both classes share a third of ages" in " ".join(age_sentences(results))
    assert age_tables(results)[0].rows[1][3] == "too few (under 5 of a class)"


def test_constants_of_the_age_probe():
    assert module.SHRINKAGE == 100.0 and bootstrap_module.MIN_PEOPLE == 5
