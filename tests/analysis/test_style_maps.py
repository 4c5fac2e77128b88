"""Maps of style vectors: their sets, the sentences about them, and the table of their points."""

import csv
import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import change_weights
from PIL import Image

import predict
from analysis import bootstrap as bootstrap_module
from analysis import style_maps, style_space
from analysis.bootstrap import Interval
from analysis.models import draw_z, load_model, style_vectors
from analysis.style_maps import (
    CONDITIONAL,
    CONTROL,
    PAIR,
    REAL,
    alike_seeds,
    compared_runs,
    conclusions,
    projected_slices,
    real_position,
    same_training,
    save_points,
    style_sets,
)
from analysis.style_space import StyleSeparation
from data.subjects import Scan, identify, resampling_groups
from modules import MappingNetwork
from report.figures import Panel
from utils import CLASSES, UserError


def test_compared_runs_are_a_pair_its_control_and_a_conditional_run():
    assert compared_runs("a", "n", "c", "both") == {
        "AD and NC": {"AD": "a", "NC": "n"},
        "control: NC twice": {"NC": "n", "NC, other seed": "c"},
        "one conditional model": "both",
    }
    assert list(compared_runs("a", "n")) == ["AD and NC"] and list(compared_runs(conditional="both")) == ["one conditional model"]


def test_style_sets_of_the_best_and_the_last_generator(models, tmp_path):
    shutil.copy(os.path.join(models, "AD", "generator.pt"), tmp_path / "generator.pt")
    shutil.copy(os.path.join(models, "NC", "generator.pt"), tmp_path / "best.pt")
    for which, source in (("last", "AD"), ("best", "NC")):
        expected, _ = style_vectors(load_model(os.path.join(models, source), "cpu").mapping, draw_z(50, 256, 0))
        sets = style_sets({"AD": str(tmp_path)}, which, 50, 0, "cpu")
        np.testing.assert_array_equal(sets["AD"], expected.numpy())


def test_style_sets_of_a_conditional_run_are_its_classes(models, conditional):
    sets = style_sets(os.path.join(models, "all-conditional"), "last", 20, 0, "cpu")
    for label, name in enumerate(CLASSES):
        np.testing.assert_array_equal(sets[name], style_vectors(conditional.mapping, draw_z(20, 256, 0), label)[0].numpy())
    assert not np.allclose(sets["AD"], sets["NC"])


def test_style_sets_refuses_style_vectors_of_different_length(monkeypatch):
    monkeypatch.setattr(style_maps, "load_model", lambda folder, *_: SimpleNamespace(mapping=MappingNetwork(16, int(folder))))
    with pytest.raises(UserError, match="different length.*AD.*16.*NC.*32"):
        style_sets({"AD": "16", "NC": "32"}, "last", 4, 0, "cpu")


def test_projected_slices_are_not_given_their_class(models, slices_dir, monkeypatch):
    labels = []

    def project(model, targets, given, **_):
        labels.extend(given)
        means = torch.from_numpy(targets).float().mean((1, 2))
        return SimpleNamespace(ws=means[:, None, None].expand(-1, 8, 256))

    monkeypatch.setattr(style_maps.projector, "project", project)
    sets, names = projected_slices(os.path.join(models, "all-conditional"), "last", slices_dir, 10, 0, "cpu")
    assert {name: w.shape for name, w in sets.items()} == {"real AD": (9, 256), "real NC": (10, 256)}  # there are 9 and 11
    assert labels == [-1] * 19
    assert names[:2] == ["AD/100_0.png", "AD/101_0.png"] and names[9:11] == ["NC/100_0.png", "NC/101_0.png"] and len(names) == 19
    assert sets["real AD"].mean() < sets["real NC"].mean()  # NC has the larger discs


def test_history_of_models_of_one_seed_starts_equal(models):
    saved = style_space.history({name: os.path.join(models, name) for name in ("AD", "NC")})
    assert [epoch for epoch, _ in saved] == [0, 1, 2]
    for epoch, sets in saved:
        assert np.array_equal(sets["AD"], sets["NC"]) == (epoch == 0)
    (_, start), *_ = style_space.history(os.path.join(models, "all-conditional"))
    assert start["AD"].shape == (512, 256) and not np.allclose(start["AD"], start["NC"])


@pytest.mark.parametrize("seeds, alike", [((0, 0, 0), True), ((0, 1, 2), True), ((0, 0, 1), False), ((0, 1, 1), False)])
def test_alike_seeds_are_pairs_that_both_share_their_seed_or_both_do_not(tmp_path, seeds, alike):
    folders = [str(tmp_path / name) for name in ("AD", "NC", "control")]
    for folder, seed in zip(folders, seeds):
        os.mkdir(folder)
        with open(os.path.join(folder, "config.json"), "w") as file:
            json.dump({"flags": {"seed": seed}}, file)
    assert alike_seeds(compared_runs(*folders)) == alike
    assert alike_seeds(compared_runs(*folders[:2]))


def test_same_training_is_of_one_network_one_set_of_slices_one_loss_and_one_seed(tmp_path):
    def written(name, **changes):
        flags = {"seed": 1, "loss": "wgan-gp", "epochs": 5} | changes
        config = {"network": {"resolution": 64}, "data": {"fingerprint": changes.get("slices", "x")}, "flags": flags}
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        return str(tmp_path / name)

    run, longer = written("run"), written("longer", epochs=50)
    assert same_training(run, longer)
    for name, change in {"seed": 2, "loss": "relativistic", "slices": "y"}.items():
        assert not same_training(run, written(name, **{name: change}))
    assert not same_training(run, str(tmp_path / "nowhere")) and not same_training(*[str(tmp_path / "nowhere")] * 2)


def test_conclusions_name_the_missing_control_and_the_projected_slices(tmp_path):
    mixed, apart = (StyleSeparation(Interval(*values), Interval(*values)) for values in ((0.5, 0.4, 0.6), (0.9, 0.8, 1.0)))
    assert "without --control_dir" in conclusions(compared_runs("a", "n"), {PAIR: apart})[0]
    folders = [str(tmp_path / name) for name in ("AD", "NC", "control")]
    (further,) = conclusions(compared_runs(*folders), {PAIR: apart, CONTROL: mixed})
    assert "further apart than" in further
    (real,) = conclusions(compared_runs(conditional="both"), {CONDITIONAL: apart, REAL: mixed})
    assert "no separation was shown" in real


def test_real_position_is_of_the_probe_of_the_projected_slices(monkeypatch):
    """Style vectors that follow the slice index, of scans that begin at 82 for AD and at 78 for NC."""
    monkeypatch.setattr(bootstrap_module, "RESAMPLED", 100)
    rng, people, first = np.random.default_rng(0), 20, {"AD": 82, "NC": 78}
    index = {name: np.tile(first[name] + np.arange(8), people) for name in CLASSES}
    real = {f"real {name}": np.c_[index[name], rng.normal(size=(8 * people, 2))] for name in CLASSES}
    names = [f"{name}/{100 * (name == 'NC') + i // 8}_{at}.png" for name in CLASSES for i, at in enumerate(index[name])]
    groups, _ = resampling_groups(identify(names))
    position = real_position(real, names, groups, 0)
    plain = style_space.style_separation(*real.values(), groups)
    assert plain.auc.low > 0.6 and position["slice index alone"].low > 0.6
    assert position["position-stratified"].low < 0.5 < position["position-stratified"].high
    (sentence,) = conclusions(compared_runs(conditional="both"), {CONDITIONAL: plain, REAL: plain}, position)
    assert "but no more than slice position may explain" in sentence
    few = real_position({name: w[:8] for name, w in real.items()}, names[:8] + names[-8:], groups[np.r_[:8, -8:0]], 0)
    assert few["slice index alone"] is few["position-stratified"] is None and few["known"] == 16


def test_latents_are_compared_in_pairs_and_real_slices_are_not(tmp_path, monkeypatch):
    """Slice number i of AD and of NC have nothing in common, while latent number i is the same."""
    compared, rng, names = [], np.random.default_rng(0), ["AD/7_1.png", "AD/8_1.png", "NC/9_1.png", "NC/9_2.png"]

    def separation(a, b, groups=None, seed=0):
        compared.append((len(a), len(b), None if groups is None else list(groups)))
        return StyleSeparation(Interval(0.5, 0.4, 0.6), Interval(0.5, 0.4, 0.6))

    monkeypatch.setattr(style_maps, "style_separation", separation)
    monkeypatch.setattr(style_maps, "style_sets", lambda *_: {name: rng.normal(size=(20, 4)) for name in CLASSES})
    monkeypatch.setattr(
        style_maps, "projected_slices", lambda *_: ({f"real {name}": rng.normal(size=(2, 4)) for name in CLASSES}, names)
    )
    monkeypatch.setattr(style_maps.figures, "plot_styles", lambda *_: None)
    runs = compared_runs(str(tmp_path / "AD"), str(tmp_path / "NC"), str(tmp_path / "control"), str(tmp_path / "both"))
    table = {"7": Scan("7", "ann"), "8": Scan("8", "ann")}
    section = style_maps.plot_umaps(runs, str(tmp_path), method="pca", dataset_dir="slices", table=table)
    assert compared == [(20, 20, None)] * 3 + [(2, 2, ["people ann", "people ann", "scans 9", "scans 9"])]
    assert "resample people and scans" in section.text[-1]


def test_known_values_are_those_of_the_table_and_refused_without_any():
    table = {"7": Scan("7", "ann", None, "F", 71.5), "8": Scan("8", "bob")}
    names = ["AD/7_1.png", "AD/8_1.png", "NC/9_1.png"]
    np.testing.assert_array_equal(style_maps.known_values("age", names, table), [71.5, np.nan, np.nan])
    assert style_maps.known_values("sex", names, table).tolist() == ["F", "", ""]
    with pytest.raises(UserError, match="--colour age: --subjects tells the age of none of the 2 slices"):
        style_maps.known_values("age", names[1:], table)


def test_ventricle_areas_are_of_the_drawn_and_of_the_real_slices(monkeypatch):
    asked = []

    def synthesize(folder, ws):
        asked.append(folder)
        return ws.numpy()[:, :1, None]

    monkeypatch.setattr(style_maps, "load_model", lambda folder, *_: folder)
    monkeypatch.setattr(style_maps, "synthesize", synthesize)
    monkeypatch.setattr(style_maps, "known_view", lambda *_: "axial")
    monkeypatch.setattr(style_maps, "measure_areas", lambda pixels, *_: {"ventricle": 10 * pixels[:, 0, 0]})
    sets = {"AD": np.array([[1.0, 9], [2, 9]]), "NC": np.array([[3.0, 9]]), "real AD": np.array([[4.0, 9]])}
    found = style_maps.ventricle_areas("both", sets, "last", "cpu", {"real AD": np.full((1, 1, 1), 7.0)})
    assert {name: areas.tolist() for name, areas in found.items()} == {"AD": [10, 20], "NC": [30], "real AD": [70]}
    style_maps.ventricle_areas({"AD": "a", "NC": "n"}, dict(list(sets.items())[:2]), "last", "cpu")
    assert asked == ["both", "both", "a", "n"]


@pytest.mark.slow
@pytest.mark.parametrize("colour", ["class", "age", "sex", "area"])
def test_plot_umaps_colours_real_slices_by_what_the_table_tells(tmp_path, monkeypatch, colour):
    drawn, rng = {}, np.random.default_rng(0)
    names = [f"AD/{i}_1.png" for i in range(8)] + [f"NC/{i}_1.png" for i in range(8, 16)]
    pixels = {f"real {name}": np.zeros((8, 64, 64), np.uint8) for name in CLASSES}
    monkeypatch.setattr(style_maps, "load_model", lambda *_: SimpleNamespace(generator=SimpleNamespace(resolution=64)))
    monkeypatch.setattr(style_maps, "style_sets", lambda *_: {name: rng.normal(size=(20, 4)) for name in CLASSES})
    monkeypatch.setattr(style_maps, "chosen_slices", lambda *_: (pixels, names))
    monkeypatch.setattr(style_maps, "projected_slices", lambda *_: ({name: rng.normal(size=(8, 4)) for name in pixels}, names))
    monkeypatch.setattr(style_maps, "ventricle_areas", lambda runs, sets, *_: {name: np.ones(len(w)) for name, w in sets.items()})
    monkeypatch.setattr(style_maps.figures, "plot_styles", lambda panels, _, note, scale: drawn.update(panels=panels, scale=scale))
    table = {str(i): Scan(str(i), f"p{i}", None, "FM"[i % 2], 60.0 + i) for i in range(15)}  # not the last
    runs = compared_runs(conditional=str(tmp_path / "both"))
    section = style_maps.plot_umaps(runs, str(tmp_path), method="pca", dataset_dir="slices", table=table, colour=colour)
    (panel,) = drawn["panels"]
    assert drawn["scale"] == style_maps.COLOURS[colour]
    if colour == "class":
        assert not panel.values
    elif colour == "area":
        assert set(panel.values) == {"AD", "NC", *pixels}
    else:
        assert set(panel.values) == set(pixels)
        first, last = {"age": (60, np.nan), "sex": ("F", "")}[colour]
        np.testing.assert_equal((panel.values["real AD"][0], panel.values["real NC"][-1]), (first, last))
    assert section.numbers["age"]["slices"] == 15 and any(sentence.startswith("Age: a linear probe") for sentence in section.text)
    with open(tmp_path / "pca.csv", newline="") as file:
        header, *rows = list(csv.reader(file))
    assert header == ["panel", "set", "number", "x", "y"] + [colour] * (colour != "class") and {len(row) for row in rows} == {
        len(header)
    }


def test_save_points_writes_every_point(tmp_path):
    panels = [Panel("a", {"AD": np.array([[1.0, 2.0], [3.0, 4.0]]), "NC": np.array([[5.0, 6.0]])}, {})]
    save_points(panels, str(tmp_path / "map.csv"))
    with open(tmp_path / "map.csv", newline="") as file:
        rows = [tuple(row.values()) for row in csv.DictReader(file)]
    assert rows == [("a", "AD", "0", "1.0", "2.0"), ("a", "AD", "1", "3.0", "4.0"), ("a", "NC", "0", "5.0", "6.0")]


# ---------------------------------------------------------------------------------------------------------------------
# predict.py --plot_umap


def has_points(path):
    """Whether the image has points in the colours of AD and of NC over white."""
    with Image.open(path) as image:
        picture = np.asarray(image.convert("RGB"), int)
    return all((np.abs(picture - colour).sum(-1) < 60).sum() > 40 for colour in ((222, 153, 138), (127, 169, 193)))


@pytest.mark.slow
def test_plot_umap_writes_maps_of_two_models_and_over_epochs(models, tmp_path, capsys, monkeypatch):
    """With UMAP itself, from the first epoch to the last."""
    monkeypatch.setattr(style_space, "FRAMES", 2)
    for name in ("AD", "NC"):
        os.symlink(os.path.join(models, name), tmp_path / name)
    flags = ["--plot_umap", "True", "--AD_dir", "AD", "--NC_dir", os.path.join(models, "NC"), "--model_dir", tmp_path]
    flags += ["--output_dir", tmp_path / "out", "--device", "cpu", "--num_styles", 60]
    assert predict.main([*map(str, flags)]) == 0
    maps = ["umap.csv", "umap.png", "umap_epochs.gif", "umap_epochs.png"]
    assert sorted(os.listdir(tmp_path / "out")) == ["AD_generated.png", "NC_generated.png", *maps]
    assert "without --control_dir" in capsys.readouterr().out
    assert has_points(tmp_path / "out/umap.png") and has_points(tmp_path / "out/umap_epochs.png")


@pytest.mark.slow
def test_maps_with_a_control_and_a_conditional_model(models, tmp_path, capsys):
    control = change_weights(os.path.join(models, "NC"), tmp_path / "control", 2e-4)
    flags = ["--model_dir", models, "--output_dir", str(tmp_path), "--device", "cpu", "--num_styles", "30", "--method", "pca"]
    assert predict.main(["--plot_umap", "True", "--AD_dir", "AD", "--NC_dir", "NC", "--control_dir", control, *flags]) == 0
    out = capsys.readouterr().out
    assert "AD and NC are" in out and "A conditional model is told the class" in out
    with open(tmp_path / "pca.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["panel"], row["set"]) for row in rows} == {
        ("AD and NC", "AD"),
        ("AD and NC", "NC"),
        ("control: NC twice", "NC"),
        ("control: NC twice", "NC, other seed"),
        ("one conditional model", "AD"),
        ("one conditional model", "NC"),
    }
    assert len(rows) == 6 * 30 and all(np.isfinite(float(row["x"])) for row in rows)
    twins = [
        [float(row["x"]) for row in rows if row["set"] == name and "control" in row["panel"]] for name in ("NC", "NC, other seed")
    ]
    assert twins[0] == pytest.approx(twins[1], abs=0.1) and twins[0] != twins[1]  # the control was nearly the NC model
    assert has_points(tmp_path / "pca.png")
