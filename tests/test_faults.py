"""Faults, provoked for real: killed processes, damaged files, full and read-only disks, two runs at once.

`make soak` kills a run 50 times instead of twice.
"""

import contextlib
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
from conftest import ROOT, SOAK, checkpoint, read_table, same_checkpoints, start, train_command
from damage import cut, flip_bit

from utils import UserError, load_tensors

pytestmark = pytest.mark.skipif(os.name == "nt", reason="kills and mounts as POSIX has them")
KILLS = 2 if SOAK is None else 50


def begin(slices_dir, model_dir, *flags):
    """A process that trains and has saved a checkpoint."""
    process = subprocess.Popen(
        train_command(slices_dir, model_dir, *flags), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not os.path.exists(os.path.join(model_dir, "AD", "generator.pt")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    return process


# ---------------------------------------------------------------------------------------------------------------------
# Killed processes


def kill_at_random(slices_dir, model_dir, flags, rng, longest=2.0):
    """Start a run, kill -9 it up to `longest` seconds after it has taken its lock; returns whether the kill hit it."""
    lock = os.path.join(model_dir, "AD", "lock")
    process = subprocess.Popen(train_command(slices_dir, model_dir, *flags), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        with contextlib.suppress(OSError), open(lock) as file:
            if file.read().startswith(f"process {process.pid} "):
                break
        time.sleep(0.01)
    time.sleep(rng.uniform(0, longest))
    process.kill()
    return process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_killed_run_ends_like_one_that_was_never_killed(slices_dir, tmp_path, unplotted):
    flags = ["--epochs", 20 * KILLS, "--save_every", 5, "--augment", "ada"]
    rng = np.random.default_rng(int(SOAK or 0))
    hits = sum(kill_at_random(slices_dir, tmp_path / "killed", flags, rng) for _ in range(KILLS))
    assert hits >= KILLS / 2  # the others came too late, after the end
    for name in ("killed", "whole"):
        assert start(slices_dir, tmp_path / name, *flags) == 0
    assert same_checkpoints(checkpoint(tmp_path / "killed/AD"), checkpoint(tmp_path / "whole/AD"))
    ours, theirs = (read_table(tmp_path / name / "AD/losses.csv") for name in ("killed", "whole"))
    steps = [row["step"] for row in ours]
    assert steps == sorted(set(steps)) and steps[-1] == theirs[-1]["step"]
    assert not [name for _, _, names in os.walk(tmp_path) for name in names if name.startswith(".tmp-")]


# ---------------------------------------------------------------------------------------------------------------------
# Damaged checkpoints


@pytest.fixture
def own_run(models, tmp_path, unplotted):
    """A run of two epochs in a folder that the test may damage, with a checkpoint of the first beside the last."""
    return shutil.copytree(os.path.join(models, "AD"), tmp_path / "AD")


@pytest.mark.slow
@pytest.mark.parametrize("damage, expected", [(flip_bit, "ValueError: the checksum differs"), (os.unlink, "FileNotFoundError")])
def test_run_resumes_from_the_previous_checkpoint_if_the_newest_is_damaged(own_run, slices_dir, tmp_path, capsys, damage, expected):
    assert checkpoint(own_run)["images"] == 16
    damage(own_run / "checkpoint.pt")
    capsys.readouterr()
    assert start(slices_dir, tmp_path, "--epochs", 6, "--save_every", 1) == 0
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    for part in ("checkpoint.pt is damaged or missing (", expected, "the checkpoint before it, at 0.0 kimg"):
        assert part in warning
    start(slices_dir, tmp_path / "whole", "--epochs", 6)  # without a stop
    assert same_checkpoints(checkpoint(own_run), checkpoint(tmp_path / "whole/AD"))
    images = [row["images"] for row in read_table(own_run / "losses.csv")]
    assert images == sorted(set(images)) and images[-1] == 48


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_flipped_bit_anywhere_is_noticed_or_does_not_matter(own_run, slices_dir, tmp_path, share):
    before = checkpoint(own_run)
    for name in ("checkpoint.pt", "previous.pt"):
        flip_bit(own_run / name, share)
    try:
        start(slices_dir, tmp_path, "--epochs", 2)  # done already, if it can be read
    except UserError as error:
        assert "--resume False" in str(error)
    else:
        assert same_checkpoints(checkpoint(own_run), before)


def test_two_damaged_checkpoints_are_refused_and_left_alone(own_run, slices_dir, tmp_path):
    for name in ("checkpoint.pt", "previous.pt"):
        cut(own_run / name)
    kept = {name: (own_run / name).read_bytes() for name in ("checkpoint.pt", "previous.pt", "generator.pt", "losses.csv")}
    with pytest.raises(UserError, match="checkpoint.pt is damaged .* and previous.pt is damaged .*--resume False"):
        start(slices_dir, tmp_path, "--epochs", 6)
    assert kept == {name: (own_run / name).read_bytes() for name in kept}


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


@pytest.mark.slow
def test_full_disk_leaves_the_checkpoint_whole(own_run, slices_dir, tmp_path):
    disk = tmp_path / "disk"
    size = sum(path.stat().st_size + 8192 for path in own_run.rglob("*"))  # in whole pages, and a checkpoint's half
    size += (own_run / "checkpoint.pt").stat().st_size // 2
    disk.mkdir()
    done = in_namespace(
        f'mount -t tmpfs -o size={size} none "{disk}" && cp -r "{own_run}" "{disk}" && "$@"; status=$?; '
        f'cp "{disk}"/AD/*.pt "{tmp_path}"; ls -A "{disk}/AD" >&2; exit $status',
        *train_command(slices_dir, disk, "--epochs", 9, "--save_every", 3),
    )
    assert "No space left on device" in error_line(done)
    assert ".tmp-" not in done.stderr
    assert load_tensors(tmp_path / "checkpoint.pt")["images"] == 16  # which verifies the checksum


@pytest.mark.slow
def test_file_size_limit_leaves_the_checkpoint_whole(own_run, slices_dir, tmp_path):
    before = checkpoint(own_run)
    limit = (own_run / "checkpoint.pt").stat().st_size // 2
    done = subprocess.run(
        train_command(slices_dir, tmp_path, "--epochs", 5),
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert "File too large" in error_line(done)
    assert same_checkpoints(checkpoint(own_run), before)


@pytest.mark.slow
@pytest.mark.parametrize("exists", [True, False])
def test_read_only_disk_is_refused_in_one_line(own_run, slices_dir, tmp_path, exists):
    disk = tmp_path / "disk"
    disk.mkdir()
    done = in_namespace(
        f'mount -t tmpfs none "{disk}" && '
        + (f'cp -r "{own_run}" "{disk}" && ' if exists else "")
        + f'mount -o remount,ro "{disk}" && "$@"',
        *train_command(slices_dir, disk, "--epochs", 9),
    )
    assert "Read-only file system" in error_line(done)


@pytest.mark.slow
def test_predictions_on_a_full_disk_name_the_file_and_the_reason(models, tmp_path):
    """Images and arrays are written by libraries that do not say why they could not."""
    disk = tmp_path / "disk"
    disk.mkdir()
    predict = [sys.executable, os.path.join(ROOT, "predict.py"), "--model_dir", os.path.join(models, "AD"), "--device", "cpu"]
    done = in_namespace(
        f'mount -t tmpfs -o size=64k none "{disk}" && "$@"; status=$?; ls -AR "{disk}" >&2; exit $status',
        *[*predict, "--export", 2000, "--output_dir", disk],
    )
    line = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert done.returncode == 2 and "Traceback" not in done.stderr and ".tmp-" not in done.stderr, done.stderr
    assert line.startswith(f"error: {disk}/") and line.endswith(": No space left on device"), line


@pytest.mark.slow
def test_training_goes_on_when_nobody_reads_its_output(slices_dir, tmp_path):
    command = train_command(slices_dir, tmp_path, "--epochs", 3, script=os.path.join(ROOT, "train.py"))
    done = subprocess.run(["bash", "-c", '"$@" 2>&- | true; exit ${PIPESTATUS[0]}', "bash", *command], timeout=300)
    assert done.returncode == 0 and checkpoint(tmp_path / "AD")["images"] == 24


@pytest.mark.slow
def test_run_whose_slices_vanish_goes_on_and_is_left_alone_by_the_next_start(slices_dir, tmp_path):
    """A running process has its pixels in the cache; the next start names the missing folder."""
    data, losses = tmp_path / "data", tmp_path / "AD/losses.csv"
    shutil.copytree(os.path.dirname(slices_dir), data)
    process = begin(str(data / "train"), tmp_path, "--epochs", 10**6)
    shutil.rmtree(data)
    rows = losses.read_text().count("\n")
    while losses.read_text().count("\n") < rows + 2:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    before = checkpoint(tmp_path / "AD")
    assert before["images"] > 0
    with pytest.raises(UserError, match=str(data / "train")):
        start(str(data / "train"), tmp_path, "--epochs", 10**6)
    assert same_checkpoints(checkpoint(tmp_path / "AD"), before)


# ---------------------------------------------------------------------------------------------------------------------
# Two processes at once


@pytest.mark.slow
def test_second_process_is_refused_and_a_killed_one_leaves_no_lock(slices_dir, tmp_path, unplotted):
    first = begin(slices_dir, tmp_path, "--epochs", 10**6)
    for flags in ([], ["--resume", "False"]):
        with pytest.raises(UserError, match=f"process {first.pid} on {socket.gethostname()}"):
            start(slices_dir, tmp_path, "--epochs", 10**6, *flags)
        assert first.poll() is None and sorted(os.listdir(tmp_path)) == ["AD"]
    first.kill()
    first.communicate()
    assert start(slices_dir, tmp_path, "--epochs", 1) == 0
    assert start(slices_dir, tmp_path, "--epochs", 1, "--resume", "False") == 0
