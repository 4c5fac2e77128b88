"""A lock on a folder for one process, which no killed process leaves locked, also on disks that cannot lock files.

The system locks the file, and unlocks it when the process ends, however it does. Some disks of clusters refuse (Lustre
mounted without flock, some NFS). There the text of the file is the lock: it names the process that holds it, so that one that
was killed is recognised on the same machine.
"""

import contextlib
import os
import re
import socket
import sys
import time

from utils import naming

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


class Held(Exception):
    """Another process has the lock. holder: which, as text, "" if unknown; remedy: what to do if it was killed, or ""."""

    def __init__(self, holder="", remedy=""):
        super().__init__(holder)
        self.holder, self.remedy = holder, remedy


class Lock:
    """The lock of the file `path`, held by this process from now on until it ends or calls `release`; Held if another has it."""

    def __init__(self, path):
        self.path, self.text = path, f"process {os.getpid()} on {socket.gethostname()}\n{identity(os.getpid())}\n"
        with naming(path):
            self.handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # never emptied before it is ours
            try:
                lock_file(self.handle)
            except (BlockingIOError, PermissionError):
                os.close(self.handle)
                raise Held(read(path).partition("\n")[0]) from None
            except OSError:  # ENOSYS, ENOLCK, EOPNOTSUPP, ...
                os.close(self.handle)
                self.handle = None
                self._take_by_name()
            else:
                self._write(self.handle)
        self.held = True

    def release(self):
        """Give the lock back, once; a file that the system locks stays, since another process may have opened it."""
        if not self.held:
            return
        self.held = False
        if self.handle is not None:
            os.ftruncate(self.handle, 0)
            os.close(self.handle)
        elif read(self.path) == self.text:
            os.unlink(self.path)

    def _write(self, handle):
        os.lseek(handle, 0, os.SEEK_SET)
        os.ftruncate(handle, 0)
        os.write(handle, self.text.encode())

    def _take_by_name(self):
        """Write the file unless a living process is named in it; a second file, created by one process at a time, guards this."""
        guard = f"{self.path}.guard"
        for _ in range(100):
            with contextlib.suppress(FileExistsError):
                os.close(os.open(guard, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
                break
            time.sleep(0.02)
        else:  # a process was killed between the two
            raise Held("", f"; this disk cannot lock files: if no process is starting here now, remove {guard}")
        try:
            found = read(self.path)
            if found and not is_left_behind(found):
                remedy = f"; this disk cannot lock files: if that process was killed, remove {self.path}"
                raise Held(found.partition("\n")[0], remedy)
            handle = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o666)
            try:
                self._write(handle)
            finally:
                os.close(handle)
        finally:
            os.unlink(guard)


def read(path):
    """The text of a lock file; "" if there is none."""
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def lock_file(handle):
    """Have the system lock an open file; BlockingIOError or PermissionError if another process has it, else OSError."""
    if sys.platform == "win32":
        os.lseek(handle, 2**30, os.SEEK_SET)  # beyond the text, which others may read
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


# ---------------------------------------------------------------------------------------------------------------------
# Is the process that a lock names still there?


def identity(pid):
    """What tells a running process from any other, as "boot namespace start"; "" if there is none, or the system does not tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as boot, open(f"/proc/{pid}/stat") as status:
            fields = status.read().rpartition(")")[2].split()
            if fields[0] not in ("Z", "X"):  # dead, though its number is still taken
                return f"{boot.read().strip()} {os.readlink('/proc/self/ns/pid')} {fields[19]}"
    except (OSError, IndexError):  # no Linux, or no such process
        pass
    return ""


def is_running(pid):
    """Whether this machine has a process of this number (not on Windows, where asking would end it)."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        pass
    return True


def is_left_behind(text):
    """Whether the process that the text of a lock names has ended, as far as it can be told: False for another machine's."""
    match = re.match(r"process (\d+) on (\S+)\n(?:(\S+) (\S+) \d+\n)?", text)
    if not match or match[2] != socket.gethostname() or sys.platform == "win32":
        return False
    pid, here = int(match[1]), identity(os.getpid()).split()
    if not match[3] or not here:
        return not is_running(pid)
    if match[3] != here[0]:  # the machine has been started again since
        return True
    return match[4] == here[1] and identity(pid) != text.splitlines()[1]  # processes of another namespace (container) are not seen
