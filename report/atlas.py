"""atlas.html: a map in which every point shows its slice, as one page that needs neither a network nor a server.

    atlas = Atlas(side=64)
    cells = atlas.add_slices(pixels)                    # uint8 [N, R, R]
    view = View(None, [PointSet("AD", points, cells, {"number": range(N)}, {"class": "AD"})])     # points [N, 2]
    atlas.write("predictions/atlas.html", "Atlas", [Tab("AD and NC", "What the map can carry.", [], [view])])

`write_style_atlas` fills it with the maps of predict.py --plot_umap, `write_quality_atlas` with the sets that metrics.py compares.
All slices are in one grey JPEG, the sprite, side by side in cells of 64x64; the page's script, atlas.js, cuts them out. Sentences
and numbers say of each map what it can carry; the page shows them above it.
"""

import base64
import io
import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from analysis.areas import measure_areas, view_or_note
from analysis.distances import in_balls
from analysis.models import load_model, read_generator, synthesize, weights_file
from analysis.projector import class_of
from analysis.style_maps import REAL, chosen_slices
from analysis.style_space import EPOCHS_NOTE, embed
from data.subjects import identify
from report.figures import resize
from report.report import fill_template, interval_text, number_text, plain
from utils import CLASSES, atomic_path

SIDE, QUALITY = 64, 80  # pixels of a slice in the page, at most; JPEG's quality
CLUSTERS, STEPS = 5, 5  # centres of w in a run; slices between two of them
EPOCH_LATENTS = 200  # of train.py's 512 fixed latents, in the view over the epochs


class PointSet(NamedTuple):
    """n slices of one kind in a view."""

    name: str  # in the legend
    points: np.ndarray  # [n, 2], or [epochs, n, 2]
    cells: np.ndarray  # of the slices in the sprite, int [n]
    facts: dict  # {name: n values}: number, file, area, distance, age, sex, missed, drawn, cluster, row (see atlas.js)
    about: dict  # of all: class, run, trained, seed, real


class View(NamedTuple):
    """One map: of today's style vectors, or of the epochs."""

    epochs: list | None  # numbers, with the share of neighbours alike of each: [(0, 0.52), ...]; None: a single map
    sets: list  # of PointSet
    note: str = ""


class Measure(NamedTuple):
    """A number that a tab shows, with the value by which it is judged."""

    name: str
    value: float
    text: str
    low: float
    high: float
    reference: float
    reference_name: str


class Tab(NamedTuple):
    title: str
    sentence: str  # what its map can carry
    measures: Sequence
    views: Sequence


class Atlas:
    """Collects slices and style vectors, each once, and writes the page."""

    def __init__(self, side=SIDE):
        self.side, self.count, self.images, self.styles, self.numbers, self.lines = side, 0, [], [], 0, {}

    def add_slices(self, pixels):
        """Take slices uint8 [N, R, R], R a power of two, into the sprite; returns their cells, int [N]."""
        self.images.append(resize(np.ascontiguousarray(pixels), self.side))
        self.count += len(pixels)
        return np.arange(self.count - len(pixels), self.count)

    def add_styles(self, w):
        """Take style vectors [N, w_dim], as float16; returns where each begins among all their numbers, int [N]."""
        self.styles.append(np.asarray(w, np.float16).ravel())
        self.numbers += w.size
        return np.arange(self.numbers - w.size, self.numbers, w.shape[1])

    def sprite(self):
        """(The slices as JPEG, cells in a row). Cells are whole blocks of JPEG, so that none bleeds into another."""
        columns = math.ceil(math.sqrt(self.count))
        rows = math.ceil(self.count / columns)
        canvas = np.zeros((rows, columns, self.side, self.side), np.uint8)
        canvas.reshape(-1, self.side, self.side)[: self.count] = np.concatenate(self.images)
        content = io.BytesIO()
        Image.fromarray(canvas.swapaxes(1, 2).reshape(rows * self.side, columns * self.side)).save(
            content, format="JPEG", quality=QUALITY, optimize=True
        )
        return content.getvalue(), columns

    def write(self, path, title, tabs, facts=None):
        """Write the page; facts: {name: text} for its foot. Names and texts may be any: the template escapes them."""
        sprite, columns = self.sprite()
        styles = np.concatenate([np.empty(0, np.float16), *self.styles])
        data = {
            "side": self.side,
            "columns": columns,
            "tabs": [{"title": tab.title, "views": [view_content(view) for view in tab.views]} for tab in tabs],
            "lines": self.lines,
            "w": base64.b64encode(styles.astype("<f2").tobytes()).decode(),
        }
        page = fill_template(
            "atlas.html.j2",
            title=title,
            tabs=tabs,
            facts=facts or {},
            data=plain(data),
            sprite="data:image/jpeg;base64," + base64.b64encode(sprite).decode(),
        )
        with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", errors="replace", newline="\n") as file:
            file.write(page)


def view_content(view):
    """What the page's script needs of a view: columns over the slices of all sets, with None where a set lacks a fact."""
    names = list(dict.fromkeys(name for of_set in view.sets for name in of_set.facts))
    points = np.concatenate([of_set.points.reshape(-1, len(of_set.cells), 2) for of_set in view.sets], 1)  # [epochs, n, 2]
    size = (points.max((0, 1)) - points.min((0, 1))).max() or 1
    points = np.round((points - points.min((0, 1))) / size, 4)  # the longer side of the map from 0 to 1
    columns = {
        name: [rounded(value) for of_set in view.sets for value in of_set.facts.get(name, [None] * len(of_set.cells))]
        for name in names
    }
    return {
        "note": view.note,
        "epochs": view.epochs and [epoch for epoch, _ in view.epochs],
        "alike": view.epochs and [float(share) for _, share in view.epochs],
        "sets": [{"name": of_set.name, **of_set.about} for of_set in view.sets],
        "set": np.repeat(np.arange(len(view.sets)), [len(of_set.cells) for of_set in view.sets]),
        "cell": np.concatenate([of_set.cells for of_set in view.sets]),
        "x": points[..., 0],
        "y": points[..., 1].max() - points[..., 1],  # upwards, as in the figures
        "facts": columns,
    }


def rounded(value):
    """Floats with five digits, which are enough to read; anything else as it is."""
    return float(f"{value:.5g}") if isinstance(value, (float, np.floating)) else value


def area_facts(pixels, view):
    """{"area": ventricle areas, mm^2} of uint8 [N, R, R]; nothing if `view`, of `view_or_note`, is None."""
    return {"area": measure_areas(pixels, view)["ventricle"]} if view else {}


def scan_facts(names, table):
    """{"file", "age", "sex"} of slices with these file names; table: of `read_subjects`, or None."""
    scans = identify(names, table)
    return {"file": names, "age": [scan.age for scan in scans], "sex": [scan.sex for scan in scans]}


# ---------------------------------------------------------------------------------------------------------------------
# Style vectors: predict.py --plot_umap True --atlas True


class Run:
    """A run in the atlas: draws style vectors, each batch of a set once, and knows its mean, spread and clusters of w."""

    def __init__(self, atlas, folder, which, w, device, seed):
        from sklearn.cluster import KMeans

        self.atlas, self.folder, self.device, self.drawn = atlas, folder, device, {}
        self.model = load_model(folder, device, which)
        images = read_generator(weights_file(folder, which))["images"]
        self.about = {"run": folder, "trained": f"{which}, {images / 1000:.1f} kimg", "w_dim": w.shape[1]}
        self.mean = w.mean(0)
        self.spread = math.sqrt(np.square(w - self.mean).sum(1).mean()) or 1.0
        self.clusters = KMeans(min(CLUSTERS, len(np.unique(w, axis=0))), n_init=1, random_state=seed).fit(w)
        atlas.lines[folder] = self.draw_lines(self.clusters.cluster_centers_.astype(np.float32))

    def synthesize(self, w):
        w = torch.from_numpy(np.ascontiguousarray(w, np.float32)).to(self.device)
        bar = tqdm(w.split(256), f"atlas: slices of {self.folder}", leave=False, disable=None if len(w) > 256 else True)
        return np.concatenate([synthesize(self.model, part) for part in bar])

    def draw_lines(self, centres):
        """Cells of the slices between clusters a < b, STEPS inner ones with the centres at the ends: {"a b": [cells]}."""
        ends = self.atlas.add_slices(self.synthesize(centres))
        share, lines = np.linspace(0, 1, STEPS + 2, dtype=np.float32)[1:-1, None], {}
        for a in range(len(centres)):
            for b in range(a + 1, len(centres)):
                inner = self.atlas.add_slices(self.synthesize(centres[a] + share * (centres[b] - centres[a])))
                lines[f"{a} {b}"] = [ends[a], *inner, ends[b]]
        return lines

    def facts(self, w):
        """Of style vectors [n, w_dim]: rows in the atlas, distance from the mean of w over its root mean square, cluster."""
        distance = np.sqrt(np.square(w - self.mean).sum(1)) / self.spread
        return {"row": self.atlas.add_styles(w), "distance": distance, "cluster": self.clusters.predict(np.asarray(w, np.float32))}

    def generated(self, kind, name, points, w, about):
        """The PointSet of w [n, w_dim] drawn with fixed noise; the same `kind` of the same run is drawn once."""
        if kind not in self.drawn:
            pixels = self.synthesize(w)
            if not self.drawn:
                self.view = view_or_note(pixels, f"atlas of {self.folder}")
            facts = {"number": range(len(w)), **area_facts(pixels, self.view), **self.facts(w)}
            self.drawn[kind] = self.atlas.add_slices(pixels), facts
        cells, facts = self.drawn[kind]
        return PointSet(name, points, cells, facts, {**self.about, "real": False, **about})


def write_style_atlas(path, maps, which, count, seed, device, dataset_dir=None, real_count=0, table=None):
    """Write the page of `maps`, StyleMaps of `plot_umaps` with the same `which`, `seed`, `dataset_dir` and `real_count`.

    count: slices of each set; table: of `read_subjects`. Real slices show their pixels, and beside them what the model draws at
    the style vector that reproduces them best.
    """
    sides = {load_model(folder, "cpu", which).generator.resolution for of_map in maps for folder in run_folders(of_map).values()}
    atlas, runs, tabs = Atlas(min(SIDE, *sides)), {}, []
    for of_map in maps:
        folders = run_folders(of_map)
        for folder in dict.fromkeys(folders.values()):
            if folder not in runs:
                w = np.concatenate([of_map.sets[name] for name, of_set in folders.items() if of_set == folder])
                runs[folder] = Run(atlas, folder, which, w, device, seed)
        sets = []
        for name, folder in folders.items():
            about = {"class": name[:2], "seed": seed}
            w, points = of_map.sets[name][:count], of_map.points[name][:count]
            sets.append(runs[folder].generated(name[:2], name, points, w, about))
        if of_map.title == REAL:
            sets += real_sets(runs[of_map.runs], of_map, dataset_dir, real_count, table)
        views = [View(None, sets)]
        if of_map.epochs:
            views.append(epochs_view(runs, folders, of_map))
        tabs.append(Tab(of_map.title, of_map.sentence, separation_measures(of_map.measures), views))
    note = "The slices are drawn with fixed noise, so that they differ by their style vectors alone."
    atlas.write(path, "Atlas of style vectors", tabs, {"slices": note})


def run_folders(of_map):
    """{legend: run folder} of a StyleMap's generated sets."""
    return dict.fromkeys(CLASSES, of_map.runs) if isinstance(of_map.runs, str) else of_map.runs


def separation_measures(measures):
    """Measures of {name: Interval} as `style_separation` gives them: 0.5 by chance."""
    return [
        Measure(name, interval.value, interval_text(*interval), *interval[1:], 0.5, "chance") for name, interval in measures.items()
    ]


def real_sets(run, of_map, dataset_dir, real_count, table):
    """The PointSets of a conditional run's projected slices, with the slice drawn at each style vector."""
    pixels, names = chosen_slices(dataset_dir, real_count, run.model.generator.resolution)
    sets = []
    for name, of_class in pixels.items():
        files, names = names[: len(of_class)], names[len(of_class) :]
        w = of_map.sets[name]
        facts = {**scan_facts(files, table), **area_facts(of_class, run.view), **run.facts(w)}
        facts["drawn"] = run.atlas.add_slices(run.synthesize(w))
        about = {**run.about, "class": name.removeprefix("real "), "real": True}
        sets.append(PointSet(name, of_map.points[name], run.atlas.add_slices(of_class), facts, about))
    return sets


def epochs_view(runs, folders, of_map):
    """The View over the epochs: train.py's fixed latents, each with the slice of the last epoch, since no other is kept."""
    epochs, sets = [(epoch, share) for epoch, _, share in of_map.epochs], []
    for name, folder in folders.items():
        points = np.stack([of_epoch[name][:EPOCH_LATENTS] for _, of_epoch, _ in of_map.epochs])
        about = {"class": name[:2], "fixed": True, "epoch": epochs[-1][0]}
        sets.append(runs[folder].generated(f"fixed {name[:2]}", name, points, of_map.last[name][:EPOCH_LATENTS], about))
    note = f"{EPOCHS_NOTE} Each point keeps the slice of the last epoch: earlier generators are not kept."
    return View(epochs, sets, note)


# ---------------------------------------------------------------------------------------------------------------------
# Real and generated slices: metrics.py --map True


def write_quality_atlas(path, quality, real, fake, names, fake_names, method="umap", seed=0, table=None):
    """Write the page with a map of the features of uint8 real [N, R, R] and fake [M, R, R], of `measure_quality`'s `quality`.

    Like precision and recall it shows the first min(N, M) of both. names, fake_names: their files. A real slice is missed if it is
    in no generated slice's ball: the slices of which recall is not made up; so is a generated one that is in no real slice's.
    """
    size = min(len(real), len(fake))
    features = [quality.real.features[:size], quality.fake.features[:size]]
    groups = None if quality.real.groups is None else quality.real.groups[:size]
    balls, recalled, _ = in_balls(*features, real_groups=groups)
    points = embed(np.concatenate([part.numpy() for part in features]), method, seed)
    missed, lost = (recalled == 0).numpy(), (balls == 0).numpy()
    classes = np.array([class_of(name.replace(os.sep, "/")) for name in names[:size]])
    atlas, sets = Atlas(min(SIDE, real.shape[-1])), []
    view = view_or_note(real, "atlas")

    def add(name, rows, images, of_class, files, where, reached, is_real):
        facts = {**scan_facts(["/".join(files[i].split(os.sep)[-2:]) for i in rows], table if is_real else None)}
        facts |= {**area_facts(images[rows], view), "missed": reached[rows].tolist()}
        about = {"class": of_class, "real": is_real}
        sets.append(PointSet(name, where[rows], atlas.add_slices(images[rows]), facts, about))

    for label in sorted(set(classes)):
        name = CLASSES[label] if label >= 0 else ""
        add(f"real {name}".strip(), np.flatnonzero(classes == label), real, name, names, points[:size], missed, True)
    add("generated", np.arange(size), fake, "generated", fake_names, points[size:], lost, False)
    measures = []
    for name in ("recall", "precision"):
        value, floor = (quality.values.get(key, math.nan) for key in (name, f"floor_{name}"))
        measures.append(Measure(name, value, number_text(value), math.nan, math.nan, floor, "two halves of the real slices"))
    sentence = (
        f"{missed.sum()} of {size} real slices have no generated slice nearby and are outlined: the generator misses them. Nearby "
        "is measured between the features, not on the map, whose gaps and clusters are no finding by themselves."
    )
    atlas.write(path, "Real and generated slices", [Tab("random features", sentence, measures, [View(None, sets)])])
