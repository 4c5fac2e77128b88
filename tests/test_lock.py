"""The lock of a folder, on disks that can lock files and on those that cannot."""

import errno
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from conftest import ROOT

import lock
from lock import Held, Lock

pytestmark = pytest.mark.skipif(os.name == "nt", reason="processes and flock as POSIX has them")
US = f"process {os.getpid()} on {socket.gethostname()}"
HOLDER = """
import errno, sys, time, lock
if sys.argv[2] != "flock":
    def lock_file(_): raise OSError(int(sys.argv[2]), "")
    lock.lock_file = lock_file
held = lock.Lock(sys.argv[1])
print("held", flush=True)
time.sleep(600)
"""


def no_flock(monkeypatch, number=errno.ENOSYS):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock.fcntl, "flock", flock)


@pytest.fixture(params=["flock", errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def disk(request, monkeypatch):
    """Disks that lock files and disks that refuse, each with an error of its own."""
    if request.param != "flock":
        no_flock(monkeypatch, request.param)
    return request.param


def holder(path, disk):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path), str(disk)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_one_process_holds_a_lock_and_gives_it_back(tmp_path, disk):
    path = str(tmp_path / "lock")
    for _ in range(2):
        held = Lock(path)
        text = lock.read(path)
        assert text.startswith(US + "\n")
        for _ in range(2):
            with pytest.raises(Held) as refused:
                Lock(path)
            assert refused.value.holder == US and lock.read(path) == text
        held.release()
        held.release()
        assert lock.read(path) == "" and os.listdir(tmp_path) in ([], ["lock"])
    other = Lock(path)
    held.release()  # once more, when another has it
    with pytest.raises(Held):
        Lock(path)
    other.release()


def test_lock_of_a_killed_process_can_be_taken(tmp_path, disk):
    path = str(tmp_path / "lock")
    process = holder(path, disk)
    with pytest.raises(Held) as refused:
        Lock(path)
    assert refused.value.holder == f"process {process.pid} on {socket.gethostname()}"
    assert refused.value.remedy == (
        "" if disk == "flock" else f"; this disk cannot lock files: if that process was killed, remove {path}"
    )
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(Held):
        Lock(path)
    process.kill()
    while lock.identity(process.pid):  # dead now, though it is not waited for yet
        time.sleep(0.01)
    Lock(path).release()
    process.communicate()
    Lock(path).release()
    assert os.listdir(tmp_path) in ([], ["lock"])


@pytest.fixture
def left(tmp_path, monkeypatch):
    """left(text): is a lock with this text, on a disk that cannot lock files, taken as one left behind?"""
    no_flock(monkeypatch)

    def left(text):
        (tmp_path / "lock").write_text(text)
        try:
            Lock(str(tmp_path / "lock")).release()
        except Held:
            assert (tmp_path / "lock").read_text() == text  # never overwritten
            return False
        return True

    return left


linux = pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="only Linux tells when a process began")


def test_lock_of_a_process_that_may_live_is_kept(left):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host = socket.gethostname()
    assert left("") and left(f"process {ended.pid} on {host}\n\n") and left(f"process {10**12} on {host}\n\n")
    assert not left(f"{US}\n\n") and not left(f"{ended.pid}\n{host}\n")
    assert not left(f"process {ended.pid} on another-{host}\n") and not left("what is this?\n")


@linux
def test_start_of_the_process_tells_it_from_a_later_one_of_its_number(left):
    boot, namespace, start = lock.identity(os.getpid()).split()
    assert lock.identity(10**9) == ""
    assert not left(f"{US}\n{boot} {namespace} {start}\n")
    assert left(f"{US}\n{boot} {namespace} {int(start) - 1}\n")
    assert left(f"{US}\nother-boot {namespace} {start}\n")  # the machine has been started again
    assert not left(f"{US}\n{boot} pid:[1] {int(start) - 1}\n")  # of another container, whose processes nobody sees here


def test_of_many_processes_that_start_at_once_one_gets_a_lock_that_was_left_behind(tmp_path):
    code = HOLDER.replace(
        "held = lock.Lock(sys.argv[1])", "while time.time() < float(sys.argv[3]): pass\nheld = lock.Lock(sys.argv[1])"
    )
    (tmp_path / "lock").write_text(f"process {10**12} on {socket.gethostname()}\n")
    command = [sys.executable, "-c", code, str(tmp_path / "lock"), str(errno.ENOSYS), str(time.time() + 2)]
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    try:
        said = sorted(process.stdout.readline() for process in processes)  # "" of those that have ended
    finally:
        for process in processes:
            process.kill()
        errors = [process.communicate()[1] for process in processes]
    assert said == ["", "", "", "held\n"] and sum("Held" in error for error in errors) == 3


def test_guard_of_a_process_killed_while_it_took_a_lock_is_named(tmp_path, monkeypatch):
    no_flock(monkeypatch)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    (tmp_path / "lock.guard").touch()
    with pytest.raises(Held) as refused:
        Lock(str(tmp_path / "lock"))
    assert refused.value.remedy.endswith(f"remove {tmp_path / 'lock.guard'}")
    (tmp_path / "lock.guard").unlink()
    Lock(str(tmp_path / "lock")).release()
    assert os.listdir(tmp_path) == []


def test_folder_without_permission_or_room_names_the_lock(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError) as error:
        Lock(str(tmp_path / "none/lock"))
    assert error.value.filename == str(tmp_path / "none/lock")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space") as error:
        Lock(str(tmp_path / "lock"))
    assert error.value.filename == str(tmp_path / "lock")
