"""Several processes: what they compute together, and how their runs stop, resume and fail."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import TINY, UNPLOTTED, checkpoint, read_table, start

from data.cache import COMPARED
from dataset import Slices, batches
from training.distributed import Processes, check_divisible, join_slurm
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
    processes.average([], tensors)
    assert tensors[0].tolist() == [1, 1] and list(processes.maximum(3, True)) == [3, True]
    assert processes.gather(tensors[0]) == [tensors[0]] and processes.from_leading(lambda: 7) == 7
    assert (processes.rank, processes.size, processes.leading) == (0, 1, True)


def test_no_process_ends_before_the_leading_one_has_saved_and_said_so(tmp_path, slices_dir, unplotted, capsys, monkeypatch):
    said = []
    monkeypatch.setattr(Processes, "barrier", lambda _: said.append(capsys.readouterr().out))
    assert start(slices_dir, tmp_path, "--epochs", 1) == 0
    assert "1 epochs done" in said[-1] and checkpoint(tmp_path / "AD")["images"] > 0


# ---------------------------------------------------------------------------------------------------------------------
# Two processes against one

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its processes")
LOSSES = "wgan-gp", "relativistic"


def in_processes(*works):
    """Do each of `works` in turn, (number of processes, function of distributed_worker.py, its arguments); returns stdout."""
    worker = os.path.join(os.path.dirname(__file__), "distributed_worker.py")
    works = json.dumps([[count, name, *map(str, arguments)] for count, name, *arguments in works])
    done = subprocess.run([sys.executable, worker, works], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def three_steps(tmp_path_factory):
    """{loss: what one process and what two computed}."""
    folder = tmp_path_factory.mktemp("steps")
    paths = {(loss, count): folder / f"{loss} {count}.pt" for loss in LOSSES for count in (1, 2)}
    in_processes(*((count, "steps", path, loss) for (loss, count), path in paths.items()))
    return {loss: [torch.load(paths[loss, count], weights_only=True) for count in (1, 2)] for loss in LOSSES}


@pytest.mark.slow
@needs_fork
@pytest.mark.parametrize("loss", LOSSES)
def test_two_processes_train_what_one_trains_on_given_random_numbers(three_steps, loss):
    """Measured against what training changed: rounding of 1e-16 in float64, which Adam enlarges where gradients are small."""
    alone, together = three_steps[loss]
    for part, tensors in alone["end"].items():
        for name, value in tensors.items():
            start = alone["start"][part][name]
            assert torch.equal(start, together["start"][part][name])
            if (loss, name) == ("relativistic", "score.bias"):  # its gradient is 0 but for rounding
                continue
            change, difference = (value - start).abs().max(), (value - together["end"][part][name]).abs().max()
            assert change > 0 and difference < 1e-6 * change, (part, name, change, difference)


@pytest.mark.slow
@needs_fork
@pytest.mark.parametrize("loss", LOSSES)
def test_two_processes_log_what_one_logs(three_steps, loss):
    alone, together = (of_run["terms"] for of_run in three_steps[loss])
    for ours, theirs in zip(together, alone, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - {"diversity", "foreground_fraction"}:  # ratios, of each process's images
            assert ours[name].item() == pytest.approx(theirs[name].item(), rel=1e-7, abs=1e-9), name


@pytest.mark.slow
@needs_fork
def test_two_processes_average_and_share():
    in_processes((2, "collectives"))


@pytest.mark.slow
@needs_fork
def test_one_process_of_a_run_asks_for_the_times_of_all_files(tmp_path, slices_dir):
    """The others open a few, which they compare with the cache, and ask for the kind of each of these before."""
    folders = [os.path.join(os.path.dirname(slices_dir), split) for split in ("train", "test")]
    flags = ["--classes", "all", "--batch_size", 8, "--dataset_dir", folders[0], "--validation_dir", folders[1], "--dry_run"]
    lines = in_processes((2, "looks", *TINY, *flags, "--model_dir", tmp_path)).splitlines()
    leading, other = (calls for _, calls in sorted(json.loads(line) for line in lines if line.startswith("[")))
    files = {os.path.join(place, name) for root in folders for place, _, names in os.walk(root) for name in names}
    asked, opened = (sorted(files.intersection(other[call])) for call in ("stat", "open"))
    assert files <= set(leading["stat"]) and asked == opened and len(opened) <= min(4 * COMPARED, len(files) - 1)
    assert folders[0] in leading["scandir"] and folders[0] not in other["scandir"]


FLAGS = ["--augment", "ada", "--set", "style_mixing=0.5", "path_length=1", "--lr", 0.001, "--save_every", 2]
CONDITIONAL = ["--classes", "all", "--conditional", "--batch_size", 8]


@pytest.mark.slow
@needs_fork
def test_run_of_two_processes_resumes_bit_for_bit_and_also_with_one(tmp_path, slices_dir):
    def flags(folder, epochs):
        return [*TINY, *CONDITIONAL, *FLAGS, "--dataset_dir", slices_dir, "--model_dir", tmp_path / folder, "--epochs", epochs]

    runs = ("whole", 4), ("resumed", 2), ("resumed", 4)
    out = in_processes(*((2, "train", *flags(*run)) for run in runs))
    assert out.count("4 epochs done") == 2 and out.count("2 epochs done") == 1  # one process speaks
    a, b = (checkpoint(tmp_path / folder / "all-conditional") for folder in ("whole", "resumed"))
    for part in ("model", "critic", "averaged", "augmentation", "path_length"):
        assert all(torch.equal(value, b[part][name]) for name, value in a[part].items()), part
    assert len(a["rng"]) == 2 and all(map(torch.equal, a["rng"], b["rng"])) and not torch.equal(*a["rng"])
    assert start(slices_dir, tmp_path / "resumed", *CONDITIONAL, *FLAGS, "--epochs", 5) == 0
    state = checkpoint(tmp_path / "resumed/all-conditional")
    assert state["images"] == 5 * 16 and len(state["rng"]) == 1


def wait_for(path):
    deadline = time.monotonic() + 120
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.1)


# ---------------------------------------------------------------------------------------------------------------------
# srun

STEP = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "8"}
STEP |= {"SLURM_STEP_NODELIST": "n[07-08]", "SLURM_STEP_NUM_NODES": "2", "SLURM_JOB_ID": "501", "SLURM_STEP_ID": "0"}


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, ["5", "8", "1", "n07", "16032"]),
        ({"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_ID": "1"}, ["5", "8", "1", "127.0.0.1", "16033"]),
        ({"MASTER_ADDR": "n09", "MASTER_PORT": "7"}, ["5", "8", "1", "n09", "7"]),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, ["0", "2", "0", None, None]),  # torchrun in srun
        ({"SLURM_STEP_NUM_TASKS": "1"}, [None] * 5),
        ({"SLURM_STEP_NUM_TASKS": None}, [None] * 5),  # a batch script, salloc
        ({"SLURM_PTY_PORT": "40000"}, [None] * 5),  # srun --pty bash
    ],
)
def test_processes_of_srun_find_each_other(monkeypatch, changes, expected):
    known = {"scontrol show hostnames n[07-08]": "n07\nn08\n"}
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, known[" ".join(command)]))
    monkeypatch.setattr(os, "environ", {name: value for name, value in (STEP | changes).items() if value is not None})
    join_slurm()
    assert [os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")] == expected


def test_processes_on_two_nodes_without_scontrol_ask_for_the_first(monkeypatch):
    monkeypatch.setattr(os, "environ", STEP | {"PATH": ""})
    with pytest.raises(UserError, match="scontrol.*: set MASTER_ADDR"):
        join_slurm()


@pytest.mark.slow
def test_a_process_of_srun_that_loses_another_ends_in_one_line(tmp_path, slices_dir):
    flags = ["--dataset_dir", slices_dir, "--model_dir", tmp_path, *CONDITIONAL, "--epochs", 10**6, "--save_every", 4]
    step = os.environ | STEP | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1", "SLURM_JOB_ID": str(os.getpid())}
    command, output = [sys.executable, UNPLOTTED, *map(str, [*TINY, *flags])], {"stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, env=step | {"SLURM_PROCID": r, "SLURM_LOCALID": r}, **output) for r in "01"]
    try:
        wait_for(tmp_path / "all-conditional/fake_vs_real/epoch_0004.png")
        both[1].kill()
        error = both[0].communicate(timeout=120)[1]
    finally:
        for process in both:
            process.kill()
            process.communicate()
    assert both[0].returncode == 2 and error.splitlines()[-1].startswith("error: process 0 has lost the others (")
    assert "Traceback" not in error and checkpoint(tmp_path / "all-conditional")["images"] > 0


# ---------------------------------------------------------------------------------------------------------------------
# torchrun


def torchrun(*command, processes=2, restarts=0):
    launcher = [f"--nproc_per_node={processes}", f"--max_restarts={restarts}", "--master_port=0", "--standalone"]
    return [sys.executable, "-m", "torch.distributed.run", *launcher, *map(str, command)]


def train_by_torchrun(slices_dir, model_dir, *flags, **launch):
    flags = ["--dataset_dir", slices_dir, "--model_dir", model_dir, *CONDITIONAL, *flags]
    return torchrun(UNPLOTTED, *TINY, *flags, **launch)


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
        command = train_by_torchrun(slices_dir, tmp_path, *flags, **launch)
        process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        wait_for(tmp_path / "all-conditional/fake_vs_real/epoch_0004.png")
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="finds the workers in /proc")


@pytest.mark.slow
@needs_proc
def test_killed_process_is_restarted_from_the_checkpoint(tmp_path, under_way):
    process = under_way("--epochs", 20, "--save_every", 4, restarts=1)
    os.kill(worker_id(process, 1), signal.SIGKILL)
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    assert "20 epochs done" in out
    state, rows = checkpoint(tmp_path / "all-conditional"), read_table(tmp_path / "all-conditional/losses.csv")
    assert state["images"] == 20 * 16
    images = [row["images"] for row in rows]
    assert images == sorted(set(images)) and images[-1] == 320  # no row twice
    assert (np.diff([0] + [row["seconds"] for row in rows]) > 0).all()


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("restarts", [0, 1])
def test_all_processes_stop_in_order_when_one_is_told_to(tmp_path, under_way, restarts):
    process = under_way("--epochs", 10**6, "--save_every", 4, restarts=restarts)
    os.kill(worker_id(process, 1), signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert out.count("stopped by SIGINT") == 1 and "resumes" in out
    assert (process.returncode == 0) == (restarts > 0)  # torchrun would start a run again that has failed
    assert checkpoint(tmp_path / "all-conditional")["images"] > 0
