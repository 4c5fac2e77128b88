"""One training step: algorithm 1 of Gulrajani et al. 2017 (arXiv:1704.00028), each step with a batch of its own.

    state = TrainingState(options, network, device, dtype)
    for step in range(1000):
        terms = train_step(state, step, Batch(images, labels))

train.py has the lines of `train_step` in its loop. The generator's moving average is that of Karras et al. 2018
(arXiv:1710.10196), the lazy regularisation of Karras et al. 2020 (arXiv:1912.04958, appendix B). Only `mean_row` waits for the GPU.
"""

import copy
import functools
import math
from typing import NamedTuple

import torch

from dataset import shard
from modules import build_networks
from ops import resample
from training.augment import OPERATIONS, AugmentationStrength, augment, score_separation
from training.distributed import Processes
from training.loss import LOSSES, PathLength, clip_images
from training.loss_scale import LossScale
from training.monitor import IMAGE_STATISTICS, ActivationMonitor, image_statistics
from utils import random_stream

BETAS = 0.0, 0.99  # of Adam; no momentum (Karras et al. 2018, appendix A.1)
EMA_RAMPUP = 0.05  # the average's half-life is at most this share of all images so far, so that it forgets the start
FLOAT32_UP_TO = 16  # pixels a side: critic blocks whose gradient penalty is computed in float32, where rounding matters most
PATH_LENGTH_EVERY = 8  # generator updates between two path length penalties, each on half a batch

TERMS = (
    "critic_loss",
    "generator_loss",
    "wasserstein",
    "separation",
    "held_out",
    "penalty",
    "gradient_norm",
    "path_length",
    "critic_gradient",
    "generator_gradient",
    *IMAGE_STATISTICS,
)  # that a step may return


class Batch(NamedTuple):
    """Real images of one step, of this process's shard or of a micro-batch."""

    images: torch.Tensor  # [N, 1, R, R] in [-1, 1]
    labels: torch.Tensor | None = None  # of a conditional model, as of modules.LabelEmbedding
    held_out: torch.Tensor | None = None  # [N, 1, R, R], scored to see whether the critic overfits, never trained on
    held_out_labels: torch.Tensor | None = None

    def resized(self, size):
        """The batch at a stage's resolution; see `ops.resample`."""
        held_out = None if self.held_out is None else resample(self.held_out, size)
        return self._replace(images=resample(self.images, size), held_out=held_out)

    def split(self, parts):
        """Micro-batches of strided rows, so that each consists of whole minibatch-std groups."""
        return [Batch(*(None if x is None else shard(x, parts, i) for x in self)) for i in range(parts)]


class TrainingState:
    """Everything that a step reads and changes; `parts` holds what a checkpoint keeps of it, by name.

    options: recipes.Options; network: the settings in config.json; dtype: of the activations (weights, images, scores and losses
    are float32).
    """

    def __init__(self, options, network, device, dtype, processes=None):
        torch.manual_seed(options.seed)  # all processes start with the same weights
        self.options, self.recipe, self.loss, self.dtype = options, options.recipe, LOSSES[options.loss], dtype
        self.processes = processes or Processes(device)
        self.resolution = network["resolution"]
        self.model, self.critic = (module.to(device) for module in build_networks(network))
        self.averaged = copy.deepcopy(self.model).eval().requires_grad_(False)
        # Parameters are listed once: walking through all modules at every step would take as long as a layer.
        self.model_weights, self.critic_weights, self.averaged_weights = (
            list(module.parameters()) for module in (self.model, self.critic, self.averaged)
        )
        self.model_optimizer = torch.optim.Adam(self.model_weights, self.recipe.lr, BETAS, fused=True)
        self.critic_optimizer = torch.optim.Adam(self.critic_weights, self.recipe.lr_critic, BETAS, fused=True)
        self.augmentation = AugmentationStrength(options.augment, device)
        self.operations = [name for name in OPERATIONS if name != "flip" or options.mirror]
        self.path_length = PathLength().to(device)
        self.critic_scale, self.model_scale = (LossScale(dtype, device) for _ in range(2))
        self.model_lr, self.critic_lr = (torch.zeros([], device=device) for _ in range(2))
        self.scale_learning_rates(1.0)
        self.rng = self.new_random_stream("training", device)
        self.activations = ActivationMonitor(self.model, self.critic)
        self.parts = {
            "model": self.model,
            "critic": self.critic,
            "averaged": self.averaged,
            "model_optimizer": self.model_optimizer,
            "critic_optimizer": self.critic_optimizer,
            "augmentation": self.augmentation,
            "path_length": self.path_length,
            "critic_scale": self.critic_scale,
            "model_scale": self.model_scale,
        }

    def new_random_stream(self, purpose, device):
        """A generator for latents, noise and augmentation that differs from process to process."""
        return random_stream(f"{purpose}, process {self.processes.rank}", self.options.seed, device)

    def augment(self, images):
        """What the critic is shown of real or generated images [N, 1, R, R]; the same shape."""
        return augment(images, self.augmentation.p, self.rng, self.operations)

    def scale_learning_rates(self, factor):
        """Set the recipe's learning rates times `factor`, in tensors that stay in their place: a CUDA graph reads them."""
        self.model_optimizer.param_groups[0]["lr"] = self.model_lr.fill_(factor * self.recipe.lr)
        self.critic_optimizer.param_groups[0]["lr"] = self.critic_lr.fill_(factor * self.recipe.lr_critic)


# ---------------------------------------------------------------------------------------------------------------------
# The step


def update_networks(state, step, batch):
    """Update the critic and, in every n_critic-th step, from the first on, the generator; returns their terms."""
    micro_batches, shared = split_batch(state, step, batch)
    terms = update_critic(state, step, micro_batches, shared)
    if step % state.recipe.n_critic == 0:
        terms |= update_generator(state, step, micro_batches, shared, terms["critic_gradient"])
    return terms


def train_step(state, step, batch, update=update_networks):
    """Update critic, generator, moving average and augmentation on this process's shard of a batch; `step` counts from 0.

    update: `update_networks`, or a graphs.GraphedUpdates in its place. Returns the logged terms {name: 0-dim tensor}, means over
    micro-batches and processes; those of the penalties and of the generator's update, and "held_out", only in steps that compute
    them.
    """
    terms = update(state, step, batch)
    update_average(state, (step + 1) * state.recipe.batch_size)
    state.augmentation.update(terms, state.recipe.batch_size)
    return terms


def split_batch(state, step, batch):
    """Micro-batches of a batch, and what `generate` gives for both updates, which saves a pass through the generator, or None.

    Micro-batches are generated again for each update, since the graphs of several would fill the memory.
    """
    micro_batches = batch.split(state.options.grad_accum)
    if len(micro_batches) > 1 or step % state.recipe.n_critic:
        return micro_batches, None
    return micro_batches, generate(state, len(batch.images), batch.labels)


def update_critic(state, step, micro_batches, shared=None):
    """One Adam step of the critic on real images and generated ones (`shared`: those of `generate`, or None to draw them)."""
    recipe, critic, rng = state.recipe, state.critic, state.rng
    require_grad(state.critic_weights, True)
    state.critic_optimizer.zero_grad()
    terms = []
    for real, labels, held_out, held_out_labels in micro_batches:
        with torch.no_grad():
            fake, _ = shared or generate(state, len(real), labels)
            fake = clip_images(fake)
        real, fake = state.augment(real), state.augment(fake.detach())
        both_labels = None if labels is None else torch.cat([labels, labels])
        score_real, score_fake = critic(torch.cat([real, fake]), both_labels, state.dtype, groups=2).chunk(2)
        loss = state.loss.critic(score_real, score_fake)
        term = {
            "critic_loss": loss,
            "wasserstein": score_real.mean() - score_fake.mean(),
            "separation": score_separation(score_real, score_fake),
        }
        if held_out is not None:
            with torch.no_grad():
                score_held_out = critic(state.augment(held_out), held_out_labels, state.dtype)
                term["held_out"] = score_real.mean() - score_held_out.mean()
        if step % recipe.gp_every == 0:  # lazy regularisation: weighted as if computed at every step
            penalised = functools.partial(critic, dtype=state.dtype, float32_up_to=FLOAT32_UP_TO)
            penalty, term["gradient_norm"] = state.loss.penalty(penalised, real, fake, labels, rng)
            term["penalty"] = recipe.lambda_gp * penalty
            loss = loss + recipe.gp_every * term["penalty"]
        state.critic_scale(loss / len(micro_batches)).backward()
        terms.append(term)
    terms = mean_terms(terms)
    state.processes.average(state.critic_weights, [*terms.values()])
    return terms | {"critic_gradient": adam_step(state.critic_optimizer, state.critic_weights, state.critic_scale)}


def update_generator(state, step, micro_batches, shared, critic_gradient):
    """One Adam step of mapping network and generator, left out if the critic's gradient norm was not finite."""
    recipe, mapping, rng = state.recipe, state.model["mapping"], state.rng
    require_grad(state.critic_weights, False)
    state.model_optimizer.zero_grad()
    terms, w_sums, path_lengths = [], 0, []
    for real, labels, *_ in micro_batches:
        images, ws = shared or generate(state, len(real), labels)
        score_fake, score_real = state.critic(state.augment(clip_images(images)), labels, state.dtype), None
        if state.loss.generator_sees_real:  # by the critic as it is now
            with torch.no_grad():
                score_real = state.critic(state.augment(real), labels, state.dtype)
        loss = state.loss.generator(score_fake, score_real)
        term = {"generator_loss": loss} | image_statistics(images, real)
        if recipe.path_length and step % (recipe.n_critic * PATH_LENGTH_EVERY) == 0:
            half = len(real) // 2
            half_labels = None if labels is None else labels[:half]
            penalty, length = state.path_length(*generate(state, half, half_labels, style_mixing=0), rng)
            term["path_length"] = recipe.path_length * penalty
            loss = loss + PATH_LENGTH_EVERY * term["path_length"]
            path_lengths.append(length)
        state.model_scale(loss / len(micro_batches)).backward()
        terms.append(term)
        w_sums = w_sums + mapping.class_sums(ws[:, 0], labels)
    terms = mean_terms(terms)
    lengths = [torch.stack(path_lengths).mean()] if path_lengths else []
    state.processes.average(state.model_weights, [*terms.values(), w_sums, *lengths])
    terms["generator_gradient"] = adam_step(state.model_optimizer, state.model_weights, state.model_scale, critic_gradient)
    mapping.update_w_mean(w_sums)
    for length in lengths:
        state.path_length.update_mean(length)
    return terms


def generate(state, count, labels=None, style_mixing=None):
    """Images [count, 1, R, R], unclipped, of new latents with these labels, and their w [count, num_ws, w_dim]."""
    mapping, generator = state.model["mapping"], state.model["generator"]
    style_mixing = state.recipe.style_mixing if style_mixing is None else style_mixing
    z = torch.randn(count, mapping.z_dim, device=state.rng.device, generator=state.rng)
    ws = mix_styles(mapping, z, labels, generator.num_ws, style_mixing, state.rng)
    return generator(ws, rng=state.rng, dtype=state.dtype), ws


def mix_styles(mapping, z, labels, num_ws, probability, rng=None):
    """w of latents z [N, z_dim] for every layer, [N, num_ws, w_dim], with style mixing (Karras et al. 2019, section 3.1).

    With the given probability a sample takes its layers from a random one on from a second latent.
    """
    first = mapping(z, labels)[:, None].expand(-1, num_ws, -1)
    if probability == 0:
        return first
    second = mapping(torch.randn(z.shape, device=z.device, generator=rng), labels)[:, None]
    mixed, place = torch.rand(len(z), 2, 1, 1, device=z.device, generator=rng).unbind(1)
    crossover = torch.where(mixed < probability, 1 + (place * (num_ws - 1)).floor(), num_ws)
    layer = torch.arange(num_ws, device=z.device)[:, None]
    return torch.where(layer < crossover, first, second)


# ---------------------------------------------------------------------------------------------------------------------
# What both updates need


def require_grad(weights, required):
    for weight in weights:
        weight.requires_grad_(required)


def gradients(weights):
    return [weight.grad for weight in weights if weight.grad is not None]


def mean_terms(terms):
    """Means over micro-batches: [{name: 0-dim tensor}, ...] -> {name: 0-dim tensor}, without graph."""
    return {name: torch.stack([term[name].detach() for term in terms]).mean(0) for name in terms[0]}


def mean_row(terms):
    """A row of the terms of several steps: {name of TERMS: mean over the finite ones, nan if there are none}, steps skipped."""
    values = iter(torch.stack([value.float() for term in terms for value in term.values()]).tolist())  # the only wait for the GPU
    terms = [{name: next(values) for name in term} for term in terms]
    gradients = [[term[name] for name in ("critic_gradient", "generator_gradient") if name in term] for term in terms]
    skipped = sum(not all(map(math.isfinite, norms)) for norms in gradients)
    finite = {name: [term[name] for term in terms if name in term and math.isfinite(term[name])] for name in TERMS}
    return {name: sum(values) / len(values) if values else math.nan for name, values in finite.items()}, skipped


def adam_step(optimizer, weights, loss_scale=None, other_norm=0.0):
    """One Adam step, left out if the gradient's norm or `other_norm` is not finite; returns the norm, 0-dim.

    loss_scale: the `LossScale` that the loss was multiplied by, which is divided out of the gradients here; None: there is none.

    PyTorch's fused Adam reads `found_inf`, which a gradient scaler would set, on the device, so that nothing waits for the GPU.
    """
    if loss_scale:
        loss_scale.divide_out(gradients(weights))
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients(weights))))
    if loss_scale:
        loss_scale.update(norm)
    finite = torch.isfinite(norm + other_norm)
    optimizer.found_inf = (~finite).float()
    if norm.device.type != "mps" or finite:  # Metal's fused Adam does not read found_inf
        optimizer.step()
    return norm


@torch.no_grad()
def update_average(state, images):
    """Move the averaged weights towards the weights, with a half-life of `ema_kimg` thousand images, shorter at the start.

    images: those that the weights have learnt from, with this step's, and those of the run that --start_from names.
    """
    half_life = min(1000 * state.recipe.ema_kimg, EMA_RAMPUP * images)
    torch._foreach_lerp_(state.averaged_weights, state.model_weights, 1 - 0.5 ** (state.recipe.batch_size / half_life))
    state.averaged["mapping"].w_mean.copy_(state.model["mapping"].w_mean)
