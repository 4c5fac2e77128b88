"""A tiny data set and a tiny trained run, made once, for the tests of the scripts."""
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TINY = ["--resolution", "32", "--channel_base", "128", "--channel_max", "8", "--batch_size", "4", "--device", "cpu",
        "--precision", "float32"]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Decoded slices go to a folder of the test session, not to the user's cache."""
    os.environ["XDG_CACHE_HOME"] = os.environ["LOCALAPPDATA"] = str(tmp_path_factory.mktemp("cache"))
    torch.set_num_threads(1)                    # tiny tensors: more threads only wait for each other


@pytest.fixture(scope="session")
def slices_dir(tmp_path_factory):
    """train/ with 9 AD and 11 NC slices: a bright disc on black, larger in NC."""
    folder, rng = tmp_path_factory.mktemp("data") / "train", np.random.default_rng(0)
    y, x = np.mgrid[-16:16, -15:15]
    for name, count, radius in (("AD", 9, 9), ("NC", 11, 12)):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            disc = (np.hypot(y, x) < radius + rng.normal()) * rng.uniform(120, 220, (32, 30))
            Image.fromarray(disc.astype(np.uint8)).save(folder / name / f"{100 + i}_0.png")
    return str(folder)


@pytest.fixture(scope="session")
def models(tmp_path_factory, slices_dir):
    """A folder of runs AD, NC and all-conditional, each trained for two epochs."""
    import train
    folder = str(tmp_path_factory.mktemp("model"))
    for flags in (["--classes", "AD"], ["--classes", "NC"], ["--conditional"]):
        assert train.main([*TINY, *flags, "--dataset_dir", slices_dir, "--model_dir", folder, "--epochs", "2",
                           "--save_every", "1"]) == 0
    return folder


@pytest.fixture
def script():
    """Run one of the scripts as a user does; returns the finished process with text output."""
    def run(name, *flags, **options):
        return subprocess.run([sys.executable, os.path.join(ROOT, name), *map(str, flags)], capture_output=True, text=True,
                              timeout=300, **options)
    return run


@pytest.fixture
def refused(script):
    """Run a script that has to refuse: exit status 2 and one line on stderr, which is returned."""
    def run(name, *flags, **options):
        done = script(name, *flags, **options)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        line, = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.stderr.strip().endswith(line)
        return line
    return run
