"""What predict.py --evaluate measures: does a model preserve the AD/NC difference, beyond images that look right? Three questions.

    for models in evaluation_groups(all_models):
        generated = generate_classes(models, "AD_NC/test", seed=0, truncation=1.0)
        result = evaluate_models(models, generated, "AD_NC/test")

Classifier: after training on generated slices, does it tell AD from NC on held-out real ones as well as after training on real
ones (classifier.py), and how much of that do pixels and encoded style vectors hold (ladder.py)? Areas: are ventricles, grey and
white matter as large as in real slices, and AD and NC as far apart (areas.py)? Image quality: the metrics of quality.py, class by
class. Intervals resample people where a table tells them, else scans, else slices (subjects.py).
"""

from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from analysis.areas import measure_areas, reduce_to_side, true_means, view_or_note
from analysis.bootstrap import bootstrap
from analysis.classifier import classify
from analysis.ladder import ladder
from analysis.models import BATCH, generate
from analysis.quality import measure_quality
from data.damage import note_damaged
from data.folders import class_folders, find_slices, find_splits
from data.subjects import identify, resampled_text, resampling_groups, shared_text
from dataset import Slices
from utils import CLASSES, UserError

KINDS = "train", "held-out", "generated"  # of slices: the first two are real
COMPARED = 2000  # slices of each kind and class, at most, for the metrics


class EvaluatedSlices(NamedTuple):
    """The slices that are compared, as {kind of KINDS: {class: ...}}; a model of both classes that is not told which has "all"."""

    pixels: dict  # Slices, or uint8 [N, R, R]
    sample: dict  # uint8 [n, R, R], of held-out and generated slices: at most COMPARED of them in random order
    reduced: dict  # uint8 [N, 64, 64] at most: as areas and classifiers see them
    names: dict  # of the files [N], of real slices
    groups: dict  # [N], of real slices: what intervals resample
    sample_groups: dict  # {class: [n]}, of the sample of held-out slices
    unit: str  # people, scans or slices: what a group is
    resampled: list  # sentences on that

    @property
    def classes(self):
        return list(self.pixels["generated"])

    @property
    def side(self):
        """Of the square slices, in pixels."""
        return next(iter(self.pixels["generated"].values())).shape[-1]


class EvaluationResult(NamedTuple):
    """The answers to all three questions, for one model or a pair of one-class models."""

    slices: EvaluatedSlices
    classifier: dict | None  # of `classify`; None without both classes
    ladder: dict | None  # of `ladder`; None likewise
    areas: dict  # {kind: {class: {tissue: mm^2 [N]}}}; empty below 64x64 or where the view cannot be told
    area_comparison: dict | None  # of `compare_areas`
    quality: dict  # {class: `Quality`}

    def numbers(self):
        """The results as plain values, for <title>_evaluation.json and report.json."""
        parts = {"classifier": self.classifier, "ladder": self.ladder, "areas": self.area_comparison}
        metrics = {name: quality.values for name, quality in self.quality.items()}
        measured = {name: part for name, part in parts.items() if part is not None}
        return {**measured, "resampled": self.slices.resampled, "metrics": metrics}


def evaluation_groups(models):
    """Lists of Models to evaluate together: an AD and an NC model, if there is one of each, and each other model by itself."""
    single = [model for model in models if not model.is_conditional]
    pair = single if sorted(model.trained_on for model in single) == [[name] for name in CLASSES] else []
    return [group for group in (pair, *([model] for model in models if model not in pair)) if group]


def train_and_test(dataset_dir, classes):
    """The folders train/ and test/, in `dataset_dir` or beside it; UserError without both."""
    splits = find_splits(dataset_dir, "all" if len(classes) > 1 else classes[0])
    if len(splits) < 2:
        raise UserError(
            f"--dataset_dir {dataset_dir}: the evaluation needs train/ and test/, in it or beside it; there is "
            f"only {''.join(splits.values())}"
        )
    return splits["train"], splits["test"]


def generate_classes(models, dataset_dir, seed, truncation):
    """{class: uint8 [n, R, R]}: as many slices of each class of the Models as there are to train on."""
    generated = {}
    train, _ = train_and_test(dataset_dir, [name for model in models for name in model.classes])
    for model in models:
        for label, name in zip(model.labels, model.classes):
            count = sum(len(find_slices(folder)) for folder in class_folders(train, name).values())
            batches = generate(model, count, seed, truncation, label)
            bar = tqdm(batches, f"{count} {name} slices", -(-count // BATCH), unit=" batches", disable=None)
            generated[name] = np.concatenate(list(bar))
    return generated


def evaluate_models(models, generated, dataset_dir, table=None):
    """The EvaluationResult of a group of Models, one of `evaluation_groups`, by their slices {class: uint8 [n, R, R]}.

    dataset_dir: the folder above train/ and test/, or one of the two; table: of `read_subjects`. Classifier and metrics allow for
    mirrored slices if a model was trained on them.
    """
    train, test = train_and_test(dataset_dir, list(generated))
    device, mirror = models[0].device, any(model.mirrored for model in models)
    slices = collect_slices(train, test, generated, table)
    classifier = rungs = None
    if len(slices.classes) > 1:
        kinds, names = (slices.reduced[kind] for kind in ("train", "generated", "held-out")), slices.names
        classifier = classify(*kinds, slices.groups, device, mirror, names)
        sets = (slices.pixels[kind] for kind in ("train", "held-out", "generated"))
        tested = (np.concatenate([of["held-out"][name] for name in CLASSES]) for of in (slices.groups, names))
        rungs = ladder(models, *sets, *tested)
    areas, comparison = {}, None
    if view := view_or_note(np.concatenate(list(slices.reduced["train"].values())), f"--dataset_dir {dataset_dir}"):
        areas = {
            kind: {name: measure_areas(pixels, view, f"areas of {kind} {name}") for name, pixels in slices.reduced[kind].items()}
            for kind in KINDS
        }
        comparison = compare_areas(areas, slices.groups, true_means(train, slices.classes, view))
    quality = {}
    for name in slices.classes:
        real, fake = (slices.sample[kind][name] for kind in ("held-out", "generated"))
        people = {"groups": slices.sample_groups[name], "train_groups": slices.groups["train"][name]}
        quality[name] = measure_quality(real, fake, slices.pixels["train"][name], device, progress=True, mirror=mirror, **people)
    return EvaluationResult(slices, classifier, rungs, areas, comparison, quality)


def collect_slices(train, test, generated, table=None):
    """The EvaluatedSlices of two folders and of generated slices {class: uint8 [n, R, R]}."""
    side, rng = next(iter(generated.values())).shape[-1], np.random.default_rng(0)
    pixels, scans, groups = {}, {}, {}
    for kind, folder in (("train", train), ("held-out", test)):
        pixels[kind] = {name: Slices(folder, name, side) for name in generated}
        for members in pixels[kind].values():
            note_damaged(members, members.names, folder)
        scans[kind] = {name: identify(members.names, table) for name, members in pixels[kind].items()}
    names = {kind: {name: members.names for name, members in classes.items()} for kind, classes in pixels.items()}
    pixels["generated"] = generated
    rows = {kind: {name: rng.permutation(len(members))[:COMPARED] for name, members in pixels[kind].items()} for kind in KINDS}
    everyone = {kind: [scan for members in classes.values() for scan in members] for kind, classes in scans.items()}
    labels, unit = resampling_groups(everyone["train"] + everyone["held-out"])
    for kind, classes in scans.items():
        groups[kind] = {}
        for name, members in classes.items():
            groups[kind][name], labels = labels[: len(members)], labels[len(members) :]
    return EvaluatedSlices(
        pixels,
        {kind: {name: members[rows[kind][name]] for name, members in pixels[kind].items()} for kind in KINDS[1:]},
        {kind: {name: reduce_all(members) for name, members in pixels[kind].items()} for kind in KINDS},
        names,
        groups,
        {name: members[rows["held-out"][name]] for name, members in groups["held-out"].items()},
        unit,
        [resampled_text(unit), shared_text(everyone["train"], everyone["held-out"])],
    )


def reduce_all(pixels):
    """`reduce_to_side` of an array or Slices [N, R, R], 1024 at a time."""
    parts = np.array_split(np.arange(len(pixels)), -(-len(pixels) // 1024))
    return np.concatenate([reduce_to_side(pixels[rows]) for rows in parts])


# ---------------------------------------------------------------------------------------------------------------------
# Areas


def mean_difference(a, b, groups_a=None, groups_b=None, relative=False):
    """Interval of mean(a [N]) - mean(b [M]), or of mean(a) / mean(b) - 1 if `relative`; resamples groups, or values if None."""
    in_a = np.arange(len(a) + len(b)) < len(a)
    groups = [f"a {group}" for group in (range(len(a)) if groups_a is None else groups_a)]
    groups += [f"b {group}" for group in (range(len(b)) if groups_b is None else groups_b)]

    def statistic(weights):
        mean_a, mean_b = np.average(a, weights=weights[in_a]), np.average(b, weights=weights[~in_a])
        return (mean_a - mean_b) / (mean_b if relative else 1)

    return bootstrap(statistic, groups, in_a)


def compare_areas(areas, groups, truth=None):
    """Compare {kind of KINDS: {class: {tissue: mm^2 [n]}}} with the areas of training slices, and AD with NC.

    groups: {kind: {class: [n], or None}} of the real slices; truth: {class: {tissue: mean mm^2 of the training slices}}, known
    of phantoms. Returns {class: {tissue: {"train", "held-out", "generated": mean; "held-out / train - 1", "generated / train - 1":
    Interval; "wasserstein": distance of generated from training slices; "floor": that of held-out slices, which are real but of
    other people; "truth"}}} and, with both classes, {"AD - NC": {tissue: {kind: Interval of the difference}}}.
    """
    from scipy.stats import wasserstein_distance  # takes a second to import

    def difference(a, b, tissue, relative=False):  # a, b: (kind, class)
        values = [areas[kind][name][tissue] for kind, name in (a, b)]
        return mean_difference(*values, *(groups.get(kind, {}).get(name) for kind, name in (a, b)), relative)

    comparison = {}
    for name, tissues in areas["train"].items():
        comparison[name] = {}
        for tissue, train in tissues.items():
            held_out, generated = (areas[kind][name][tissue] for kind in ("held-out", "generated"))
            row = {kind: float(areas[kind][name][tissue].mean()) for kind in KINDS}
            for kind in ("held-out", "generated"):
                row[f"{kind} / train - 1"] = difference((kind, name), ("train", name), tissue, relative=True)
            row["wasserstein"] = float(wasserstein_distance(generated, train))
            row["floor"] = float(wasserstein_distance(held_out, train))
            if truth:
                row["truth"] = float(truth[name][tissue])
            comparison[name][tissue] = row
    if len(areas["train"]) == 2:
        tissues = areas["train"]["AD"]
        comparison["AD - NC"] = {x: {kind: difference((kind, "AD"), (kind, "NC"), x) for kind in KINDS} for x in tissues}
    return comparison
