"""bench.py: its counts, its plain step against train.py's, and its command line with and without other networks."""

import itertools
import os
import re

import numpy as np
import pytest
import torch
from conftest import NETWORK, TINY_NETWORK, refusal
from plain_options import plain_options

import bench
from dataset import to_float
from modules import build_networks
from training import step as training_step
from training.recipes import RECIPES, network_settings
from training.step import Batch, TrainingState, generate, train_step
from utils import UserError

FLAGS = [*TINY_NETWORK, *"--batch_size 4 --steps 2 --device cpu --amp False".split()]
OTHER = """
import torch
from torch import nn

class Generator(nn.Module):
    def __init__(self, side):
        super().__init__()
        self.side, self.layer = side, nn.Linear(8, side * side)
    def forward(self, z):
        return self.layer(z).view(-1, 1, self.side, self.side)

def build(resolution, channel_base, channel_max):
    generator = Generator(resolution)
    critic = nn.Sequential(nn.Flatten(), nn.Linear(resolution ** 2, channel_max), nn.Tanh(), nn.Linear(channel_max, 1))
    return lambda n: generator(torch.randn(n, 8)), critic, list(generator.parameters()), list(critic.parameters())
"""


def states(loss, gp_every, n_critic):
    """A TrainingState of tiny networks, and bench.py's plain step on a second one with the same weights."""
    network = NETWORK | {"z_dim": 256, "w_dim": 256}  # bench.py's
    options = plain_options(loss, batch_size=4, lr=0.002, lr_critic=0.002, gp_every=gp_every, n_critic=n_critic)
    ours, other = (TrainingState(options, network, torch.device("cpu"), torch.float32) for _ in range(2))
    networks = lambda n: generate(other, n)[0], other.critic, other.model_weights, other.critic_weights  # noqa: E731
    return ours, other, bench.PlainStep(*networks, loss, options.recipe)


@pytest.mark.slow
@pytest.mark.parametrize("loss, gp_every, n_critic", [("relativistic", 1, 1), ("relativistic", 2, 2), ("logistic", 3, 1)])
def test_plain_step_has_the_gradients_of_train_step(monkeypatch, loss, gp_every, n_critic):
    monkeypatch.setattr(training_step, "clip_images", lambda images: images)  # the plain step does not clip
    ours, other, plain_step = states(loss, gp_every, n_critic)
    real = to_float(torch.from_numpy(bench.RandomSlices(32, 4)[np.arange(4)]))
    for k in range(2):
        terms = train_step(ours, k, Batch(real))
        plain_step(real)
        assert ("generator_gradient" in terms) == (k % n_critic == 0)
        for twin, key in ((other.critic, "critic_gradient"), (other.model, "generator_gradient")):
            if key in terms:
                norm = torch.cat([p.grad.flatten() for p in twin.parameters()]).norm()
                assert norm.item() == pytest.approx(terms[key].item(), rel=0.02), key


@pytest.fixture
def ticking(monkeypatch):
    """bench.py's clock moves on by a second whenever it is read; rounds are of two steps."""
    seconds = itertools.count()
    monkeypatch.setattr(bench, "now", lambda device: float(next(seconds)))
    monkeypatch.setattr(bench, "ROUND", 2)


@pytest.mark.slow
def test_table_of_a_clock_that_ticks(ticking, capsys):
    assert bench.main(FLAGS) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"32x32, channels 128 / 8, batch 4, wgan-gp, penalty every 1 steps, path length 0", lines[0])
    found = {line[:34].strip(): float(line.split()[-1]) for line in lines if re.search(r"(images/s|GiB) +[\d.]+$", line)}
    assert found.pop("peak memory") > 0
    assert found == {"train.py's step": 8, "generating": 4, "loading": 4}  # a second for two steps, or a batch of 4


@pytest.mark.slow
def test_other_networks_alternate_with_ours(ticking, tmp_path, capsys):
    (tmp_path / "other.py").write_text(OTHER)
    assert bench.main([*FLAGS, "--against", str(tmp_path / "other.py")]) == 0
    out = capsys.readouterr().out
    assert re.search(r"plain step of other.py +images/s +8\n", out)
    assert "\ntrain.py's step is 1.00 times as fast as the plain one\n" in out


def test_row_of_a_clock_that_ticks(ticking):
    recipe = RECIPES["thin", "relativistic"]._replace(channel_base=128, channel_max=8, batch_size=4, gp_every=2)
    generator, critic, memory, image, step = bench.measure_networks("cpu", False, "relativistic", recipe, 32, 3)
    networks = build_networks(network_settings(recipe, 32))
    sizes = [sum(x.numel() for x in network.parameters()) / 1e6 for network in networks]
    assert (generator, critic) == pytest.approx(sizes) and generator < 1 and memory > 0.05
    assert (image, step) == (0.25, 0.5)  # a second for a batch of 4, and for a period of two steps


@pytest.mark.parametrize(
    "flags, rows",
    [
        ([], [(network, side) for side in (64, 128, 256) for network in ("thin", "full")]),
        (["--network", "full", "--resolution", "32"], [("full", 32)]),
    ],
)
def test_table_has_a_row_for_each_network_and_resolution(monkeypatch, capsys, flags, rows):
    asked = []

    def work(measure, device, amp, loss, recipe, resolution, steps):
        asked.append((recipe.channel_max, recipe.n_critic, resolution, steps))
        return None if resolution == 256 else (1.5, 0.25, 2.0, 0.125, 30.0)

    monkeypatch.setattr(bench, "in_own_process", work)
    assert bench.main(["--table", "--device", "cpu", "--amp", "False", "--set", "n_critic=3", *flags]) == 0
    assert asked == [({"thin": 64, "full": 256}[network], 3, side, 2) for network, side in rows]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines() if "|" in line]
    assert cells[0][-2:] == ["s an image", "s a step"] and len({len(row) for row in cells}) == 1
    for (network, side), row in zip(rows, cells[2:], strict=True):
        measured = ["1.5", "0.25", "2", "0.125", "30"] if side < 256 else ["-", "-", "out of memory", "-", "-"]
        assert row == [network, f"{side}x{side}", {"thin": "8", "full": "32"}[network], *measured]


@pytest.mark.slow
def test_rows_are_measured_in_processes_of_their_own_which_may_die(capsys):
    assert bench.in_own_process(os.getpid) != os.getpid() and bench.in_own_process(os._exit, 1) is None
    assert bench.main(["--table", "--network", "thin", *FLAGS]) == 0
    row = re.search(r"^\| thin .*32x32 .*$", capsys.readouterr().out, re.MULTILINE)[0].split("|")
    assert all(float(cell) > 0 for cell in row[3:-1])


def test_table_is_of_own_networks_on_random_slices(tmp_path):
    for flag in ("--against", "--dataset_dir"):
        assert f"leave out {flag}" in refusal(bench.main, "--table", flag, tmp_path)


@pytest.mark.parametrize(
    "text, why",
    [
        ("", "AttributeError"),
        ("1 / 0", "ZeroDivisionError"),
        ("def build(*args): return 1", "TypeError"),
        (OTHER.replace("torch.randn(n, 8)", "torch.randn(n + 1, 8)"), "images"),
        (None, "FileNotFoundError"),
    ],
)
def test_unsuitable_file_is_refused_in_one_line(tmp_path, text, why):
    if text is not None:
        (tmp_path / "other.py").write_text(text)
    with pytest.raises(UserError, match=rf"--against .*other.py: .*{why}"):
        bench.main([*FLAGS, "--against", str(tmp_path / "other.py")])
