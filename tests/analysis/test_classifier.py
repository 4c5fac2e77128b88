"""The classifier on planted differences, which slices it is trained on, and how much of the AUC above chance it reaches."""

import math

import numpy as np
import pytest
import torch

from analysis import bootstrap as bootstrap_module
from analysis import classifier
from analysis.bootstrap import auc
from analysis.classifier import above_chance, build_classifier, classify, logits, train_classifier
from analysis.position import beyond_position
from utils import UserError


def discs(count, radius, seed):
    """uint8 [count, 32, 32]: noisy bright discs."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-16:16, -16:16]
    in_disc = np.hypot(y, x) < radius + rng.normal(0, 0.5, (count, 1, 1))
    return np.uint8(in_disc * rng.uniform(120, 220, (count, 1, 1)) + rng.uniform(0, 30, (count, 32, 32)))


@pytest.fixture
def short_training(monkeypatch):
    monkeypatch.setattr(classifier, "CHECK", 5)
    monkeypatch.setattr(classifier, "PATIENCE", 6)
    monkeypatch.setattr(classifier, "LIMIT", 60)
    monkeypatch.setattr(classifier, "AVERAGE", 0.8)
    monkeypatch.setattr(classifier, "WIDTH", 8)
    monkeypatch.setattr(classifier, "SEEDS", (0, 1))
    monkeypatch.setattr(bootstrap_module, "RESAMPLED", 100)


# ---------------------------------------------------------------------------------------------------------------------
# The classifier


@pytest.mark.slow
def test_build_classifier_takes_any_side_and_returns_one_logit_per_slice():
    network = build_classifier().eval()
    for side in (32, 64):
        assert network(torch.zeros(2, 1, side, side)).shape == (2, 1)
    assert logits(network, np.zeros((70, 32, 32), np.uint8)).shape == (70,)


@pytest.mark.slow
def test_train_classifier_depends_on_its_seed_alone_and_leaves_the_global_generator(short_training):
    pixels, is_ad = np.concatenate([discs(12, 8, 0), discs(12, 11, 1)]), np.arange(24) < 12

    def scores(seed):
        return logits(train_classifier(pixels, is_ad, (pixels, is_ad), seed)[0], pixels)

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = scores(0)
    assert torch.equal(torch.rand(3), expected)
    np.testing.assert_array_equal(first, scores(0))
    assert not np.array_equal(first, scores(1))


@pytest.mark.parametrize(
    "aucs, best, trained", [([0.5, 0.6, 0.7, 0.4, 0.7, 0.3, 0.9], 30, 60), ([0.1, 0.2, 0, 0.3, 0.4, 0.5], 60, 60)]
)
def test_train_classifier_stops_and_returns_the_weights_that_did_best(monkeypatch, aucs, best, trained):
    """Validation AUCs are planted: of a network that counts its batches. The second still improves when the limit ends it."""
    for name, value in (("CHECK", 10), ("PATIENCE", 3), ("LIMIT", 60), ("AVERAGE", 0.0)):
        monkeypatch.setattr(classifier, name, value)

    class Counter(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))
            self.register_buffer("batches", torch.zeros(1))

        def forward(self, images):
            self.batches += self.training
            return self.weight.expand(len(images), 1)

    networks, checks = [], []

    def build():
        networks.append(Counter())
        return networks[-1]

    monkeypatch.setattr(classifier, "build_classifier", build)
    monkeypatch.setattr(classifier, "auc", lambda scores, is_ad: checks.append(scores) or aucs[len(checks) - 1])
    images, is_ad = np.zeros((6, 32, 32), np.uint8), np.arange(6) < 3
    network, steps = train_classifier(images, is_ad, (images[:4], is_ad[:4]), 0)
    assert steps == best and networks[0].batches.item() == trained == 10 * len(checks)
    assert network.module.batches.item() == best and not network.training  # the state of that step, not of the last
    assert all(len(scores) == 4 for scores in checks)


@pytest.mark.slow
@pytest.mark.parametrize("mirror", [True, False])
def test_train_classifier_sees_both_classes_alike_moved_and_if_asked_mirrored(short_training, monkeypatch, mirror):
    """Slices with one bright pixel, whose place in every batch tells what was done to it."""
    seen = []

    class Recorder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, images):
            seen.extend(images.flatten(1).argmax(1).reshape(2, -1).tolist())  # AD, then NC
            return self.weight.expand(len(images), 1)

    monkeypatch.setattr(classifier, "build_classifier", Recorder)
    pixels, is_ad = np.zeros((9, 32, 32), np.uint8), np.arange(9) < 2
    pixels[:2, 6, 3] = pixels[2:, 20, 10] = 255
    monkeypatch.setattr(classifier, "logits", lambda *_: np.zeros(9))  # or the recorder would see validation slices
    assert not train_classifier(pixels, is_ad, (pixels, is_ad), 0, mirror=mirror)[0].training
    for of_class, (row, column) in ((seen[::2], (6, 3)), (seen[1::2], (20, 10))):
        assert all(len(of_batch) == classifier.BATCH // 2 for of_batch in of_class)
        rows, columns = np.divmod(np.array(of_class), 32)
        assert set(rows.ravel() - row) == {-2, -1, 0, 1, 2}
        mirrored = columns > 16 if column < 14 else columns > 17
        assert set(np.where(mirrored, columns - (31 - column), columns - column).ravel()) == {-2, -1, 0, 1, 2}
        expected = 0.5 if mirror else 0
        assert abs(mirrored.mean() - expected) <= 5 * expected / math.sqrt(mirrored.size)


# ---------------------------------------------------------------------------------------------------------------------
# Real and generated slices


def people(train, held_out, each=1):
    """The groups of two sets {class: [n, ...]}: `each` slices of a person."""
    sets = {"train": train, "held-out": held_out}
    return {
        kind: {name: np.array([f"{kind} {name} {i // each}" for i in range(len(pixels))]) for name, pixels in slices.items()}
        for kind, slices in sets.items()
    }


@pytest.mark.slow
def test_classify_learns_a_planted_difference_from_real_and_from_generated_slices(short_training):
    real, generated = ({"AD": discs(80, 8, seed), "NC": discs(80, 11, seed + 1)} for seed in (0, 10))
    held_out = {"AD": discs(50, 8, 2), "NC": discs(50, 11, 3)}
    results = classify(real, generated, held_out, people(real, held_out, 4))
    assert min(results[name]["auc"].low for name in ("train", "generated", "both")) > 0.9
    assert abs(results["difference"].value) < 0.05 and results["ratio"].value == pytest.approx(1, abs=0.1)
    assert results["validation"] == {"people": 8, "slices": 32}  # a fifth of 20 people of each class
    useless = classify(real, {"AD": discs(80, 9, 4), "NC": discs(80, 9, 5)}, held_out, people(real, held_out))
    assert useless["train"]["auc"].low > 0.9 and useless["difference"].high < 0 and useless["ratio"].high < 1


@pytest.mark.slow
def test_classify_is_at_chance_without_a_difference(short_training):
    alike = {"AD": discs(60, 9.5, 4), "NC": discs(60, 9.5, 5)}
    held_out = {"AD": discs(150, 9.5, 6), "NC": discs(150, 9.5, 7)}
    results = classify(alike, alike, held_out, people(alike, held_out))
    for kind in ("train", "generated", "both"):
        assert results[kind]["auc"].low < 0.5 < results[kind]["auc"].high
    assert results["difference"].low < 0 < results["difference"].high and results["ratio"] is None


@pytest.mark.slow
@pytest.mark.parametrize("disease", [False, True])
def test_classify_holds_the_slice_index(short_training, disease):
    """Discs that shrink along the scan, AD scans cut four slices further on: a difference of position; or AD with smaller ones."""
    start, smaller = (78, 1.5) if disease else (82, 0)

    def scans(first, people, smaller, seed):
        index = np.repeat(first + np.arange(8), people)
        pixels = [discs(people, 12.5 - 0.5 * (i - 78) - smaller, seed + i) for i in first + np.arange(8)]
        return np.concatenate(pixels), [f"{seed + i % people}_{at}.png" for i, at in enumerate(index)]

    def both(people, seed):
        sets = {"AD": scans(start, people, smaller, seed), "NC": scans(78, people, 0, seed + 500)}
        return [{name: part[i] for name, part in sets.items()} for i in (0, 1)]

    (train, train_names), (held_out, names) = both(12, 1000), both(10, 2000)
    names = {"train": train_names, "held-out": names}
    groups = {kind: {name: np.array([file.split("_")[0] for file in x]) for name, x in y.items()} for kind, y in names.items()}
    results = classify(train, train, held_out, groups, names=names)
    for kind in ("train", "generated", "both"):
        position = results[kind]["position"]
        alone, stratified = position["slice index alone"], position["position-stratified"]
        assert results[kind]["auc"].low > 0.6
        assert stratified.low > 0.6 if disease else stratified.low < 0.5 < stratified.high
        assert alone[:3] == (0.5, 0.5, 0.5) if disease else alone.low > 0.6
        assert beyond_position(position) == disease


def test_above_chance_is_zero_for_a_worthless_classifier_and_undefined_against_one():
    assert above_chance(0.5, 0.8) == 0 and above_chance(0.8, 0.8) == 1
    assert above_chance(0.65, 0.8) == pytest.approx(0.5)
    assert above_chance(0.4, 0.75) == pytest.approx(-0.4)
    assert np.isnan(above_chance(0.9, 0.5)) and np.isnan(above_chance(0.9, 0.45))


def test_classify_trains_on_as_many_real_as_generated_slices_of_people_who_are_not_validated(short_training, monkeypatch):
    trainings = []

    def train(pixels, is_ad, validation, seed, device, mirror):
        trainings.append((pixels[is_ad].max(), len(pixels), int(is_ad.sum()), seed))
        assert sorted(validation[0][:, 0, 0]) == [1, 1, 2] and [*validation[1]] == [True, True, False]
        return None, 50

    monkeypatch.setattr(classifier, "train_classifier", train)
    monkeypatch.setattr(classifier, "logits", lambda network, pixels, device: -pixels[:, 0, 0].astype(float))

    def flat(count, value):
        return np.full((count, 32, 32), value, np.uint8)

    held_out = {"AD": np.concatenate([flat(2, 1), flat(2, 5)]), "NC": flat(4, 4)}  # half of AD scores above all NC
    groups = {"train": {"AD": np.repeat(list("efghi"), 2), "NC": np.arange(9).astype(str)}}
    groups["train"]["NC"][2:] = "c"  # all but two slices are of a person of the test set, who does not validate
    groups["held-out"] = {"AD": np.array(list("aabb")), "NC": np.array(list("ccdd"))}
    results = classify({"AD": flat(10, 1), "NC": flat(9, 2)}, {"AD": flat(7, 3), "NC": flat(20, 4)}, held_out, groups)
    assert trainings == [(1, 15, 7, 0), (1, 15, 7, 1), (3, 15, 7, 0), (3, 15, 7, 1), (3, 30, 14, 0), (3, 30, 14, 1)]
    assert results["train"]["auc"][:3] == (0.5, 0, 1)  # person a scores above all NC, person b below
    assert results["train"]["spread"] == 0 and results["train"]["steps"] == [50, 50]
    assert results["difference"] is results["ratio"] is None  # two people a class are too few to compare
    assert results["validation"] == {"people": 2, "slices": 3}


def test_validation_people_are_of_both_classes_and_not_tested_where_others_are_left():
    train = {"AD": np.repeat(np.arange(20), 3).astype(str), "NC": np.repeat(np.arange(15, 50), 2).astype(str)}
    held_out = {"AD": np.arange(0, 12).astype(str), "NC": np.arange(30, 60).astype(str)}
    drawn = [classifier.validation_people(train, held_out, np.random.default_rng(seed)) for seed in range(20)]
    for chosen in drawn:
        assert not np.isin(chosen, np.concatenate(list(held_out.values()))).any()
        assert np.isin(chosen, train["AD"]).sum() >= 4 and np.isin(chosen, train["NC"]).sum() >= 7  # a fifth of 20 and of 35
    assert len({tuple(chosen) for chosen in drawn}) > 1
    both = {name: np.arange(10).astype(str) for name in train}
    assert len(classifier.validation_people(both, held_out, np.random.default_rng(0))) == 2  # of people with slices of both classes
    everyone = {"AD": np.array(list("ab")), "NC": np.array(list("cd"))}
    assert len(classifier.validation_people(everyone, everyone, np.random.default_rng(0))) == 2
    with pytest.raises(UserError, match="needs two people or scans of each class in train/.* AD has one"):
        classifier.validation_people({"AD": np.array(["a"]), "NC": np.array(["c", "d"])}, held_out, np.random.default_rng(0))


def test_summary_is_the_auc_of_the_mean_score_and_of_each_seed():
    is_ad, groups = np.array([True, True, False, False]), np.array(list("abcd"))
    scores = [np.array([4.0, 3, 2, 1]), np.array([4.0, 1, 3, 2])]  # AUC of 1 and of 1 / 2; the mean score has 3 / 4: 4, 2, 2.5, 1.5
    found = classifier.summary(scores, is_ad, groups)
    assert found["seeds"] == [1, 0.5] and found["spread"] == pytest.approx(math.sqrt(2 * 0.25**2))  # with N - 1
    assert found["auc"].value == 0.75


def test_intervals_of_difference_and_ratio_are_those_of_people_drawn_for_both_arms():
    """Against a bootstrap written out over people, and against intervals of arms that are drawn apart, which are wider."""
    rng = np.random.default_rng(0)
    is_ad, people = np.repeat([True, False], 120), np.repeat(np.arange(60), 4)
    of_people = rng.normal(1.2 * is_ad, 1) + rng.normal(size=60)[people]
    real, generated = of_people + rng.normal(0, 0.3, 240), of_people + rng.normal(0, 0.6, 240)
    found = classifier.compare_arms(generated, real, is_ad, people)
    samples = []
    for _ in range(1000):
        drawn = np.concatenate([rng.choice(30, 30), 30 + rng.choice(30, 30)])
        rows = np.concatenate([np.flatnonzero(people == person) for person in drawn])
        samples.append([auc(scores[rows], is_ad[rows]) for scores in (generated, real)])
    a, b = np.transpose(samples)
    assert found["difference"].value == pytest.approx(auc(generated, is_ad) - auc(real, is_ad))
    np.testing.assert_allclose(found["difference"][1:], np.quantile(a - b, (0.025, 0.975)), atol=0.01)
    np.testing.assert_allclose(found["ratio"][1:], np.quantile((a - 0.5) / (b - 0.5), (0.025, 0.975)), atol=0.05)
    apart = np.quantile(a - rng.permutation(b), (0.025, 0.975))
    assert found["difference"].high - found["difference"].low < 0.6 * (apart[1] - apart[0])


def test_few_people_are_not_compared():
    """Of one person a class every bootstrap sample is the same, and so any difference would be "shown"."""
    scores, is_ad = np.arange(8.0), np.arange(8) >= 4
    assert classifier.compare_arms(scores, scores, is_ad, is_ad.astype(int)) == {"difference": None, "ratio": None}


@pytest.mark.parametrize("kind", ["real", "generated", "held-out"])
def test_classify_refuses_a_missing_class(kind):
    both, ad_only = {"AD": discs(3, 8, 0), "NC": discs(3, 8, 0)}, {"AD": discs(3, 8, 0)}
    with pytest.raises(UserError, match=f"no {kind} slices of NC"):
        classify(*(ad_only if name == kind else both for name in ("real", "generated", "held-out")), people(both, both))
