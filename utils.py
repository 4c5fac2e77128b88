"""What every script here shares: one-line errors, devices, files that are never half written."""

import contextlib
import ctypes
import hashlib
import os
import signal
import sys
import tempfile

UMASK = os.umask(0)  # can only be read by being set, which threads must not do at once
os.umask(UMASK)

STOPPING = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGTERM)}  # SIGUSR1: Slurm's warning


class UserError(Exception):
    """Something the user can mend. The message is one line: which file or flag, what is wrong, what to do."""


class Interrupted(BaseException):
    """Ctrl-C, SIGTERM or SIGUSR1; `signum` says which. A BaseException, so that `except Exception` lets it through."""

    def __init__(self, signum):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def run_cli(main):
    """Call `main()` and exit with its status: 0, 2 after a UserError or a fault of the file system (one line,
    no traceback), 128 + n after signal n, 1 after a fault of ours."""

    def stop(signum, _frame):
        raise Interrupted(signum)

    for signum in STOPPING:
        signal.signal(signum, stop)
    for stream in (sys.stdout, sys.stderr):  # a file's name may hold what no text does
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as stopped:
        print(f"stopped by {stopped}", file=sys.stderr)
        sys.exit(128 + stopped.signum)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:  # a full disk, a file without permission
        print(f"error: {printable(str(error.filename or 'a file'))}: {error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:  # PyTorch's are RuntimeErrors
        if not isinstance(error, MemoryError) and "allocate memory" not in str(error) and "out of memory" not in str(error):
            raise
        print("error: out of memory: ask for less, such as --batch_size, --resolution or --channel_max", file=sys.stderr)
        sys.exit(2)


def printable(text):
    """`text` in one line, what is no letter, sign or space as \\n, \\x1b, ..."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


@contextlib.contextmanager
def atomic_path(path, sync=False):
    """Give a temporary path beside `path`; on a clean exit it becomes `path` in one step, else it is removed.

    A reader, or a second process writing the same file, only ever sees a whole file; with `sync` also after a power cut.
    """
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path) or ".", prefix=".tmp-", suffix=os.path.splitext(path)[1])
    os.close(handle)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~UMASK)  # mkstemp made it private to this user
        if sync:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            error.filename = path  # a write knows none, and nobody has seen the temporary one
        raise


def make_folder(path, flag):
    """Create folder `path` (and parents) or raise a UserError that names `flag`."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot make this folder ({error.strerror}); choose another") from None


def random_stream(purpose, seed, device="cpu", kind=None):
    """A torch.Generator on `device` for a purpose such as "latents"; other purposes of the same seed draw other numbers.

    kind: a subclass of torch.Generator to make it of.

    Seeded alike, the first latents would be the numbers that the first weights were made of: each then meets a row of the
    mapping network's first layer that equals it, and its w lies twice as far from the mean as that of any other.
    """
    import torch

    digest = hashlib.sha256(f"{purpose} {seed}".encode()).digest()
    stream = (kind or torch.Generator)(device)
    stream.manual_seed(int.from_bytes(digest[:4], "big"))
    return stream


def pick_device(name):
    """The torch.device of `--device`: "auto" takes CUDA when there is one, else the CPU. UserError when it cannot be used."""
    import torch  # here, since phantom.py needs this file but not PyTorch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"  # torchrun's processes take a GPU each
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # the device "meta" holds nothing
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(f"--device {name}: cannot be used here ({reason}); try --device cpu") from None
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # every batch has one shape: worth looking for the fastest kernel
        torch.set_float32_matmul_precision("high")
    else:
        keep_freed_memory()
    torch.set_flush_denormal(True)  # on a CPU, denormal numbers cost up to a hundred times the others
    return device


def keep_freed_memory():
    """Have glibc keep what is freed for the next allocation, instead of giving it back to the system; elsewhere do nothing.

    It hands back every block from 32 MiB on, and training asks for the next such block at once, page by page: a sixth of a
    step at 256x256 went into that.
    """
    mmap_max, trim_threshold = -4, -1  # M_MMAP_MAX, M_TRIM_THRESHOLD of malloc.h
    with contextlib.suppress(AttributeError, OSError, TypeError):  # musl, macOS, Windows
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)


def pick_dtype(amp, device):
    """The torch.dtype of activations for `--amp`; None is bfloat16 on a CPU with AMX tiles and a GPU from Ampere on.

    Weights, images, scores, losses, gradient norms and the optimiser are float32 either way.
    """
    import torch

    if amp is None and device.type == "cuda":
        amp = torch.cuda.get_device_capability(device) >= (8, 0)
    elif amp is None:
        amp = device.type == "cpu" and torch.backends.mkldnn.is_available() and _has_amx()
    return torch.bfloat16 if amp else torch.float32


def _has_amx():
    try:
        with open("/proc/cpuinfo") as file:
            return "amx_bf16" in file.read()
    except OSError:
        return False
