"""Maps of style vectors (UMAP, t-SNE or PCA): of AD and NC models, of a conditional model with real slices, and over training.

    specs = map_specs(ad=load_model("model/AD", device), nc=load_model("model/NC", device), control=...)
    maps = compute_maps(specs, MapSettings("umap", n_neighbors=15, min_dist=0.1, num_styles=1000, seed=0))
    sentences = conclusions(maps)

What a gap between AD and NC in these maps can show, and how it is measured, is in style_space.py; report/maps.py draws them.
"""

import glob
import os
import re
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from analysis import projector
from analysis.age_probe import age_probe
from analysis.areas import known_view, measure_areas
from analysis.bootstrap import fewest_groups
from analysis.models import Model, draw_z, style_vectors, synthesize
from analysis.position import position_probe, slice_indices
from analysis.style_space import (
    StyleSeparation,
    conditional_verdict,
    embed,
    probe_scores,
    same_class_fractions,
    split_like,
    style_separation,
    verdict,
)
from data.subjects import identify, resampled_text, resampling_groups
from dataset import Slices, spread
from utils import CLASSES, UserError, read_config

PAIR, CONTROL, CONDITIONAL = "AD and NC", "control: NC twice", "one conditional model"  # titles of maps
REAL = "real slices in one conditional model"
CONTROL_NAME = "NC, other seed"  # in the legend
FRAMES = 12  # epochs of which maps are made, at most

# ---------------------------------------------------------------------------------------------------------------------
# What is compared


class StyleSource(NamedTuple):
    """Where a set of style vectors comes from."""

    model: Model
    label: int | None  # None: of a model that is not conditional


class MapSpec(NamedTuple):
    """What one map compares: two models, or the two classes of a conditional one."""

    title: str  # PAIR, CONTROL or CONDITIONAL
    sources: dict  # {legend: StyleSource}


class MapSettings(NamedTuple):
    """How maps are made; n_neighbors and min_dist are UMAP's."""

    method: str  # umap, tsne or pca
    n_neighbors: int
    min_dist: float
    num_styles: int  # of each class
    seed: int

    def embed(self, points, start="spectral"):
        return embed(points, self.method, self.seed, self.n_neighbors, self.min_dist, start)


class RealSlices(NamedTuple):
    """Real slices for a conditional model, n of each class."""

    pixels: dict  # {"real AD": uint8 [n, R, R], "real NC": ...}
    names: list  # of their files, AD's first
    scans: list  # their `subjects.Scan`s
    w: dict = {}  # {"real AD": [n, w_dim], ...}: their projections

    @property
    def classes(self):
        """Their labels, int [N]."""
        return np.repeat([0, 1], [len(pixels) for pixels in self.pixels.values()])

    @property
    def points(self):
        return np.concatenate(list(self.w.values()))


class EpochMap(NamedTuple):
    """The map of the style vectors of train.py's fixed latents at one epoch."""

    epoch: int
    points: dict  # {legend: [512, 2]}
    same_class: float  # same-class k-NN fraction


class StyleMap(NamedTuple):
    """A map and what is known of it."""

    spec: MapSpec
    sets: dict  # {legend: w [n, w_dim]}, real slices last
    points: dict  # {legend: [n, 2]}
    separation: StyleSeparation  # of the two sources
    values: dict  # {legend: what colours its points, [n]: numbers or text, nan or "" where unknown}
    real: RealSlices | None = None
    real_separation: StyleSeparation | None = None
    position: dict = {}  # `position_probe` of the real slices
    age: dict | None = None  # `age_probe` of the real slices; None if no age is known
    epochs: list = []  # of EpochMap; empty if the runs have saved no style vectors
    last: dict = {}  # {legend: w [512, w_dim]} at the last of these epochs

    @property
    def title(self):
        return REAL if self.real else self.spec.title


def map_specs(ad=None, nc=None, control=None, conditional=None):
    """The MapSpecs that these Models allow: AD with NC, NC with its control, the classes of a conditional one.

    UserError if style vectors that are to be compared have different lengths.
    """
    specs = []
    if ad and nc:
        specs.append(MapSpec(PAIR, {"AD": StyleSource(ad, None), "NC": StyleSource(nc, None)}))
        if control:
            specs.append(MapSpec(CONTROL, {"NC": StyleSource(nc, None), CONTROL_NAME: StyleSource(control, None)}))
    if conditional:
        specs.append(MapSpec(CONDITIONAL, {name: StyleSource(conditional, label) for label, name in enumerate(CLASSES)}))
    for spec in specs:
        lengths = {source.model.folder: source.model.mapping.w_dim for source in spec.sources.values()}
        if len(set(lengths.values())) > 1:
            raise UserError(f"style vectors of different length cannot be compared: {lengths}")
    return specs


@torch.no_grad()
def style_sets(spec, count, seed):
    """Style vectors {legend: w [count, w_dim]} of a MapSpec's sources, all of the same latents."""
    return {
        name: style_vectors(model.mapping, draw_z(count, model.mapping.z_dim, seed).to(model.device), label)[0].cpu().numpy()
        for name, (model, label) in spec.sources.items()
    }


def read_real_slices(dataset_dir, count, resolution, table=None):
    """RealSlices: `count` slices of each class spread over `dataset_dir`, or all if there are fewer; table: of `read_subjects`."""
    slices = {name: Slices(dataset_dir, name, resolution) for name in CLASSES}
    pixels = {f"real {name}": spread(members, min(count, len(members))) for name, members in slices.items()}
    names = [name for members in slices.values() for name in spread(np.array(members.names), min(count, len(members)))]
    return RealSlices(pixels, names, identify(names, table))


def project_slices(real, model, seed):
    """The RealSlices with their projections into a conditional Model, which is not told their class."""
    targets = np.concatenate(list(real.pixels.values()))
    projection = projector.project(model, targets, np.full(len(targets), -1), seed=seed, progress=True)
    return real._replace(w=split_like(projection.ws[:, 0].numpy(), real.pixels))


# ---------------------------------------------------------------------------------------------------------------------
# Over the epochs: style vectors of the same latents, which train.py saves in styles/


def history(spec):
    """[(epoch, {legend: w [512, w_dim]})] at up to FRAMES of the epochs that all runs of a MapSpec have saved."""
    paths = {name: style_paths(model.folder) for name, (model, _) in spec.sources.items()}
    epochs = sorted(set.intersection(*map(set, paths.values())))
    shown = np.unique(np.linspace(0, len(epochs) - 1, min(FRAMES, len(epochs))).round().astype(int))
    labels = {name: label for name, (_, label) in spec.sources.items()}
    return [(epochs[i], {name: read_styles(paths[name][epochs[i]], label) for name, label in labels.items()}) for i in shown]


def style_paths(folder):
    """{epoch: path} of the files in a run's styles/."""
    paths = glob.glob(os.path.join(glob.escape(folder), "styles", "epoch_*.npy"))
    return {int(found[1]): path for path in paths if (found := re.search(r"epoch_([0-9]{4,})\.npy$", path))}


def read_styles(path, label=None):
    """w [512, w_dim] of one epoch: of a file of that shape, or of the label in the file [2, 512, w_dim] of a conditional model.

    UserError if the file holds anything else.
    """
    classes = () if label is None else (len(CLASSES),)
    try:
        w = np.load(path, allow_pickle=False)
        if w.shape[:-2] != classes or w.ndim != len(classes) + 2 or not w.size or w.dtype.kind not in "fiu":
            raise ValueError
        with np.errstate(over="ignore"):
            w = w.astype(np.float32)
        if not (np.abs(w) <= 1e6).all():
            raise ValueError
    except Exception as error:  # NumPy raises nearly any error on a damaged file
        raise UserError(f"{path}: these are not style vectors saved by train.py ({type(error).__name__}); remove it") from None
    return w if label is None else w[label]


def maps_over_epochs(saved, settings, done=lambda: None):
    """The EpochMaps of `history`, by MapSettings; each map starts from the one before. done: called after each map."""
    maps, start = [], "spectral"
    for epoch, sets in saved:
        points = np.concatenate(list(sets.values()))
        classes = np.repeat(np.arange(len(sets)), [len(rows) for rows in sets.values()])
        start = settings.embed(points, start)
        start = start - start.mean(0)  # maps drift from epoch to epoch
        maps.append(EpochMap(epoch, split_like(start, sets), same_class_fractions(points, classes).mean()))
        done()
    return maps


# ---------------------------------------------------------------------------------------------------------------------
# The maps


def compute_maps(specs, settings, real=None, colour="class"):
    """A StyleMap for each of the MapSpecs; real: projected RealSlices, for the map of the conditional model.

    colour: "class", or "age", "sex" or "area", which fills the values of the maps.
    """
    saved = {spec.title: history(spec) for spec in specs}
    maps = []
    with tqdm(total=len(specs) + sum(map(len, saved.values())), desc=settings.method, unit=" maps") as bar:
        for spec in specs:
            style_map = compute_map(spec, settings, real if spec.title == CONDITIONAL else None, colour)
            bar.update()
            if epochs := saved[spec.title]:
                style_map = style_map._replace(epochs=maps_over_epochs(epochs, settings, bar.update), last=epochs[-1][1])
            maps.append(style_map)
    return maps


def compute_map(spec, settings, real, colour):
    """The StyleMap of one MapSpec, without its epochs; real: RealSlices, or None."""
    sets, seed = style_sets(spec, settings.num_styles, settings.seed), settings.seed
    separation, of_real = style_separation(*sets.values(), seed=seed), {}
    if real is not None:
        of_real["real"], of_real["position"] = real, real_position(real, seed)
        of_real["real_separation"] = style_separation(*real.w.values(), resampling_groups(real.scans)[0], seed)
        of_real["age"] = age_probe(real.points, real.classes, real.scans, slice_indices(real.names), seed)
        sets |= real.w
    points = split_like(settings.embed(np.concatenate(list(sets.values()))), sets)
    values = {}
    if colour == "area":
        values = ventricle_areas(spec, sets, real)
    elif colour != "class" and real is not None:
        unknown = {"age": np.nan, "sex": ""}[colour]
        known = np.array([unknown if (value := getattr(scan, colour)) is None else value for scan in real.scans])
        values = split_like(known, real.pixels)
    return StyleMap(spec, sets, points, separation, values, **of_real)


def real_position(real, seed):
    """`position_probe` of the linear probe of projected RealSlices."""
    groups, is_ad = resampling_groups(real.scans)[0], real.classes == 0
    scores = np.zeros(len(is_ad))
    if fewest_groups(is_ad, groups) >= 2:
        scores = -probe_scores(real.points, real.classes, groups, seed)  # of AD, which is label 0
    return position_probe(scores, is_ad, groups, real.names, seed=seed)


def ventricle_areas(spec, sets, real=None):
    """{legend: mm^2 [n]}: ventricle areas of RealSlices and, for the style vectors of a MapSpec's sources in `sets`, of the slices
    that their models draw of them with fixed noise. UserError if their view cannot be told."""
    images = {
        name: synthesize(model, torch.from_numpy(sets[name]).to(model.device)) for name, (model, _) in spec.sources.items()
    } | (real.pixels if real else {})
    view = known_view(np.concatenate(list(images.values())), " and ".join({s.model.folder: None for s in spec.sources.values()}))
    return {name: measure_areas(pixels, view, f"areas, {name}")["ventricle"] for name, pixels in images.items()}


# ---------------------------------------------------------------------------------------------------------------------
# What they show


def conclusions(maps):
    """{title of a StyleMap: a sentence on what it shows}; the pair and its control share one."""
    by_title, sentences = {style_map.spec.title: style_map for style_map in maps}, {}
    if pair := by_title.get(PAIR):
        control = by_title.get(CONTROL)
        sentence = verdict(pair.separation, control and control.separation, comparable_seeds(pair, control))
        sentences |= {style_map.title: sentence for style_map in (pair, control) if style_map}
    if conditional := by_title.get(CONDITIONAL):
        sentence = conditional_verdict(conditional.real_separation, conditional.position)
        if conditional.real:
            sentence += f" Of real slices: {resampled_text(resampling_groups(conditional.real.scans)[1])}"
        sentences[conditional.title] = sentence
    return sentences


def comparable_seeds(pair, control):
    """Whether the models of the maps PAIR and CONTROL are comparable: each pair with one shared seed, or each with two.

    True without a control (None).
    """
    if control is None:
        return True
    ad, nc = pair.spec.sources["AD"], pair.spec.sources["NC"]
    folders = [source.model.folder for source in (ad, nc, control.spec.sources[CONTROL_NAME])]
    seeds = [read_config(folder).get("flags", {}).get("seed") for folder in folders]
    return (seeds[0] == seeds[1]) == (seeds[1] == seeds[2])
