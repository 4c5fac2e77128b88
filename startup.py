"""What a command does before it imports anything large: signals, output that may be closed, Matplotlib's backend.

Every command and utils.py import this file first. It acts only in a process that runs a file of this project: not in a notebook
or a test that imports a module.
"""

import ctypes
import os
import signal
import sys

STOPPING = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGTERM)}  # SIGUSR1: Slurm's warning


def is_command():
    """Whether this process runs a script or a module of this project (but not one installed below it, such as pytest)."""
    if sys.argv[:1] == ["-m"]:  # which Python still looks for, in a package that has imported this file
        return True
    here = os.path.dirname(os.path.abspath(__file__))
    path = getattr(sys.modules["__main__"], "__file__", None)
    folders = here, os.path.join(here, "training"), os.path.join(here, "analysis")
    return path is not None and os.path.dirname(os.path.abspath(path)) in folders


def stop_now(signum, _frame=None):
    """End at once with one line and status 128 + signum: for signals while nothing is written that has to be completed."""
    try:
        os.write(2, f"stopped by {signal.Signals(signum).name}\n".encode())
    finally:
        os._exit(128 + signum)


def start_workers(start):
    """start(), which starts processes, and what it returns; Ctrl-C never reaches these, and this process afterwards.

    Not on Windows, where it reaches all.
    """
    if not hasattr(signal, "pthread_sigmask"):
        return start()
    from multiprocessing import resource_tracker  # here: few commands need it

    resource_tracker.ensure_running()  # which would let Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Output:
    """A text stream that nobody need read: what cannot be written is lost, and the command goes on.

    So that a closed terminal, `| head` or a full disk under the log do not end a training run of days.
    """

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        try:
            return self.stream.write(text)
        except OSError:
            self.give_up()
            return len(text)

    def flush(self):
        try:
            self.stream.flush()
        except OSError:
            self.give_up()

    def give_up(self):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.stream.fileno())
        os.close(null)
        self.stream.flush()  # what was waiting


def keep_output():
    """Let neither a closed nor a missing stdout or stderr end this process."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # `2>&-`: the next file opened would get this number, and what libraries print would go into it
            null = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(null, True)
            if null != number:
                os.dup2(null, number)
                os.close(null)
    for name in ("stdout", "stderr"):
        if not isinstance(getattr(sys, name), Output):
            setattr(sys, name, Output(getattr(sys, name) or open(os.devnull, "w")))  # noqa: SIM115


def keep_freed_memory():
    """Let this process keep the memory that it frees, where the C library is glibc, instead of handing it back to the system.

    By default every large tensor of a step on a CPU gets new pages from the system, each of which it has to clear first.
    """
    trim_threshold, largest_mappings = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of mallopt(3)
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(trim_threshold, -1)
        libc.mallopt(largest_mappings, 0)
    except (OSError, AttributeError, TypeError):  # another system
        pass


if is_command():
    keep_freed_memory()
    for signum in STOPPING:
        signal.signal(signum, stop_now)
    keep_output()
    os.environ["MPLBACKEND"] = "agg"  # a notebook's own, which `!python train.py` inherits, exists only in the notebook
