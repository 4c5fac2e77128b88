"""Growing training: the schedule, what carries over from stage to stage, and runs that grow, stop, resume and start from others."""

import math
import os
import signal
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from conftest import NETWORK, ROOT, TINY, UNPLOTTED, checkpoint, make_once, read_table, same_checkpoints, seeded_rng, start
from PIL import Image
from plain_options import plain_options
from reference import direct_upsample

import train
from analysis.models import generate, load_model, share
from analysis.style_maps import history, map_specs
from modules import Discriminator, build_generator, build_networks
from ops import resample
from report import figures
from training import growth, validation
from training import state as state_module
from training.flags import choose_recipe, kept_sizes, parse_args
from training.growth import Fade, Stage, check_source, grow, read_source, resolution_at, set_fade, stage_shares, upscaled
from training.loss import LOSSES
from training.slices import RunSlices
from training.step import Batch, TrainingState, train_step
from training.validation import Validation
from utils import UserError, load_tensors, read_network, save_tensors

CPU = torch.device("cpu")
SMALL, LARGE = NETWORK | {"resolution": 16}, NETWORK | {"resolution": 64}
RUN = ["--resolution", 64, "--grow", "True", "--loss", "relativistic", "--set", "gp_every=2"]


# ---------------------------------------------------------------------------------------------------------------------
# The schedule


@pytest.mark.parametrize("resolution, first", [(32, 16), (64, 16), (256, 16), (1024, 16), (256, 128), (64, 64)])
def test_stages_double_in_resolution_and_take_growing_shares_of_the_whole_run(resolution, first):
    shares = stage_shares(first, resolution)
    sizes, ends = list(shares), list(shares.values())
    assert sizes[0] == first and sizes[-1] == resolution and all(b == 2 * a for a, b in zip(sizes, sizes[1:]))
    lengths = np.diff([0, *ends])
    assert ends[-1] == 1 and lengths[0] > 0 and (np.diff(lengths) > -1e-12).all()
    assert lengths[-1] / lengths[0] == pytest.approx(min(4 ** (len(sizes) - 1), growth.LONGEST))


def test_a_run_without_growing_is_one_stage():
    assert stage_shares(16, 64, growing=False) == {64: 1.0} and growth.first_resolution(64, growing=False) == 64


def test_resolution_rises_at_the_end_of_each_share_and_stays_at_the_last():
    shares = {16: 0.25, 32: 0.5, 64: 1.0}
    assert [resolution_at(shares, done) for done in (0, 0.2499, 0.25, 0.4999, 0.5, 0.99, 1, 1.5)] == [
        16,
        16,
        32,
        32,
        64,
        64,
        64,
        64,
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Carrying over


@pytest.fixture
def float64():
    """Everything in float64, where two ways of computing agree to rounding errors of about 1e-12."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def state_of(network, **options):
    return TrainingState(
        plain_options(**{"batch_size": 4, "loss": "relativistic"} | options), network, CPU, torch.get_default_dtype()
    )


def random_images(count, side):
    return torch.randn(count, 1, side, side, generator=seeded_rng(side)).clamp(-1, 1)


def train_some(state, steps=4):
    """Steps on random images, so that no weight, bias, average or moment is as it was at the start."""
    labels, told = torch.arange(4) % 2, state.critic.embedding
    if told is None or told.num_values:
        labels = None if told is None else torch.stack([labels, 60 + torch.arange(4)], 1).double()
    for step in range(steps):
        train_step(state, step, Batch(random_images(4, state.resolution), labels))
    return state


@pytest.fixture
def grown(float64):
    """A trained state at 16x16 and what it becomes at 64x64."""
    small = train_some(state_of(SMALL, augment="ada", path_length=1.0))
    return small, grow(small, state_of(LARGE, augment="ada", path_length=1.0, seed=9))


@pytest.mark.parametrize("size", [2, 8])
def test_resample_averages_squares_of_pixels(size):
    images = random_images(2, 16)
    expected = images.reshape(2, size, 16 // size, size, 16 // size).mean((2, 4))
    torch.testing.assert_close(resample(images, size)[:, 0], expected)
    assert resample(images, 16) is images


def test_resample_upsamples_with_black_beyond_the_border():
    images = random_images(1, 4)
    expected = direct_upsample(direct_upsample(images[0, 0].double().numpy() + 1)) - 1
    np.testing.assert_allclose(resample(images, 16)[0, 0], expected, atol=1e-6)


@pytest.mark.parametrize("averaged", [False, True])
def test_a_larger_generator_begins_with_the_images_upsampled(grown, averaged):
    small, large = ((state.averaged if averaged else state.model) for state in grown)
    z = torch.randn(3, 16)
    images = [model["generator"](model["mapping"](z), noise="fixed") for model in (small, large)]
    torch.testing.assert_close(images[1], resample(images[0], 64), rtol=1e-12, atol=1e-12)
    assert images[0].std() > 0


def test_a_larger_critic_begins_with_the_scores_of_means_of_pixels(grown):
    small, large = grown
    images = random_images(4, 64)
    means = images.reshape(4, 1, 16, 4, 16, 4).mean((3, 5))
    torch.testing.assert_close(large.critic(images), small.critic(means), rtol=1e-12, atol=1e-12)


def test_a_critic_that_has_faded_in_is_the_plain_one(grown):
    _, large = grown
    plain, images = Discriminator(64, 128, 8), random_images(4, 64)
    plain.load_state_dict(large.critic.state_dict())  # nothing of the fade is in it
    large.critic.fade.alpha = 1.0
    assert torch.equal(large.critic(images), plain(images))
    large.critic.fade.alpha = 0.5
    assert (large.critic(images) - plain(images)).abs().min() > 1e-6


def test_fade_blends_old_and_new_features_linearly(grown):
    small, _ = grown
    fade, images, x = Fade(16, small.critic.from_image), random_images(2, 32), torch.randn(2, 8, 16, 16)
    old = torch.nn.functional.leaky_relu(small.critic.from_image(resample(images, 16)), 0.2)
    for fade.alpha in (0.0, 0.3, 0.8, 1.0):
        torch.testing.assert_close(fade(images, x), (1 - fade.alpha) * old + fade.alpha * x, rtol=1e-12, atol=1e-12)


def test_fade_rises_with_the_images_of_its_stage_and_ends():
    critic = types.SimpleNamespace(fade=types.SimpleNamespace(alpha=None))
    stage, alphas = Stage(32, images=400, fade_images=40), []
    for images in range(400, 480, 8):
        set_fade(critic, stage, images)
        alphas += [critic.fade.alpha] if critic.fade else []
    assert alphas == pytest.approx([0, 0.2, 0.4, 0.6, 0.8]) and critic.fade is None


def test_growing_keeps_the_critic_s_gradient_with_respect_to_means_of_pixels(grown):
    """That with respect to each of the 16 pixels of a mean is a sixteenth of it, and the squared norm a sixteenth, too."""
    small, large = grown
    real, fake = random_images(4, 64), random_images(4, 64).flip(0).tanh()
    before = LOSSES["relativistic"].penalty(small.critic, *(resample(images, 16) for images in (real, fake)))[0]
    after = LOSSES["relativistic"].penalty(large.critic, real, fake)[0]
    torch.testing.assert_close(after, before / 16, rtol=1e-10, atol=0)


def moments_by_name(module, optimizer):
    return {name: optimizer.state.get(weight, {}) for name, weight in module.named_parameters()}


def test_moments_go_with_their_weights_and_new_weights_have_none(grown):
    small, large = grown
    for part, is_new in (
        ("model", lambda name: name.startswith(("generator.blocks.3.", "generator.blocks.4."))),
        ("critic", lambda name: name.startswith(("from_image.", "blocks.0.", "blocks.1."))),
    ):
        before, after = (moments_by_name(getattr(state, part), state.parts[f"{part}_optimizer"]) for state in grown)
        weights = dict(getattr(large, part).named_parameters())
        for name, moments in after.items():
            if is_new(name):
                assert not moments
                continue
            old_name = name if part == "model" else growth.critic_name(name, -2)
            assert moments["step"] == 4 and torch.equal(moments["exp_avg_sq"], before[old_name]["exp_avg_sq"])
            assert moments["exp_avg_sq"].stride() == weights[name].stride()  # fused Adam walks through both in memory order
        assert 2 * sum(map(is_new, after)) < len(after)
    train_some(large, 1)  # and they can be used
    assert {float(moments["step"]) for moments in moments_by_name(large.critic, large.critic_optimizer).values()} == {1, 5}


def test_random_numbers_continue(grown):
    small, large = grown
    assert torch.equal(torch.randn(5, generator=large.rng), torch.randn(5, generator=small.rng))


def test_augmentation_and_path_length_carry_over(grown):
    small, large = grown
    assert small.path_length.mean > 0 and torch.equal(small.path_length.mean, large.path_length.mean)
    small.augmentation.p += 0.25
    assert torch.equal(grow(small, state_of(LARGE, augment="ada")).augmentation.p, small.augmentation.p)


@pytest.mark.slow
def test_new_weights_learn_from_the_first_step_on(grown):
    _, large = grown
    before = {name: value.clone() for name, value in large.model["generator"].blocks[-1].state_dict().items()}
    critic_before = large.critic.blocks[0].conv1.weight.clone()
    large.critic.fade.alpha = 0.1
    train_some(large, 3)
    after = large.model["generator"].blocks[-1].state_dict()
    assert all((after[name] != value).any() for name, value in before.items() if not name.endswith("fixed_noise"))
    assert (large.critic.blocks[0].conv1.weight != critic_before).any()


@pytest.mark.parametrize("size", [16, 64])
def test_an_upscaled_generator_fits_the_network_and_draws_the_same_images(grown, size):
    small = grown[0].averaged
    large = upscaled(small, SMALL | {"resolution": size})
    build_generator(SMALL | {"resolution": size}).load_state_dict(large.state_dict())
    z = torch.randn(3, 16)
    w = small["mapping"](z)
    assert torch.equal(large["mapping"](z), w)
    expected = resample(small["generator"](w, "none"), size)
    torch.testing.assert_close(large["generator"](w, "none"), expected, rtol=1e-12, atol=1e-12)
    state = torch.random.get_rng_state()
    upscaled(small, LARGE)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.slow
def test_a_conditional_state_begins_as_the_unconditional_one_whatever_the_class(float64):
    small = train_some(state_of(SMALL))
    conditional = grow(small, state_of(LARGE | {"num_classes": 2}))
    z, images = torch.randn(4, 16), random_images(4, 64)
    w = small.model["mapping"](z)
    for label in (0, 1):
        labels = torch.full([4], label)
        torch.testing.assert_close(conditional.model["mapping"](z, labels), w, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(conditional.critic(images, labels), small.critic(resample(images, 16)), rtol=1e-12, atol=1e-12)
        assert torch.equal(conditional.averaged["mapping"].w_mean[label], small.averaged["mapping"].w_mean[0])
    train_some(conditional, 3)
    w = conditional.model["mapping"](z[:1].expand(2, -1), torch.tensor([0, 1]))
    assert (w[0] - w[1]).abs().max() > 1e-9  # and learns to tell classes apart


@pytest.mark.slow
@pytest.mark.parametrize("told", [0, 2])
def test_a_state_that_is_told_values_begins_as_one_that_is_not(float64, told):
    """The same images and scores, whatever the values; and it learns to tell these apart."""
    torch.manual_seed(0)
    small, further = train_some(state_of(SMALL | {"num_classes": told})), state_of(SMALL | {"num_classes": 2, "values": ["age"]})
    for part in (further.model["mapping"], further.averaged["mapping"], further.critic):
        part.embedding.mean.fill_(70.0)
    larger = grow(small, further)
    z, images, classes = torch.randn(4, 16), random_images(4, 16), torch.tensor([0, 1, 0, 1])
    before = classes if told else None
    labels = torch.tensor([[0, 60.0], [1, 90.0], [0, torch.nan], [1, 75.0]])
    torch.testing.assert_close(larger.model["mapping"](z, labels), small.model["mapping"](z, before), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(larger.critic(images, labels), small.critic(images, before), rtol=1e-12, atol=1e-12)
    assert larger.averaged["mapping"].embedding.mean == 70
    train_some(larger, 3)
    w = larger.model["mapping"](z[:1].expand(2, -1), labels[[0, 2]])
    assert (w[0] - w[1]).abs().max() > 1e-9


def test_validation_of_a_lower_stage_compares_at_the_final_size(monkeypatch):
    monkeypatch.setattr(validation, "VALIDATED", 8)
    monkeypatch.setattr(validation, "Features", lambda *_: lambda pixels: torch.as_tensor(pixels).flatten(1).double())
    real = np.random.default_rng(0).integers(0, 256, (12, 64, 64)).astype(np.uint8)

    class Real:
        labels = np.zeros(12, int)

        def told(self, rows):
            return self.labels[rows]

        def __len__(self):
            return 12

        def __getitem__(self, rows):
            return real[rows]

    slices = RunSlices(Real(), np.arange(12), Real(), np.arange(12), "", {"validation": {"counts": {}}}, False)
    validate = Validation(slices, 16, 0, "cpu")
    state, sizes = state_of(SMALL), []
    for block in state.averaged["generator"].blocks:
        block.to_image.weight.mul_(0.1)  # within [-1, 1], so that it does not matter at which size images are clipped
    state.averaged["generator"].blocks[-1].image_bias.zero_()
    state.critic.register_forward_hook(lambda _, inputs, __: sizes.append(inputs[0].shape[-1]))
    small = figures.resize(validate.generate(state.averaged, 8), 64)
    large = validate.generate(upscaled(state.averaged, LARGE), 8)
    assert np.abs(small.astype(int) - large).max() <= 1 and small.std() > 1
    row = validate(state.averaged, state.critic, 4)
    assert np.isfinite(row["kid"]) and np.isfinite(row["score_validation"]) and set(sizes) == {16}


# ---------------------------------------------------------------------------------------------------------------------
# Runs that grow. 9 slices in batches of 4, two an epoch.

STEPS = 2 * [16] + 5 * [32] + 21 * [64]


@pytest.fixture
def every_step(monkeypatch, unplotted):
    """Every step is a row of losses.csv."""
    monkeypatch.setattr(state_module, "LOG_STEPS", 1)


@pytest.fixture
def stop_after(monkeypatch):
    """stop_after(n): the run gets a signal to stop in its n-th step from now."""
    update_critic = train.update_critic

    def stop_after(steps):
        left = iter(range(steps - 1, -(10**9), -1))

        def stopping(*args):
            if next(left) == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            return update_critic(*args)

        monkeypatch.setattr(train, "update_critic", stopping)

    return stop_after


@pytest.fixture
def run(tmp_path, slices_dir):
    """run(name, *flags): train and return the exit status."""
    return lambda name, *more: start(slices_dir, tmp_path / name, *RUN, "--epochs", 14, *more)


@pytest.mark.slow
def test_a_run_grows_in_one_folder(tmp_path, run, every_step):
    assert run("a", "--save_every", 4) == 0
    folder = tmp_path / "a/AD"
    rows = read_table(folder / "losses.csv")
    assert [row["resolution"] for row in rows] == STEPS and [row["step"] for row in rows] == list(range(1, 29))
    for row in rows:
        sizes = {size for size in (4, 8, 16, 32, 64) if math.isfinite(row[f"std generator {size}"])}
        assert sizes == {size for size in (4, 8, 16, 32, 64) if size <= row["resolution"]}
        assert math.isfinite(row["std critic 64"]) == (row["resolution"] == 64)
    names = {"16x16.png", "32x32.png"} | {f"epoch_{i:04d}.png" for i in (0, 4, 8, 12, 14)}
    assert set(os.listdir(folder / "fake_vs_real")) == names
    state = checkpoint(folder)
    assert state["fade"] == {} and state["critic"].keys() == Discriminator(64, 128, 8).state_dict().keys()
    assert state["stage"]["resolution"] == 64 and load_model(str(folder), CPU).generator.resolution == 64


@pytest.mark.slow
def test_a_run_can_be_looked_into_at_every_stage(tmp_path, run, stop_after, unplotted):
    stop_after(6)
    assert run("a", "--save_every", 1) == 128 + signal.SIGTERM
    folder = str(tmp_path / "a/AD")
    assert checkpoint(folder)["stage"]["resolution"] == 32
    model = load_model(folder, CPU)
    (images,) = generate(model, 4, seed=0)
    assert images.shape == (4, 64, 64) and images.std() > 1
    stop_after(0)
    assert run("a", "--save_every", 1) == 0
    (spec,) = map_specs(model, model)
    epochs = [epoch for epoch, _ in history(spec)]
    assert epochs[0] == 0 and epochs[-1] == 14 and len(epochs) == 12  # of fifteen, through all stages


@pytest.mark.slow
@pytest.mark.parametrize("stops", [(1, 2, 7), (5, 14, 22)])
def test_a_run_stopped_within_and_between_stages_equals_one_that_never_stopped(
    tmp_path, run, stop_after, unplotted, monkeypatch, stops
):
    monkeypatch.setattr(growth, "FADE", 2.0)  # over 4 of 5 steps and over 14 of 21
    flags = "--augment ada --set path_length=1 style_mixing=0.5 lr_decay=0.5".split()
    assert run("whole", *flags) == 0
    before, fades = 0, []
    for steps in stops:
        stop_after(steps - before)
        assert run("stopped", *flags) == 128 + signal.SIGTERM
        state, before = checkpoint(tmp_path / "stopped/AD"), steps
        fades.append(bool(state["fade"]))
        assert state["stage"]["resolution"] == STEPS[steps - 1]
    assert fades == ([False, False, False] if stops[0] == 1 else [True, True, False])  # the fades are over when a stage ends
    stop_after(0)
    assert run("stopped", *flags) == 0
    whole, stopped = (checkpoint(tmp_path / name / "AD") for name in ("whole", "stopped"))
    assert same_checkpoints(whole, stopped) and whole["images"] == 4 * len(STEPS)


@pytest.mark.slow
def test_stages_by_time_end_at_their_share_of_the_minutes_and_never_come_back(tmp_path, slices_dir, every_step, ticking):
    flags = [*RUN, "--epochs", 10**6, "--max_minutes", 1.5]
    assert start(slices_dir, tmp_path, *flags) == 0
    sizes = [row["resolution"] for row in read_table(tmp_path / "AD/losses.csv")]
    assert sizes == sorted(sizes) and set(sizes) == {16, 32, 64}
    shares = np.cumsum([sizes.count(size) for size in (16, 32, 64)]) / len(sizes)
    np.testing.assert_allclose(shares, [1 / 21, 5 / 21, 1], atol=2 / len(sizes))  # a step at most, and the rest of its reads
    assert start(slices_dir, tmp_path, *flags) == 0
    again = [row["resolution"] for row in read_table(tmp_path / "AD/losses.csv")][len(sizes) :]
    assert again and set(again) == {64}


@pytest.mark.slow
def test_a_resumed_run_spreads_its_other_stages_over_its_minutes(tmp_path, slices_dir, every_step, stop_after, ticking):
    flags = [*RUN, "--epochs", 10**6, "--max_minutes", 1.5]
    stop_after(1)
    start(slices_dir, tmp_path, *flags)
    done = checkpoint(tmp_path / "AD")["done"]
    assert 0 < done < 1 / 21
    stop_after(0)
    start(slices_dir, tmp_path, *flags)
    sizes = [row["resolution"] for row in read_table(tmp_path / "AD/losses.csv")]
    assert sizes == sorted(sizes) and set(sizes) == {16, 32, 64} and checkpoint(tmp_path / "AD")["done"] == 1


@pytest.mark.slow
def test_gradients_that_are_not_finite_after_growing_go_back_to_the_stage_before(tmp_path, run, every_step, monkeypatch):
    count, split = iter(range(10**6)), train.split_batch

    def poisoned(state, step, batch):
        bad = 7 <= next(count) <= 7 + train.MAX_SKIPPED  # the first steps at 64x64
        return split(state, step, batch._replace(images=batch.images * math.nan) if bad else batch)

    monkeypatch.setattr(train, "split_batch", poisoned)
    assert run("a", "--save_every", 14) == 0  # and when a stage ends
    assert "went back" in (tmp_path / "a/AD/alerts.log").read_text()
    assert next(count) == len(STEPS) + train.MAX_SKIPPED + 1  # only steps at 64x64 are repeated
    assert [row["resolution"] for row in read_table(tmp_path / "a/AD/losses.csv")] == STEPS


@pytest.mark.slow
def test_a_run_grows_with_micro_batches(tmp_path, run, every_step, monkeypatch):
    sizes, update_critic = [], train.update_critic

    def recorded(state, step, micro_batches, shared):
        sizes.append([len(part.images) for part in micro_batches])
        return update_critic(state, step, micro_batches, shared)

    monkeypatch.setattr(train, "update_critic", recorded)
    assert run("a", "--batch_size", 8, "--grad_accum", 2, "--epochs", 7) == 0
    assert len(sizes) == 7 and all(parts == [4, 4] for parts in sizes)


@pytest.mark.slow
def test_two_processes_grow_together(tmp_path, slices_dir):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--standalone"]
    flags = ["--classes", "AD", "--dataset_dir", slices_dir, "--model_dir", tmp_path, "--batch_size", 8, "--epochs", 7]
    command = [*launcher, UNPLOTTED, *TINY, *RUN, *flags]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr  # saves check that the weights of both are equal
    state = checkpoint(tmp_path / "AD")
    assert state["stage"]["resolution"] == 64 and len(state["rng"]) == 2
    assert {row["resolution"] for row in read_table(tmp_path / "AD/losses.csv")} == {16, 32, 64}


@pytest.mark.slow
def test_a_direct_run_can_be_continued_by_one_that_grows_and_the_other_way_round(tmp_path, run, stop_after, every_step, capsys):
    assert run("a", "--epochs", 1, "--grow", "False") == 0
    assert run("a", "--epochs", 2) == 0
    assert {row["resolution"] for row in read_table(tmp_path / "a/AD/losses.csv")} == {64}
    assert "--grow True (was False)" in capsys.readouterr().err
    stop_after(1)
    run("b")
    stop_after(0)
    assert run("b", "--epochs", 2, "--grow", "False") == 0
    assert [row["resolution"] for row in read_table(tmp_path / "b/AD/losses.csv")] == [16, 64, 64, 64]


def test_best_generator_has_the_final_size_in_every_stage(tmp_path, slices_dir, validations):
    kids, _ = validations
    kids += [3.0, 5.0]
    assert start(slices_dir, tmp_path, *RUN, "--epochs", 14, "--eval_every", 2, "--max_minutes", 1e-9) == 0
    best = load_tensors(tmp_path / "AD/best.pt")
    build_generator(best["network"]).load_state_dict(best["weights"])
    assert best["network"]["resolution"] == 64 and checkpoint(tmp_path / "AD")["stage"]["resolution"] == 16


def test_pictures_of_a_stage_have_its_own_size(tmp_path):
    fake, real = random_images(4, 16), np.random.default_rng(0).integers(0, 256, (8, 64, 64)).astype(np.uint8)
    figures.save_fake_and_real(fake, real, "epoch 1", tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width == 2 * (4 * (128 + figures.GAP) - figures.GAP) + 3 * figures.MARGIN  # 16x16, magnified 8 times


def test_dashboard_marks_where_stages_begin(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(figures, "save_figure", lambda figure, _: drawn.append(figure))
    names = train.LOSS_COLUMNS + tuple(f"std {name}" for name in ("generator 4", "image", "critic 8"))
    losses = figures.columns(np.ones((6, len(names))), names)
    losses["images"], losses["resolution"] = 1000.0 * np.arange(1, 7), np.array([16.0, 16, 32, 32, 32, 64])
    figures.plot_dashboard(losses, figures.columns([], train.EVALUATION_COLUMNS), tmp_path / "a.png")
    for axes in drawn[0].axes:
        marks = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":"]
        assert marks == [0, 2, 5]  # thousand images when the stage before ended
        assert [text.get_text().strip() for text in axes.texts if "none yet" not in text.get_text()] == ["16", "32", "64"]


def test_dry_run_prints_the_stages(tmp_path, slices_dir, capsys):
    assert start(slices_dir, tmp_path, *RUN, "--epochs", 700, "--dry_run") == 0
    out = capsys.readouterr().out
    for expected in (
        "16x16 to 5% of the run, or 0.3 kimg\n",
        "64x64 to 100% of the run, or 5.6 kimg\n",
        "700 epochs of 2 = 1400, 6 kimg",
    ):
        assert expected in out, expected
    start(slices_dir, tmp_path, *RUN, "--grow", "False", "--dry_run")
    assert "stage " not in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------------------
# Starting from another run


@pytest.fixture(scope="session")
def source(tmp_path_factory, slices_dir):
    """The folder of a finished run at 32x32 on NC. Never write there."""

    def train_source(folder):
        assert start(slices_dir, folder, "--classes", "NC", "--epochs", 3, "--lr", 0.01) == 0

    return str(make_once(tmp_path_factory, "source", train_source) / "NC")


def first_state(folder):
    """The checkpoint that a run of one save wrote before its first step."""
    return load_tensors(os.path.join(str(folder), "previous.pt"))


def fits_within(small, large):
    """Whether every weight of a generator is found in a larger one, but for its last bias, which gives away the background."""
    last = [name for name in small if name.endswith("image_bias")][-1]
    expected = small | {last: small[last] + 1}
    return all(torch.equal(value, large[name]) for name, value in expected.items())


@pytest.mark.slow
def test_a_run_starts_from_one_of_other_classes_at_the_same_resolution(tmp_path, slices_dir, source, unplotted, capsys):
    assert start(slices_dir, tmp_path, "--epochs", 1, "--start_from", source) == 0
    before, after = checkpoint(source), first_state(tmp_path / "AD")
    assert all(same_checkpoints(before[part], after[part]) for part in ("model", "critic", "averaged"))
    assert after["images"] == 0 and after["fade"] == {} and not same_checkpoints(before["rng"], after["rng"])
    assert f"starting from {source} (0.0 kimg); new: nothing\n" in capsys.readouterr().out
    assert start(slices_dir, tmp_path, "--epochs", 2, "--start_from", source) == 0  # resumes
    assert "goes on" not in capsys.readouterr().err
    assert start(slices_dir, tmp_path, "--epochs", 3, "--start_from", "gone") == 0
    assert f"{tmp_path / 'AD'} goes on: --start_from gone is for new runs" in capsys.readouterr().err
    known, before = (load_tensors(os.path.join(run, "generator.pt"))["fingerprints"] for run in (str(tmp_path / "AD"), source))
    assert set(before.tolist()) < set(known.tolist())  # whom the other run was trained on is remembered


@pytest.mark.slow
@pytest.mark.parametrize(
    "critic, new", [(True, "Adam's moments\n"), (False, "Adam's moments, the critic, which makes slices worse")]
)
def test_a_run_starts_from_a_shared_copy_with_or_without_its_critic(tmp_path, slices_dir, source, unplotted, capsys, critic, new):
    copy = tmp_path / "copy"
    share(source, str(copy))  # float16, as the bundled ones
    saved = load_tensors(copy / "generator.pt")
    if not critic:
        save_tensors({name: part for name, part in saved.items() if name != "critic"}, copy / "generator.pt")
    assert start(slices_dir, tmp_path, "--epochs", 1, "--start_from", copy) == 0
    after = first_state(tmp_path / "AD")
    for part, copied in (("model", "weights"), ("averaged", "weights"), ("critic", "critic")):
        same = [torch.equal(value.to(after[part][name].dtype), after[part][name]) for name, value in saved[copied].items()]
        assert all(same) == (critic or part != "critic")
    assert after["images"] == 0 and after["images_before"] == checkpoint(source)["images"]
    assert after["model_optimizer"]["state"] == after["critic_optimizer"]["state"] == {}
    assert f"starting from {copy} (0.0 kimg); new: {new}" in capsys.readouterr().out


def test_the_bundled_axial_model_brings_a_critic_that_fits_its_network():
    source = read_source(os.path.join(ROOT, "models/axial/all-conditional"))
    _, critic = build_networks(source.network)
    critic.load_state_dict(source.checkpoint["critic"])
    assert source.is_copy and source.has_critic and source.network["values"] == ["position"]


@pytest.mark.slow
def test_the_carried_average_is_where_the_average_goes_on_from(tmp_path, slices_dir, source, unplotted):
    """After one step of 4 images: its half-life is a twentieth of all 36 + 4 that the networks have learnt from."""
    assert start(slices_dir, tmp_path, "--epochs", 9, "--max_minutes", 1e-9, "--start_from", source) == 0
    carried, now = checkpoint(source), checkpoint(tmp_path / "AD")
    before = carried["images"]
    assert (before, now["images_before"], now["images"]) == (24, 24, 4)
    kept = 0.5 ** (4 / (0.05 * (before + 4)))
    for name, weight in now["model"].items():
        if "w_mean" not in name:
            expected = kept * carried["averaged"][name] + (1 - kept) * weight
            torch.testing.assert_close(now["averaged"][name], expected, rtol=1e-5, atol=1e-7)
    for folder in (tmp_path / "AD", tmp_path / "next/AD"):
        parent = folder.parent
        assert start(slices_dir, parent, "--epochs", 9, "--max_minutes", 1e-9, "--start_from", tmp_path / "AD") == 0
    resumed, third = checkpoint(tmp_path / "AD"), checkpoint(tmp_path / "next/AD")
    assert (resumed["images_before"], resumed["images"]) == (24, 8) and third["images_before"] == 24 + 8


@pytest.mark.slow
@pytest.mark.parametrize("grow_too", [False, True])
def test_a_run_starts_from_one_of_a_lower_resolution(tmp_path, slices_dir, source, every_step, grow_too, capsys):
    flags = ["--resolution", 128, "--epochs", 3, "--grow", grow_too, "--save_every", 100]
    assert start(slices_dir, tmp_path, *flags, "--start_from", source) == 0
    sizes = [row["resolution"] for row in read_table(tmp_path / "AD/losses.csv")]
    assert set(sizes) == ({64, 128} if grow_too else {128})
    assert "new: blocks above 32x32 and the critic's first layer" in capsys.readouterr().out
    assert checkpoint(tmp_path / "AD")["first_resolution"] == sizes[0]
    if not grow_too:
        state = first_state(tmp_path / "AD")
        assert state["fade"]["resolution"] == 32
        assert fits_within(checkpoint(source)["averaged"], state["averaged"])


@pytest.mark.slow
def test_a_conditional_run_starts_from_an_unconditional_one(tmp_path, slices_dir, source, unplotted, capsys):
    flags = ["--classes", "all", "--conditional", "--epochs", 1, "--start_from", source]
    assert start(slices_dir, tmp_path, *flags, "--dry_run") == 0
    assert start(slices_dir, tmp_path, *flags) == 0
    assert "new: what it is told (class)\n" in capsys.readouterr().out
    assert first_state(tmp_path / "all-conditional")["averaged"]["mapping.embedding.weight"].shape[0] == 2


@pytest.mark.slow
def test_a_run_takes_its_channels_from_the_run_that_it_starts_from(source):
    _, _, recipe = choose_recipe(parse_args(["--dataset_dir", "x"]), CPU, kept_sizes(read_network(source)))
    assert (recipe.channel_base, recipe.channel_max, recipe.batch_size) == (128, 8, 8)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--channel_max", 4], "other sizes; --channel_base 128 --channel_max 8 --set mapping_layers=8 would fit"),
        (["--set", "mapping_layers=2"], "other sizes; --channel_base 128 --channel_max 8 --set mapping_layers=8 would fit"),
        (["--resolution", 16], "--resolution"),
        (["--start_from", "nowhere"], "^--start_from nowhere: no run with a checkpoint.pt"),
    ],
)
def test_a_run_that_cannot_start_from_another_is_refused_in_one_line(tmp_path, slices_dir, source, flags, expected):
    with pytest.raises(UserError, match=expected) as refused:
        start(slices_dir, tmp_path / "model", "--epochs", 1, "--start_from", source, *flags)
    assert "\n" not in str(refused.value) and not (tmp_path / "model").exists()


@pytest.mark.slow
def test_networks_that_cannot_hold_those_of_the_other_run_are_refused(tmp_path, slices_dir, unplotted):
    start(slices_dir, tmp_path, "--epochs", 1, "--classes", "all", "--conditional")
    conditional = str(tmp_path / "all-conditional")
    with pytest.raises(UserError, match="it is told class; so must the new run be: --classes all --conditional class"):
        start(slices_dir, tmp_path, "--epochs", 1, "--start_from", conditional)
    larger = SMALL | {"mapping_layers": 8, "z_dim": 256, "w_dim": 256, "num_classes": 2}
    with pytest.raises(UserError, match="trained at 32x32, so --resolution must be at least 32"):
        check_source(read_source(conditional), larger)
    with pytest.raises(UserError, match="other sizes"):
        check_source(read_source(conditional), larger | {"resolution": 32, "w_dim": 128})
    source = read_source(conditional)
    check_source(source, larger | {"resolution": 64})
    assert source.network["resolution"] == 32


def test_a_damaged_checkpoint_to_start_from_is_refused(tmp_path, slices_dir):
    (tmp_path / "old").mkdir()
    (tmp_path / "old/checkpoint.pt").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="damaged.*--start_from takes another run") as refused:
        read_source(str(tmp_path / "old"))
    assert "--resume" not in str(refused.value)
