"""The losses against closed forms and finite differences, and what a run keeps, refuses and goes on from."""
import csv
import glob
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

import train
from conftest import ROOT, TINY
from modules import Discriminator
from utils import UserError


def start(slices_dir, model_dir, *flags):
    return train.main([*TINY, "--classes", "AD", "--dataset_dir", slices_dir, "--model_dir", str(model_dir), *map(str, flags)])


def checkpoint(folder):
    return torch.load(os.path.join(str(folder), "checkpoint.pt"), weights_only=True)


def same(a, b):
    return all(torch.equal(a[part][key], b[part][key]) for part in ("model", "critic", "averaged") for key in a[part])


# ---------------------------------------------------------------------------------------------------------------------
# The losses

def test_penalty_of_a_linear_critic_is_its_length():
    slope = torch.randn(1, 8, 8, dtype=torch.float64)
    real, fake = torch.randn(2, 5, 1, 8, 8, dtype=torch.float64)
    penalty, norm = train.gradient_penalty(lambda x, labels: (slope * x).sum((1, 2, 3)), real, fake)
    assert norm.item() == pytest.approx(slope.norm().item())
    assert penalty.item() == pytest.approx((slope.norm().item() - 1) ** 2)


def test_penalty_is_taken_between_real_and_fake():
    seen = []

    def critic(x, labels):
        seen.append(x.detach())
        return x.square().sum((1, 2, 3)) / 2                        # its gradient is x
    real, fake = torch.randn(2, 6, 1, 4, 4)
    penalty, norm = train.gradient_penalty(critic, real, fake, rng=torch.Generator().manual_seed(1))
    share = ((seen[0] - real) / (fake - real)).flatten(1)
    assert (share.std(1) < 1e-3).all() and (0 <= share.mean(1)).all() and (share.mean(1) <= 1).all()
    assert share.mean(1).std() > 0.05                               # a share of its own for every pair
    norms = seen[0].flatten(1).norm(dim=1)
    assert norm.item() == pytest.approx(norms.mean().item(), rel=1e-5)
    assert penalty.item() == pytest.approx((norms - 1).square().mean().item(), rel=1e-5)


@pytest.mark.parametrize("labelled", [False, True])
def test_critic_loss_gradients_against_finite_differences(labelled):
    torch.manual_seed(0)
    critic = Discriminator(16, 64, 4, num_classes=2 if labelled else 0).double()
    real, fake = torch.randn(2, 4, 1, 16, 16, dtype=torch.float64)
    labels = torch.tensor([0, 1, 1, 0]) if labelled else None

    def loss():
        return train.critic_loss(critic, real, fake, labels, 10., torch.Generator().manual_seed(0))[0]
    loss().backward()
    for name, parameter in critic.named_parameters():
        direction, step = torch.randn_like(parameter), 1e-6
        analytic = (parameter.grad * direction).sum().item()
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * step * direction
            values.append(loss().item())
            with torch.no_grad():
                parameter -= sign * step * direction
        assert analytic == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4, abs=1e-6), name


def test_bfloat16_scores_leave_the_penalty_exact():
    torch.manual_seed(0)
    critic, (real, fake) = Discriminator(32, 256, 16), torch.randn(2, 4, 1, 32, 32)

    def penalty_gradients(critic, real, fake, dtype):
        _, term = train.critic_loss(critic, real, fake, None, 10., torch.Generator().manual_seed(0), dtype)
        return [g for g in torch.autograd.grad(term["penalty"], list(critic.parameters()), allow_unused=True) if g is not None]
    narrow = penalty_gradients(critic, real, fake, torch.bfloat16)
    exact = penalty_gradients(critic.double(), real.double(), fake.double(), None)
    for ours, reference in zip(narrow, exact):
        if reference.norm() > 1e-9:             # the last biases have none
            assert (ours - reference).norm() / reference.norm() < 1e-3


def test_critic_loss_is_the_sum_of_its_terms():
    critic, (real, fake) = Discriminator(16, 64, 4), torch.randn(2, 4, 1, 16, 16)
    loss, term = train.critic_loss(critic, real, fake, None, 10.)
    score_real, score_fake = critic(real), critic(fake)
    assert term["wasserstein"].item() == pytest.approx((score_real.mean() - score_fake.mean()).item(), abs=1e-5)
    assert term["drift"].item() == pytest.approx(train.DRIFT * score_real.square().mean().item(), rel=1e-4)
    assert loss.item() == pytest.approx((term["penalty"] + term["drift"] - term["wasserstein"]).item(), abs=1e-5)
    half, _ = train.gradient_penalty(critic, real, fake, rng=torch.Generator().manual_seed(3))
    _, weighted = train.critic_loss(critic, real, fake, None, 7., torch.Generator().manual_seed(3))
    assert weighted["penalty"].item() == pytest.approx(7 * half.item(), rel=1e-4)


def test_average_has_its_half_life():
    averaged, model = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(averaged.weight)
    torch.nn.init.ones_(model.weight)
    for _ in range(train.EMA_IMAGES // 100):
        train.update_average(averaged, model, images=10 ** 9, batch_size=100)
    assert averaged.weight.item() == pytest.approx(0.5, rel=1e-3)
    torch.nn.init.zeros_(averaged.weight)
    train.update_average(averaged, model, images=100, batch_size=100)
    assert averaged.weight.item() == pytest.approx(1 - 0.5 ** (1 / train.EMA_RAMP), rel=1e-5)      # at the start: short


# ---------------------------------------------------------------------------------------------------------------------
# What a run keeps

def test_files_of_a_run(models):
    run = os.path.join(models, "AD")
    assert {os.path.relpath(path, run) for path in glob.glob(run + "/**", recursive=True) if os.path.isfile(path)} == {
        "config.json", "checkpoint.pt", "generator.pt", "losses.csv", "losses.png", "loss_proportion.png",
        *(f"fake_vs_real/epoch_000{i}.png" for i in range(3)), *(f"styles/epoch_000{i}.npy" for i in range(3))}
    with open(os.path.join(run, "losses.csv")) as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == train.COLUMNS and [row["images"] for row in rows] == ["8", "16"]
    assert all(np.isfinite(float(value)) for row in rows for value in row.values())
    for row in rows:
        parts = float(row["penalty"]) + float(row["drift"]) - float(row["wasserstein"])
        assert float(row["critic_loss"]) == pytest.approx(parts, abs=1e-3)
    saved = torch.load(os.path.join(run, "generator.pt"), weights_only=True)
    assert saved["images"] == 16 and saved["classes"] == ["AD"]
    averaged = checkpoint(run)["averaged"]
    assert all(torch.equal(saved["weights"][key], averaged[key]) for key in averaged)
    with open(os.path.join(run, "config.json")) as file:
        assert json.load(file)["data"]["counts"] == {"AD": 9}


def test_styles_and_pictures_use_the_same_latents_every_time(models):
    first, last = (np.load(os.path.join(models, "NC", "styles", f"epoch_000{i}.npy")) for i in (0, 2))
    assert first.shape == (512, 256) and first.dtype == np.float32
    other = np.load(os.path.join(models, "AD", "styles", "epoch_0000.npy"))
    np.testing.assert_array_equal(first, other)                     # same seed, same start
    assert 0 < np.abs(first - last).max()                           # and it learns
    assert np.load(os.path.join(models, "all-conditional", "styles", "epoch_0002.npy")).shape == (2, 512, 256)
    with Image.open(os.path.join(models, "NC", "fake_vs_real", "epoch_0002.png")) as picture:
        assert picture.mode == "L" and picture.width > 1000


def test_resumed_run_equals_one_that_never_stopped(tmp_path, slices_dir):
    assert start(slices_dir, tmp_path / "one", "--epochs", 4) == 0
    assert start(slices_dir, tmp_path / "two", "--epochs", 1) == 0
    assert start(slices_dir, tmp_path / "two", "--epochs", 4) == 0
    one, two = checkpoint(tmp_path / "one/AD"), checkpoint(tmp_path / "two/AD")
    assert one["images"] == two["images"] == 4 * 8
    assert same(one, two)
    assert start(slices_dir, tmp_path / "three", "--epochs", 4, "--seed", 1) == 0
    assert not same(one, checkpoint(tmp_path / "three/AD"))


def test_done_run_says_so_and_changes_nothing(tmp_path, slices_dir, capsys):
    start(slices_dir, tmp_path, "--epochs", 1)
    before = checkpoint(tmp_path / "AD")
    capsys.readouterr()
    assert start(slices_dir, tmp_path, "--epochs", 1) == 0
    assert "done already" in capsys.readouterr().out
    assert same(before, checkpoint(tmp_path / "AD"))


def test_rows_after_the_checkpoint_are_cut_on_resume(tmp_path, slices_dir):
    start(slices_dir, tmp_path, "--epochs", 1)
    with open(tmp_path / "AD/losses.csv", "a") as file:             # as a run killed after logging leaves behind
        file.write("9,4.5,36,1,1,0,0,0,0,0,0\n10,5,40,1.2e")
    start(slices_dir, tmp_path, "--epochs", 2)
    with open(tmp_path / "AD/losses.csv") as file:
        assert [row["images"] for row in csv.DictReader(file)] == ["8", "16"]


def test_changed_network_or_data_is_refused_by_name(tmp_path, slices_dir):
    start(slices_dir, tmp_path, "--epochs", 1)
    before = checkpoint(tmp_path / "AD")
    with pytest.raises(UserError, match=r"--channel_base 256 \(was 128\), --channel_max 4 \(was 8\)"):
        start(slices_dir, tmp_path, "--channel_base", 256, "--channel_max", 4)
    other = tmp_path / "other/AD"
    other.mkdir(parents=True)
    Image.new("L", (30, 32), 90).save(other / "1_1.png")
    with pytest.raises(UserError, match="--dataset_dir .*other"):
        start(str(other.parent), tmp_path, "--epochs", 3)
    assert same(before, checkpoint(tmp_path / "AD"))
    start(slices_dir, tmp_path, "--epochs", 2, "--lr", 0.01, "--lambda_gp", 5)      # these may change
    assert checkpoint(tmp_path / "AD")["images"] == 16
    assert checkpoint(tmp_path / "AD")["g"]["param_groups"][0]["lr"] == 0.01


def test_resume_false_keeps_the_old_run(tmp_path, slices_dir):
    start(slices_dir, tmp_path, "--epochs", 2)
    before = checkpoint(tmp_path / "AD")
    start(slices_dir, tmp_path, "--epochs", 1, "--resume", "false", "--channel_max", 4)
    assert same(before, checkpoint(tmp_path / "AD.1"))
    assert checkpoint(tmp_path / "AD")["images"] == 8


def test_broken_checkpoint_is_one_line(tmp_path, slices_dir):
    start(slices_dir, tmp_path, "--epochs", 1)
    (tmp_path / "AD/checkpoint.pt").write_bytes(b"half a file")
    with pytest.raises(UserError, match="checkpoint.pt cannot be read"):
        start(slices_dir, tmp_path, "--epochs", 2)


def test_conditional_run(models):
    with open(os.path.join(models, "all-conditional", "config.json")) as file:
        config = json.load(file)
    assert config["network"]["num_classes"] == 2 and config["data"]["counts"] == {"AD": 9, "NC": 11}
    state = checkpoint(os.path.join(models, "all-conditional"))
    assert "embedding.weight" in state["critic"] and "mapping.embedding.weight" in state["model"]


def test_not_finite_stops_and_keeps_what_was_saved(tmp_path, slices_dir, monkeypatch):
    start(slices_dir, tmp_path, "--epochs", 1)
    before, plain = checkpoint(tmp_path / "AD"), train.critic_loss

    def broken(*args):
        loss, term = plain(*args)
        return loss * float("nan"), term | {"critic_loss": loss * float("nan")}
    monkeypatch.setattr(train, "critic_loss", broken)
    with pytest.raises(UserError, match="not finite"):
        start(slices_dir, tmp_path, "--epochs", 2)
    assert same(before, checkpoint(tmp_path / "AD"))


# ---------------------------------------------------------------------------------------------------------------------
# Stopping, planning, refusing

def test_dry_run_writes_nothing_and_prints_the_plan(tmp_path, slices_dir, capsys):
    assert start(slices_dir, tmp_path / "model", "--epochs", 3, "--dry_run") == 0
    out = capsys.readouterr().out
    for expected in ("9 AD", "32x32", "3 epochs of 2 = 6", "GiB", "M, critic"):
        assert expected in out, expected
    assert not (tmp_path / "model").exists()


def test_memory_estimate_follows_the_batch():
    config = {"network": {"resolution": 64, "channel_base": 1024, "channel_max": 64, "z_dim": 256, "w_dim": 256,
                          "num_classes": 0}}
    weights, (four, eight, narrow) = 4 * (5 * 927_838 + 4 * 296_369), (
        train.estimate_memory(config, batch, dtype) for batch, dtype in ((4, torch.float32), (8, torch.float32),
                                                                        (8, torch.bfloat16)))
    assert eight - weights == pytest.approx(2 * (four - weights), rel=0.15)
    assert 0.4 < (narrow - weights) / (eight - weights) < 0.9


def test_max_minutes_ends_in_order(script, tmp_path, slices_dir):
    done = script("train.py", *TINY, "--classes", "NC", "--dataset_dir", slices_dir, "--model_dir", tmp_path,
                  "--epochs", 10 ** 6, "--max_minutes", 0.1)
    assert done.returncode == 0, done.stderr
    assert "0.1 minutes are over" in done.stdout and "goes on" in done.stdout
    assert "images/s" in done.stderr and "Wasserstein" in done.stderr
    assert checkpoint(tmp_path / "NC")["images"] > 0


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to catch")
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_the_same_command_goes_on(script, tmp_path, slices_dir, signum):
    flags = [*TINY, "--classes", "AD", "--dataset_dir", slices_dir, "--model_dir", str(tmp_path), "--epochs", str(10 ** 6)]
    process = subprocess.Popen([sys.executable, os.path.join(ROOT, "train.py"), *flags], stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, text=True)
    losses, deadline = tmp_path / "AD/losses.csv", time.monotonic() + 120
    while not (losses.exists() and losses.read_text().count("\n") > 3) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signum)
    time.sleep(0.05)
    process.send_signal(signum)                                     # its echo, which may not spoil the save
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signum
    assert signum.name in out and "goes on" in out and out.count("\n") == 1
    images = checkpoint(tmp_path / "AD")["images"]
    assert images > 0
    assert script("train.py", *flags, "--max_minutes", 0.1).returncode == 0
    assert checkpoint(tmp_path / "AD")["images"] > images


@pytest.mark.parametrize("flags, expected", [
    (["--dataset_dir", "nowhere"], "nowhere"),
    (["--classes", "MCI"], "MCI"),
    (["--resolution", "100"], "--resolution"),
    (["--lr", "0"], "--lr"),
    (["--lr", "nan"], "--lr"),
    (["--batch_size", "many"], "--batch_size"),
    (["--conditional", "True", "--classes", "AD"], "--conditional"),
    (["--conditional", "maybe"], "maybe"),
    (["--device", "abacus"], "--device"),
    (["--nonsense", "1"], "--nonsense"),
    (["--model_dir", __file__], "--model_dir")])
def test_bad_input_is_one_line(refused, slices_dir, tmp_path, flags, expected):
    assert expected in refused("train.py", *TINY[:-4], "--dataset_dir", slices_dir, "--model_dir", tmp_path,
                               "--epochs", 1, *flags)
