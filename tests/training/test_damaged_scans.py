"""train.py and damaged scans: left out by default, kept when asked for, and a resumed run keeps to what it was begun with."""

import json

import pytest
from conftest import start
from synthetic import brains, draw_heads, noise, save

import train
from dataset import Slices

DAMAGED = "note: 1 damaged scan: 102, noise (neighbouring pixels correlate at "


@pytest.fixture
def data(tmp_path):
    """AD_NC/train/AD with six scans of two slices, of which 102 is noise; test/AD with six, of which 302 is black."""
    for split, first in (("train", 100), ("test", 300)):
        for i, image in enumerate(brains(12, first, 32)):
            damaged = noise(32, 32, i) if split == "train" else 0 * image
            save(tmp_path / f"AD_NC/{split}/AD/{first + i // 2}_{i % 2}.png", damaged if i // 2 == 2 else image)
    return str(tmp_path / "AD_NC/train")


def config_of(folder):
    return json.loads((folder / "AD/config.json").read_text())


def run(data, folder, epochs, capsys, *flags):
    """Train to this epoch; returns the lines on stderr that are notes."""
    assert start(data, folder, "--epochs", epochs, *flags) == 0
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]


def test_a_new_run_leaves_them_out_and_names_them(data, tmp_path, unplotted, capsys):
    (note,) = run(data, tmp_path, 1, capsys)
    assert note.startswith(DAMAGED) and note.endswith("; left out, --keep_damaged True keeps them")
    kept = config_of(tmp_path)["data"]
    assert kept["counts"] == {"AD": 10} and list(kept["damaged"]) == ["102"]
    assert run(data, tmp_path, 2, capsys) == [] and config_of(tmp_path)["data"] == kept  # resumed in silence


def test_keep_damaged_trains_on_all(data, tmp_path, unplotted, capsys):
    assert run(data, tmp_path, 1, capsys, "--keep_damaged") == []
    kept = config_of(tmp_path)["data"]
    assert kept == {"counts": {"AD": 12}, "fingerprint": Slices(data, "AD", 32).fingerprint, "damaged": {}}


def test_a_run_from_before_damage_was_looked_for_resumes_with_all_its_slices(data, tmp_path, unplotted, capsys):
    run(data, tmp_path, 1, capsys, "--keep_damaged")
    config = config_of(tmp_path)
    del config["data"]["damaged"], config["flags"]["keep_damaged"]
    (tmp_path / "AD/config.json").write_text(json.dumps(config))
    (note,) = run(data, tmp_path, 2, capsys)
    assert note.startswith("note: this run was begun with them and keeps them: 1 damaged scan: 102, noise")


def test_a_run_resumes_without_the_scans_that_it_left_out_whatever_is_found_now(data, tmp_path, unplotted, capsys, monkeypatch):
    run(data, tmp_path, 1, capsys)
    monkeypatch.setattr(train, "find_damaged", lambda *_: {"104": "another rule"})
    assert run(data, tmp_path, 2, capsys) == []
    (note,) = run(data, tmp_path, 3, capsys, "--keep_damaged")
    assert note.startswith("note: this run was begun without 1 damaged scan: 102") and "--resume False" in note
    (note,) = run(data, tmp_path, 1, capsys, "--resume", "False")
    assert "104, another rule; left out" in note and list(config_of(tmp_path)["data"]["damaged"]) == ["104"]


@pytest.mark.parametrize("keep, count", [("False", 10), ("True", 12)])
def test_held_out_slices_are_judged_likewise(data, keep, count, capsys):
    args = train.parse_args(["--dataset_dir", data, "--classes", "AD", "--resolution", "32", "--keep_damaged", keep])
    assert len(train.load_held_out(args, args.keep_damaged)) == count
    assert ("note: held-out slices: 1 damaged scan: 302, black" in capsys.readouterr().err) == (keep == "False")


def test_a_config_whose_list_is_nonsense_leaves_nothing_out(data, tmp_path, unplotted, capsys):
    run(data, tmp_path, 1, capsys, "--keep_damaged")
    config = config_of(tmp_path)
    for nonsense in (["102"], "102", None, 3):
        config["data"]["damaged"] = nonsense
        (tmp_path / "AD/config.json").write_text(json.dumps(config))
        run(data, tmp_path, 2, capsys, "--keep_damaged")


def test_mirroring_sagittal_slices_is_warned_of(tmp_path, unplotted, capsys):
    for i, image in enumerate(draw_heads(10, False, side=32)):
        save(tmp_path / f"AD_NC/train/AD/{100 + i}_0.png", image)
    for mirror, warned in (("False", 0), ("True", 1)):
        assert start(str(tmp_path / "AD_NC/train"), tmp_path / mirror, "--epochs", 1, "--mirror", mirror) == 0
        lines = [
            line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: --mirror True: 100% of the slices")
        ]
        assert len(lines) == warned
