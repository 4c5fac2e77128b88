"""Exports: their images and style vectors, how a stopped one is completed, and that two do not mix."""

import copy
import csv
import functools
import os

import numpy as np
import pytest
import torch
from conftest import read_image
from PIL import Image
from tqdm import tqdm

from analysis.export import export, exported_styles
from analysis.models import generate, synthesize
from dataset import Slices
from utils import UserError


def snapshot(folder):
    """{file: (its bytes, when it was written)}"""
    return {name: ((folder / name).read_bytes(), os.stat(folder / name).st_mtime_ns) for name in os.listdir(folder)}


def test_export_writes_the_images_of_generate(model, tmp_path):
    assert export(model, 18, 5, 0.8, "cpu", str(tmp_path)) == [str(tmp_path / "AD")]
    expected = np.concatenate(list(generate(model, 18, 5, 0.8)))
    for i, image in enumerate(expected):
        np.testing.assert_array_equal(read_image(tmp_path / "AD" / f"{i:06d}.png"), image)
    assert len(list((tmp_path / "AD").glob("*.png"))) == 18
    with open(tmp_path / "AD/metadata.csv") as file:
        rows = list(csv.DictReader(file))
    assert rows[17] == rows[0] | {"path": "000017.png", "number": "17", "w_row": "17"}
    assert [rows[0][name] for name in ("class", "seed", "truncation", "model", "w_file")] == ["AD", "5", "0.8", "AD", "w.npy"]


def test_export_without_a_progress_bar_writes_every_image(model, tmp_path, monkeypatch):
    """As under TQDM_DISABLE=1, which many batch jobs set: a bar that is not shown does not count."""
    monkeypatch.setattr("analysis.export.tqdm", functools.partial(tqdm, disable=True))
    export(model, 18, 5, 0.8, "cpu", str(tmp_path))
    assert sorted(path.name for path in (tmp_path / "AD").glob("*.png")) == [f"{i:06d}.png" for i in range(18)]
    for i, image in enumerate(np.concatenate(list(generate(model, 18, 5, 0.8)))):
        np.testing.assert_array_equal(read_image(tmp_path / "AD" / f"{i:06d}.png"), image)


def test_exported_styles_are_those_of_the_images(model, tmp_path):
    """Without noise an image is a function of its w."""
    model = copy.deepcopy(model)
    for block in model.generator.blocks:
        for style in block.styles:
            torch.nn.init.zeros_(style.noise_strength)
    export(model, 17, 2, 0.5, "cpu", str(tmp_path))
    w = torch.from_numpy(np.load(tmp_path / "AD/w.npy"))
    images = synthesize(model, w)
    for i in range(17):
        assert np.abs(images[i].astype(int) - read_image(tmp_path / f"AD/{i:06d}.png")).max() <= 1


def test_an_export_of_a_run_of_any_name_is_completed(model, tmp_path):
    model = model._replace(name='a[1] {0} %s \u2028\x85, "b"\nend')
    for count in (2, 2, 3):
        export(model, count, 0, 1.0, "cpu", str(tmp_path))
    with open(tmp_path / model.name / "metadata.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 and {row["model"] for row in rows} == {'a[1] {0} %s \\u2028\\x85, "b"\\nend'}
    with pytest.raises(UserError, match="holds 3 slices from an earlier export, more than the 2"):
        export(model, 2, 0, 1.0, "cpu", str(tmp_path))


def test_conditional_export_is_a_labelled_set(conditional, tmp_path):
    export(conditional, 3, 0, 1.0, "cpu", str(tmp_path))
    slices = Slices(str(tmp_path / "all-conditional"), resolution=32, progress=False)
    assert slices.counts == {"AD": 3, "NC": 3}
    with open(tmp_path / "all-conditional/metadata.csv") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["path"] for row in rows) == [f"{name}/00000{i}.png" for name in ("AD", "NC") for i in range(3)]
    for row in rows:
        assert row["class"] == row["path"][:2] and row["w_file"] == f"w_{row['class']}.npy"
    w = [np.load(tmp_path / f"all-conditional/w_{name}.npy") for name in ("AD", "NC")]
    assert w[0].shape == (3, 256) and not np.allclose(*w)
    np.testing.assert_array_equal(w[1], exported_styles(conditional, 3, 0, 1.0, 1, "cpu"))


def test_export_completes_a_stopped_export_and_enlarges_it(model, tmp_path):
    """The images that exist are not written again, and the missing ones are the same as in one export."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    export(model, 40, 0, 1.0, "cpu", str(whole))
    export(model, 40, 0, 1.0, "cpu", str(parts))
    for i in (3, *range(20, 40)):
        os.unlink(parts / f"AD/{i:06d}.png")
    before, complete = snapshot(parts / "AD"), snapshot(whole / "AD")
    before.pop("w.npy")  # always written again
    export(model, 40, 0, 1.0, "cpu", str(parts))
    after = snapshot(parts / "AD")
    assert {name: content for name, (content, _) in after.items()} == {name: content for name, (content, _) in complete.items()}
    assert {name: after[name] for name in before} == before
    export(model, 50, 0, 1.0, "cpu", str(parts))
    larger = snapshot(parts / "AD")
    assert sum(name.endswith(".png") for name in larger) == 50
    assert all(larger[name] == after[name] for name in after if name.endswith(".png"))


@pytest.mark.parametrize(
    "change, expected",
    [({"count": 3}, "holds 5 slices"), ({"seed": 1}, "another model, --seed"), ({"truncation": 0.5}, "another model, --seed")],
)
def test_exports_do_not_mix(model, tmp_path, change, expected):
    flags = {"count": 5, "seed": 0, "truncation": 1.0, "device": "cpu", "output_dir": str(tmp_path)}
    export(model, **flags)
    before = snapshot(tmp_path / "AD")
    with pytest.raises(UserError, match=expected):
        export(model, **flags | change)
    assert snapshot(tmp_path / "AD") == before


def test_export_leaves_other_pngs_alone(model, tmp_path):
    (tmp_path / "AD").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "AD/mine.png")
    with pytest.raises(UserError, match="without a metadata.csv"):
        export(model, 2, 0, 1.0, "cpu", str(tmp_path))
    assert os.listdir(tmp_path / "AD") == ["mine.png"]
