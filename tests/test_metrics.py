"""metrics.py as a command: what it reads, prints, writes and refuses."""

import json
import os
import re

import numpy as np
import pytest
from conftest import read_image, refusal
from PIL import Image
from synthetic import brains

import metrics
import predict
from analysis.quality import Quality
from dataset import Slices
from report.quality_report import quality_table
from utils import UserError


def write(folder, images):
    os.makedirs(folder)
    for i, image in enumerate(images):
        Image.fromarray(image).save(os.path.join(folder, f"{i}.png"))
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Plain folders real, fake, train of 32x32 PNGs; fake holds three slices of train, mirrored."""
    folder = tmp_path_factory.mktemp("metrics")
    train, fake = brains(60, 0), brains(24, 2)
    fake[:3] = train[10:13, :, ::-1]
    return {
        name: write(folder / name / "deep", images) for name, images in (("real", brains(30, 1)), ("fake", fake), ("train", train))
    }


@pytest.mark.slow
def test_command_prints_and_writes(folders, tmp_path, script):
    done = script(
        "metrics.py",
        "--real",
        folders["real"],
        "--fake",
        folders["fake"],
        "--train",
        folders["train"],
        "--resolution",
        32,
        "--output_dir",
        tmp_path / "out",
        "--device",
        "cpu",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("24 generated against 30 real slices at 32x32, vgg16\n")
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    values = written["values"]
    assert quality_table(Quality(values, None, None, None, "training slices", 0)) in done.stdout
    assert values["memorised"] == pytest.approx(3 / 24, abs=1.5 / 24)
    assert (written["real"], written["fake"], written["flags"]["resolution"]) == (30, 24, 32)
    for name in ("metrics.png", "nearest.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.width > 500 and np.asarray(picture.convert("L")).std() > 20


@pytest.mark.slow
@pytest.mark.parametrize("table, unit", [(None, "scans"), ("image,subject\n100,ann\n101,ann", "people and scans")])
def test_command_says_what_its_errors_resample(slices_dir, tmp_path, monkeypatch, capsys, table, unit):
    asked, flags = [], ["--real", slices_dir, "--fake", slices_dir, "--resolution", "32", "--output_dir", str(tmp_path)]
    measure = metrics.measure_quality
    monkeypatch.setattr(metrics, "measure_quality", lambda *given: asked.extend(given[7]) or measure(*given))
    if table:
        (tmp_path / "people.csv").write_text(table)
        flags += ["--subjects", str(tmp_path / "people.csv")]
    assert metrics.main([*flags, "--device", "cpu"]) == 0
    assert len(set(asked)) == (10 if table else 11) and len(asked) == 20  # AD and NC both have scans from 100 on
    assert f"resample {unit}: whose scans they are" in capsys.readouterr().out
    assert json.loads((tmp_path / "metrics.json").read_text())["resampled"] == unit


def test_load_reads_classes_draws_and_leaves_out_damaged_files(slices_dir, tmp_path, capsys):
    real, paths = metrics.load("--real", slices_dir, "AD", 32)
    assert real.shape == (9, 32, 32) and len(metrics.load("--real", slices_dir, "all", 32)[0]) == 20
    for pixels, path in zip(real, paths, strict=True):
        np.testing.assert_array_equal(pixels[:, 1:-1], read_image(path))  # 30 pixels wide
    drawn, _ = metrics.load("--real", slices_dir, "AD", 32, count=4, seed=1)
    assert len(np.unique(drawn, axis=0)) == 4 and all((real == image).all((1, 2)).any() for image in drawn)
    folder = write(tmp_path / "some", brains(3, 0))
    (tmp_path / "some" / "bad.png").write_bytes(b"no picture")
    assert [len(part) for part in metrics.load("--fake", folder, "all", 32)] == [3, 3]
    assert "1 unreadable left out: bad.png" in capsys.readouterr().err


@pytest.mark.parametrize("classes, count", [("all", None), ("NC", None), ("all", 7)])
def test_load_reads_deep_files_as_training_does(tmp_path, capsys, classes, count):
    for name, scale in (("AD", 1), ("CN", 16)):
        os.makedirs(tmp_path / name)
        for i, image in enumerate(brains(6, scale)):
            Image.fromarray((image.astype(np.uint16) * scale).astype((np.uint8, np.uint16)[scale > 1])).save(
                tmp_path / name / f"{i}.png"
            )
    pixels, paths = metrics.load("--real", str(tmp_path), classes, 32, count)
    slices = Slices(str(tmp_path), classes, 32, progress=False)
    of_name = dict(zip(slices.names, slices[np.arange(len(slices))]))
    assert len(pixels) == (count or len(slices))
    for image, path in zip(pixels, paths, strict=True):
        assert (image == of_name[path.removeprefix(str(tmp_path) + os.sep).replace("CN", "NC").replace(os.sep, "/")]).all()
    said = capsys.readouterr().err
    assert f"--real {tmp_path}: values read as black and white, decided for each folder: NC 0 and 4095 (16-bit)" in said


def test_dark_images_are_refused_unless_they_are_generated(tmp_path):
    folder = write(tmp_path / "dark", brains(6, 0) // 20)
    with pytest.raises(UserError, match=f"--real {folder}: dark is nearly black"):
        metrics.load("--real", folder, "all", 32)
    assert len(metrics.load("--fake", folder, "all", 32)[0]) == 6


def save_picture(path, width=600, height=500):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (width, height), 200).save(path)


PREDICTIONS = [  # what predict.py writes beside an export, of a run whose name has "_" in it
    *(f"my_run_{name}.png" for name in ("generated", "fake_vs_real", "mixing", "sweep", "interpolation", "noise_map", "pyramid")),
    *(f"my_run_{name}.png" for name in ("ganspace", "sefa", "morph", "morph_mean", "critic", "classifier", "areas")),
    *(f"my_run_{name}_{of}.png" for name in ("metrics", "nearest") for of in ("AD", "NC", "all")),
    *(f"{name}{end}.png" for name in ("umap", "tsne", "pca") for end in ("", "_epochs")),
    *(f"my_run_projected/218391_78{end}.png" for end in ("", "_classes")),
    *("styles.png", "augment.png", "metrics.png", "nearest.png", "samples.png", "steps/218391.png"),
]
RUN = ["losses.png", "loss_proportion.png", "fake_vs_real/epoch_0005.png", "fake_vs_real/32x32.png"]  # what train.py writes


@pytest.mark.parametrize("flag", ["--fake", "--real"])
def test_only_slices_of_predictions_are_counted_and_the_rest_is_named(tmp_path, capsys, flag):
    slices = brains(4, 0)
    write(tmp_path / "my_run", slices)
    for name in PREDICTIONS:
        save_picture(tmp_path / name)
    save_picture(tmp_path / "styles/000000.png", 32, 32)  # chosen on a map, beside styles.png
    (tmp_path / "my_run_interpolation.gif").write_bytes(b"GIF")
    images, paths = metrics.load(flag, str(tmp_path), "all", 32)
    assert len(images) == 4 and {os.path.dirname(path) for path in paths} == {str(tmp_path / "my_run")}
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note:")]
    assert line.startswith(f"note: {flag} {tmp_path}: {len(PREDICTIONS) + 1} pictures of many slices or diagrams left out: ")
    assert "augment.png" in line
    assert len(metrics.load(flag, str(tmp_path / "styles"), "all", 32)[0]) == 1  # asked for


def test_every_picture_that_predict_writes_is_known(models, slices_dir, tmp_path, quick):
    """So that a new one is not counted as a slice."""
    tools = "--draw all --num_images 1 --evaluate --plot_umap --conditional_dir all-conditional --umap method=pca num_styles=30"
    tools += " --num_slices 6 --export 6"
    data = os.path.join(os.path.dirname(slices_dir), "test")
    flags = ["--model_dir", models, "--output_dir", str(tmp_path), "--dataset_dir", data, "--device", "cpu", *tools.split()]
    assert predict.main([*flags, "--project", os.path.join(data, "AD/100_0.png")]) == 0
    slices, pictures = metrics.slice_paths("--fake", str(tmp_path), "all")
    assert [os.path.relpath(path, tmp_path) for paths in slices.values() for path in paths] == [
        os.path.join("all-conditional", name, f"{i:06d}.png") for name in ("AD", "NC") for i in range(6)
    ]
    assert len(pictures) > 20


@pytest.mark.parametrize("above", ["", "AD"])
def test_a_run_is_no_set_of_slices(tmp_path, above):
    for name in RUN:
        for label in ("AD", "NC") if above else ("",):
            save_picture(tmp_path / label / name)
    with pytest.raises(UserError, match="--fake .*no slice in it, only pictures .*losses.png.*--export N writes generated slices"):
        metrics.load("--fake", str(tmp_path), "all", 32)
    with pytest.raises(UserError, match="no slice in it, only pictures .*32x32.png, epoch_0005.png"):
        metrics.load("--real", str(tmp_path / above / "fake_vs_real"), "all", 32)


def test_slices_that_are_called_like_pictures_are_counted(tmp_path, capsys):
    for i, (name, *size) in enumerate(
        [("1_generated", 256, 256), ("2_areas", 176, 208), ("losses", 1024, 1024), ("grid", 600, 500)]
    ):
        save_picture(tmp_path / f"deep/{name}.png", *size)
        assert len(metrics.load("--real", str(tmp_path), "all", 32)[0]) == i + 1
    assert "left out" not in capsys.readouterr().err


def test_generated_images_of_another_size_than_most_are_named(tmp_path, capsys):
    """A picture under a name of its own; real slices may well have several sizes."""
    write(tmp_path / "fake", brains(3, 0))
    assert len(metrics.load("--fake", str(tmp_path), "all", 32)[0]) == 3 and "pixels" not in capsys.readouterr().err
    save_picture(tmp_path / "fake/mine.png", 64, 48)
    assert len(metrics.load("--fake", str(tmp_path), "all", 32)[0]) == 4
    line = "1 of 4 images are not of 32x32 pixels, so perhaps no slices: " + os.path.join("fake", "mine.png")
    assert f"warning: --fake {tmp_path}: {line}\n" in capsys.readouterr().err
    metrics.load("--real", str(tmp_path), "all", 32)
    assert "pixels" not in capsys.readouterr().err


def test_pictures_among_training_slices_are_left_out(tmp_path, capsys):
    for name in ("AD", "NC"):
        write(tmp_path / name, brains(3, 0))
        save_picture(tmp_path / name / "losses.png")
    pixels, names = metrics.load_train(str(tmp_path), "all", 32)
    assert len(pixels) == len(names) == 6
    assert "2 pictures of many slices" in capsys.readouterr().err


def test_an_export_of_one_class_says_which_flag_compares_it(tmp_path):
    write(tmp_path / "AD", brains(3, 0))
    save_picture(tmp_path / "AD_generated.png")
    with pytest.raises(UserError, match="--fake .*no folder NC in it.*; --classes AD compares this class alone"):
        metrics.load("--fake", str(tmp_path), "all", 32)
    assert len(metrics.load("--fake", str(tmp_path), "AD", 32)[0]) == 3


def test_wrong_input_is_rejected_with_the_flags_name(folders, slices_dir, tmp_path):
    real, fake = folders["real"], folders["fake"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "bad.png").write_bytes(b"no picture")
    flags = ["--resolution", "32", "--output_dir", tmp_path / "out", "--device", "cpu"]
    five, above = write(tmp_path / "five", brains(5, 0)), os.path.dirname(slices_dir)
    for expected, more in {
        "--real: no slices in": ["--real", tmp_path / "empty", "--fake", fake],
        "--fake: no readable slice": ["--real", real, "--fake", tmp_path / "bad"],
        "5 generated slices are too few": ["--real", real, "--fake", five],
        "--resolution 32": ["--real", real, "--fake", fake, "--resolution", "64"],
        "--train .*did you mean": ["--real", real, "--fake", fake, "--train", above],
        "--subjects none.csv: cannot be read": ["--real", real, "--fake", fake, "--subjects", "none.csv"],
        "--num_images": ["--real", real, "--fake", fake, "--num_images", "5"],
    }.items():
        line = refusal(metrics.main, *flags, *more)
        assert re.search(expected, line) and "--dataset_dir" not in line, line


@pytest.mark.slow
def test_command_refuses_in_one_line(folders, tmp_path, refused):
    assert "--fake" in refused("metrics.py", "--real", folders["real"], "--fake", tmp_path / "none", "--device", "cpu")


@pytest.mark.slow  # imports torchvision
def test_inception_without_its_weights_is_rejected_with_the_flags_name(slices_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    flags = ["--real", slices_dir, "--fake", slices_dir, "--features", "inception", "--resolution", 32]
    line = refusal(metrics.main, *flags, "--output_dir", tmp_path / "out")
    assert "--features inception" in line and "inception_v3_google-0cc3c7bd.pth" in line and str(tmp_path) in line
