"""bench.py: its counts, its own step against train.py's, and its command line with and without another code base."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import bench
import train
from dataset import to_float
from train import parse_args as parse_train
from train import settle
from utils import UserError

TINY = [
    "--resolution",
    "32",
    "--channel_base",
    "128",
    "--channel_max",
    "8",
    "--batch_size",
    "4",
    "--steps",
    "2",
    "--device",
    "cpu",
    "--amp",
    "False",
]
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


def sides(loss, gp_every):
    """A train.Training on tiny networks, and bench.py's step on a second one with the same weights."""
    args = settle(
        parse_train(["--dataset_dir", "x", "--loss", loss, "--gp_every", str(gp_every), "--bounded", "False", "--lr", "0.002"]),
        torch.device("cpu"),
    )
    network = {"resolution": 32, "channel_base": 128, "channel_max": 8, "z_dim": 256, "w_dim": 256, "num_classes": 0}
    ours, other = (train.Training(args, network, torch.device("cpu"), torch.float32) for _ in range(2))
    return ours, other, bench.WrittenOut(bench.our_side(other), loss, gp_every, torch.device("cpu"))


@pytest.mark.parametrize("loss, gp_every", [("relativistic", 1), ("relativistic", 2), ("logistic", 3)])
def test_the_step_written_out_is_that_of_train(loss, gp_every):
    ours, other, written_out = sides(loss, gp_every)
    real = to_float(torch.from_numpy(bench.RandomSlices(32, 4)[np.arange(4)]))
    for k in range(2):
        term = ours.step(k, real, None)
        written_out(real)
        for twin, key in ((other.critic, "critic_gradient"), (other.model, "generator_gradient")):
            norm = torch.cat([p.grad.flatten() for p in twin.parameters()]).norm()
            assert norm.item() == pytest.approx(term[key].item(), rel=0.02), key
    assert set(written_out.seconds) == set(bench.PHASES) and min(written_out.seconds.values()) > 0


def test_operations_are_counted_by_hand_the_same():
    x, kernel = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(5, 3, 3, 3, requires_grad=True)
    forward = 2 * (2 * 5 * 8 * 8) * (3 * 9)  # two operations a tap and output
    with bench.Counter() as counter:
        y = F.conv2d(x, kernel, padding=1)
    assert counter.total == forward
    with bench.Counter() as counter:
        y.sum().backward()
    assert counter.total == 2 * forward  # the derivative by x, and that by the kernel
    work = torch.randn(4, 6), torch.randn(6, 7)
    assert bench.count_gflop(lambda real: work[0] @ work[1], torch.zeros(4), 3) == pytest.approx(2 * 4 * 6 * 7 / 4 / 1e9)


def test_the_table_names_every_phase_and_a_second_derivative_is_counted(capsys):
    assert bench.main(TINY) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"32x32, channels 128 / 8, batch 4, wgan-gp, penalty every 1 steps", lines[0])
    found = {line[:34].strip(): float(line.split()[-1]) for line in lines if re.search(r"(images/s|ms|GFLOP|GiB) +[\d.]+$", line)}
    assert {*bench.PHASES, "train.py's step", "written out", "pictures", "loader", "operations, an image"} <= set(found)
    assert all(value > 0 for value in found.values())
    total = sum(found[phase] for phase in bench.PHASES)  # phases leave nothing out; one run, two ways of averaging
    assert total == pytest.approx(4000 / found["written out"], rel=0.5)


def test_another_code_base_runs_in_turn_with_ours(tmp_path, capsys):
    (tmp_path / "other.py").write_text(OTHER)
    assert bench.main([*TINY, "--against", str(tmp_path / "other.py")]) == 0
    out = capsys.readouterr().out
    assert "this one" in out and len(re.search(r"written out +images/s(.*)", out)[1].split()) == 2
    assert re.search(r"times as fast as other.py: train.py's step [\d.]+, written out [\d.]+", out)


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
def test_a_file_that_does_not_fit_is_one_line(tmp_path, text, why):
    if text is not None:
        (tmp_path / "other.py").write_text(text)
    with pytest.raises(UserError, match=rf"--against .*other.py: .*{why}"):
        bench.main([*TINY, "--against", str(tmp_path / "other.py")])
