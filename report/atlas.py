"""atlas.html: a map in which every point shows its slice, as one page that needs neither a network nor a server.

    atlas = Atlas(side=64)
    cells = atlas.add_slices(pixels)                    # uint8 [N, R, R]
    view = View(None, [PointSet("AD", points, cells, {"number": range(N)}, {"class": "AD"})])     # points [N, 2]
    atlas.write("predictions/atlas.html", "Atlas", [Tab("AD and NC", "What the map can show.", [], [view])])

`write_style_atlas` fills it with the maps of predict.py --plot_umap, `write_quality_atlas` with the sets that metrics.py compares.
All slices are in one grey JPEG, the sprite, side by side in cells of 64x64; the page's script, page.js, cuts them out.
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
from analysis.encoded_maps import encoded_conclusions
from analysis.models import synthesize
from analysis.projector import class_of
from analysis.style_maps import conclusions
from analysis.style_space import embed
from data.subjects import identify
from dataset import resize
from report.maps import EPOCHS_NOTE, measures_of
from report.playground import find_playgrounds
from report.report import fill_template, interval_text, number_text, plain
from utils import CLASSES, atomic_path

SIDE, QUALITY = 64, 80  # pixels of a slice in the page, at most; JPEG's quality
SHOWN = 400  # style vectors of each set
CLUSTERS, BETWEEN = 5, 5  # centres of w in a run; slices between two of them
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

    epochs: list | None  # numbers, with the same-class k-NN fraction of each: [(0, 0.52), ...]; None: a single map
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
    sentence: str  # what its map can show
    measures: Sequence
    views: Sequence


class Atlas:
    """Collects slices and style vectors, each once, and writes the page."""

    def __init__(self, side=SIDE):
        self.side, self.count, self.images, self.styles, self.numbers, self.lines = side, 0, [], [], 0, {}
        self.playgrounds = {}  # of runs: pages beside this one

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
        return make_sprite(np.concatenate(self.images), format="JPEG", quality=QUALITY, optimize=True)

    def write(self, path, title, tabs, facts=None):
        """Write the page; facts: {name: text} for its foot. Names and texts may be any: the template escapes them."""
        sprite, columns = self.sprite()
        styles = np.concatenate([np.empty(0, np.float16), *self.styles])
        data = {
            "side": self.side,
            "columns": columns,
            "tabs": [{"title": tab.title, "views": [view_content(view) for view in tab.views]} for tab in tabs],
            "lines": self.lines,
            "playgrounds": self.playgrounds,
            "w": base64.b64encode(styles.astype("<f2").tobytes()).decode(),
        }
        sprite = "data:image/jpeg;base64," + base64.b64encode(sprite).decode()
        page = fill_template("atlas.html.j2", title=title, tabs=tabs, facts=facts or {}, data=plain(data), sprite=sprite)
        with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", errors="replace", newline="\n") as file:
            file.write(page)


def make_sprite(slices, **how):
    """(The file of one grey image with a cell for each of uint8 slices [N, R, R], cells in a row); how: of PIL's `save`."""
    columns = math.ceil(math.sqrt(len(slices)))
    rows, side, content = math.ceil(len(slices) / columns), slices.shape[-1], io.BytesIO()
    canvas = np.zeros((rows, columns, side, side), np.uint8)
    canvas.reshape(-1, side, side)[: len(slices)] = slices
    Image.fromarray(canvas.swapaxes(1, 2).reshape(rows * side, columns * side)).save(content, **how)
    return content.getvalue(), columns


def view_content(view):
    """What the page's script needs of a view: columns over the slices of all sets, with None where a set lacks a fact."""
    sets = view.sets
    points = np.concatenate([one.points.reshape(-1, len(one.cells), 2) for one in sets], 1)  # [epochs, n, 2]
    size = (points.max((0, 1)) - points.min((0, 1))).max() or 1
    points = np.round((points - points.min((0, 1))) / size, 4)  # the longer side of the map from 0 to 1
    columns = {
        name: [rounded(value) for one in sets for value in one.facts.get(name, [None] * len(one.cells))]
        for name in dict.fromkeys(name for one in sets for name in one.facts)
    }
    return {
        "note": view.note,
        "epochs": view.epochs and [epoch for epoch, _ in view.epochs],
        "same_class": view.epochs and [float(fraction) for _, fraction in view.epochs],
        "sets": [{"name": one.name, **one.about} for one in sets],
        "set": np.repeat(np.arange(len(sets)), [len(one.cells) for one in sets]),
        "cell": np.concatenate([one.cells for one in sets]),
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


def scan_facts(names, scans):
    """{"file", "age", "sex"} of slices with these file names and `subjects.Scan`s."""
    return {"file": names, "age": [scan.age for scan in scans], "sex": [scan.sex for scan in scans]}


# ---------------------------------------------------------------------------------------------------------------------
# Style vectors: predict.py --plot_umap True --atlas True


class Run:
    """A Model in the atlas: draws style vectors, each set once, and knows the mean, spread and clusters of its w."""

    def __init__(self, atlas, model, w, seed):
        from sklearn.cluster import KMeans

        self.atlas, self.model, self.drawn = atlas, model, {}
        trained = f"{model.which}, {model.images / 1000:.1f} kimg"
        self.about = {"run": model.folder, "trained": trained, "w_dim": w.shape[1]}
        self.mean = w.mean(0)
        self.spread = math.sqrt(np.square(w - self.mean).sum(1).mean()) or 1.0
        self.clusters = KMeans(min(CLUSTERS, len(np.unique(w, axis=0))), n_init=1, random_state=seed).fit(w)
        atlas.lines[model.folder] = self.draw_lines(self.clusters.cluster_centers_.astype(np.float32))

    def synthesize(self, w):
        w = torch.from_numpy(np.ascontiguousarray(w, np.float32)).to(self.model.device)
        bar = tqdm(w.split(256), f"atlas: slices of {self.model.folder}", leave=False, disable=None if len(w) > 256 else True)
        return np.concatenate([synthesize(self.model, part) for part in bar])

    def draw_lines(self, centres):
        """Cells of the slices between clusters a < b, BETWEEN inner ones with the centres at the ends: {"a b": [cells]}."""
        ends = self.atlas.add_slices(self.synthesize(centres))
        share, lines = np.linspace(0, 1, BETWEEN + 2, dtype=np.float32)[1:-1, None], {}
        for a in range(len(centres)):
            for b in range(a + 1, len(centres)):
                inner = self.atlas.add_slices(self.synthesize(centres[a] + share * (centres[b] - centres[a])))
                lines[f"{a} {b}"] = [ends[a], *inner, ends[b]]
        return lines

    def facts(self, w):
        """Of style vectors [n, w_dim]: rows in the atlas, distance from the mean of w over its root mean square, cluster."""
        distance = np.sqrt(np.square(w - self.mean).sum(1)) / self.spread
        return {"row": self.atlas.add_styles(w), "distance": distance, "cluster": self.clusters.predict(np.asarray(w, np.float32))}

    def generated(self, name, points, w, class_name, **about):
        """The PointSet of w [n, w_dim] of a class, drawn with fixed noise; the same set of the run is drawn once."""
        key = class_name, *about
        if key not in self.drawn:
            pixels = self.synthesize(w)
            if not self.drawn:
                self.view = view_or_note(pixels, f"atlas of {self.model.folder}")
            facts = {"number": range(len(w)), **area_facts(pixels, self.view), **self.facts(w)}
            self.drawn[key] = self.atlas.add_slices(pixels), facts
        cells, facts = self.drawn[key]
        return PointSet(name, points, cells, facts, {**self.about, "real": False, "class": class_name, **about})


def write_style_atlas(path, maps, encoded, seed):
    """Write the page of StyleMaps and EncodedMaps, with links to the playgrounds beside it. Encoded slices show their pixels, and
    beside them what the model draws of their encodings."""
    resolutions = {source.model.resolution for style_map in maps for source in style_map.spec.sources.values()}
    atlas, runs, tabs, sentences = Atlas(min(SIDE, *resolutions)), {}, [], conclusions(maps)
    for style_map in maps:
        sources = style_map.spec.sources
        for folder, model in {source.model.folder: source.model for source in sources.values()}.items():
            if folder not in runs:
                w = np.concatenate([style_map.sets[name] for name, source in sources.items() if source.model.folder == folder])
                runs[folder] = Run(atlas, model, w, seed)
        sets = []
        for name, source in sources.items():
            points, w = style_map.points[name][:SHOWN], style_map.sets[name][:SHOWN]
            sets.append(runs[source.model.folder].generated(name, points, w, class_of_source(source), seed=seed))
        views = [View(None, sets)]
        if style_map.epochs:
            views.append(epochs_view(runs, style_map))
        tabs.append(Tab(style_map.spec.title, sentences[style_map.spec.title], measure_list(style_map.separation), views))
    for one in encoded:
        sets, measures = encoded_sets(runs[one.model.folder], one), measure_list(one.separation, one.position)
        tabs.append(Tab(one.title, " ".join(encoded_conclusions(one)), measures, [View(None, sets)]))
    atlas.playgrounds = find_playgrounds(os.path.dirname(path), [run.model for run in runs.values()])
    note = "The slices are drawn with fixed noise, so that they differ by their style vectors alone."
    atlas.write(path, "Atlas of style vectors", tabs, {"slices": note})


def class_of_source(source):
    """The class of a `style_maps.StyleSource`."""
    return source.model.trained_on[0] if source.label is None else CLASSES[source.label]


def measure_list(separation, position=None):
    """The Measures of a StyleSeparation."""
    measured = measures_of(separation, position).items()
    return [Measure(name, one.value, interval_text(*one), *one[1:3], chance, "chance") for name, (one, chance) in measured]


def encoded_sets(run, encoded):
    """The PointSets of an EncodedMap in its Model's Run: at most SHOWN slices of each set, spread over it."""
    sets, first = [], 0
    for name, one in encoded.sets.items():
        rows, real = np.linspace(0, len(one.w) - 1, min(SHOWN, len(one.w))).round().astype(int), name.startswith("real")
        pixels, w = one.pixels[rows], one.w[rows]
        facts = {**area_facts(pixels, run.view), **run.facts(w), "drawn": run.atlas.add_slices(run.synthesize(w))}
        if real:
            facts |= scan_facts(*([of[first + i] for i in rows] for of in (encoded.real.names, encoded.real.scans)))
            first += len(one.w)
        else:
            facts["number"] = rows
        about = {**run.about, "class": name.removeprefix("real "), "real": real}
        sets.append(PointSet(name, one.points[rows], run.atlas.add_slices(pixels), facts, about))
    return sets


def epochs_view(runs, style_map):
    """The View over the epochs: train.py's fixed latents, each with the slice of the last epoch, since no other is kept."""
    epochs, sets = [(one.epoch, one.same_class) for one in style_map.epochs], []
    for name, source in style_map.spec.sources.items():
        points = np.stack([one.points[name][:EPOCH_LATENTS] for one in style_map.epochs])
        w, about = style_map.last[name][:EPOCH_LATENTS], {"fixed": True, "epoch": epochs[-1][0]}
        sets.append(runs[source.model.folder].generated(name, points, w, class_of_source(source), **about))
    note = f"{EPOCHS_NOTE} Each point keeps the slice of the last epoch: earlier generators are not kept."
    return View(epochs, sets, note)


# ---------------------------------------------------------------------------------------------------------------------
# Real and generated slices: metrics.py --map umap


def write_quality_atlas(path, quality, real, fake, names, fake_names, method="umap", seed=0, table=None):
    """Write the page with a map of the features of uint8 real [N, R, R] and fake [M, R, R], of `measure_quality`'s `quality`.

    It shows the slices that precision and recall compare. names, fake_names: their files. A real slice is missed if it is
    in no generated slice's ball: the slices of which recall is not made up; so is a generated one that is in no real slice's,
    unless the real ones are of too few people for balls.
    """
    size = quality.size
    features = [quality.real.features[:size], quality.fake.features[:size]]
    groups = None if quality.real.groups is None else quality.real.groups[:size]
    balls, recalled, _ = in_balls(*features, real_groups=groups)
    points = embed(np.concatenate([part.numpy() for part in features]), method, seed)
    missed, lost = (recalled == 0).numpy(), None if balls.isnan().any() else (balls == 0).numpy()
    classes = np.array([class_of(name.replace(os.sep, "/")) for name in names[:size]])
    atlas, sets = Atlas(min(SIDE, real.shape[-1])), []
    view = view_or_note(real, "atlas")

    def add(name, rows, images, class_name, files, where, missed, is_real):
        shown = ["/".join(files[i].split(os.sep)[-2:]) for i in rows]
        facts = scan_facts(shown, identify(shown, table if is_real else None)) | area_facts(images[rows], view)
        if missed is not None:
            facts["missed"] = missed[rows].tolist()
        about = {"class": class_name, "real": is_real}
        sets.append(PointSet(name, where[rows], atlas.add_slices(images[rows]), facts, about))

    for label in sorted(set(classes)):
        name = CLASSES[label] if label >= 0 else ""
        add(f"real {name}".strip(), np.flatnonzero(classes == label), real, name, names, points[:size], missed, True)
    add("generated", np.arange(size), fake, "generated", fake_names, points[size:], lost, False)
    measures = []
    for name in ("recall", "precision"):
        value, floor = (quality.values.get(key, math.nan) for key in (name, f"floor_{name}"))
        measures.append(Measure(name, value, number_text(value), math.nan, math.nan, floor, quality.floor))
    sentence = (
        f"{missed.sum()} of {size} real slices have no generated slice nearby and are outlined: the generator misses them. Nearby "
        "is measured between the features, not on the map, whose gaps and clusters are no finding by themselves."
    )
    atlas.write(path, "Real and generated slices", [Tab("random features", sentence, measures, [View(None, sets)])])
