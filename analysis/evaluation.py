"""What predict.py --evaluate measures: does a model carry the disease, beyond images that look right? Four questions.

    generated = {"AD": ..., "NC": ...}      # uint8 [n, R, R] each, ideally as many as there are training slices
    results, paths = evaluate_models({"model/both": ("AD", "NC")}, generated, "AD_NC/test", "predictions", title="both")

Critic: does it score unseen real slices like those it was trained on, or like generated ones? Classifier: after training on
generated slices, does it tell AD from NC on unseen real ones as well as after training on real ones (classifier.py)? Areas: are
ventricles, grey and white matter as large as in real slices, and AD and NC as far apart (areas.py)? Image quality: the metrics
of quality.py, class by class. PACGAN, a progressive GAN with an auxiliary classifier (Lai et al. 2025,
doi:10.1038/s41598-025-16257-1), reports an AUC of 0.813 for that classifier on unseen ADNI slices; its slices, people and
networks differ, so the AUCs cannot be compared.

Slices of one brain are alike, so intervals resample people where a table tells them, else scans, else slices (subjects.py).
Tables and figures are in evaluation_report.py.
"""

import json
import os

import numpy as np
import torch
from tqdm import tqdm

from analysis.areas import SIDE, measure_areas, reduce_to_side, true_means, view_or_note
from analysis.bootstrap import bootstrap
from analysis.classifier import classify
from analysis.critic import critic_scores, load_critic
from analysis.quality import measure_quality
from data.damage import note_damaged
from data.folders import find_splits
from data.subjects import identify, resampled_text, resampling_groups, shared_text
from dataset import Slices
from report import report
from report.evaluation_report import (
    KINDS,
    area_position_text,
    area_tables,
    classifier_tables,
    classifier_text,
    critic_tables,
    plot_areas,
    plot_classifier,
    plot_critic,
    quality_tables,
)
from report.quality_report import plot_quality, save_nearest
from utils import CLASSES, UserError, atomic_path, make_folder

BATCH = 16  # slices that the critic scores at once
COMPARED = 2000  # slices of each kind and class, at most, for the critic and the metrics


def evaluate_models(runs, generated, dataset_dir, output_dir, title, device="cpu", table=None, mirror=False):
    """Answer all four questions for one model, or for a pair of one-class models; returns (results, paths written).

    runs: {run folder: its classes}; generated: {class: uint8 [n, R, R]}, where a model of both classes that is not
    class-conditional has the one class "all", in both. dataset_dir: the folder above train/ and test/, or one of the two;
    table: of `read_subjects`; mirror: whether a model was trained on mirrored slices, which classifier and metrics then follow.
    Results, plain numbers that <title>_evaluation.json holds too: {"critic": {class: `critic_gaps`}, without classes whose run
    has no checkpoint.pt; "classifier": `classify` (only with both classes), "areas": `compare_areas` (from 64x64 on), "metrics":
    {class: values of `measure_quality`}, "resampled": [what intervals resample, and what that means]}.
    """
    side = next(iter(generated.values())).shape[-1]
    splits = find_splits(dataset_dir, "all" if len(generated) > 1 else next(iter(generated)))
    if len(splits) < 2:
        raise UserError(
            f"--dataset_dir {dataset_dir}: the evaluation needs train/ and test/, in it or beside it; there is "
            f"only {''.join(splits.values())}"
        )
    critics = {folder: load_critic(folder, device) for folder in runs}  # first of all, so that errors come early
    make_folder(output_dir, "--output_dir")
    written = []

    def path(name):
        return os.path.join(output_dir, f"{title}_{name}")

    slices, scans, groups = {}, {}, {}  # {kind: {class: ...}}
    for kind, folder in (("train", splits["train"]), ("unseen", splits["test"])):
        slices[kind] = {name: Slices(folder, name, side) for name in generated}
        for of_class in slices[kind].values():
            note_damaged(of_class, of_class.names, folder)
        scans[kind] = {name: identify(of_class.names, table) for name, of_class in slices[kind].items()}
        groups[kind] = {name: resampling_groups(of_class)[0] for name, of_class in scans[kind].items()}
    slices["generated"] = generated
    rng = np.random.default_rng(0)
    rows = {kind: {name: rng.permutation(len(of_class))[:COMPARED] for name, of_class in slices[kind].items()} for kind in KINDS}
    sample = {kind: {name: of_class[rows[kind][name]] for name, of_class in slices[kind].items()} for kind in KINDS}
    reduced = {kind: {name: reduce_all(pixels) for name, pixels in slices[kind].items()} for kind in KINDS}

    scores = {}  # {class: {kind: [n]}}
    for folder, critic in critics.items():
        if critic is None:
            continue
        for kind in tqdm(KINDS, f"critic of {folder}", disable=None):
            of_kind = scores_by_class(critic, {name: sample[kind][name] for name in runs[folder]}, device)
            for name in runs[folder]:
                scores.setdefault(name, {})[kind] = of_kind[name]
    real = {kind: [scan for of_class in scans[kind].values() for scan in of_class] for kind in scans}
    unit = resampling_groups(real["train"] + real["unseen"])[1]
    results = {"critic": {name: critic_gaps(of_class) for name, of_class in scores.items()}}
    results["resampled"] = [resampled_text(unit), shared_text(real["train"], real["unseen"])]
    if scores:
        written.append(plot_critic(scores, results["critic"], path("critic.png")))

    if len(generated) > 1:
        kinds = (reduced[kind] for kind in ("train", "generated", "unseen"))
        names = {kind: {name: of_class.names for name, of_class in slices[kind].items()} for kind in ("train", "unseen")}
        results["classifier"] = classify(*kinds, groups["unseen"], device, mirror, names)
        written.append(plot_classifier(results["classifier"], unit, path("classifier.png")))

    if view := view_or_note(np.concatenate(list(reduced["train"].values())), f"--dataset_dir {dataset_dir}"):
        areas = {
            kind: {name: measure_areas(pixels, view, f"areas of {kind} {name}") for name, pixels in reduced[kind].items()}
            for kind in KINDS
        }
        results["areas"] = compare_areas(areas, groups, true_means(splits["train"], generated, view))
        written.append(plot_areas(areas, results["areas"], path("areas.png")))
    elif side >= SIDE:
        results["areas"] = None

    results["metrics"] = {}
    for name in generated:
        train, of_people = slices["train"][name], groups["unseen"][name][rows["unseen"][name]]
        quality = measure_quality(
            sample["unseen"][name], sample["generated"][name], train, device=device, progress=True, groups=of_people, mirror=mirror
        )
        results["metrics"][name] = quality.values
        plot_quality(quality, path(f"metrics_{name}.png"))
        save_nearest(sample["generated"][name], train, quality.memory, path(f"nearest_{name}.png"))
        written += [path(f"metrics_{name}.png"), path(f"nearest_{name}.png")]
    with atomic_path(path("evaluation.json")) as temporary, open(temporary, "w") as file:
        json.dump(results, file, indent=2)
    return results, [*written, path("evaluation.json")]


def reduce_all(pixels):
    """`reduce_to_side` of an array or Slices [N, R, R], 1024 at a time."""
    parts = np.array_split(np.arange(len(pixels)), -(-len(pixels) // 1024))
    return np.concatenate([reduce_to_side(pixels[rows]) for rows in parts])


# ---------------------------------------------------------------------------------------------------------------------
# The critic


def scores_by_class(critic, slices, device):
    """{class: scores float64 [n]} of {class: uint8 [N, R, R]}, from full batches that mix the classes, as in training."""
    label = {name: CLASSES.index(name) if name in CLASSES else 0 for name in slices}
    labels = np.repeat([label[name] for name in slices], [len(pixels) for pixels in slices.values()])
    order = np.random.default_rng(0).permutation(len(labels))
    pixels, labels = np.concatenate(list(slices.values()))[order], labels[order]
    scores = critic_scores(critic, pixels, torch.from_numpy(labels), BATCH, device).double().cpu().numpy()
    labels = labels[: len(scores)]
    return {name: scores[labels == label[name]] for name in slices}


def critic_gaps(scores):
    """Gaps between the mean scores {kind of KINDS: [n]} of one class, in standard deviations (root mean square of both sets').

    By class, since a class-conditional critic is trained within classes: its scores of AD may all be above those of NC.
    """

    def gap(a, b):
        return float((a.mean() - b.mean()) / max(1e-12, np.sqrt((a.var() + b.var()) / 2)))

    return {
        "mean": {kind: float(of_kind.mean()) for kind, of_kind in scores.items()},
        "deviation": {kind: float(of_kind.std()) for kind, of_kind in scores.items()},
        "train - unseen": gap(scores["train"], scores["unseen"]),
        "unseen - generated": gap(scores["unseen"], scores["generated"]),
    }


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
    of phantoms. Returns {class: {tissue: {"train", "unseen", "generated": mean; "unseen / train - 1", "generated / train - 1":
    Interval; "wasserstein": distance of generated from training slices; "floor": that of unseen slices, which are real but of
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
            unseen, generated = (areas[kind][name][tissue] for kind in ("unseen", "generated"))
            row = {kind: float(areas[kind][name][tissue].mean()) for kind in KINDS}
            for kind in ("unseen", "generated"):
                row[f"{kind} / train - 1"] = difference((kind, name), ("train", name), tissue, relative=True)
            row["wasserstein"] = float(wasserstein_distance(generated, train))
            row["floor"] = float(wasserstein_distance(unseen, train))
            if truth:
                row["truth"] = float(truth[name][tissue])
            comparison[name][tissue] = row
    if len(areas["train"]) == 2:
        comparison["AD - NC"] = {
            tissue: {kind: difference((kind, "AD"), (kind, "NC"), tissue) for kind in KINDS} for tissue in areas["train"]["AD"]
        }
    return comparison


# ---------------------------------------------------------------------------------------------------------------------
# The sections of report.html


def sections(results, paths, title):
    """`report.Section`s of what `evaluate_models` returned for the model called `title`."""

    def figures(name, caption):  # those called <title>_<name>.png or <title>_<name>_<class>.png
        stems = [os.path.basename(path).removeprefix(f"{title}_").removesuffix(".png").split("_") for path in paths]
        return [report.ReportFigure(path, caption.format(stem[-1])) for path, stem in zip(paths, stems) if stem[0] == name]

    resampled = results["resampled"]
    critic, shown = results["critic"], figures("critic", "Scores of the critic.")
    missing = [f"Not measured for {name}: no checkpoint.pt with a critic." for name in results["metrics"] if name not in critic]
    tables = critic_tables(critic) if critic else []
    yield report.Section(f"{title}: the critic on unseen slices", missing, tables, shown, critic)
    if classifier := results.get("classifier"):
        yield report.Section(
            f"{title}: a classifier of AD and NC",
            [classifier_text(classifier), *resampled],
            classifier_tables(classifier),
            figures("classifier", "AUC on unseen real slices."),
            classifier,
        )
    if areas := results.get("areas"):
        shown = figures("areas", "Areas of generated and of training slices.")
        text = area_position_text(classifier) if classifier else []
        yield report.Section(f"{title}: areas", [*text, *resampled], area_tables(areas), shown, areas)
    elif "areas" in results:
        yield report.Section(f"{title}: areas", ["Not measured: the view of the training slices cannot be told."])
    shown = figures("metrics", "Generated slices compared with unseen ones, {}.")
    shown += figures("nearest", "Generated {} slices beside the nearest training slices.")
    yield report.Section(f"{title}: metrics", [], quality_tables(results["metrics"]), shown, results["metrics"])
