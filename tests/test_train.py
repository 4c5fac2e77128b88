"""One step against the algorithm spelled out, and what a run keeps, refuses and goes on from."""

import csv
import functools
import glob
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, checkpoint, read_table, start
from PIL import Image

import train
from analysis import figures, validation
from dataset import Slices, batches
from train import LOSSES, settle
from train import parse_args as parse_train
from training import monitor as health
from training.ada import Strength
from training.loss import bounded, critic_loss, generator_loss, gradient_penalty
from training.run_folder import save_tensors
from utils import UserError, random_stream

BLOCKS = ["w", "generator 4", "generator 8", "generator 16", "generator 32", "image", "critic 32", "critic 16", "critic 8", "score"]


def same(a, b):
    """Whether two checkpoints, or parts of them, are equal bit for bit, but for the time they took."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a if key not in ("seconds", "digest"))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.fixture
def unplotted(monkeypatch):
    """Runs without their plots, which take longer than tiny steps."""
    monkeypatch.setattr(figures, "plot_dashboard", lambda *_: None)
    monkeypatch.setattr(figures, "plot_loss_proportion", lambda *_: None)


@pytest.fixture
def evaluations(monkeypatch, unplotted):
    """Evaluations that find what is put into this list, the next first, and cost nothing; and what they were called with."""
    kids = []

    class Stub:
        seen = []

        def __init__(self, *_):
            pass

        def __call__(self, averaged, *_):
            self.seen.append({key: value.clone() for key, value in averaged.state_dict().items()})
            return dict.fromkeys(validation.VALIDATION, 0.0) | {"kid": kids.pop(0)}

    monkeypatch.setattr(train, "Validation", Stub)
    return kids, Stub.seen


# ---------------------------------------------------------------------------------------------------------------------
# One step


def training(*flags, dtype=torch.float32):
    args = settle(parse_train([*TINY, "--dataset_dir", "unused", *map(str, flags)]), torch.device("cpu"))
    network = {"resolution": 32, "channel_base": 128, "channel_max": 8, "z_dim": 256, "w_dim": 256, "num_classes": 0}
    return train.Training(args, network, torch.device("cpu"), dtype), network


@pytest.mark.parametrize("kind, gp_every, k", [("wgan-gp", 1, 1), ("logistic", 4, 4), ("relativistic", 2, 2), ("logistic", 4, 3)])
def test_a_step_is_the_algorithm(kind, gp_every, k):
    ours, network = training(
        "--loss",
        kind,
        "--gp_every",
        gp_every,
        "--lambda_gp",
        3,
        "--lr",
        0.004,
        "--lr_critic",
        0.001,
        "--style_mixing",
        0,
        "--path_length",
        0,
        "--augment",
        "none",
    )
    model, critic = train.build_networks(network)
    model.load_state_dict(ours.model.state_dict())
    critic.load_state_dict(ours.critic.state_dict())
    rng, real = random_stream("training", 0), torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(5))
    term = ours.step(k, real, None)

    fake = bounded(model["generator"](model["mapping"](torch.randn(4, 256, generator=rng)), rng=rng))
    scores = critic(real), critic(fake.detach())
    loss = critic_loss(kind, *scores)
    assert term["critic_loss"].item() == pytest.approx(loss.item(), rel=1e-4)
    assert term["wasserstein"].item() == pytest.approx((scores[0].mean() - scores[1].mean()).item(), rel=1e-3, abs=1e-5)
    pairs = [np.sign(a - b) for a in scores[0].tolist() for b in scores[1].tolist()]
    assert term["separation"].item() == pytest.approx(np.mean(pairs))
    assert ("penalty" in term) == ("gradient_norm" in term) == (k % gp_every == 0)
    if k % gp_every == 0:
        penalty, norm = gradient_penalty(kind, critic, real, fake.detach(), None, rng)
        assert term["penalty"].item() == pytest.approx(3 * penalty.item(), rel=1e-4)  # logged as if taken at every step
        assert term["gradient_norm"].item() == pytest.approx(norm.item(), rel=1e-4)
        loss = loss + 3 * gp_every * penalty  # weighted for those left out

    def descend(network, loss, lr):
        loss.backward()
        norm = torch.cat([p.grad.flatten() for p in network.parameters()]).norm().item()
        torch.optim.Adam(network.parameters(), lr, train.BETAS, foreach=False, fused=False).step()
        return norm

    assert term["critic_gradient"].item() == pytest.approx(descend(critic, loss, 0.001), rel=1e-3)
    critic.requires_grad_(False)
    loss = generator_loss(kind, scores[0].detach(), critic(fake))
    assert term["generator_loss"].item() == pytest.approx(loss.item(), rel=1e-3)
    assert term["generator_gradient"].item() == pytest.approx(descend(model, loss, 0.004), rel=1e-3)
    # the first step of Adam is the sign of the gradient: where that is nearly 0, rounding decides, as everywhere in the
    # critic's last bias under the relativistic loss, which only knows differences of scores
    for network, reference, lr in ((ours.critic, critic, 0.001), (ours.model, model, 0.004)):
        for (name, a), b in zip(network.named_parameters(), reference.parameters()):
            if (kind, name) == ("relativistic", "score.bias"):
                assert network.score.bias.grad.abs() < 1e-6
            else:
                assert ((a - b).abs() > 0.01 * lr).float().mean() < 0.01, name


def test_unseen_slices_are_scored_beside_those_of_training_and_nothing_is_learnt_from_them():
    real, unseen = torch.randn(2, 4, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    (ours, network), (without, _) = (training("--augment", "ada", "--gp_every", 2) for _ in range(2))
    _, critic = train.build_networks(network)
    critic.load_state_dict(ours.critic.state_dict())
    term = ours.step(1, real, None, unseen)  # no penalty, which would draw after the unseen slices
    assert term["unseen"].item() == pytest.approx((critic(real).mean() - critic(unseen).mean()).item(), rel=1e-3, abs=1e-5)
    assert ours.strength.unseen.sign() == term["unseen"].sign() != 0 and ours.strength.gap != 0
    assert "unseen" not in without.step(1, real, None) and without.strength.gap == 0
    assert same(ours.critic.state_dict(), without.critic.state_dict())


def test_path_length_is_taken_on_half_a_batch_at_some_steps_and_weighted_for_the_others():
    real, found = torch.randn(4, 1, 32, 32), {}
    for weight in (0, 2):
        for k in (train.PATH_EVERY - 1, train.PATH_EVERY):
            ours, _ = training("--path_length", weight, "--style_mixing", 0, "--augment", "none")
            calls, plain = [], ours.path_length.forward
            ours.path_length.forward = lambda *inputs: calls.append(plain(*inputs)) or calls[-1]
            term = ours.step(k, real, None)
            found[weight, k] = term["generator_gradient"].item()
            assert len(calls) == (weight > 0 and k == train.PATH_EVERY)
            if calls:
                assert term["path_length"].item() == pytest.approx(2 * calls[0][0].item()) and ours.path_length.mean > 0
            else:
                assert "path_length" not in term and ours.path_length.mean == 0
    quiet, taken = train.PATH_EVERY - 1, train.PATH_EVERY
    assert found[2, quiet] == found[0, quiet] and found[2, taken] != found[0, taken]


@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-3), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("kind", LOSSES)
def test_the_penalty_and_its_second_derivatives_are_those_of_float64(monkeypatch, kind, dtype, bound):
    ours, network = training("--loss", kind, dtype=dtype)
    checked = []

    def compare(kind, critic, real, fake, labels, rng):
        twin = torch.Generator()
        twin.set_state(rng.get_state())
        found = gradient_penalty(kind, critic, real, fake, labels, rng)
        _, exact = train.build_networks(network)
        exact.load_state_dict(ours.critic.state_dict())
        expected, _ = gradient_penalty(kind, exact.double(), real.double(), fake.double(), labels, twin)
        assert found[0].item() == pytest.approx(expected.item(), rel=bound)
        gradients, references = (
            torch.autograd.grad(penalty, list(network.parameters()), retain_graph=True, allow_unused=True)
            for penalty, network in ((found[0], ours.critic), (expected, exact))
        )
        pairs = [(a, b) for a, b in zip(gradients, references) if b is not None and b.norm() > 1e-9]  # the last biases have none
        if dtype == torch.bfloat16:  # all as one: beside the others' its rounding may hide a small gradient
            pairs = [tuple(torch.cat([x.flatten() for x in one]) for one in zip(*pairs))]
        for a, b in pairs:
            assert (a - b).norm() / b.norm() < bound
            checked.append(a)
        return found

    monkeypatch.setattr(train, "gradient_penalty", compare)
    ours.step(0, torch.randn(4, 1, 32, 32), None)
    assert len(checked) > 10 or dtype == torch.bfloat16


def test_short_runs_end_alike_in_every_mode(slices_dir):
    """Losses at the end in bfloat16, and in turns, lie among those of float32 runs with other seeds."""
    slices = Slices(slices_dir, "AD", 32, progress=False)

    def losses(seed, dtype=torch.float32, accum=1):
        ours, _ = training(
            "--loss", "relativistic", "--seed", seed, "--grad_accum", accum, "--batch_size", 8, "--lr", 0.004, dtype=dtype
        )
        data = batches(slices, 8, "cpu", seed)
        terms = [ours.step(k, next(data)[0], None) for k in range(40)][20:]
        names = "critic_loss", "generator_loss", "wasserstein"
        return torch.tensor([[term[name] for name in names] for term in terms]).mean(0)

    plain = torch.stack([losses(seed) for seed in range(3)])
    spread = plain.std(0)
    for mode in ({"dtype": torch.bfloat16}, {"accum": 2}):
        other = losses(0, **mode)
        assert ((other - plain.mean(0)).abs() < 3 * spread).all(), (mode, other, plain)


@pytest.mark.parametrize("flag", ["True", "False"])
def test_critic_sees_generated_slices_as_they_are_saved(flag):
    ours, _ = training("--bounded", flag, "--loss", "relativistic")
    seen = []
    ours.critic.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    with torch.no_grad():
        ours.model["generator"].blocks[-1].image_bias.fill_(2)  # too bright by far
    ours.step(0, torch.zeros(4, 1, 32, 32), None)
    generated = [images for images in seen if images.any()]
    assert len(generated) == 3  # the critic's step, its penalty, the generator's step
    assert all(((images.abs() <= 1).all() and (images == 1).any()) == (flag == "True") for images in generated)


def test_average_has_its_half_life():
    averaged, weights = [torch.zeros(2), torch.zeros([])], [torch.ones(2), torch.ones([])]
    for _ in range(50):
        train.update_average(averaged, weights, images=10**9, batch_size=100, half_life=5000)
    assert [value.mean().item() for value in averaged] == pytest.approx([0.5, 0.5], rel=1e-3)
    averaged[0].zero_()
    train.update_average(averaged, weights, images=100, batch_size=100, half_life=5000)
    assert averaged[0].mean().item() == pytest.approx(1 - 0.5 ** (1 / train.EMA_RAMP), rel=1e-5)  # at the start: short


def test_rows_are_means_over_the_steps_that_have_a_term_and_are_finite():
    nan, number = float("nan"), torch.tensor
    terms = [
        {"critic_loss": number(1.0), "penalty": number(4.0), "critic_gradient": number(1.0), "generator_gradient": number(1.0)},
        {"critic_loss": number(nan), "critic_gradient": number(nan), "generator_gradient": number(1.0)},
        {"critic_loss": number(3.0), "critic_gradient": number(1.0), "generator_gradient": number(float("inf"))},
    ]
    row, skipped = train.summarise(terms)
    assert skipped == 2 and row["critic_loss"] == 2 and row["penalty"] == 4 and row["generator_gradient"] == 1
    assert np.isnan(row["path_length"]) and set(row) == {*train.TERMS, *health.PICTURE}


# ---------------------------------------------------------------------------------------------------------------------
# What a run keeps


def files(run):
    return {os.path.relpath(path, run) for path in glob.glob(run + "/**", recursive=True) if os.path.isfile(path)}


def test_files_of_a_run(models):
    run = os.path.join(models, "AD")
    always = {
        "config.json",
        "checkpoint.pt",
        "previous.pt",
        "lock",
        "generator.pt",
        "losses.csv",
        "evaluations.csv",
        "losses.png",
        "loss_proportion.png",
        *(f"fake_vs_real/epoch_000{i}.png" for i in range(3)),
        *(f"styles/epoch_000{i}.npy" for i in range(3)),
    }
    assert files(run) - {"trouble.txt"} == always | {"best.pt"}
    assert files(os.path.join(models, "NC")) - {"trouble.txt"} == always  # without evaluations
    rows = read_table(os.path.join(run, "losses.csv"))
    assert tuple(rows[0]) == train.COLUMNS + tuple(f"std {name}" for name in BLOCKS)
    assert [row["images"] for row in rows] == [8, 16] and [row["epoch"] for row in rows] == [1, 2]
    sometimes = "penalty", "gradient_norm", "path_length", "unseen"  # not at every step, or never
    assert all(np.isfinite(value) for row in rows for name, value in row.items() if name not in sometimes)
    assert all(row["skipped"] == 0 and row["lr"] > 0 and 0.05 < row["memory_gib"] < 1000 for row in rows)
    saved = torch.load(os.path.join(run, "generator.pt"), weights_only=True)
    assert saved["images"] == 16 and saved["classes"] == ["AD"]
    assert same(saved["weights"], checkpoint(run)["averaged"])
    with open(os.path.join(run, "config.json")) as file:
        assert json.load(file)["data"]["counts"] == {"AD": 9}


def test_evaluations_of_a_run(models):
    rows = read_table(os.path.join(models, "AD", "evaluations.csv"))
    assert tuple(rows[0]) == train.EVALUATION_COLUMNS and [row["images"] for row in rows] == [8, 16]
    assert all(np.isfinite(value) for row in rows for name, value in row.items() if name != "overfitting")
    best = torch.load(os.path.join(models, "AD", "best.pt"), weights_only=True)
    assert best["images"] == min(rows, key=lambda row: row["kid"])["images"]
    assert len(read_table(os.path.join(models, "all-conditional", "evaluations.csv"))) == 1
    assert read_table(os.path.join(models, "NC", "evaluations.csv")) == []


def test_best_is_the_average_with_the_lowest_kid_also_across_a_resume(tmp_path, slices_dir, evaluations):
    kids, seen = evaluations

    def best():
        saved = torch.load(tmp_path / "AD/best.pt", weights_only=True)
        return saved["images"], [same(saved["weights"], averaged) for averaged in seen]

    kids += [5.0, 2.0, 9.0]
    start(slices_dir, tmp_path, "--epochs", 3, "--eval_every", 1)
    assert best() == (16, [False, True, False])
    kids += [3.0]
    start(slices_dir, tmp_path, "--epochs", 4, "--eval_every", 1)
    assert best() == (16, [False, True, False, False])
    kids += [1.5]
    start(slices_dir, tmp_path, "--epochs", 5, "--eval_every", 1)
    assert best() == (40, [False] * 4 + [True])
    assert [row["kid"] for row in read_table(tmp_path / "AD/evaluations.csv")] == [5, 2, 9, 3, 1.5]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.filterwarnings("error")
def test_plots_of_few_rows_without_evaluations(tmp_path, rows):
    columns = train.COLUMNS + tuple(f"std {name}" for name in BLOCKS)
    values = np.random.default_rng(0).uniform(0.1, 9, (rows, len(columns)))
    values[:, columns.index("images")] = 64 * np.arange(1, rows + 1)
    values[0, columns.index("penalty")] = values[:, columns.index("path_length")] = np.nan
    losses, none = figures.columns(values, columns), figures.columns([], train.EVALUATION_COLUMNS)
    figures.plot_dashboard(losses, none, tmp_path / "losses.png")
    figures.plot_loss_proportion(losses, tmp_path / "share.png")
    with Image.open(tmp_path / "share.png") as picture:  # shares fill the plot even from one row
        assert (np.asarray(picture)[..., :3].min(2) < 230).mean() > 0.5


def test_when_a_run_is_evaluated(tmp_path, slices_dir, evaluations, monkeypatch):
    kids, seen = evaluations
    kids += range(100)
    start(slices_dir, tmp_path / "a", "--epochs", 5, "--eval_every", 2)
    assert [row["epoch"] for row in read_table(tmp_path / "a/AD/evaluations.csv")] == [2, 4, 5]  # and at the end
    start(slices_dir, tmp_path / "b", "--epochs", 10**6, "--eval_every", 10**6, "--max_minutes", 0.03)
    (row,) = read_table(tmp_path / "b/AD/evaluations.csv")  # when time is over, too
    assert row["images"] == checkpoint(tmp_path / "b/AD")["images"] > 0
    monkeypatch.delattr(train, "Validation")
    start(slices_dir, tmp_path / "c", "--epochs", 1, "--eval_every", 0)
    assert read_table(tmp_path / "c/AD/evaluations.csv") == [] and not (tmp_path / "c/AD/best.pt").exists()


def test_styles_and_pictures_use_the_same_latents_every_time(models):
    first, last = (np.load(os.path.join(models, "NC", "styles", f"epoch_000{i}.npy")) for i in (0, 2))
    assert first.shape == (512, 256) and first.dtype == np.float32
    other = np.load(os.path.join(models, "AD", "styles", "epoch_0000.npy"))
    np.testing.assert_array_equal(first, other)  # same seed, same start
    assert 0 < np.abs(first - last).max()  # and it learns
    assert np.load(os.path.join(models, "all-conditional", "styles", "epoch_0002.npy")).shape == (2, 512, 256)
    with Image.open(os.path.join(models, "NC", "fake_vs_real", "epoch_0002.png")) as picture:
        assert picture.mode == "L" and picture.width > 1000


@pytest.mark.parametrize(
    "flags",
    [
        ["--loss", "wgan-gp", "--augment", "ada", "--style_mixing", 0.9],
        ["--loss", "logistic", "--gp_every", 4, "--path_length", 2],
        [
            "--loss",
            "relativistic",
            "--augment",
            "fixed",
            "--augment_p",
            0.3,
            "--path_length",
            1,
            "--style_mixing",
            0.5,
            "--classes",
            "all",
            "--conditional",
        ],
    ],
    ids=LOSSES,
)
def test_resumed_run_equals_one_that_never_stopped(tmp_path, slices_dir, unplotted, monkeypatch, flags):
    class Growing(Strength):
        def update(self, term, images):
            if "unseen" in term:
                term = term | {"unseen": term["unseen"].abs() + 9 * term["wasserstein"].abs()}
            super().update(term, images)

    monkeypatch.setattr(train, "Strength", functools.partial(Growing, speed_kimg=0.05))
    monkeypatch.setattr(validation, "VALIDATED", 16)
    monkeypatch.setattr(validation, "Features", lambda *_: lambda pixels: torch.as_tensor(pixels[:, ::8, ::8]).flatten(1).float())
    stops = (1, 2, 4) if "all" in flags else (1, 5, 9)
    assert start(slices_dir, tmp_path / "one", "--epochs", stops[-1], *flags) == 0
    for epochs in stops:  # evaluations and saves change nothing either
        assert start(slices_dir, tmp_path / "two", "--epochs", epochs, "--eval_every", 2, "--save_every", 3, *flags) == 0
    folder = "all-conditional" if "all" in flags else "AD"
    one, two = checkpoint(tmp_path / "one" / folder), checkpoint(tmp_path / "two" / folder)
    assert one["images"] == two["images"] == (4 * 20 if "all" in flags else 9 * 8) and one["lr_scale"] == 1
    assert same(one, two)
    assert (one["strength"]["p"] > 0.1) == ("--augment" in flags) and (one["strength"]["unseen"] > 0) == ("ada" in flags)
    assert (one["path_length"]["mean"] > 0) == ("--path_length" in flags)


def test_moments_saved_in_another_memory_layout_are_the_same_moments(tmp_path, slices_dir, unplotted):
    start(slices_dir, tmp_path / "one", "--epochs", 2)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    state = checkpoint(tmp_path / "two" / "AD")
    moments = [values for name in "gc" for values in state[name]["state"].values()]
    kernels = [values for values in moments if values["exp_avg"].is_contiguous(memory_format=torch.channels_last)]
    assert 0 < len(kernels) < len(moments)
    for values in kernels:
        values.update({name: values[name].contiguous() for name in ("exp_avg", "exp_avg_sq")})
    save_tensors(state, tmp_path / "two" / "AD" / "checkpoint.pt")
    for name in ("one", "two"):
        start(slices_dir, tmp_path / name, "--epochs", 4)
    assert same(*(checkpoint(tmp_path / name / "AD") for name in ("one", "two")))


def test_fifty_steps_of_the_same_seed_are_identical_and_of_another_are_not(tmp_path, slices_dir, unplotted):
    for name, epochs, seed in (("a", 25, 3), ("b", 25, 3), ("c", 1, 3), ("d", 1, 4)):
        start(slices_dir, tmp_path / name, "--epochs", epochs, "--seed", seed)
    a, b, c, d = (checkpoint(tmp_path / name / "AD") for name in "abcd")
    assert a["images"] == 200 and same(a, b)
    assert not any(same(c[part], d[part]) for part in ("model", "critic", "averaged", "rng"))


def test_learning_rates_fall_to_zero_in_the_last_share_of_the_run(tmp_path, slices_dir, unplotted):
    start(slices_dir, tmp_path, "--epochs", 8, "--save_every", 1, "--lr", 0.004, "--lr_critic", 0.001, "--lr_decay", 0.5)
    rates = [row["lr"] for row in read_table(tmp_path / "AD/losses.csv")]  # of the last of two steps, of 16
    assert rates == pytest.approx([0.004 * min(1, (16 - step) / 8) for step in range(1, 16, 2)])
    state = checkpoint(tmp_path / "AD")
    assert [state[part]["param_groups"][0]["lr"] for part in "gc"] == pytest.approx([0.004 / 8, 0.001 / 8])


def test_done_run_says_so_and_changes_nothing(tmp_path, slices_dir, capsys):
    start(slices_dir, tmp_path, "--epochs", 1)
    before = checkpoint(tmp_path / "AD")
    capsys.readouterr()
    assert start(slices_dir, tmp_path, "--epochs", 1) == 0
    assert "done already" in capsys.readouterr().out
    assert same(before, checkpoint(tmp_path / "AD"))


def test_rows_after_the_checkpoint_are_cut_on_resume(tmp_path, slices_dir, evaluations):
    evaluations[0].extend([3.0, 2.0])
    start(slices_dir, tmp_path, "--epochs", 1, "--eval_every", 1)
    for name in ("losses", "evaluations"):  # as a run killed after logging leaves behind
        path = tmp_path / f"AD/{name}.csv"
        with open(path, newline="") as file:
            columns, row = csv.reader(file)
        row[columns.index("images")] = "12"
        with open(path, "a") as file:
            file.write(",".join(row) + "\n" + ",".join(row)[:9])
    start(slices_dir, tmp_path, "--epochs", 2, "--eval_every", 1)
    for name in ("losses", "evaluations"):
        assert [row["images"] for row in read_table(tmp_path / f"AD/{name}.csv")] == [8, 16], name


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
    start(slices_dir, tmp_path, "--epochs", 2, "--lr", 0.01, "--lambda_gp", 5)  # these may change
    assert checkpoint(tmp_path / "AD")["images"] == 16
    assert checkpoint(tmp_path / "AD")["g"]["param_groups"][0]["lr"] == 0.01


def test_resume_false_keeps_the_old_run(tmp_path, slices_dir):
    start(slices_dir, tmp_path, "--epochs", 2)
    before = checkpoint(tmp_path / "AD")
    start(slices_dir, tmp_path, "--epochs", 1, "--resume", "false", "--channel_max", 4)
    assert same(before, checkpoint(tmp_path / "AD.1"))
    assert checkpoint(tmp_path / "AD")["images"] == 8


def test_conditional_run(models):
    with open(os.path.join(models, "all-conditional", "config.json")) as file:
        config = json.load(file)
    assert config["network"]["num_classes"] == 2 and config["data"]["counts"] == {"AD": 9, "NC": 11}
    state = checkpoint(os.path.join(models, "all-conditional"))
    assert "embedding.weight" in state["critic"] and "mapping.embedding.weight" in state["model"]


def test_debug_prints_what_every_block_puts_out(tmp_path, slices_dir, unplotted, capsys):
    start(slices_dir, tmp_path, "--epochs", 2, "--debug")
    out = capsys.readouterr().out
    lines = out[out.index("step 4\n") :].splitlines()[1 : 2 + len(BLOCKS)]
    assert lines[0].split() == list(health.STATISTICS)
    row = read_table(tmp_path / "AD/losses.csv")[-1]
    for name, line in zip(BLOCKS, lines[1:], strict=True):
        low, high, mean, std = map(float, line.removeprefix(name).split())
        assert line.startswith(name) and low <= mean <= high and std == pytest.approx(row[f"std {name}"], abs=1e-3)
    start(slices_dir, tmp_path / "quiet", "--epochs", 1)
    assert "generator 4" not in capsys.readouterr().out


def test_tensorboard_without_its_package_is_one_line(tmp_path, slices_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="--tensorboard True: .*pip install tensorboard"):
        start(slices_dir, tmp_path, "--epochs", 1, "--tensorboard", True)


def test_tensorboard_holds_what_the_tables_hold(tmp_path, slices_dir, evaluations, monkeypatch):
    written = {}

    class SummaryWriter:
        def __init__(self, folder):
            assert folder == str(tmp_path / "AD/tensorboard")

        def add_scalar(self, name, value, step):
            written[name, step] = value

        def flush(self):
            written["flushed"] = len(written)

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    evaluations[0].extend([3.0, 2.0])
    start(slices_dir, tmp_path, "--epochs", 2, "--save_every", 1, "--eval_every", 1, "--tensorboard", True)
    tables = {name: read_table(tmp_path / f"AD/{name}.csv") for name in ("losses", "evaluations")}
    expected = {
        (f"{name}/{column}", row["images"]): value for name, rows in tables.items() for row in rows for column, value in row.items()
    }
    assert written.pop("flushed") >= len(expected) - 1 and written.keys() == expected.keys() and len(expected) > 60
    np.testing.assert_allclose([written[key] for key in expected], list(expected.values()), rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Stopping, planning, refusing


def test_dry_run_writes_nothing_and_prints_the_plan(tmp_path, slices_dir, capsys):
    assert (
        start(
            slices_dir,
            tmp_path / "model",
            "--epochs",
            3,
            "--dry_run",
            "--loss",
            "logistic",
            "--lambda_gp",
            7,
            "--gp_every",
            4,
            "--augment",
            "ada",
            "--eval_every",
            1,
        )
        == 0
    )
    out = capsys.readouterr().out
    for expected in ("9 AD", "32x32", "3 epochs of 2 = 6", "GiB", "M, critic", "6 to compare with"):
        assert expected in out, expected
    assert re.search("loss +logistic, penalty 7 every 4 steps, augmentation ada", out)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("resolution", [32, 256])
def test_a_large_network_on_a_cpu_is_told_of_a_thin_one_that_parses(tmp_path, slices_dir, resolution, capsys):
    assert start(slices_dir, tmp_path / "model", "--dry_run", "--resolution", resolution) == 0
    note = re.search("note: .*GPU.*long; (.*) learns in minutes", capsys.readouterr().err)
    assert (note is not None) == (resolution == 256)
    if note:
        assert settle(parse_train(["--dataset_dir", slices_dir, *note[1].split()]), torch.device("cpu")).resolution == 64


def test_what_the_flags_leave_open_suits_the_device_or_the_run(tmp_path, slices_dir, capsys):
    cpu, gpu = (settle(parse_train(["--dataset_dir", "x"]), torch.device(name)) for name in ("cpu", "cuda"))
    assert (cpu.channel_base, cpu.channel_max, cpu.batch_size, cpu.lr, cpu.lr_critic) == (1024, 64, 16, 4e-3, 4e-3)
    assert (gpu.channel_base, gpu.channel_max, gpu.batch_size, gpu.lr, gpu.lr_critic) == (8192, 256, 32, 2e-3, 2e-3)
    flags = parse_train(["--dataset_dir", "x", "--channel_max", "7", "--lr", "1", "--lr_critic", "2"])
    args = settle(flags, torch.device("cpu"), {"channel_base": 512, "channel_max": 9})
    assert (args.channel_base, args.channel_max, args.batch_size, args.lr, args.lr_critic) == (512, 7, 16, 1, 2)
    start(slices_dir, tmp_path, "--epochs", 1)
    assert (
        train.main(
            ["--dataset_dir", slices_dir, "--classes", "AD", "--model_dir", str(tmp_path), "--resolution", "32", "--dry_run"]
        )
        == 0
    )  # the run has other channels than a CPU's
    assert "(goes on)" in capsys.readouterr().out


def test_memory_estimate_follows_the_batch_and_the_loss():
    network = {"resolution": 64, "channel_base": 1024, "channel_max": 64, "z_dim": 256, "w_dim": 256, "num_classes": 0}

    def estimate(batch, dtype=torch.float32, loss="wgan-gp"):
        return train.estimate_memory({"network": network, "flags": {"loss": loss}}, batch, dtype)

    weights, four, eight = 4 * (5 * 927_838 + 4 * 296_369), estimate(4), estimate(8)
    assert eight - weights == pytest.approx(2 * (four - weights), rel=0.15)
    assert 0.4 < (estimate(8, torch.bfloat16) - weights) / (eight - weights) < 0.9
    assert estimate(8, loss="logistic") == pytest.approx(eight, rel=0.01)
    assert estimate(8, loss="relativistic") > 1.2 * eight  # two penalties


def test_where_unseen_slices_come_from(tmp_path, slices_dir):
    def unseen(dataset_dir, *flags):
        test = train.load_test(parse_train([*TINY, "--dataset_dir", str(dataset_dir), *map(str, flags)]))
        return test and test.counts

    beside = os.path.join(os.path.dirname(slices_dir), "test")
    assert unseen(slices_dir, "--eval_every", 1) == {"AD": 6, "NC": 7}  # test/ beside train/
    assert unseen(slices_dir, "--eval_every", 1, "--classes", "NC") == {"NC": 7}
    os.symlink(slices_dir, tmp_path / "lone")
    assert unseen(tmp_path / "lone", "--eval_every", 1) is None
    assert unseen(tmp_path / "lone", "--eval_every", 1, "--test_dir", beside) == {"AD": 6, "NC": 7}
    assert unseen(beside, "--eval_every", 1) is None  # what it is trained on is not unseen
    assert unseen(slices_dir, "--eval_every", 1, "--test_dir", slices_dir) is None


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--test_dir", "nowhere"], "^--test_dir nowhere: no such folder"),
        (["--test_dir", ROOT], "^--test_dir .*: no folder AD"),
        (["--augment", "fixed"], "--augment fixed and --augment_p belong together"),
        (["--augment", "ada", "--augment_p", 0.3], "--augment fixed and --augment_p belong together"),
        (["--augment_p", 0.3, "--augment", "none"], "--augment fixed and --augment_p belong together"),
        (["--augment", "fixed", "--augment_p", 1.5], "--augment_p"),
        (["--augment", "much"], "--augment"),
        (["--loss", "hinge"], "--loss"),
        (["--gp_every", 0], "--gp_every"),
        (["--style_mixing", 2], "--style_mixing"),
        (["--path_length", -1], "--path_length"),
        (["--ema_kimg", 0], "--ema_kimg"),
        (["--eval_every", -1], "--eval_every"),
        (["--lr_critic", 0], "--lr_critic"),
    ],
)
def test_bad_flags_of_training_are_refused_by_name(slices_dir, tmp_path, flags, expected):
    with pytest.raises(UserError, match=expected):
        start(slices_dir, tmp_path / "model", "--epochs", 1, "--eval_every", 1, *flags)
    assert not (tmp_path / "model").exists()


def test_max_minutes_ends_in_order(script, tmp_path, slices_dir):
    done = script(
        "train.py",
        *TINY,
        "--classes",
        "NC",
        "--dataset_dir",
        slices_dir,
        "--model_dir",
        tmp_path,
        "--epochs",
        10**6,
        "--max_minutes",
        0.1,
    )
    assert done.returncode == 0, done.stderr
    assert "0.1 minutes are over" in done.stdout and "goes on" in done.stdout
    assert "images/s" in done.stderr and "Wasserstein" in done.stderr
    assert checkpoint(tmp_path / "NC")["images"] > 0


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to catch")
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGUSR1", None)])
def test_signal_saves_and_the_same_command_goes_on(script, tmp_path, slices_dir, signum):
    flags = [*TINY, "--classes", "AD", "--dataset_dir", slices_dir, "--model_dir", str(tmp_path), "--epochs", str(10**6)]
    process = subprocess.Popen(
        [sys.executable, os.path.join(ROOT, "train.py"), *flags], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    losses, deadline = tmp_path / "AD/losses.csv", time.monotonic() + 120
    while not (losses.exists() and losses.read_text().count("\n") > 1) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signum)
    time.sleep(0.05)
    process.send_signal(signum)  # its echo, which may not spoil the save
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signum
    assert signum.name in out and "goes on" in out and out.count("\n") == 1
    images = checkpoint(tmp_path / "AD")["images"]
    assert images > 0
    assert script("train.py", *flags, "--max_minutes", 0.1).returncode == 0
    assert checkpoint(tmp_path / "AD")["images"] > images


@pytest.mark.parametrize(
    "flags, expected",
    [
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
        (["--model_dir", __file__], "--model_dir"),
    ],
)
def test_bad_input_is_one_line(refused, slices_dir, tmp_path, flags, expected):
    assert expected in refused("train.py", *TINY[:-4], "--dataset_dir", slices_dir, "--model_dir", tmp_path, "--epochs", 1, *flags)
