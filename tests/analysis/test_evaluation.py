"""The evaluation's comparisons on planted gaps, what its text and tables say, and all of it on tiny models."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from analysis import areas as tissue_areas
from analysis import classifier, evaluation
from analysis.bootstrap import Interval
from analysis.models import share
from data.subjects import read_subjects
from data.view import View
from dataset import Slices
from report import evaluation_report
from utils import UserError

pytestmark = pytest.mark.usefixtures("quick")
TISSUES = "ventricle", "callosum", "grey", "white"


def random_slices(count, side=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side), np.uint8)


# ---------------------------------------------------------------------------------------------------------------------
# The critic


class Planted(torch.nn.Module):
    """Scores a slice by its mean, and all of class 1 higher by 100."""

    embedding = object()

    def forward(self, images, labels):
        return images.mean((1, 2, 3)) + 100 * labels


def test_scores_by_class_are_those_of_each_class():
    slices = {"AD": random_slices(40), "NC": random_slices(56, seed=1)}
    scores = evaluation.scores_by_class(Planted(), slices, "cpu")
    for label, (name, pixels) in enumerate(slices.items()):
        expected = pixels.reshape(len(pixels), -1).mean(1) / 127.5 - 1 + 100 * label
        np.testing.assert_allclose(np.sort(scores[name]), np.sort(expected), atol=2e-5)


def test_critic_scores_batches_that_mix_the_classes(monkeypatch):
    """As in training, where a slice's score depends on the others of its batch."""
    batches = []

    def forward(self, images, labels):
        batches.append(labels.double().mean().item())
        return images.mean((1, 2, 3))

    monkeypatch.setattr(Planted, "forward", forward)
    evaluation.scores_by_class(Planted(), {"AD": random_slices(80), "NC": random_slices(80, seed=1)}, "cpu")
    assert len(batches) == 10 and all(0.1 < share < 0.9 for share in batches)  # half of 16, give or take an eighth


def test_critic_gaps_are_in_standard_deviations():
    rng = np.random.default_rng(0)
    scores = {"train": rng.normal(3, 1, 40000), "unseen": rng.normal(2, 1, 40000), "generated": rng.normal(-2, 7, 40000)}
    gaps = evaluation.critic_gaps(scores)
    assert gaps["train - unseen"] == pytest.approx(1, abs=0.03)
    assert gaps["unseen - generated"] == pytest.approx(4 / 5, abs=0.05)  # sqrt((1 + 49) / 2) = 5
    assert gaps["mean"]["train"] == pytest.approx(3, abs=0.02)
    assert gaps["deviation"]["generated"] == pytest.approx(7, abs=0.1)
    equal = dict.fromkeys(scores, np.ones(3))
    assert evaluation.critic_gaps(equal)["train - unseen"] == 0


# ---------------------------------------------------------------------------------------------------------------------
# The classifier


def classifier_results(generated, train):
    aucs = {"train": train, "generated": generated, "both": train}
    results = {
        kind: {"auc": Interval(auc, auc - 0.05, auc + 0.04), "seeds": [auc - 0.01, auc, auc + 0.01], "spread": 0.01}
        for kind, auc in aucs.items()
    }
    return {**results, "ratio": classifier.above_chance(generated, train)}


def test_classifier_text_tells_the_share_of_the_auc_above_chance():
    assert "reaches 50% of the above-chance AUC" in evaluation_report.classifier_text(classifier_results(0.65, 0.8))
    assert "reaches 0% of the above-chance AUC" in evaluation_report.classifier_text(classifier_results(0.5, 0.8))
    assert "no better than chance (AUC 0.49)" in evaluation_report.classifier_text(classifier_results(0.8, 0.49))


def with_position(stratified, alone, known=100, unknown=""):
    results = classifier_results(0.65, 0.8)
    for kind in evaluation_report.TRAINED_ON:
        results[kind]["position"] = {
            "slice index alone": alone and Interval(alone, alone - 0.05, alone + 0.04),
            "position-stratified": stratified and Interval(stratified, stratified - 0.05, stratified + 0.04),
            "known": known,
            "unknown": unknown,
        }
    return results


def test_classifier_text_claims_nothing_where_the_slice_index_explains_as_much(tmp_path):
    text = evaluation_report.classifier_text(with_position(0.52, 0.8))
    assert "not shown to see more than slice position, so this share says nothing about AD and NC" in text
    assert "Slice index alone: AUC 0.80 (0.75 to 0.84)." in text and "0.52 (0.47 to 0.56), so no AD/NC difference beyond" in text
    text = evaluation_report.classifier_text(with_position(0.7, 0.6))
    assert "says nothing about AD and NC" not in text and "something else than slice position tells AD from NC" in text
    unknown = with_position(None, None, 0, "slice index unknown: no file name gives one (a.png)")
    text = evaluation_report.classifier_text(unknown)
    assert text.endswith("slice index unknown: no file name gives one (a.png).") and "Position-stratified" not in text
    (table,) = evaluation_report.classifier_tables(unknown)
    assert len(table.rows) == 3 and len(table.columns) == 3
    (table,) = evaluation_report.classifier_tables(with_position(0.7, 0.6))
    assert table.columns[-1] == "position-stratified AUC"
    assert [row[-1] and row[-1].value for row in table.rows] == [0.7, 0.7, 0.7, None]
    assert (table.rows[-1][0], table.rows[-1][1].value) == ("nothing but the slice index", 0.6)
    for i, results in enumerate((unknown, with_position(0.7, 0.6), with_position(None, 0.6))):
        assert os.path.getsize(evaluation_report.plot_classifier(results, "people", str(tmp_path / f"{i}.png"))) > 5000


def test_areas_name_slice_position_where_it_tells_the_classes_apart():
    (sentence,) = evaluation_report.area_position_text(with_position(0.7, 0.6))
    assert "Slice index alone tells AD from NC (AUC 0.60 (0.55 to 0.64))" in sentence
    for results in (with_position(0.7, 0.54), with_position(None, None, 0, "unknown"), classifier_results(0.6, 0.7)):
        assert evaluation_report.area_position_text(results) == []


# ---------------------------------------------------------------------------------------------------------------------
# Areas


def test_mean_difference_resamples_the_groups_of_each_side():
    a, b = np.array([1.0, 3.0, 5.0]), np.array([2.0, 2.0])
    assert evaluation.mean_difference(a, b).value == 1
    assert evaluation.mean_difference(a, b, relative=True).value == 0.5
    groups = np.array(["s", "s", "s"])
    assert evaluation.mean_difference(a, b, groups, groups[:2]) == (1, 1, 1)  # one person each: nothing to resample
    by_value = evaluation.mean_difference(a, b)
    assert by_value.low < 1 < by_value.high


def planted_areas():
    rng = np.random.default_rng(3)
    train = {name: {tissue: rng.normal(mean, 10, 400) for tissue in TISSUES} for name, mean in (("AD", 150), ("NC", 100))}
    unseen = {name: {tissue: area[::4] for tissue, area in tissues.items()} for name, tissues in train.items()}
    generated = {name: {tissue: area * (1.2 if name == "AD" else 1) for tissue, area in train[name].items()} for name in train}
    return {"train": train, "unseen": unseen, "generated": generated}


def test_compare_areas_within_classes_and_between_them():
    areas = planted_areas()
    groups = {"train": {"AD": None, "NC": np.repeat(np.arange(40).astype(str), 10)}, "unseen": {"AD": None, "NC": None}}
    comparison = evaluation.compare_areas(areas, groups, {name: dict.fromkeys(TISSUES, 7) for name in ("AD", "NC")})
    ad, nc = comparison["AD"]["grey"], comparison["NC"]["grey"]
    assert ad["generated / train - 1"].value == pytest.approx(0.2)
    assert ad["wasserstein"] == pytest.approx(0.2 * ad["train"])  # all areas grew: the difference of the means
    assert nc["generated / train - 1"].value == nc["wasserstein"] == 0
    assert nc["generated / train - 1"].low < 0 < nc["generated / train - 1"].high
    train, unseen = np.sort(areas["train"]["NC"]["grey"]), np.sort(np.repeat(areas["unseen"]["NC"]["grey"], 4))
    assert nc["floor"] == pytest.approx(np.abs(train - unseen).mean())  # the Wasserstein distance in one dimension
    assert ad["truth"] == 7
    between = comparison["AD - NC"]["ventricle"]
    assert between["train"].value == pytest.approx(50, abs=2)
    assert between["generated"].value == pytest.approx(80, abs=2)
    assert between["train"].high < between["generated"].low


@pytest.mark.slow
@pytest.mark.parametrize("classes", [("AD", "NC"), ("AD",)])
def test_area_tables_and_plot_have_a_row_for_each_class_and_tissue(tmp_path, classes):
    areas = {kind: {name: of_kind[name] for name in classes} for kind, of_kind in planted_areas().items()}
    comparison = evaluation.compare_areas(areas, {})
    tables = evaluation_report.area_tables(comparison)
    assert [row[:2] for row in tables[0].rows] == [[name, tissue] for name in classes for tissue in TISSUES]
    assert all(len(row) == len(table.columns) for table in tables for row in table.rows)
    assert len(tables) == len(classes)  # the second: AD less NC
    with Image.open(evaluation_report.plot_areas(areas, comparison, str(tmp_path / "areas.png"))) as image:
        assert image.width > 500


# ---------------------------------------------------------------------------------------------------------------------
# All of it


def check_files(results, written, folder):
    for path in written:
        assert os.path.dirname(path) == str(folder)
        if path.endswith(".png"):
            with Image.open(path) as image:
                image.verify()
    with open(written[-1]) as file:
        assert json.load(file).keys() == results.keys()
    assert sorted(os.listdir(folder)) == sorted(map(os.path.basename, written))


@pytest.mark.slow
def test_evaluate_models_on_a_conditional_model(models, slices_dir, tmp_path):
    generated = {"AD": random_slices(12), "NC": random_slices(14, seed=1)}
    folder = os.path.join(models, "all-conditional")
    test_dir = os.path.join(os.path.dirname(slices_dir), "test")
    results, written = evaluation.evaluate_models({folder: ("AD", "NC")}, generated, test_dir, str(tmp_path), "a_{b}")
    check_files(results, written, tmp_path)
    assert set(results) == {"critic", "classifier", "metrics", "resampled"}  # 32x32 is too small for areas
    assert "resample scans" in results["resampled"][0] and "7 of 7 scans of the test slices" in results["resampled"][1]
    for part in ("critic", "metrics"):
        assert set(results[part]) == {"AD", "NC"}
    assert {"kid_x1000", "recall", "memorised"} <= set(results["metrics"]["AD"])
    shown = [
        [os.path.basename(figure.path) for figure in section.figures] for section in evaluation.sections(results, written, "a_{b}")
    ]
    metrics = [f"a_{{b}}_{figure}_{name}.png" for figure in ("metrics", "nearest") for name in ("AD", "NC")]
    assert shown == [["a_{b}_critic.png"], ["a_{b}_classifier.png"], metrics]


@pytest.mark.slow
def test_evaluate_models_on_a_one_class_model_leaves_out_the_classifier(models, slices_dir, tmp_path):
    folder = os.path.join(models, "AD")
    results, written = evaluation.evaluate_models({folder: ("AD",)}, {"AD": random_slices(8)}, slices_dir, str(tmp_path), "AD")
    check_files(results, written, tmp_path)
    assert set(results) == {"critic", "metrics", "resampled"} and set(results["critic"]) == {"AD"}


@pytest.mark.slow
def test_evaluate_models_leaves_out_the_critic_of_a_generator_alone(models, slices_dir, tmp_path):
    share(os.path.join(models, "AD"), str(tmp_path / "AD"))
    runs, folder = {str(tmp_path / "AD"): ("AD",)}, tmp_path / "out"
    results, written = evaluation.evaluate_models(runs, {"AD": random_slices(8)}, slices_dir, str(folder), "AD")
    check_files(results, written, folder)
    assert results["critic"] == {} and set(results["metrics"]) == {"AD"}
    of_critic, of_metrics = evaluation.sections(results, written, "AD")
    assert of_critic.text == ["Not measured for AD: no checkpoint.pt with a critic."]
    assert not of_critic.tables and not of_critic.figures and of_metrics.tables


def test_sections_name_the_class_whose_critic_is_missing():
    gaps = evaluation.critic_gaps({kind: np.arange(3.0) for kind in evaluation_report.KINDS})
    results = {"critic": {"AD": gaps}, "metrics": {"AD": {}, "NC": {}}, "resampled": []}
    of_critic = next(evaluation.sections(results, [], "AD_and_NC"))
    assert of_critic.text == ["Not measured for NC: no checkpoint.pt with a critic."]
    assert [row[0] for row in of_critic.tables[0].rows] == ["AD"]


@pytest.mark.slow
def test_evaluate_models_compares_areas_from_64_pixels_on_with_the_truth_of_phantoms(phantoms, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "load_critic", lambda *_: Planted())
    monkeypatch.setattr(tissue_areas, "find_view", lambda _: View("sagittal", 0.5, 0.0, 0.0, 0.6))
    unseen = {name: Slices(str(phantoms / "test"), name, 64) for name in ("AD", "NC")}
    generated = {name: slices[np.arange(len(slices))] for name, slices in unseen.items()}
    folder, table = tmp_path / "predictions", read_subjects(str(phantoms / "subjects.csv"))
    results, written = evaluation.evaluate_models({"run": ("AD", "NC")}, generated, str(phantoms), str(folder), "run", table=table)
    check_files(results, written, folder)
    assert set(results["areas"]) == {"AD", "NC", "AD - NC"}
    for name in generated:
        assert {*results["areas"][name]} == {*TISSUES}
        for row in results["areas"][name].values():
            assert row["generated"] == row["unseen"] and row["wasserstein"] == row["floor"]  # the same slices
            assert row["train"] == pytest.approx(row["truth"], rel=0.2)
    _, of_classifier, of_areas, _ = (section.text for section in evaluation.sections(results, written, "run"))
    resampled = ["Intervals and standard errors resample people.", "No person of the test slices is in the training set."]
    assert "above-chance AUC" in of_classifier[0] and of_classifier[1:] == of_areas == resampled


@pytest.mark.slow
def test_evaluate_models_goes_on_without_areas_where_the_view_cannot_be_told(phantoms, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluation, "load_critic", lambda *_: None)
    monkeypatch.setattr(tissue_areas, "find_view", lambda _: View("unknown", 0.5, 0.0, 0.0, 0.6))
    generated = {"AD": random_slices(8, 64)}
    results, written = evaluation.evaluate_models({"run": ("AD",)}, generated, str(phantoms), str(tmp_path), "run")
    assert results["areas"] is None and not any("areas" in path for path in written)
    assert (
        capsys.readouterr().out.count(f"--dataset_dir {phantoms}: the view of the slices cannot be told, so areas cannot be") == 1
    )
    texts = {section.title: section.text for section in evaluation.sections(results, written, "run")}
    assert texts["run: areas"] == ["Not measured: the view of the training slices cannot be told."]


def test_evaluate_models_refuses_early_what_is_missing(models, slices_dir, tmp_path):
    generated = {"AD": random_slices(8)}
    alone = tmp_path / "alone"
    shutil.copytree(slices_dir, alone / "train")
    with pytest.raises(UserError, match="needs train/ and test/"):
        evaluation.evaluate_models({os.path.join(models, "AD"): ("AD",)}, generated, str(alone), str(tmp_path / "out"), "x")
    run = tmp_path / "AD"
    shutil.copytree(os.path.join(models, "AD"), run)
    (run / "checkpoint.pt").write_bytes(b"damaged")
    with pytest.raises(UserError, match="checkpoint.pt: no critic"):
        evaluation.evaluate_models({str(run): ("AD",)}, generated, slices_dir, str(tmp_path / "out"), "x")
    assert not (tmp_path / "out").exists()
