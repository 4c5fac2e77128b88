"""What a command does first: signals during its imports, closed output, Matplotlib's backend of a notebook, ~ in flags."""

import io
import os
import platform
import subprocess
import sys

import pytest
from conftest import ROOT

import startup
import utils
from utils import ArgumentParser, UserError

COMMANDS = {  # each with flags that are refused once everything has been imported
    "train.py": "--dataset_dir nowhere --device cpu",
    "predict.py": "--model_dir nowhere --device cpu",
    "metrics.py": "--real nowhere --fake nowhere --device cpu",
    "dataset.py": "--dataset_dir nowhere",
    "prepare.py": "--volumes nowhere --subjects nowhere",
    "phantom.py": "file/folder",
    "bench.py": "--dataset_dir nowhere --resolution 32 --channel_max 8 --device cpu",
    "-m tools.gpu_check": "--dataset_dir nowhere --part 4 --device cpu",
    "-m analysis.areas": "nowhere",
    "-m tools.diagrams": "--output_dir file/folder",
    "-m analysis.models": "nowhere out",
}


def command_line(command, flags):
    script = command.split() if command.startswith("-m") else [os.path.join(ROOT, command)]
    return [sys.executable, *script, *flags.split()]


def run(command, flags, folder, **environment):
    path = os.pathsep.join([environment.pop("PYTHONPATH", ""), ROOT]).strip(os.pathsep)  # for -m, which starts in another folder
    environment = {**os.environ, **environment, "PYTHONPATH": path}
    return subprocess.run(command_line(command, flags), cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


posix = pytest.mark.skipif(os.name == "nt", reason="Windows has other signals")


@posix
@pytest.mark.slow
@pytest.mark.parametrize(
    "imported, signum, status", [("numpy", "SIGINT", 130), ("torch", "SIGTERM", 143), ("argparse", "SIGINT", 130)]
)
@pytest.mark.parametrize("command", COMMANDS)
def test_signal_during_the_imports_ends_in_one_line(tmp_path, command, imported, signum, status):
    """A package of the same name in front of the real one sends the signal when it is imported: argparse also by --help."""
    if imported == "torch" and command in ("prepare.py", "phantom.py"):
        pytest.skip("needs no PyTorch")
    if imported == "numpy" and command == "prepare.py":
        pytest.skip("refuses these flags first")
    source = f"import os, signal, time\nos.kill(os.getpid(), signal.{signum})\ntime.sleep(60)\n"
    (tmp_path / f"{imported}.py").write_text(source)
    flags = "--help" if imported == "argparse" else COMMANDS[command].replace("file/folder", "folder")
    done = run(command, flags, tmp_path, PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (status, "", f"stopped by {signum}\n")


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_backend_of_a_notebook_breaks_no_command(tmp_path, command):
    """`!python train.py` inherits it; the module exists only in the notebook, and any import of Matplotlib would fail."""
    (tmp_path / "file").touch()
    done = run(command, COMMANDS[command], tmp_path, MPLBACKEND="module://of_this_notebook_alone.backend_inline")
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: ") and "Traceback" not in done.stderr


def test_a_notebook_that_imports_a_module_keeps_its_backend_signals_and_output():
    code = (
        "import os, signal, sys\nbefore = signal.getsignal(signal.SIGINT), sys.stdout, sys.stderr\n"
        "import utils, training, analysis\n"
        "assert before == (signal.getsignal(signal.SIGINT), sys.stdout, sys.stderr) and os.environ['MPLBACKEND'] == 'inline'"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "MPLBACKEND": "inline"}, check=True)


# ---------------------------------------------------------------------------------------------------------------------
# Output that nobody reads


def outlive(redirection):
    """Exit status and stderr of a command whose output the shell redirects so, and which prints and then writes a file."""
    code = (
        "import os, sys, utils\n"
        "def main():\n"
        "    for _ in range(3):\n"
        "        print('x' * 10**5, flush=True)\n"
        "        print('x' * 10**5, file=sys.stderr, flush=True)\n"
        "    print('in the buffer at the end')\n"
        "    with open(sys.argv[1], 'w') as file: file.write('all'); file.flush(); os.write(2, b'from a library')\n"
        "    return 5\n"
        "utils.run_cli(main)"
    )
    return lambda path: subprocess.run(
        ["bash", "-c", f'"$@" {redirection}', "bash", sys.executable, "-c", code, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@posix
@pytest.mark.parametrize("redirection", ["2>&-", ">&-", "<&- >&- 2>&-", "| true; exit ${PIPESTATUS[0]}", "2> >(true) > >(true)"])
def test_output_that_is_closed_or_not_read_ends_no_command(tmp_path, redirection):
    done = outlive(redirection)(tmp_path / "file")
    assert done.returncode == 5 and "Traceback" not in done.stderr and "Broken" not in done.stderr
    assert (tmp_path / "file").read_text() == "all"  # and nothing that was meant for stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_log_on_a_full_disk_ends_no_command(tmp_path):
    done = outlive(">/dev/full 2>/dev/full")(tmp_path / "file")
    assert done.returncode == 5 and (tmp_path / "file").read_text() == "all"


@posix
def test_output_gives_what_can_be_written_and_forgets_the_rest():
    reader, writer = os.pipe()
    stream = startup.Output(os.fdopen(writer, "w"))
    assert stream.write("read") == 4 and stream.flush() is None and os.read(reader, 9) == b"read"
    assert stream.encoding and not stream.isatty()  # all else is the stream's
    os.close(reader)
    assert stream.write("lost") == 4 and stream.flush() is None
    print("lost" * 10**5, file=stream, flush=True)
    stream.stream.close()


# ---------------------------------------------------------------------------------------------------------------------
# Paths


@pytest.fixture
def parser():
    parser = ArgumentParser("")
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--output_dir", default="out")
    return parser


def test_home_folders_are_those_of_the_shell(parser, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    args = parser.parse_args(["~", "--output_dir=~/a ~/b"])
    assert args.folder == str(tmp_path) and args.output_dir == str(tmp_path) + "/a ~/b"
    for path in ("a/~", "./~a", "a~", "/~/b"):
        assert parser.parse_args(["--output_dir", path]).output_dir == path
    if os.name != "nt":
        import pwd

        user = pwd.getpwuid(os.getuid())
        assert parser.parse_args([f"--output_dir=~{user.pw_name}/x"]).output_dir == os.path.join(user.pw_dir, "x")


@posix
def test_home_folder_of_nobody_is_refused(parser):
    with pytest.raises(
        UserError, match=r"--output_dir ~no-such-user/x: no such user; for a folder of that name, write \./~no-such"
    ):
        parser.parse_args(["--output_dir=~no-such-user/x"])


# ---------------------------------------------------------------------------------------------------------------------
# Errors of the disk


def exit_line(error, capsys, monkeypatch):
    """What run_cli prints about an exception."""

    def fail():
        raise error

    for name in ("signal", "keep_output"):
        monkeypatch.setattr(utils, name, lambda *_: None) if name == "keep_output" else None
    monkeypatch.setattr(utils.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as stopped:
        utils.run_cli(fail)
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "error, line",
    [
        (OSError("encoder error -2 when writing image file"), "error: encoder error -2 when writing image file\n"),
        (OSError(), "error: OSError\n"),
        (OSError(28, "No space left on device"), "error: No space left on device\n"),
        (OSError(28, "No space left on device", "a\nb.png"), "error: a\\nb.png: No space left on device\n"),
        (PermissionError(13, "Permission denied", b"x"), "error: b'x': Permission denied\n"),
    ],
)
def test_errors_of_the_disk_say_what_they_know(capsys, monkeypatch, error, line):
    assert exit_line(error, capsys, monkeypatch) == line


@pytest.mark.parametrize("raised", [OSError("encoder error -2 when writing image file"), RuntimeError("cannot write")])
def test_file_that_a_library_could_not_write_names_itself_and_the_reason(tmp_path, monkeypatch, raised):
    """PIL, NumPy and SimpleITK report a full disk without its error number: writing once more asks the system."""
    path, real = str(tmp_path / "image.png"), open

    class Full(io.BytesIO):
        def write(self, _):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(utils, "open", lambda name, mode: Full() if mode == "ab" else real(name, mode), raising=False)
    with pytest.raises(OSError) as error, utils.atomic_path(path):
        raise raised
    assert (error.value.errno, error.value.strerror, error.value.filename) == (28, "No space left on device", path)
    assert os.listdir(tmp_path) == []
    monkeypatch.undo()
    with pytest.raises(type(raised), match=str(raised)) as error, utils.atomic_path(path):
        raise raised  # with room on the disk, it was something else
    assert os.listdir(tmp_path) == [] and getattr(error.value, "filename", path) == path


def test_folder_that_cannot_be_written_is_named_with_the_file(tmp_path):
    (tmp_path / "file").touch()
    path = str(tmp_path / "file" / "a.png")
    with pytest.raises(NotADirectoryError) as error, utils.atomic_path(path):
        pass
    assert error.value.filename == path  # and not a temporary one
    with pytest.raises(OSError, match="3 requested and 0 written") as error, utils.naming("table.csv"):
        raise OSError("3 requested and 0 written")
    assert error.value.filename == "table.csv"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_freed_memory_is_kept_for_the_next_tensor():
    """Four times 16 MiB are 16,384 pages, all of which the system would have to clear again at each of ten turns."""
    source = """if True:
        import resource, startup
        startup.keep_freed_memory()
        [bytearray(2**24) for _ in range(4)]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            [bytearray(2**24) for _ in range(4)]
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"""
    done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 16384
