"""What a trained generator does when its styles, its noise or its depth change: the numbers behind predict.py's pictures.

    rows, columns = style_vectors(mapping, z_rows)[0], style_vectors(mapping, z_columns)[0]
    mix(model, rows, columns, range(4, 10))             # [rows, columns, R, R]

Everywhere w [N, w_dim] are styles, psi the truncation, and noise is the fixed one (modules.StyleBlock), the same for every
slice, so that slices differ by what is changed alone. Slices come as uint8.
"""
import math
from typing import NamedTuple

import numpy as np
import torch

from modules import upsample
from trained import BATCH, draw_z, style_vectors, synthesize

DRAWN = 4096                    # latents behind means and directions
STEPS = 7                       # slices from one class to the other, or along a direction


def grid(model, ws):
    """Slices [rows, columns, R, R] of styles [rows, columns, w_dim], or [rows, columns, num_ws, w_dim]."""
    return synthesize(model, ws.flatten(0, 1)).reshape(*ws.shape[:2], model.generator.resolution, model.generator.resolution)


# ---------------------------------------------------------------------------------------------------------------------
# Styles

def mix(model, rows, columns, layers):
    """Slices [len(rows), len(columns), R, R]: styles of `rows`, but in `layers` those of `columns` (Karras et al. 2019, fig. 3)."""
    ws = rows[:, None, None].repeat(1, len(columns), model.generator.num_ws, 1)
    ws[:, :, list(layers)] = columns[None, :, None]
    return grid(model, ws)


def layers_from(resolution, num_ws):
    """The layers that work at `resolution` and above: 4x4 has one style block, every other two."""
    return range(max(0, 2 * int(math.log2(resolution)) - 5), num_ws)


def sweep(model, w, labels, psis):
    """Slices [len(w), len(psis), R, R]: each w [N, w_dim] truncated to every psi (Karras et al. 2019, appendix B)."""
    return grid(model, torch.stack([model.mapping.truncate(w, psi, labels) for psi in psis], 1))


def loop(w, frames):
    """Styles [len(w) * frames, w_dim] on straight lines from each w to the next, and from the last to the first."""
    share = torch.arange(frames, device=w.device)[:, None] / frames
    return torch.lerp(w[:, None], w.roll(-1, 0)[:, None], share).flatten(0, 1)


def noise_spread(model, w, draws, rng):
    """What noise alone changes in the slice of each w [N, w_dim]: mean and standard deviation [N, R, R] in grey levels."""
    slices = np.stack([synthesize(model, w, "random", rng) for _ in range(draws)]).astype(np.float32)
    return slices.mean(0), slices.std(0, ddof=1)


# ---------------------------------------------------------------------------------------------------------------------
# Resolutions

@torch.no_grad()
def pyramid(model, w):
    """[(side, slices so far [N, side, side], what this side adds [N, side, side])], from 4 to R, float in [-1, 1] units.

    The output-skip generator's image is a sum over resolutions (Karras et al. 2020, section 4.1); the slices so far and all
    that is added, each doubled up to R and summed, are the generated slice.
    """
    images, handles = [], [block.register_forward_hook(lambda _block, _inputs, outputs: images.append(outputs[1]))
                           for block in model.generator.blocks]
    try:
        model.generator(w, "fixed")
    finally:
        for handle in handles:
            handle.remove()
    added = [images[0], *(here - upsample(before) for before, here in zip(images, images[1:]))]
    return [(image.shape[-1], image[:, 0].cpu().numpy(), share[:, 0].cpu().numpy()) for image, share in zip(images, added)]


# ---------------------------------------------------------------------------------------------------------------------
# Classes, with a conditional model

class Morph(NamedTuple):
    """The same latents under both labels: slices on the way, and how the two ends differ on average."""
    slices: np.ndarray          # uint8 [subjects, steps, R, R], from AD to NC
    means: np.ndarray           # grey levels [2, R, R] of AD and of NC, over all latents
    error: np.ndarray           # standard error of the mean difference [R, R]
    latents: int                # how many


@torch.no_grad()
def morph(model, z, subjects, psi=1., steps=STEPS):
    """Morph of a conditional model over latents z [N, z_dim], N > 1: the first `subjects` in steps, all for the means.

    The error is of the mean over latents: how well the model's own average is known, and nothing of how true the model is.
    """
    ends = []
    for label in (0, 1):
        w, labels = style_vectors(model.mapping, z, label)
        ends.append(model.mapping.truncate(w, psi, labels))
    share = torch.linspace(0, 1, steps, device=z.device)[:, None]
    slices = grid(model, torch.lerp(ends[0][:subjects, None], ends[1][:subjects, None], share))
    sums, squares, count = 0., 0., len(z)
    for pair in zip(*(w.split(BATCH) for w in ends)):
        pair = np.stack([synthesize(model, w) for w in pair]).astype(np.float64)        # [2, n, R, R]
        sums, squares = sums + pair.sum(1), squares + ((pair[1] - pair[0]) ** 2).sum(0)
    means = sums / count
    variance = np.maximum(squares / count - (means[1] - means[0]) ** 2, 0) * count / (count - 1)
    return Morph(slices, means, np.sqrt(variance / count), count)


# ---------------------------------------------------------------------------------------------------------------------
# Directions

class Directions(NamedTuple):
    """k unit directions of the style space, each with what it has to do with the class."""
    vectors: torch.Tensor       # [k, w_dim]
    weight: np.ndarray          # [k]: share of w's variance (GANSpace), or of the modulation's squared gain (SeFa)
    spread: np.ndarray          # [k]: standard deviation of w along each
    cosine: np.ndarray          # [k]: with the way from the mean w of AD to that of NC; nan without labels
    correlation: np.ndarray     # [k]: of w along the direction with the label; nan without labels


def ganspace(w, k):
    """Principal directions of w [N, w_dim], by falling variance (Haerkoenen et al. 2020): [k, w_dim] and their shares of it."""
    _, values, directions = torch.linalg.svd((w - w.mean(0)).double(), full_matrices=False)
    return directions[:k].to(w), (values.square() / values.square().sum())[:k].cpu().numpy()


def sefa(generator, k):
    """Directions that the modulation amplifies most (Shen and Zhou 2021, eq. 5): [k, w_dim] and their shares of squared gain.

    The eigenvectors of A^T A, A being the affine layers of all style blocks one below the other.
    """
    weights = torch.cat([style.conv.affine.weight for block in generator.blocks for style in block.styles]).double()
    values, vectors = torch.linalg.eigh(weights.T @ weights)                            # ascending
    return vectors.flip(1).T[:k].to(generator.constant), (values.flip(0) / values.sum())[:k].cpu().numpy()


@torch.no_grad()
def directions(model, k, seed, method):
    """The Directions of a model by `method`, "ganspace" or "sefa", over DRAWN latents (of each class)."""
    z = draw_z(DRAWN, model.mapping.z_dim, seed).to(model.generator.constant.device)
    ws = [style_vectors(model.mapping, z, label)[0] for label in model.labels]
    w = torch.cat(ws)
    vectors, weight = ganspace(w, k) if method == "ganspace" else sefa(model.generator, k)
    along = ((w - w.mean(0)) @ vectors.T).cpu().numpy()                                 # [N, k]
    cosine = correlation = np.full(len(vectors), np.nan)
    if len(ws) == 2:
        way = torch.nn.functional.normalize(ws[1].mean(0) - ws[0].mean(0), dim=0)
        cosine = (vectors @ way).cpu().numpy()
        label = np.repeat([0, 1], len(z))
        correlation = np.array([np.corrcoef(line, label)[0, 1] for line in along.T])
    return Directions(vectors, weight, along.std(0), cosine, correlation)


def along(model, w, found, steps=STEPS, reach=3.):
    """Slices [k, steps, R, R]: the style w [w_dim] moved along each direction by -reach to reach standard deviations."""
    moves = torch.linspace(-reach, reach, steps, device=w.device)[:, None] * torch.as_tensor(found.spread, device=w.device)
    return grid(model, w + moves.T[:, :, None].to(w) * found.vectors[:, None])
