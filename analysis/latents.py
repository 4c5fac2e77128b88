"""What the latents of a trained generator control: style mixing, truncation, interpolation, noise, resolutions, classes.

    samples = Samples(model, seed=0, psi=1.0, output_dir="predictions")
    section = plot_mixing(samples)                      # writes predictions/<model>_mixing.png

The first half computes images, uint8, from style vectors w [N, w_dim]; the second half plots them. psi is the truncation. Noise
is "fixed" (modules.StyleBlock) unless stated otherwise, so that images differ only by what is varied. Principal directions of
the style space are in directions.py.
"""

import math
import os
from typing import NamedTuple

import numpy as np
import torch

from analysis.models import BATCH, draw_z, generate, half_checksum, style_vectors, synthesize
from data.cache import short_hash
from data.damage import note_damaged
from dataset import Slices
from ops import upsample
from report import figures
from report.report import ReportFigure, Section
from utils import CLASSES, UserError, random_stream

SHOWN = 6  # latents in a figure; with two classes, half of them for each in figures with one row per latent
STEPS = 7  # images from one class to the other, or along a direction
PSIS = 0.0, 0.25, 0.5, 0.75, 1.0, 1.25
MORPH_LATENTS = 256  # latents for the mean difference between the classes
NOISE_DRAWS = 32  # random noises for the noise map
FRAMES = 12  # frames of the GIF from one latent to the next


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


@torch.no_grad()
def morph(model, z, shown, psi=1.0, steps=STEPS):
    """The Morph of latents z [N, z_dim], N > 1, in a conditional model: images of the first `shown`, means over all of them.

    The standard error is over latents: it says how well the mean of the model is known, not how realistic the model is.
    """
    ends = []  # w [N, w_dim] of AD and of NC
    for label in (0, 1):
        w, labels = style_vectors(model.mapping, z, label)
        ends.append(model.mapping.truncate(w, psi, labels))
    share = torch.linspace(0, 1, steps, device=z.device)[:, None]
    images = image_grid(model, torch.lerp(ends[0][:shown, None], ends[1][:shown, None], share))
    sums, squares, count = 0.0, 0.0, len(z)
    for ws in zip(*(w.split(BATCH) for w in ends)):
        pairs = np.stack([synthesize(model, w) for w in ws]).astype(np.float64)  # [2, n, R, R]
        sums, squares = sums + pairs.sum(1), squares + ((pairs[1] - pairs[0]) ** 2).sum(0)
    means = sums / count
    variance = np.maximum(squares / count - (means[1] - means[0]) ** 2, 0) * count / (count - 1)
    return Morph(images, means, np.sqrt(variance / count), count)


# ---------------------------------------------------------------------------------------------------------------------
# Figures: each function writes them and returns a report.Section


def run_text(model):
    """What tells the pictures of one run from those of another of the same name, {name: text}; no path is disclosed."""
    return {"run": short_hash(os.path.realpath(model.folder)), "weights": half_checksum(model)[:16]}


def shows_another_run(path, model):
    """Whether `path` is a grid that `plot_grids` has drawn of another run: neither the same folder nor the same weights."""
    found = figures.read_text(path)
    return bool(found) and all(found.get(name) != text for name, text in run_text(model).items())


def grid_path(model, output_dir, name="generated"):
    return os.path.join(output_dir, f"{model.name}_{name}.png")


def plot_grids(model, count, seed, psi, output_dir, dataset_dir=None):
    """generated.png: `count` generated images, of each class of a conditional model; fake_vs_real.png: beside real ones, if
    `dataset_dir` is given."""
    device = model.generator.constant.device
    generated, real = {}, {}
    for label in model.labels:
        classes = model.trained_on if label is None else [CLASSES[label]]
        names = " and ".join(classes)
        generated[f"generated, {names}"] = np.concatenate(list(generate(model, count, seed, psi, label, device)))
        if dataset_dir:
            slices = Slices(dataset_dir, "all" if len(classes) > 1 else classes[0], model.generator.resolution)
            note_damaged(slices, slices.names, dataset_dir)
            real[f"real, {names}"] = figures.spread(slices, count)
    grids = {"generated": generated, "fake_vs_real": generated | real} if real else {"generated": generated}
    shown, columns = [], max(4, math.ceil(math.sqrt(count)))
    for name, images in grids.items():
        path = grid_path(model, output_dir, name)
        figures.save_grids(images, path, columns, run_text(model))
        shown.append(ReportFigure(path, f"The first {count} latents of seed {seed}, psi {psi:g}, not selected."))
    return Section(f"{model.name}: generated images", figures=shown)


class Samples:
    """The style vectors of a model's first SHOWN latents, for the figures below.

    w: [SHOWN, w_dim] of each class of the model, truncated with `psi`; untruncated: the same before truncation, each with its
    labels [SHOWN] or None; captions: the name of each class, "" for a model that is not conditional.
    """

    def __init__(self, model, seed, psi, output_dir):
        self.model, self.seed, self.psi, self.output_dir = model, seed, psi, output_dir
        self.device = model.generator.constant.device
        self.captions = ["" if label is None else CLASSES[label] for label in model.labels]
        with torch.no_grad():
            self.untruncated = [style_vectors(model.mapping, self.latents(SHOWN), label) for label in model.labels]
            self.w = [model.mapping.truncate(w, psi, labels) for w, labels in self.untruncated]
        self.per_class = SHOWN // len(self.w)
        self.row_captions = [caption for caption in self.captions for _ in range(self.per_class)]

    def latents(self, count):
        """The first latents z [count, z_dim]."""
        return draw_z(count, self.model.mapping.z_dim, self.seed).to(self.device)

    def path(self, name):
        """Where to write the file of this name."""
        return os.path.join(self.output_dir, f"{self.model.name}_{name}")

    def section(self, title, *paths_and_captions, **others):
        """A report.Section of figures."""
        figures_shown = [ReportFigure(path, caption) for path, caption in paths_and_captions]
        return Section(f"{self.model.name}: {title}", figures=figures_shown, **others)


def plot_mixing(samples, layers=None):
    """mixing.png: coarse styles by row, the styles of `layers` (None: of 16x16 and above) by column.

    Rows and columns are the two classes of a conditional model, else two sets of latents. UserError for missing layers.
    """
    model, path = samples.model, samples.path("mixing.png")
    num_ws = model.generator.num_ws
    layers = layers or layers_from(16, num_ws)
    if layers[-1] >= num_ws:
        raise UserError(f"--mix_layers {layers[0]}-{layers[-1]}: {model.name} has layers 0 to {num_ws - 1}")
    rows, columns = samples.w[0], samples.w[-1]
    if len(samples.w) == 1:
        columns = model.mapping.truncate(model.mapping(samples.latents(2 * SHOWN)[SHOWN:]), samples.psi)
    mixed = mix_styles(model, rows, columns, layers)
    cells = [[None, *synthesize(model, columns)]]
    cells += [[source, *images] for source, images in zip(synthesize(model, rows), mixed)]
    note = (
        "Above and left: the unmixed images. Each mixed image has the styles of its row, but in layers\n"
        f"{layers[0]} to {layers[-1]} those of its column."
    )
    captions = [samples.captions[-1]] + [samples.captions[0]] * SHOWN
    figures.save_image_table(cells, path, captions, [""] * (SHOWN + 1), note)
    return samples.section("style mixing", (path, "Coarse styles by row, fine styles by column."))


def plot_sweep(samples):
    """sweep.png: the same latents at all PSIS."""
    cells, path = [], samples.path("sweep.png")
    for w, labels in samples.untruncated:
        labels = None if labels is None else labels[: samples.per_class]
        cells += list(truncation_sweep(samples.model, w[: samples.per_class], labels, PSIS))
    note = "At psi 0 all images are the mean of their class; above 1 they exceed what was learnt."
    figures.save_image_table(cells, path, samples.row_captions, [f"psi {psi:g}" for psi in PSIS], note)
    return samples.section("truncation", (path, "From the mean image to beyond what was learnt."))


def plot_interpolation(samples):
    """interpolation.png and interpolation.gif: straight lines in w from each latent to the next."""
    strip, gif = samples.path("interpolation.png"), samples.path("interpolation.gif")
    frames = [synthesize(samples.model, interpolate_loop(w, FRAMES)) for w in samples.w]  # [SHOWN * FRAMES, R, R] each
    figures.save_gif(np.concatenate(frames, axis=2), gif)
    cells = []
    for images in frames:
        cells += list(images[::2].reshape(SHOWN, FRAMES // 2, *images.shape[1:])[: samples.per_class])
    note = "Each row is a straight line in w from one latent (left) to the next."
    figures.save_image_table(cells, strip, samples.row_captions, [""] * (FRAMES // 2), note)
    return samples.section("interpolation", (strip, "Straight lines in w between latents."), (gif, "The same as a loop."))


def plot_noise(samples):
    """noise_map.png: what random noise changes in the image of a w."""
    path, rng = samples.path("noise_map.png"), random_stream("noise map", samples.seed, samples.device)
    w = torch.cat([w[: samples.per_class] for w in samples.w])
    examples = [synthesize(samples.model, w, "random", rng) for _ in range(2)]
    mean, deviation = noise_statistics(samples.model, w, NOISE_DRAWS, rng)
    limit, in_tissue = float(np.quantile(deviation, 0.999)), float(deviation[mean > 0.5].mean())
    cells = [*zip(*examples, mean.round().astype(np.uint8), figures.colour(deviation, limit, "inferno"))]
    note = (
        f"Standard deviation over {NOISE_DRAWS} random noises, black to yellow: 0 to {limit:.0f} grey levels;\n"
        f"{in_tissue:.1f} on average where the mean is not black."
    )
    columns = ["one noise", "another", "mean", "deviation"]
    figures.save_image_table(cells, path, samples.row_captions, columns, note)
    caption = "Standard deviation over random noises, at the same w."
    return samples.section("noise", (path, caption), numbers={"mean_deviation": in_tissue})


def plot_pyramid(samples):
    """pyramid.png: the image after each resolution, and what each resolution adds."""
    path, cells, rows = samples.path("pyramid.png"), [], []
    for w, name in zip(samples.w, samples.captions):
        for i in range(samples.per_class // 2):
            levels = resolution_pyramid(samples.model, w[i : i + 1])
            cells.append([np.uint8(np.clip((image[0] + 1) * 127.5, 0, 255)) for _, image, _ in levels])
            cells.append([figures.colour(part[0], max(1e-6, float(np.abs(part).max()))) for _, _, part in levels])
            rows += [f"{name} so far".strip(), "added"]
    note = "Added: red brighter, blue darker, each scaled to its largest change."
    figures.save_image_table(cells, path, rows, [f"{side}x{side}" for side, _, _ in levels], note)
    return samples.section("resolutions", (path, "The image after each resolution, from coarse to fine."))


def plot_morph(samples):
    """morph.png, morph_mean.png and morph.gif: the same latents from AD to NC, and the mean difference with its error."""
    result = morph(samples.model, samples.latents(MORPH_LATENTS), SHOWN, samples.psi)
    strip, mean, gif = (samples.path(name) for name in ("morph.png", "morph_mean.png", "morph.gif"))

    differences = result.images[:, -1].astype(float) - result.images[:, 0]
    limit = float(np.quantile(np.abs(differences), 0.999))
    cells = [[*images, difference] for images, difference in zip(result.images, figures.colour(differences, limit))]
    note = (
        "One latent per row, from label AD to label NC. Last column, their difference: red where NC is brighter,\n"
        f"blue where AD is, up to {limit:.0f} grey levels."
    )
    figures.save_image_table(cells, strip, [""] * SHOWN, ["AD", *[""] * (STEPS - 2), "NC", "NC - AD"], note)
    figures.save_gif(np.concatenate(list(result.images[:3]), axis=2), gif, 200)

    difference, error = result.means[1] - result.means[0], result.error
    limit = float(np.quantile(np.abs(difference), 0.999))
    beyond = np.abs(difference) > 2 * error
    cells = [
        *result.means.round().astype(np.uint8),
        figures.colour(difference, limit),
        figures.colour(error, error.max(), "inferno"),
        figures.colour(difference * beyond, limit),
    ]
    note = (
        f"Means over {result.latents} latents. Red where NC is brighter, blue where AD is, up to {limit:.0f} grey levels.\n"
        f"Standard error of that difference, black to yellow, up to {error.max():.1f}; last, the difference where it exceeds two\n"
        "errors. The error says how well the mean of the model is known, not how realistic the model is."
    )
    columns = ["mean AD", "mean NC", "NC - AD", "standard error", "beyond 2 errors"]
    figures.save_image_table([cells], mean, [""], columns, note, 192)
    numbers = {
        "latents": result.latents,
        "mean_absolute_difference": float(np.abs(difference).mean()),
        "share_of_pixels_beyond_two_errors": float(beyond.mean()),
    }
    shown = (mean, "The mean difference between the classes."), (strip, "Single latents."), (gif, "Three latents, from AD to NC.")
    return samples.section("AD and NC of the same latents", *shown, numbers=numbers)
