"""Style vectors in a table, and the slices that predict.py --styles draws of them."""

import csv
import os

import numpy as np
import pytest
import torch
from conftest import read_image, refusal

import predict
from analysis.models import draw_z, load_model, style_vectors, synthesize
from analysis.style_table import read_style_table


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
    line = refusal(predict.main, "--styles", path, "--device", "cpu")
    assert line.startswith(f"--styles {path}: ") and message in line


def test_styles_are_drawn_at_full_size_in_the_order_of_the_table(models, tmp_path, capsys):
    model = load_model(os.path.join(models, "AD"), "cpu")
    w = style_vectors(model.mapping, draw_z(3, model.mapping.z_dim, 7))[0].numpy()
    rows = [["NC", "b\n$x$ {0}", *w[0]], ["AD", "a", *w[1]], ["AD", "a", *w[2]]]
    path = write(tmp_path / "s.csv", ["run", "set", *(f"w{i}" for i in range(w.shape[1]))], *rows)
    assert predict.main(["--styles", path, "--model_dir", models, "--output_dir", str(tmp_path / "out"), "--device", "cpu"]) == 0
    for i, run in enumerate(["NC", "AD", "AD"]):
        with torch.no_grad():
            expected = synthesize(load_model(os.path.join(models, run), "cpu"), torch.from_numpy(w[i : i + 1]))[0]
        np.testing.assert_allclose(read_image(tmp_path / "out" / "styles" / f"{i:06d}.png").astype(int), expected, atol=1)
    out = capsys.readouterr().out
    assert str(tmp_path / "out" / "styles.png") in out and f"Drawn by {models}/NC, {models}/AD." in out.replace(os.sep, "/")


def test_styles_of_another_length_or_run_draw_nothing(models, tmp_path):
    flags = ["--model_dir", models, "--output_dir", tmp_path / "out", "--device", "cpu"]
    path = write(tmp_path / "s.csv", ["run", "w0"], ["AD", 1])
    assert "line 2 has 1 numbers, but the style vectors of AD have" in refusal(predict.main, "--styles", path, *flags)
    path = write(tmp_path / "s.csv", ["run", "w0"], ["no such run", 1])
    assert "no such run" in refusal(predict.main, "--styles", path, *flags)
    assert not (tmp_path / "out" / "styles").exists()


@pytest.mark.parametrize(
    "flags, message", [(["--atlas", "True"], "--plot_umap"), (["--styles", "s.csv", "--morph", "True"], "leave out --morph")]
)
def test_flags_that_do_not_go_together(flags, message):
    assert message in refusal(predict.main, *flags)
