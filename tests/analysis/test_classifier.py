"""The classifier on planted differences, and what it is trained on."""

import numpy as np
import pytest
import torch

from analysis import bootstrap as intervals
from analysis import classifier
from analysis.classifier import build_classifier, classify, logits, train_classifier
from utils import UserError


def discs(count, radius, seed):
    """uint8 [count, 32, 32]: noisy bright discs."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-16:16, -16:16]
    shown = np.hypot(y, x) < radius + rng.normal(0, 0.5, (count, 1, 1))
    return np.uint8(shown * rng.uniform(120, 220, (count, 1, 1)) + rng.uniform(0, 30, (count, 32, 32)))


# ---------------------------------------------------------------------------------------------------------------------
# The classifier


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(classifier, "STEPS", 25)
    monkeypatch.setattr(classifier, "WIDTH", 8)
    monkeypatch.setattr(classifier, "SEEDS", (0, 1))
    monkeypatch.setattr(intervals, "RESAMPLED", 100)


def test_it_learns_a_planted_difference_and_none_where_there_is_none(quick):
    real = {"AD": discs(60, 8, 0), "NC": discs(60, 11, 1)}
    unseen = {"AD": discs(50, 8, 2), "NC": discs(50, 11, 3)}
    alike = {"AD": discs(60, 9.5, 4), "NC": discs(60, 9.5, 5)}
    found = classify(real, real, unseen)
    assert min(found[name]["auc"].value for name in ("train", "generated", "both")) > 0.95
    assert found["ratio"] == pytest.approx(found["generated"]["auc"].value / found["train"]["auc"].value)
    assert found["resampled"] == "slices"
    unseen_alike = {"AD": discs(150, 9.5, 6), "NC": discs(150, 9.5, 7)}
    none = classify(alike, alike, unseen_alike)["train"]
    assert abs(none["auc"].value - 0.5) < 0.12  # 3.6 standard deviations of an AUC
    assert none["auc"].low < 0.56 and none["auc"].high > 0.44


def test_as_many_generated_slices_as_real_ones_and_scores_of_ad(quick, monkeypatch):
    learnt = []

    def train(pixels, is_ad, seed, device, bar):
        learnt.append((pixels[is_ad].max(), len(pixels), int(is_ad.sum()), seed))
        return None

    monkeypatch.setattr(classifier, "train_classifier", train)
    monkeypatch.setattr(classifier, "logits", lambda network, pixels, device: -pixels[:, 0, 0].astype(float))

    def flat(count, value):
        return np.full((count, 32, 32), value, np.uint8)

    unseen = {"AD": np.concatenate([flat(2, 1), flat(2, 5)]), "NC": flat(4, 4)}  # of AD, half score above all NC
    groups = {"AD": np.array(list("aabb")), "NC": np.array(list("ccdd"))}
    found = classify({"AD": flat(10, 1), "NC": flat(9, 2)}, {"AD": flat(7, 3), "NC": flat(20, 4)}, unseen, groups)
    assert learnt == [(1, 16, 7, 0), (1, 16, 7, 1), (3, 16, 7, 0), (3, 16, 7, 1), (3, 32, 14, 0), (3, 32, 14, 1)]
    assert found["train"]["auc"] == (0.5, 0, 1)  # a and b: none, or both, of AD are above
    assert found["train"]["spread"] == 0 and found["resampled"] == "subjects"
    assert classify(unseen, unseen, unseen, {**groups, "NC": None})["resampled"] == "slices"


def test_the_seed_alone_decides_and_other_random_numbers_go_on_as_before(quick):
    pixels, is_ad = np.concatenate([discs(12, 8, 0), discs(12, 11, 1)]), np.arange(24) < 12
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = logits(train_classifier(pixels, is_ad, 0), pixels)
    assert torch.equal(torch.rand(3), expected)
    np.testing.assert_array_equal(first, logits(train_classifier(pixels, is_ad, 0), pixels))
    assert not np.array_equal(first, logits(train_classifier(pixels, is_ad, 1), pixels))


def test_the_network_takes_any_side_and_gives_one_number_a_slice():
    network = build_classifier().eval()
    for side in (32, 64):
        assert network(torch.zeros(2, 1, side, side)).shape == (2, 1)
    assert logits(network, np.zeros((70, 32, 32), np.uint8)).shape == (70,)


@pytest.mark.parametrize("name", ["real", "generated", "unseen"])
def test_one_class_alone_is_refused(name):
    both, one = {"AD": discs(3, 8, 0), "NC": discs(3, 8, 0)}, {"AD": discs(3, 8, 0)}
    with pytest.raises(UserError, match=f"no {name} ones of NC"):
        classify(*(one if part == name else both for part in ("real", "generated", "unseen")))
