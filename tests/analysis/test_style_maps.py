"""Maps of style vectors: what they compare, the epochs, the sentences about them, and the command that makes them."""

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
from analysis.models import Model, draw_z, load_model, style_vectors
from analysis.style_maps import (
    CONDITIONAL,
    CONTROL,
    PAIR,
    REAL,
    MapSettings,
    MapSpec,
    RealSlices,
    StyleMap,
    StyleSource,
    comparable_seeds,
    compute_maps,
    conclusions,
    history,
    map_specs,
    project_slices,
    read_real_slices,
    real_position,
    style_sets,
)
from analysis.style_space import StyleSeparation
from data.subjects import Scan, identify, resampling_groups
from modules import MappingNetwork
from utils import CLASSES, UserError

PCA = MapSettings("pca", 15, 0.1, 20, 0)
MIXED, APART = (StyleSeparation(Interval(*values), Interval(*values)) for values in ((0.5, 0.4, 0.6), (0.9, 0.8, 1.0)))


def stand_in(folder, labels=(None,), w_dim=16):
    """A Model without a generator."""
    return Model(os.path.basename(folder), MappingNetwork(16, w_dim), None, list(CLASSES), list(labels), str(folder))


def a_map(spec, separation=MIXED, **others):
    return StyleMap(spec, {}, {}, separation, {}, **others)


# ---------------------------------------------------------------------------------------------------------------------
# What is compared


def test_maps_compare_a_pair_its_control_and_the_classes_of_a_conditional_model():
    ad, nc, control, both = (stand_in(name) for name in ("a", "n", "c", "both"))
    specs = map_specs(ad, nc, control, both)
    assert [(spec.title, [*map(tuple, spec.sources.values())]) for spec in specs] == [
        ("AD and NC", [(ad, None), (nc, None)]),
        ("control: NC twice", [(nc, None), (control, None)]),
        ("one conditional model", [(both, 0), (both, 1)]),
    ]
    assert [list(spec.sources) for spec in specs] == [["AD", "NC"], ["NC", "NC, other seed"], ["AD", "NC"]]
    assert [spec.title for spec in map_specs(ad, nc)] == [PAIR] and [spec.title for spec in map_specs(conditional=both)] == [
        CONDITIONAL
    ]


def test_map_specs_refuse_style_vectors_of_different_length():
    with pytest.raises(UserError, match="different length.*a.*16.*n.*32"):
        map_specs(stand_in("a"), stand_in("n", w_dim=32))


def test_style_sets_of_the_best_and_the_last_generator(models, tmp_path):
    shutil.copy(os.path.join(models, "AD", "generator.pt"), tmp_path / "generator.pt")
    shutil.copy(os.path.join(models, "NC", "generator.pt"), tmp_path / "best.pt")
    for which, source in (("last", "AD"), ("best", "NC")):
        expected, _ = style_vectors(load_model(os.path.join(models, source), "cpu").mapping, draw_z(50, 256, 0))
        spec = MapSpec(PAIR, {"AD": StyleSource(load_model(str(tmp_path), "cpu", which), None)})
        np.testing.assert_array_equal(style_sets(spec, 50, 0)["AD"], expected.numpy())


def test_style_sets_of_a_conditional_model_are_its_classes(conditional):
    sets = style_sets(map_specs(conditional=conditional)[0], 20, 0)
    for label, name in enumerate(CLASSES):
        np.testing.assert_array_equal(sets[name], style_vectors(conditional.mapping, draw_z(20, 256, 0), label)[0].numpy())
    assert not np.allclose(sets["AD"], sets["NC"])


def test_projected_slices_are_not_given_their_class(conditional, slices_dir, monkeypatch):
    labels = []

    def project(model, targets, given, **_):
        labels.extend(given)
        means = torch.from_numpy(targets).float().mean((1, 2))
        return SimpleNamespace(ws=means[:, None, None].expand(-1, 8, 256))

    monkeypatch.setattr(style_maps.projector, "project", project)
    real = project_slices(read_real_slices(slices_dir, 10, 32), conditional, 0)
    assert {name: w.shape for name, w in real.w.items()} == {"real AD": (9, 256), "real NC": (10, 256)}  # there are 9 and 11
    assert labels == [-1] * 19 and list(real.classes) == [0] * 9 + [1] * 10
    names = real.names
    assert names[:2] == ["AD/100_0.png", "AD/101_0.png"] and names[9:11] == ["NC/100_0.png", "NC/101_0.png"] and len(names) == 19
    assert real.w["real AD"].mean() < real.w["real NC"].mean()  # NC has the larger discs


# ---------------------------------------------------------------------------------------------------------------------
# Over the epochs


def spec_of(*folders):
    return MapSpec(PAIR, {os.path.basename(folder): StyleSource(stand_in(folder), None) for folder in folders})


def test_history_of_models_of_one_seed_starts_equal(models, conditional):
    pair = map_specs(*(load_model(os.path.join(models, name), "cpu") for name in ("AD", "NC")))[0]
    saved = history(pair)
    assert [epoch for epoch, _ in saved] == [0, 1, 2]
    for epoch, sets in saved:
        assert np.array_equal(sets["AD"], sets["NC"]) == (epoch == 0)
    (_, start), *_ = history(map_specs(conditional=conditional)[0])
    assert start["AD"].shape == (512, 256) and not np.allclose(start["AD"], start["NC"])


def save_styles(folder, epochs, seed):
    """styles/epoch_NNNN.npy of a run; returns {epoch: w [6, 3]}."""
    (folder / "styles").mkdir(parents=True)
    rng, saved = np.random.default_rng(seed), {}
    for epoch in epochs:
        saved[epoch] = rng.normal(size=(6, 3)).astype(np.float32)
        np.save(folder / f"styles/epoch_{epoch:04d}.npy", saved[epoch])
    return saved


def test_history_of_two_runs_has_the_epochs_that_both_saved(tmp_path):
    ad, nc = save_styles(tmp_path / "AD", (0, 1, 2, 3), 0), save_styles(tmp_path / "NC", (0, 2, 3, 4), 1)
    saved = history(spec_of(str(tmp_path / "AD"), str(tmp_path / "NC")))
    assert [epoch for epoch, _ in saved] == [0, 2, 3]
    for epoch, sets in saved:
        assert list(sets) == ["AD", "NC"] and (sets["AD"] == ad[epoch]).all() and (sets["NC"] == nc[epoch]).all()


@pytest.mark.parametrize("name", ["a[1]", "*", "run?", "$x$ {0}\n"])
def test_history_of_a_run_of_any_name_and_length(tmp_path, name):
    save_styles(tmp_path / name, (0, 9999, 10000), 0)
    (tmp_path / name / "styles/epoch_1.npy").touch()
    (tmp_path / name / "styles/.tmp-epoch_0001.npy").touch()
    assert [epoch for epoch, _ in history(spec_of(str(tmp_path / name)))] == [0, 9999, 10000]
    assert history(spec_of(str(tmp_path / "nowhere"))) == []


def test_history_of_a_long_run_keeps_its_ends(tmp_path):
    (tmp_path / "styles").mkdir()
    for epoch in range(0, 101, 5):
        np.save(tmp_path / f"styles/epoch_{epoch:04d}.npy", np.full((2, 4, 3), epoch))
    saved = history(map_specs(conditional=stand_in(tmp_path, (0, 1)))[0])
    assert len(saved) == style_maps.FRAMES and (saved[0][0], saved[-1][0]) == (0, 100)
    assert all((sets["NC"] == epoch).all() for epoch, sets in saved)


def test_maps_over_epochs_are_centred_and_counted():
    rng, calls = np.random.default_rng(0), []
    start, ad, nc = rng.normal(size=(3, 40, 6))
    saved = [(0, {"AD": start, "NC": start}), (5, {"AD": 3 + ad, "NC": 3 + nc}), (9, {"AD": ad, "NC": 30 + nc})]
    maps = style_maps.maps_over_epochs(saved, PCA, lambda: calls.append(1))
    assert [epoch for epoch, *_ in maps] == [0, 5, 9] and len(calls) == 3
    for _, sets, _ in maps:
        assert list(sets) == ["AD", "NC"] and sets["AD"].shape == (40, 2)
        np.testing.assert_allclose(np.concatenate(list(sets.values())).mean(0), 0, atol=1e-12)
    fractions = [epoch_map.same_class for epoch_map in maps]
    assert (
        fractions[0] < 0.5 and fractions[1] == pytest.approx(0.5, abs=0.1) and fractions[2] == 1
    )  # first, a twin in the other set


# ---------------------------------------------------------------------------------------------------------------------
# The maps, and what they show


@pytest.mark.parametrize("seeds, comparable", [((0, 0, 0), True), ((0, 1, 2), True), ((0, 0, 1), False), ((0, 1, 1), False)])
def test_pairs_are_comparable_if_both_share_their_seed_or_both_do_not(tmp_path, seeds, comparable):
    folders = [str(tmp_path / name) for name in ("AD", "NC", "control")]
    for folder, seed in zip(folders, seeds):
        os.mkdir(folder)
        with open(os.path.join(folder, "config.json"), "w") as file:
            json.dump({"flags": {"seed": seed}}, file)
    pair, control = map(a_map, map_specs(*map(stand_in, folders)))
    assert comparable_seeds(pair, control) == comparable and comparable_seeds(pair, None)


def test_conclusions_name_the_missing_control_and_the_projected_slices(tmp_path):
    pair, control = map_specs(*(stand_in(str(tmp_path / name)) for name in ("AD", "NC", "control")))
    (alone,) = conclusions([a_map(pair, APART)]).values()
    assert "without a control" in alone and "--control_dir" in alone
    sentences = conclusions([a_map(pair, APART), a_map(control, MIXED)])
    assert set(sentences) == {PAIR, CONTROL} and "further apart than" in sentences[PAIR] == sentences[CONTROL]
    (both,) = map_specs(conditional=stand_in("both", (0, 1)))
    (none,) = conclusions([a_map(both, APART)]).values()
    assert "--dataset_dir AD_NC/test would project real slices" in none
    position = {"slice index alone": None, "position-stratified": None, "known": 0, "unknown": ""}
    real = RealSlices({}, [], identify(["AD/7_1.png"], {"7": Scan("7", "ann")}))
    sentence = conclusions([a_map(both, APART, real=real, real_separation=MIXED._replace(p=0.5), position=position)])[REAL]
    assert "no separation was shown, AUC 0.50 (0.40 to 0.60), p = 0.500" in sentence and sentence.endswith(
        "Of real slices: Intervals and standard errors resample people."
    )


def test_real_position_is_of_the_probe_of_the_projected_slices(monkeypatch):
    """Style vectors that follow the slice index, of scans that begin at 82 for AD and at 78 for NC."""
    monkeypatch.setattr(bootstrap_module, "RESAMPLED", 100)
    rng, people, first = np.random.default_rng(0), 20, {"AD": 82, "NC": 78}
    index = {name: np.tile(first[name] + np.arange(8), people) for name in CLASSES}
    w = {f"real {name}": np.c_[index[name], rng.normal(size=(8 * people, 2))] for name in CLASSES}
    names = [f"{name}/{100 * (name == 'NC') + i // 8}_{at}.png" for name in CLASSES for i, at in enumerate(index[name])]
    real = RealSlices(w, names, identify(names), w)
    position = real_position(real, 0)
    plain = style_space.style_separation(*w.values(), resampling_groups(real.scans)[0])
    assert plain.auc.low > 0.6 and position["slice index alone"].low > 0.6
    assert position["position-stratified"].low < 0.5 < position["position-stratified"].high
    (spec,) = map_specs(conditional=stand_in("both", (0, 1)))
    sentence = conclusions([a_map(spec, plain, real=real, real_separation=plain, position=position)])[REAL]
    assert "but no more than slice position may explain" in sentence
    few, chosen = {name: rows[:8] for name, rows in w.items()}, names[:8] + names[-8:]
    found = real_position(RealSlices(few, chosen, identify(chosen), few), 0)
    assert found["slice index alone"] is found["position-stratified"] is None and found["known"] == 16


def planted_real(rng, count=8):
    names = [f"AD/{i}_1.png" for i in range(count)] + [f"NC/{i}_1.png" for i in range(count, 2 * count)]
    pixels = {f"real {name}": np.zeros((count, 64, 64), np.uint8) for name in CLASSES}
    table = {str(i): Scan(str(i), f"p{i}", None, "FM"[i % 2], 60.0 + i) for i in range(2 * count - 1)}  # not the last
    return RealSlices(pixels, names, identify(names, table), {name: rng.normal(size=(count, 4)) for name in pixels})


def test_latents_are_compared_in_pairs_and_real_slices_are_not(tmp_path, monkeypatch):
    """Slice number i of AD and of NC have nothing in common, while latent number i is the same."""
    compared, rng = [], np.random.default_rng(0)

    def separation(a, b, groups=None, seed=0):
        compared.append((len(a), len(b), None if groups is None else list(groups)))
        return MIXED

    monkeypatch.setattr(style_maps, "style_separation", separation)
    monkeypatch.setattr(style_maps, "style_sets", lambda *_: {name: rng.normal(size=(20, 4)) for name in CLASSES})
    ad, nc, control = (stand_in(tmp_path / name) for name in ("AD", "NC", "control"))
    names = ["AD/7_1.png", "AD/8_1.png", "NC/9_1.png", "NC/9_2.png"]
    w = {f"real {name}": rng.normal(size=(2, 4)) for name in CLASSES}
    real = RealSlices(w, names, identify(names, {"7": Scan("7", "ann"), "8": Scan("8", "ann")}), w)
    maps = compute_maps(map_specs(ad, nc, control, stand_in(tmp_path / "both", (0, 1))), PCA, real)
    assert compared == [(20, 20, None)] * 3 + [(2, 2, ["people ann", "people ann", "scans 9", "scans 9"])]
    assert "resample people and scans" in conclusions(maps)[REAL] and [one.title for one in maps] == [PAIR, CONTROL, REAL]


@pytest.mark.parametrize("colour", ["class", "age", "sex", "area"])
def test_maps_have_the_values_of_their_colour(tmp_path, monkeypatch, colour):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(bootstrap_module, "RESAMPLED", 20)
    monkeypatch.setattr(style_maps, "style_sets", lambda *_: {name: rng.normal(size=(20, 4)) for name in CLASSES})
    monkeypatch.setattr(style_maps, "ventricle_areas", lambda spec, sets, _: {name: np.ones(len(w)) for name, w in sets.items()})
    real = planted_real(rng)
    (found,) = compute_maps(map_specs(conditional=stand_in(tmp_path, (0, 1))), PCA, real, colour)
    assert found.age["slices"] == 15 and list(found.sets) == list(found.points) == ["AD", "NC", *real.pixels]
    if colour == "class":
        assert not found.values
    elif colour == "area":
        assert set(found.values) == {"AD", "NC", *real.pixels}
    else:
        assert set(found.values) == set(real.pixels)
        first, last = {"age": (60, np.nan), "sex": ("F", "")}[colour]
        np.testing.assert_equal((found.values["real AD"][0], found.values["real NC"][-1]), (first, last))


def test_ventricle_areas_are_of_the_drawn_and_of_the_real_slices(monkeypatch):
    asked = []

    def synthesize(model, ws):
        asked.append(model.folder)
        return ws.numpy()[:, :1, None]

    monkeypatch.setattr(style_maps, "synthesize", synthesize)
    monkeypatch.setattr(style_maps, "known_view", lambda *_: "axial")
    monkeypatch.setattr(style_maps, "measure_areas", lambda pixels, *_: {"ventricle": 10 * pixels[:, 0, 0]})
    sets = {"AD": np.array([[1.0, 9], [2, 9]]), "NC": np.array([[3.0, 9]]), "real AD": np.array([[4.0, 9]])}
    real = RealSlices({"real AD": np.full((1, 1, 1), 7.0)}, [], [])
    specs = map_specs(stand_in("a"), stand_in("n"), conditional=stand_in("both", (0, 1)))
    found = style_maps.ventricle_areas(specs[1], sets, real)
    assert {name: areas.tolist() for name, areas in found.items()} == {"AD": [10, 20], "NC": [30], "real AD": [70]}
    style_maps.ventricle_areas(specs[0], sets)
    assert asked == ["both", "both", "a", "n"]


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
    monkeypatch.setattr(style_maps, "FRAMES", 2)
    for name in ("AD", "NC"):
        os.symlink(os.path.join(models, name), tmp_path / name)
    flags = ["--plot_umap", "True", "--AD_dir", "AD", "--NC_dir", os.path.join(models, "NC"), "--model_dir", tmp_path]
    flags += ["--output_dir", tmp_path / "out", "--device", "cpu", "--umap", "num_styles=60"]
    assert predict.main([*map(str, flags)]) == 0
    maps = ["umap.csv", "umap.png", "umap_epochs.gif"]
    assert sorted(os.listdir(tmp_path / "out")) == ["AD_generated.png", "NC_generated.png", *maps]
    assert "without a control" in capsys.readouterr().out
    assert has_points(tmp_path / "out/umap.png") and has_points(tmp_path / "out/umap_epochs.gif")


@pytest.mark.slow
def test_maps_with_a_control_and_a_conditional_model(models, tmp_path, capsys):
    control = change_weights(os.path.join(models, "NC"), tmp_path / "control", 2e-4)
    flags = ["--model_dir", models, "--output_dir", str(tmp_path), "--device", "cpu", "--umap", "num_styles=30", "method=pca"]
    assert predict.main(["--plot_umap", "True", "--AD_dir", "AD", "--NC_dir", "NC", "--control_dir", control, *flags]) == 0
    out = capsys.readouterr().out
    assert "AD and NC " in out and "the two NC models" in out and "A conditional model is told the class" in out
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
