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
from analysis.quality import quality_table
from dataset import Slices
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
    assert quality_table(values) in done.stdout
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
    monkeypatch.setattr(metrics, "measure_quality", lambda *given, groups, **_: asked.extend(groups) or measure(*given))
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


def test_wrong_input_is_refused_by_name(folders, slices_dir, tmp_path):
    real, fake = folders["real"], folders["fake"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "bad.png").write_bytes(b"no picture")
    flags = ["--resolution", "32", "--output_dir", tmp_path / "out", "--device", "cpu"]
    five, above = write(tmp_path / "five", brains(5, 0)), os.path.dirname(slices_dir)
    for expected, more in {
        "--real: no slices in": ["--real", tmp_path / "empty", "--fake", fake],
        "--fake .*no readable slice": ["--real", real, "--fake", tmp_path / "bad"],
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
def test_inception_without_its_weights_is_refused_by_name(slices_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    flags = ["--real", slices_dir, "--fake", slices_dir, "--features", "inception", "--resolution", 32]
    line = refusal(metrics.main, *flags, "--output_dir", tmp_path / "out")
    assert "--features inception" in line and "inception_v3_google-0cc3c7bd.pth" in line and str(tmp_path) in line
