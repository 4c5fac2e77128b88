"""A tiny data set and a tiny trained run, made once, for the tests of the scripts."""

import csv
import functools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TINY = "--resolution 32 --channel_base 128 --channel_max 8 --batch_size 4 --eval_every 0 --device cpu --amp False".split()


def start(slices_dir, model_dir, *flags):
    """Train tiny networks on AD (unless the flags say otherwise) in this process; returns the exit status."""
    import train

    return train.main([*TINY, "--classes", "AD", "--dataset_dir", slices_dir, "--model_dir", str(model_dir), *map(str, flags)])


def train_command(slices_dir, model_dir, *flags):
    """The command line that trains the same in a process of its own."""
    flags = [*TINY, "--classes", "AD", "--dataset_dir", slices_dir, "--model_dir", model_dir, *flags]
    return [sys.executable, os.path.join(ROOT, "train.py"), *map(str, flags)]


def checkpoint(folder):
    """The newest checkpoint in a run's folder, as a dictionary; its checksum is not verified."""
    return torch.load(os.path.join(str(folder), "checkpoint.pt"), weights_only=True)


def same_checkpoints(a, b):
    """Whether two checkpoints, or parts of them, are equal bit for bit, except for the training time and the checksum."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_checkpoints(a[key], b[key]) for key in a if key not in ("seconds", "checksum"))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same_checkpoints, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def read_table(path):
    """Rows of a .csv as {column: float}."""
    with open(path, newline="") as file:
        return [{column: float(value) for column, value in row.items()} for row in csv.DictReader(file)]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Decoded slices go to a folder of the test session, not to the user's cache."""
    os.environ["XDG_CACHE_HOME"] = os.environ["LOCALAPPDATA"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["OMP_NUM_THREADS"] = "1"  # of the scripts; tiny tensors: more threads only wait for each other
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def slices_dir(tmp_path_factory):
    """train/ with 9 AD and 11 NC slices: a bright disc on black, larger in NC. Beside it test/ with 6 and 7."""
    data, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    y, x = np.mgrid[-16:16, -15:15]
    for split, name, count, radius in (("train", "AD", 9, 9), ("train", "NC", 11, 12), ("test", "AD", 6, 9), ("test", "NC", 7, 12)):
        folder = data / split / name
        folder.mkdir(parents=True)
        for i in range(count):
            disc = (np.hypot(y, x) < radius + rng.normal()) * rng.uniform(120, 220, (32, 30))
            Image.fromarray(disc.astype(np.uint8)).save(folder / f"{100 + i}_0.png")
    return str(data / "train")


@pytest.fixture(scope="session")
def models(tmp_path_factory, slices_dir):
    """A folder of runs AD, NC and all-conditional, each trained for two epochs; NC without evaluations."""
    from analysis import validation

    folder = str(tmp_path_factory.mktemp("model"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "VALIDATED", 32)
        patch.setattr(validation, "Features", functools.cache(validation.Features))  # the same network for all
        for flags in (["--eval_every", 1], ["--classes", "NC"], ["--classes", "all", "--conditional", "--eval_every", 2]):
            assert start(slices_dir, folder, "--epochs", 2, "--save_every", 1, *flags) == 0
    return folder


@pytest.fixture(scope="session")
def model(models):
    """The trained AD model."""
    from analysis.models import load_model

    return load_model(os.path.join(models, "AD"), "cpu")


@pytest.fixture(scope="session")
def conditional(models):
    from analysis.models import load_model

    return load_model(os.path.join(models, "all-conditional"), "cpu")


@pytest.fixture
def unplotted(monkeypatch):
    """Runs save no plots, which take longer than tiny steps."""
    from analysis import figures

    monkeypatch.setattr(figures, "plot_dashboard", lambda *_: None)
    monkeypatch.setattr(figures, "plot_loss_proportion", lambda *_: None)


@pytest.fixture
def validations(monkeypatch, unplotted):
    """(kids, averages): validations cost nothing and find the next value of the list `kids`; `averages` gets the weights."""
    import train
    from analysis import validation

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
def script():
    """Run one of the scripts as a user does; returns the finished process with text output."""

    def run(name, *flags, **options):
        return subprocess.run(
            [sys.executable, os.path.join(ROOT, name), *map(str, flags)], capture_output=True, text=True, timeout=300, **options
        )

    return run


@pytest.fixture
def refused(script):
    """Run a script that has to refuse: exit status 2 and one line on stderr, which is returned."""

    def run(name, *flags, **options):
        done = script(name, *flags, **options)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.stderr.strip().endswith(line)
        return line

    return run
