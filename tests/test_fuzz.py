"""Nothing gets in: damaged, foreign and malicious files and nonsense on the command line end in a warning or in one line.

A property is tried on a few inputs, always the same ones; under `make soak` on 525, 10,000 in all, which its SEED draws.
Every command line goes through `run_cli`, as a user's does, and may end with exit status 0, or with 2 and one line on stderr.
Long workers are replaced: what is tried is what is let through to them.
"""

import contextlib
import importlib.util
import io
import itertools
import json
import os
import re
import shutil
import signal
import struct
import tempfile
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SOAK, TINY, checkpoint, same_checkpoints
from hypothesis import HealthCheck, configuration, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

import bench
import dataset
import metrics
import phantom
import predict
import prepare
import train
from analysis import areas, projector
from analysis.export import export
from analysis.models import Model, load_model
from analysis.style_maps import MapSettings, MapSpec, StyleSource, history, maps_over_epochs
from data import decode
from data.subject_tables import image_id, iso_date, read_subjects, years
from data.subjects import find_subjects, slice_index
from report import dataset_command, dataset_report
from report.report import Section
from training.run_folder import check_same_run
from utils import RESOLUTIONS, UserError, load_tensors, read_config, read_network, run_cli, save_tensors

pytestmark = pytest.mark.slow

configuration.set_hypothesis_home_dir(os.path.join(tempfile.gettempdir(), "hypothesis"))  # nothing in the repository


def cases(count, share=1.0):
    """Try a property on `count` inputs, always the same; in a long pass on a share of 525."""

    def decorate(test):
        options = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}
        if SOAK is None:
            return settings(max_examples=count, derandomize=True, **options)(test)
        return seed(int(SOAK))(settings(max_examples=round(525 * share), print_blob=True, **options)(test))

    return decorate


class Hang(BaseException):
    """Something took too long. No Exception, so that nothing takes it for a damaged file."""


@contextlib.contextmanager
def in_time(seconds=60):
    """Raise Hang after so long."""

    def alarm(*_):
        raise Hang

    before = signal.signal(signal.SIGALRM, alarm)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def cli(main, *argv):
    """Run a script's `main` as from a shell with UTF-8; (exit status, stdout, stderr). Whatever it may not do, fails."""
    argv, before = [str(arg) for arg in argv], {signum: signal.getsignal(signum) for signum in (2, 15, signal.SIGUSR1)}
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", errors, write_through=True) for errors in ("strict", "backslashreplace")]
    try:
        with (
            in_time(),
            contextlib.redirect_stdout(streams[0]),
            contextlib.redirect_stderr(streams[1]),
            pytest.raises(SystemExit) as ended,
        ):
            run_cli(lambda: main(argv))
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    out, err = (stream.buffer.getvalue().decode() for stream in streams)
    code = ended.value.code or 0
    assert code in (0, 2) and "Traceback" not in err, (argv, code, err)
    errors = [line for line in err.split("\n") if "error: " in line]
    assert len(errors) == (code == 2), (argv, err)
    if code:
        assert err.endswith(errors[0] + "\n"), (argv, err)
    return code, out, err


def refused_or_fine(call, *args, **options):
    """call(...), or None where it raises UserError or OSError, which run_cli turns into a line."""
    with in_time():
        try:
            return call(*args, **options)
        except (UserError, OSError) as error:
            assert str(error)


@contextlib.contextmanager
def elsewhere():
    """A new folder, which is also the working folder."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)


def listing(folder):
    return sorted(os.path.join(root, name) for root, folders, names in os.walk(os.fsencode(folder)) for name in folders + names)


# ---------------------------------------------------------------------------------------------------------------------
# Damage


@st.composite
def damaged(draw, content):
    """`content` cut, flipped, emptied, spliced or replaced."""
    kind = draw(st.sampled_from(["cut", "flip", "flip", "flip", "splice", "repeat", "empty", "other"]))
    content, place = bytearray(content), st.integers(0, max(0, len(content) - 1))
    if kind == "cut":
        del content[draw(place) :]
    elif kind == "flip" and content:
        front = draw(st.booleans())  # headers are at the front
        for _ in range(draw(st.integers(1, 8))):
            content[draw(st.integers(0, min(200, len(content) - 1))) if front else draw(place)] ^= 1 << draw(st.integers(0, 7))
    elif kind == "splice":
        at = draw(place)
        content[at : at + draw(st.integers(0, 64))] = draw(st.binary(max_size=64))
    elif kind == "repeat":
        content += content[draw(place) :]
    elif kind == "empty":
        content.clear()
    elif kind == "other":
        return draw(st.one_of(st.binary(max_size=300), st.sampled_from(FOREIGN)))
    return bytes(content)


class Evil:
    """Unpickled, it writes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_header(width, height, mode=0):
    """A PNG that says how large it is, with hardly any pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, mode, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def pictures():
    """{name: bytes} of pictures of all kinds, some of which no slice may be."""
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 24), dtype=np.uint8))
    deep, rotated = Image.fromarray(np.arange(480, dtype=np.uint16).reshape(20, 24) * 100), Image.Exif()
    rotated[0x112] = 6
    floats = np.linspace(-1, 2, 480, dtype=np.float32).reshape(20, 24)
    floats[3, :5] = np.nan, np.inf, -np.inf, 1e38, -0.0
    long = Image.new("L", (20000, 10), 99)
    return {
        "grey.png": encoded(grey, "PNG"),
        "grey.jpeg": encoded(grey, "JPEG"),
        "grey.bmp": encoded(grey, "BMP"),
        "grey.tif": encoded(grey, "TIFF"),
        "packed.tif": encoded(grey, "TIFF", compression="tiff_lzw"),
        "colour.png": encoded(grey.convert("RGB"), "PNG"),
        "cmyk.jpg": encoded(grey.convert("CMYK"), "JPEG"),
        "deep.png": encoded(deep, "PNG"),
        "deep.tif": encoded(deep, "TIFF"),
        "float.tif": encoded(Image.fromarray(floats), "TIFF"),
        "nan.tif": encoded(Image.fromarray(floats * np.nan), "TIFF"),
        "palette.png": encoded(grey.convert("P"), "PNG", transparency=3),
        "la.png": encoded(grey.convert("LA"), "PNG"),
        "rgba.tif": encoded(grey.convert("RGBA"), "TIFF"),
        "bit.png": encoded(grey.convert("1"), "PNG"),
        "ycbcr.jpg": encoded(grey.convert("YCbCr"), "JPEG"),
        "animated.png": encoded(grey, "PNG", save_all=True, append_images=[grey, grey]),
        "pages.tif": encoded(grey, "TIFF", save_all=True, append_images=[deep, grey]),
        "rotated.jpg": encoded(grey, "JPEG", exif=rotated),
        "one.png": encoded(grey.crop((0, 0, 1, 1)), "PNG"),
        "long.png": encoded(long, "PNG"),
        "high.png": encoded(long.transpose(Image.Transpose.TRANSPOSE), "PNG"),
        "lab.tif": encoded(Image.merge("LAB", [grey] * 3), "TIFF"),
        "gif.png": encoded(grey, "GIF"),
        "webp.png": encoded(grey, "WEBP"),
        "script.png": encoded(grey, "EPS"),
    }


PICTURES = pictures()
FOREIGN = [
    b"",
    b"\0",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
    b"<svg/>",
    b"P5 99999 99999 255\n",
    b"GIF89a\xff\xff\xff\xff",
    b"MZ" + bytes(99),
    b"PK\3\4" + bytes(40),
    b"II*\0\x08\0\0\0\xff\xff" + bytes(60),
    b"[" * 100_000,
    b"{",
    b"null",
    b"[1, 2]",
    b'"x"',
    b"NaN",
    b"a,b\n1\n",
    b"\x80\x02.",
    b"\x93NUMPY\x01\0\xff\xff" + b"(" * 999,
    b"x" * 200_000,
    png_header(100_000, 100_000),
    png_header(0, 0),
    png_header(80_000, 1000),
    png_header(9, 9, 6),
]
FLOATS = st.floats(allow_subnormal=False)  # pick_device has the processor flush them
LETTERS = st.characters(blacklist_characters="/\0", blacklist_categories=())  # also halves of surrogate pairs
NAMES = st.builds(
    lambda stem, end: os.fsdecode(
        os.fsencode(stem.encode("utf-8", "surrogateescape" if stem.isascii() else "replace")[:240]).strip(b".") + end.encode()
    ),
    st.one_of(
        st.text(LETTERS, max_size=8),
        st.sampled_from(
            [
                "-rf",
                "--help",
                "a b",
                "a\nerror: b",
                "\x1b[2J",
                "é" * 100,
                "\udcff\udc80",
                "x" * 240,
                "$(id)",
                "%s",
                "{0}",
                "<script>",
                "nul",
                "a\\b",
                "\u202egpj",
            ]
        ),
    ),
    st.sampled_from([".png", ".JPG", ".tiff", ".bmp"]),
)


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def check_slices(folder, expected=None):
    """Read the slices in `folder`/AD in all four ways; each leaves the same files out, and nothing new lies there.

    A set that is nearly black is refused, but may be projected.
    """
    before, side = listing(folder), 32
    slices = refused_or_fine(dataset.Slices, str(folder), "AD", side, 2)
    again = refused_or_fine(dataset.Slices, str(folder), "AD", side, 2)
    loaded = refused_or_fine(metrics.load, "--real", str(folder / "AD"), "all", side)
    targets = refused_or_fine(projector.read_targets, str(folder / "AD"), side)
    black = targets is not None and np.median([decode.light_of(image).bright for image in targets.images]) < 16
    assert {one is None for one in (slices, again, loaded)} == {targets is None or slices is None and black}
    if slices:
        assert len(slices) == len(again) == len(loaded[0]) == len(targets.images) and slices.fingerprint == again.fingerprint
        assert (slices[np.arange(len(slices))] == targets.images).all() and targets.images.shape[1:] == (side, side)
        assert all(re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in targets.names) and len(set(targets.names)) == len(slices)
    if expected is not None:
        assert len(slices) == expected
    assert listing(folder) == before


@cases(25)
@given(st.data())
def test_damaged_image_files_are_skipped(data):
    with elsewhere() as folder:
        (folder / "AD").mkdir()
        for name in data.draw(st.lists(NAMES, min_size=1, max_size=4, unique_by=str.lower)):
            content = PICTURES[data.draw(st.sampled_from(sorted(PICTURES)))]
            with open(folder / "AD" / name, "wb") as file:
                file.write(data.draw(damaged(content)) if data.draw(st.booleans()) else content)
        check_slices(folder)


def test_only_the_formats_in_the_readme_are_decoded(tmp_path, monkeypatch):
    """PIL knows 40 formats by their first bytes, and runs Ghostscript on one of them."""
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("a script was run"))
    (tmp_path / "x.png").write_bytes(PICTURES["script.png"])
    with pytest.raises(Image.UnidentifiedImageError):
        decode.decode(str(tmp_path / "x.png"), 32)


def test_decompression_bombs_take_no_memory(tmp_path):
    """Each claims some 10^10 pixels, or becomes as many on a square."""
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (tmp_path / "AD").mkdir()
    for i, (width, height) in enumerate([(100_000, 100_000), (80_000, 1000), (2**31 - 1, 1), (1, 80_000_000)]):
        (tmp_path / "AD" / f"{i}.png").write_bytes(png_header(width, height))
    Image.new("L", (80_000, 1000)).save(tmp_path / "AD" / "long.tif", compression="tiff_lzw")
    (tmp_path / "AD" / "good.png").write_bytes(PICTURES["grey.png"])
    check_slices(tmp_path, expected=1)
    code, out, _ = cli(dataset_command.main, "--dataset_dir", tmp_path, "--classes", "AD", "--output_dir", tmp_path / "out")
    assert code == 0 and "1 AD" in out
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB: 1 GiB


def test_pipes_devices_and_link_loops_are_skipped(tmp_path):
    """Pipes, devices, loops and folders that are called pictures; a pipe that nobody writes to would be read for ever."""
    folder = tmp_path / "AD"
    (folder / "folder.png").mkdir(parents=True)
    (folder / "folder.png" / "inside.png").write_bytes(PICTURES["grey.png"])
    (folder / "good.png").write_bytes(PICTURES["la.png"])
    (folder / "linked.png").symlink_to("good.png")
    os.mkfifo(folder / "pipe.png")
    for name, target in (
        ("broken", "nowhere"),
        ("loop", "loop.png"),
        ("zero", "/dev/zero"),
        ("pipe_too", "pipe.png"),
        ("up", "."),
        ("around", ".."),
    ):
        (folder / f"{name}.png").symlink_to(target)
    hung = threading.Event()

    def release():
        hung.set()
        while True:  # every reader of the pipe meets its end, and the test fails
            with contextlib.suppress(OSError):
                os.close(os.open(folder / "pipe.png", os.O_WRONLY | os.O_NONBLOCK))

    timer = threading.Timer(20, release)
    timer.daemon = True
    timer.start()
    check_slices(tmp_path, expected=3)
    cli(dataset_command.main, "--dataset_dir", tmp_path, "--classes", "AD", "--output_dir", tmp_path / "out")
    assert refused_or_fine(projector.read_targets, str(folder / "pipe.png"), 32) is None
    timer.cancel()
    assert not hung.is_set()


def test_unreadable_folder_is_refused(tmp_path, monkeypatch):
    """As for a user without the permission; root has it always."""
    (tmp_path / "AD").mkdir()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("AD"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    code, _, err = cli(train.main, "--dataset_dir", tmp_path, "--classes", "AD", "--dry_run")
    assert code == 2 and "Permission denied" in err


# ---------------------------------------------------------------------------------------------------------------------
# Flags

NASTY = [
    "",
    "0",
    "-1",
    "1",
    "2",
    "3",
    "32",
    "0.5",
    "nan",
    "inf",
    "-inf",
    "1e308",
    "1e-320",
    "9" * 30,
    "9" * 5000,
    "1_0",
    "٣",
    " 7 ",
    "0x10",
    "True",
    "False",
    "true",
    "AD",
    "NC",
    "all",
    "none",
    "fixed",
    "ada",
    "wgan-gp",
    "relativistic",
    "\n",
    "é",
    "\udcff",
    "a\nerror: b",
    "--",
    "-",
    "-x",
    "--=",
    "[]",
    "%s %(default)s",
    "{0}",
    "1-2",
    "2-1",
    "0-99999999999999999999",
    "cpu",
    "cpu:1",
    "cpu:9",
    "cuda:999999999999",
    "cuda:-1",
    "meta",
    "mps",
    "mkldnn",
    "vulkan",
    "nonsense",
    "x" * 300,
    ".",
    "..",
    "/",
    "/dev/null",
    "/dev/full",
    "/proc/self/mem",
    "~",
    "NOWHERE/deep",
    "FILE",
    "FILE/below",
    "FOLDER",
    "SLICES",
    "TEST",
    "MODELS",
    "MODELS/AD",
    "MODELS/all-conditional",
]
VALUES = st.one_of(
    st.sampled_from(NASTY),
    st.integers(-5, 70).map(str),
    FLOATS.map(str),
    st.text(st.characters(blacklist_characters="\0"), max_size=5),
)


@pytest.fixture(scope="module")
def own_slices(slices_dir, tmp_path_factory):
    """A copy of the slices: into the shared ones, a command of another worker may be writing."""
    return str(shutil.copytree(os.path.dirname(slices_dir), tmp_path_factory.mktemp("copy") / "data") / "train")


@pytest.fixture(scope="module")
def saved(models, tmp_path_factory):
    """A folder with runs AD, with a checkpoint before its last and a best.pt, and all-conditional, each of two epochs."""
    folder = tmp_path_factory.mktemp("saved")
    for run in ("AD", "all-conditional"):
        shutil.copytree(os.path.join(models, run), folder / run)
    return folder


@pytest.fixture(scope="module")
def scripts(saved, own_slices, tmp_path_factory):
    """{name: (main, flags that work, what stands for its workers)}."""
    rng, real = np.random.default_rng(0), metrics.measure_quality
    study = real(*rng.integers(0, 255, (2, 12, 32, 32), dtype=np.uint8))
    row = {"path": "train/AD/000000_75.jpeg", "seed": 0}
    section = Section("x")
    drawn = draw_phantoms(tmp_path_factory.mktemp("phantoms"))
    return {
        "train": (
            train.main,
            [*TINY, "--classes", "AD", "--dataset_dir", own_slices, "--model_dir", "runs", "--dry_run"],
            [(train, "train", lambda *_: 0)],
        ),
        "predict": (
            predict.main,
            ["--model_dir", saved, "--classes", "AD", "--device", "cpu", "--output_dir", "out"],
            [
                (predict, "plot_grids", lambda *_: section),
                (predict, "DRAW", dict.fromkeys(predict.DRAW, lambda _: section)),
                (predict, "export", lambda *_: []),
                (predict, "evaluate", lambda *_: []),
                (predict, "plot_maps", lambda *_: section),
                (predict, "project", lambda *_, **__: None),
                (predict, "draw_projection", lambda *_: section),
            ],
        ),
        "metrics": (
            metrics.main,
            ["--real", own_slices, "--fake", own_slices, "--resolution", "32", "--device", "cpu"],
            [
                (metrics, "measure_quality", lambda *_, **__: study),
                (metrics, "plot_quality", lambda *_: None),
                (metrics, "save_nearest", lambda *_: None),
                (metrics, "write_quality_atlas", lambda *_: None),
            ],
        ),
        "phantom": (
            phantom.main,
            ["folder", "--subjects", "4", "--num_workers", "1"],
            [(phantom, "write_subjects", lambda *_: (rows for rows in [[row]]))],
        ),
        "bench": (
            bench.main,
            ["--resolution", "32", "--device", "cpu", "--dataset_dir", own_slices],
            [(bench, "benchmark", lambda *_: [])],
        ),
        "areas": (
            areas.main,
            [drawn],
            [(areas, "measure_areas", lambda x, *_: dict.fromkeys(areas.AMOUNT["axial"], np.arange(len(x))))],
        ),
        "dataset": (
            dataset_command.main,
            ["--dataset_dir", own_slices, "--resolution", "32"],
            [(dataset_report, "save_samples", lambda *_: None)],
        ),
        "prepare": (prepare.main, *download_of_one(tmp_path_factory.mktemp("download"))),
    }


HAS_SITK = importlib.util.find_spec("SimpleITK") is not None


def download_of_one(folder):
    """(flags that work, what stands for the workers) of prepare.py; nothing where SimpleITK is missing."""
    if not HAS_SITK:
        return [], []
    from data import preparation

    real = preparation.find_volumes

    def find_volumes(place, *flag):  # not on the whole disk
        inside = any(os.path.realpath(place).startswith(str(base)) for base in (folder, Path.cwd()))
        return real(place if inside or not os.path.isdir(place) else folder, *flag)

    def run_jobs(jobs, *_):
        return ({"image": job.volume.image, "stamp": job.volume.stamp(), "mask": None, "slices": {}} for job in jobs)

    (folder / "I7.nii").write_bytes(b"text")
    (folder / "table.csv").write_text("image,subject,group\n7,someone,AD\n")
    flags = ["--volumes", folder, "--subjects", folder / "table.csv", "--output_dir", "out"]
    return flags, [(preparation, "run_jobs", run_jobs), (preparation, "find_volumes", find_volumes)]


def draw_phantoms(folder):
    """A data set as phantom.py writes it, but for what it shows."""
    lines = ["path,seed,subject,split,class,ventricle_mm2,grey_mm2,white_mm2"]
    for i, (split, label) in enumerate(itertools.product(("train", "test"), ("AD", "NC"))):
        (folder / split / label).mkdir(parents=True)
        for k in range(2):
            subject = 2 * i + k
            (folder / split / label / f"{subject}_75.png").write_bytes(PICTURES["grey.png"])
            lines.append(f"{split}/{label}/{subject}_75.png,0,{subject},{split},{label},{i + k},{10 - i},{20 + k}")
    (folder / "subjects.csv").write_text("\n".join(lines) + "\n")
    return str(folder)


@pytest.mark.parametrize("name", ["train", "predict", "metrics", "phantom", "bench", "areas", "dataset", "prepare"])
def test_any_flags_end_in_status_0_or_one_line(scripts, saved, own_slices, name):
    main, base, workers = scripts[name]
    if name == "prepare" and not HAS_SITK:
        pytest.skip("SimpleITK is not installed")
    code, usage, _ = cli(main, "--help")
    assert code == 0
    flags = sorted(set(re.findall(r"^  (--\w+)", usage, re.MULTILINE)) - {"--help"})
    assert flags

    @cases(40)
    @given(
        st.lists(
            st.tuples(st.sampled_from(flags), VALUES, st.sampled_from(["{} {}", "{}={}", "{}", "{1}"])), min_size=1, max_size=3
        ),
        st.booleans(),
    )
    def check(drawn, whole):
        with elsewhere() as folder, pytest.MonkeyPatch.context() as patch:
            for where, attribute, stub in workers:
                patch.setattr(where, attribute, stub)
            (folder / "FILE").write_text("text")
            for link, target in (
                ("FOLDER", folder),
                ("SLICES", own_slices),
                ("TEST", os.path.join(own_slices, "../test")),
                ("MODELS", saved),
            ):
                os.symlink(target, folder / link)
            argv = [part for flag, value, form in drawn for part in form.replace(" ", "\0").format(flag, value).split("\0")]
            before = listing(saved), listing(os.path.dirname(own_slices))
            try:
                cli(main, *(base if whole else []), *argv)
            except Exception as error:
                raise AssertionError(argv) from error
            if not any("/" in value or value in ("SLICES", "TEST", "MODELS") for _, value, _ in drawn):
                assert before == (listing(saved), listing(os.path.dirname(own_slices)))

    check()


# ---------------------------------------------------------------------------------------------------------------------
# Saved files


@contextlib.contextmanager
def copied(folder):
    """The run AD of `folder`, copied into another, which is given."""
    with elsewhere() as place:
        shutil.copytree(folder / "AD", place / "copy" / "AD")
        yield place / "copy"


def resume(slices_dir, folder, epochs=2):
    flags = ["--classes", "AD", "--dataset_dir", slices_dir, "--model_dir", folder, "--epochs", epochs, "--save_every", 1]
    return cli(train.main, *TINY, *flags)


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.sampled_from([10**9, 10**30, -1, 0, 0.5, 1e300, 33]),
        FLOATS,
        st.text(max_size=3),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@st.composite
def other_values(draw, tree):
    """A tree of dicts and lists with one value replaced or taken out."""
    if not isinstance(tree, dict) or not tree or draw(st.integers(0, 5)) == 0:
        return draw(JSON)
    key = draw(st.sampled_from(sorted(tree)))
    if draw(st.integers(0, 4)) == 0:
        return {name: value for name, value in tree.items() if name != key}
    return {**tree, key: draw(other_values(tree[key]))}


@pytest.mark.usefixtures("unplotted")
@cases(6)
@given(data=st.data())
def test_damaged_checkpoints_are_refused_or_resumed_from_the_one_before(saved, slices_dir, data):
    """A resumed run ends as the whole one did."""
    with copied(saved) as folder:
        for name in data.draw(st.sampled_from([["checkpoint.pt"], ["previous.pt"], ["checkpoint.pt", "previous.pt"]])):
            path = folder / "AD" / name
            path.write_bytes(data.draw(damaged(path.read_bytes())))
        if resume(slices_dir, folder)[0] == 0:
            assert same_checkpoints(checkpoint(folder / "AD"), checkpoint(saved / "AD"))


@pytest.mark.usefixtures("unplotted")
@cases(6)
@given(data=st.data())
def test_checkpoints_with_other_contents_are_refused_or_resumed(saved, slices_dir, data):
    """With a checksum that fits."""
    with copied(saved) as folder:
        for name in data.draw(st.sampled_from([["checkpoint.pt"], ["checkpoint.pt", "previous.pt"]])):
            state = torch.load(folder / "AD" / name, weights_only=True)
            del state["checksum"]
            state = data.draw(other_values(state))
            if isinstance(state, dict):
                save_tensors(state, folder / "AD" / name)
            else:
                torch.save(state, folder / "AD" / name)
        resume(slices_dir, folder)


@cases(15)
@given(data=st.data())
def test_damaged_generators_are_refused(saved, data):
    with copied(saved) as folder:
        for name in ("generator.pt", "best.pt"):
            path = folder / "AD" / name
            if data.draw(st.booleans()):
                path.write_bytes(data.draw(damaged(path.read_bytes())))
            else:
                state = torch.load(path, weights_only=True)
                del state["checksum"]
                state = data.draw(other_values(state))
                if isinstance(state, dict):
                    save_tensors(state, path)
                else:
                    torch.save(state, path)
        which = data.draw(st.sampled_from(["last", "best"]))
        cli(predict.main, "--model_dir", folder, "--num_images", 1, "--device", "cpu", "--which", which)


def test_generator_of_a_huge_network_takes_no_memory(saved):
    with copied(saved) as folder:
        state = load_tensors(folder / "AD" / "generator.pt")
        for network in (
            {"channel_base": 10**9, "channel_max": 20_000},
            {"num_classes": 10**8},
            {"z_dim": 10**9},
            {"mapping_layers": 10**9},
            {"resolution": 2**4000},
        ):
            save_tensors({**state, "network": state["network"] | network}, folder / "AD" / "generator.pt")
            with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match="not a generator"):
                randn = torch.randn
                patch.setattr(
                    torch,
                    "randn",
                    lambda *size, **options: (
                        randn(*size, **options)
                        if np.prod(
                            [side for part in size for side in (part if isinstance(part, (list, tuple)) else [part])], dtype=float
                        )
                        < 1e8
                        or torch.get_default_device().type == "meta"
                        else pytest.fail(f"{size} were asked for")
                    ),
                )
                load_model(str(folder / "AD"), "cpu")


@pytest.mark.usefixtures("unplotted")
@cases(15)
@given(data=st.data())
def test_damaged_configs_are_refused_or_harmless(saved, slices_dir, data):
    with copied(saved) as folder:
        path = folder / "AD" / "config.json"
        if data.draw(st.integers(0, 2)) == 0:
            path.write_bytes(data.draw(damaged(path.read_bytes())))
        else:
            path.write_text(json.dumps(data.draw(other_values(json.loads(path.read_text())))))
        resume(slices_dir, folder)
        network, config = read_network(str(folder / "AD")), read_config(str(folder / "AD"))
        assert network == {} or (network["resolution"] in RESOLUTIONS and network["num_classes"] in (0, 2))
        assert all(isinstance(value, dict) for value in config.values())
        refused_or_fine(check_same_run, str(folder / "AD"), json.loads((saved / "AD/config.json").read_text()))


TABLE = st.lists(
    st.lists(st.one_of(FLOATS.map(str), st.text(max_size=4), st.sampled_from(["1e308", "-1e308", "nan"])), max_size=40), max_size=4
).map(lambda rows: "\n".join(map(",".join, rows)))


@cases(6)
@given(data=st.data())
def test_damaged_tables_never_end_a_run(saved, slices_dir, data):
    with copied(saved) as folder:
        for name in ("losses.csv", "evaluations.csv"):
            path = folder / "AD" / name
            if data.draw(st.booleans()):
                path.write_bytes(data.draw(damaged(path.read_bytes())))
            else:
                header = path.read_text().splitlines()[0]
                width = header.count(",") + 1
                cells = data.draw(
                    st.lists(
                        st.sampled_from(["0", "1e308", "-1e308", "nan", "inf", "1e39", "x", "3"]), min_size=width, max_size=width
                    )
                )
                path.write_text("\n".join([header, ",".join(cells), data.draw(TABLE)]))
        code, _, err = resume(slices_dir, folder, epochs=data.draw(st.sampled_from([2, 2, 3])))
        assert code == 0, err  # tables are for the eye: a run does not end over them


@st.composite
def arrays(draw, array):
    """The bytes of a .npy that holds `array`, damaged, or something else."""
    file = io.BytesIO()
    kind = draw(st.sampled_from(["damaged", "damaged", "type", "shape", "header", "pickle", "zip"]))
    if kind == "type":
        array = array.astype(draw(st.sampled_from(["f2", "f8", "c8", "i4", "u1", "?", "S4", "U3", ">f4"])))
    elif kind == "shape":
        array = np.zeros(draw(st.lists(st.integers(0, 5), max_size=4)), "f4")
    if kind == "zip":
        np.savez(file, array)
    elif kind == "pickle":
        np.save(file, np.array([Evil("written"), None]), allow_pickle=True)
    else:
        np.save(file, array)
    content = file.getvalue()
    if kind == "header":
        header = (
            draw(
                st.sampled_from(
                    [
                        "{}",
                        "(" * 999,
                        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}",
                        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 9)}",
                        "'" * 3,
                        "\n  1\n 2",
                        "{'descr': '|O', 'fortran_order': False, 'shape': (9,)}",
                        "{'descr': '<f4', 'fortran_order': True, 'shape': (9, 9)}",
                        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (9,)}",
                    ]
                )
            )
            + "\n"
        )
        content = b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header.encode() + bytes(400)
    return draw(damaged(content)) if kind == "damaged" else content


def pair_of(*folders):
    """The MapSpec of two runs, whose networks are not needed."""
    sources = (StyleSource(Model(name, None, None, [name], [None], folder), None) for name, folder in zip(("AD", "NC"), folders))
    return MapSpec("AD and NC", dict(zip(("AD", "NC"), sources)))


def conditional_of(folder):
    model = Model("both", None, None, ["AD", "NC"], [0, 1], folder)
    return MapSpec("one conditional model", {name: StyleSource(model, label) for label, name in enumerate(("AD", "NC"))})


@cases(60)
@given(data=st.data())
def test_damaged_style_vectors_are_refused(data):
    with elsewhere() as folder:
        for run in ("AD", "NC"):
            (folder / run / "styles").mkdir(parents=True)
            for epoch in range(2):
                shape = (6, 4) if run == "AD" else (2, 6, 4)
                content = data.draw(arrays(np.random.default_rng(epoch).normal(size=shape).astype("f4")))
                (folder / run / "styles" / f"epoch_{epoch:04d}.npy").write_bytes(content)
        for spec in (pair_of("AD", "AD"), conditional_of("NC"), pair_of("AD", "NC")):
            if kept := refused_or_fine(history, spec):
                maps = maps_over_epochs(kept, MapSettings("pca", 15, 0.1, 20, 0))
                assert all(np.isfinite(points).all() for _, sets, _ in maps for points in sets.values())
        assert not (folder / "written").exists()


@cases(30)
@given(data=st.data())
def test_damaged_cache_is_rebuilt(slices_dir, data):
    with elsewhere() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        right = dataset.Slices(slices_dir, "AD", 32)
        right = right[np.arange(len(right))]
        (path,) = (folder / "stylegan2-brain").glob("*.npy")
        path.write_bytes(data.draw(arrays(np.load(path))))
        slices = dataset.Slices(slices_dir, "AD", 32)
        assert slices[np.arange(len(slices))].shape == right.shape and slices.unreadable == []
        assert not (folder / "written").exists()


@cases(10)
@given(data=st.data())
def test_damaged_exports_are_continued_or_refused(saved, data):
    model = load_model(str(saved / "AD"), "cpu")
    with elsewhere() as folder:
        model = model._replace(name="AD \udcff\n")  # as a folder may be called
        export(model, 2, 0, 1.0, "out")
        for name in ("metadata.csv", "w.npy", "000001.png"):
            if data.draw(st.booleans()):
                path = folder / "out" / model.name / name
                path.write_bytes(data.draw(damaged(path.read_bytes())))
        refused_or_fine(export, model, data.draw(st.integers(1, 3)), 0, 1.0, "out")


CELLS = st.one_of(
    st.text(max_size=4),
    FLOATS.map(str),
    st.sampled_from(
        [
            "train",
            "test",
            "AD",
            "NC",
            "../../../etc/passwd",
            "/dev/zero",
            "train/AD",
            "train/AD/0_75.png",
            "\0",
            '"',
            "1e308",
            "nan",
            "",
        ]
    ),
)


@cases(25)
@given(data=st.data())
def test_damaged_subjects_are_refused(data):
    with elsewhere() as folder:
        draw_phantoms(folder)
        path = folder / "subjects.csv"
        if data.draw(st.booleans()):
            path.write_bytes(data.draw(damaged(path.read_bytes())))
        else:
            lines = [line.split(",") for line in path.read_text().splitlines()]
            for _ in range(data.draw(st.integers(1, 3))):
                row = data.draw(st.sampled_from(lines))
                row[data.draw(st.integers(0, len(row) - 1))] = data.draw(CELLS)
            path.write_bytes("\n".join(map(",".join, lines)).encode("utf-8", "surrogatepass"))
        for fit in (False, True):
            cli(areas.main, folder, "--fit", fit)
        refused_or_fine(phantom.already_written, str(folder), phantom.Settings(4, 0))
        refused_or_fine(read_subjects, str(path))


SUBJECT_TABLES = {
    "a.csv": b'sep=;\nImage Data ID;Subject;Age;Acq Date\n"I200";037_S_4001;71,5;5/03/2011\n215.0;b;90+;2011-04-03\n',
    "b.csv": "image,subject,sex\n7,m\xfcller,f\n8,b,m\n".encode("utf-16"),
    "participants.tsv": b"participant_id\tage\tgroup\nsub-01\t39\tdepr\nsub-02\t89+\tcontrol\n",
    "sessions.tsv": b"participant_id\tsession_id\tacq_time\n1\tses-01\t2011-05-03T12:00:00\n1\tses-02\tn/a\n",
    "meta_data_with_label.json": b'{"200": {"raw": "ADNI_037_S_4001_MR_20110503123456789_I200.nii", "label": 2}, "7": 1}',
}


@cases(40)
@given(data=st.data())
def test_damaged_tables_of_all_kinds_are_refused_or_read(data):
    with elsewhere() as folder:
        for name in data.draw(st.permutations(sorted(SUBJECT_TABLES)))[:3]:
            (folder / name).write_bytes(data.draw(damaged(SUBJECT_TABLES[name])))
            for image, scan in (refused_or_fine(read_subjects, str(folder / name), quiet=True) or {}).items():
                assert image == scan.image and scan.person and (scan.age is None or 0 <= scan.age < 150)
        (folder / "AD").mkdir()
        (folder / "AD/200_7.png").touch()
        assert find_subjects(None, str(folder), quiet=True) is None or (folder / "meta_data_with_label.json").exists()


@cases(100)
@given(text=st.one_of(st.text(max_size=30), st.from_regex(r"[I0-9][0-9]{0,4}([-/., eE'+]?[0-9]{1,4}){0,4}[a-z]{0,5}")))
def test_any_cell_is_an_id_an_age_and_a_date_or_is_not(text):
    image, age, date = image_id(text), years(text), iso_date(text)
    assert image is None or image_id(image) == image
    assert age is None or 0 <= age < 150
    assert iso_date(date) == date and (date == text or len(date) == 10)
    assert slice_index(text) is None or slice_index(text) >= 0


# ---------------------------------------------------------------------------------------------------------------------
# Malice


@pytest.mark.usefixtures("unplotted")
@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4:UserWarning")  # torch.load's, of a file that train.py never writes
@pytest.mark.parametrize("zipped, protocol", [(True, 2), (True, 0), (False, 4)])
def test_a_malicious_pickle_never_runs(saved, slices_dir, zipped, protocol):
    with copied(saved) as folder:

        def plant(name):
            torch.save(
                {"weights": Evil(folder / "written"), "format": 1},
                folder / "AD" / name,
                pickle_protocol=protocol,
                _use_new_zipfile_serialization=zipped,
            )

        plant("checkpoint.pt")
        code, _, err = resume(slices_dir, folder)
        assert code == 0 and "checkpoint.pt is damaged" in err
        plant("checkpoint.pt")
        plant("previous.pt")
        assert resume(slices_dir, folder)[0] == 2
        for name, which in (("best.pt", "best"), ("generator.pt", "last")):
            plant(name)
            code, _, err = cli(predict.main, "--model_dir", folder, "--which", which, "--device", "cpu")
            assert code == 2 and name in err
        with open(folder / "AD" / "styles" / "epoch_0001.npy", "wb") as file:
            np.save(file, np.array([Evil(folder / "written")]), allow_pickle=True)
        assert refused_or_fine(history, pair_of(str(folder / "AD"), str(folder / "AD"))) is None
        assert not (folder / "written").exists()
