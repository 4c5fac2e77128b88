"""Faults, provoked for real: killed processes, damaged files, full and read-only disks, two runs at once."""

import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, checkpoint, read_table, start

from training.run_folder import digest, hold, save_tensors
from utils import UserError

pytestmark = pytest.mark.skipif(os.name == "nt", reason="kills and mounts as POSIX has them")


def command(slices_dir, model_dir, *flags):
    return [
        sys.executable,
        os.path.join(ROOT, "train.py"),
        *TINY,
        "--classes",
        "AD",
        "--dataset_dir",
        slices_dir,
        "--model_dir",
        str(model_dir),
        *map(str, flags),
    ]


def begun(slices_dir, model_dir, *flags):
    """A train.py of its own that has saved a checkpoint."""
    process = subprocess.Popen(command(slices_dir, model_dir, *flags), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not os.path.exists(os.path.join(model_dir, "AD", "generator.pt")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    return process


def same(a, b):
    """Whether two checkpoints are equal bit for bit, but for the clock."""
    states = [{name: part for name, part in checkpoint(folder).items() if name not in ("seconds", "digest")} for folder in (a, b)]
    return digest(states[0]) == digest(states[1])


# ---------------------------------------------------------------------------------------------------------------------
# Killed


def kill_at_random(slices_dir, model_dir, flags, kills, rng, longest=4.0):
    """Start a run `kills` times, kill -9 it at a random moment after its start, then let it end; returns how often it was hit."""
    hit, lock = 0, os.path.join(model_dir, "AD", "lock")
    for _ in range(kills):
        process = subprocess.Popen(command(slices_dir, model_dir, *flags), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            with contextlib.suppress(OSError), open(lock) as file:
                if file.read().startswith(f"process {process.pid} "):
                    break
            time.sleep(0.01)
        time.sleep(rng.uniform(0, longest))
        process.kill()
        hit += process.wait() == -signal.SIGKILL
    assert subprocess.run(command(slices_dir, model_dir, *flags), stdout=subprocess.DEVNULL).returncode == 0
    return hit


def test_killed_runs_end_as_one_that_nothing_disturbed(slices_dir, tmp_path):
    flags = ["--epochs", 160, "--save_every", 20, "--augment", "fixed", "--augment_p", 0.2]
    hit = kill_at_random(slices_dir, tmp_path / "killed", flags, 3, np.random.default_rng())
    assert hit
    assert subprocess.run(command(slices_dir, tmp_path / "whole", *flags), stdout=subprocess.DEVNULL).returncode == 0
    assert same(tmp_path / "killed/AD", tmp_path / "whole/AD")
    ours, theirs = (read_table(tmp_path / name / "AD/losses.csv") for name in ("killed", "whole"))
    steps = [row["step"] for row in ours]
    assert steps == sorted(set(steps)) and steps[-1] == theirs[-1]["step"]
    assert not [name for _, _, names in os.walk(tmp_path) for name in names if name.startswith(".tmp-")]


# ---------------------------------------------------------------------------------------------------------------------
# Damaged checkpoints


@pytest.fixture
def saved(slices_dir, tmp_path):
    """A run of three epochs with a checkpoint of the second beside the last."""
    assert start(slices_dir, tmp_path, "--epochs", 3, "--save_every", 1) == 0
    return tmp_path / "AD"


def cut(path):
    path.write_bytes(path.read_bytes()[:-2000])


def flip(path, share=0.5):
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 16
    path.write_bytes(content)


def pipe(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "damage, expected", [(cut, "cannot be read"), (flip, "is damaged"), (os.unlink, "cannot be read"), (pipe, "cannot be read")]
)
def test_damaged_checkpoint_gives_way_to_the_one_before(saved, slices_dir, tmp_path, capsys, damage, expected):
    assert checkpoint(saved)["images"] == 24
    damage(saved / "checkpoint.pt")
    capsys.readouterr()
    assert start(slices_dir, tmp_path, "--epochs", 6, "--save_every", 1) == 0
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert f"checkpoint.pt {expected}" in warning and "the checkpoint before it, at 0.0 kimg" in warning
    start(slices_dir, tmp_path / "whole", "--epochs", 6)
    assert same(saved, tmp_path / "whole/AD")
    images = [row["images"] for row in read_table(saved / "losses.csv")]
    assert images == sorted(set(images)) and images[-1] == 48


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_flipped_bits_anywhere_are_noticed_or_do_not_matter(saved, slices_dir, tmp_path, share):
    before = checkpoint(saved)
    for name in ("checkpoint.pt", "previous.pt"):
        flip(saved / name, share)
    try:
        start(slices_dir, tmp_path, "--epochs", 3)  # done already, if it can be read
    except UserError as error:
        assert "--resume False" in str(error)
    else:
        assert digest(checkpoint(saved)) == digest(before)


def test_two_damaged_checkpoints_are_refused_and_left_alone(saved, slices_dir, tmp_path):
    for name in ("checkpoint.pt", "previous.pt"):
        cut(saved / name)
    kept = {name: (saved / name).read_bytes() for name in ("checkpoint.pt", "previous.pt", "generator.pt", "losses.csv")}
    with pytest.raises(UserError, match="checkpoint.pt cannot be read .*, and previous.pt cannot be read .*--resume False"):
        start(slices_dir, tmp_path, "--epochs", 6)
    assert kept == {name: (saved / name).read_bytes() for name in kept}


@pytest.mark.parametrize("kind", [0, 2, None])
def test_checkpoint_of_another_version_is_refused(saved, slices_dir, tmp_path, kind):
    state = checkpoint(saved)
    state["format"] = kind
    del state["digest"]
    save_tensors(state | {"digest": digest(state)}, saved / "checkpoint.pt")
    with pytest.raises(UserError, match=f"another version of this code .format {kind}, here 1"):
        start(slices_dir, tmp_path, "--epochs", 6)


def test_digest_sees_every_change():
    state = {"a": torch.arange(6.0), "b": {"lr": 0.1, "betas": (0.0, 0.99)}, "n": 3}
    others = [
        {**state, "a": torch.arange(6.0).reshape(2, 3)},
        {**state, "a": torch.arange(6.0).double()},
        {**state, "n": 4},
        {**state, "a": torch.tensor([0.0, 1, 2, 3, 4, 5.0000005])},
        {**state, "b": {"lr": 0.1, "betas": (0.0, 0.9)}},
        {"n": 3, "a": state["a"]},
        {**state, "b": {"betas": (0.0, 0.99), "l": 0.1}},
    ]
    assert digest(state) == digest({**state, "a": state["a"].clone()})
    assert len({digest(one) for one in (state, *others)}) == 8


def test_other_flags_and_another_pytorch_are_told_of(saved, slices_dir, tmp_path, capsys):
    with open(saved / "config.json") as file:
        config = json.load(file)
    with open(saved / "config.json", "w") as file:
        json.dump(config | {"torch": "1.0"}, file)
    assert start(slices_dir, tmp_path, "--epochs", 4, "--lr", 1e-3, "--loss", "logistic") == 0
    (note,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note:")]
    for change in ("--lr 0.001 (was 0.004)", "--loss logistic (was wgan-gp)", f"PyTorch {torch.__version__} (was 1.0)"):
        assert change in note
    assert "--epochs" not in note


# ---------------------------------------------------------------------------------------------------------------------
# Disks


def in_namespace(script, *flags):
    """Run a shell script that may mount, in namespaces of its own; skips where the system does not allow that."""
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode:
        pytest.skip("no mounting here")
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *map(str, flags)], capture_output=True, text=True, timeout=300
    )


def one_line(done):
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


def test_full_disk_leaves_the_checkpoint_whole(saved, slices_dir, tmp_path):
    disk = tmp_path / "disk"
    size = sum(path.stat().st_size + 8192 for path in saved.rglob("*"))  # in whole pages, and a checkpoint's half
    size += (saved / "checkpoint.pt").stat().st_size // 2
    disk.mkdir()
    done = in_namespace(
        f'mount -t tmpfs -o size={size} none "{disk}" && cp -r "{saved}" "{disk}" && "$@"; status=$?; '
        f'cp "{disk}"/AD/*.pt "{tmp_path}"; ls -A "{disk}/AD" >&2; exit $status',
        *command(slices_dir, disk, "--epochs", 9, "--save_every", 3),
    )
    assert "No space left on device" in one_line(done)
    assert ".tmp-" not in done.stderr
    state = checkpoint(tmp_path)
    assert state.pop("digest") == digest(state) and state["images"] == 24


def test_file_size_limit_leaves_the_checkpoint_whole(saved, slices_dir, tmp_path):
    before = checkpoint(saved)
    limit = (saved / "checkpoint.pt").stat().st_size // 2
    done = subprocess.run(
        command(slices_dir, tmp_path, "--epochs", 5),
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert "File too large" in one_line(done)
    assert digest(checkpoint(saved)) == digest(before)


@pytest.mark.parametrize("there", [True, False])
def test_read_only_disk(saved, slices_dir, tmp_path, there):
    disk = tmp_path / "disk"
    disk.mkdir()
    done = in_namespace(
        f'mount -t tmpfs none "{disk}" && '
        + (f'cp -r "{saved}" "{disk}" && ' if there else "")
        + f'mount -o remount,ro "{disk}" && "$@"',
        *command(slices_dir, disk, "--epochs", 9),
    )
    assert "Read-only file system" in one_line(done)


def test_vanished_slices(slices_dir, tmp_path, script):
    """A run under way has its pixels in the cache; the next start names the folder, and the run is left as it was."""
    data = tmp_path / "data"
    shutil.copytree(os.path.dirname(slices_dir), data)
    process = begun(str(data / "train"), tmp_path, "--epochs", 10**6, "--max_minutes", 0.1)
    shutil.rmtree(data)
    process.communicate(timeout=120)
    assert process.returncode == 0
    before = checkpoint(tmp_path / "AD")
    assert before["images"] > 0
    done = subprocess.run(command(str(data / "train"), tmp_path, "--epochs", 10**6), capture_output=True, text=True)
    assert str(data / "train") in one_line(done)
    assert digest(checkpoint(tmp_path / "AD")) == digest(before)


# ---------------------------------------------------------------------------------------------------------------------
# Two at once


@pytest.mark.parametrize("flags", [[], ["--resume", "False"]])
def test_second_run_is_refused_and_a_dead_ones_lock_is_taken(slices_dir, tmp_path, flags):
    first = begun(slices_dir, tmp_path, "--epochs", 10**6)
    done = subprocess.run(command(slices_dir, tmp_path, "--epochs", 10**6, *flags), capture_output=True, text=True, timeout=300)
    assert f"process {first.pid} on {socket.gethostname()}" in one_line(done)
    assert first.poll() is None and sorted(os.listdir(tmp_path)) == ["AD"]
    first.kill()
    first.communicate()
    assert start(slices_dir, tmp_path, "--epochs", 1, *flags) == 0


def test_half_written_files_are_removed_but_not_through_links(tmp_path):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    for folder in (run / "styles", elsewhere):
        folder.mkdir(parents=True)
        (folder / ".tmp-left.npy").touch()
    (run / "linked").symlink_to(elsewhere)
    hold(run).close()
    assert not list((run / "styles").iterdir()) and (elsewhere / ".tmp-left.npy").exists()
