"""Maps of real and of generated slices, all encoded by the encoder of one model: the same door for both.

    real = read_real_slices("AD_NC/test", model.resolution, table)
    encoded = encoded_map(model, real, settings)        # settings: a style_maps.MapSettings
    sentences = encoded_conclusions(encoded)

Every slice is encoded without its class, and the map is fitted to all of them. All measures are taken among the encoded points,
over people: whether real and generated slices are one cloud (`mixing`), and whether real AD and NC are separated there.
"""

from typing import NamedTuple

import numpy as np

from analysis.age_probe import age_probe
from analysis.areas import measure_areas, view_or_note
from analysis.bootstrap import Interval, auc, bootstrap_auc, fewest_groups
from analysis.encoder import SIDE, draw_slices, find_encoder
from analysis.models import Model
from analysis.position import position_probe, slice_indices
from analysis.style_space import UNDEFINED, StyleSeparation, probe_scores, real_verdict, split_like, style_separation
from data.fingerprints import are_known, fingerprints
from data.subjects import identify, resampled_text, resampling_groups
from dataset import Slices, resize
from utils import CLASSES

ONE_CLOUD = 0.7  # AUC of real against generated slices, above which the map warns


class RealSlices(NamedTuple):
    """The real slices of a folder, AD's first."""

    pixels: np.ndarray  # uint8 [N, r, r], of the encoder's side
    classes: np.ndarray  # int [N], index in CLASSES
    names: list  # of their files
    scans: list  # their `subjects.Scan`s
    fingerprints: tuple = ()  # of `data.fingerprints`

    @property
    def groups(self):
        """People, where known, for intervals: str [N]."""
        return resampling_groups(self.scans)[0]


class EncodedSet(NamedTuple):
    """Slices of one kind and class."""

    pixels: np.ndarray  # uint8 [n, r, r]
    w: np.ndarray  # float32 [n, w_dim], of their encodings
    points: np.ndarray  # [n, 2], on the map


class EncodedMap(NamedTuple):
    """A map of encoded slices and what is known of it."""

    model: Model
    sets: dict  # {legend: EncodedSet}: generated slices, then "real AD" and "real NC"
    real: RealSlices
    values: dict  # {"person", "slice index", "age", "sex", "ventricle area": [N]} of real slices; nan or "" where unknown
    refused: np.ndarray  # bool [N]: real slices that the model cannot draw
    mixing: Interval  # `Auc` of a linear probe for real against generated slices: 0.5 if they are one cloud
    separation: StyleSeparation  # of real AD and NC
    position: dict  # `position_probe` of the same probe
    age: dict | None  # `age_probe` of the real slices
    trained: np.ndarray | None = None  # bool [N]: real slices of people that the model was trained on; None if it is not recorded

    @property
    def seen(self):
        """Whether the model is known to have been trained on some of these people."""
        return self.trained is not None and bool(self.trained.any())

    @property
    def title(self):
        return f"Real slices, encoded by {self.model.name}"


def read_real_slices(dataset_dir, resolution, table=None, chunk=256):
    """The RealSlices of a folder, of both classes, as a model of this resolution would see them; table: of `find_subjects`."""
    slices = Slices(dataset_dir, "all", resolution)
    parts = np.array_split(np.arange(len(slices)), -(-len(slices) // chunk))
    pixels = np.concatenate([resize(slices[rows], min(SIDE, resolution)) for rows in parts])
    scans = identify(slices.names, table)
    return RealSlices(pixels, slices.labels, slices.names, scans, fingerprints(slices.paths, scans, table))


def encoded_map(model, real, settings):
    """The EncodedMap of RealSlices and of settings.num_styles slices that a Model draws of each of its classes."""
    encoder, seed = find_encoder(model, settings.seed, True), settings.seed
    drawn, _ = draw_slices(model, settings.num_styles * len(model.labels), encoder.side, seed + 1, True)
    pixels = {name: drawn[i :: len(model.labels)] for i, name in enumerate(model.classes)}
    points = {name: encoder.encode(part).points for name, part in pixels.items()}
    encoded = encoder.encode(real.pixels)
    refused = encoder.outside(model, real.pixels, encoded, "what cannot be drawn") > 1
    for label, name in enumerate(CLASSES):
        rows = real.classes == label
        pixels[f"real {name}"], points[f"real {name}"] = real.pixels[rows], encoded.points[rows]
    w = encoder.style_vectors(np.concatenate(list(points.values()))).cpu().numpy()
    places, w = split_like(settings.embed(w), points), split_like(w, points)
    is_ad, groups, found = real.classes == 0, real.groups, encoded.points
    scores = np.zeros(len(found))
    if fewest_groups(is_ad, groups) >= 2:
        scores = -probe_scores(found, real.classes, groups, seed)  # of AD, which is label 0
    return EncodedMap(
        model,
        {name: EncodedSet(part, w[name], places[name]) for name, part in pixels.items()},
        real,
        known_values(real),
        refused,
        mixing(found, np.concatenate([points[name] for name in model.classes]), groups, seed),
        style_separation(found[is_ad], found[~is_ad], np.concatenate([groups[is_ad], groups[~is_ad]]), seed),
        position_probe(scores, is_ad, groups, real.names, seed=seed),
        age_probe(found, real.classes, real.scans, slice_indices(real.names), seed),
        trained_people(model, real.fingerprints, groups),
    )


def mixing(real, generated, groups, seed=0):
    """The `Auc` of a linear probe for real [N, D] against generated [M, D] points, over groups [N] and latents."""
    points, is_real = np.concatenate([real, generated]), np.arange(len(real) + len(generated)) < len(real)
    groups = np.concatenate([groups, [f"latent {i}" for i in range(len(generated))]])
    if fewest_groups(is_real, groups) < 2:
        return UNDEFINED
    scores = probe_scores(points, is_real.astype(int), groups, seed)
    return bootstrap_auc(lambda weights: auc(scores, is_real, weights), is_real, groups, True, seed)


def known_values(real):
    """{name: [N]} of RealSlices: what their maps are coloured by; nan or "" where unknown."""
    values = {"person": real.groups, "slice index": slice_indices(real.names)}
    values["age"] = np.array([np.nan if scan.age is None else scan.age for scan in real.scans])
    values["sex"] = np.array([scan.sex or "" for scan in real.scans])
    values["ventricle area"] = np.full(len(real.names), np.nan)
    if view := view_or_note(real.pixels, "ventricle areas"):
        values["ventricle area"] = measure_areas(real.pixels, view, "areas")["ventricle"]
    return values


def trained_people(model, prints, groups):
    """Which slices, with these fingerprints and groups [N], are of people that the Model was trained on: bool [N], or None."""
    return None if model.fingerprints is None else are_known(model.fingerprints, *prints, groups)


def trained_text(trained, scans):
    """A sentence on `trained_people` of slices with these Scans, or ""."""
    if trained is None:
        return "Whether the model was trained on these people is not known: its generator.pt was saved without their fingerprints."
    groups, unit = resampling_groups(scans)
    count, total = (len(np.unique(some)) for some in (groups[trained], groups))
    about = "it repeats what it has seen, so that their encodings say nothing about AD and NC"
    return f"WARNING: the model was trained on {count} of these {total} {unit}: {about}." if count else ""


def encoded_conclusions(encoded):
    """Sentences on an EncodedMap."""
    where = f"Encoded by {encoded.model.name}, a linear probe tells real from generated slices with an AUC of {encoded.mixing}"
    if not encoded.mixing.value <= ONE_CLOUD:
        where += ": WARNING, they are not one cloud, so the map of real slices may not be one of what the model has learnt"
    refused = f"{encoded.refused.mean():.0%} of the real slices are unlike anything that the model draws (of its own 1%)."
    trained = trained_text(encoded.trained, encoded.real.scans)
    unit = resampled_text(resampling_groups(encoded.real.scans)[1])
    found = [f"{where}; 0.5 is best.", refused, f"{real_verdict(encoded.separation, encoded.position, encoded.seen)} {unit}"]
    return [trained, *found] if encoded.seen else [*found, trained] if trained else found
