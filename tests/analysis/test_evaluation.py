"""The evaluation's comparisons against planted gaps, and all of it on tiny models."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from analysis import bootstrap as intervals
from analysis import classifier
from analysis import evaluation as evaluate
from analysis.areas import AMOUNT
from dataset import Slices
from modules import Discriminator
from utils import UserError


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, value in {"STEPS": 4, "WIDTH": 4, "SEEDS": (0, 1)}.items():
        monkeypatch.setattr(classifier, name, value)
    monkeypatch.setattr(intervals, "RESAMPLED", 40)


def slices_of(count, side=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side), np.uint8)


# ---------------------------------------------------------------------------------------------------------------------
# The critic


class Planted(torch.nn.Module):
    """Scores a slice by its mean, and all of class 1 higher by 100."""

    embedding = object()

    def forward(self, images, labels):
        return images.mean((1, 2, 3)) + 100 * labels


def test_scores_come_back_by_class_whatever_the_critic_adds_to_one():
    slices = {"AD": slices_of(40), "NC": slices_of(56, seed=1)}
    scores = evaluate.score(Planted(), slices, "cpu")
    for label, one in enumerate(slices):
        expected = slices[one].reshape(len(slices[one]), -1).mean(1) / 127.5 - 1 + 100 * label
        np.testing.assert_allclose(np.sort(scores[one]), np.sort(expected), atol=2e-5)


def test_gaps_are_in_standard_deviations():
    rng = np.random.default_rng(0)
    scores = {"train": rng.normal(3, 1, 40000), "unseen": rng.normal(2, 1, 40000), "generated": rng.normal(-2, 7, 40000)}
    found = evaluate.critic_gaps(scores)
    assert found["train - unseen"] == pytest.approx(1, abs=0.03)
    assert found["unseen - generated"] == pytest.approx(4 / 5, abs=0.05)  # sqrt((1 + 49) / 2) = 5
    assert found["mean"]["train"] == pytest.approx(3, abs=0.02)
    same = dict.fromkeys(scores, np.ones(3))
    assert evaluate.critic_gaps(same)["train - unseen"] == 0


@pytest.mark.parametrize("run, classes", [("AD", 0), ("all-conditional", 2)])
def test_the_critic_is_that_of_the_checkpoint(models, run, classes):
    critic = evaluate.load_critic(os.path.join(models, run), "cpu")
    saved = torch.load(os.path.join(models, run, "checkpoint.pt"), weights_only=True)["critic"]
    assert isinstance(critic, Discriminator) and not critic.training
    assert all(torch.equal(value, saved[name]) for name, value in critic.state_dict().items())
    assert (critic.embedding is not None) == bool(classes)


# ---------------------------------------------------------------------------------------------------------------------
# Areas


def test_subjects_are_read_from_names_where_all_have_them(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("NC/218391_78.png", "NC/218391_79.png", "NC/5_1.png", "AD/deep/7_80.png"):
        os.makedirs(os.path.dirname(tmp_path / name), exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / name)
    (tmp_path / "NC" / "300_1.png").write_text("damaged")
    assert evaluate.subjects_of(tmp_path, "NC", Slices(tmp_path, "NC", 32)).tolist() == ["218391", "218391", "5"]
    assert evaluate.subjects_of(tmp_path, "AD", Slices(tmp_path, "AD", 32)).tolist() == ["7"]
    os.rename(tmp_path / "NC" / "5_1.png", tmp_path / "NC" / "N_5.png")
    assert evaluate.subjects_of(tmp_path, "NC", Slices(tmp_path, "NC", 32)) is None


def test_a_contrast_is_a_difference_of_means_with_subjects_of_either_side_apart():
    a, b = np.array([1.0, 3.0, 5.0]), np.array([2.0, 2.0])
    assert evaluate.contrast(a, b).value == 1
    assert evaluate.contrast(a, b, relative=True).value == 0.5
    one = np.array(["s", "s", "s"])
    assert evaluate.contrast(a, b, one, one[:2]) == (1, 1, 1)  # one subject each: nothing to draw
    found = evaluate.contrast(a, b)
    assert found.low < 1 < found.high


def planted_areas():
    rng = np.random.default_rng(3)
    train = {one: {tissue: rng.normal(mean, 10, 400) for tissue in AMOUNT} for one, mean in (("AD", 150), ("NC", 100))}
    unseen = {one: {tissue: values[::4] for tissue, values in of.items()} for one, of in train.items()}
    generated = {one: {tissue: values * (1.2 if one == "AD" else 1) for tissue, values in of.items()} for one, of in train.items()}
    return {"train": train, "unseen": unseen, "generated": generated}


def test_areas_are_compared_class_by_class_and_between_classes():
    areas = planted_areas()
    groups = {"train": {"AD": None, "NC": np.repeat(np.arange(40).astype(str), 10)}, "unseen": {"AD": None, "NC": None}}
    found = evaluate.compare_areas(areas, groups, {one: dict.fromkeys(AMOUNT, 7) for one in ("AD", "NC")})
    ad, nc = found["AD"]["grey"], found["NC"]["grey"]
    assert ad["generated / train - 1"].value == pytest.approx(0.2)
    assert ad["wasserstein"] == pytest.approx(0.2 * ad["train"])  # all values moved up: the difference of the means
    assert nc["generated / train - 1"].value == nc["wasserstein"] == 0
    assert nc["generated / train - 1"].low < 0 < nc["generated / train - 1"].high
    ordered = np.sort(areas["train"]["NC"]["grey"]), np.sort(np.repeat(areas["unseen"]["NC"]["grey"], 4))
    assert nc["floor"] == pytest.approx(np.abs(ordered[0] - ordered[1]).mean())  # W1 in one dimension
    assert ad["truth"] == 7
    between = found["AD - NC"]["ventricle"]
    assert between["train"].value == pytest.approx(50, abs=2)
    assert between["generated"].value == pytest.approx(80, abs=2)
    assert between["train"].high < between["generated"].low


def test_pictures_of_areas_are_drawn(tmp_path):
    areas = planted_areas()
    for classes in (("AD", "NC"), ("AD",)):
        some = {kind: {one: of[one] for one in classes} for kind, of in areas.items()}
        path = evaluate.plot_areas(some, evaluate.compare_areas(some, {}), str(tmp_path / "areas.png"))
        with Image.open(path) as picture:
            assert picture.width > 500


def test_true_means_are_those_of_the_training_slices(tmp_path):
    header = "path,split,class,ventricle_mm2,grey_mm2,white_mm2\n"
    (tmp_path / "subjects.csv").write_text(header + "a,train,AD,10,1,1\nb,train,AD,20,1,1\nc,test,AD,90,1,1\nd,train,NC,5,1,1\n")
    assert evaluate.true_means(str(tmp_path / "train"), ["AD", "NC"])["AD"]["ventricle"] == 15
    assert evaluate.true_means(str(tmp_path / "train"), ["all"])["all"]["ventricle"] == pytest.approx(35 / 3)
    assert evaluate.true_means(str(tmp_path / "a" / "train"), ["AD"]) is None
    lines = (tmp_path / "subjects.csv").read_text().splitlines(keepends=True)
    (tmp_path / "subjects.csv").write_text("".join(line for line in lines if "NC" not in line))
    assert evaluate.true_means(str(tmp_path / "train"), ["AD", "NC"]) is None  # of one class it tells nothing


# ---------------------------------------------------------------------------------------------------------------------
# All of it


def check(results, written, folder):
    for path in written:
        assert os.path.dirname(path) == str(folder)
        if path.endswith(".png"):
            with Image.open(path) as picture:
                picture.verify()
    with open(written[-1]) as file:
        assert json.load(file).keys() == results.keys()
    assert sorted(os.listdir(folder)) == sorted(map(os.path.basename, written))


def test_a_conditional_model_from_end_to_end(models, slices_dir, tmp_path):
    generated = {"AD": slices_of(12), "NC": slices_of(14, seed=1)}
    folder = os.path.join(models, "all-conditional")
    test_dir = os.path.join(os.path.dirname(slices_dir), "test")
    results, written = evaluate.evaluate({folder: ("AD", "NC")}, generated, test_dir, str(tmp_path), "both")
    check(results, written, tmp_path)
    assert set(results) == {"critic", "classifier", "metrics"}  # 32x32 is too small for areas
    assert results["classifier"]["resampled"] == "subjects"
    for part in ("critic", "metrics"):
        assert set(results[part]) == {"AD", "NC"}
    assert {"kid_x1000", "recall", "memorised"} <= set(results["metrics"]["AD"])


def test_a_model_of_one_class_is_asked_all_but_the_classifier(models, slices_dir, tmp_path):
    results, written = evaluate.evaluate(
        {os.path.join(models, "AD"): ("AD",)}, {"AD": slices_of(8)}, slices_dir, str(tmp_path), "one"
    )
    check(results, written, tmp_path)
    assert set(results) == {"critic", "metrics"} and set(results["critic"]) == {"AD"}


def test_what_is_missing_is_said_before_the_work(models, slices_dir, tmp_path):
    fake = {"AD": slices_of(8)}
    alone = tmp_path / "alone"
    shutil.copytree(slices_dir, alone / "train")
    with pytest.raises(UserError, match="needs train/ and test/"):
        evaluate.evaluate({os.path.join(models, "AD"): ("AD",)}, fake, str(alone), str(tmp_path / "out"), "x")
    run = tmp_path / "AD"
    shutil.copytree(os.path.join(models, "AD"), run)
    os.unlink(run / "checkpoint.pt")
    with pytest.raises(UserError, match="checkpoint.pt: no critic"):
        evaluate.evaluate({str(run): ("AD",)}, fake, slices_dir, str(tmp_path / "out"), "x")
    assert not (tmp_path / "out").exists()
