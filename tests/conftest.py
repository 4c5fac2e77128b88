"""What many tests share: tiny networks, a tiny data set and tiny trained runs, and the scripts run as a user does."""

import csv
import functools
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import types

os.environ["OMP_NUM_THREADS"] = "1"  # also of the scripts; tiny tensors: more threads only wait for each other

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from utils import UserError  # PyTorch is imported where it is used: `make test` would wait for it before it starts its workers

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SOAK = os.environ.get("SOAK")  # set by `make soak`: the seed of long passes over inputs and kills; unset: a sample of them

UNPLOTTED = os.path.join(ROOT, "tests", "unplotted_train.py")
NETWORK = {"resolution": 32, "channel_base": 128, "channel_max": 8, "z_dim": 16, "w_dim": 16, "mapping_layers": 8, "num_classes": 0}
LAYERS = ["w", "generator 4", "generator 8", "generator 16", "generator 32", "image", "critic 32", "critic 16", "critic 8", "score"]
TINY_NETWORK = "--resolution 32 --channel_base 128 --channel_max 8".split()  # the same, but for z_dim and w_dim
TINY = [*TINY_NETWORK, *"--grow False --batch_size 4 --eval_every 0 --device cpu --amp False".split()]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Tests that share what takes more than a second to make are slow: one of them has to wait for it."""
    for item in items:
        if {"models", "phantoms", "drawn_slices", "projected"} & set(item.fixturenames):
            item.add_marker(pytest.mark.slow)


def start_alike(number):
    import torch

    torch.set_num_threads(1)  # what ran before, such as UMAP's threads, may have changed it, and with it the last digits
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Random numbers and threads are the same in every test and fixture, whatever ran before."""
    start_alike(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call():
    start_alike(1)


def seeded_rng(seed=0):
    import torch

    return torch.Generator().manual_seed(seed)


def start(slices_dir, model_dir, *flags):
    """Train tiny networks on AD (unless the flags say otherwise) in this process; returns the exit status."""
    import train

    return train.main([*TINY, "--classes", "AD", "--dataset_dir", slices_dir, "--model_dir", str(model_dir), *map(str, flags)])


def train_command(slices_dir, model_dir, *flags, script=UNPLOTTED):
    """The command line that trains the same in a process of its own."""
    flags = [*TINY, "--classes", "AD", "--dataset_dir", slices_dir, "--model_dir", model_dir, *flags]
    return [sys.executable, script, *map(str, flags)]


def checkpoint(folder):
    """The newest checkpoint in a run's folder, as a dictionary; its checksum is not verified."""
    import torch

    return torch.load(os.path.join(str(folder), "checkpoint.pt"), weights_only=True)


def same_checkpoints(a, b):
    """Whether two checkpoints, or parts of them, are equal bit for bit, except for the training time and the checksum."""
    import torch

    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_checkpoints(a[key], b[key]) for key in a if key not in ("seconds", "checksum"))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same_checkpoints, a, b))
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) or a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
    return a == b


def read_table(path):
    """Rows of a .csv as {column: float}."""
    with open(path, newline="") as file:
        return [{column: float(value) for column, value in row.items()} for row in csv.DictReader(file)]


def read_image(path):
    """Pixels of an image file, as they are stored."""
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Decoded slices go to a folder of the test session, not to the user's cache."""
    os.environ["XDG_CACHE_HOME"] = os.environ["LOCALAPPDATA"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def unflushed():
    """Nothing waits for the disk in this process; a busy one takes seconds over each fsync."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


def make_once(tmp_path_factory, name, fill):
    """A folder `name` of the test session that fill(folder) has filled, once for all workers of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    filled = folder.with_suffix(".filled")
    with FileLock(folder.with_suffix(".lock")):
        if not filled.exists():
            folder.mkdir()
            fill(folder)
            filled.touch()
    return folder


def draw_discs(data):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-16:16, -15:15]
    for split, name, count, radius in (("train", "AD", 9, 9), ("train", "NC", 11, 12), ("test", "AD", 6, 9), ("test", "NC", 7, 12)):
        folder = data / split / name
        folder.mkdir(parents=True)
        for i in range(count):
            disc = (np.hypot(y, x) < radius + rng.normal()) * rng.uniform(120, 220, (32, 30))
            Image.fromarray(disc.astype(np.uint8)).save(folder / f"{100 + i}_0.png")


@pytest.fixture(scope="session")
def slices_dir(tmp_path_factory):
    """train/ with 9 AD and 11 NC slices: a bright disc on black, larger in NC. Beside it test/ with 6 and 7."""
    return str(make_once(tmp_path_factory, "data", draw_discs) / "train")


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory):
    """A data set of four phantom subjects, seed 0, as phantom.py writes it in one process."""
    from phantom import write_phantoms

    return make_once(tmp_path_factory, "phantoms", lambda folder: write_phantoms(str(folder), 4, 0, num_workers=1))


def leave_plots_out(patch):
    from report import figures

    patch.setattr(figures, "plot_dashboard", lambda *_: None)
    patch.setattr(figures, "plot_loss_proportion", lambda *_: None)


@pytest.fixture(scope="session")
def models(tmp_path_factory, slices_dir):
    """A folder of runs AD, NC without evaluations and all-conditional, of two epochs; AD alone has plots. Never write there."""
    from training import validation

    def train_all(folder):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(validation, "VALIDATED", 32)
            patch.setattr(validation, "Features", functools.cache(validation.Features))  # the same network for all
            flags = ["--epochs", 2, "--save_every", 1, "--validation_dir", os.path.join(os.path.dirname(slices_dir), "test")]
            assert start(slices_dir, folder, *flags, "--eval_every", 1) == 0
            leave_plots_out(patch)
            assert start(slices_dir, folder, *flags, "--classes", "NC") == 0
            assert start(slices_dir, folder, *flags, "--classes", "all", "--conditional", "--eval_every", 2) == 0

    return str(make_once(tmp_path_factory, "models", train_all))


def change_weights(run, folder, share=0.0, **changes):
    """Write a copy of a run's generator.pt into a new folder, its weights times 1 + share, with `changes` of what else it holds;
    returns the folder. With None for a value the entry is left out."""
    import torch

    saved = torch.load(os.path.join(str(run), "generator.pt"), weights_only=True)
    saved["weights"] = {name: x * (1 + share) for name, x in saved["weights"].items()}
    os.makedirs(folder)
    kept = {name: value for name, value in {**saved, "checksum": None, **changes}.items() if value is not None}
    torch.save(kept, os.path.join(str(folder), "generator.pt"))
    return str(folder)


@pytest.fixture(scope="session")
def model(models):
    """The trained AD model."""
    from analysis.models import load_model

    return load_model(os.path.join(models, "AD"), "cpu")


@pytest.fixture(scope="session")
def conditional(models):
    from analysis.models import load_model

    return load_model(os.path.join(models, "all-conditional"), "cpu")


def styles(model, count, seed=0, label=None):
    """Style vectors [count, 256] of latents of a seed."""
    import torch

    from analysis.models import draw_z, style_vectors

    with torch.no_grad():
        return style_vectors(model.mapping, draw_z(count, 256, seed), label)[0]


@pytest.fixture
def unplotted(monkeypatch):
    """Runs save no plots, which take longer than tiny steps."""
    leave_plots_out(monkeypatch)


@pytest.fixture
def quick(monkeypatch):
    """Classifiers learn little, and every statistic of an evaluation or a report is of few latents and resamples."""
    from analysis import bootstrap, classifier, counterfactual, encoder, latents, projector, style_space
    from report import samples

    for module, values in (
        # below 8 channels PyTorch 2.14 corrupts the heap with AVX2 alone
        (classifier, {"CHECK": 2, "LIMIT": 4, "WIDTH": 8, "SEEDS": (0, 1)}),
        (bootstrap, {"RESAMPLED": 40}),
        (style_space, {"PERMUTATIONS": 39}),
        (counterfactual, {"DRAWS": 3, "STEPS": 2, "JUDGED": 64}),
        (encoder, {"SLICES": 64, "HELD_OUT": 64, "STEPS": 2}),
        (latents, {"DIRECTION_LATENTS": 64}),
        (samples, {"MORPH_LATENTS": 20, "NOISE_DRAWS": 2, "FRAMES": 4, "DIRECTIONS": 2}),
        (projector, {"LATENTS": 64, "STARTS": 16, "STEPS": 3}),
    ):
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)


@pytest.fixture
def validations(monkeypatch, unplotted):
    """(kids, averages): validations cost nothing and find the next value of the list `kids`; `averages` gets the weights."""
    import train
    from training import validation

    kids, averages = [], []

    class PlannedValidation:
        def __init__(self, *_):
            pass

        def __call__(self, averaged, *_):
            averages.append({key: value.clone() for key, value in averaged.state_dict().items()})
            return dict.fromkeys(validation.VALIDATION, 0.0) | {"kid": kids.pop(0)}

    monkeypatch.setattr(train, "Validation", PlannedValidation)
    return kids, averages


@pytest.fixture
def ticking(monkeypatch):
    """The clock of training moves on by a second whenever it is read."""
    import train
    from training import state

    seconds = itertools.count()
    for module in (train, state):
        monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: float(next(seconds))))


@pytest.fixture
def settings_of_torch():
    """What `utils.pick_device` sets in PyTorch is put back at the end."""
    import torch

    cudnn, precision = torch.backends.cudnn, torch.get_float32_matmul_precision()
    saved = {name: getattr(cudnn, name) for name in ("benchmark", "allow_tf32")}
    yield
    for name, value in saved.items():
        setattr(cudnn, name, value)
    torch.set_float32_matmul_precision(precision)


@pytest.fixture
def script():
    """Run one of the scripts as a user does; returns the finished process with text output."""

    def run(name, *flags, **options):
        return subprocess.run(
            [sys.executable, os.path.join(ROOT, name), *map(str, flags)], capture_output=True, text=True, timeout=300, **options
        )

    return run


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A headless Chromium that keeps what its console said and every request; downloads go to `browser.downloads`."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver_path = shutil.which("chromedriver")
    if not binary or not driver_path:
        pytest.skip("needs Chromium and its chromedriver")
    from selenium.webdriver.chrome.service import Service

    options, downloads = webdriver.ChromeOptions(), tmp_path_factory.mktemp("downloads")
    options.binary_location = binary
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,1400"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    driver = webdriver.Chrome(options, Service(driver_path))
    driver.downloads = downloads
    yield driver
    driver.quit()


def check_quiet(browser):
    """The page of a `browser` has said nothing on its console and has asked no server for anything."""
    assert not [entry["message"] for entry in browser.get_log("browser") if "willReadFrequently" not in entry["message"]]
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert urls and all(url.startswith(("file:", "data:", "blob:")) for url in urls)


def refusal(main, *flags):
    """The line with which a script's main(flags) refuses, in this process."""
    with pytest.raises(UserError) as refused:
        main([*map(str, flags)])
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.fixture
def refused(script):
    """Run a script that has to refuse, as a user does: exit status 2 and one line on stderr, which is returned."""

    def run(name, *flags, **options):
        done = script(name, *flags, **options)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.stderr.strip().endswith(line)
        return line

    return run
