"""The plan of --dry_run: its numbers, and an estimate of memory that follows batch, loss and data type."""

import os
import re

import pytest
import torch
from conftest import TINY, refusal, start

import train
from modules import build_networks
from training.plan import ROOM, estimate_memory

THIN = {
    "resolution": 64,
    "channel_base": 1024,
    "channel_max": 64,
    "z_dim": 256,
    "w_dim": 256,
    "mapping_layers": 8,
    "num_classes": 0,
}


def test_dry_run_writes_nothing_and_prints_the_plan(tmp_path, slices_dir, capsys):
    flags = "--epochs 3 --dry_run --loss logistic --lambda_gp 7 --set gp_every=4 n_critic=2 --augment ada".split()
    flags += ["--validation_dir", os.path.join(os.path.dirname(slices_dir), "test")]
    assert start(slices_dir, tmp_path / "model", *flags) == 0
    out = capsys.readouterr().out
    for expected in ("9 AD", "32x32", "3 epochs of 2 = 6", "GiB", "M, critic", "6 scans, 6 slices", "(new)", "float32"):
        assert expected in out, expected
    assert re.search(
        r"recipe +thin network, logistic: batch 4, learning rates 0.004 \(generator\) and 0.004 \(critic\), 2 critic updates per "
        r"generator update\npenalties +7 every 4 steps, path length 0\naugmented +ada\n",
        out,
    )
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_memory_estimate_grows_with_the_micro_batch_and_the_loss():
    def estimate(micro_batch, dtype=torch.float32, loss="wgan-gp"):
        return estimate_memory(THIN, loss, micro_batch, dtype)

    model, critic = (sum(p.numel() for p in network.parameters()) for network in build_networks(THIN))
    weights = 4 * (5 * model + 4 * critic)  # weights, gradients, two moments, and the averaged model
    four, eight = estimate(4), estimate(8)
    assert eight - weights == pytest.approx(2 * (four - weights), rel=0.15)
    assert 0.4 < (estimate(8, torch.bfloat16) - weights) / (eight - weights) < 0.9
    assert estimate(8, loss="logistic") == pytest.approx(eight, rel=0.01)
    assert estimate(8, loss="relativistic") > 1.2 * eight  # two penalties


def test_memory_estimate_works_for_class_conditional_networks():
    memory = [estimate_memory(THIN | {"num_classes": classes}, "wgan-gp", 4, torch.float32) for classes in (0, 2)]
    assert memory[0] < memory[1] < 1.2 * memory[0]


def test_plan_counts_the_memory_of_one_micro_batch(tmp_path, slices_dir, capsys):
    memory = []
    for accum in (1, 4):
        start(slices_dir, tmp_path, "--dry_run", "--batch_size", 8192, "--grad_accum", accum)
        plan = re.search(r"about (\S+) GiB at batch 8192( in 4 micro-batches)?\n", capsys.readouterr().out)
        memory.append(float(plan[1]))
        assert (plan[2] is not None) == (accum == 4)
    assert memory[0] == pytest.approx(4 * memory[1], rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("accum", [1, 2, 8])
@pytest.mark.parametrize("spare", [1.01, 0.99])
def test_a_gpu_with_little_memory_gets_as_many_micro_batches_as_it_needs(tmp_path, slices_dir, monkeypatch, capsys, spare, accum):
    """The fewest whose estimate fits, from just above and from just below the memory that so many take."""
    network = THIN | {"resolution": 32, "channel_base": 4096, "channel_max": 128}
    free = int(spare * estimate_memory(network, "wgan-gp", 32 // accum, torch.float32) / ROOM)
    accum = accum if spare > 1 else min(8, 2 * accum)  # a micro-batch has no less than 4 slices
    monkeypatch.setattr(train, "pick_device", lambda _: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    flags = ["--dataset_dir", slices_dir, "--model_dir", tmp_path, "--classes", "AD", "--resolution", 32, "--dry_run"]
    sizes = ["--batch_size", 32, "--channel_base", 4096, "--channel_max", 128, "--eval_every", 0]
    assert train.main([*map(str, flags), *map(str, sizes)]) == 0
    out, err = capsys.readouterr()
    memory = re.search(r"about (\S+) GiB at batch 32( in (\d+) micro-batches)?\n", out)
    assert memory[3] == (str(accum) if accum > 1 else None)
    assert (f"note: --grad_accum {accum}, since a batch of 32 takes about" in err) == (accum > 1)
    assert train.main([*map(str, flags), *map(str, sizes), "--grad_accum", "1"]) == 0  # what is asked for is done
    assert "micro-batches" not in capsys.readouterr().out


@pytest.mark.parametrize("batch_size, warned", [(32, True), (64, False)])
def test_the_share_of_each_process_is_told(tmp_path, slices_dir, monkeypatch, capsys, batch_size, warned):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(train.Processes, "maximum", lambda self, *values: values)
    monkeypatch.setattr(train.Processes, "from_leading", lambda self, work: work())
    monkeypatch.setattr(train, "pick_device", lambda _: torch.device("cuda", 0))
    flags = [
        *TINY,
        "--dataset_dir",
        slices_dir,
        "--model_dir",
        tmp_path,
        "--batch_size",
        batch_size,
        "--grad_accum",
        1,
        "--dry_run",
    ]
    assert train.main([*map(str, flags)]) == 0
    (line,) = re.findall(r"processes   4, each with (.*)", capsys.readouterr().out)
    assert line.startswith(f"{batch_size // 4} slices of every batch") and ("warning: fewer than 16" in line) == warned


@pytest.mark.slow
@pytest.mark.parametrize("accum, larger", [(1, 2), (2, 3), (6, None)])
def test_a_run_out_of_memory_says_what_would_take_less(tmp_path, slices_dir, monkeypatch, accum, larger):
    def fail(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(train, "train", fail)
    flags = [*TINY, "--dataset_dir", slices_dir, "--model_dir", tmp_path, "--batch_size", 24, "--grad_accum", accum]
    line = refusal(train.main, *flags, "--channel_max", 512, "--channel_base", 16384)
    network = THIN | {"resolution": 32, "channel_base": 16384, "channel_max": 512}

    def takes(accum):
        return f"about {estimate_memory(network, 'wgan-gp', 24 // accum, torch.float32) / 2**30:.1f} GiB"

    assert line.startswith(f"cpu is out of memory: --batch_size 24 with --grad_accum {accum} takes {takes(accum)}; ")
    assert (f"--grad_accum {larger} would take {takes(larger)}" if larger else "a smaller --batch_size would take less") in line
    assert larger is None or takes(larger) != takes(accum)
