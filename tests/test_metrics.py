"""metrics.py as a command: what it reads, prints, writes and refuses."""

import json
import os
import re

import numpy as np
import pytest
from conftest import read_image, refusal
from inception_file import Pooled, save_network
from PIL import Image
from synthetic import brains

import metrics
import predict
from analysis.distances import frechet_distance
from analysis.inception import Inception
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
    assert done.stdout.startswith("24 generated against 30 real slices at 32x32\n")
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
    monkeypatch.setattr(
        metrics, "measure_quality", lambda *given, **named: asked.extend(named["groups"]) or measure(*given, **named)
    )
    if table:
        (tmp_path / "people.csv").write_text(table)
        flags += ["--subjects", str(tmp_path / "people.csv")]
    assert metrics.main([*flags, "--device", "cpu"]) == 0
    assert len(set(asked)) == (10 if table else 11) and len(asked) == 20  # AD and NC both have scans from 100 on
    assert f"resample {unit}: whose scans they are" in capsys.readouterr().out
    assert json.loads((tmp_path / "metrics.json").read_text())["resampled"] == unit


@pytest.mark.slow
def test_fid_by_a_given_file_stands_beside_its_floor(slices_dir, tmp_path, capsys):
    flags = ["--resolution", "32", "--output_dir", str(tmp_path / "out"), "--device", "cpu", "--real", slices_dir]
    weights = save_network(Pooled(), tmp_path / "pooled.pt")
    (tmp_path / "people.csv").write_text("image,subject\n" + "".join(f"{100 + i},p{i // 2}\n" for i in range(11)))
    flags += ["--subjects", str(tmp_path / "people.csv"), "--fake", os.path.join(os.path.dirname(slices_dir), "test", "NC")]
    assert metrics.main([*flags, "--fid_weights", weights]) == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["inception"]
    assert found["size"] == 7 and found["all"]["fid"] > 0 and found["floor"]["fid"] > 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("by pooled.pt, resized to 299x299 as by clean-fid:")
    shown = [re.split(r"  +", line)[:2] for line in lines[start + 2 : start + 5]]
    assert [name for name, _ in shown] == ["20 real and 7 generated", "7 and 7", "floor: halves that share no people"]
    assert [float(fid) for _, fid in shown] == [round(found[name]["fid"], 2) for name in ("all", "half", "floor")]
    extract, (real, _), (fake, _) = (
        Inception(weights),
        metrics.load("--real", slices_dir, "all", 32, 2000),
        metrics.load("--fake", flags[-1], "all", 32, 2000),
    )
    assert found["all"]["fid"] == pytest.approx(frechet_distance(extract(real), extract(fake)), rel=1e-9)
    line = refusal(metrics.main, *flags, "--fid_weights", tmp_path / "people.csv")
    assert "people.csv: no InceptionV3 as a TorchScript file" in line and "download it once from https://" in line


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


def test_only_slices_of_predictions_are_counted_and_the_rest_is_named(models, slices_dir, tmp_path, capsys, quick):
    """Pictures beside an export have other sizes; of real slices all sizes count."""
    tools = "--draw all --num_images 1 --evaluate --plot_umap --classes all-conditional --umap method=pca num_styles=30"
    data, out = os.path.join(os.path.dirname(slices_dir), "test"), str(tmp_path / "out")
    flags = ["--model_dir", models, "--output_dir", out, "--dataset_dir", data, "--device", "cpu", *tools.split()]
    assert predict.main([*flags, "--export", "20", "--project", os.path.join(data, "AD/100_0.png")]) == 0
    capsys.readouterr()
    images, paths = metrics.load("--fake", out, "all", 32)
    expected = {os.path.join(out, "all-conditional", name, f"{i:06d}.png") for name in ("AD", "NC") for i in range(20)}
    assert set(paths) == expected and len(images) == 40
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "pixels and left out" in line]
    assert line.startswith(f"warning: --fake {out}: ") and "images are not of 32x32 pixels and left out: " in line
    assert int(line.split(": ")[2].split()[0]) == len(list((tmp_path / "out").rglob("*.png"))) - 40 > 15
    save_picture(tmp_path / "real/a.png", 64, 48)
    save_picture(tmp_path / "real/b.png", 640, 480)
    assert len(metrics.load("--real", str(tmp_path / "real"), "all", 32)[0]) == 2


@pytest.mark.parametrize("size, refused", [((600, 500), True), ((512, 500), False), ((1024, 1024), False)])
def test_a_run_is_no_set_of_slices(tmp_path, size, refused):
    save_picture(tmp_path / "losses.png", *size)
    if refused:
        with pytest.raises(
            UserError, match="--fake .*600x500 pixels are pictures, not slices; .*--export N writes generated slices"
        ):
            metrics.load("--fake", str(tmp_path), "all", 32)
    else:
        assert len(metrics.load("--fake", str(tmp_path), "all", 32)[0]) == 1


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
