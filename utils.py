"""What all commands share: one-line errors, signals, atomic files, random streams, devices, run settings and flags."""

from startup import STOPPING, keep_freed_memory, keep_output, stop_now  # before all others

# isort: split
import argparse
import contextlib
import difflib
import errno
import functools
import hashlib
import io
import json
import operator
import os
import shutil
import signal
import sys
import tempfile

CLASSES = ("AD", "NC")  # label 0, label 1
VALUES = "position", "age", "sex"  # what a model can be told beside the class: slice index, years, 1 for M and 0 for F
RESOLUTIONS = (32, 64, 128, 256, 512, 1024)
LARGEST = {"channel_base": 2**20, "channel_max": 1024, "mapping_layers": 64}  # no machine has the memory for more channels

UMASK = os.umask(0)  # it can only be read by setting it, which is not safe in threads
os.umask(UMASK)


class UserError(Exception):
    """An error that the user can fix. The message is one line: which file or flag, what is wrong, what to do."""


class Interrupted(BaseException):
    """Ctrl-C, SIGTERM or SIGUSR1; `signum` says which. A BaseException, so that `except Exception` does not catch it."""

    def __init__(self, signum):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def run_cli(main):
    """Call main() and exit with its status, or 2 after a UserError or a file system error (one line, no traceback), 128 + n
    after signal n, 1 with a traceback after a bug. Closed output is no error: see startup.py."""

    def stop(signum, _frame):
        raise Interrupted(signum)

    keep_output()
    for signum in STOPPING:
        signal.signal(signum, stop)
    for stream in (sys.stdout, sys.stderr):  # file names may not be valid text
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
    except OSError as error:  # a full disk, a file without permission
        name = f"{error.filename}: " if error.filename else ""
        print(f"error: {printable(name + reason(error))}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:  # PyTorch's are RuntimeErrors
        if not isinstance(error, MemoryError) and "allocate memory" not in str(error) and "out of memory" not in str(error):
            raise
        print("error: out of memory: ask for less, in train.py by --batch_size, --resolution or --channel_max", file=sys.stderr)
        sys.exit(2)
    finally:
        for signum in STOPPING:
            signal.signal(signum, stop_now)  # while Python shuts down


def printable(text):
    """`text` in one line, with unprintable characters as \\n, \\x1b, ..."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def plural(count, noun):
    """ "1 file", "2 files"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def reason(error):
    """What an OSError says, without its number and file; libraries raise some that have neither number nor text of their own."""
    return error.strerror or " ".join(map(str, error.args)).strip() or type(error).__name__


@contextlib.contextmanager
def naming(path):
    """A context whose OSErrors have a number and text, and name `path`: those of a write, on a full disk say, name no file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno or errno.EIO, reason(error), path) from error


@contextlib.contextmanager
def atomic_path(path, sync=False):
    """A context with a temporary path beside `path`, renamed to `path` on success and removed on an error.

    Other processes only ever see a whole file; with `sync` also after a power cut. OSErrors name `path`, as in `naming`.
    """
    with naming(path):
        handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path) or ".", prefix=".tmp-", suffix=os.path.splitext(path)[1])
        os.close(handle)
        try:
            yield temporary
            os.chmod(temporary, 0o666 & ~UMASK)  # mkstemp made it private to this user
            if sync:
                with open(temporary, "rb+") as file:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
            if sync:
                with contextlib.suppress(OSError):  # Windows cannot flush a folder's names
                    handle = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
                    os.fsync(handle)
                    os.close(handle)
        except (OSError, RuntimeError) as error:
            if getattr(error, "errno", None) is None:  # PIL, NumPy and SimpleITK do not say why; the system will
                with open(temporary, "ab") as file:
                    file.write(bytes(2**20))
            raise
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def save_tensors(state, path):
    """Write a dictionary of tensors and plain values with a checksum, which `load_tensors` verifies."""
    import torch

    content = io.BytesIO()  # on a full disk torch.save would raise an error of its own instead of OSError
    torch.save(state | {"checksum": checksum(state)}, content)
    with open(path, "wb") as file:
        file.write(content.getbuffer())


def load_tensors(path):
    """Read what `save_tensors` wrote, onto the CPU, without running code from the file.

    Raises OSError, or nearly anything else for a file that is no such dictionary; ValueError where the checksum differs.
    """
    import torch

    if not os.path.isfile(path):  # opening a pipe would block
        raise FileNotFoundError(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state.pop("checksum", None) not in (None, checksum(state)):
        raise ValueError("the checksum differs")
    return state


def checksum(state):
    """SHA-256, in hex, of nested dicts, lists and tuples of tensors and plain values."""
    import torch

    sha = hashlib.sha256()

    def add(value):
        if isinstance(value, torch.Tensor):
            sha.update(f"{value.dtype} {tuple(value.shape)}".encode())
            sha.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        elif isinstance(value, (dict, list, tuple)):
            sha.update(f"{type(value).__name__} of {len(value)}".encode())
            for part in value.items() if isinstance(value, dict) else value:
                add(part)
        else:
            sha.update(repr(value).encode())

    add(state)
    return sha.hexdigest()


def usable_cores():
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def walk(folder, flag=""):
    """Yield each folder in `folder`, itself first, with the sorted names of its files; hidden ones are left out, links followed.

    UserError, which names `flag`, if one cannot be looked into.
    """

    def refuse(error):
        raise UserError(f"{flag} {error.filename}: cannot look into this folder ({reason(error)})".lstrip())

    visited = set()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        if os.path.realpath(root) in visited:  # a link to a folder above it would be followed for ever
            folders.clear()
            continue
        visited.add(os.path.realpath(root))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield root, sorted(name for name in names if not name.startswith("."))


def make_folder(path, flag):
    """Create folder `path` (and parents) or raise a UserError that names `flag`."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot make this folder ({reason(error)}); choose another") from None


def random_stream(purpose, seed, device="cpu"):
    """A torch.Generator on `device` whose numbers depend on the seed and on a purpose such as "latents".

    With one stream for weights and latents, the first latents would equal rows of the mapping network's first layer.
    """
    import torch

    digest = hashlib.sha256(f"{purpose} {seed}".encode()).digest()
    stream = torch.Generator(device)
    stream.manual_seed(int.from_bytes(digest[:4], "big"))
    return stream


def pick_device(name):
    """Set up PyTorch for `--device` ("auto": CUDA, else Apple's "mps", else the CPU): its torch.device. UserError if unusable."""
    import torch  # here, since --help and phantom.py need this file but not PyTorch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        if name == "cpu" and has_nvidia_driver():
            build = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
            print(
                f"warning: this machine has an NVIDIA driver, but PyTorch cannot use it and works on the CPU: PyTorch {build}, "
                "nvidia-smi shows the newest CUDA that the driver takes; pytorch.org/get-started has builds for older ones",
                file=sys.stderr,
            )
    if name == "cuda":
        alone = "SLURM_PROCID" in os.environ and torch.cuda.device_count() == 1  # srun may hide the others' GPUs
        name = f"cuda:{0 if alone else os.environ.get('LOCAL_RANK', 0)}"  # every process has its own
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # fails for the device "meta"
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        if "no kernel image" in reason:
            major, minor = torch.cuda.get_device_capability(device)
            reason = f"no code for compute capability {major}.{minor}; older builds: pytorch.org/get-started/previous-versions"
        raise UserError(f"--device {name}: cannot be used here ({reason}); try --device cpu") from None
    if device.type == "cuda":
        # All batches have one shape, so that looking for the fastest kernels pays; which ones win differs from run to run.
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("highest")  # float32 means float32, never TF32
        torch.backends.cudnn.allow_tf32 = False
    else:
        keep_freed_memory()
    torch.set_flush_denormal(True)  # on a CPU, denormal numbers cost up to a hundred times the others
    return device


def has_nvidia_driver():
    """Whether there is an NVIDIA driver, and GPUs are not hidden by CUDA_VISIBLE_DEVICES."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not hidden and bool(os.path.exists("/proc/driver/nvidia/version") or shutil.which("nvidia-smi"))


def has_room(device, size):
    """Whether `size` bytes take at most a third of a CUDA torch.device's free memory; False for another device."""
    import torch

    return device.type == "cuda" and 3 * size <= torch.cuda.mem_get_info(device)[0]


def pick_dtype(amp, device):
    """The torch.dtype of activations for `--amp`; None means bfloat16 where the processor has instructions for it.

    These are a GPU from Ampere on, or a CPU with AMX or AVX512-BF16; True means float16 on an older GPU. Weights, images, scores,
    losses, gradient norms and the optimiser are float32 either way.
    """
    import torch

    if device.type == "mps" and amp:
        raise UserError("--amp True: Apple's GPUs compute in float32 here; leave it out")
    if device.type == "cuda" and amp is not False:
        narrow = torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
        return narrow if amp or narrow == torch.bfloat16 else torch.float32
    if amp is None and device.type == "cpu" and torch.backends.mkldnn.is_available():
        with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:  # Linux alone tells
            amp = not {"amx_bf16", "avx512_bf16"}.isdisjoint(file.read().split())
    return torch.bfloat16 if amp else torch.float32


def read_config(folder):
    """The settings in a run's config.json, {"flags": {...}, "network": {...}, ...}; {} if it is missing or unreadable.

    Values that are not dictionaries are left out.
    """
    try:
        with open(os.path.join(folder, "config.json")) as file:
            return {name: value for name, value in json.load(file).items() if isinstance(value, dict)}
    except (OSError, ValueError, AttributeError, RecursionError):  # invalid JSON, or JSON that is no dictionary
        return {}


def read_network(folder):
    """The network settings in a run's config.json, as of `check_network`; {} if any is missing or impossible."""
    try:
        return check_network(read_config(folder)["network"])
    except (KeyError, TypeError, ValueError):
        return {}


def check_network(network):
    """The network settings in a dictionary of a file, ints and "values"; KeyError, TypeError or ValueError if one is impossible."""
    names = "resolution", "channel_base", "channel_max", "mapping_layers", "z_dim", "w_dim", "num_classes"
    told = list(network.get("values", ()))  # older files have none
    network = {name: operator.index(network[name]) for name in names}
    allowed = {"resolution": RESOLUTIONS, "num_classes": (0, len(CLASSES))}
    allowed |= {name: range(1, largest + 1) for name, largest in LARGEST.items()}
    for name, values in allowed.items():
        if network[name] not in values:
            raise ValueError(f"{name} {network[name]}")
    if told != [name for name in VALUES if name in told] or told and not network["num_classes"]:
        raise ValueError(f"values {told}")
    return network | {"values": told}


# ---------------------------------------------------------------------------------------------------------------------
# Flags

DASHES = "-", "\N{EN DASH}", "\N{EM DASH}", "\N{MINUS SIGN}"  # word processors replace the first by one of the others


class ArgumentParser(argparse.ArgumentParser):
    """argparse with one-line errors and with defaults in `--help`; ~ and ~user at the start of a text are home folders.

    examples: command lines, without "python", for the end of `--help`.
    """

    def __init__(self, description, *examples):
        super().__init__(
            description=description,
            formatter_class=HelpFormatter,
            allow_abbrev=False,
            epilog="examples:\n" + "\n".join("  python " + line for line in examples) if examples else None,
        )

    def error(self, message):
        raise UserError(f"{message} (see python {self.prog} --help)")

    def parse_args(self, argv=None):
        argv = sys.argv[1:] if argv is None else argv
        try:
            args, unknown = self.parse_known_args(argv)
        except UserError:  # a required flag may be missing since it is misspelt
            flags = [word for word in argv if word.startswith(DASHES) and word.lstrip("".join(DASHES))[:1].isalpha()]
            self.check_unknown([word for word in flags if word.split("=")[0] not in self._option_string_actions])
            raise
        self.check_unknown(unknown)
        for name, value in vars(args).items():
            if value in ([], ""):  # [] is what argparse makes of --flag=--, unchecked
                self.error(f"--{name}: expected a value")
            if isinstance(value, str) and value.startswith("~"):  # the shell leaves it so in --flag=~/x, and in quotes
                setattr(args, name, os.path.expanduser(value))
                if getattr(args, name) == value:
                    self.error(f"--{name} {value}: no such user; for a folder of that name, write ./{value}")
        return args

    def check_unknown(self, unknown):
        """UserError that names the words that are no flags, if there are any, and which were meant."""
        if unknown:
            meant = self.meant_flags([word for word in unknown if word.startswith(DASHES)] or unknown[:1])
            self.error(f"unknown: {' '.join(unknown)}" + (f", did you mean {meant}?" if meant else ""))

    def meant_flags(self, words):
        """The flags nearest to those of `words` that are not flags, whatever their letter case and dashes: "--AD_dir --NC_dir"."""

        def plain(word):  # "ad_dir" of "-AD-dir"
            return word.lstrip("".join(DASHES)).lower().replace("-", "_")

        known, near = {plain(flag): flag for flag in self._option_string_actions if flag.startswith("--")}, []
        for word in (word.split("=")[0] for word in words):
            if word not in self._option_string_actions:
                near += difflib.get_close_matches(plain(word), known, 1)
        return " ".join(dict.fromkeys(known[flag] for flag in near))


class Group:
    """Flags under one title in `--help`."""

    def __init__(self, parser, title):
        self.group = parser.add_argument_group(title)
        self.add = self.group.add_argument

    def add_bool(self, flag, default, help):
        """A flag that takes True or False in any letter case; without a value it means True."""
        self.add(flag, type=boolean, nargs="?", const=True, default=default, metavar="True|False", help=help)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)


def boolean(text):
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    raise argparse.ArgumentTypeError(f"expected True or False, not {text!r}")


@functools.cache  # commands parse their flags twice
def class_name(text):
    """An argparse type for "all" and names of classes, in any letter case; CN, ADNI's word for NC, is taken for it with a note."""
    if text.upper() == "CN":
        print(f"note: {text} is ADNI's word for the class NC", file=sys.stderr)
        return "NC"
    known = {name.casefold(): name for name in ("all", *CLASSES)}
    return known.get(text.casefold(), text)


def number(kind, low, high=sys.float_info.max, open_low=False):
    """An argparse type: an int or float within [low, high], or (low, high] with `open_low`; inf only where `high` is."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {'a whole' if kind is int else 'a'} number") from None
        if not low <= value <= high or (open_low and value == low):  # also refuses nan
            bounds = f"{'above' if open_low else 'at least'} {low}" + (f", at most {high}" if high < sys.float_info.max else "")
            raise argparse.ArgumentTypeError(f"{text} is out of range: {bounds}")
        return value

    return parse


def parse_before_import(parse):
    """Exit now if parse() refuses the flags or prints `--help`: before PyTorch is imported, which takes seconds."""
    try:
        parse()
    except UserError:
        run_cli(parse)
