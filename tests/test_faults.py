"""Faults, provoked for real: killed processes, damaged files, full and read-only disks, two runs at once."""

import contextlib
import os
import resource
import shutil
import signal
import socket
import subprocess
import time

import numpy as np
import pytest
from conftest import checkpoint, read_table, same_checkpoints, start, train_command

from utils import UserError, load_tensors

pytestmark = pytest.mark.skipif(os.name == "nt", reason="kills and mounts as POSIX has them")


def begin(slices_dir, model_dir, *flags):
    """A process that trains and has saved a checkpoint."""
    process = subprocess.Popen(
        train_command(slices_dir, model_dir, *flags), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not os.path.exists(os.path.join(model_dir, "AD", "generator.pt")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    return process


# ---------------------------------------------------------------------------------------------------------------------
# Killed processes


def kill_at_random(slices_dir, model_dir, flags, kills, rng, longest=4.0):
    """Start a run `kills` times, kill -9 it at a random moment, then let it end; returns how often a kill hit it."""
    hit, lock = 0, os.path.join(model_dir, "AD", "lock")
    for _ in range(kills):
        process = subprocess.Popen(
            train_command(slices_dir, model_dir, *flags), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None:
            with contextlib.suppress(OSError), open(lock) as file:
                if file.read().startswith(f"process {process.pid} "):
                    break
            time.sleep(0.01)
        time.sleep(rng.uniform(0, longest))
        process.kill()
        hit += process.wait() == -signal.SIGKILL
    assert subprocess.run(train_command(slices_dir, model_dir, *flags), stdout=subprocess.DEVNULL).returncode == 0
    return hit


def test_killed_run_ends_like_one_that_was_never_killed(slices_dir, tmp_path):
    flags = ["--epochs", 80, "--save_every", 10, "--augment", "fixed", "--augment_p", 0.2]
    hit = kill_at_random(slices_dir, tmp_path / "killed", flags, 2, np.random.default_rng(0))
    assert hit
    assert subprocess.run(train_command(slices_dir, tmp_path / "whole", *flags), stdout=subprocess.DEVNULL).returncode == 0
    assert same_checkpoints(checkpoint(tmp_path / "killed/AD"), checkpoint(tmp_path / "whole/AD"))
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
    "damage, expected",
    [(cut, "Error"), (flip, "ValueError: the checksum differs"), (os.unlink, "FileNotFoundError"), (pipe, "FileNotFoundError")],
)
def test_run_resumes_from_the_previous_checkpoint_if_the_newest_is_damaged(saved, slices_dir, tmp_path, capsys, damage, expected):
    assert checkpoint(saved)["images"] == 24
    damage(saved / "checkpoint.pt")
    capsys.readouterr()
    assert start(slices_dir, tmp_path, "--epochs", 6, "--save_every", 1) == 0
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    for part in ("checkpoint.pt is damaged or missing (", expected, "the checkpoint before it, at 0.0 kimg"):
        assert part in warning
    start(slices_dir, tmp_path / "whole", "--epochs", 6)
    assert same_checkpoints(checkpoint(saved), checkpoint(tmp_path / "whole/AD"))
    images = [row["images"] for row in read_table(saved / "losses.csv")]
    assert images == sorted(set(images)) and images[-1] == 48


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_flipped_bit_anywhere_is_noticed_or_does_not_matter(saved, slices_dir, tmp_path, share):
    before = checkpoint(saved)
    for name in ("checkpoint.pt", "previous.pt"):
        flip(saved / name, share)
    try:
        start(slices_dir, tmp_path, "--epochs", 3)  # done already, if it can be read
    except UserError as error:
        assert "--resume False" in str(error)
    else:
        assert same_checkpoints(checkpoint(saved), before)


def test_two_damaged_checkpoints_are_refused_and_left_alone(saved, slices_dir, tmp_path):
    for name in ("checkpoint.pt", "previous.pt"):
        cut(saved / name)
    kept = {name: (saved / name).read_bytes() for name in ("checkpoint.pt", "previous.pt", "generator.pt", "losses.csv")}
    with pytest.raises(UserError, match="checkpoint.pt is damaged .* and previous.pt is damaged .*--resume False"):
        start(slices_dir, tmp_path, "--epochs", 6)
    assert kept == {name: (saved / name).read_bytes() for name in kept}


# ---------------------------------------------------------------------------------------------------------------------
# Disks


def in_namespace(script, *flags):
    """Run a shell script that may mount, in namespaces of its own; skips where the system does not allow that."""
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode:
        pytest.skip("no mounting here")
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *map(str, flags)], capture_output=True, text=True, timeout=300
    )


def error_line(done):
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
        *train_command(slices_dir, disk, "--epochs", 9, "--save_every", 3),
    )
    assert "No space left on device" in error_line(done)
    assert ".tmp-" not in done.stderr
    assert load_tensors(tmp_path / "checkpoint.pt")["images"] == 24  # which verifies the checksum


def test_file_size_limit_leaves_the_checkpoint_whole(saved, slices_dir, tmp_path):
    before = checkpoint(saved)
    limit = (saved / "checkpoint.pt").stat().st_size // 2
    done = subprocess.run(
        train_command(slices_dir, tmp_path, "--epochs", 5),
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert "File too large" in error_line(done)
    assert same_checkpoints(checkpoint(saved), before)


@pytest.mark.parametrize("exists", [True, False])
def test_read_only_disk_is_refused_in_one_line(saved, slices_dir, tmp_path, exists):
    disk = tmp_path / "disk"
    disk.mkdir()
    done = in_namespace(
        f'mount -t tmpfs none "{disk}" && '
        + (f'cp -r "{saved}" "{disk}" && ' if exists else "")
        + f'mount -o remount,ro "{disk}" && "$@"',
        *train_command(slices_dir, disk, "--epochs", 9),
    )
    assert "Read-only file system" in error_line(done)


def test_run_whose_slices_vanish_ends_well_and_is_left_alone_by_the_next_start(slices_dir, tmp_path):
    """A running process has its pixels in the cache; the next start names the missing folder."""
    data = tmp_path / "data"
    shutil.copytree(os.path.dirname(slices_dir), data)
    process = begin(str(data / "train"), tmp_path, "--epochs", 10**6, "--max_minutes", 0.1)
    shutil.rmtree(data)
    process.communicate(timeout=120)
    assert process.returncode == 0
    before = checkpoint(tmp_path / "AD")
    assert before["images"] > 0
    done = subprocess.run(train_command(str(data / "train"), tmp_path, "--epochs", 10**6), capture_output=True, text=True)
    assert str(data / "train") in error_line(done)
    assert same_checkpoints(checkpoint(tmp_path / "AD"), before)


# ---------------------------------------------------------------------------------------------------------------------
# Two processes at once


@pytest.mark.parametrize("flags", [[], ["--resume", "False"]])
def test_second_process_is_refused_and_a_killed_one_leaves_no_lock(slices_dir, tmp_path, flags):
    first = begin(slices_dir, tmp_path, "--epochs", 10**6)
    done = subprocess.run(
        train_command(slices_dir, tmp_path, "--epochs", 10**6, *flags), capture_output=True, text=True, timeout=300
    )
    assert f"process {first.pid} on {socket.gethostname()}" in error_line(done)
    assert first.poll() is None and sorted(os.listdir(tmp_path)) == ["AD"]
    first.kill()
    first.communicate()
    assert start(slices_dir, tmp_path, "--epochs", 1, *flags) == 0
