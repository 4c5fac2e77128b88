"""The scale of a loss whose gradients pass through float16."""

import pytest
import torch
from plain_options import plain_options

from training import loss_scale
from training.checkpoint import NEW_PARTS, restore
from training.growth import grow
from training.loss_scale import START, LossScale
from training.step import Batch, TrainingState, adam_step, train_step

CPU = torch.device("cpu")
NETWORK = {"resolution": 32, "channel_base": 64, "channel_max": 4, "z_dim": 8, "w_dim": 8, "mapping_layers": 1, "num_classes": 0}


def new_state(dtype=torch.float16, **numbers):
    return TrainingState(plain_options(batch_size=4, **numbers), NETWORK, CPU, dtype)


def image_batch(step):
    return Batch(torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(step)).clamp(-1, 1))


def test_a_gradient_that_float16_could_not_hold_is_right():
    """2^-26 is nothing in float16; times the scale it is a number."""
    weight, loss_scale = torch.ones([], requires_grad=True), LossScale(torch.float16, CPU)
    loss_scale(weight.half().float() * 2.0**-26).backward()
    assert weight.grad > 0
    loss_scale.divide_out([weight.grad])
    assert weight.grad == 2.0**-26


def test_overflow_skips_the_step_and_halves_the_scale_and_quiet_steps_double_it(monkeypatch):
    monkeypatch.setattr(loss_scale, "GROWS_AFTER", 3)
    weight, scale, found = torch.ones(2, requires_grad=True), LossScale(torch.float16, CPU), []
    optimizer = torch.optim.Adam([weight], 0.1, fused=True)
    for gradient in (1.0, 1.0, float("inf"), 1.0, 1.0, 1.0, 1.0):
        before, weight.grad = weight.detach().clone(), torch.tensor([1.0, gradient]) * scale.scale
        adam_step(optimizer, [weight], scale)
        found.append((scale.scale.item() / START, not torch.equal(weight, before)))
    factors = [1, 1, 0.5, 0.5, 0.5, 1, 1]
    assert found == [(factor, factor != 0.5 or i != 2) for i, factor in enumerate(factors)]


def test_a_generator_that_is_left_out_for_the_critics_sake_keeps_its_scale():
    weight, scale = torch.ones(2, requires_grad=True), LossScale(torch.float16, CPU)
    weight.grad = torch.ones(2)
    adam_step(torch.optim.Adam([weight], 0.1, fused=True), [weight], scale, torch.tensor(float("nan")))
    assert weight.tolist() == [1, 1] and scale.scale == START


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_types_have_no_scale(dtype):
    scale, gradient = LossScale(dtype, CPU), torch.ones(2)
    loss = gradient.sum()
    scale.divide_out([gradient])
    scale.update(torch.tensor(float("inf")))
    assert scale(loss) is loss and gradient.tolist() == [1, 1] and scale.state_dict() == {}


@pytest.mark.slow
def test_training_in_float16_resumes_bit_for_bit_with_its_scale(monkeypatch):
    monkeypatch.setattr(loss_scale, "GROWS_AFTER", 2)
    whole, half, resumed = new_state(), new_state(), new_state()
    for step in range(5):
        train_step(whole, step, image_batch(step))
    for step in range(3):
        train_step(half, step, image_batch(step))
    restore(resumed.parts, {name: part.state_dict() for name, part in half.parts.items()})
    resumed.rng.set_state(half.rng.get_state())
    for step in range(3, 5):
        train_step(resumed, step, image_batch(step))
    assert whole.critic_scale.scale > START and whole.critic_scale.steps == resumed.critic_scale.steps == 1
    for name in ("critic_scale", "model_scale", "model", "critic"):
        assert all(torch.equal(x, resumed.parts[name].state_dict()[key]) for key, x in whole.parts[name].state_dict().items())
    assert grow(whole, new_state()).critic_scale.scale == whole.critic_scale.scale


def test_a_run_of_another_type_resumes_in_float16_and_the_other_way_round():
    exact, narrow = new_state(torch.float32), new_state()
    saved = {name: part.state_dict() for name, part in exact.parts.items()}
    restore(narrow.parts, saved)
    assert narrow.critic_scale.scale == START
    restore(exact.parts, {name: part.state_dict() for name, part in narrow.parts.items()})
    assert {name: saved[name] for name in NEW_PARTS} == NEW_PARTS  # what an older checkpoint is taken to hold
