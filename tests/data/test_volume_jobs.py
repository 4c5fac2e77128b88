"""Processes that die, and processes that are stopped: the other scans are done, and nothing stays behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

sitk = pytest.importorskip("SimpleITK")

from conftest import read_image  # noqa: E402
from synthetic_volumes import head, write_nifti  # noqa: E402

from data import volume_jobs  # noqa: E402
from data.volume_jobs import DIED, Job, prepare_scan, run_jobs  # noqa: E402
from data.volume_steps import Settings, cut_slices  # noqa: E402
from data.volumes import Volume  # noqa: E402

PLAIN = Settings(n4=False, resample=0, plane="axial", num_slices=3, slices=(-8, 8))  # no interpolation
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # conftest's would import PyTorch, too


def jobs(count):
    return [Job(Volume(str(i), "NIfTI", ()), None, "", None, None) for i in range(count)]


def die_at_3_and_5(job):
    if job.volume.image in "35":
        os.kill(os.getpid(), signal.SIGKILL)
    return {"image": job.volume.image, "process": os.getpid()}


def sleep(job):
    if job.volume.image != "0":
        time.sleep(600)
    return {"image": job.volume.image}


def test_a_process_that_dies_costs_its_own_scan_alone(capsys):
    results = list(run_jobs(jobs(8), 2, die_at_3_and_5))
    assert sorted(result["image"] for result in results) == [*"01234567"]
    assert {result["image"] for result in results if result.get("error") == DIED} == {"3", "5"}
    assert os.getpid() not in {result.get("process") for result in results}
    assert "a process died" in capsys.readouterr().err
    assert multiprocessing.active_children() == []


def test_closing_ends_the_processes_at_once():
    start = run_jobs(jobs(4), 2, sleep)
    assert next(start) == {"image": "0"}
    assert len(multiprocessing.active_children()) == 2
    start.close()
    assert multiprocessing.active_children() == []


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")
def test_processes_end_when_their_parent_is_killed():
    code = (
        "import multiprocessing, test_volume_jobs as t\n"
        "r = t.run_jobs(t.jobs(4), 2, t.sleep)\nnext(r)\n"
        "print(*[c.pid for c in multiprocessing.active_children()], flush=True)\nnext(r)"
    )
    paths = os.pathsep.join([ROOT, os.path.join(ROOT, "tests"), os.path.dirname(__file__)])
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths}
    )
    children = parent.stdout.readline().split()
    assert len(children) == 2 and all(os.path.exists(f"/proc/{pid}") for pid in children)
    parent.kill()
    parent.communicate()

    def alive(pid):
        try:
            with open(f"/proc/{pid}/stat") as file:
                return file.read().rsplit(")", 1)[1].split()[0] != "Z"
        except OSError:
            return False

    for _ in range(300):
        if not any(map(alive, children)):
            break
        time.sleep(0.1)
    assert not any(map(alive, children))


# ---------------------------------------------------------------------------------------------------------------------
# One scan


@pytest.fixture
def job(tmp_path):
    path = write_nifti(tmp_path / "I7.nii", head())
    (tmp_path / "out").mkdir()
    return Job(Volume("7", "NIfTI", (str(path),)), None, str(tmp_path / "out"), None, PLAIN)


def test_prepare_scan_writes_what_cut_slices_gives(job):
    result = prepare_scan(job._replace(settings=PLAIN._replace(format="png")))
    pixels, indices = cut_slices(sitk.Cast(head(), sitk.sitkFloat32), PLAIN._replace(format="png"))
    assert list(result["slices"]) == [f"7_{index}.png" for index in indices] == sorted(os.listdir(job.folder))
    for plane, name in zip(pixels, result["slices"]):
        np.testing.assert_array_equal(read_image(os.path.join(job.folder, name)), plane)


def test_a_scan_that_fails_leaves_no_slices_and_says_why(job, monkeypatch):
    prepare_scan(job)
    assert len(os.listdir(job.folder)) == 3
    far = prepare_scan(job._replace(settings=PLAIN._replace(slices=(-500, 500))))
    assert far["image"] == "7" and "--slices reach from" in far["error"] and os.listdir(job.folder) == []
    real = volume_jobs.file_checksum

    def fails_at_the_third(path):
        if len(os.listdir(job.folder)) == 3:
            raise ZeroDivisionError("a bug\nin two lines")
        return real(path)

    monkeypatch.setattr(volume_jobs, "file_checksum", fails_at_the_third)
    assert prepare_scan(job) == {"image": "7", "error": "ZeroDivisionError: a bug\\nin two lines"}
    assert os.listdir(job.folder) == []
