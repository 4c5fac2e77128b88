"""What the latents of a trained generator control: style mixing, truncation, interpolation, noise, resolutions, class, directions.

    w, labels = style_vectors(model.mapping, draw_z(6, model.mapping.z_dim, seed=0), label=0)
    images = truncation_sweep(model, w, labels, (0.5, 1.0))         # uint8 [6, 2, R, R]
    directions = find_directions(model, k=5, seed=0, method="ganspace")

Images are uint8, computed from style vectors w [N, w_dim]; report/samples.py draws them. psi is the truncation. Noise is "fixed"
(modules.StyleBlock) unless stated otherwise, so that images differ only by what is varied.
"""

import math
from typing import NamedTuple

import numpy as np
import torch

from analysis.models import draw_z, style_vectors, synthesize
from ops import upsample
from utils import random_stream

STEPS = 7  # images from one class to the other, or along a direction
DIRECTION_LATENTS = 4096  # latents per class for the distribution of w along a direction
REACH = 3.0  # standard deviations to both sides of a direction
METHODS = {"ganspace": "GANSpace", "sefa": "SeFa"}  # of finding directions


def image_grid(model, ws):
    """The images [rows, columns, R, R] of style vectors [rows, columns, w_dim], or [rows, columns, num_ws, w_dim]."""
    images = synthesize(model, ws.flatten(0, 1))
    return images.reshape(*ws.shape[:2], *images.shape[1:])


# ---------------------------------------------------------------------------------------------------------------------
# Style vectors


def mix_styles(model, rows, columns, layers):
    """Style mixing (Karras et al. 2019, figure 3): images [n, m, R, R] of w `rows` [n, w_dim], with w `columns` [m, w_dim] in
    `layers`."""
    ws = rows[:, None, None].repeat(1, len(columns), model.generator.num_ws, 1)
    ws[:, :, list(layers)] = columns[None, :, None]
    return image_grid(model, ws)


def layers_from(resolution, num_ws):
    """The range of layers at `resolution` and above: 4x4 has one style block, every other resolution has two."""
    return range(max(0, 2 * int(math.log2(resolution)) - 5), num_ws)


def truncation_sweep(model, w, labels, psis):
    """Images [N, len(psis), R, R] of w [N, w_dim], truncated with every psi (Karras et al. 2019, appendix B)."""
    return image_grid(model, torch.stack([model.mapping.truncate(w, psi, labels) for psi in psis], 1))


def value_range(model, name):
    """From the 2.5th to the 97.5th percentile of the value `name` in the examples of a Model (both values of a sex), as tensors."""
    known = model.mapping.examples[..., model.values.index(name)]
    known = known[known.isfinite()]
    return (known.min(), known.max()) if name == "sex" else tuple(known.quantile(share) for share in (0.025, 0.975))


@torch.no_grad()
def move_value(model, z, name, psi=1.0, steps=STEPS):
    """Images [classes, N, steps, R, R] of latents z [N, z_dim] of a model that is told the value `name`, and its values [steps].

    The value goes evenly through its `value_range`, all else held, between the classes too.
    """
    column, (low, high) = model.values.index(name), value_range(model, name)
    asked, ws = torch.linspace(low, high, 2 if name == "sex" else steps), []
    for label in model.labels:
        labels = style_vectors(model.mapping, z, label, held=True)[1].repeat_interleave(len(asked), 0)
        labels[:, 1 + column] = asked.to(labels).repeat(len(z))
        w = model.mapping.truncate(model.mapping(z.repeat_interleave(len(asked), 0), labels), psi, labels)
        ws.append(w.unflatten(0, (len(z), len(asked))))
    return np.stack([image_grid(model, w) for w in ws]), asked.tolist()


def interpolate_loop(w, frames):
    """Linear interpolation from each w [N, w_dim] to the next and from the last to the first: [N * frames, w_dim]."""
    share = torch.arange(frames, device=w.device)[:, None] / frames
    return torch.lerp(w[:, None], w.roll(-1, 0)[:, None], share).flatten(0, 1)


def noise_statistics(model, w, draws, rng):
    """Mean and standard deviation [N, R, R], in grey levels, of the images of w [N, w_dim] over `draws` random noises."""
    images = np.stack([synthesize(model, w, "random", rng) for _ in range(draws)]).astype(np.float32)
    return images.mean(0), images.std(0, ddof=1)


@torch.no_grad()
def resolution_pyramid(model, w):
    """Per resolution r = 4, 8, ..., R: (r, the image so far [N, r, r], the contribution of r to it [N, r, r]), about [-1, 1].

    The generator's image is a sum over resolutions (Karras et al. 2020, section 4.1, "output skips"). The biases of the image
    layers, which shift the brightness of the whole image, are in no contribution, and those of all layers in every image so far.
    """
    images = []
    hooks = [
        block.register_forward_hook(lambda _block, _inputs, outputs: images.append(outputs[2])) for block in model.generator.blocks
    ]
    try:
        model.generator(w, "fixed")
    finally:
        for hook in hooks:
            hook.remove()
    biases = torch.stack([block.image_bias for block in model.generator.blocks])
    before, levels = torch.zeros_like(images[0]), []
    for i, image in enumerate(images):
        so_far, part = image + biases[i + 1 :].sum(), image - before - biases[i]
        levels.append((image.shape[-1], so_far[:, 0].cpu().numpy(), part[:, 0].cpu().numpy()))
        before = upsample(image)
    return levels


class Morph(NamedTuple):
    """Images of the same latents with both labels, and the mean difference between the labels."""

    images: np.ndarray  # uint8 [n, steps, R, R], from AD to NC
    means: np.ndarray  # [2, R, R], mean images of AD and NC over all latents, in grey levels
    error: np.ndarray  # [R, R], standard error of the mean difference
    latents: int  # their number
    found: float  # share of the pixels whose mean difference exceeds two standard errors
    chance: tuple  # (mean, 97.5th percentile) of that share if the labels made no difference, by `sign_flips`


@torch.no_grad()
def morph(model, z, shown, psi=1.0, steps=STEPS, seed=0):
    """The Morph of latents z [N, z_dim], N > 1, in a conditional model: images of the first `shown`, means over all of them.

    Each latent goes its own way, from its w as AD to its w as NC, with noise of its own, drawn by `seed`, that is the same all the
    way: so the mean difference holds no pattern of one noise. (For a real slice counterfactual.py finds
    a latent.) The standard error is over latents: it says how well the mean of the model is known, not how realistic the model is.
    """
    ends = []  # w [N, w_dim] of AD and of NC
    for label in model.labels:
        w, labels = style_vectors(model.mapping, z, label, held=True)
        ends.append(model.mapping.truncate(w, psi, labels))

    def draw(w):  # the same noise at each call
        return synthesize(model, w, "random", random_stream("morph", seed, model.device))

    images = np.stack([draw(torch.lerp(ends[0][:shown], ends[1][:shown], share)) for share in torch.linspace(0, 1, steps)], 1)
    ad, nc = map(draw, ends)
    error, found, chance = sign_flips(nc.astype(np.float32) - ad)
    return Morph(images, np.stack([ad.mean(0), nc.mean(0)]), error, len(z), found, chance)


def sign_flips(differences, flips=200):
    """(standard error [...], share, (mean, 97.5th percentile)) of paired differences float32 [N, ...] between two labels.

    share: of the pixels whose mean difference exceeds two standard errors; mean and percentile: of the same share over random
    signs of the differences, as if the labels could be exchanged. The mean is about 0.046; pixels are correlated, so that the
    percentile may lie far above it.
    """
    count, squares = len(differences), np.square(differences).mean(0)
    signs = np.random.default_rng(0).choice(np.float32([-1, 1]), (flips + 1, count))
    signs[0] = 1  # the differences as they are
    means = np.tensordot(signs, differences, 1) / count  # [flips + 1, ...]

    def standard_error(mean):
        return np.sqrt(np.maximum(squares - mean**2, 0) / (count - 1))

    shares = [float((np.abs(mean) > 2 * standard_error(mean)).mean()) for mean in means]
    return standard_error(means[0]), shares[0], (float(np.mean(shares[1:])), float(np.quantile(shares[1:], 0.975)))


# ---------------------------------------------------------------------------------------------------------------------
# Principal directions of the style space


class Directions(NamedTuple):
    """k unit vectors in the style space, and their relation to the distribution of w and to the class."""

    vectors: torch.Tensor  # [k, w_dim]
    share: np.ndarray  # [k], of the variance of w (GANSpace) or of the squared gain of the modulation (SeFa)
    deviation: np.ndarray  # [k], standard deviation of w along each direction
    cosine: np.ndarray  # [k], with the difference of the mean w of NC and AD; NaN if the model is not conditional
    correlation: np.ndarray  # [k], between w along the direction and the label; NaN likewise


def ganspace(w, k):
    """The first k principal components of w [N, w_dim] (Härkönen et al. 2020): [k, w_dim], and their shares of variance [k]."""
    _, values, directions = torch.linalg.svd((w - w.mean(0)).cpu().double(), full_matrices=False)
    return directions[:k].to(w), (values.square() / values.square().sum())[:k].cpu().numpy()


def sefa(generator, k):
    """The k directions that the modulation amplifies most (Shen and Zhou 2021, eq. 5): [k, w_dim], and their shares of gain [k].

    They are eigenvectors of A^T A, where A is all affine layers of the style blocks, stacked; shares are of the squared gain.
    """
    weights = torch.cat([style.conv.affine.weight for block in generator.blocks for style in block.styles]).cpu().double()
    values, vectors = torch.linalg.eigh(weights.T @ weights)  # ascending
    return vectors.flip(1).T[:k].to(generator.constant), (values.flip(0) / values.sum())[:k].cpu().numpy()


@torch.no_grad()
def find_directions(model, k, seed, method):
    """The first k Directions of a model by `method`, of METHODS, with statistics over DIRECTION_LATENTS latents per class."""
    z = draw_z(DIRECTION_LATENTS, model.mapping.z_dim, seed).to(model.device)
    class_w = [style_vectors(model.mapping, z, label)[0] for label in model.labels]
    w = torch.cat(class_w)
    vectors, share = ganspace(w, k) if method == "ganspace" else sefa(model.generator, k)
    along = ((w - w.mean(0)) @ vectors.T).cpu().numpy()  # [N, k]
    cosine = correlation = np.full(len(vectors), np.nan)
    if model.is_conditional:
        difference = torch.nn.functional.normalize(class_w[1].mean(0) - class_w[0].mean(0), dim=0)
        cosine = (vectors @ difference).cpu().numpy()
        label = np.repeat([0, 1], len(z))
        correlation = np.array([np.corrcoef(column, label)[0, 1] for column in along.T])
    return Directions(vectors, share, along.std(0), cosine, correlation)


def move_along(model, w, directions, steps=STEPS, reach=REACH):
    """Images [k, steps, R, R] of w [w_dim] moved by -reach to reach standard deviations along each of the Directions."""
    distances = torch.linspace(-reach, reach, steps, device=w.device)[:, None] * torch.as_tensor(
        directions.deviation, device=w.device
    )  # [steps, k]
    return image_grid(model, w + distances.T[:, :, None].to(w) * directions.vectors[:, None])
