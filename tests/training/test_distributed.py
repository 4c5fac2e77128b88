"""However a batch is divided, among processes or turns, a step computes the same; such runs stop, go on and fail in order."""

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, checkpoint, read_table, start

import train
from dataset import Slices, batches
from modules import minibatch_std
from train import parse_args as parse_train
from train import settle
from training.distributed import Draws, Processes, check_divisible, draw, share_of
from utils import UserError

NETWORK = {"resolution": 32, "channel_base": 128, "channel_max": 8, "z_dim": 256, "w_dim": 256, "num_classes": 2}
ALL = ["--style_mixing", 0.5, "--path_length", 2, "--augment", "fixed", "--augment_p", 0.5]


# ---------------------------------------------------------------------------------------------------------------------
# Dividing


@pytest.mark.parametrize("n, shares", [(16, 2), (24, 3), (32, 4), (5, 1)])
def test_shares_hold_every_image_once_and_whole_minibatch_groups(n, shares):
    images = torch.arange(n)
    parts = [share_of(images, shares, which) for which in range(shares)]
    assert sorted(torch.cat(parts).tolist()) == images.tolist() and len({len(part) for part in parts}) == 1
    for part in parts:
        np.testing.assert_array_equal(share_of(images.numpy(), shares, 0), parts[0])
        x = torch.randn(n, 3, 4, 4)
        torch.testing.assert_close(minibatch_std(x)[part], minibatch_std(x[part]))
    if shares == 4:  # turns of processes
        again = [share_of(share_of(images, 2, i), 2, j) for i in range(2) for j in range(2)]
        assert all(torch.equal(a, b) for a, b in zip(again, parts, strict=True))


@pytest.mark.parametrize("kind", [torch.rand, torch.randn])
def test_shares_draw_what_the_whole_batch_draws(kind):
    def draws(shares, which):
        rng, size = Draws("cpu").divide(shares, which, 24 // shares), 24 // shares
        rng.manual_seed(3)
        return [draw(kind, (size, 2, 3), rng=rng), draw(kind, (size // 2, 5), rng=rng), draw(kind, (size,), rng=rng)]

    whole, half = draws(1, 0), torch.arange(24)[:12]
    for shares in (2, 3):
        for which in range(shares):
            mine = draws(shares, which)
            own = share_of(torch.arange(24), shares, which)
            halves = own[: len(own) // 2]
            assert set(halves.tolist()) <= set(half.tolist())  # half of a share is its share of the half
            for a, b, rows in zip(mine, whole, (own, halves, own)):
                assert torch.equal(a, b[rows])


@pytest.mark.parametrize("batch, shares, fits", [(32, 8, True), (30, 1, True), (3, 1, True), (30, 2, False), (8, 4, False)])
def test_what_cannot_be_divided_is_refused(batch, shares, fits):
    if fits:
        return check_divisible(batch, shares)
    with pytest.raises(UserError, match=f"--batch_size {batch}: .* multiple of {4 * shares}, such as (?:32|16)$"):
        check_divisible(batch, shares)


def test_every_process_reads_its_share_of_every_batch(slices_dir):
    slices = Slices(slices_dir, "all", 32, progress=False)
    whole = batches(slices, 8, "cpu", seed=1)
    parts = [batches(slices, 8, "cpu", seed=1, shares=2, which=which) for which in range(2)]
    for _ in range(5):
        images, labels = next(whole)
        for which, (some, their_labels) in enumerate(map(next, parts)):
            assert torch.equal(some, share_of(images, 2, which)) and torch.equal(their_labels, share_of(labels, 2, which))


@pytest.mark.parametrize("flags", [["--loss", "wgan-gp"], ["--loss", "relativistic", *ALL], ["--loss", "logistic", *ALL]])
def test_turns_give_the_gradients_of_the_whole_batch(flags):
    real, labels = torch.randn(16, 1, 32, 32, generator=torch.Generator().manual_seed(0)).clamp(-1, 1), torch.arange(16) % 2
    found = {}  # a rate near 0, for Adam makes a whole step of a gradient that is only rounding
    for accum in (1, 2, 4):
        args = settle(
            parse_train(
                [
                    *TINY,
                    "--dataset_dir",
                    "unused",
                    "--batch_size",
                    "16",
                    "--grad_accum",
                    str(accum),
                    "--lr",
                    "1e-7",
                    *map(str, flags),
                ]
            ),
            torch.device("cpu"),
        )
        training = train.Training(args, NETWORK, torch.device("cpu"), torch.float32)
        shared = {"critic": [], "model": []}
        for k in (0, 1):  # k = 0 takes every penalty
            with training.probe.watching(True):
                term = training.step(k, real, labels)
            for name, gradients in shared.items():
                gradients += [p.grad.clone() for p in getattr(training, name).parameters() if p.grad is not None]
        found[accum] = shared, term, training.rng.get_state(), training.model["mapping"].w_mean, training.path_length.mean
    for accum in (2, 4):
        for name, gradients in found[1][0].items():
            for a, b in zip(found[accum][0][name], gradients, strict=True):
                assert (a - b).norm() < 1e-3 * b.norm() + 1e-6, name
        for name, value in found[1][1].items():
            if name != "diversity":  # of pixels, over the batch: that of a turn
                torch.testing.assert_close(found[accum][1][name], value, rtol=1e-4, atol=1e-5, msg=name)
        assert torch.equal(found[accum][2], found[1][2])  # random numbers go on alike
        for i in (3, 4):
            torch.testing.assert_close(found[accum][i], found[1][i], rtol=1e-4, atol=1e-6)


def test_plan_counts_the_memory_of_one_turn(tmp_path, slices_dir, capsys):
    found = []
    for accum in (1, 4):
        start(slices_dir, tmp_path, "--dry_run", "--batch_size", 8192, "--grad_accum", accum)
        found.append(float(re.search(r"about (\S+) GiB at batch 8192( in 4 shares)?", capsys.readouterr().out)[1]))
    assert found[0] == pytest.approx(4 * found[1], rel=0.1)


# ---------------------------------------------------------------------------------------------------------------------
# Processes


def command(slices_dir, model_dir, *flags, processes=2, restarts=0):
    launch = [
        "-m",
        "torch.distributed.run",
        f"--nproc_per_node={processes}",
        f"--max_restarts={restarts}",
        "--master_port=0",
        "--standalone",
    ]
    return [
        sys.executable,
        *launch,
        os.path.join(ROOT, "train.py"),
        *TINY,
        "--dataset_dir",
        slices_dir,
        "--classes",
        "all",
        "--conditional",
        "--model_dir",
        str(model_dir),
        "--batch_size",
        "8",
        *map(str, flags),
    ]


def torchrun(*args, **options):
    return subprocess.run(command(*args, **options), capture_output=True, text=True, timeout=300)


def assert_alike(run, other, before=None):
    """The weights of two checkpoints differ by little of what training has changed."""
    a, b = checkpoint(run), checkpoint(other)
    assert a["images"] == b["images"]
    for part in ("model", "critic", "averaged"):
        for name, value in a[part].items():
            assert (value - b[part][name]).norm() < 0.02 * value.norm() + 1e-3, (part, name)
    assert torch.equal(a["rng"], b["rng"]) and a["strength"]["p"] == b["strength"]["p"]


ONCE = ["--conditional", "--classes", "all", "--batch_size", 8]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, slices_dir):
    """A conditional run of six epochs by one process, with much of what draws and averages; the flags it had."""
    folder = tmp_path_factory.mktemp("alone")
    flags = ["--epochs", 6, "--augment", "ada", "--style_mixing", 0.5, "--path_length", 1, "--lr", 0.001, "--save_every", 2]
    start(slices_dir, folder, *ONCE, *flags)
    return folder / "all-conditional", flags


def test_two_processes_give_the_trajectory_of_one(tmp_path, slices_dir, alone):
    run, flags = alone
    done = torchrun(slices_dir, tmp_path, *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("6 epochs done") == 1  # one of them speaks
    assert_alike(tmp_path / "all-conditional", run)
    tables = [read_table(folder / "losses.csv") for folder in (tmp_path / "all-conditional", run)]
    for ours, theirs in zip(*tables, strict=True):
        for name in ("step", "images", "critic_loss", "generator_loss", "penalty", "separation", "critic_gradient"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-2, abs=1e-3), name


def test_a_run_of_two_processes_goes_on_with_one_and_back(tmp_path, slices_dir, alone):
    run, flags = alone
    assert torchrun(slices_dir, tmp_path, *flags, "--epochs", 2).returncode == 0
    start(slices_dir, tmp_path, *ONCE, *flags, "--epochs", 4)
    assert torchrun(slices_dir, tmp_path, *flags).returncode == 0
    assert_alike(tmp_path / "all-conditional", run)


def worker(process, rank):
    """The id of the process that `process`, torchrun, gave this rank."""
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
    """Start a run of two processes and wait until it has saved a checkpoint; every process is gone at the end."""
    started = []

    def begin(*flags, **options):
        process = subprocess.Popen(
            command(slices_dir, tmp_path, *flags, **options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        pictures, deadline = tmp_path / "all-conditional/fake_vs_real", time.monotonic() + 120
        while not (pictures / "epoch_0004.png").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="finds the workers in /proc")
def test_a_killed_process_is_started_again_from_the_checkpoint(tmp_path, under_way):
    process = under_way("--epochs", 40, "--save_every", 2, restarts=1)
    os.kill(worker(process, 1), signal.SIGKILL)
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    assert "40 epochs done" in out
    state, rows = checkpoint(tmp_path / "all-conditional"), read_table(tmp_path / "all-conditional/losses.csv")
    assert state["images"] == 40 * 16
    images = [row["images"] for row in rows]
    assert images == sorted(set(images)) and images[-1] == 640  # none twice
    assert sum(np.diff([0] + [row["seconds"] for row in rows]) <= 0) == 0


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="finds the workers in /proc")
def test_all_stop_in_order_when_one_is_told_to(tmp_path, under_way):
    process = under_way("--epochs", 10**6, "--save_every", 2)
    os.kill(worker(process, 1), signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert "stopped by SIGINT" in out and "goes on" in out and process.returncode != 0
    assert checkpoint(tmp_path / "all-conditional")["images"] > 0


def test_weights_that_differ_are_noticed(monkeypatch):
    processes, weights = Processes(torch.device("cpu")), [torch.ones(3), torch.full([2], 2.0)]
    processes.size = 2
    monkeypatch.setattr(processes, "greatest", lambda *values: values)  # the other process has the same
    processes.check_alike(weights)
    monkeypatch.setattr(processes, "greatest", lambda *values: [value + 1e-6 * (i == 1) for i, value in enumerate(values)])
    with pytest.raises(UserError, match="no longer the same"):
        processes.check_alike(weights)


def test_a_process_that_is_alone_averages_nothing():
    processes, tensors = Processes(torch.device("cpu")), [torch.ones(2), torch.zeros([])]
    processes.average(tensors)
    assert tensors[0].tolist() == [1, 1] and list(processes.greatest(3, True)) == [3, True]
    assert processes.first(lambda: 7) == 7 and (processes.rank, processes.size) == (0, 1)
