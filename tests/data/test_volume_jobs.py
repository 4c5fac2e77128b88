"""Processes that die, and processes that are stopped: the other scans are done, and nothing stays behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("SimpleITK")

from data.volume_jobs import DIED, run_jobs  # noqa: E402
from data.volume_steps import Job  # noqa: E402
from data.volumes import Volume  # noqa: E402

pytestmark = pytest.mark.slow  # they start processes
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
