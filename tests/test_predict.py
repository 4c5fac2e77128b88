"""predict.py: what its flags write, which runs they mean, and what is refused."""

import csv
import json
import os
import shutil

import numpy as np
import pytest
from conftest import read_image, refusal
from PIL import Image

import predict
from utils import UserError


def run(model_dir, output_dir, *flags):
    """Run predict.py on the CPU in this process; returns the exit status."""
    return predict.main(["--model_dir", str(model_dir), "--output_dir", str(output_dir), "--device", "cpu", *flags])


def test_predict_writes_grids_of_generated_images_and_beside_real_ones(models, slices_dir, tmp_path, capsys):
    assert run(models, tmp_path, "--dataset_dir", slices_dir, "--classes", "AD", "--num_images", "9") == 0
    generated, beside = (read_image(tmp_path / f"AD_{name}.png") for name in ("generated", "fake_vs_real"))
    assert capsys.readouterr().out.split() == [str(tmp_path / f"AD_{name}.png") for name in ("generated", "fake_vs_real")]
    assert beside.shape[0] == generated.shape[0] and beside.shape[1] > 1.8 * generated.shape[1]
    np.testing.assert_array_equal(beside[40:, : generated.shape[1] - 20], generated[40:, :-20])


# ---------------------------------------------------------------------------------------------------------------------
# Which run


@pytest.fixture
def two_states(models, tmp_path):
    """--model_dir with a run whose last generator is that of AD and whose best one is that of NC."""
    run = tmp_path / "models/run"
    run.mkdir(parents=True)
    for name, source in (("generator.pt", "AD"), ("best.pt", "NC")):
        shutil.copy(os.path.join(models, source, "generator.pt"), run / name)
    return str(run.parent)


def test_which_chooses_the_best_or_the_last_generator(models, two_states, tmp_path):
    def drawn(model_dir, name, *flags):
        assert run(model_dir, tmp_path, "--classes", name, "--num_images", "4", *flags) == 0
        return read_image(tmp_path / f"{name}_generated.png")[40:]  # below the caption

    last, best = drawn(models, "AD"), drawn(models, "NC")
    np.testing.assert_array_equal(drawn(two_states, "run", "--which", "best"), best)
    np.testing.assert_array_equal(drawn(two_states, "run", "--which", "last"), last)
    assert (last != best).any()


def test_classes_names_a_run_of_that_class(models, tmp_path):
    os.symlink(os.path.join(models, "NC"), tmp_path / "AD")
    line = refusal(predict.main, "--model_dir", tmp_path, "--classes", "AD", "--output_dir", tmp_path / "out", "--device", "cpu")
    assert "--classes AD: the run in" in line and "was trained on NC, not on AD" in line and not (tmp_path / "out").exists()


def test_flags_of_maps_need_plot_umap():
    for flag in ("AD_dir", "NC_dir", "control_dir"):
        with pytest.raises(UserError, match=f"--{flag} belongs to --plot_umap True"):
            predict.parse_args([f"--{flag}", "x"])


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--which", "worst"], "--which"),
        (["--plot_umap", "True", "--classes", "NC"], "--AD_dir and --NC_dir"),
        (["--plot_umap", "--AD_dir", "AD"], "--NC_dir"),
        (["--plot_umap", "True", "--AD_dir", "AD", "--NC_dir", "CN"], "no run CN"),
        (["--plot_umap", "--AD_dir", "AD", "--NC_dir", "all-conditional"], "--NC_dir all-conditional is a conditional model"),
        (["--plot_umap", "--classes", "AD"], "--plot_umap True also needs --AD_dir and --NC_dir"),
        (["--plot_umap", "--classes", "all-conditional", "--control_dir", "NC"], "goes with both --AD_dir and --NC_dir"),
        (["--classes", "AD", "--draw", "morph"], "--draw morph needs a conditional model"),
        (["--classes", "AD", "--draw", "grid,mix"], "--draw: 'mix' is not one of grid, mixing, sweep"),
        (["--umap", "neighbours=3"], "--umap: expected NAME=VALUE with one of the names method, n_neighbors"),
        (["--umap", "method=umap", "n_neighbors=1"], "--umap: n_neighbors: 1 is out of range: at least 2"),
        (["--umap", "method=UMAP"], "--umap: method: 'UMAP' is not one of umap, tsne, pca"),
        (["--atlas", "True"], "--atlas belongs to --plot_umap"),
        (["--umap", "method=tsne"], "--umap belongs to --plot_umap"),
        (["--export", "s.csv", "--draw", "morph"], "leave out --draw"),
        (["--export", "s.csv", "--dataset_dir", "x"], "leave out --dataset_dir"),
        (
            ["--export", "s.csv", "--report", "True"],
            "--export s.csv draws the slices of this table and nothing else: leave out --report",
        ),
        (["--export", "s.txt"], "--export: 's.txt'"),
        (["--classes", "AD", "--evaluate"], "--dataset_dir"),
        (["--classes", "AD", "--quiz"], "--quiz True also needs --dataset_dir"),
        (["--classes", "AD", "--subjects", "none.csv"], "--subjects none.csv: cannot be read"),
        (["--classes", "AD", "--project", "nowhere"], "nowhere"),
        (["--classes", "AD", "--encode", "nowhere"], "--encode"),
        (["--classes", "AD", "--project", ""], "--project: expected a value"),
        (["--model_dir", "nowhere"], "nowhere holds no run"),
        (["--truncation", "-1"], "--truncation"),
        (["--classes", "AD", "--num_images", "0"], "--num_images"),
        (["--classes", "AD", "--dataset_dir", "nowhere"], "nowhere"),
        (["--classes", "AD", "--output_dir", __file__], "--output_dir"),
    ],
)
def test_wrong_flags_are_refused_by_name(models, tmp_path, flags, expected):
    assert expected in refusal(predict.main, "--model_dir", models, "--output_dir", tmp_path, "--device", "cpu", *flags)


def test_flags_of_pictures_and_maps_are_read():
    assert predict.parse_args([]).draw == ["grid"] and predict.parse_args(["--draw", "all"]).draw == list(predict.PICTURES)
    assert predict.parse_args(["--draw", "morph,grid"]).draw == ["grid", "morph"]
    assert predict.parse_args(["--draw", "grid,all"]).draw == list(predict.PICTURES)
    args = predict.parse_args(["--plot_umap", "True", "--umap", "method=tsne", "n_neighbors=7"])
    assert args.umap == {"method": "tsne", "n_neighbors": 7, "min_dist": 0.1, "num_styles": 1000}
    assert set(predict.PICTURES) == {"grid", "values", *predict.DRAW}


@pytest.mark.slow
def test_command_writes_a_grid_and_names_it(script, models, tmp_path):
    done = script("predict.py", "--model_dir", models, "--classes", "NC", "--output_dir", tmp_path / "out", "--device", "cpu")
    assert (done.returncode, done.stdout.split()) == (0, [str(tmp_path / "out/NC_generated.png")]), done.stderr
    assert read_image(tmp_path / "out/NC_generated.png").std() > 5


@pytest.mark.slow
def test_command_refuses_in_one_line(refused, models):
    assert "no run CN" in refused("predict.py", "--model_dir", models, "--classes", "CN", "--device", "cpu")


# ---------------------------------------------------------------------------------------------------------------------
# Tools


@pytest.mark.slow
@pytest.mark.parametrize("name", ["AD", "all-conditional"])
def test_every_picture_is_drawn(models, tmp_path, capsys, name, quick):
    """morph is left out for a model that is not conditional."""
    assert run(models, tmp_path, "--classes", name, "--draw", "all") == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith(str(tmp_path))]
    expected = "generated.png mixing.png sweep.png interpolation.png interpolation.gif noise_map.png pyramid.png".split()
    expected += ["ganspace.png", "sefa.png"]
    if name == "all-conditional":
        expected += ["morph.png", "morph_mean.png", "morph.gif"]
    assert sorted(told) == sorted(str(tmp_path / f"{name}_{end}") for end in expected)
    assert sorted(os.listdir(tmp_path)) == sorted(map(os.path.basename, told))
    for path in told:
        with Image.open(path) as image:
            assert (getattr(image, "n_frames", 1) > 3) == path.endswith(".gif")
            assert np.asarray(image.convert("L")).std() > 5, path  # something is drawn


def test_truncation_applies_to_figures_of_latents(models, tmp_path):
    """At psi 0 every image is the mean, so that all frames are equal."""
    assert run(models, tmp_path, "--classes", "AD", "--draw", "interpolate", "--truncation", "0") == 0
    with Image.open(tmp_path / "AD_interpolation.gif") as image:
        frames = []
        for i in range(image.n_frames):
            image.seek(i)
            frames.append(np.asarray(image.convert("L")))
    assert all((frame == frames[0]).all() for frame in frames)


# ---------------------------------------------------------------------------------------------------------------------
# Real slices, and judgement


def test_quiz_is_one_page(models, slices_dir, tmp_path, capsys):
    assert run(models, tmp_path, "--classes", "NC", "--dataset_dir", slices_dir, "--num_images", "3", "--quiz") == 0
    assert str(tmp_path / "quiz.html") in capsys.readouterr().out.splitlines()
    assert "6 slices in random order" in (tmp_path / "quiz.html").read_text()


def test_encode_writes_a_row_and_a_style_vector_for_every_slice(models, slices_dir, tmp_path, capsys, quick):
    test_dir = os.path.join(os.path.dirname(slices_dir), "test")
    assert run(models, tmp_path, "--classes", "all-conditional", "--encode", test_dir) == 0
    with open(tmp_path / "all-conditional_encoded.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["file"], row["class"], row["scan"], row["slice"]) for row in rows[5:7]] == [
        ("AD/105_0.png", "AD", "105", "0"),
        ("NC/100_0.png", "NC", "100", "0"),
    ]
    assert len(rows) == 13 and all((float(row["outside"]) > 1) == (row["refused"] == "True") for row in rows)
    with np.load(tmp_path / "all-conditional_encoded.npz", allow_pickle=False) as kept:
        assert kept["w"].shape == (13, 256) and (kept["deviation"] > 0).all()
        np.testing.assert_allclose(kept["w"], kept["mean"] + kept["points"] @ kept["basis"], rtol=1e-4, atol=1e-5)
    assert read_image(tmp_path / "all-conditional_encoded.png").shape[0] > 3 * 128
    refused = sum(row["refused"] == "True" for row in rows) / 13
    assert f"13 slices encoded: {tmp_path}" in (out := capsys.readouterr().out) and f"{refused:.0%} are refused" in out


def test_morph_writes_the_twins_of_real_slices(models, slices_dir, tmp_path, capsys, quick):
    folder = os.path.join(slices_dir, "AD")  # on which the model was trained
    assert run(models, tmp_path, "--classes", "all-conditional", "--draw", "morph", "--encode", folder) == 0
    out = capsys.readouterr().out
    assert out.count("WARNING: the model was trained on 9 of these 9 scans") == 2  # of the encodings and of the twins
    assert "9 slices (9 scans) and their twins of the other class" in out and "called the other class (effectiveness): " in out
    with open(tmp_path / "all-conditional_twins.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [f"{100 + i}_0.png" for i in range(9)]
    assert {row["class"] for row in rows} == {row["taken for"] for row in rows} == {"AD"}
    assert {row[f"probe: {of}"] for row in rows for of in ("real", "encoded", "twin")} <= {"AD", "NC"}
    assert read_image(tmp_path / "all-conditional_twins.png").shape[0] > 5 * 160
    assert not (tmp_path / "all-conditional_projected").exists()


def test_an_evaluation_without_both_splits_is_refused_before_anything_is_drawn(models, slices_dir, tmp_path):
    os.symlink(slices_dir, tmp_path / "train")
    for flag in ("--evaluate", "--report"):
        flags = "--classes", "AD", flag, "--dataset_dir", tmp_path / "train", "--output_dir", tmp_path / "out", "--device", "cpu"
        line = refusal(predict.main, "--model_dir", models, *flags)
        assert "the evaluation needs train/ and test/" in line and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_report_has_all_sections(models, slices_dir, tmp_path, quick):
    test_dir = os.path.join(os.path.dirname(slices_dir), "test")
    flags = "--classes all-conditional --report True --plot_umap"
    flags += " --classes all-conditional --umap method=pca num_styles=30"
    folders = "--dataset_dir", test_dir, "--project", os.path.join(test_dir, "AD"), "--subjects", str(tmp_path / "people.csv")
    (tmp_path / "people.csv").write_text("image,subject\n" + "".join(f"I{100 + i},p{i // 2}\n" for i in range(11)))
    assert run(models, tmp_path, *flags.split(), *folders) == 0
    with open(tmp_path / "report.json") as file:
        report = json.load(file)
    titles = [section["title"].removeprefix("all-conditional: ") for section in report["sections"]]
    assert titles == [
        "generated images",
        "style mixing",
        "truncation",
        "interpolation",
        "noise",
        "resolutions",
        "principal directions",
        "AD and NC of the same latents",
        "twins of real slices",
        "real slices projected",
        "a classifier of AD and NC",
        "what the style space keeps of AD and NC",
        "metrics",
        "Style space",
        "Real slices, encoded by all-conditional",
    ]
    found = {section["title"].split(": ")[-1]: section for section in report["sections"]}
    assert len(found["real slices projected"]["tables"][0]["rows"]) == 6 + 1  # and their mean
    assert found["Real slices, encoded by all-conditional"]["text"][2].endswith("Intervals and standard errors resample people.")
    text = found["a classifier of AD and NC"]["text"]
    assert "resample people." in text[1] and text[2].startswith("4 of 4 people of the test slices are in the training set too")
    assert set(found["Style space"]["numbers"]) == {"one conditional model"}
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img") == sum(len(section["figures"]) for section in report["sections"]) > 20
    with np.load(next((tmp_path / "all-conditional_projected").glob("*.npz")), allow_pickle=False) as kept:
        assert kept["target"].shape == (32, 32)
