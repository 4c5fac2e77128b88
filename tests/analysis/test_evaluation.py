"""The evaluation's comparisons on planted gaps, what its text and tables say, and all of it on tiny models."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from analysis import areas as tissue_areas
from analysis import classifier, evaluation
from analysis.bootstrap import Interval
from analysis.models import load_model, share
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
# The classifier


def classifier_results(generated, train, shown=True):
    """Made-up results; shown: whether the classifier trained on real slices is shown to be better than chance."""
    aucs = {"train": train, "generated": generated, "both": train}
    others = {"spread": 0.01, "p": 0.01}
    results = {
        kind: {"auc": Interval(auc, auc - 0.05, auc + 0.04), "seeds": [auc - 0.01, auc, auc + 0.01], **others}
        for kind, auc in aucs.items()
    }
    share, difference = classifier.above_chance(generated, train), generated - train
    ratio = Interval(share, share - 0.2, share + 0.1) if shown else None
    compared = {"difference": Interval(difference, difference - 0.05, difference + 0.05), "ratio": ratio}
    return {**results, **compared, "validation": {"people": 12, "slices": 99}}


def test_classifier_text_tells_the_share_of_the_auc_above_chance_and_the_difference():
    text = evaluation_report.classifier_text(classifier_results(0.65, 0.8))
    assert "reaches 50% (30% to 60%) of the above-chance AUC" in text
    assert text.endswith("The AUCs differ: generated less real -0.15 (-0.20 to -0.10).")
    text = evaluation_report.classifier_text(classifier_results(0.79, 0.8))
    assert text.endswith("The AUCs were not shown to differ: generated less real -0.01 (-0.06 to 0.04).")
    text = evaluation_report.classifier_text(classifier_results(0.8, 0.52, shown=False))
    assert "not shown to be better than chance (AUC 0.52 (0.47 to 0.56))" in text and "%" not in text


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
        evaluation_report.plot_classifier(results, "people", str(tmp_path / f"{i}.png"))
        assert os.path.getsize(tmp_path / f"{i}.png") > 5000


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
    held_out = {name: {tissue: area[::4] for tissue, area in tissues.items()} for name, tissues in train.items()}
    generated = {name: {tissue: area * (1.2 if name == "AD" else 1) for tissue, area in train[name].items()} for name in train}
    return {"train": train, "held-out": held_out, "generated": generated}


def test_compare_areas_within_classes_and_between_them():
    areas = planted_areas()
    groups = {"train": {"AD": None, "NC": np.repeat(np.arange(40).astype(str), 10)}, "held-out": {"AD": None, "NC": None}}
    comparison = evaluation.compare_areas(areas, groups, {name: dict.fromkeys(TISSUES, 7) for name in ("AD", "NC")})
    ad, nc = comparison["AD"]["grey"], comparison["NC"]["grey"]
    assert ad["generated / train - 1"].value == pytest.approx(0.2)
    assert ad["wasserstein"] == pytest.approx(0.2 * ad["train"])  # all areas grew: the difference of the means
    assert nc["generated / train - 1"].value == nc["wasserstein"] == 0
    assert nc["generated / train - 1"].low < 0 < nc["generated / train - 1"].high
    train, held_out = np.sort(areas["train"]["NC"]["grey"]), np.sort(np.repeat(areas["held-out"]["NC"]["grey"], 4))
    assert nc["floor"] == pytest.approx(np.abs(train - held_out).mean())  # the Wasserstein distance in one dimension
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
    assert len(tables) == len(classes)  # the second: AD minus NC
    evaluation_report.plot_areas(areas, comparison, str(tmp_path / "areas.png"))
    with Image.open(tmp_path / "areas.png") as image:
        assert image.width > 500


def test_area_text_names_every_area_whose_interval_excludes_zero():
    def row(value):
        return {"generated / train - 1": Interval(value, value - 0.02, value + 0.03)}

    results = {"AD": {"ventricle": row(-0.01), "grey": row(0.025)}, "NC": {"ventricle": row(-0.04), "grey": row(0)}, "AD - NC": {}}
    text = evaluation_report.area_text(results)
    assert text == (
        "2 of 4 areas differ from those of training slices: AD grey +2.5% (+0.5% to +5.5%), NC ventricle -4.0% (-6.0% to -1.0%)."
    )
    results = {"AD": {"ventricle": row(-0.01)}}
    assert evaluation_report.area_text(results).startswith("No area of generated slices was shown to differ")


# ---------------------------------------------------------------------------------------------------------------------
# All of it


def loaded(models, *names):
    return [load_model(os.path.join(models, name), "cpu") for name in names]


def checked(result, title, folder):
    """The sections of a result, whose pictures and JSON are in the folder, and nothing else."""
    folder.mkdir(exist_ok=True)
    sections = evaluation_report.draw_evaluation(result, title, str(folder))
    paths = [figure.path for section in sections for figure in section.figures]
    for path in paths:
        with Image.open(path) as image:
            image.verify()
    with open(folder / f"{title}_evaluation.json") as file:
        assert json.load(file).keys() == result.numbers().keys()
    assert sorted(os.listdir(folder)) == sorted([*map(os.path.basename, paths), f"{title}_evaluation.json"])
    return sections


def test_an_ad_and_an_nc_model_are_evaluated_together(models, slices_dir):
    ad, nc, both = loaded(models, "AD", "NC", "all-conditional")
    assert evaluation.evaluation_groups([ad, nc]) == [[ad, nc]]
    assert evaluation.evaluation_groups([nc, ad, both]) == [[nc, ad], [both]]
    assert evaluation.evaluation_groups([ad, both]) == [[ad], [both]] and evaluation.evaluation_groups([ad, ad]) == [[ad], [ad]]
    test_dir = os.path.join(os.path.dirname(slices_dir), "test")
    for group, counts in (([nc, ad], {"NC": 11, "AD": 9}), ([both], {"AD": 9, "NC": 11}), ([ad], {"AD": 9})):
        generated = evaluation.generate_classes(group, test_dir, 0, 1.0)
        assert {name: len(slices) for name, slices in generated.items()} == counts  # as many as there are to train on


@pytest.mark.slow
def test_evaluation_of_a_conditional_model(models, slices_dir, tmp_path, quick):
    generated = {"AD": random_slices(12), "NC": random_slices(14, seed=1)}
    test_dir = os.path.join(os.path.dirname(slices_dir), "test")
    result = evaluation.evaluate_models(loaded(models, "all-conditional"), generated, test_dir)
    sections, numbers = checked(result, "a_{b}", tmp_path / "out"), result.numbers()
    assert set(numbers) == {"classifier", "ladder", "metrics", "resampled"}  # 32x32 is too small for areas
    assert "resample scans" in numbers["resampled"][0] and "7 of 7 scans of the test slices" in numbers["resampled"][1]
    assert set(numbers["metrics"]) == {"AD", "NC"}
    assert {"kid_x1000", "recall", "memorised"} <= set(numbers["metrics"]["AD"])
    shown = [[os.path.basename(figure.path) for figure in section.figures] for section in sections]
    metrics = [f"a_{{b}}_{figure}_{name}.png" for figure in ("metrics", "nearest") for name in ("AD", "NC")]
    assert shown == [["a_{b}_classifier.png"], [], metrics]
    rows = sections[1].tables[0].rows
    assert [row[0] for row in rows][-1] == "classifier of real slices" and rows[-1][1] == result.classifier["train"]["auc"]
    assert all(f"{row[0]} {row[1]}" in sections[1].text[0] for row in rows) and len(rows) == len(numbers["ladder"]) + 2


@pytest.mark.slow
def test_evaluation_of_a_one_class_model_whose_generator_is_alone(models, slices_dir, tmp_path):
    """There is no classifier."""
    share(os.path.join(models, "AD"), str(tmp_path / "AD"))
    result = evaluation.evaluate_models([load_model(str(tmp_path / "AD"), "cpu")], {"AD": random_slices(8)}, slices_dir)
    (metrics,) = checked(result, "AD", tmp_path / "out")
    assert set(result.numbers()) == {"metrics", "resampled"} and metrics.tables


@pytest.mark.slow
def test_evaluation_compares_areas_from_64_pixels_on_with_the_truth_of_phantoms(
    conditional, phantoms, tmp_path, monkeypatch, quick
):
    monkeypatch.setattr(tissue_areas, "find_view", lambda _: View("sagittal", 0.5, 0.0, 0.0, 0.6))
    monkeypatch.setattr(evaluation, "classify", lambda *_: classifier_results(0.7, 0.8))  # one person of each class is too few
    held_out = {name: Slices(str(phantoms / "test"), name, 64) for name in ("AD", "NC")}
    generated = {name: slices[np.arange(len(slices))] for name, slices in held_out.items()}
    result = evaluation.evaluate_models([conditional], generated, str(phantoms), read_subjects(str(phantoms / "subjects.csv")))
    classifier_section, _, area_section, _ = checked(result, "run", tmp_path / "out")
    assert set(result.area_comparison) == {"AD", "NC", "AD - NC"}
    for name in generated:
        assert {*result.area_comparison[name]} == {*TISSUES}
        for row in result.area_comparison[name].values():
            assert row["generated"] == row["held-out"] and row["wasserstein"] == row["floor"]  # the same slices
            assert row["train"] == pytest.approx(row["truth"], rel=0.2)
    resampled = ["Intervals and standard errors resample people.", "No person of the test slices is in the training set."]
    assert "above-chance AUC" in classifier_section.text[0] and classifier_section.text[1:] == resampled
    assert "of 8 areas differ" in area_section.text[0] or "No area" in area_section.text[0]
    assert area_section.text[1:] == resampled


@pytest.mark.slow
def test_evaluation_goes_on_without_areas_where_the_view_cannot_be_told(model, phantoms, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tissue_areas, "find_view", lambda _: View("unknown", 0.5, 0.0, 0.0, 0.6))
    result = evaluation.evaluate_models([model], {"AD": random_slices(8, 64)}, str(phantoms))
    assert not result.areas and "areas" not in result.numbers()
    assert (
        capsys.readouterr().out.count(f"--dataset_dir {phantoms}: the view of the slices cannot be told, so areas cannot be") == 1
    )
    texts = {section.title: section.text for section in checked(result, "run", tmp_path / "out")}
    assert texts["run: areas"] == ["Not measured: the view of the training slices cannot be told."]


def test_evaluation_refuses_early_what_is_missing(models, slices_dir, tmp_path):
    (model,) = loaded(models, "AD")
    shutil.copytree(slices_dir, tmp_path / "alone/train")
    with pytest.raises(UserError, match="needs train/ and test/"):
        evaluation.generate_classes([model], str(tmp_path / "alone"), 0, 1.0)
