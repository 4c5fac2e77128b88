"""What a trained generator does when its styles, its noise or its depth change, as numbers and as pictures.

    mix(model, rows, columns, range(4, 10))             # [rows, columns, R, R] of styles [rows, w_dim] and [columns, w_dim]
    draw_morph(Scene(model, seed=0, psi=1., output_dir="predictions"))

Everywhere w [N, w_dim] are styles, psi the truncation, and noise is the fixed one (modules.StyleBlock), the same for every
slice, so that slices differ by what is changed alone. Slices come as uint8.
"""

import math
import os
from typing import NamedTuple

import numpy as np
import torch

from analysis import figures
from analysis.models import BATCH, draw_z, style_vectors, synthesize
from analysis.report import ReportFigure, ReportTable, Section
from ops import upsample
from utils import CLASSES, UserError, random_stream

DRAWN = 4096  # latents behind means and directions
STEPS = 7  # slices from one class to the other, or along a direction
PSIS = 0.0, 0.25, 0.5, 0.75, 1.0, 1.25
SHOWN = 6  # slices (subjects) in a picture
MEANS = 256  # latents behind the mean difference of the classes
NOISES = 32  # draws behind a noise map
FRAMES = 12  # of the GIF, from one slice to the next


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
    images, handles = (
        [],
        [
            block.register_forward_hook(lambda _block, _inputs, outputs: images.append(outputs[2]))
            for block in model.generator.blocks
        ],
    )
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

    slices: np.ndarray  # uint8 [subjects, steps, R, R], from AD to NC
    means: np.ndarray  # grey levels [2, R, R] of AD and of NC, over all latents
    error: np.ndarray  # standard error of the mean difference [R, R]
    latents: int  # how many


@torch.no_grad()
def morph(model, z, subjects, psi=1.0, steps=STEPS):
    """Morph of a conditional model over latents z [N, z_dim], N > 1: the first `subjects` in steps, all for the means.

    The error is of the mean over latents: how well the model's own average is known, and nothing of how true the model is.
    """
    ends = []
    for label in (0, 1):
        w, labels = style_vectors(model.mapping, z, label)
        ends.append(model.mapping.truncate(w, psi, labels))
    share = torch.linspace(0, 1, steps, device=z.device)[:, None]
    slices = grid(model, torch.lerp(ends[0][:subjects, None], ends[1][:subjects, None], share))
    sums, squares, count = 0.0, 0.0, len(z)
    for pair in zip(*(w.split(BATCH) for w in ends)):
        pair = np.stack([synthesize(model, w) for w in pair]).astype(np.float64)  # [2, n, R, R]
        sums, squares = sums + pair.sum(1), squares + ((pair[1] - pair[0]) ** 2).sum(0)
    means = sums / count
    variance = np.maximum(squares / count - (means[1] - means[0]) ** 2, 0) * count / (count - 1)
    return Morph(slices, means, np.sqrt(variance / count), count)


# ---------------------------------------------------------------------------------------------------------------------
# Directions


class Directions(NamedTuple):
    """k unit directions of the style space, each with what it has to do with the class."""

    vectors: torch.Tensor  # [k, w_dim]
    weight: np.ndarray  # [k]: share of w's variance (GANSpace), or of the modulation's squared gain (SeFa)
    spread: np.ndarray  # [k]: standard deviation of w along each
    cosine: np.ndarray  # [k]: with the way from the mean w of AD to that of NC; nan without labels
    correlation: np.ndarray  # [k]: of w along the direction with the label; nan without labels


def ganspace(w, k):
    """Principal directions of w [N, w_dim], by falling variance (Haerkoenen et al. 2020): [k, w_dim] and their shares of it."""
    _, values, directions = torch.linalg.svd((w - w.mean(0)).double(), full_matrices=False)
    return directions[:k].to(w), (values.square() / values.square().sum())[:k].cpu().numpy()


def sefa(generator, k):
    """Directions that the modulation amplifies most (Shen and Zhou 2021, eq. 5): [k, w_dim] and their shares of squared gain.

    The eigenvectors of A^T A, A being the affine layers of all style blocks one below the other.
    """
    weights = torch.cat([style.conv.affine.weight for block in generator.blocks for style in block.styles]).double()
    values, vectors = torch.linalg.eigh(weights.T @ weights)  # ascending
    return vectors.flip(1).T[:k].to(generator.constant), (values.flip(0) / values.sum())[:k].cpu().numpy()


@torch.no_grad()
def directions(model, k, seed, method):
    """The Directions of a model by `method`, "ganspace" or "sefa", over DRAWN latents (of each class)."""
    z = draw_z(DRAWN, model.mapping.z_dim, seed).to(model.generator.constant.device)
    ws = [style_vectors(model.mapping, z, label)[0] for label in model.labels]
    w = torch.cat(ws)
    vectors, weight = ganspace(w, k) if method == "ganspace" else sefa(model.generator, k)
    along = ((w - w.mean(0)) @ vectors.T).cpu().numpy()  # [N, k]
    cosine = correlation = np.full(len(vectors), np.nan)
    if len(ws) == 2:
        way = torch.nn.functional.normalize(ws[1].mean(0) - ws[0].mean(0), dim=0)
        cosine = (vectors @ way).cpu().numpy()
        label = np.repeat([0, 1], len(z))
        correlation = np.array([np.corrcoef(line, label)[0, 1] for line in along.T])
    return Directions(vectors, weight, along.std(0), cosine, correlation)


def along(model, w, found, steps=STEPS, reach=3.0):
    """Slices [k, steps, R, R]: the style w [w_dim] moved along each direction by -reach to reach standard deviations."""
    moves = torch.linspace(-reach, reach, steps, device=w.device)[:, None] * torch.as_tensor(found.spread, device=w.device)
    return grid(model, w + moves.T[:, :, None].to(w) * found.vectors[:, None])


# ---------------------------------------------------------------------------------------------------------------------
# Pictures: each function draws one thing and gives a report.Section of it


class Scene:
    """What the pictures below share: a model, its first styles w [SHOWN, w_dim] of every class, and where pictures go."""

    def __init__(self, model, seed, psi, output_dir):
        self.model, self.seed, self.psi, self.output_dir = model, seed, psi, output_dir
        self.device = model.generator.constant.device
        self.captions = ["" if label is None else CLASSES[label] for label in model.labels]
        with torch.no_grad():
            self.made = [style_vectors(model.mapping, self.latents(SHOWN), label) for label in model.labels]
            self.w = [model.mapping.truncate(w, psi, labels) for w, labels in self.made]

    def latents(self, count):
        return draw_z(count, self.model.mapping.z_dim, self.seed).to(self.device)

    def path(self, name):
        return os.path.join(self.output_dir, f"{self.model.name}_{name}")

    def section(self, title, *shown, **others):
        """A report.Section of pictures given as (path, caption)."""
        return Section(f"{self.model.name}: {title}", figures=[ReportFigure(*one) for one in shown], **others)


def draw_mixing(scene, layers=None):
    """mixing.png: rows give the coarse styles, columns those of `layers` (None: of 16x16 and finer)."""
    generator, path = scene.model.generator, scene.path("mixing.png")
    layers = layers or layers_from(16, generator.num_ws)
    if layers[-1] >= generator.num_ws:
        raise UserError(f"--mix_layers {layers[0]}-{layers[-1]}: {scene.model.name} has layers 0 to {generator.num_ws - 1}")
    rows, columns = scene.w[0], scene.w[-1]
    if scene.model.labels == [None]:  # two classes of the same latents are two sets; one class needs two
        columns = scene.model.mapping.truncate(scene.model.mapping(scene.latents(2 * SHOWN)[SHOWN:]), scene.psi)
    corner = [[None, *synthesize(scene.model, columns)]]
    cells = corner + [
        [source, *mixed] for source, mixed in zip(synthesize(scene.model, rows), mix(scene.model, rows, columns, layers))
    ]
    names = scene.captions if len(scene.captions) == 2 else ["rows", "columns"]
    note = f"Every slice has the styles of its row, but in layers {layers[0]} to {layers[-1]} those of its column."
    figures.save_image_table(cells, path, [f"{names[1]}:", f"{names[0]}:"] + [""] * (SHOWN - 1), [""] * (SHOWN + 1), note)
    return scene.section("style mixing", (path, "Coarse styles by row, fine ones by column."))


def draw_sweep(scene):
    """sweep.png: the same latents at PSIS."""
    cells, rows, path = [], [], scene.path("sweep.png")
    for (w, labels), name in zip(scene.made, scene.captions):
        count = SHOWN // len(scene.made)
        cells += list(sweep(scene.model, w[:count], None if labels is None else labels[:count], PSIS))
        rows += [name] * count
    note = "At psi 0 all slices are the mean of their class; above 1 they go beyond what was learnt."
    figures.save_image_table(cells, path, rows, [f"psi {psi:g}" for psi in PSIS], note)
    return scene.section("truncation", (path, "From the mean slice to beyond the learnt ones."))


def draw_interpolation(scene):
    """interpolation.png and .gif: on straight lines in w from slice to slice."""
    strip, gif = scene.path("interpolation.png"), scene.path("interpolation.gif")
    ways = [loop(w, FRAMES) for w in scene.w]
    frames = [synthesize(scene.model, way) for way in ways]  # [SHOWN * FRAMES, R, R] each
    figures.save_gif(np.concatenate(frames, axis=2), gif)
    count = SHOWN // len(frames)
    cells = [line for slices in frames for line in slices[::2].reshape(SHOWN, FRAMES // 2, *slices.shape[1:])[:count]]
    rows = [name for name in scene.captions for _ in range(count)]
    note = "Each row goes on a straight line in w from one latent (left) to the next, whose row comes after it."
    figures.save_image_table(cells, strip, rows, [""] * (FRAMES // 2), note)
    return scene.section("from slice to slice", (strip, "Straight lines in w."), (gif, "The same as a loop."))


def draw_noise(scene):
    """noise_map.png: the spread over draws of the noise at the same style."""
    path, rng = scene.path("noise_map.png"), random_stream("noise map", scene.seed, scene.device)
    w = torch.cat([w[: SHOWN // len(scene.w)] for w in scene.w])
    draws = [synthesize(scene.model, w, "random", rng) for _ in range(2)]
    mean, spread = noise_spread(scene.model, w, NOISES, rng)
    top = float(np.quantile(spread, 0.999))
    cells = [*zip(*draws, mean.round().astype(np.uint8), figures.colour(spread, top, "inferno"))]
    inside = spread[mean > 0.5].mean()
    note = (
        f"Black to yellow: standard deviation of 0 to {top:.0f} grey levels over {NOISES} draws;\n"
        f"{inside:.1f} on average where there is any tissue."
    )
    figures.save_image_table(
        cells,
        path,
        [name for name in scene.captions for _ in range(SHOWN // len(scene.w))],
        ["one draw", "another", "mean", "deviation"],
        note,
    )
    return scene.section("noise", (path, "Deviation over draws of the noise, at one w."), numbers={"mean_deviation": float(inside)})


def draw_pyramid(scene):
    """pyramid.png: the slice so far at every resolution, and what each adds."""
    path, cells, rows = scene.path("pyramid.png"), [], []
    for w, name in zip(scene.w, scene.captions):
        for i in range(SHOWN // 2 // len(scene.w)):
            levels = pyramid(scene.model, w[i : i + 1])
            cells.append([np.uint8(np.clip((image[0] + 1) * 127.5, 0, 255)) for _, image, _ in levels])
            cells.append([figures.colour(share[0], max(1e-6, float(np.abs(share).max()))) for _, _, share in levels])
            rows += [f"{name} so far".strip(), "added"]
    note = "What each resolution adds to the one before: red brighter, blue darker, each to its own greatest change."
    figures.save_image_table(cells, path, rows, [f"{side}x{side}" for side, _, _ in levels], note)
    return scene.section("resolutions", (path, "From coarse to fine."))


def draw_directions(scene, k):
    """ganspace.png and sefa.png: slices along the first k principal directions."""
    shown, rows = [], []
    for method, name in (("ganspace", "GANSpace"), ("sefa", "SeFa")):
        found = directions(scene.model, k, scene.seed, method)
        path = scene.path(f"{method}.png")
        captions = [
            f"{i + 1}" + ("" if np.isnan(found.cosine[i]) else f"\nr {found.correlation[i]:+.2f}")
            for i in range(len(found.vectors))
        ]
        note = f"{name}: a slice moved along each direction, in standard deviations of w; r: correlation with the class (NC 1)."
        figures.save_image_table(
            along(scene.model, scene.w[0][0], found),
            path,
            captions,
            [f"{move:+.0f} sd" for move in np.linspace(-3, 3, STEPS)],
            note,
        )
        shown.append((path, f"{name}."))
        rows += [
            [name, i + 1, float(found.weight[i]), float(found.cosine[i]), float(found.correlation[i])]
            for i in range(len(found.vectors))
        ]
    table = ReportTable(
        ["method", "direction", "share", "cosine with AD to NC", "correlation with class"],
        rows,
        "share: of w's variance (GANSpace), of the modulation's squared gain (SeFa)",
    )
    return scene.section("principal directions", *shown, tables=[table])


def draw_morph(scene):
    """morph.png, morph_mean.png and morph.gif: the same latents from AD to NC, and the mean difference with its error."""
    found = morph(scene.model, scene.latents(MEANS), SHOWN, scene.psi)
    strip, mean, gif = (scene.path(name) for name in ("morph.png", "morph_mean.png", "morph.gif"))
    difference = found.slices[:, -1].astype(float) - found.slices[:, 0]
    mean_difference = found.means[1] - found.means[0]
    top, limit = (float(np.quantile(np.abs(values), 0.999)) for values in (difference, mean_difference))
    note = (
        f"One latent a row, from label AD to label NC; last the difference: red where NC is brighter, blue where AD is,\n"
        f"to {top:.0f} grey levels."
    )
    figures.save_image_table(
        [[*slices, change] for slices, change in zip(found.slices, figures.colour(difference, top))],
        strip,
        [""] * SHOWN,
        ["AD", *[""] * (STEPS - 2), "NC", "NC - AD"],
        note,
    )
    figures.save_gif(np.concatenate(list(found.slices[:3]), axis=2), gif, 200)
    clear = np.abs(mean_difference) > 2 * found.error
    cells = [
        [
            *found.means.round().astype(np.uint8),
            figures.colour(mean_difference, limit),
            figures.colour(found.error, found.error.max(), "inferno"),
            figures.colour(mean_difference * clear, limit),
        ]
    ]
    about = (
        f"Over {found.latents} latents: red where NC is brighter, blue where AD is, to {limit:.0f} grey levels; standard\n"
        f"error of that mean, black to yellow, to {found.error.max():.1f}; and the mean where it exceeds two. The error\n"
        "tells how well the model's own mean is known, not how true the model is."
    )
    figures.save_image_table(cells, mean, [""], ["mean AD", "mean NC", "NC - AD", "standard error", "beyond 2 errors"], about, 192)
    numbers = {
        "latents": found.latents,
        "mean_absolute_difference": float(np.abs(mean_difference).mean()),
        "share_of_pixels_beyond_two_errors": float(clear.mean()),
    }
    return scene.section(
        "AD and NC of the same latent",
        (mean, "The mean difference of the classes."),
        (strip, "Latents one by one."),
        (gif, "Three latents, AD to NC."),
        numbers=numbers,
    )
