"""Style space: separation against closed forms and planted truth, the sentences drawn from it, maps, and the epochs."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from analysis import style_space as styles
from analysis.bootstrap import Auc, Interval, auc
from analysis.models import draw_z
from analysis.style_space import StyleSeparation
from modules import MappingNetwork

# ---------------------------------------------------------------------------------------------------------------------
# How far apart


def test_constants_of_the_style_space():
    assert (styles.NEIGHBOURS, styles.FOLDS, styles.SEPARATED) == (15, 5, 0.99)


def test_same_class_fractions_of_mixed_and_of_separate_clouds():
    rng, classes = np.random.default_rng(0), np.repeat([0, 1], 700)
    one_cloud = rng.normal(size=(1400, 5))
    assert styles.same_class_fractions(one_cloud, classes).mean() == pytest.approx(0.5, abs=0.03)
    assert styles.same_class_fractions(one_cloud + 100 * classes[:, None], classes).min() == 1


def test_same_class_fractions_leave_out_the_point_itself():
    line = np.array([[0.0], [1.0], [2.1], [3.3]])  # nearest: 1, 0, 1, 2
    np.testing.assert_array_equal(styles.same_class_fractions(line, np.array([0, 0, 1, 1]), k=1), [1, 1, 0, 1])


def test_same_class_fractions_equal_sorted_distances_also_among_duplicates():
    rng, classes = np.random.default_rng(4), np.arange(80) % 2
    points = np.repeat(rng.normal(size=(40, 6)), 2, axis=0)  # each twice, once in each class
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    nearest = distance.argsort(1, kind="stable")[:, :5]  # the twin and two whole pairs: no ties at the end
    expected = (classes[nearest] == classes[:, None]).mean(1)
    np.testing.assert_allclose(styles.same_class_fractions(points, classes, k=5), expected)
    assert (expected == 0.4).all()


def test_style_separation_of_one_cloud_and_of_two():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 150, 8))
    mixed, moved, apart = (styles.style_separation(a, b + shift) for shift in (0, 0.6, 30))
    for interval in mixed[:2]:
        assert interval.low - 0.02 < 0.5 < interval.high + 0.02
    assert 0.7 < moved.auc.low < moved.auc.value < moved.auc.high < 1
    assert 0.5 < moved.same_class.low < moved.same_class.value < moved.same_class.high < 1
    assert styles.style_separation(a, b + 0.6)[:2] == moved[:2]  # the resampling is seeded
    assert min(apart.same_class.low, apart.auc.low) == 1


@pytest.mark.parametrize(
    "given_groups, groups, alike",
    [(None, [0, 1, 2] * 2, 2 / 5), (list("abcdef"), [0, 1, 2, 3, 4, 5], 2 / 5), (list("aabccd"), [0, 0, 1, 2, 2, 3], 1 / 4)],
)
def test_style_separation_resamples_latents_or_groups_and_fits_to_no_other_of_them(monkeypatch, given_groups, groups, alike):
    given = []
    monkeypatch.setattr(styles, "probe_scores", lambda points, classes, groups, seed: given.append(groups) or np.arange(6.0))
    monkeypatch.setattr(styles, "permutation_test", lambda *_: (0.5, 0.9))
    monkeypatch.setattr(styles, "bootstrap", lambda statistic, groups, seed: given.append(groups) or statistic(np.ones(6)))
    monkeypatch.setattr(
        styles, "bootstrap_auc", lambda statistic, _, groups, **options: given.append(groups) or Auc(*[statistic(np.ones(6))] * 4)
    )
    found = styles.style_separation(np.zeros((3, 2)), np.ones((3, 2)), given_groups)
    assert [list(of_call) for of_call in given[:3]] == [groups] * 3
    assert found.auc.value == 1
    # Two of five others are of a vector's own set; of groups a a b | c c d, the shares are 1/4 of a and c, 2/5 of b and d.
    assert found.same_class == pytest.approx(alike if alike == 2 / 5 else (4 * 1 / 4 + 2 * 2 / 5) / 6)


def test_probe_scores_never_fit_to_the_twin_of_a_held_out_vector():
    """With the same vectors in both sets, a probe fitted to the twins of held-out vectors would do worse than chance."""
    a = np.random.default_rng(0).normal(size=(60, 40))
    groups, classes = np.r_[:60, :60], np.repeat([0, 1], 60)
    points = np.concatenate([a, a])
    assert auc(styles.probe_scores(points, classes, groups), classes == 1) == pytest.approx(0.5, abs=1e-9)
    assert auc(styles.probe_scores(points, classes, np.arange(120)), classes == 1) < 0.45


def test_probe_is_a_logistic_regression_with_a_penalty_of_half_its_squared_weights():
    """0.01 times the sum of log(1 + exp(-y f)), plus |w|^2 / 2, minimised by SciPy on the same folds."""
    rng, classes = np.random.default_rng(2), np.arange(60) % 2
    points, groups = rng.normal(size=(60, 3)) * (1, 5, 0.1) + classes[:, None], np.arange(60) // 2
    expected = np.empty(60)
    for fitted, held_out in StratifiedGroupKFold(5, shuffle=True, random_state=0).split(points, classes, groups):
        x = (points - points[fitted].mean(0)) / points[fitted].std(0)
        signs = 2 * classes[fitted] - 1

        def loss(w, x=x[fitted], signs=signs):
            return 0.01 * np.logaddexp(0, -signs * (x @ w[:3] + w[3])).sum() + w[:3] @ w[:3] / 2

        w = minimize(loss, np.zeros(4), tol=1e-10).x
        expected[held_out] = x[held_out] @ w[:3] + w[3]
    np.testing.assert_allclose(styles.probe_scores(points, classes, groups), expected, atol=1e-3)  # both stop near the minimum


def test_untrained_mapping_networks_of_two_seeds_are_separated():
    sets, z = [], draw_z(256, 256, 0)
    for seed in (0, 1):
        torch.manual_seed(seed)
        sets.append(MappingNetwork().eval()(z).detach().numpy())
    assert styles.style_separation(*sets).same_class.low > 0.99


def separation(alike, auc, width=0.02, p=0.005):
    return StyleSeparation(*(Interval(value, value - width, value + width) for value in (alike, auc)), 0.5, p)


@pytest.mark.parametrize(
    "pair, control, like, expected",
    [
        (separation(0.9, 0.9), None, True, "--control_dir"),
        (separation(1, 1), separation(1, 1), True, "so are the two NC models"),
        (separation(0.8, 0.9), separation(0.6, 0.7), True, "By both measures, AD and NC are further apart"),
        (separation(0.8, 0.9), separation(0.6, 0.89), True, "By one of two measures"),
        (separation(0.61, 0.7), separation(0.6, 0.69), True, "not shown to be further apart"),
        (separation(0.5, 0.5), separation(0.9, 0.9), True, "not shown to be further apart"),
        (separation(0.61, 0.7), separation(0.9, 0.9), False, "no fair comparison"),
    ],
)
def test_verdict_compares_with_the_control(pair, control, like, expected):
    assert expected in styles.verdict(pair, control, like)


def test_real_verdict_depends_on_the_permutations():
    assert "more than by chance, AUC 0.70 (0.60 to 0.80) of a linear probe, p = 0.005" in styles.real_verdict(
        separation(0.5, 0.7, 0.1)
    )
    missed = styles.real_verdict(StyleSeparation(Interval(0.5, 0.4, 0.6), Auc(0.61, 0.51, 0.71, 0.66), p=0.03))
    assert "no separation was shown, AUC 0.61 (0.51 to 0.71; 80% power from 0.66) of a linear probe, p = 0.030" in missed
    assert "too few people" in styles.real_verdict(StyleSeparation(styles.UNDEFINED, styles.UNDEFINED))
    seen = styles.real_verdict(separation(0.5, 0.7, 0.1), seen=True)
    assert "p = 0.005" in seen and "nothing is concluded" in seen and "separated" not in seen


@pytest.mark.parametrize("sizes, expected", [((5, 5), 4 / 9), ((3, 7), (0.3 * 2 + 0.7 * 6) / 9)])
def test_chance_fraction_is_the_mean_over_permuted_labels(sizes, expected):
    """Of G people of each class with as many slices it is (G - 1) / (2 G - 1)."""
    rng, groups = np.random.default_rng(0), np.repeat(np.arange(10), 6)
    points, label = rng.normal(size=(60, 3)), np.repeat([0, 1], sizes)
    shares = [styles.same_class_fractions(points, rng.permutation(label)[groups], groups).mean() for _ in range(200)]
    assert styles.chance_fraction(label[groups], groups) == pytest.approx(expected)
    assert np.mean(shares) == pytest.approx(expected, abs=4 * np.std(shares) / 200**0.5)


def permuted(points, classes, groups):
    return styles.permutation_test(lambda labels: auc(styles.probe_scores(points, labels, groups), labels == 1), classes, groups)


def test_permutation_test_finds_a_difference_between_people_but_none_between_their_slices(monkeypatch):
    monkeypatch.setattr(styles, "PERMUTATIONS", 39)
    rng, groups, classes = np.random.default_rng(0), np.repeat(np.arange(20), 5), np.repeat([0, 1], 50)
    people = rng.normal(size=(20, 4)).repeat(5, 0) + rng.normal(0, 0.1, size=(100, 4))
    p, critical = permuted(people, classes, groups)
    assert p > 0.05 and 0.6 < critical < 0.95
    assert permuted(people + 4 * classes[:, None], classes, groups)[0] == 1 / 40


def test_permutation_test_keeps_the_number_of_people_of_each_class(monkeypatch):
    """Two people of class 1, one of whom has slices of both: with another share of them, no probe could be fitted."""
    groups, classes = np.r_[np.repeat([0, 1], 5), 2:8], np.r_[np.ones(5), 1, np.zeros(10)].astype(int)
    given, measure = [], styles.probe_scores
    monkeypatch.setattr(styles, "PERMUTATIONS", 19)
    monkeypatch.setattr(
        styles, "probe_scores", lambda points, labels, *rest: given.append(labels) or measure(points, labels, *rest)
    )
    assert 0 < permuted(np.random.default_rng(0).normal(size=(16, 2)), classes, groups)[0] <= 1
    assert {(len(set(groups[labels == 1])), len(set(groups[labels == 0]))) for labels in given} == {(2, 7)}
    assert all((labels[5:10] == classes[5:10]).all() for labels in given) and len(set(map(bytes, given))) > 5


def test_permutation_test_rarely_separates_people_who_do_not_differ(monkeypatch):
    """In about 2.5% of such sets; an interval that does not fit the probe again separated 4 to 9% of 200."""

    def held_out_scores(points, classes, groups, seed=0):
        """A faster probe: along the line between the means of the classes, without a third of the groups."""
        scores = np.empty(len(points))
        for fold in range(3):
            held_out = groups % 3 == fold
            means = [points[~held_out & (classes == label)].mean(0) for label in (0, 1)]
            scores[held_out] = points[held_out] @ (means[1] - means[0])
        return scores

    monkeypatch.setattr(styles, "PERMUTATIONS", 79)
    monkeypatch.setattr(styles, "probe_scores", held_out_scores)
    groups, classes, found = np.repeat(np.arange(16), 4), np.repeat([0, 1], 32), []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        points = rng.normal(size=(16, 5)).repeat(4, 0) + rng.normal(0, 0.3, size=(64, 5))
        found.append(permuted(points, classes, groups)[0])
    assert np.mean(np.array(found) <= styles.SIGNIFICANT) <= 0.06 and np.mean(found) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("stratified, claimed", [(0.7, True), (0.55, False), (None, False)])
def test_real_verdict_claims_nothing_where_the_slice_index_explains_as_much(stratified, claimed):
    position = {
        "slice index alone": Interval(0.72, 0.62, 0.8),
        "position-stratified": stratified and Interval(stratified, stratified - 0.1, stratified + 0.1),
        "known": 100,
        "unknown": "",
    }
    text = styles.real_verdict(separation(0.5, 0.7, 0.1), position)
    assert ("separated more than by chance" in text) == claimed
    assert ("p = 0.005 by permutation of people, but no more than slice position may explain" in text) != claimed
    assert "Slice index alone: AUC 0.72 (0.62 to 0.80)." in text and "Position-stratified AUC of the probe" in text
    seen = styles.real_verdict(separation(0.5, 0.7, 0.1), position, seen=True)
    assert "something else than slice position" not in seen and ("no AD/NC difference beyond" in seen) == (stratified == 0.55)
    wide = separation(0.5, 0.7, 0.25)._replace(p=0.02)  # whose interval includes 0.5: the permutations decide
    assert ("more than by chance, AUC 0.70 (0.45 to 0.95)" in styles.real_verdict(wide, position)) == claimed
    unknown = {"slice index alone": None, "position-stratified": None, "known": 0, "unknown": "slice index unknown: no file name"}
    text = styles.real_verdict(separation(0.5, 0.7, 0.1), unknown)
    assert "separated more than by chance" in text and text.endswith("slice index unknown: no file name.")


def test_verdict_of_two_models_names_slice_position():
    assert "cut at different positions" in styles.verdict(separation(0.8, 0.9), separation(0.6, 0.7))
    assert "position" not in styles.verdict(separation(0.6, 0.7), separation(0.6, 0.7))


# ---------------------------------------------------------------------------------------------------------------------
# Maps and epochs


def test_embed_by_pca_keeps_the_two_widest_directions():
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(300, 2)) * (9, 4)
    points = np.c_[0.01 * rng.normal(size=(300, 3)), plane]
    projected = styles.embed(points, "pca")
    np.testing.assert_allclose(np.abs(np.corrcoef(projected.T, plane.T)[:2, 2:]), np.eye(2), atol=0.1)


@pytest.mark.parametrize("method", ["pca", "tsne", "umap"])
def test_embed_of_equal_vectors_is_one_point(method):
    assert (styles.embed(np.full((40, 5), 0.3), method) == np.zeros((40, 2))).all()


@pytest.mark.slow
def test_embed_by_umap_is_reproducible_and_keeps_clusters():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(size=(40, 5)), 30 + rng.normal(size=(40, 5))])
    embedded = styles.embed(points, "umap", seed=1)
    np.testing.assert_array_equal(embedded, styles.embed(points, "umap", seed=1))
    assert styles.same_class_fractions(embedded, np.repeat([0, 1], 40), k=5).mean() == 1


def test_split_like_undoes_concatenation():
    sets = {"AD": np.zeros((2, 3)), "NC": np.zeros((4, 3)), "real AD": np.zeros((1, 3))}
    assert {name: rows.tolist() for name, rows in styles.split_like(np.arange(7), sets).items()} == {
        "AD": [0, 1],
        "NC": [2, 3, 4, 5],
        "real AD": [6],
    }


def test_verdict_at_its_limits_and_of_unlike_pairs():
    def separation(value, low, high):
        return StyleSeparation(Interval(value, low, high), Interval(value, low, high))

    full = separation(0.99, 0.99, 1)
    assert styles.verdict(full, full).startswith("AD and NC are fully separated, but so are")
    touching = styles.verdict(separation(0.7, 0.6, 0.8), separation(0.5, 0.4, 0.6))
    assert touching.startswith("AD and NC were not shown") and touching.endswith("the two NC models.")
    unlike = styles.verdict(separation(0.7, 0.6, 0.8), separation(0.5, 0.4, 0.6), comparable=False)
    assert unlike.startswith(f"{touching} But one pair") and unlike.endswith("three seeds).")


def test_style_separation_is_of_pairs_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr(styles, "PERMUTATIONS", 1)
    a, b = np.random.default_rng(2).normal(size=(2, 40, 4))
    default, alone, people = (styles.style_separation(a, b, groups) for groups in (None, np.arange(80), np.repeat(range(8), 10)))
    assert default.auc != alone.auc and default.same_class.value == alone.same_class.value != people.same_class.value


def test_scores_of_another_probe_are_compared_over_people_as_they_are(monkeypatch):
    """Of five people in each class who differ by class: p against all 252 labellings, counted one by one."""
    monkeypatch.setattr(styles, "PERMUTATIONS", 1999)
    rng, people, classes = np.random.default_rng(4), np.repeat(np.arange(10), 3), np.repeat([0, 1], 15)
    scores = rng.normal(size=10).repeat(3) + 0.3 * rng.normal(size=30) + classes
    points = rng.normal(size=(30, 4))
    found = styles.style_separation(points[:15], points[15:], people, scores=scores)
    assert found.auc.value == pytest.approx(roc_auc_score(classes, scores))
    every = [roc_auc_score(np.isin(people, chosen), scores) for chosen in itertools.combinations(range(10), 5)]
    assert found.p == pytest.approx(np.mean(np.array(every) >= found.auc.value), abs=0.02)


@pytest.mark.slow
def test_slices_of_one_person_are_neither_neighbours_nor_teachers_of_each_other():
    """20 people of each class, who do not differ by class, with ten slices each that are nearly the same."""
    rng, classes, people = np.random.default_rng(0), np.repeat([0, 1], 200), np.repeat(np.arange(40), 10)
    draws = [np.repeat(rng.normal(size=(40, 8)), 10, axis=0) + 0.01 * rng.normal(size=(400, 8)) for _ in range(9)]

    def measured(groups):
        shares = [styles.same_class_fractions(points, classes, groups).mean() for points in draws]
        return np.array(shares), np.array([auc(styles.probe_scores(points, classes, groups), classes == 1) for points in draws])

    shares, aucs = measured(np.arange(400))
    assert shares.mean() > 0.75 and aucs.mean() > 0.65  # as if the classes were apart
    for found, chance in zip(measured(people), (19 / 39, 0.5)):
        assert found.mean() == pytest.approx(chance, abs=3 * found.std(ddof=1) / 3)


@pytest.mark.parametrize(
    "classes, groups",
    [("0011", "abcd"), ("0011", "abac"), ("0011", "abab"), ("000000111111", "aaabbbcdefgh"), ("111000", "aabbcc")],
)
def test_probe_scores_of_a_class_of_two_people_come_from_two_folds_and_are_0_where_the_other_holds_one_class(classes, groups):
    classes, groups = np.array(list(classes), int), np.unique(list(groups), return_inverse=True)[1]
    points = np.arange(len(classes), dtype=float)[:, None] + 4 * classes[:, None]
    for seed in range(20):
        found = styles.probe_scores(points, classes, groups, seed)
        for fitted, held_out in StratifiedGroupKFold(2, shuffle=True, random_state=seed).split(points, classes, groups):
            mean, deviation = points[fitted].mean(), points[fitted].std() or 1
            if len(set(classes[fitted])) == 1:
                expected = 0
            else:
                probe = LogisticRegression(C=0.01).fit((points[fitted] - mean) / deviation, classes[fitted])
                expected = probe.coef_ * (points[held_out] - mean) / deviation + probe.intercept_
            np.testing.assert_allclose(found[held_out], np.ravel(expected) * np.ones(len(held_out)), atol=1e-4)


def test_style_separation_is_undefined_without_two_people_of_both_classes(monkeypatch):
    monkeypatch.setattr(styles, "PERMUTATIONS", 1)
    a, b = np.random.default_rng(2).normal(size=(2, 6, 4))
    found = styles.style_separation(a, b, ["ann"] * 6 + ["bob", "eve"] * 3)
    assert np.isnan([*found.same_class, *found.auc]).all()
    assert "too few people" in styles.real_verdict(found)
    assert np.isfinite(styles.style_separation(a, b, ["ann", "dan"] * 3 + ["bob", "eve"] * 3).auc.value)
