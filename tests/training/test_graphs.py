"""Updates as CUDA graphs, which repeat on the CPU what was captured (fake_graphs.py), against the updates themselves."""

import math

import pytest
import torch
from conftest import NETWORK, same_checkpoints, seeded_rng
from fake_graphs import Tape, fake_graphs
from plain_options import plain_options
from torch.utils._pytree import tree_leaves

from training import graphs, loss_scale
from training.graphs import GraphedUpdates, variant
from training.growth import Fade
from training.step import Batch, TrainingState, train_step, update_networks

CPU, SIDE = torch.device("cpu"), 8
SMALL = NETWORK | {"resolution": SIDE, "num_classes": 2}
EVERYTHING = {"augment": "ada", "n_critic": 2, "gp_every": 4, "path_length": 1.0, "style_mixing": 0.5}  # that a step can do


def new_state(dtype=torch.float32, **options):
    state = TrainingState(plain_options(batch_size=4, **options), SMALL, CPU, dtype)
    if state.augmentation.mode == "ada":
        state.augmentation.p.fill_(0.5)
    return state


def new_batch(step, held_out=False):
    """Batch number `step`, in memory of its own."""
    images, labels = torch.randn(2, 4, 1, SIDE, SIDE, generator=seeded_rng(step)).clamp(-1, 1), torch.tensor([0, 1, 1, 0])
    return Batch(images[0], labels, *((images[1], labels) if held_out else ()))


@pytest.mark.slow
@pytest.mark.parametrize(
    "variants, dtype, options",
    [
        (1, torch.float32, {}),
        (1, torch.bfloat16, {"grad_accum": 2, "lambda_gp": 5.0}),
        (4, torch.float32, EVERYTHING | {"loss": "relativistic"}),
        (4, torch.float16, EVERYTHING | {"loss": "logistic"}),
    ],
)
def test_replayed_steps_have_the_bits_of_plain_ones(monkeypatch, variants, dtype, options):
    """With learning rates, a strength of augmentation and a scale of the loss that change, and a step that is left out."""
    monkeypatch.setattr(graphs, "WARM_UP", 1)
    monkeypatch.setattr(loss_scale, "GROWS_AFTER", 3)
    plain, graphed, update = new_state(dtype, **options), new_state(dtype, **options), GraphedUpdates()
    steps, terms = 50 if variants > 1 else 10, ([], [])  # the path length is due at 0, 16, 32 and 48
    with fake_graphs():
        for step in range(steps):
            for state in (plain, graphed):
                state.scale_learning_rates(1 - step / steps)
            batch = new_batch(step, held_out=step % 4 == 0 and "augment" in options)
            if step == steps - 2:
                batch.images[0, 0, 0, 0] = math.nan
            terms[0].append(train_step(plain, step, batch))
            terms[1].append(train_step(graphed, step, Batch(*(x if x is None else x.clone() for x in batch)), update))
    assert same_checkpoints(*terms) and len(update.captured) == variants
    assert torch.equal(plain.rng.get_state(), graphed.rng.get_state())
    for name, part in plain.parts.items():
        assert same_checkpoints(part.state_dict(), graphed.parts[name].state_dict()), name


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["wgan-gp", "relativistic"])
def test_a_variant_tells_which_operations_a_step_does(loss):
    """The same ones, with the same numbers that Python knows, in all steps of a variant and in no other."""
    state, found = new_state(loss=loss, **EVERYTHING), {}
    train_step(state, 0, new_batch(0, held_out=True))  # Adam makes its moments
    for step in range(1, 33):
        state.scale_learning_rates(1 / step)
        batch, tape = new_batch(step, held_out=step % 8 == 0), Tape()
        tape.register_generator_state(state.rng)
        with tape:
            update_networks(state, step, batch)
        operations = [
            (str(function), *(x for x in tree_leaves((args, kwargs)) if isinstance(x, (int, float, torch.dtype))))
            for function, args, kwargs, _ in tape.operations
        ]
        found.setdefault(variant(state, step, batch), []).append(operations)
    first = [each[0] for each in found.values()]
    assert len(first) == 5 and all(a != b for a, b in zip(first, first[1:] + first[:1]))
    assert all(operations == each[0] for each in found.values() for operations in each) and len(first[0]) > 500


def test_variants_are_captured_once_warmed_up_and_anew_for_another_state():
    state, update = new_state(n_critic=2), GraphedUpdates()
    with fake_graphs():
        for step in range(8):
            assert len(update.captured if step else ()) == min(2, max(0, step - 2 * graphs.WARM_UP))
            train_step(state, step, new_batch(step), update)
        assert [tape.replays for tape, *_ in update.captured.values()] == [2, 2]
        assert not state.critic_optimizer.param_groups[0]["capturable"]  # which Adam warns of
        train_step(new_state(n_critic=2), 0, new_batch(0), update)
    assert not update.captured


@pytest.mark.parametrize("hindrance", ["fade", "recording", "processes"])
def test_steps_that_cannot_be_captured_are_taken_as_they_are(hindrance):
    state, update = new_state(), GraphedUpdates()
    state.critic.fade = Fade(SIDE // 2, torch.nn.Conv2d(1, 8, 1)) if hindrance == "fade" else None
    state.processes.size, state.processes.average = 2 if hindrance == "processes" else 1, lambda *_: None
    with fake_graphs(), state.activations.recording(hindrance == "recording"):
        for step in range(graphs.WARM_UP + 1):
            train_step(state, step, new_batch(step), update)
    assert not update.captured and update.warmed_up == {None: graphs.WARM_UP + 1}
