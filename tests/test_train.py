"""train.py: its flags and defaults, learning rates, evaluations, alerts, skipped steps, and how a run stops."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import time
import types

import numpy as np
import pytest
import torch
from conftest import (
    ROOT,
    TINY,
    TINY_NETWORK,
    checkpoint,
    leave_plots_out,
    read_image,
    read_table,
    refusal,
    same_checkpoints,
    start,
    train_command,
)
from PIL import Image
from plain_options import plain_options

import train
import utils
from modules import Generator
from training import checkpoint as checkpoint_module
from training import plan as plan_module
from training import progress, recipes
from training import state as state_module
from training import step as training_step
from training.flags import choose_recipe, kept_settings
from training.flags import parse_args as parse_train
from training.loss import PathLength
from training.recipes import COLUMNS, FLAGS, RECIPES, Options, Recipe, as_flag
from training.run_folder import read_run
from training.state import decay_factor
from utils import UserError, save_tensors

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def log_steps(monkeypatch, unplotted):
    """log_steps(n): a row of losses.csv averages n steps."""
    return lambda steps: monkeypatch.setattr(state_module, "LOG_STEPS", steps)


def alert_lines(folder):
    """Lines of a run's alerts.log."""
    path = folder / "alerts.log"
    return path.read_text().splitlines() if path.exists() else []


# ---------------------------------------------------------------------------------------------------------------------
# Flags and their defaults


def parse(*flags):
    return parse_train(["--dataset_dir", "x", *map(str, flags)])


def recipe_of(device, *flags):
    """The Recipe of a new run."""
    return choose_recipe(parse(*flags), device)[2]


def flags_of(numbers):
    """Words of a command line that give a recipe these numbers."""
    return [word for name, value in numbers.items() for word in as_flag(name, value).split()]


def learning(recipe):
    return recipe.batch_size, recipe.lr, recipe.lr_critic


@pytest.mark.parametrize("loss", recipes.LOSSES)
@pytest.mark.parametrize("device, network", [(CPU, "thin"), (CUDA, "full")])
def test_a_new_run_follows_the_recipe_of_its_loss_and_of_the_network_that_suits_the_device(device, network, loss):
    """Another network may be asked for, and each flag overrides one number."""
    assert choose_recipe(parse("--loss", loss), device) == (network, loss, RECIPES[network, loss])
    other = "full" if network == "thin" else "thin"
    assert choose_recipe(parse("--loss", loss, "--network", other), device) == (other, loss, RECIPES[other, loss])
    assert choose_recipe(parse(), device)[1] == "wgan-gp"
    for name, value in RECIPES[network, loss]._asdict().items():
        given = 128 if name == "channel_base" else 3 if isinstance(value, int) else 0.125
        assert recipe_of(device, "--loss", loss, *flags_of({name: given})) == RECIPES[network, loss]._replace(**{name: given})


def test_every_number_of_every_recipe_is_one_that_its_column_takes_and_has_one_way_to_be_given():
    assert tuple(COLUMNS) == Recipe._fields and set(FLAGS) < set(COLUMNS)
    for recipe in RECIPES.values():
        assert {name: COLUMNS[name].parse(repr(value)) for name, value in recipe._asdict().items()} == recipe._asdict()
        assert recipe_of(CPU, *flags_of(recipe._asdict())) == recipe


def test_numbers_are_set_in_one_or_several_flags():
    expected = RECIPES["thin", "wgan-gp"]._replace(n_critic=2, lr_critic=0.01)
    assert recipe_of(CPU, "--set", "n_critic=2", "lr_critic=0.01") == expected
    assert recipe_of(CPU, "--set", "n_critic=2", "--epochs", 3, "--set", "lr_critic=0.01") == expected


def test_augmentation_is_refused_on_apples_gpu(tmp_path, slices_dir, monkeypatch):
    monkeypatch.setattr(train, "pick_device", lambda _: torch.device("mps"))
    with pytest.raises(UserError, match="^--augment ada: Apple"):
        start(slices_dir, tmp_path, "--augment", "ada")
    assert recipe_of(torch.device("mps")) == RECIPES["thin", "wgan-gp"]


def test_every_flag_of_training_reaches_the_step(tmp_path, slices_dir, monkeypatch):
    numbers = {
        **{"channel_base": 64, "channel_max": 4, "mapping_layers": 3, "batch_size": 16, "lr": 0.001, "lr_critic": 0.0005},
        **{"n_critic": 3, "lambda_gp": 3.0, "gp_every": 5, "path_length": 2.0, "ema_kimg": 3.0, "lr_decay": 0.5},
        "style_mixing": 0.75,
    }
    switches = {"augment": "ada", "mirror": True, "grad_accum": 2, "seed": 7}
    unlike = RECIPES["thin", "logistic"]._asdict() | plain_options()._asdict()
    assert numbers.keys() == set(Recipe._fields) and {"loss", "recipe", *switches} == set(Options._fields)
    assert not set((numbers | switches).items()) & set({**unlike, "recipe": None}.items())

    class Reached(Exception):
        pass

    def reach(*arguments):
        raise Reached(*arguments)

    monkeypatch.setattr(plan_module, "TrainingState", reach)
    flags = flags_of(numbers) + [word for name, value in switches.items() for word in (f"--{name}", value)]
    with pytest.raises(Reached) as reached:
        start(slices_dir, tmp_path, "--classes", "all", "--conditional", "--amp", "True", "--loss", "logistic", *flags)
    options, network, device, dtype, _ = reached.value.args
    assert options == Options("logistic", Recipe(**numbers), **switches) and device == CPU and dtype == torch.bfloat16
    expected = {"resolution": 32, "channel_base": 64, "channel_max": 4, "mapping_layers": 3, "z_dim": 256, "w_dim": 256}
    assert network == expected | {"num_classes": 2, "values": []}


@pytest.fixture(scope="module")
def cpu_run(tmp_path_factory, slices_dir):
    """The folder of a run begun on a CPU with its learning rates, but for the critic's. Never write there."""
    folder = tmp_path_factory.mktemp("cpu_run")
    flags = [*TINY_NETWORK, "--dataset_dir", slices_dir, "--classes", "AD", "--model_dir", folder, "--device", "cpu"]
    flags += ["--epochs", 1, "--eval_every", 0, "--set", "lr_critic=0.003", "mapping_layers=3"]
    with pytest.MonkeyPatch.context() as patch:
        leave_plots_out(patch)
        assert train.main(list(map(str, flags))) == 0
    return str(folder / "AD")


def test_a_run_resumed_on_another_kind_of_device_keeps_what_it_was_begun_with(cpu_run):
    network, loss, resumed = choose_recipe(parse(), CUDA, kept_settings(read_run(cpu_run)))
    assert (network, loss) == ("thin", "wgan-gp")
    sizes = {"channel_base": 128, "channel_max": 8, "mapping_layers": 3}
    assert resumed == RECIPES["thin", "wgan-gp"]._replace(lr_critic=0.003, **sizes)
    network, loss, other = choose_recipe(parse("--loss", "relativistic"), CUDA, kept_settings(read_run(cpu_run)))
    assert loss == "relativistic" and other == resumed  # the numbers that it was begun with


def test_a_resumed_run_keeps_its_loss_and_every_number(tmp_path, slices_dir, unplotted, capsys):
    given = ["--loss", "relativistic", "--lambda_gp", 2, "--set", "n_critic=3", "lr_decay=0.5", "ema_kimg=4", "gp_every=2"]
    assert start(slices_dir, tmp_path, "--epochs", 1, *given) == 0
    before = json.loads((tmp_path / "AD/config.json").read_text())["flags"]
    assert {name: before[name] for name in ("n_critic", "lr_decay", "ema_kimg")} == {"n_critic": 3, "lr_decay": 0.5, "ema_kimg": 4}
    assert "set" not in before
    capsys.readouterr()
    assert start(slices_dir, tmp_path, "--epochs", 2) == 0
    err = capsys.readouterr().err
    assert "relativistic: batch 4" in err and "3 critic updates" in err and "other flags" not in err


@pytest.mark.slow
def test_a_run_begun_with_mirroring_keeps_it_with_a_note_unless_told_otherwise(tmp_path, slices_dir, unplotted, capsys):
    assert start(slices_dir, tmp_path, "--epochs", 1, "--mirror", "True") == 0
    assert torch.load(tmp_path / "AD" / "generator.pt", weights_only=True)["mirror"] is True
    assert "note:" not in capsys.readouterr().err
    assert start(slices_dir, tmp_path, "--epochs", 2, "--dry_run") == 0
    captured = capsys.readouterr()
    assert f"note: {tmp_path / 'AD'} was begun with mirrored slices and keeps them; --mirror False ends it" in captured.err
    assert "at 32x32, mirrored at random" in captured.out
    assert start(slices_dir, tmp_path, "--epochs", 2, "--mirror", "False", "--dry_run") == 0
    captured = capsys.readouterr()
    assert "--mirror False (was True)" in captured.err and "mirrored" not in captured.out


@pytest.mark.slow
@pytest.mark.parametrize("mirror", [True, False])
def test_a_run_draws_batches_of_real_and_held_out_slices_mirrored_only_if_asked(
    tmp_path, slices_dir, unplotted, monkeypatch, mirror
):
    asked, draw = [], train.batches

    def batches(slices, batch_size, device, seed, start_step=0, mirror=None, **place):
        asked.append(mirror)
        return draw(slices, batch_size, device, seed, start_step, mirror, **place)

    monkeypatch.setattr(train, "batches", batches)
    flags = ["--validation_dir", os.path.join(os.path.dirname(slices_dir), "test"), "--augment", "ada", "--mirror", mirror]
    assert start(slices_dir, tmp_path, "--epochs", 1, *flags) == 0
    assert asked == [mirror, mirror]


@pytest.mark.slow
def test_adnis_metadata_above_the_slices_is_found_and_tells_people(slices_dir, tmp_path, capsys, unplotted):
    shutil.copytree(os.path.dirname(slices_dir), tmp_path / "ADNI/AD_NC")
    entries = {f"{100 + i}": {"raw": f"ADNI_002_S_000{i // 2}.nii", "label": 1 if i == 8 else 2} for i in range(9)}
    (tmp_path / "ADNI/meta_data_with_label.json").write_text(json.dumps(entries))
    folder, other = (str(tmp_path / "ADNI/AD_NC" / split) for split in ("train", "test"))
    assert start(folder, tmp_path / "model", "--eval_every", 1, "--validation_dir", other, "--dry_run") == 0
    err = capsys.readouterr().err
    assert "meta_data_with_label.json tells whose the slices are (5 people, 9 scans)" in err
    assert "108 in AD and NC but of group MCI" in err
    assert "warning: 3 of 3 people of the validation slices are trained on, too" in err
    table = tmp_path / "people.csv"
    table.write_text("image,subject\n" + "".join(f"{100 + i},p{i // 2}\n" for i in range(9)))
    assert start(slices_dir, tmp_path / "other", "--epochs", 1, "--subjects", table) == 0
    assert json.loads((tmp_path / "other/AD/config.json").read_text())["flags"]["subjects"] == str(table)
    with pytest.raises(UserError, match="--subjects .*none.csv: cannot be read"):
        start(slices_dir, tmp_path / "model", "--subjects", tmp_path / "none.csv")


def test_dry_run_of_the_same_command_says_that_the_run_will_be_resumed(cpu_run, slices_dir, capsys):
    flags = ["--dataset_dir", slices_dir, "--classes", "AD", "--model_dir", os.path.dirname(cpu_run), "--resolution", "32"]
    assert train.main([*flags, "--device", "cpu", "--dry_run"]) == 0  # the run has other channels than a CPU's default
    assert "(to be resumed)" in capsys.readouterr().out


@pytest.mark.parametrize("resolution", [32, 256])
def test_a_large_network_on_a_cpu_comes_with_a_note_whose_flags_parse(tmp_path, slices_dir, resolution, capsys):
    assert start(slices_dir, tmp_path / "model", "--dry_run", "--resolution", resolution) == 0
    note = re.search("note: .*GPU.*long; (.*) learns in minutes", capsys.readouterr().err)
    assert (note is not None) == (resolution == 256)
    if note:
        assert parse(*note[1].split()).resolution == 64


@pytest.mark.slow
def test_other_flags_and_another_pytorch_are_noted(tmp_path, slices_dir, unplotted, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "1.0")
        assert start(slices_dir, tmp_path, "--epochs", 1) == 0
    capsys.readouterr()
    assert start(slices_dir, tmp_path, "--epochs", 2, "--lr", 1e-3, "--loss", "logistic") == 0
    (note,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note:")]
    for change in ("--lr 0.001 (was 0.002)", "--loss logistic (was wgan-gp)", f"PyTorch {torch.__version__} (was 1.0)"):
        assert change in note
    assert "--epochs" not in note


# ---------------------------------------------------------------------------------------------------------------------
# Learning rates


def test_decay_factor_is_one_then_falls_linearly_to_zero():
    assert [decay_factor(done, 0.5) for done in (0, 0.5, 0.75, 1, 1.2)] == [1, 1, 0.5, 0, 0]
    assert [decay_factor(done, 1) for done in (0, 0.25, 1)] == [1, 0.75, 0]


def rates(folder):
    return [row["lr"] for row in read_table(folder / "losses.csv")]


def optimizer_rates(state):
    return [state[name]["param_groups"][0]["lr"] for name in ("model_optimizer", "critic_optimizer")]


@pytest.mark.slow
def test_learning_rates_fall_to_zero_in_the_last_share_of_the_epochs(tmp_path, slices_dir, unplotted):
    start(slices_dir, tmp_path, "--epochs", 8, "--save_every", 1, "--lr", 0.004, "--set", "lr_critic=0.001", "lr_decay=0.5")
    assert rates(tmp_path / "AD") == pytest.approx([0.004 * min(1, (16 - step) / 8) for step in range(1, 16, 2)])  # of the 2nd step
    state = checkpoint(tmp_path / "AD")
    assert optimizer_rates(state) == pytest.approx([0.004 / 8, 0.001 / 8]) and state["lr_decay"] == pytest.approx(1 / 8)


@pytest.mark.slow
def test_a_run_of_some_minutes_that_is_resumed_never_raises_its_learning_rates(tmp_path, slices_dir, log_steps, ticking):
    log_steps(1)
    flags = ["--epochs", 1000, "--max_minutes", 1, "--lr", 0.004, "--set", "lr_critic=0.001", "lr_decay=0.5"]
    assert start(slices_dir, tmp_path, *flags) == 0
    first = rates(tmp_path / "AD")
    assert 10 < len(first) < 60 and first[0] == 0.004 and first == sorted(first, reverse=True)
    left = checkpoint(tmp_path / "AD")["lr_decay"]
    assert first[-1] == pytest.approx(0.004 * left, rel=1e-5) and left < 0.2
    assert start(slices_dir, tmp_path, *flags) == 0
    both = rates(tmp_path / "AD")
    assert len(both) > len(first) + 10 and both == sorted(both, reverse=True) and both[len(first)] == first[-1]
    assert checkpoint(tmp_path / "AD")["lr_decay"] <= left


@pytest.fixture
def decayed(tmp_path, slices_dir, unplotted):
    """The parent folder of a run of two epochs that the decay has brought down to a quarter of its learning rates."""
    start(slices_dir, tmp_path, "--epochs", 2, "--lr", 0.004, "--set", "lr_critic=0.001")
    state = checkpoint(tmp_path / "AD")
    assert state.pop("checksum") and state["lr_decay"] == 1
    save_tensors(state | {"lr_decay": 0.25}, tmp_path / "AD/checkpoint.pt")
    return tmp_path


RATES = ["--save_every", 1, "--lr", 0.004, "--set", "lr_critic=0.001"]


@pytest.mark.slow
def test_a_resumed_run_continues_at_the_learning_rate_that_lr_decay_left(decayed, slices_dir, capsys):
    start(slices_dir, decayed, "--epochs", 8, *RATES, "lr_decay=0.5")
    expected = [0.004 * min(0.25, (16 - step) / 8) for step in range(5, 16, 2)]
    assert rates(decayed / "AD")[-6:] == pytest.approx(expected)  # rather than 1, as in a run of eight epochs
    assert optimizer_rates(checkpoint(decayed / "AD")) == pytest.approx([0.004 / 8, 0.001 / 8])
    note = f"note: {decayed / 'AD'} resumes at 0.25 of its learning rates; --set lr_decay=0 resets them\n"
    assert capsys.readouterr().out.count(note) == 1


@pytest.mark.slow
def test_lr_decay_0_resets_the_learning_rate(decayed, slices_dir, capsys):
    capsys.readouterr()
    start(slices_dir, decayed, "--epochs", 4, *RATES, "lr_decay=0")
    assert rates(decayed / "AD")[-2:] == [0.004, 0.004] and "resumes at" not in capsys.readouterr().out
    state = checkpoint(decayed / "AD")
    assert state["lr_decay"] == 1 and optimizer_rates(state) == [0.004, 0.001]
    start(slices_dir, decayed, "--epochs", 6, *RATES, "lr_decay=0.2")  # decays from the full rate again, in its last 2.4 steps
    assert (
        rates(decayed / "AD")[-2:] == pytest.approx([0.004, 0.004 / 2.4], rel=1e-5) and "resumes at" not in capsys.readouterr().out
    )


# ---------------------------------------------------------------------------------------------------------------------
# Logging and evaluating


def test_the_last_row_may_average_fewer_steps(tmp_path, slices_dir, log_steps):
    log_steps(4)
    start(slices_dir, tmp_path, "--epochs", 3)
    assert [row["step"] for row in read_table(tmp_path / "AD/losses.csv")] == [4, 6]


@pytest.mark.slow
def test_a_run_is_evaluated_every_so_many_epochs_and_at_its_end(tmp_path, slices_dir, validations, monkeypatch):
    kids, _ = validations
    kids += range(100)
    start(slices_dir, tmp_path / "a", "--epochs", 5, "--eval_every", 2)
    assert [row["epoch"] for row in read_table(tmp_path / "a/AD/evaluations.csv")] == [2, 4, 5]
    start(slices_dir, tmp_path / "b", "--epochs", 10**6, "--eval_every", 10**6, "--max_minutes", 1e-9)
    (row,) = read_table(tmp_path / "b/AD/evaluations.csv")  # when time is over, too: after one step
    assert row["images"] == checkpoint(tmp_path / "b/AD")["images"] == 4
    monkeypatch.delattr(train, "Validation")
    start(slices_dir, tmp_path / "c", "--epochs", 1, "--eval_every", 0)
    assert read_table(tmp_path / "c/AD/evaluations.csv") == [] and not (tmp_path / "c/AD/best.pt").exists()


@pytest.mark.slow
def test_evaluations_run_on_micro_batches(tmp_path, slices_dir, monkeypatch, unplotted):
    sizes = []

    class Recorder:
        def __init__(self, *_):
            pass

        def __call__(self, averaged, critic, batch_size):
            sizes.append(batch_size)
            return dict.fromkeys(train.VALIDATION, 0.0)

    monkeypatch.setattr(train, "Validation", Recorder)
    for accum in (1, 4):
        start(slices_dir, tmp_path / str(accum), "--epochs", 1, "--batch_size", 16, "--grad_accum", accum, "--eval_every", 1)
    assert sizes == [16, 4]


@pytest.mark.slow
def test_runs_of_the_same_seed_are_identical_and_of_another_are_not(tmp_path, slices_dir, unplotted):
    for name, epochs, seed in (("a", 8, 3), ("b", 8, 3), ("c", 1, 3), ("d", 1, 4)):
        start(slices_dir, tmp_path / name, "--epochs", epochs, "--seed", seed)
    a, b, c, d = (checkpoint(tmp_path / name / "AD") for name in "abcd")
    assert a["images"] == 64 and same_checkpoints(a, b)
    assert not any(same_checkpoints(c[part], d[part]) for part in ("model", "critic", "averaged", "rng"))


# ---------------------------------------------------------------------------------------------------------------------
# Alerts, provoked


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, spoil",
    [
        (None, lambda images: images.tanh()),
        ("generator collapsed", lambda images: images.mean(0, keepdim=True).expand_as(images)),
        ("generator black", lambda images: 0.01 * images - 1),
        ("generator saturated", lambda images: 100 * (images + 1)),
    ],
)
def test_a_failing_generator_raises_its_alert_once(tmp_path, slices_dir, monkeypatch, log_steps, capsys, name, spoil):
    log_steps(1)
    forward = Generator.forward
    monkeypatch.setattr(Generator, "forward", lambda self, *args, **kwargs: spoil(forward(self, *args, **kwargs)))
    assert start(slices_dir, tmp_path, "--epochs", 4) == 0  # eight steps, so eight rows
    lines = alert_lines(tmp_path / "AD")
    if name is None:
        assert lines == []
    else:
        assert [line.startswith(name) for line in lines].count(True) == 1
        assert f"{tmp_path}/AD: {name}: " in capsys.readouterr().out  # says which run it is


@pytest.mark.slow
def test_an_overfitting_critic_raises_its_alert_once(tmp_path, slices_dir, monkeypatch, unplotted):
    class Overfitting:
        def __init__(self, *_):
            pass

        def __call__(self, *_):
            return dict.fromkeys(train.VALIDATION, 0.0) | {"overfitting": 0.75}

    monkeypatch.setattr(train, "Validation", Overfitting)
    start(slices_dir, tmp_path, "--epochs", 3, "--eval_every", 1)
    (line,) = alert_lines(tmp_path / "AD")
    assert line.startswith("critic overfits") and "75%" in line
    assert len(read_table(tmp_path / "AD/evaluations.csv")) == 3


# ---------------------------------------------------------------------------------------------------------------------
# Gradients that are not finite


def is_finite(folder):
    state = checkpoint(folder)
    return all(
        torch.as_tensor(value).isfinite().all()
        for part in ("model", "critic", "averaged", "augmentation", "path_length")
        for value in state[part].values()
    )


def adam_steps(folder, name):
    """Steps that Adam has taken, of each weight."""
    return {state["step"].item() for state in checkpoint(folder)[name]["state"].values()}


@pytest.fixture
def poison(monkeypatch):
    """poison(calls): real slices are nan in the training steps of these numbers, counted from now over all steps taken."""

    def poison(calls):
        count, split = iter(range(10**6)), training_step.split_batch

        def poisoned(state, step, batch):
            return split(state, step, batch._replace(images=batch.images * math.nan) if next(count) in calls else batch)

        monkeypatch.setattr(train, "split_batch", poisoned)

    return poison


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags, updates",
    [
        (["--loss", "wgan-gp", "--augment", "ada"], 8),
        (["--loss", "logistic", "--set", "path_length=2"], 8),
        (["--loss", "relativistic", "--augment", "ada", "--set", "n_critic=2"], 4),
    ],
)
def test_a_step_with_such_gradients_is_skipped_and_reported(tmp_path, slices_dir, log_steps, poison, flags, updates):
    log_steps(2)
    poison({4})
    assert start(slices_dir, tmp_path, "--epochs", 4, *flags) == 0
    assert [row["skipped"] for row in read_table(tmp_path / "AD/losses.csv")] == [0, 0, 1, 1]
    assert alert_lines(tmp_path / "AD") == ["skipped 1 of the 2 steps before step 6: their gradients are not finite"]
    assert is_finite(tmp_path / "AD") and checkpoint(tmp_path / "AD")["images"] == 32
    assert adam_steps(tmp_path / "AD", "critic_optimizer") == {7}  # of eight
    assert adam_steps(tmp_path / "AD", "model_optimizer") == {updates - 1}
    assert all(math.isfinite(row["critic_loss"]) for row in read_table(tmp_path / "AD/losses.csv"))


@pytest.mark.slow
def test_a_path_length_that_is_not_finite_skips_the_generator_s_step_alone(tmp_path, slices_dir, log_steps, monkeypatch):
    log_steps(1)
    forward, calls = PathLength.forward, []

    def spoilt(self, images, ws, rng=None):
        calls.append(len(images))
        return forward(self, images * (math.nan if len(calls) == 2 else 1), ws, rng)

    monkeypatch.setattr(PathLength, "forward", spoilt)
    monkeypatch.setattr(training_step, "PATH_LENGTH_EVERY", 2)
    start(slices_dir, tmp_path, "--epochs", 3, "--set", "path_length=2")
    assert calls == [2, 2, 2] and is_finite(tmp_path / "AD")
    assert [row["skipped"] for row in read_table(tmp_path / "AD/losses.csv")] == [0, 0, 1, 1, 1, 1]
    assert adam_steps(tmp_path / "AD", "model_optimizer") == {5} and adam_steps(tmp_path / "AD", "critic_optimizer") == {6}


@pytest.mark.slow
# 20 steps of two an epoch, saved every eight; six after the first eight are bad, the first time; in rows of eight or of two
@pytest.mark.parametrize("steps_per_row", [8, 2])
def test_many_such_steps_go_back_to_the_checkpoint_with_half_the_rate(
    tmp_path, slices_dir, log_steps, poison, capsys, steps_per_row
):
    log_steps(steps_per_row)
    poison(range(8, 8 + train.MAX_SKIPPED + 1))
    assert start(slices_dir, tmp_path, "--epochs", 10, "--save_every", 4, "--lr", 0.004, "--set", "lr_critic=0.008") == 0
    (line,) = [line for line in alert_lines(tmp_path / "AD") if "went back" in line]
    assert "not finite: went back to 0.0 kimg and continues with half the learning rates" in line
    rows = read_table(tmp_path / "AD/losses.csv")
    assert [row["step"] for row in rows] == ([8, 16, 20] if steps_per_row == 8 else list(range(2, 21, 2)))  # none twice or missing
    assert [row["lr"] for row in rows] == [0.004 if row["step"] <= 8 else 0.002 for row in rows]
    assert is_finite(tmp_path / "AD") and all(row["skipped"] == 0 for row in rows)
    assert capsys.readouterr().out.count("went back") == 1
    state = checkpoint(tmp_path / "AD")
    assert state["images"] == 80 and optimizer_rates(state) == [0.002, 0.004]
    start(slices_dir, tmp_path, "--epochs", 11, "--lr", 0.004, "--set", "lr_critic=0.008")  # and so after the next resume
    assert rates(tmp_path / "AD")[-1] == 0.002 and optimizer_rates(checkpoint(tmp_path / "AD")) == [0.002, 0.004]


@pytest.mark.slow
def test_a_few_such_steps_are_no_reason_to_go_back(tmp_path, slices_dir, log_steps, poison):
    log_steps(1)
    poison(set(range(1, 8)) - {3})  # two, a good one, four
    start(slices_dir, tmp_path, "--epochs", 4)
    rows = read_table(tmp_path / "AD/losses.csv")
    assert [row["skipped"] for row in rows] == [0, 1, 2, 2, 3, 4, 5, 6] and rows[-1]["lr"] == rows[0]["lr"]


@pytest.mark.slow
def test_going_back_repeats_the_same_batches_and_latents(tmp_path, slices_dir, unplotted, poison):
    """What follows equals a run that was stopped at the checkpoint and resumed with half the rate."""
    start(slices_dir, tmp_path / "a", "--epochs", 4, "--lr", 0.004)
    start(slices_dir, tmp_path / "a", "--epochs", 8, "--lr", 0.002, "--set", "lr_critic=0.002")
    poison(range(8, 16))
    start(slices_dir, tmp_path / "b", "--epochs", 8, "--save_every", 4, "--lr", 0.004)
    stopped, went_back = (checkpoint(tmp_path / name / "AD") for name in "ab")
    assert (stopped["lr_scale"], went_back["lr_scale"]) == (1, 0.5)
    assert all(same_checkpoints(stopped[part], went_back[part]) for part in ("model", "critic", "averaged", "rng"))


@pytest.mark.slow
@pytest.mark.parametrize("resumed", [False, True])
def test_going_back_twice_ends_the_run_and_keeps_the_checkpoint(tmp_path, slices_dir, log_steps, poison, resumed):
    log_steps(8)
    poison(range(8, 16) if resumed else range(8, 10**6))
    expected = "not finite again, after going back to a checkpoint once .*the last checkpoint is kept, .* lower --lr"
    if resumed:
        assert start(slices_dir, tmp_path, "--epochs", 8, "--save_every", 4) == 0  # went back once, and ended well
        poison(range(10**6))
    else:
        start(slices_dir, tmp_path, "--epochs", 4)
        poison(range(10**6))
    before = (tmp_path / "AD/checkpoint.pt").read_bytes(), (tmp_path / "AD/generator.pt").read_bytes()
    with pytest.raises(UserError, match=expected):
        start(slices_dir, tmp_path, "--epochs", 20, "--save_every", 4)
    assert before == ((tmp_path / "AD/checkpoint.pt").read_bytes(), (tmp_path / "AD/generator.pt").read_bytes())
    images = checkpoint(tmp_path / "AD")["images"]
    assert is_finite(tmp_path / "AD") and images == (64 if resumed else 32)
    assert [row["images"] for row in read_table(tmp_path / "AD/losses.csv")] == list(range(32, images + 1, 32))


# ---------------------------------------------------------------------------------------------------------------------
# Stopping


def test_a_finished_run_says_so_and_changes_nothing(tmp_path, slices_dir, unplotted, capsys):
    start(slices_dir, tmp_path, "--epochs", 1)
    before = checkpoint(tmp_path / "AD")
    capsys.readouterr()
    assert start(slices_dir, tmp_path, "--epochs", 1) == 0
    assert "1 epochs done, 0.0 kimg; --epochs 2 would continue" in capsys.readouterr().out
    assert same_checkpoints(before, checkpoint(tmp_path / "AD"))


def test_max_minutes_saves_and_says_how_to_continue(tmp_path, slices_dir, unplotted, capsys):
    for steps in (1, 2):  # one each time
        assert start(slices_dir, tmp_path, "--epochs", 10**6, "--max_minutes", 1e-9) == 0
        assert checkpoint(tmp_path / "AD")["images"] == 4 * steps
    out, err = capsys.readouterr()
    assert "1e-09 minutes are over" in out and "the same command resumes from here" in out
    assert "images/s" in err and "Wasserstein" in err


@pytest.fixture
def signalled(monkeypatch, unplotted):
    """signalled(step, signum): this process gets a signal during the step of this number, counted from 1."""

    def signalled(number, signum):
        steps, update_critic = iter(range(1, 10**6)), training_step.update_critic

        def step(*args):
            if next(steps) == number:
                signal.raise_signal(signum)
            return update_critic(*args)

        monkeypatch.setattr(train, "update_critic", step)

    return signalled


posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to catch")


@pytest.mark.slow
@posix
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_lets_the_step_end_and_saves(tmp_path, slices_dir, signalled, name, capsys):
    signum = signal.Signals[name]
    before = signal.getsignal(signum)
    signalled(3, signum)
    assert start(slices_dir, tmp_path / "stopped", "--epochs", 9, "--save_every", 9) == 128 + signum
    out = capsys.readouterr().out
    assert f"stopped by {name}" in out and "the same command resumes" in out and out.count("\n") == 1
    assert checkpoint(tmp_path / "stopped/AD")["images"] == 12 and signal.getsignal(signum) == before
    for folder in ("stopped", "whole"):
        assert start(slices_dir, tmp_path / folder, "--epochs", 3) == 0
    assert same_checkpoints(checkpoint(tmp_path / "stopped/AD"), checkpoint(tmp_path / "whole/AD"))


@pytest.mark.slow
@posix
def test_a_run_that_saves_by_time_resumes_from_its_last_save(tmp_path, slices_dir, monkeypatch):
    class Killed(Exception):
        pass

    def update(state, step, *rest, own=train.update_critic):
        if step == 4 and not any(folder == "whole" for folder in os.listdir(tmp_path)):
            raise Killed
        return own(state, step, *rest)

    monkeypatch.setattr(train, "update_critic", update)
    with pytest.raises(Killed):
        start(slices_dir, tmp_path / "saved", "--epochs", 9, "--save_every", "0.000001min")
    assert checkpoint(tmp_path / "saved/AD")["images"] == 16
    for folder, saves in (("saved", 99), ("whole", "90min")):
        os.makedirs(tmp_path / "whole", exist_ok=True)
        assert start(slices_dir, tmp_path / folder, "--epochs", 6, "--save_every", saves) == 0
    assert same_checkpoints(checkpoint(tmp_path / "saved/AD"), checkpoint(tmp_path / "whole/AD"))


@posix
@pytest.mark.slow
def test_a_second_signal_ends_the_save_of_the_first_and_keeps_the_old_checkpoint(tmp_path, slices_dir, signalled, monkeypatch):
    start(slices_dir, tmp_path, "--epochs", 1)
    before = checkpoint(tmp_path / "AD")
    save_tensors = checkpoint_module.save_tensors

    def slow(state, path):
        save_tensors(state, path)
        monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: time.monotonic() + 3))
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(checkpoint_module, "save_tensors", slow)
    signalled(1, signal.SIGTERM)
    with pytest.raises(utils.Interrupted, match="SIGINT"):
        start(slices_dir, tmp_path, "--epochs", 9, "--save_every", 9)
    assert same_checkpoints(before, checkpoint(tmp_path / "AD"))
    assert not [name for name in os.listdir(tmp_path / "AD") if name.startswith(".tmp-")]


@pytest.mark.slow
@posix
def test_a_signalled_process_saves_in_spite_of_an_echo_of_the_signal(tmp_path, slices_dir):
    process = subprocess.Popen(
        train_command(slices_dir, tmp_path, "--epochs", 10**6, script=os.path.join(ROOT, "train.py")),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    losses = tmp_path / "AD/losses.csv"
    while not (losses.exists() and losses.read_text().count("\n") > 1):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.05)
    process.send_signal(signal.SIGTERM)  # as from `timeout`, which signals a process and then its group
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM" in out and out.count("\n") == 1
    assert checkpoint(tmp_path / "AD")["images"] > 0


# ---------------------------------------------------------------------------------------------------------------------
# Refusing


def test_doubtful_slices_are_named_before_training(tmp_path, slices_dir, capsys):
    """NC of 12 bits in a folder CN; then an AD that is nearly black."""
    shutil.copytree(slices_dir, tmp_path / "train")
    (tmp_path / "train/NC").rename(tmp_path / "train/CN")
    for path in (tmp_path / "train/CN").iterdir():
        pixels = read_image(path).astype(np.uint16) * 16
        Image.fromarray(pixels).save(path)
    flags = ["--classes", "all", "--dry_run", "--eval_every", 1]
    assert start(str(tmp_path / "train"), tmp_path / "runs", *flags) == 0
    error = capsys.readouterr().err
    for expected in (
        f"note: {tmp_path / 'train/CN'} is read as class NC",
        f"warning: {tmp_path / 'train'}: values read as black and white, decided for each folder: NC 0 and 4095 (16-bit)",
        "files of several kinds, which may differ in brightness: AD ",
    ):
        assert error.count(expected) == 1, error
    for path in (tmp_path / "train/AD").iterdir():
        Image.fromarray(np.zeros((32, 32), np.uint8)).save(path)
    with pytest.raises(UserError, match=f"^--dataset_dir {tmp_path / 'train'}: AD is nearly black"):
        start(str(tmp_path / "train"), tmp_path / "runs", *flags)


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--validation_dir", "nowhere"], "^--validation_dir nowhere: no such folder"),
        (["--validation_dir", ROOT], "^--validation_dir .*: no folder AD"),
        (["--augment", "much"], "--augment"),
        (["--loss", "hinge"], "--loss"),
        *((["--save_every", text], f"--save_every: {text!r} is neither epochs") for text in ("0", "0min", "nanmin", "2.5", "5m")),
        (["--set", "gp_every=0"], "--set: gp_every: 0 is out of range: at least 1"),
        (["--set", "lr_critic=0.1", "n_critic=0"], "--set: n_critic: 0 is out of range"),
        (["--set", "n_critic=1.5"], "--set: n_critic: '1.5' is not a whole number"),
        (["--set", "style_mixing=2"], "--set: style_mixing: 2 is out of range: at least 0, at most 1"),
        (["--set", "path_length=-1"], "--set: path_length"),
        (["--set", "ema_kimg=0"], "--set: ema_kimg: 0 is out of range: above 0"),
        (["--set", "lr_critic=nan"], "--set: lr_critic: nan is out of range"),
        (["--set", "lr_critic"], "--set: 'lr_critic' is not NAME=NUMBER: NAME is one of mapping_layers, lr_critic"),
        (["--set", "hinge=1"], "--set: 'hinge=1' is not NAME=NUMBER: NAME is one of mapping_layers, lr_critic, n_critic,"),
        (["--set", "lr=0.1"], "--set: 'lr=0.1' is not NAME=NUMBER: lr has a flag of its own, --lr"),
        (["--set"], "--set"),
        (["--augment", "fixed"], "--augment"),
        (["--eval_every", -1], "--eval_every"),
        (["--dataset_dir", "nowhere"], "--dataset_dir nowhere"),
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
def test_bad_flags_are_refused_by_name(slices_dir, tmp_path, flags, expected):
    line = refusal(
        train.main,
        *[*TINY, "--classes", "AD", "--dataset_dir", slices_dir, "--model_dir", tmp_path / "model", "--eval_every", 1, *flags],
    )
    assert re.search(expected, line), line
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
@pytest.mark.parametrize("flag, value", [("--lr", "nan"), ("--dataset_dir", "nowhere")])  # before and after PyTorch is imported
def test_command_refuses_in_one_line(refused, slices_dir, tmp_path, flag, value):
    assert flag in refused("train.py", *TINY, "--dataset_dir", slices_dir, "--model_dir", tmp_path, flag, value)
