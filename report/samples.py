"""Pictures of what a model generates, the files of predict.py --draw: each function writes some and returns a report.Section.

    samples = Samples(model, seed=0, psi=1.0, output_dir="predictions")
    section = plot_mixing(samples)                      # writes predictions/<model>_mixing.png

What they show is computed in analysis/latents.py.
"""

import math
import os

import numpy as np
import torch

from analysis import latents
from analysis.encoded_maps import read_real_slices
from analysis.models import draw_z, generate, style_vectors, synthesize
from analysis.values import follows, sentences, slice_values
from data.damage import note_damaged
from dataset import Slices, spread
from report import figures
from report.report import ReportFigure, ReportTable, Section
from utils import CLASSES, random_stream

SHOWN = 6  # latents in a figure; with two classes, half of them for each where a row is a latent
PSIS = 0.0, 0.25, 0.5, 0.75, 1.0, 1.25
DIRECTIONS = 5  # of each method
MORPH_LATENTS = 256  # latents for the mean difference between the classes
NOISE_DRAWS = 32  # random noises for the noise map
FRAMES = 12  # of the GIF from one latent to the next


def name_apart(models):
    """The models, with folders above in the names of those that share one, letter case aside: their files begin with it."""
    paths = [os.path.abspath(model.folder).strip(os.sep).split(os.sep) for model in models]
    named = []
    for model, path in zip(models, paths):
        others = [[part.casefold() for part in other] for other in paths if other != path]
        depth = 1
        while depth < len(path) and [part.casefold() for part in path[-depth:]] in [other[-depth:] for other in others]:
            depth += 1
        named.append(model._replace(name="_".join(path[-depth:])))
    return named


class Samples:
    """The style vectors of a model's first SHOWN latents, for the pictures below.

    w: [SHOWN, w_dim] of each class of the model, truncated with `psi`; untruncated: before that, each with its labels [SHOWN] or
    None; captions: the name of each class, "" for a model that is not conditional.
    """

    def __init__(self, model, seed, psi, output_dir):
        self.model, self.seed, self.psi, self.output_dir = model, seed, psi, output_dir
        self.captions = CLASSES if model.is_conditional else ("",)
        with torch.no_grad():
            self.untruncated = [style_vectors(model.mapping, self.latents(SHOWN), label) for label in model.labels]
            self.w = [model.mapping.truncate(w, psi, labels) for w, labels in self.untruncated]
        self.per_class = SHOWN // len(self.w)
        self.row_captions = [caption for caption in self.captions for _ in range(self.per_class)]

    def latents(self, count):
        """The first latents z [count, z_dim]."""
        return draw_z(count, self.model.mapping.z_dim, self.seed).to(self.model.device)

    def save_table(self, name, cells, *captions_and_note, min_side=128):
        """Write an image table of this name, see `figures.save_image_table`; returns its path."""
        figures.save_image_table(cells, self.path(f"{name}.png"), *captions_and_note, min_side=min_side)
        return self.path(f"{name}.png")

    def save_gif(self, name, frames, milliseconds=80):
        figures.save_gif(frames, self.path(f"{name}.gif"), milliseconds)
        return self.path(f"{name}.gif")

    def path(self, name):
        return os.path.join(self.output_dir, f"{self.model.name}_{name}")

    def section(self, title, *paths_and_captions, **others):
        """A report.Section of figures."""
        shown = [ReportFigure(path, caption) for path, caption in paths_and_captions]
        return Section(f"{self.model.name}: {title}", figures=shown, **others)


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def plot_grids(samples, count, dataset_dir=None):
    """generated.png: `count` generated images, of each class of a conditional model; fake_vs_real.png: beside real ones, if
    `dataset_dir` is given."""
    model, generated, real = samples.model, {}, {}
    for label in model.labels:
        classes = model.trained_on if label is None else [CLASSES[label]]
        names = " and ".join(classes)
        generated[f"generated, {names}"] = np.concatenate(list(generate(model, count, samples.seed, samples.psi, label)))
        if dataset_dir:
            slices = Slices(dataset_dir, "all" if len(classes) > 1 else classes[0], model.resolution)
            note_damaged(slices, slices.names, dataset_dir)
            real[f"real, {names}"] = spread(slices, min(count, len(slices)))
    shown, columns = [], max(4, math.ceil(math.sqrt(count)))
    for name, images in {"generated": generated, **({"fake_vs_real": generated | real} if real else {})}.items():
        path = samples.path(f"{name}.png")
        figures.save_grids(images, path, columns)
        shown.append((path, f"The first {count} latents of seed {samples.seed}, psi {samples.psi:g}, not selected."))
    return samples.section("generated images", *shown)


def plot_mixing(samples):
    """mixing.png: coarse styles by row, those of layers from 16x16 on by column; each a class, or a set of latents."""
    model, num_ws = samples.model, samples.model.generator.num_ws
    layers = latents.layers_from(16, num_ws)
    rows, columns = samples.w[0], samples.w[-1]
    if not model.is_conditional:
        columns = model.mapping.truncate(model.mapping(samples.latents(2 * SHOWN)[SHOWN:]), samples.psi)
    mixed = latents.mix_styles(model, rows, columns, layers)
    cells = [[None, *synthesize(model, columns)]]
    cells += [[source, *images] for source, images in zip(synthesize(model, rows), mixed)]
    note = f"Mixed images have the styles of their row, but in layers {layers[0]} to {layers[-1]} those of their column."
    captions = [samples.captions[-1]] + [samples.captions[0]] * SHOWN
    path = samples.save_table("mixing", cells, captions, [""] * (SHOWN + 1), note)
    return samples.section("style mixing", (path, "Coarse styles by row, fine styles by column."))


def plot_sweep(samples):
    """sweep.png: the same latents at all PSIS."""
    cells = []
    for w, labels in samples.untruncated:
        labels = None if labels is None else labels[: samples.per_class]
        cells += list(latents.truncation_sweep(samples.model, w[: samples.per_class], labels, PSIS))
    note = "At psi 0 all images are the mean of their class; above 1 they exceed what was learnt."
    path = samples.save_table("sweep", cells, samples.row_captions, [f"psi {psi:g}" for psi in PSIS], note)
    return samples.section("truncation", (path, "From the mean image to beyond what was learnt."))


def plot_interpolation(samples):
    """interpolation.png and interpolation.gif: straight lines in w from each latent to the next."""
    frames = [synthesize(samples.model, latents.interpolate_loop(w, FRAMES)) for w in samples.w]  # [SHOWN * FRAMES, R, R] each
    gif = samples.save_gif("interpolation", np.concatenate(frames, axis=2))
    cells = []
    for images in frames:
        cells += list(images[::2].reshape(SHOWN, FRAMES // 2, *images.shape[1:])[: samples.per_class])
    note = "Each row is a straight line in w from one latent (left) to the next."
    path = samples.save_table("interpolation", cells, samples.row_captions, [""] * (FRAMES // 2), note)
    return samples.section("interpolation", (path, "Straight lines in w between latents."), (gif, "The same as a loop."))


def plot_noise(samples):
    """noise_map.png: what random noise changes in the image of a w."""
    rng = random_stream("noise map", samples.seed, samples.model.device)
    w = torch.cat([w[: samples.per_class] for w in samples.w])
    examples = [synthesize(samples.model, w, "random", rng) for _ in range(2)]
    mean, deviation = latents.noise_statistics(samples.model, w, NOISE_DRAWS, rng)
    limit, in_tissue = float(np.quantile(deviation, 0.999)), float(deviation[mean > 0.5].mean())
    cells = [*zip(*examples, mean.round().astype(np.uint8), figures.colour(deviation, limit, "inferno"))]
    note = (
        f"Standard deviation over {NOISE_DRAWS} random noises, black to yellow: 0 to {limit:.0f} grey levels;\n"
        f"{in_tissue:.1f} on average where the mean is not black."
    )
    path = samples.save_table("noise_map", cells, samples.row_captions, ["one noise", "another", "mean", "deviation"], note)
    caption = "Standard deviation over random noises, at the same w."
    return samples.section("noise", (path, caption), numbers={"mean_deviation": in_tissue})


def plot_pyramid(samples):
    """pyramid.png: the image after each resolution, and what each resolution adds."""
    cells, rows = [], []
    for w, name in zip(samples.w, samples.captions):
        for i in range(samples.per_class // 2):
            levels = latents.resolution_pyramid(samples.model, w[i : i + 1])
            cells.append([np.uint8(np.clip((image[0] + 1) * 127.5, 0, 255)) for _, image, _ in levels])
            cells.append([figures.colour(part[0], max(1e-6, float(np.abs(part).max()))) for _, _, part in levels])
            rows += [f"{name} so far".strip(), "added"]
    note = "Added: red brighter, blue darker, each scaled to its largest change."
    path = samples.save_table("pyramid", cells, rows, [f"{side}x{side}" for side, _, _ in levels], note)
    return samples.section("resolutions", (path, "The image after each resolution, from coarse to fine."))


def plot_directions(samples):
    """ganspace.png and sefa.png: an image moved along the first DIRECTIONS principal directions of w."""
    shown, table_rows = [], []
    for method, name in latents.METHODS.items():
        directions = latents.find_directions(samples.model, DIRECTIONS, samples.seed, method)
        rows = [f"{i + 1}" for i in range(len(directions.vectors))]
        if samples.model.is_conditional:
            rows = [f"{row}\nr {correlation:+.2f}" for row, correlation in zip(rows, directions.correlation)]
        distances = np.linspace(-latents.REACH, latents.REACH, latents.STEPS)
        columns = [f"{distance:+.0f} sd" if distance else "0" for distance in distances]
        note = f"{name}: an image moved along each direction, in standard deviations of w."
        if samples.model.is_conditional:
            note += " r: correlation with the class (NC is 1)."
        images = latents.move_along(samples.model, samples.w[0][0], directions)
        shown.append((samples.save_table(method, images, rows, columns, note), f"{name}."))
        numbers = zip(directions.share, directions.cosine, directions.correlation)
        table_rows += [[name, i + 1, *map(float, values)] for i, values in enumerate(numbers)]
    columns = ["method", "direction", "share", "cosine with AD to NC", "correlation with class"]
    caption = "share: of the variance of w (GANSpace), of the squared gain of the modulation (SeFa)"
    table = ReportTable(columns, table_rows, caption)
    return samples.section("principal directions", *shown, tables=[table])


def plot_morph(samples):
    """morph.png, morph_mean.png and morph.gif of a conditional model: the same latents from AD to NC, and the mean difference."""
    result = latents.morph(samples.model, samples.latents(MORPH_LATENTS), SHOWN, samples.psi, seed=samples.seed)
    difference = result.means[1] - result.means[0]
    mean = plot_mean_difference(samples, result, difference)
    ends = result.images[:, -1].astype(float) - result.images[:, 0]
    limit = float(np.quantile(np.abs(ends), 0.999))
    cells = [[*images, last] for images, last in zip(result.images, figures.colour(ends, limit))]
    note = (
        "One latent per row, from label AD to label NC. Last column, their difference: red where NC is brighter,\n"
        f"blue where AD is, up to {limit:.0f} grey levels."
    )
    columns = ["AD", *[""] * (latents.STEPS - 2), "NC", "NC - AD"]
    strip = samples.save_table("morph", cells, [""] * SHOWN, columns, note)
    gif = samples.save_gif("morph", np.concatenate(list(result.images[:3]), axis=2), 200)
    numbers = {"latents": result.latents, "mean_absolute_difference": float(np.abs(difference).mean())}
    numbers |= {"share_of_pixels_beyond_two_errors": result.found, "share_by_chance": result.chance}
    text = [
        f"{result.found:.0%} of the pixels differ by more than two standard errors; if the label made no difference, "
        f"{result.chance[0]:.0%} would on average, and up to {result.chance[1]:.0%} in 97.5% of draws."
    ]
    shown = (mean, "The mean difference between the classes."), (strip, "Single latents."), (gif, "Three latents, from AD to NC.")
    return samples.section("AD and NC of the same latents", *shown, text=text, numbers=numbers)


def plot_values(samples, dataset_dir=None, table=None):
    """values_<name>.png for each value that a model is told beside the class: the same latents with this value moved.

    dataset_dir, table: real slices and their people, by which it is measured whether the model does what it is told.
    """
    shown, text = [], []
    if dataset_dir:
        real = read_real_slices(dataset_dir, samples.model.resolution, table)
        values = slice_values(real.names, samples.model.values, real.scans)
        text = sentences(follows(samples.model, real.pixels, values, real.groups, samples.seed))
    for name in samples.model.values:
        images, asked = latents.move_value(samples.model, samples.latents(samples.per_class), name, samples.psi)
        columns = ["F", "M"] if name == "sex" else [f"{name} {value:.0f}" for value in asked]
        note = f"One latent per row, as each class in turn; along a row nothing but the {name} that the model is told changes."
        path = samples.save_table(f"values_{name}", list(np.concatenate(images)), samples.row_captions, columns, note)
        shown.append((path, f"The same latents, told another {name}."))
    return samples.section("values that the model is told", *shown, text=text)


def plot_mean_difference(samples, result, difference):
    """morph_mean.png of a `latents.Morph`; difference [R, R]: of its means."""
    limit = float(np.quantile(np.abs(difference), 0.999))
    cells = [
        *result.means.round().astype(np.uint8),
        figures.colour(difference, limit),
        figures.colour(result.error, result.error.max(), "inferno"),
        figures.colour(difference * (np.abs(difference) > 2 * result.error), limit),
    ]
    note = (
        f"Means over {result.latents} latents. Red where NC is brighter, blue where AD is, up to {limit:.0f} grey levels.\n"
        f"Standard error of that difference, black to yellow, up to {result.error.max():.1f}; last, the difference where it "
        f"exceeds two\nerrors: {result.found:.0%} of the pixels, by chance {result.chance[0]:.0%} (up to {result.chance[1]:.0%}). "
        "The error says how well the mean of the model is known,\nnot how realistic the model is."
    )
    columns = ["mean AD", "mean NC", "NC - AD", "standard error", "beyond 2 errors"]
    return samples.save_table("morph_mean", [cells], [""], columns, note, min_side=192)


DRAW = {
    "mixing": plot_mixing,
    "sweep": plot_sweep,
    "interpolate": plot_interpolation,
    "noise": plot_noise,
    "pyramid": plot_pyramid,
    "directions": plot_directions,
    "morph": plot_morph,
}
