"""One training step against the algorithm written out in float64, and the parts of a step by themselves."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from plain_options import plain_options
from torch.utils._python_dispatch import TorchDispatchMode

from modules import build_networks
from training import step as step_module
from training.augment import OPERATIONS, augment
from training.loss import LOSSES, PathLength, clip_images
from training.monitor import IMAGE_STATISTICS
from training.recipes import RECIPES
from training.step import (
    BETAS,
    Batch,
    TrainingState,
    adam_step,
    generate,
    mean_row,
    mix_styles,
    train_step,
    update_average,
    update_critic,
    update_generator,
)
from utils import random_stream

CPU = torch.device("cpu")
SIDE = 8
SMALL = {"resolution": SIDE, "channel_base": 128, "channel_max": 8, "z_dim": 16, "w_dim": 16, "mapping_layers": 8, "num_classes": 0}
CONDITIONAL = SMALL | {"num_classes": 2}


def new_state(network=SMALL, dtype=torch.float32, p=None, **options):
    """A TrainingState on the CPU; p: the strength at which its augmentation, "ada" then, begins."""
    given = {"batch_size": 4} | ({} if p is None else {"augment": "ada"}) | options
    state = TrainingState(plain_options(**given), network, CPU, dtype)
    if p is not None:
        state.augmentation.p = torch.tensor(p)
    return state


def random_images(count, seed=5, side=SIDE):
    return torch.randn(count, 1, side, side, generator=torch.Generator().manual_seed(seed)).clamp(-1, 1)


@pytest.fixture
def float64():
    """Everything in float64, where two ways of computing agree to rounding errors of about 1e-12."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# ---------------------------------------------------------------------------------------------------------------------
# The reference: algorithm 1, written out


class Reference:
    """The same networks as a TrainingState, trained by the formulas of the papers, without its functions."""

    def __init__(self, state):
        self.options, self.recipe, self.rng = state.options, state.recipe, torch.Generator().manual_seed(0)
        self.rng.set_state(state.rng.get_state())
        network = CONDITIONAL if state.critic.embedding is not None else SMALL
        (self.model, self.critic), (self.averaged, _) = build_networks(network), build_networks(network)
        self.model.load_state_dict(state.model.state_dict())
        self.critic.load_state_dict(state.critic.state_dict())
        self.averaged.load_state_dict(state.model.state_dict())
        self.moments, self.path_mean = {}, torch.zeros([])
        self.images_shown = 0

    def latents(self, count, labels, mixing):
        """w for every layer, one image after the other."""
        num_ws = self.model["generator"].num_ws
        z = torch.randn(count, 16, generator=self.rng)
        w = self.model["mapping"](z, labels)
        if mixing == 0:
            return torch.stack([w] * num_ws, 1)
        w2 = self.model["mapping"](torch.randn(z.shape, generator=self.rng), labels)
        chance = torch.rand(len(z), 2, 1, 1, generator=self.rng)
        rows = []
        for i in range(len(z)):
            crossover = 1 + math.floor(chance[i, 1].item() * (num_ws - 1)) if chance[i, 0] < mixing else num_ws
            rows.append(torch.stack([w[i] if layer < crossover else w2[i] for layer in range(num_ws)]))
        return torch.stack(rows)

    def adam(self, parameters, lr):
        """Kingma and Ba 2015, algorithm 1; returns the gradient's norm."""
        beta1, beta2 = 0.0, 0.99
        for p in parameters:
            t, m, v = self.moments.get(p, (0, 0.0, 0.0))
            t, m, v = t + 1, beta1 * m + (1 - beta1) * p.grad, beta2 * v + (1 - beta2) * p.grad**2
            self.moments[p] = t, m, v
            p.data -= lr * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + 1e-8)
        return math.sqrt(sum((p.grad**2).sum().item() for p in parameters))

    def step(self, k, real, labels):
        options, recipe, softplus, terms = self.options, self.recipe, F.softplus, {}
        both = None if labels is None else torch.cat([labels, labels])
        for module in (self.model, self.critic):
            module.zero_grad()

        # The critic
        ws = self.latents(len(real), labels, recipe.style_mixing)
        images = self.model["generator"](ws, rng=self.rng)
        fake = images.detach().clamp(-1, 1)
        seen_real, seen_fake = self.augment(real), self.augment(fake)
        scores = self.critic(torch.cat([seen_real, seen_fake]), both, groups=2)
        d_real, d_fake = scores[: len(real)], scores[len(real) :]
        loss = {
            "wgan-gp": lambda: d_fake.mean() - d_real.mean() + 0.001 * (d_real**2).mean(),
            "logistic": lambda: softplus(d_fake).mean() + softplus(-d_real).mean(),
            "relativistic": lambda: softplus(d_fake - d_real).mean(),
        }[options.loss]()
        terms["critic_loss"], terms["wasserstein"] = loss.item(), (d_real.mean() - d_fake.mean()).item()
        terms["separation"] = np.mean(np.sign((d_real - d_fake).tolist()))
        if k % recipe.gp_every == 0:
            penalty, norm = self.penalty(seen_real, seen_fake, labels)
            terms["penalty"], terms["gradient_norm"] = recipe.lambda_gp * penalty.item(), norm
            loss = loss + recipe.gp_every * recipe.lambda_gp * penalty
        loss.backward()
        terms["critic_gradient"] = self.adam(list(self.critic.parameters()), recipe.lr_critic)

        # The generator, against the updated critic
        if k % recipe.n_critic:
            self.average()
            return terms
        self.model.zero_grad()
        d_fake = self.critic(self.augment(clip_images(images)), labels)
        if options.loss == "relativistic":
            d_real = self.critic(self.augment(real), labels)
        loss = {
            "wgan-gp": lambda: -d_fake.mean(),
            "logistic": lambda: softplus(-d_fake).mean(),
            "relativistic": lambda: softplus(d_real - d_fake).mean(),
        }[options.loss]()
        terms["generator_loss"] = loss.item()
        length = None
        if recipe.path_length and k // recipe.n_critic % 8 == 0:
            half_ws = self.latents(len(real) // 2, None if labels is None else labels[: len(real) // 2], 0)
            half = self.model["generator"](half_ws, rng=self.rng)
            noise = torch.randn(half.shape, generator=self.rng) / SIDE  # N(0, 1 / pixels)
            (jacobian,) = torch.autograd.grad((half * noise).sum(), half_ws, create_graph=True)
            lengths = (jacobian**2).sum(2).mean(1).sqrt()
            penalty, length = ((lengths - self.path_mean) ** 2).mean(), lengths.mean().item()
            terms["path_length"] = recipe.path_length * penalty.item()
            loss = loss + 8 * recipe.path_length * penalty
        loss.backward()
        terms["generator_gradient"] = self.adam(list(self.model.parameters()), recipe.lr)
        if length is not None:
            self.path_mean = self.path_mean + 0.01 * (length - self.path_mean)

        # The running mean of w, per class
        w_mean = self.model["mapping"].w_mean
        for label in range(len(w_mean)):
            rows = [i for i in range(len(real)) if labels is None or labels[i] == label]
            if rows:
                w_mean[label] = 0.995 * w_mean[label] + 0.005 * ws[rows, 0].mean(0).detach()
        self.average()
        return terms

    def augment(self, images):
        operations = OPERATIONS if self.options.mirror else OPERATIONS[1:]
        return augment(images, self.p, self.rng, operations)

    def average(self):
        self.images_shown += self.recipe.batch_size
        half_life = min(1000 * self.recipe.ema_kimg, 0.05 * self.images_shown)
        beta = 0.5 ** (self.recipe.batch_size / half_life)
        for average, p in zip(self.averaged.parameters(), self.model.parameters()):
            average.data = beta * average.data + (1 - beta) * p.data

    def penalty(self, real, fake, labels):
        """The gradient penalty and the mean norm, image by image."""
        places = [real]
        if self.options.loss == "wgan-gp":
            mix = torch.rand(len(real), 1, 1, 1, generator=self.rng)
            places = [(1 - mix) * real + mix * fake]
        elif self.options.loss == "relativistic":
            places.append(fake)
        norms = []
        for x in places:
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.critic(x, labels).sum(), x, create_graph=True)
            norms.append(torch.stack([(g**2).sum().sqrt() for g in gradient]))
        if self.options.loss == "wgan-gp":
            return ((norms[0] - 1) ** 2).mean(), norms[0].mean().item()
        return sum((norm**2).mean() / 2 for norm in norms), norms[0].mean().item()


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("loss, n_critic", [*((loss, 1) for loss in LOSSES), ("relativistic", 2)])
def test_train_step_is_the_algorithm_written_out(float64, loss, n_critic, conditional):
    state = new_state(
        CONDITIONAL if conditional else SMALL,
        torch.float64,
        loss=loss,
        lambda_gp=3.0,
        gp_every=2,
        n_critic=n_critic,
        p=0.5,
        mirror=conditional,  # once with, once without
        style_mixing=0.5,
        path_length=2.0,
        lr=0.004,
        lr_critic=0.001,
        ema_kimg=0.0004,
    )
    reference = Reference(state)
    for k in range(3):  # 0: all penalties; 1: none; 2: the gradient penalty
        real, labels = random_images(4, seed=k), torch.tensor([0, 1, 1, 1]) if conditional else None
        reference.p = state.augmentation.p.item()
        terms, expected = train_step(state, k, Batch(real, labels)), reference.step(k, real, labels)
        assert terms.keys() - set(IMAGE_STATISTICS) == expected.keys()
        for name, value in expected.items():
            assert terms[name].item() == pytest.approx(value, rel=1e-7, abs=1e-9), (k, name)
        pairs = (state.model, reference.model), (state.critic, reference.critic), (state.averaged, reference.averaged)
        for ours, theirs in pairs:
            for (name, a), b in zip(ours.named_parameters(), theirs.parameters()):
                if (loss, name) == ("relativistic", "score.bias"):
                    b.data.copy_(a.data)  # only differences of scores count: its gradient is rounding, which Adam enlarges
                torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8, msg=lambda text, name=name: f"{k} {name}: {text}")
        for mapping in (state.model["mapping"], state.averaged["mapping"]):
            torch.testing.assert_close(mapping.w_mean, reference.model["mapping"].w_mean, rtol=1e-9, atol=1e-12)
        assert state.path_length.mean.item() == pytest.approx(reference.path_mean.item(), rel=1e-9)
        assert torch.equal(state.rng.get_state(), reference.rng.get_state())


# ---------------------------------------------------------------------------------------------------------------------
# Parts of the step


def weights(state):
    modules = state.model, state.critic, state.averaged
    return [tensor.clone() for module in modules for tensor in module.state_dict().values()]


def test_generator_is_not_updated_where_the_critics_gradient_is_not_finite():
    state = new_state()
    train_step(state, 0, Batch(random_images(4)))
    before = [p.clone() for p in (*state.model_weights, *state.critic_weights)]
    state.loss = state.loss._replace(critic=lambda real, fake: (real - fake).mean() * math.inf)
    terms = train_step(state, 1, Batch(random_images(4)))
    assert not terms["critic_gradient"].isfinite() and terms["generator_gradient"].isfinite()
    assert all(torch.equal(a, b) for a, b in zip(before, (*state.model_weights, *state.critic_weights)))
    assert all(a.isfinite().all() for a in weights(state))


def test_critic_alone_is_updated_where_the_generators_gradient_is_not_finite():
    state = new_state()
    generator_before, critic_before = ([p.clone() for p in list_] for list_ in (state.model_weights, state.critic_weights))
    state.loss = state.loss._replace(generator=lambda fake, real: fake.mean() * math.nan)
    train_step(state, 0, Batch(random_images(4)))
    assert all(torch.equal(a, b) for a, b in zip(generator_before, state.model_weights))
    assert not all(torch.equal(a, b) for a, b in zip(critic_before, state.critic_weights))


def test_adam_step_leaves_no_trace_of_a_gradient_that_is_not_finite():
    def linear():
        torch.manual_seed(0)
        return torch.nn.Linear(3, 1)

    network, spared = linear(), linear()
    optimizers = [torch.optim.Adam(module.parameters(), 0.1, BETAS, fused=True) for module in (network, spared)]
    for i, x in enumerate(torch.randn(6, 5, 3)):
        factor = {2: math.nan, 3: math.inf}.get(i, 1)
        for optimizer in optimizers:
            optimizer.zero_grad()
        (network(x).square().mean() * factor).backward()
        norm = adam_step(optimizers[0], list(network.parameters()))
        assert norm.isfinite() == (factor == 1)
        if factor == 1:
            spared(x).square().mean().backward()
            expected = torch.cat([p.grad.flatten() for p in spared.parameters()]).norm()
            assert norm.item() == pytest.approx(expected.item(), rel=1e-5)
            adam_step(optimizers[1], list(spared.parameters()))
        assert torch.equal(network.weight, spared.weight) and torch.equal(network.bias, spared.bias)


def test_augmentation_strength_moves_by_the_images_of_all_processes():
    """By 1 / (100 kimg) an image, in either direction; here 4 images of a batch of 8, as in one of two processes."""
    state = new_state(augment="ada", batch_size=8)
    state.augmentation.p = torch.tensor(0.5)
    train_step(state, 0, Batch(random_images(4)))
    assert abs(state.augmentation.p.item() - 0.5) == pytest.approx(8 / 100_000, abs=1e-7)  # float32 of 0.5: 6e-8


def test_learning_rates_of_each_network_are_scaled_from_its_own():
    state = new_state(lr=0.004, lr_critic=0.001)
    for factor in (0.5, 0.25, 1.0):  # of the options, not of the last rate
        state.scale_learning_rates(factor)
        rates = [optimizer.param_groups[0]["lr"] for optimizer in (state.model_optimizer, state.critic_optimizer)]
        assert rates == [0.004 * factor, 0.001 * factor]


def test_held_out_images_are_scored_but_never_trained_on(float64):
    state, without = (new_state(dtype=torch.float64, augment="ada", gp_every=2) for _ in range(2))
    real, held_out = random_images(4, 1), random_images(4, 2)
    _, critic = build_networks(SMALL)
    critic.load_state_dict(state.critic.state_dict())
    terms = train_step(state, 1, Batch(real, None, held_out))  # no penalty, which draws after the held-out images
    difference = (critic(real).mean() - critic(held_out).mean()).item()
    assert terms["held_out"].item() == pytest.approx(difference, rel=1e-9)
    assert state.augmentation.gap_held_out.sign() == terms["held_out"].sign() != 0
    assert "held_out" not in train_step(without, 1, Batch(real)) and without.augmentation.gap_held_out == 0
    assert all(torch.equal(a, b) for a, b in zip(state.critic_weights, without.critic_weights))


def test_everything_the_critic_sees_is_augmented(monkeypatch):
    """Real, generated and held-out images, in both updates: marked by the augmentation, found in the critic's input."""
    monkeypatch.setattr(step_module, "augment", lambda images, *_: images * 0 + 7)
    state, seen = new_state(p=0.5, loss="relativistic"), []
    state.critic.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    train_step(state, 0, Batch(random_images(4), None, random_images(4)))
    assert len(seen) == 5 and all((images == 7).all() for images in seen)


def test_critic_sees_generated_images_clipped_as_they_are_saved():
    state, seen = new_state(loss="relativistic"), []
    state.critic.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    with torch.no_grad():
        state.model["generator"].blocks[-1].image_bias.fill_(2)  # much too bright
    train_step(state, 0, Batch(torch.zeros(4, 1, SIDE, SIDE)))
    generated = [images for images in seen if images.any()]
    assert len(generated) == 3  # the critic's update, its penalty, the generator's update
    assert all((images.abs() <= 1).all() and (images == 1).any() for images in generated)


def test_labels_of_the_real_images_reach_generator_and_critic(monkeypatch):
    state, told = new_state(CONDITIONAL, loss="relativistic", path_length=1.0), {"mapping": [], "critic": []}
    labels, held_out_labels = torch.tensor([0, 1, 1, 1]), torch.tensor([1, 0, 0, 1])
    state.model["mapping"].register_forward_pre_hook(lambda _, inputs: told["mapping"].append(inputs[1].tolist()))
    state.critic.register_forward_pre_hook(lambda _, inputs: told["critic"].append(inputs[1].tolist()))
    train_step(state, 0, Batch(random_images(4), labels, random_images(4), held_out_labels))
    own = labels.tolist()
    assert told["mapping"] == [own, own[:2]]  # both updates share one batch; the path length takes half of one
    updates = [own * 2, held_out_labels.tolist(), own * 2], [own, own]  # real and generated, held-out, R1 and R2; for the generator
    assert told["critic"] == sum(updates, [])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-3), (torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_penalty_and_its_second_derivatives_match_float64(loss, dtype, bound):
    """float32: each parameter's gradient by itself; otherwise all together, since rounding may hide a small gradient."""
    network = SMALL | {"resolution": 32}  # from 32x32 on, blocks may be narrow in the penalty too
    state, compared = new_state(network, dtype, loss=loss), []

    def compare(critic, real, fake, labels, rng):
        twin = torch.Generator()
        twin.set_state(rng.get_state())
        found = LOSSES[loss].penalty(critic, real, fake, labels, rng)
        _, exact = build_networks(network)
        exact.load_state_dict(state.critic.state_dict())
        expected = LOSSES[loss].penalty(exact.double(), real.double(), fake.double(), labels, twin)
        assert found[0].item() == pytest.approx(expected[0].item(), rel=bound)
        gradients, references = (
            torch.autograd.grad(penalty, list(critic.parameters()), retain_graph=True, allow_unused=True)
            for (penalty, _), critic in ((found, state.critic), (expected, exact))
        )
        pairs = [(a, b) for a, b in zip(gradients, references) if b is not None and b.norm() > 1e-9]  # the last biases have none
        if dtype != torch.float32:
            pairs = [tuple(torch.cat([x.flatten() for x in side]) for side in zip(*pairs))]
        for a, b in pairs:
            assert (a - b).norm() / b.norm() < bound
            compared.append(a)
        return found

    state.loss = state.loss._replace(penalty=compare)
    train_step(state, 0, Batch(random_images(4, side=32)))
    assert len(compared) == 1 if dtype != torch.float32 else len(compared) > 10


def test_penalty_is_float32_from_16x16_on_where_all_else_is_bfloat16():
    state, seen = new_state(SMALL | {"resolution": 32}, torch.bfloat16), []
    for block in state.critic.blocks:
        block.register_forward_pre_hook(lambda _, inputs: seen.append((inputs[0].shape[2], inputs[0].dtype)))
    train_step(state, 0, Batch(random_images(4, side=32)))
    narrow, exact = [[(side, dtype) for side in (16, 8)] for dtype in (torch.bfloat16, torch.float32)]
    widest = [(32, torch.bfloat16)]
    assert seen == widest + narrow + widest + exact + widest + narrow  # the critic's update, its penalty, the generator's update


def test_float16_ends_at_16x16_in_both_networks():
    state, seen = new_state(SMALL | {"resolution": 32}, torch.float16), {"generator": [], "critic": []}
    for name, blocks in (("generator", state.model["generator"].blocks), ("critic", state.critic.blocks)):
        for block in blocks:
            block.register_forward_hook(lambda _, inputs, outputs, name=name: seen[name].append(outputs[0].dtype))
    with torch.no_grad():
        images = state.model["generator"](torch.randn(4, 16), dtype=torch.float16)
        score = state.critic(images, dtype=torch.float16)
    exact, narrow = torch.float32, torch.float16
    assert seen == {"generator": [exact] * 3 + [narrow], "critic": [narrow, exact, exact]}
    assert images.dtype == score.dtype == torch.float32


@pytest.mark.parametrize("dtype, least, bound", [(torch.bfloat16, 1e-4, 0.25), (torch.float16, 1e-5, 0.04)])
def test_gradients_of_a_step_in_narrow_types_are_near_those_in_float32(dtype, least, bound):
    """Some twenty roundings to 8 bits, each up to 2^-9 of a value, add up to about 1% of the terms, and more of their sums, since
    terms of either sign cancel; to 11 bits an eighth of that. The critic stands still: Adam's first step would turn rounding near
    0 into the sign of a step."""
    found = []
    for each in (torch.float32, dtype):
        state = new_state(SMALL | {"resolution": 32}, each, loss="relativistic", lr_critic=1e-12)
        train_step(state, 0, Batch(random_images(4, side=32)))
        found.append([torch.cat([p.grad.flatten() for p in list_]) for list_ in (state.critic_weights, state.model_weights)])
    for exact, narrow in zip(*found):
        assert least < (narrow - exact).norm() / exact.norm() < bound


class Operations(TorchDispatchMode):
    """Counts operations that compute; on a GPU each is a launch at least. It does not depend on the machine."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("loss, most", [("wgan-gp", 1700), ("relativistic", 3450)])
def test_operations_of_a_step_do_not_creep_up(loss, most):
    """Of a step with all penalties at 32x32: 1661 and 3369 when written. The second step, since Adam's first makes its moments."""
    recipe = RECIPES["thin", loss]
    state = new_state(SMALL | {"resolution": 32}, torch.bfloat16, loss=loss, path_length=recipe.path_length)
    train_step(state, 0, Batch(random_images(4, side=32)))
    with Operations() as operations:
        train_step(state, 0, Batch(random_images(4, side=32)))
    assert 0.9 * most < operations.count < most


def test_average_has_its_half_life():
    state = new_state(batch_size=100, ema_kimg=5.0)
    average, p = state.averaged_weights[0], state.model_weights[0]
    average.zero_()
    with torch.no_grad():
        p.fill_(1)
    for _ in range(50):
        update_average(state, 10**9)
    assert average.mean().item() == pytest.approx(0.5, rel=1e-3)
    average.zero_()
    for images in (100, 1000):  # at the start: a twentieth of the images so far
        average.zero_()
        update_average(state, images)
        assert average.mean().item() == pytest.approx(1 - 0.5 ** (100 / (0.05 * images)), rel=1e-5)


def test_micro_batches_draw_their_own_latents_for_each_update():
    state, latents = new_state(grad_accum=2, batch_size=8), []
    state.model["mapping"].register_forward_pre_hook(lambda _, inputs: latents.append(inputs[0].detach().clone()))
    train_step(state, 0, Batch(random_images(8)))
    assert [len(z) for z in latents] == [4, 4, 4, 4]
    assert not any(torch.equal(a, b) for i, a in enumerate(latents) for b in latents[:i])


def test_gradients_of_micro_batches_add_up_to_those_of_the_batch(monkeypatch, float64):
    """On given latents, without noise: what remains is the division of the batch."""
    given = torch.randn(16, 16, generator=torch.Generator().manual_seed(3))
    labels = torch.arange(16) % 2
    found = {}
    for parts in (1, 2, 4):
        calls = iter(range(100))
        state = new_state(CONDITIONAL, torch.float64, grad_accum=parts, batch_size=16, loss="relativistic", lr=1e-9, lr_critic=1e-9)

        def given_latents(state, count, labels=None, style_mixing=None, parts=parts, calls=calls):
            ws = mix_styles(state.model["mapping"], given[next(calls) % parts :: parts], labels, state.model["generator"].num_ws, 0)
            return state.model["generator"](ws, "none"), ws

        monkeypatch.setattr(step_module, "generate", given_latents)
        terms = train_step(state, 0, Batch(random_images(16), labels))
        found[parts] = terms, [p.grad for p in state.critic_weights], [p.grad for p in state.model_weights], state
    for parts in (2, 4):
        for ours, whole in zip(found[parts][1] + found[parts][2], found[1][1] + found[1][2]):
            if whole is not None:
                torch.testing.assert_close(ours, whole, rtol=1e-7, atol=1e-10)
        for name in found[1][0].keys() - {"diversity", "foreground_fraction"}:  # ratios, of each micro-batch
            torch.testing.assert_close(found[parts][0][name], found[1][0][name], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found[parts][3].model["mapping"].w_mean, found[1][3].model["mapping"].w_mean)


def test_processes_have_the_same_weights_and_other_random_numbers(monkeypatch):
    states = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        states.append(new_state())
    assert all(torch.equal(a, b) for a, b in zip(*(state.model_weights for state in states)))
    assert not torch.equal(*(generate(state, 2)[0] for state in states))


def test_a_row_is_the_mean_over_the_steps_that_have_a_term_and_are_finite():
    nan, number = math.nan, torch.tensor
    terms = [
        {"critic_loss": number(1.0), "penalty": number(4.0), "critic_gradient": number(1.0), "generator_gradient": number(1.0)},
        {"critic_loss": number(nan), "critic_gradient": number(nan), "generator_gradient": number(1.0)},
        {"critic_loss": number(3.0), "critic_gradient": number(1.0), "generator_gradient": number(math.inf)},
    ]
    row, skipped = mean_row(terms)
    assert skipped == 2 and row["critic_loss"] == 2 and row["penalty"] == 4 and row["generator_gradient"] == 1
    assert mean_row([{"critic_gradient": number(1.0)}, terms[2]])[1] == 1  # a step that updates the critic alone is not skipped
    assert np.isnan(row["path_length"]) and tuple(row) == step_module.TERMS


SAMPLES, LAYERS = 4096, 7


def mix(probability, labels=None, seed=0):
    """First latents and mixed styles of a mapping network that returns z, or z plus 100 times the label."""
    z = torch.randn(SAMPLES, 3, generator=torch.Generator().manual_seed(99))

    def mapping(z, labels):
        return z if labels is None else z + 100 * labels[:, None]

    return mapping(z, labels), mix_styles(mapping, z, labels, LAYERS, probability, torch.Generator().manual_seed(seed))


def test_style_mixing_takes_the_layers_from_a_random_one_on_from_one_second_latent():
    first, ws = mix(1.0)
    crossover = (ws == first[:, None]).all(2).sum(1)  # the first layer of the second latent
    assert torch.equal(crossover.unique(), torch.arange(1, LAYERS))
    expected_count = SAMPLES / (LAYERS - 1)
    assert ((crossover.bincount()[1:] - expected_count).abs() < 5 * math.sqrt(expected_count)).all()
    second = ws[:, -1]
    from_first = (torch.arange(LAYERS) < crossover[:, None])[..., None]
    assert torch.equal(ws, torch.where(from_first, first[:, None], second[:, None]))
    assert second.mean(0).abs().max() < 5 / math.sqrt(SAMPLES)  # N(0, 1), independent of the first
    assert (second.std(0) - 1).abs().max() < 5 / math.sqrt(2 * SAMPLES)
    assert (torch.corrcoef(torch.cat([first, second], dim=1).T)[:3, 3:].abs() < 5 / math.sqrt(SAMPLES)).all()


@pytest.mark.parametrize("probability", [0, 0.25])
def test_style_mixing_has_its_probability(probability):
    first, ws = mix(probability)
    mixed = (ws != first[:, None]).any(2).any(1).sum().item()
    assert abs(mixed - probability * SAMPLES) <= 5 * math.sqrt(probability * (1 - probability) * SAMPLES)


def test_style_mixing_keeps_the_label_and_depends_on_its_generator():
    labels = torch.arange(SAMPLES) % 2
    _, ws = mix(0.7, labels)
    assert torch.equal(ws, mix(0.7, labels)[1]) and not torch.equal(ws, mix(0.7, labels, seed=1)[1])
    assert torch.equal((ws > 50).all((1, 2)), labels == 1) and torch.equal((ws < 50).all((1, 2)), labels == 0)


@pytest.mark.parametrize("n_critic", [1, 3])
def test_path_length_is_computed_on_half_a_batch_every_eighth_update(monkeypatch, n_critic):
    sizes, forward = [], PathLength.forward

    def counted(self, images, ws, rng):
        sizes.append(len(images))
        return forward(self, images, ws, rng)

    monkeypatch.setattr(PathLength, "forward", counted)
    state = new_state(path_length=2.0, n_critic=n_critic)
    for k in (0, 1, 3, 8 * n_critic - 1, 8 * n_critic, 12 * n_critic):
        assert ("path_length" in train_step(state, k, Batch(random_images(4)))) == (k in (0, 8 * n_critic))
    assert sizes == [2, 2]


def everything(dtype=torch.float32, **options):
    """A state whose steps compute all that a step can, and a batch for them."""
    options = {"loss": "relativistic", "p": 0.5, "path_length": 1.0, "style_mixing": 0.5} | options
    labels = torch.tensor([0, 1, 1, 0])
    return new_state(CONDITIONAL, dtype, **options), Batch(random_images(4), labels, random_images(4), labels)


def test_step_draws_from_the_states_own_random_stream_alone():
    state, batch = everything(seed=3)
    assert torch.equal(state.rng.get_state(), random_stream("training, process 0", 3, CPU).get_state())
    before = torch.get_rng_state()
    train_step(state, 0, batch)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_pass_through_the_networks_has_the_activations_dtype():
    state, batch = everything(dtype=torch.bfloat16)
    dtypes = []
    for layer in (state.critic.from_image, state.model["generator"].blocks[-1].styles[-1].conv):
        layer.register_forward_pre_hook(lambda _, inputs: dtypes.append(inputs[0].dtype))
    train_step(state, 0, batch)
    # The critic sees both kinds, the held-out images, those of R1 and R2, and both kinds again; the generator draws once for both
    # updates and once for the path length.
    assert dtypes == [torch.bfloat16] * 7


def test_generators_update_leaves_no_gradient_in_the_critic():
    state, batch = everything()
    update_critic(state, 0, [batch])
    gradients = [weight.grad.clone() for weight in state.critic_weights]
    update_generator(state, 0, [batch], None, torch.zeros([]))
    assert all(torch.equal(before, weight.grad) for before, weight in zip(gradients, state.critic_weights))


def test_gradients_terms_and_path_lengths_are_averaged_over_processes():
    """An average that doubles everything: what comes of it is twice what a single process finds."""

    def terms_of(factor):
        def average(weights, tensors):
            for tensor in [*step_module.gradients(weights), *tensors]:
                tensor.mul_(factor)

        state, batch = everything()
        state.processes.average = average
        critic = update_critic(state, 0, [batch])
        state, batch = everything()  # untouched weights for the generator's update
        state.processes.average = average
        found = critic | update_generator(state, 0, [batch], None, torch.zeros([]))
        return found | {"mean_length": state.path_length.mean.clone()}

    alone, averaged = terms_of(1), terms_of(2)
    assert alone.keys() == averaged.keys() and len(alone) > 12
    for name, value in alone.items():
        torch.testing.assert_close(averaged[name], 2 * value)


@pytest.mark.parametrize("gradient, steps", [(1.0, 1), (math.inf, 0), (math.nan, 0)])
def test_metal_whose_adam_reads_no_found_inf_skips_steps_too(monkeypatch, gradient, steps):
    class Norm:  # of gradients on Apple's GPU
        device = torch.device("mps")

        def __add__(self, other):
            return torch.tensor(gradient) + other

    taken, weight = [], torch.zeros(1, requires_grad=True)
    weight.grad = torch.ones(1)
    monkeypatch.setattr(torch.linalg, "vector_norm", lambda _: Norm())
    optimizer = torch.optim.Adam([weight])
    monkeypatch.setattr(optimizer, "step", lambda: taken.append(1))
    adam_step(optimizer, [weight])
    assert len(taken) == steps


def test_step_never_waits_for_a_number():
    """On a GPU every such look would make Python wait for it."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watcher(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.waits = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if torch.Tag.data_dependent_output in function.tags or torch.Tag.dynamic_output_shape in function.tags:
                self.waits.append(str(function))
            return function(*args, **(kwargs or {}))

    state = new_state(CONDITIONAL, augment="ada", path_length=1.0, style_mixing=0.5, loss="relativistic")
    batch = Batch(random_images(4), torch.tensor([0, 1, 1, 0]), random_images(4), torch.tensor([0, 1, 1, 0]))
    with Watcher() as watcher:
        torch.ones(1).item(), torch.ones(1).nonzero()
        assert len(watcher.waits) == 2  # it does see them
        watcher.waits.clear()
        for k in range(2):
            train_step(state, k, batch)
    assert not watcher.waits


@pytest.mark.parametrize("with_held_out", [True, False])
def test_resized_batch_averages_squares_of_pixels_and_keeps_labels(with_held_out):
    images, labels = random_images(4, side=32), torch.tensor([0, 1, 1, 0])
    batch = Batch(images, labels, *((images[:2] / 2, labels[:2]) if with_held_out else ()))
    small = batch.resized(8)
    expected = images.double().reshape(4, 1, 8, 4, 8, 4).mean((3, 5))
    torch.testing.assert_close(small.images.double(), expected, rtol=0, atol=16 * 2**-24)  # 16 terms of at most 1
    assert small.labels is labels and small.held_out_labels is batch.held_out_labels
    if with_held_out:
        torch.testing.assert_close(small.held_out.double(), expected[:2] / 2, rtol=0, atol=16 * 2**-24)
    else:
        assert small.held_out is None
