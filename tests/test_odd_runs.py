"""Runs that are small, large or started from odd places."""

import os
import shutil
import subprocess

import numpy as np
import pytest
import torch
from conftest import ROOT, checkpoint, read_table, refusal, same_checkpoints, start, train_command
from PIL import Image
from synthetic import noise, save

import train


def save_noise(path, seed=0):
    save(path, noise(30, 32, seed))


@pytest.mark.slow
@pytest.mark.parametrize("count, batch", [(1, 2), (1, 4), (3, 32)])
def test_run_on_fewer_slices_than_a_batch(tmp_path, unplotted, count, batch):
    for i in range(count):
        save_noise(tmp_path / f"train/AD/{i}.png", i)
    assert start(str(tmp_path / "train"), tmp_path, "--epochs", 2, "--batch_size", batch) == 0
    assert checkpoint(tmp_path / "AD")["images"] == 2 * batch


def test_run_on_a_folder_of_one_class(tmp_path, unplotted):
    save_noise(tmp_path / "train/AD/1.png")
    save_noise(tmp_path / "train/AD/2.png", 1)
    assert start(str(tmp_path / "train"), tmp_path, "--epochs", 1, "--batch_size", 2) == 0
    line = refusal(train.main, "--dataset_dir", tmp_path / "train", "--model_dir", tmp_path, "--classes", "all")
    assert "NC" in line and str(tmp_path / "train") in line


@pytest.mark.slow
def test_run_on_a_thousand_folders(tmp_path, unplotted):
    for i in range(1000):
        save_noise(tmp_path / f"train/AD/subject {i}/scan.png", i)
    assert start(str(tmp_path / "train"), tmp_path, "--epochs", 1, "--batch_size", 1000) == 0
    assert checkpoint(tmp_path / "AD")["images"] == 1000


@pytest.mark.slow
def test_run_of_one_step_at_1024_pixels(tmp_path):
    for i in range(2):
        save_noise(tmp_path / f"train/AD/{i}.png", i)
    assert start(str(tmp_path / "train"), tmp_path, "--epochs", 1, "--batch_size", 2, "--resolution", 1024) == 0
    with Image.open(tmp_path / "AD/fake_vs_real/epoch_0001.png") as picture:
        assert picture.width > 4 * 1024


@pytest.mark.slow
def test_run_is_the_same_from_any_folder_and_by_any_path(tmp_path, slices_dir, unplotted, monkeypatch):
    """Relative paths, slashes at the end and links."""
    data, below = tmp_path / "data", tmp_path / "below"
    shutil.copytree(slices_dir, data)
    below.mkdir()
    os.symlink(data, tmp_path / "link")
    states = []
    for i, (place, dataset) in enumerate(
        [(ROOT, data), (tmp_path, "data"), (tmp_path, "./data/"), (tmp_path, "link"), (below, f"..{os.sep}link{os.sep}")]
    ):
        monkeypatch.chdir(place)
        assert start(str(dataset), str(tmp_path / f"model {i}") + os.sep * (i % 2), "--epochs", 1) == 0
        states.append(checkpoint(tmp_path / f"model {i}/AD"))
    assert all(same_checkpoints(states[0], state) for state in states[1:])


@pytest.mark.slow
def test_process_writes_nothing_where_it_is_started(tmp_path, slices_dir):
    (tmp_path / "here").mkdir()
    command = train_command(slices_dir, tmp_path / "model", "--epochs", 1, script=os.path.join(ROOT, "train.py"))
    done = subprocess.run(command, cwd=tmp_path / "here", capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert os.listdir(tmp_path / "here") == [] and checkpoint(tmp_path / "model/AD")["images"] == 8


@pytest.mark.slow
def test_processor_with_fewer_instructions_computes_the_same(tmp_path, slices_dir, unplotted):
    """Four steps in float32 with less of the processor for PyTorch and oneDNN to use differ by rounding alone."""
    limits = [{"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}]
    if "AVX512" in torch.backends.cpu.get_cpu_capability():
        limits.append({"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"})

    def results(name):
        return read_table(tmp_path / name / "AD/losses.csv"), np.load(tmp_path / name / "AD/styles/epoch_0002.npy")

    start(slices_dir, tmp_path / "all", "--epochs", 2)
    table, w = results("all")
    for limit in limits:
        name = limit["ONEDNN_MAX_CPU_ISA"]
        command = train_command(slices_dir, tmp_path / name, "--epochs", 2)
        done = subprocess.run(command, env={**os.environ, **limit}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        other_table, other_w = results(name)
        for row, other in zip(table, other_table, strict=True):
            for name in ("critic_loss", "generator_loss", "penalty", "critic_gradient", "generator_gradient"):
                assert other[name] == pytest.approx(row[name], rel=1e-3, abs=1e-5), name
        assert np.abs(other_w - w).max() < 1e-3
