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
from analysis.style_space import UNDEFINED, StyleSeparation, build_probe, probe_scores, real_verdict, split_like, style_separation
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

    def only(self, rows):
        """Those where `rows`, bool [N], is True, without their fingerprints."""
        names, scans = ([value for value, kept in zip(values, rows) if kept] for values in (self.names, self.scans))
        return RealSlices(self.pixels[rows], self.classes[rows], names, scans)


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
    separation: StyleSeparation  # of real AD and NC, by a probe fitted to generated slices where the model is told the class
    position: dict  # `position_probe` of the same probe
    age: dict | None  # `age_probe` of the real slices
    trained: np.ndarray | None = None  # bool [N]: real slices of people that the model was trained on; None if it is not recorded

    @property
    def seen(self):
        """Whether the model is known to have been trained on all of these people; if on some, the measures leave them out."""
        return self.trained is not None and bool(self.trained.all())

    @property
    def probe(self):
        """What tells AD from NC."""
        fitted = "fitted to generated slices" if self.model.is_conditional else "cross-validated over these people"
        return f"a linear probe {fitted}"

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
    trained = trained_people(model, real.fingerprints, real.groups)
    rows = np.ones(len(real.names), bool) if trained is None or trained.all() else ~trained
    measured, found = real.only(rows), encoded.points[rows]
    is_ad, groups, scores = measured.classes == 0, measured.groups, class_scores(model, points, found, measured, seed)
    return EncodedMap(
        model,
        {name: EncodedSet(part, w[name], places[name]) for name, part in pixels.items()},
        real,
        known_values(real),
        refused,
        mixing(found, np.concatenate([points[name] for name in model.classes]), groups, seed),
        style_separation(found[is_ad], found[~is_ad], groups, seed, -scores if model.is_conditional else None),
        position_probe(scores, is_ad, groups, measured.names, seed=seed),
        age_probe(scores, measured.classes, measured.scans, slice_indices(measured.names), seed),
        trained,
    )


def class_scores(model, points, found, real, seed=0):
    """Scores [N] of AD by a linear probe of the encodings `found` [N, K] of RealSlices.

    That of a conditional Model is fitted to generated slices, `points` {class: [n, K]}, and needs none of these people, of whom
    there may be too few for a cross-validation.
    """
    if model.is_conditional:
        drawn = [points[name] for name in CLASSES]
        return -build_probe().fit(np.concatenate(drawn), np.repeat([0, 1], list(map(len, drawn)))).decision_function(found)
    if fewest_groups(real.classes == 0, real.groups) < 2:
        return np.zeros(len(found))
    return -probe_scores(found, real.classes, real.groups, seed)  # of AD, which is label 0


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
    if count:
        return f"WARNING: the model was trained on {count} of these {total} {unit}: {about}."
    if unit != "people":
        return "Whether the model was trained on these people is not known: no table names them (--subjects)."
    return ""


def encoded_conclusions(encoded):
    """Sentences on an EncodedMap."""
    where = f"Encoded by {encoded.model.name}, a linear probe tells real from generated slices with an AUC of {encoded.mixing}"
    if encoded.mixing.value > ONE_CLOUD:
        where += ": WARNING, they are not one cloud, so the map of real slices may not be one of what the model has learnt"
    refused = f"{encoded.refused.mean():.0%} of the real slices are unlike anything that the model draws (of its own 1%)."
    trained = trained_text(encoded.trained, encoded.real.scans)
    unit = resampled_text(resampling_groups(encoded.real.scans)[1])
    found = [
        f"{where}; 0.5 is best.",
        refused,
        f"{real_verdict(encoded.separation, encoded.position, encoded.seen, encoded.probe)} {unit}",
    ]
    if not trained.startswith("WARNING"):
        return [*found, trained] if trained else found
    return [trained if encoded.seen else f"{trained} The measures leave these people out.", *found]
