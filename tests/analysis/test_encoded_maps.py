"""Maps of encoded slices: sets whose truth is known, the null included, and what the map says of them."""

import numpy as np
import pytest
from scipy.stats import norm as normal

from analysis import bootstrap as bootstrap_module
from analysis import encoded_maps, style_space
from analysis.bootstrap import Interval, auc
from analysis.encoded_maps import (
    EncodedMap,
    RealSlices,
    class_scores,
    encoded_conclusions,
    encoded_map,
    mixing,
    read_real_slices,
    trained_people,
)
from analysis.encoder import Encoded
from analysis.style_maps import MapSettings
from analysis.style_space import StyleSeparation, build_probe
from data.subjects import Scan, identify

PCA = MapSettings("pca", 15, 0.1, 30, 0)


def people(count, slices):
    return np.repeat([f"people {i}" for i in range(count)], slices)


@pytest.mark.parametrize("shift, low, high", [(0.0, 0.3, 0.65), (1.5, 0.9, 1.0)])
def test_mixing_is_half_for_one_cloud_and_one_for_two(monkeypatch, shift, low, high):
    monkeypatch.setattr(bootstrap_module, "RESAMPLED", 100)
    rng = np.random.default_rng(0)
    real = rng.normal(size=(30, 8)).repeat(5, 0) * 0.8 + 0.6 * rng.normal(size=(150, 8)) + shift
    found = mixing(real, rng.normal(size=(300, 8)), people(30, 5))
    assert low < found.value < high and found.low < found.value < found.high


def test_mixing_does_not_reward_knowing_the_people(monkeypatch):
    """Slices of one person lie close together, so a probe that had seen the person would find the others."""
    monkeypatch.setattr(bootstrap_module, "RESAMPLED", 20)
    values = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        real = rng.normal(size=(12, 20)).repeat(10, 0) + 0.01 * rng.normal(size=(120, 20))
        values.append(mixing(real, rng.normal(size=(120, 20)), people(12, 10)).value)
    assert abs(np.mean(values) - 0.5) < 0.12


def test_real_slices_are_all_read_with_their_classes(slices_dir):
    table = {str(100 + i): Scan(str(100 + i), f"p{i}", None, "F", 70.0 + i) for i in range(11)}
    real = read_real_slices(slices_dir, 64, table, chunk=3)
    assert real.pixels.shape == (20, 64, 64) and list(real.classes) == [0] * 9 + [1] * 11
    assert real.names[:2] == ["AD/100_0.png", "AD/101_0.png"] and real.names[9] == "NC/100_0.png"
    assert real.groups[0] == real.groups[9] == "people p0"
    assert real.pixels[:9].mean() < real.pixels[9:].mean()  # NC has the larger discs


class Plain:
    """Stands for an encoder: the first component is the mean of the pixels, the others are single pixels."""

    side = 32

    def encode(self, pixels):
        means, some = pixels.mean((1, 2))[:, None] / 20, pixels[:, 16, [3, 5, 7]] / 255
        return Encoded(np.c_[means, some].astype(np.float32), np.ones((len(pixels), 4)))

    def style_vectors(self, points):
        import torch

        return 2 * torch.from_numpy(points)

    def outside(self, model, pixels, encoded, label):
        return np.linspace(0, 2, len(pixels))


@pytest.fixture
def plain(monkeypatch):
    monkeypatch.setattr(bootstrap_module, "RESAMPLED", 40)
    monkeypatch.setattr(style_space, "PERMUTATIONS", 39)
    monkeypatch.setattr(encoded_maps, "find_encoder", lambda *_: Plain())


def test_generated_and_real_slices_are_encoded_without_their_class(conditional, slices_dir, plain):
    real = read_real_slices(slices_dir, 32)
    encoded = encoded_map(conditional, real, PCA)
    assert {name: len(one.points) for name, one in encoded.sets.items()} == {"AD": 30, "NC": 30, "real AD": 9, "real NC": 11}
    for one in encoded.sets.values():
        np.testing.assert_allclose(one.w, 2 * Plain().encode(one.pixels).points)
    np.testing.assert_array_equal(encoded.sets["real NC"].pixels, real.pixels[real.classes == 1])
    drawn, real_points = ([encoded.sets[f"{kind}{name}"].w for name in ("AD", "NC")] for kind in ("", "real "))
    probe = build_probe().fit(np.concatenate(drawn), np.repeat([0, 1], 30))
    scores = probe.decision_function(np.concatenate(real_points))
    assert encoded.separation.auc.value == pytest.approx(auc(scores, np.repeat([False, True], [9, 11])))
    alone = class_scores(conditional._replace(labels=[None]), {}, Plain().encode(real.pixels).points, real)
    assert auc(alone, real.classes == 0) > 0.8  # larger discs
    assert encoded.refused.sum() == 10 and encoded.title == "Real slices, encoded by all-conditional"
    assert np.isnan(encoded.values["age"]).all() and len(encoded.values["person"]) == 20


def encodings(count, seed):
    """(classes [8 count], encodings [8 count, 64], people) of `count` people of each class, who differ in one component of 64."""
    rng = np.random.default_rng(seed)
    own = rng.normal(size=(2 * count, 64))
    own[:count, 0] += 1.5
    return np.repeat([0, 1], 4 * count), own.repeat(4, 0) + 0.3 * rng.normal(size=(8 * count, 64)), np.arange(2 * count).repeat(4)


@pytest.mark.parametrize("differ", [True, False])
def test_the_probe_of_a_conditional_model_needs_none_of_the_people(conditional, differ):
    """Six people of each class show a difference that a cross-validation over them misses, and none where there is none."""
    drawn = encodings(500, 100)[1] if differ else np.random.default_rng(0).normal(size=(4000, 64))
    points, found, alone = {"AD": drawn[:2000], "NC": drawn[2000:]}, [], []
    for seed in range(12):
        classes, encoded, groups = encodings(6, seed)
        real = RealSlices(None, classes, None, [Scan(None, str(group), None, None, None) for group in groups])
        assert len(np.unique(real.groups)) == 12
        for model, aucs in ((conditional, found), (conditional._replace(labels=[None]), alone)):
            aucs.append(auc(class_scores(model, points, encoded, real), classes == 0))
    truth = normal.cdf(1.5 / 1.09**0.5 / 2**0.5) if differ else 0.5
    assert np.mean(found) == pytest.approx(truth, abs=0.1)
    if differ:
        assert np.mean(found) > np.mean(alone) + 0.1


def conclusions(mixing_value, separation, trained=None):
    names = ["AD/7_1.png", "NC/8_1.png"]
    real = RealSlices(np.zeros((2, 8, 8), np.uint8), np.array([0, 1]), names, identify(names))
    model = type("Named", (), {"name": "both", "is_conditional": False})
    position = {"slice index alone": None, "position-stratified": None, "known": 0, "unknown": ""}
    interval = Interval(mixing_value, mixing_value - 0.05, mixing_value + 0.05)
    measured = np.array([True, False]), interval, separation, position, None, trained
    return encoded_conclusions(EncodedMap(model, {}, real, {}, *measured))


def test_conclusions_warn_of_two_clouds_and_name_the_refused():
    separation = StyleSeparation(Interval(0.5, 0.4, 0.6), Interval(0.5, 0.4, 0.6), p=0.5)
    one, two = conclusions(0.55, separation), conclusions(0.9, separation)
    assert (
        "AUC of 0.55 (0.50 to 0.60); 0.5 is best" in one[0]
        and "WARNING" not in one[0]
        and "WARNING, they are not one cloud" in two[0]
    )
    assert one[1].startswith("50% of the real slices are unlike")
    assert (
        "no separation was shown, AUC 0.50 (0.40 to 0.60) of a linear probe cross-validated over these people" in one[2]
        and "resample scans" in one[2]
    )


def test_maps_of_people_that_the_model_was_trained_on_warn_by_themselves(conditional, slices_dir, plain):
    """The fixture's model was trained on train/ and not on test/."""
    test_dir = slices_dir.replace("train", "test")
    for folder, expected in ((slices_dir, 1.0), (test_dir, 0.0)):
        encoded = encoded_map(conditional, read_real_slices(folder, 32), PCA)
        assert encoded.trained.mean() == expected
        text = encoded_conclusions(encoded)
        assert text[0].startswith("WARNING: the model was trained on 11 of these 11 scans") == bool(expected)
        assert len(text) == 4 and text[3].endswith("is not known: no table names them (--subjects).") != bool(expected)


def test_measures_leave_out_people_that_the_model_was_trained_on(conditional, slices_dir, plain, monkeypatch):
    """A map of training and test people has the measures of one of test people alone, and shows all."""
    train, test = (read_real_slices(folder, 32) for folder in (slices_dir, slices_dir.replace("train", "test")))
    order = np.argsort(np.r_[test.classes, train.classes], kind="stable")
    seen = np.repeat([False, True], [len(test.names), len(train.names)])[order]
    pixels, classes = (np.concatenate(pair)[order] for pair in zip(test[:2], train[:2]))
    names, scans = ([(ours + theirs)[i] for i in order] for ours, theirs in zip(test[2:4], train[2:4]))
    both = RealSlices(pixels, classes, names, scans)
    monkeypatch.setattr(encoded_maps, "trained_people", lambda *_: seen)
    found = encoded_map(conditional, both, PCA)
    monkeypatch.setattr(encoded_maps, "trained_people", lambda *_: np.zeros(len(test.names), bool))
    alone = encoded_map(conditional, test, PCA)
    assert found.separation == alone.separation and found.mixing == alone.mixing and found.position == alone.position
    assert len(found.sets["real AD"].points) == (both.classes == 0).sum() and not found.seen


def test_conclusions_say_where_training_people_are_not_recorded(conditional, slices_dir):
    separation = StyleSeparation(Interval(0.5, 0.4, 0.6), Interval(0.5, 0.4, 0.6), p=0.5)
    assert trained_people(conditional._replace(fingerprints=None), (), ()) is None
    assert conclusions(0.55, separation)[3].startswith("Whether the model was trained on these people is not known")
    warning = conclusions(0.55, separation, np.array([True, False]))[0]
    assert "1 of these 2 scans" in warning and warning.endswith("The measures leave these people out.")
    neither, named = np.array([False]), {"7": Scan("7", "ann")}
    assert [encoded_maps.trained_text(neither, identify(["AD/7_1.png"], table))[-30:] for table in (None, named)] == [
        "table names them (--subjects).",
        "",
    ]
