"""Runs that are small, large or started from odd places."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, TINY, checkpoint, read_table, same_checkpoints, start, train_command
from PIL import Image


def save_noise(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 30), np.uint8)).save(path)


@pytest.mark.parametrize("count, batch", [(1, 2), (1, 4), (3, 32)])
def test_run_on_fewer_slices_than_a_batch(tmp_path, count, batch):
    for i in range(count):
        save_noise(tmp_path / f"train/AD/{i}.png", i)
    assert start(str(tmp_path / "train"), tmp_path, "--epochs", 2, "--batch_size", batch) == 0
    assert checkpoint(tmp_path / "AD")["images"] == 2 * batch


def test_run_on_a_folder_of_one_class(tmp_path, refused):
    save_noise(tmp_path / "train/AD/1.png")
    save_noise(tmp_path / "train/AD/2.png", 1)
    assert start(str(tmp_path / "train"), tmp_path, "--epochs", 1, "--batch_size", 2) == 0
    line = refused("train.py", "--dataset_dir", tmp_path / "train", "--model_dir", tmp_path, "--classes", "all")
    assert "NC" in line and str(tmp_path / "train") in line


def test_run_on_a_thousand_folders(tmp_path):
    for i in range(1000):
        save_noise(tmp_path / f"train/AD/subject {i}/scan.png", i)
    assert start(str(tmp_path / "train"), tmp_path, "--epochs", 1, "--batch_size", 1000) == 0
    assert checkpoint(tmp_path / "AD")["images"] == 1000


def test_run_of_one_step_at_1024_pixels(tmp_path):
    for i in range(2):
        save_noise(tmp_path / f"train/AD/{i}.png", i)
    assert start(str(tmp_path / "train"), tmp_path, "--epochs", 1, "--batch_size", 2, "--resolution", 1024) == 0
    with Image.open(tmp_path / "AD/fake_vs_real/epoch_0001.png") as picture:
        assert picture.width > 4 * 1024


def test_run_is_the_same_from_any_folder_and_by_any_path(tmp_path, slices_dir):
    """The same run from another folder, one that cannot be written, with relative paths, slashes at the end and links."""
    data, unwritable = tmp_path / "data", tmp_path / "unwritable"
    shutil.copytree(slices_dir, data)
    unwritable.mkdir()
    unwritable.chmod(0o555)
    os.symlink(data, tmp_path / "link")
    states = []
    for i, (place, dataset) in enumerate(
        [(ROOT, data), (tmp_path, "data"), (tmp_path, "./data/"), (tmp_path, "link"), (unwritable, f"..{os.sep}link{os.sep}")]
    ):
        done = subprocess.run(
            [
                sys.executable,
                os.path.join(ROOT, "train.py"),
                *TINY,
                "--classes",
                "AD",
                "--epochs",
                "1",
                "--dataset_dir",
                str(dataset),
                "--model_dir",
                str(tmp_path / f"model {i}") + os.sep * (i % 2),
            ],
            cwd=place,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        states.append(checkpoint(tmp_path / f"model {i}/AD"))
    assert all(same_checkpoints(states[0], state) for state in states[1:])
    assert os.listdir(unwritable) == []


def test_processor_with_fewer_instructions_computes_the_same(tmp_path, slices_dir):
    """Four steps in float32 with less of the processor for PyTorch and oneDNN to use differ by rounding alone."""
    results = []
    for i, limits in enumerate(
        (
            {},
            {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
            {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
        )
    ):
        command = train_command(slices_dir, tmp_path / str(i), "--epochs", 2)
        done = subprocess.run(command, env={**os.environ, **limits}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        results.append((read_table(tmp_path / f"{i}/AD/losses.csv"), np.load(tmp_path / f"{i}/AD/styles/epoch_0002.npy")))
    table, w = results[0]
    for other_table, other_w in results[1:]:
        for row, other in zip(table, other_table, strict=True):
            for name in ("critic_loss", "generator_loss", "penalty", "critic_gradient", "generator_gradient"):
                assert other[name] == pytest.approx(row[name], rel=1e-3, abs=1e-5), name
        assert np.abs(other_w - w).max() < 1e-3
