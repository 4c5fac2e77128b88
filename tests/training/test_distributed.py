"""Several processes: what they compute together, and how their runs stop, resume and fail."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, checkpoint, read_table, start

from dataset import Slices, batches
from training.distributed import Processes, check_divisible
from utils import UserError


@pytest.mark.parametrize("batch, shards, fits", [(32, 8, True), (30, 1, True), (3, 1, True), (30, 2, False), (8, 4, False)])
def test_batches_without_whole_minibatch_groups_are_refused(batch, shards, fits):
    if fits:
        check_divisible(batch, shards)
    else:
        with pytest.raises(UserError, match=f"--batch_size {batch}: .* multiple of {4 * shards}, such as (?:32|16)$"):
            check_divisible(batch, shards)


def test_processes_read_different_shards_of_every_batch(slices_dir):
    slices = Slices(slices_dir, "all", 32, progress=False)
    whole = batches(slices, 8, "cpu", seed=1)
    parts = [batches(slices, 8, "cpu", seed=1, shards=2, shard_index=index) for index in range(2)]
    for _ in range(5):
        images, labels = next(whole)
        for index, (shard_images, shard_labels) in enumerate(map(next, parts)):
            assert torch.equal(shard_images, images[index::2]) and torch.equal(shard_labels, labels[index::2])


def test_weights_that_differ_are_noticed(monkeypatch):
    processes, weights = Processes(torch.device("cpu")), [torch.ones(3), torch.full([2], 2.0)]
    processes.size = 2
    monkeypatch.setattr(processes, "maximum", lambda *values: values)  # the other process has the same
    processes.check_equal(weights)
    monkeypatch.setattr(processes, "maximum", lambda *values: [value + 1e-6 * (i == 1) for i, value in enumerate(values)])
    with pytest.raises(UserError, match="diverged"):
        processes.check_equal(weights)


def test_single_process_averages_and_gathers_itself():
    processes, tensors = Processes(torch.device("cpu")), [torch.ones(2), torch.zeros([])]
    processes.average(tensors)
    assert tensors[0].tolist() == [1, 1] and list(processes.maximum(3, True)) == [3, True]
    assert processes.gather(tensors[0]) == [tensors[0]] and processes.first_on_each_machine(lambda: 7) == 7
    assert (processes.rank, processes.size, processes.leading) == (0, 1, True)


# ---------------------------------------------------------------------------------------------------------------------
# torchrun


def torchrun(*command, processes=2, restarts=0):
    launcher = [f"--nproc_per_node={processes}", f"--max_restarts={restarts}", "--master_port=0", "--standalone"]
    return [sys.executable, "-m", "torch.distributed.run", *launcher, *map(str, command)]


def train_command(slices_dir, model_dir, *flags, **launch):
    flags = ["--dataset_dir", slices_dir, "--model_dir", model_dir, "--classes", "all", "--conditional", "--batch_size", 8, *flags]
    return torchrun(os.path.join(ROOT, "train.py"), *TINY, *flags, **launch)


def run(command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("loss", ["wgan-gp", "relativistic"])
def test_two_processes_compute_what_one_computes_on_given_random_numbers(tmp_path, loss):
    """Weights, averages and terms after three steps; measured against what training changed: rounding of float64."""
    worker, found = os.path.join(os.path.dirname(__file__), "distributed_worker.py"), []
    for count in (1, 2):
        arguments = worker, tmp_path / f"{count}.pt", loss
        run([sys.executable, *arguments] if count == 1 else torchrun(*arguments))
        found.append(torch.load(tmp_path / f"{count}.pt", weights_only=True))
    alone, together = found
    for part, state in alone["weights"].items():
        for name, value in state.items():
            if (loss, name) != ("relativistic", "score.bias"):  # its gradient is 0 but for rounding, which Adam enlarges
                torch.testing.assert_close(together["weights"][part][name], value, rtol=1e-7, atol=1e-9, msg=f"{part} {name}")
    for ours, theirs in zip(together["terms"], alone["terms"], strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - {"diversity", "lit"}:  # ratios, of each process's images
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-7, atol=1e-9, msg=name)


FLAGS = ["--augment", "ada", "--style_mixing", 0.5, "--path_length", 1, "--lr", 0.001, "--save_every", 2]


def test_run_of_two_processes_resumes_bit_for_bit_and_also_with_one(tmp_path, slices_dir):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    out = run(train_command(slices_dir, whole, *FLAGS, "--epochs", 4))
    assert out.count("4 epochs done") == 1  # one process speaks
    run(train_command(slices_dir, resumed, *FLAGS, "--epochs", 2))
    run(train_command(slices_dir, resumed, *FLAGS, "--epochs", 4))
    a, b = (checkpoint(folder / "all-conditional") for folder in (whole, resumed))
    for part in ("model", "critic", "averaged", "augmentation", "path_length"):
        assert all(torch.equal(value, b[part][name]) for name, value in a[part].items()), part
    assert len(a["rng"]) == 2 and all(map(torch.equal, a["rng"], b["rng"])) and not torch.equal(*a["rng"])
    arguments = ["--classes", "all", "--conditional", "--batch_size", 8, *FLAGS, "--epochs", 5]
    assert start(slices_dir, resumed, *arguments) == 0
    state = checkpoint(resumed / "all-conditional")
    assert state["images"] == 5 * 16 and len(state["rng"]) == 1


def worker_id(process, rank):
    """The process id of the worker that `process`, torchrun, gave this rank."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as stat, open(f"/proc/{name}/environ") as environ:
                parent = int(stat.read().rsplit(")", 1)[1].split()[1])
                if parent == process.pid and f"RANK={rank}" in environ.read().split("\0"):
                    return int(name)
        except OSError:
            pass


@pytest.fixture
def under_way(tmp_path, slices_dir):
    """Starts a run of two processes and waits until it has saved a checkpoint; all processes are gone in the end."""
    started = []

    def begin(*flags, **launch):
        command = train_command(slices_dir, tmp_path, *flags, **launch)
        process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        image, deadline = tmp_path / "all-conditional/fake_vs_real/epoch_0004.png", time.monotonic() + 120
        while not image.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="finds the workers in /proc")


@needs_proc
def test_killed_process_is_restarted_from_the_checkpoint(tmp_path, under_way):
    process = under_way("--epochs", 40, "--save_every", 2, restarts=1)
    os.kill(worker_id(process, 1), signal.SIGKILL)
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    assert "40 epochs done" in out
    state, rows = checkpoint(tmp_path / "all-conditional"), read_table(tmp_path / "all-conditional/losses.csv")
    assert state["images"] == 40 * 16
    images = [row["images"] for row in rows]
    assert images == sorted(set(images)) and images[-1] == 640  # no row twice
    assert (np.diff([0] + [row["seconds"] for row in rows]) > 0).all()


@needs_proc
def test_all_processes_stop_in_order_when_one_is_told_to(tmp_path, under_way):
    process = under_way("--epochs", 10**6, "--save_every", 2)
    os.kill(worker_id(process, 1), signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert "stopped by SIGINT" in out and "resumes" in out and process.returncode != 0
    assert checkpoint(tmp_path / "all-conditional")["images"] > 0
