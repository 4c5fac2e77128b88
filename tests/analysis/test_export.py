"""Exports: their images and style vectors, how a stopped one is completed, and that two do not mix; slices of chosen styles."""

import copy
import csv
import functools
import os

import numpy as np
import pytest
import torch
from conftest import read_image, refusal
from PIL import Image
from tqdm import tqdm

import predict
from analysis.export import export, exported_styles, read_style_table
from analysis.models import draw_z, generate, load_model, style_vectors, synthesize
from dataset import Slices
from utils import UserError


def snapshot(folder):
    """{file: (its bytes, when it was written)}"""
    return {name: ((folder / name).read_bytes(), os.stat(folder / name).st_mtime_ns) for name in os.listdir(folder)}


def test_export_writes_the_images_of_generate(model, tmp_path):
    assert export(model, 18, 5, 0.8, str(tmp_path)) == [str(tmp_path / "AD")]
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
    export(model, 18, 5, 0.8, str(tmp_path))
    assert sorted(path.name for path in (tmp_path / "AD").glob("*.png")) == [f"{i:06d}.png" for i in range(18)]
    for i, image in enumerate(np.concatenate(list(generate(model, 18, 5, 0.8)))):
        np.testing.assert_array_equal(read_image(tmp_path / "AD" / f"{i:06d}.png"), image)


def test_exported_styles_are_those_of_the_images(model, tmp_path):
    """Without noise an image is a function of its w."""
    model = copy.deepcopy(model)
    for block in model.generator.blocks:
        for style in block.styles:
            torch.nn.init.zeros_(style.noise_strength)
    export(model, 17, 2, 0.5, str(tmp_path))
    w = torch.from_numpy(np.load(tmp_path / "AD/w.npy"))
    images = synthesize(model, w)
    for i in range(17):
        assert np.abs(images[i].astype(int) - read_image(tmp_path / f"AD/{i:06d}.png")).max() <= 1


def test_an_export_of_a_run_of_any_name_is_completed(model, tmp_path):
    model = model._replace(name='a[1] {0} %s \u2028\x85, "b"\nend')
    for count in (2, 2, 3):
        export(model, count, 0, 1.0, str(tmp_path))
    with open(tmp_path / model.name / "metadata.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 and {row["model"] for row in rows} == {'a[1] {0} %s \\u2028\\x85, "b"\\nend'}
    with pytest.raises(UserError, match="holds 3 slices from an earlier export, more than the 2"):
        export(model, 2, 0, 1.0, str(tmp_path))


def test_conditional_export_is_a_labelled_set(conditional, tmp_path):
    export(conditional, 3, 0, 1.0, str(tmp_path))
    slices = Slices(str(tmp_path / "all-conditional"), resolution=32, progress=False)
    assert slices.counts == {"AD": 3, "NC": 3}
    with open(tmp_path / "all-conditional/metadata.csv") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["path"] for row in rows) == [f"{name}/00000{i}.png" for name in ("AD", "NC") for i in range(3)]
    for row in rows:
        assert row["class"] == row["path"][:2] and row["w_file"] == f"w_{row['class']}.npy"
    w = [np.load(tmp_path / f"all-conditional/w_{name}.npy") for name in ("AD", "NC")]
    assert w[0].shape == (3, 256) and not np.allclose(*w)
    np.testing.assert_array_equal(w[1], exported_styles(conditional, 3, 0, 1.0, 1))


def test_export_completes_a_stopped_export_and_extends_it(model, tmp_path):
    """The images that exist are not written again, and the missing ones are the same as in one export."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    export(model, 40, 0, 1.0, str(whole))
    export(model, 40, 0, 1.0, str(parts))
    for i in (3, *range(20, 40)):
        os.unlink(parts / f"AD/{i:06d}.png")
    before, complete = snapshot(parts / "AD"), snapshot(whole / "AD")
    before.pop("w.npy")  # always written again
    export(model, 40, 0, 1.0, str(parts))
    after = snapshot(parts / "AD")
    assert {name: content for name, (content, _) in after.items()} == {name: content for name, (content, _) in complete.items()}
    assert {name: after[name] for name in before} == before
    export(model, 50, 0, 1.0, str(parts))
    larger = snapshot(parts / "AD")
    assert sum(name.endswith(".png") for name in larger) == 50
    assert all(larger[name] == after[name] for name in after if name.endswith(".png"))


@pytest.mark.parametrize(
    "change, expected",
    [({"count": 3}, "holds 5 slices"), ({"seed": 1}, "another model, seed"), ({"truncation": 0.5}, "another model, seed")],
)
def test_exports_do_not_mix(model, tmp_path, change, expected):
    flags = {"count": 5, "seed": 0, "truncation": 1.0, "output_dir": str(tmp_path)}
    export(model, **flags)
    before = snapshot(tmp_path / "AD")
    with pytest.raises(UserError, match=expected):
        export(model, **flags | change)
    assert snapshot(tmp_path / "AD") == before


def test_export_leaves_other_pngs_alone(model, tmp_path):
    (tmp_path / "AD").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "AD/mine.png")
    with pytest.raises(UserError, match="without a metadata.csv"):
        export(model, 2, 0, 1.0, str(tmp_path))
    assert os.listdir(tmp_path / "AD") == ["mine.png"]


# ---------------------------------------------------------------------------------------------------------------------
# Chosen style vectors


def write(path, header, *rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def test_read_style_table_gives_rows_in_order_whatever_the_order_of_columns(tmp_path):
    path = write(tmp_path / "s.csv", ["w1", "set", "run", "w0"], [0.5, "AD", "a, b", -1], [2, "", "c", 1e-3])
    table = read_style_table(path)
    assert [(row.line, row.run, row.set) for row in table] == [(2, "a, b", "AD"), (3, "c", "")]
    np.testing.assert_array_equal([row.w for row in table], np.float32([[-1, 0.5], [1e-3, 2]]))


def test_rows_of_a_model_with_shorter_style_vectors_end_in_empty_cells(tmp_path):
    path = write(tmp_path / "s.csv", ["run", "w0", "w1", "w2"], ["a", 1, 2, 3], ["b", 4, 5, ""])
    assert [len(row.w) for row in read_style_table(path)] == [3, 2]


@pytest.mark.parametrize(
    "header, rows, message",
    [
        (["run", "x"], [["a", 1]], "no columns run, w0, w1"),
        (["w0", "w1"], [[1, 2]], "no columns run"),
        (["run", "w0"], [], "no rows below its header"),
        (["run", "w0"], [["a", "1"], ["a", "nan"]], "line 3 holds no run with a style vector"),
        (["run", "w0"], [["", "1"]], "line 2 holds no run"),
        (["run", "w0", "w1"], [["a", "", "1"]], "line 2 holds no run with a style vector"),
        (["run", "w0"], [["a", "1e9"]], "line 2 holds"),
    ],
)
def test_read_style_table_refuses_in_one_line(tmp_path, header, rows, message):
    path = write(tmp_path / "s.csv", header, *rows)
    line = refusal(predict.main, "--export", path, "--device", "cpu")
    assert line.startswith(f"{path}: ") and message in line


def test_styles_are_drawn_at_full_size_in_the_order_of_the_table(models, tmp_path, capsys):
    model = load_model(os.path.join(models, "AD"), "cpu")
    w = style_vectors(model.mapping, draw_z(3, model.mapping.z_dim, 7))[0].numpy()
    rows = [["NC", "b\n$x$ {0}", *w[0]], ["AD", "a", *w[1]], ["AD", "a", *w[2]]]
    path = write(tmp_path / "s.csv", ["run", "set", *(f"w{i}" for i in range(w.shape[1]))], *rows)
    assert predict.main(["--export", path, "--model_dir", models, "--output_dir", str(tmp_path / "out"), "--device", "cpu"]) == 0
    for i, run in enumerate(["NC", "AD", "AD"]):
        with torch.no_grad():
            expected = synthesize(load_model(os.path.join(models, run), "cpu"), torch.from_numpy(w[i : i + 1]))[0]
        np.testing.assert_allclose(read_image(tmp_path / "out" / "styles" / f"{i:06d}.png").astype(int), expected, atol=1)
    out = capsys.readouterr().out
    assert (
        str(tmp_path / "out" / "styles.png") in out
        and f"3 slices, at full size and with fixed noise, in {tmp_path / 'out' / 'styles'}." in out
    )
    shorter = write(tmp_path / "t.csv", ["run", *(f"w{i}" for i in range(w.shape[1]))], ["AD", *w[1]])
    flags = "--model_dir", models, "--output_dir", tmp_path / "out", "--device", "cpu"
    assert "holds the slices of a longer table" in refusal(predict.main, "--export", shorter, *flags)


def test_styles_of_another_length_or_run_draw_nothing(models, tmp_path):
    flags = ["--model_dir", models, "--output_dir", tmp_path / "out", "--device", "cpu"]
    path = write(tmp_path / "s.csv", ["run", "w0"], ["AD", 1])
    assert "line 2 has 1 numbers, but the style vectors of AD have" in refusal(predict.main, "--export", path, *flags)
    path = write(tmp_path / "s.csv", ["run", "w0"], ["no such run", 1])
    assert "no such run" in refusal(predict.main, "--export", path, *flags)
    assert not (tmp_path / "out" / "styles").exists()
