"""The classifier on planted differences, which slices it is trained on, and how much of the AUC above chance it reaches."""

import math

import numpy as np
import pytest
import torch

from analysis import bootstrap as bootstrap_module
from analysis import classifier
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
    monkeypatch.setattr(classifier, "STEPS", 25)
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
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = logits(train_classifier(pixels, is_ad, 0), pixels)
    assert torch.equal(torch.rand(3), expected)
    np.testing.assert_array_equal(first, logits(train_classifier(pixels, is_ad, 0), pixels))
    assert not np.array_equal(first, logits(train_classifier(pixels, is_ad, 1), pixels))


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
    assert not train_classifier(pixels, is_ad, 0, mirror=mirror).training  # its batch normalisation uses the statistics of training
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


@pytest.mark.slow
def test_classify_learns_a_planted_difference(short_training):
    real = {"AD": discs(60, 8, 0), "NC": discs(60, 11, 1)}
    held_out = {"AD": discs(50, 8, 2), "NC": discs(50, 11, 3)}
    results = classify(real, real, held_out)
    aucs = {name: results[name]["auc"].value for name in ("train", "generated", "both")}
    assert min(aucs.values()) > 0.95
    assert results["ratio"] == pytest.approx((aucs["generated"] - 0.5) / (aucs["train"] - 0.5))


@pytest.mark.slow
def test_classify_is_at_chance_without_a_difference(short_training):
    alike = {"AD": discs(60, 9.5, 4), "NC": discs(60, 9.5, 5)}
    held_out = {"AD": discs(150, 9.5, 6), "NC": discs(150, 9.5, 7)}
    auc = classify(alike, alike, held_out)["train"]["auc"]
    assert abs(auc.value - 0.5) < 0.12  # 3.6 standard deviations of an AUC
    assert auc.low < 0.56 and auc.high > 0.44


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
    groups = {name: np.array([int(file.split("_")[0]) for file in names[name]]) for name in names}
    results = classify(train, train, held_out, groups, names={"train": train_names, "held-out": names})
    for kind in ("train", "generated", "both"):
        position = results[kind]["position"]
        alone, stratified = position["slice index alone"], position["position-stratified"]
        assert results[kind]["auc"].low > 0.6
        assert stratified.low > 0.6 if disease else stratified.low < 0.5 < stratified.high
        assert alone == (0.5, 0.5, 0.5) if disease else alone.low > 0.6
        assert beyond_position(results[kind]["auc"], position) == disease


def test_above_chance_is_zero_for_a_worthless_classifier_and_undefined_against_one():
    assert above_chance(0.5, 0.8) == 0 and above_chance(0.8, 0.8) == 1
    assert above_chance(0.65, 0.8) == pytest.approx(0.5)
    assert above_chance(0.4, 0.75) == pytest.approx(-0.4)
    assert above_chance(0.9, 0.5) is None and above_chance(0.9, 0.45) is None


def test_classify_uses_equal_numbers_of_real_and_generated_slices_and_scores_of_ad(short_training, monkeypatch):
    trainings = []

    def train(pixels, is_ad, seed, device, bar, mirror):
        trainings.append((pixels[is_ad].max(), len(pixels), int(is_ad.sum()), seed))

    monkeypatch.setattr(classifier, "train_classifier", train)
    monkeypatch.setattr(classifier, "logits", lambda network, pixels, device: -pixels[:, 0, 0].astype(float))

    def flat(count, value):
        return np.full((count, 32, 32), value, np.uint8)

    held_out = {"AD": np.concatenate([flat(2, 1), flat(2, 5)]), "NC": flat(4, 4)}  # half of AD scores above all NC
    groups = {"AD": np.array(list("aabb")), "NC": np.array(list("ccdd"))}
    results = classify({"AD": flat(10, 1), "NC": flat(9, 2)}, {"AD": flat(7, 3), "NC": flat(20, 4)}, held_out, groups)
    assert trainings == [(1, 16, 7, 0), (1, 16, 7, 1), (3, 16, 7, 0), (3, 16, 7, 1), (3, 32, 14, 0), (3, 32, 14, 1)]
    assert results["train"]["auc"] == (0.5, 0, 1)  # person a scores above all NC, person b below
    assert results["train"]["spread"] == 0
    assert results["ratio"] is None  # AUC of 0.5: no ratio
    over_slices = classify(held_out, held_out, held_out)["train"]["auc"]
    assert over_slices.value == 0.5 and 0 < over_slices.low + 1 - over_slices.high  # of four AD slices, not of two people


def test_summary_of_scores_by_seed_and_its_interval_over_groups_within_classes(monkeypatch):
    is_ad, groups, resampled = np.array([True, True, False, False]), np.array(list("abcd")), []
    scores = [np.array([4, 3, 2, 1]), np.array([4, 1, 3, 2])]  # AUC of 1 and of 1 / 2

    def bootstrap(statistic, *groups_and_strata):
        resampled.extend(groups_and_strata)
        return statistic(np.array([1.0, 0.0, 1.0, 1.0])), statistic(np.array([0.0, 1.0, 1.0, 1.0]))

    monkeypatch.setattr(classifier, "bootstrap", bootstrap)
    found = classifier.summary(scores, is_ad, groups)
    assert found["seeds"] == [1, 0.5] and found["spread"] == pytest.approx(math.sqrt(2 * 0.25**2))  # with N - 1
    assert found["auc"] == (1, 0.5)  # each the mean of both seeds: of 1 and 1, and of 1 and 0
    assert all(a is b for a, b in zip(resampled, (groups, is_ad), strict=True))


@pytest.mark.parametrize("kind", ["real", "generated", "held-out"])
def test_classify_refuses_a_missing_class(kind):
    both, ad_only = {"AD": discs(3, 8, 0), "NC": discs(3, 8, 0)}, {"AD": discs(3, 8, 0)}
    with pytest.raises(UserError, match=f"no {kind} slices of NC"):
        classify(*(ad_only if name == kind else both for name in ("real", "generated", "held-out")))
