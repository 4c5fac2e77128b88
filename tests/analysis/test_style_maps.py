"""Maps of style vectors: what they compare, the epochs, the sentences about them, and the command that makes them."""

import csv
import json
import os
import shutil

import numpy as np
import pytest
from conftest import change_weights
from PIL import Image

import predict
from analysis import style_maps
from analysis.bootstrap import Interval
from analysis.models import Model, draw_z, load_model, style_vectors
from analysis.style_maps import (
    CONDITIONAL,
    CONTROL,
    PAIR,
    MapSettings,
    MapSpec,
    StyleMap,
    StyleSource,
    comparable_seeds,
    compute_maps,
    conclusions,
    history,
    map_specs,
    style_sets,
)
from analysis.style_space import StyleSeparation
from modules import MappingNetwork
from utils import CLASSES, UserError

PCA = MapSettings("pca", 15, 0.1, 20, 0)
MIXED, APART = (StyleSeparation(Interval(*values), Interval(*values)) for values in ((0.5, 0.4, 0.6), (0.9, 0.8, 1.0)))


def stand_in(folder, labels=(None,), w_dim=16):
    """A Model without a generator."""
    return Model(os.path.basename(folder), MappingNetwork(16, w_dim), None, list(CLASSES), list(labels), str(folder))


def a_map(spec, separation=MIXED, **others):
    return StyleMap(spec, {}, {}, separation, **others)


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


def test_conclusions_name_the_missing_control_and_what_a_conditional_model_is_told(tmp_path):
    pair, control, both = map_specs(*(stand_in(str(tmp_path / name)) for name in ("AD", "NC", "control")), stand_in("both", (0, 1)))
    (alone,) = conclusions([a_map(pair, APART)]).values()
    assert "without a control" in alone and "--control_dir" in alone
    sentences = conclusions([a_map(pair, APART), a_map(control, MIXED), a_map(both, APART)])
    assert set(sentences) == {PAIR, CONTROL, CONDITIONAL}
    assert "further apart than" in sentences[PAIR] == sentences[CONTROL] and "is told the class" in sentences[CONDITIONAL]


def test_maps_compare_latents_in_pairs(tmp_path, monkeypatch):
    compared, rng = [], np.random.default_rng(0)

    def separation(a, b, groups=None, seed=0):
        compared.append((len(a), len(b), groups))
        return MIXED

    monkeypatch.setattr(style_maps, "style_separation", separation)
    monkeypatch.setattr(style_maps, "style_sets", lambda *_: {name: rng.normal(size=(20, 4)) for name in CLASSES})
    ad, nc, control = (stand_in(tmp_path / name) for name in ("AD", "NC", "control"))
    maps = compute_maps(map_specs(ad, nc, control, stand_in(tmp_path / "both", (0, 1))), PCA)
    assert compared == [(20, 20, None)] * 3 and [one.spec.title for one in maps] == [PAIR, CONTROL, CONDITIONAL]
    assert all(points.shape == (20, 2) for one in maps for points in one.points.values())


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
