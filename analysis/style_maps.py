"""Maps of true style vectors (UMAP, t-SNE or PCA), what mapping networks give: of AD and NC models, and over training.

    specs = map_specs(ad=load_model("model/AD", device), nc=load_model("model/NC", device), control=...)
    maps = compute_maps(specs, MapSettings("umap", n_neighbors=15, min_dist=0.1, num_styles=1000, seed=0))
    sentences = conclusions(maps)

What a gap between AD and NC in these maps can show, and how it is measured, is in style_space.py; report/maps.py draws them.
Slices, real and generated, are mapped in encoded_maps.py.
"""

import glob
import os
import re
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from analysis.models import Model, draw_z, style_vectors
from analysis.style_space import (
    CONDITIONAL_NOTE,
    StyleSeparation,
    embed,
    same_class_fractions,
    split_like,
    style_separation,
    verdict,
)
from utils import CLASSES, UserError, read_config

PAIR, CONTROL, CONDITIONAL = "AD and NC", "control: NC twice", "one conditional model"  # titles of maps
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


class EpochMap(NamedTuple):
    """The map of the style vectors of train.py's fixed latents at one epoch."""

    epoch: int
    points: dict  # {legend: [512, 2]}
    same_class: float  # same-class k-NN fraction


class StyleMap(NamedTuple):
    """A map and what is known of it."""

    spec: MapSpec
    sets: dict  # {legend: w [n, w_dim]}
    points: dict  # {legend: [n, 2]}
    separation: StyleSeparation  # of the two sources
    epochs: list = []  # of EpochMap; empty if the runs have saved no style vectors
    last: dict = {}  # {legend: w [512, w_dim]} at the last of these epochs


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


def compute_maps(specs, settings):
    """A StyleMap for each of the MapSpecs."""
    saved = {spec.title: history(spec) for spec in specs}
    maps = []
    with tqdm(total=len(specs) + sum(map(len, saved.values())), desc=settings.method, unit=" maps") as bar:
        for spec in specs:
            sets = style_sets(spec, settings.num_styles, settings.seed)
            points = split_like(settings.embed(np.concatenate(list(sets.values()))), sets)
            style_map = StyleMap(spec, sets, points, style_separation(*sets.values(), seed=settings.seed))
            bar.update()
            if epochs := saved[spec.title]:
                style_map = style_map._replace(epochs=maps_over_epochs(epochs, settings, bar.update), last=epochs[-1][1])
            maps.append(style_map)
    return maps


# ---------------------------------------------------------------------------------------------------------------------
# What they show


def conclusions(maps):
    """{title of a MapSpec: a sentence on what it shows}; the pair and its control share one."""
    by_title, sentences = {style_map.spec.title: style_map for style_map in maps}, {}
    if pair := by_title.get(PAIR):
        control = by_title.get(CONTROL)
        sentence = verdict(pair.separation, control and control.separation, comparable_seeds(pair, control))
        sentences |= {style_map.spec.title: sentence for style_map in (pair, control) if style_map}
    if CONDITIONAL in by_title:
        sentences[CONDITIONAL] = CONDITIONAL_NOTE
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
