"""The age-stratified probe: against pairs counted one by one, and planted truths."""

import numpy as np
import pytest
from scipy.stats import norm as normal

from analysis import bootstrap as bootstrap_module
from analysis.age_probe import age_probe, age_sentences, age_thirds
from analysis.bootstrap import auc, bootstrap
from analysis.style_space import probe_scores
from data.subjects import Scan
from report.maps import age_table

# ---------------------------------------------------------------------------------------------------------------------
# Statistics


def test_age_thirds_hold_as_many_people_and_not_as_many_slices():
    people = np.repeat(np.arange(30), [10] * 10 + [1] * 20)
    third, edges = age_thirds(60.0 + people, people)
    assert [len(np.unique(people[third == i])) for i in range(3)] == [10, 10, 10]
    assert 69 < edges[0] < 70 and 79 < edges[1] < 80


@pytest.mark.slow
def test_intervals_over_people_cover_the_truth_in_about_95_percent_of_samples(monkeypatch):
    """The age-stratified AUC of 60 people with four slices each, whose scores have a part that is the person's own."""
    monkeypatch.setattr(bootstrap_module, "RESAMPLED", 200)
    rng, covered, count = np.random.default_rng(3), 0, 100
    for seed in range(count):
        people, own = np.repeat(np.arange(60), 4), rng.normal(size=60)
        third, positive = np.arange(60).repeat(4) % 3, (rng.random(60) < 0.4).repeat(4)
        scores, truth = own.repeat(4) + 0.7 * rng.normal(size=240) + positive + 10 * third, normal.cdf(1 / (2 * 1.49) ** 0.5)
        interval = bootstrap(lambda weights, part=(scores, positive, third): auc(*part[:2], weights, part[2]), people, seed=seed)
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


def probed(w, classes, scans):
    """`age_probe` of a probe that is cross-validated over people."""
    return age_probe(-probe_scores(w, classes, np.array([scan.person for scan in scans])), classes, scans)


AGE_ALONE = {"share_of_ad": (0.1, 0.5, 0.9), "by_age": 4.0}
DISEASE = {"share_of_ad": (0.5, 0.5, 0.5), "by_class": 1.5}


def found(monkeypatch, **plan):
    monkeypatch.setattr(bootstrap_module, "RESAMPLED", 300)
    results = probed(*planted(0, **plan))
    return {row["among"]: row for row in results["compared"]}, results


@pytest.mark.slow
def test_a_probe_that_knows_age_alone_does_not_survive_when_age_is_held(monkeypatch):
    rows, results = found(monkeypatch, **AGE_ALONE)
    assert rows["all"]["probe"].low > 0.6 and rows["all"]["age"].low > 0.6
    for among in ("age-stratified", "of them, 70.0 to 80.0 years"):
        assert rows[among]["probe"].low < 0.5 < rows[among]["probe"].high
    assert rows["sex-stratified"]["probe"].low > 0.6
    assert "the interval includes 0.5, so no difference beyond age was shown" in " ".join(age_sentences(results))


@pytest.mark.slow
def test_a_probe_that_knows_the_disease_alone_survives(monkeypatch):
    rows, results = found(monkeypatch, **DISEASE)
    assert rows["age-stratified"]["probe"].low > 0.65
    assert rows["age-stratified"]["probe"].value == pytest.approx(rows["all"]["probe"].value, abs=0.04)
    assert rows["all"]["age"].low < 0.5 < rows["all"]["age"].high
    assert "sees something of AD that is not age" in " ".join(age_sentences(results))
    for flags, expected in (({"seen": True}, "nothing is concluded"), ({"shown": False}, "no separation was shown.")):
        text = " ".join(age_sentences(results, **flags))
        assert expected in text and "sees something" not in text


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
    results = probed(w, np.where(ill, 0, 1).repeat(SLICES), scans)
    within = results["compared"][1]
    assert within["age"].low > 0.5
    assert "whether the probe sees more than age is open" in " ".join(age_sentences(results))


def test_slices_of_unknown_age_are_left_out_and_counted(monkeypatch):
    monkeypatch.setattr(bootstrap_module, "RESAMPLED", 40)
    w, classes, scans = planted(0, **DISEASE)
    scans[::3] = [scan._replace(age=None) for scan in scans[::3]]
    results = probed(w, classes, scans)
    assert (results["slices"], results["unknown"]) == (240, 120)
    assert results["compared"][0]["people"] == {"AD": sum(classes[::3] == 0), "NC": sum(classes[::3] == 1)}
    table = age_table(results)
    assert "120 slices of unknown age are left out" in table.caption
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert age_probe(w[:, 0], classes, [scan._replace(age=None) for scan in scans]) is None


def test_few_people_get_no_figure_but_a_sentence(monkeypatch):
    monkeypatch.setattr(bootstrap_module, "RESAMPLED", 40)
    w, _, scans = planted(0, **DISEASE)
    few = slice(0, 13 * SLICES)  # 13 people, of whom four have AD
    results = age_probe(w[few, 0], np.where(np.arange(39) < 12, 0, 1), scans[few])
    assert all(row["probe"] is row["age"] is None for row in results["compared"])
    assert age_sentences(results) == [
        "Age: known of 4 AD and 9 NC people, too few for any figure (at least 5 of each class are needed)."
    ]
    results = age_probe(w[few, 0], np.where(np.arange(39) < 15, 0, 1), scans[few])  # the five youngest have AD
    assert results["compared"][0]["probe"] is not None and results["compared"][1]["probe"] is None
    assert "Too few people of both classes share a third of ages" in " ".join(age_sentences(results))
    assert age_table(results).rows[1][3] == "too few (under 5 of a class)"
