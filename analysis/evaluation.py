"""Does the model carry the disease? Four questions that a pretty picture does not answer.

    fake = {"AD": ..., "NC": ...}           # uint8 [n, R, R] each, best as many as there are training slices
    results, paths = evaluate({"model/all-conditional": ("AD", "NC")}, fake, "AD_NC/test", "predictions", "all-conditional")

The critic: does it score unseen real slices like those it was trained on, or like generated ones? A classifier: taught by
generated slices, does it tell AD from NC on unseen real ones as well as one taught by real ones (classifier.py)? Areas: are
ventricles, grey and white matter as large as in real slices, and AD and NC as far apart (areas.py)? And metrics.py, class by
class. PACGAN, a progressive GAN with an auxiliary classifier (Lai et al. 2025, doi:10.1038/s41598-025-16257-1), reports an AUC
of 0.813 for that classifier on unseen ADNI slices; slices, subjects and networks are others here, so no AUC compares with it.

Where file names carry subjects, intervals resample these, since slices of one brain are alike; elsewhere they resample slices
and are too narrow.
"""

import json
import os
import re
import zipfile

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import wasserstein_distance
from tqdm import tqdm

from analysis import figures, quality, report
from analysis.areas import AMOUNT, SIDE, measure_areas, read_truth, reduced
from analysis.bootstrap import bootstrap
from analysis.classifier import classify
from analysis.validation import critic_scores
from dataset import Slices, class_folders, find_slices, find_splits
from modules import Discriminator
from training.run_folder import kept_network
from utils import CLASSES, UserError, atomic_path, make_folder

BATCH = 16  # slices that the critic sees at once
COMPARED = 2000  # slices of each kind and class, at most, that critic and metrics see
KINDS = "train", "unseen", "generated"
TEACHERS = {"train": "real slices", "generated": "generated slices", "both": "both"}
CAPTIONS = {
    "critic": "Scores of the critic.",
    "classifier": "AUC on unseen real slices.",
    "areas": "Areas of generated and of training slices.",
    "metrics": "Generated against unseen slices, {}.",
    "nearest": "Generated {} slices beside the nearest of training.",
}
COLOURS = dict(zip(KINDS, (figures.CRITIC, figures.REAL, figures.FAKE)))


# ---------------------------------------------------------------------------------------------------------------------
# The critic


def load_critic(folder, device):
    """The critic of a run's checkpoint.pt, in evaluation mode; UserError where there is none."""
    path, network = os.path.join(folder, "checkpoint.pt"), kept_network(folder)
    try:
        if damaged := zipfile.ZipFile(path).testzip():  # compares the checksums, which PyTorch does not
            raise ValueError(damaged)
        critic = Discriminator(*(network[name] for name in ("resolution", "channel_base", "channel_max", "num_classes")))
        critic.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["critic"])
    except Exception as error:
        raise UserError(
            f"{path}: no critic can be read ({type(error).__name__}); the evaluation needs checkpoint.pt and "
            "config.json beside generator.pt"
        ) from None
    return critic.to(device).eval().requires_grad_(False)


def score(critic, slices, device):
    """{class: scores float64 [n]} of {class: uint8 [N, R, R]}, the classes mixed within the batches, as in training."""
    label = {one: CLASSES.index(one) if one in CLASSES else 0 for one in slices}
    labels = np.repeat([label[one] for one in slices], [len(part) for part in slices.values()])
    order = np.random.default_rng(0).permutation(len(labels))
    pixels, labels = np.concatenate(list(slices.values()))[order], labels[order]
    scores = critic_scores(critic, pixels, torch.from_numpy(labels), BATCH, device).double().cpu().numpy()
    labels = labels[: len(scores)]
    return {one: scores[labels == label[one]] for one in slices}


def critic_gaps(scores):
    """How far apart {kind of KINDS: scores [n]} of one class lie, in standard deviations (the RMS of both sets').

    Class by class: a critic that is told the class may score all AD above all NC, since the loss compares within a class.
    """

    def gap(a, b):
        return float((a.mean() - b.mean()) / max(1e-12, np.sqrt((a.var() + b.var()) / 2)))

    return {
        "mean": {kind: float(x.mean()) for kind, x in scores.items()},
        "deviation": {kind: float(x.std()) for kind, x in scores.items()},
        "train - unseen": gap(scores["train"], scores["unseen"]),
        "unseen - generated": gap(scores["unseen"], scores["generated"]),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Areas


def subjects_of(dataset_dir, classes, slices):
    """Subjects, str [N], of Slices(dataset_dir, classes, ...), by names like 218391_78.jpeg; None where any is unlike them."""
    names = [f"{name}/{file}" for name, folder in class_folders(dataset_dir, classes).items() for file, *_ in find_slices(folder)]
    unreadable = set(slices.unreadable)
    matches = [re.fullmatch(r"(.*/)?(\d+)_\d+\.\w+", name) for name in names if name not in unreadable]
    return np.array([match[2] for match in matches]) if all(matches) else None


def contrast(a, b, groups_a=None, groups_b=None, relative=False):
    """The Interval of the mean of a [N] less that of b [M], as a share of the latter if `relative`; groups: subjects, or None."""
    first = np.arange(len(a) + len(b)) < len(a)
    groups = np.concatenate(
        [
            [f"{side} {i}" for i in (range(len(x)) if own is None else own)]
            for side, x, own in (("a", a, groups_a), ("b", b, groups_b))
        ]
    )

    def statistic(weights):
        mean_a, mean_b = np.average(a, weights=weights[first]), np.average(b, weights=weights[~first])
        return (mean_a - mean_b) / (mean_b if relative else 1)

    return bootstrap(statistic, groups, first)


def compare_areas(areas, groups, truth=None):
    """How the areas of {kind of KINDS: {class: {tissue: mm^2 [n]}}} differ from those of training slices.

    groups: {kind: {class: subjects [n], or None}}, of the real ones; truth: {class: {tissue: mean mm^2 of the training
    slices}}, which phantoms have. Returns {class: {tissue: {"train", "unseen", "generated": mean; "generated / train - 1",
    "unseen / train - 1": Interval; "wasserstein", "floor": distance of generated and of unseen slices to training ones;
    "truth"}}} and {"AD - NC": {tissue: {kind: Interval}}}. Unseen slices are the floor: real ones, of other people.
    """

    def of(kind, one):
        return groups.get(kind, {}).get(one)

    found = {}
    for one in areas["train"]:
        found[one] = {}
        for tissue in AMOUNT:
            here = {kind: areas[kind][one][tissue] for kind in KINDS}
            values = {kind: float(x.mean()) for kind, x in here.items()}
            for kind in KINDS[1:]:
                values[f"{kind} / train - 1"] = contrast(here[kind], here["train"], of(kind, one), of("train", one), True)
            values["wasserstein"] = float(wasserstein_distance(here["generated"], here["train"]))
            values["floor"] = float(wasserstein_distance(here["unseen"], here["train"]))
            if truth:
                values["truth"] = float(truth[one][tissue])
            found[one][tissue] = values
    if len(areas["train"]) == 2:
        found["AD - NC"] = {
            tissue: {
                kind: contrast(areas[kind]["AD"][tissue], areas[kind]["NC"][tissue], of(kind, "AD"), of(kind, "NC"))
                for kind in KINDS
            }
            for tissue in AMOUNT
        }
    return found


# ---------------------------------------------------------------------------------------------------------------------
# All of it


def evaluate(runs, generated, dataset_dir, output_dir, title, device="cpu"):
    """Ask all four of one model, or of a pair of one-class models; returns (results, paths written).

    runs: {folder of a run: its classes}. generated: {class: uint8 [n, R, R]}, best as many as training slices. Of a model of
    both that is not told the class, both name the one class "all". dataset_dir: holds train/ and test/, or is one of the two.
    Results, plain numbers that <title>_evaluation.json holds too: {"critic": {class: `critic_gaps`}, "classifier": `classify`
    (given both classes), "areas": `compare_areas` (from 64x64 on), "metrics": {class: values of `quality.measure_quality`}}.
    """
    side = next(iter(generated.values())).shape[-1]
    splits = find_splits(dataset_dir, "all" if len(generated) > 1 else next(iter(generated)))
    if len(splits) < 2:
        raise UserError(
            f"--dataset_dir {dataset_dir}: the evaluation needs train/ and test/, in it or beside it; there is "
            f"only {''.join(splits.values())}"
        )
    critics = {folder: load_critic(folder, device) for folder in runs}  # what is missing is better found now
    make_folder(output_dir, "--output_dir")
    path, written = os.path.join(output_dir, f"{title}_{{}}").format, []
    slices, groups = {}, {}
    for kind, folder in (("train", splits["train"]), ("unseen", splits["test"])):
        slices[kind] = {one: Slices(folder, one, side) for one in generated}
        groups[kind] = {one: subjects_of(folder, one, found) for one, found in slices[kind].items()}
    rng = np.random.default_rng(0)
    some = {
        kind: {one: pixels[rng.permutation(len(pixels))[:COMPARED]] for one, pixels in of.items()}
        for kind, of in (slices | {"generated": generated}).items()
    }

    scores = {}
    for folder, classes in runs.items():
        found = {
            kind: score(critics[folder], {one: some[kind][one] for one in classes}, device)
            for kind in tqdm(KINDS, f"critic of {folder}", disable=None)
        }
        scores |= {one: {kind: found[kind][one] for kind in KINDS} for one in classes}
    results = {"critic": {one: critic_gaps(found) for one, found in scores.items()}}
    written.append(plot_critics(scores, results["critic"], path("critic.png")))

    small = {kind: {one: shrink(pixels) for one, pixels in of.items()} for kind, of in (slices | {"generated": generated}).items()}
    if len(generated) > 1:
        results["classifier"] = classify(*(small[kind] for kind in ("train", "generated", "unseen")), groups["unseen"], device)
        written.append(plot_classifier(results["classifier"], path("classifier.png")))
    if side >= SIDE:
        areas = {
            kind: {one: measure_areas(pixels, f"areas of {kind} {one}") for one, pixels in of.items()} for kind, of in small.items()
        }
        results["areas"] = compare_areas(areas, groups, true_means(splits["train"], generated))
        written.append(plot_areas(areas, results["areas"], path("areas.png")))

    results["metrics"] = {}
    for one in generated:
        found = quality.measure_quality(
            some["unseen"][one], some["generated"][one], slices["train"][one], device=device, progress=True
        )
        results["metrics"][one] = found.values
        quality.plot_quality(found, path(f"metrics_{one}.png"))
        quality.save_nearest(some["generated"][one], slices["train"][one], found.memory, path(f"nearest_{one}.png"))
        written += [path(f"metrics_{one}.png"), path(f"nearest_{one}.png")]
    with atomic_path(path("evaluation.json")) as temporary, open(temporary, "w") as file:
        json.dump(results, file, indent=2)
    return results, [*written, path("evaluation.json")]


def shrink(pixels):
    """All of an array or Slices [N, R, R], `reduced`."""
    parts = np.array_split(np.arange(len(pixels)), -(-len(pixels) // 1024))
    return np.concatenate([reduced(pixels[part]) for part in parts])


def true_means(folder, classes):
    """{class: {tissue: mean mm^2}} of the training slices of phantoms; None where no subjects.csv above them tells."""
    above = os.path.dirname(os.path.abspath(folder))
    if not os.path.isfile(os.path.join(above, "subjects.csv")):
        return None
    truth = read_truth(above)
    chosen = {one: (truth["split"] == "train") & ((truth["class"] == one) | (one == "all")) for one in classes}
    if not all(rows.any() for rows in chosen.values()):
        return None
    return {one: {tissue: float(truth[tissue][rows].mean()) for tissue in AMOUNT} for one, rows in chosen.items()}


# ---------------------------------------------------------------------------------------------------------------------
# What is said of it


def sections(results, paths, title):
    """`report.Section`s of what `evaluate` returned for the model called `title`."""
    found = [("the critic on unseen slices", "critic", critic_tables, ["critic"])]
    found += [("a classifier of AD and NC", "classifier", classifier_tables, ["classifier"])] if "classifier" in results else []
    found += [("areas", "areas", area_tables, ["areas"])] if "areas" in results else []
    found += [("metrics", "metrics", metrics_tables, ["metrics", "nearest"])]
    made = []
    for head, name, tables, ends in found:
        figures = [
            report.Figure(path, CAPTIONS[end].format(os.path.basename(path).split("_")[-1][:-4]))
            for end in ends
            for path in paths
            if os.path.basename(path).removeprefix(title + "_").startswith(end)
        ]
        text = [classifier_text(results[name])] if name == "classifier" else []
        made.append(report.Section(f"{title}: {head}", text, tables(results[name]), figures, results[name]))
    return made


def critic_tables(found):
    rows = [[one, gaps["train - unseen"], gaps["unseen - generated"]] for one, gaps in found.items()]
    caption = "Gaps between mean scores, in standard deviations. A critic that overfits scores unseen slices like generated ones."
    return [report.Table(["class", "train less unseen", "unseen less generated"], rows, caption)]


def classifier_text(found):
    text = (
        f"Trained on generated slices alone it reaches {found['ratio']:.2f} of the AUC of one trained on real ones. "
        f"Intervals are over unseen {found['resampled']}"
    )
    return text + (": names carry no subjects, so they are too narrow." if found["resampled"] == "slices" else ".")


def classifier_tables(found):
    rows = [[name, found[key]["auc"], found[key]["spread"]] for key, name in TEACHERS.items()]
    caption = f"Mean of {len(found['train']['seeds'])} classifiers each."
    return [report.Table(["trained on", "AUC on unseen real slices", "seeds' deviation"], rows, caption)]


def area_tables(found):
    columns = *KINDS, "generated / train - 1", "unseen / train - 1", "wasserstein", "floor", "truth"
    rows = [
        [one, tissue, *map(here.get, columns)]
        for one, tissues in found.items()
        if one != "AD - NC"
        for tissue, here in tissues.items()
    ]
    heads = ["class", "tissue", *columns[:-3], "Wasserstein", "its floor", "true train"]
    caption = "Mean areas, mm2 (nominal but on phantoms), by one measure; the floor is that of unseen slices."
    tables = [report.Table(heads, rows, caption)]
    if "AD - NC" in found:
        rows = [[tissue, *(here[kind] for kind in KINDS)] for tissue, here in found["AD - NC"].items()]
        caption = "AD less NC, mm2: whether the generated classes differ as the real ones do."
        tables.append(report.Table(["tissue", *KINDS], rows, caption))
    return tables


def metrics_tables(found):
    names = [name for name in next(iter(found.values())) if not name.startswith("floor_")]
    rows = [[name, *(value for one in found.values() for value in (one[name], one.get(f"floor_{name}")))] for name in names]
    caption = (
        "Generated against unseen slices (metrics.py); the floor is between two halves of the unseen ones. "
        "memorised: share nearer to a training slice than 99% of unseen ones are."
    )
    return [report.Table(["", *(head for one in found for head in (one, f"{one}, floor"))], rows, caption)]


# ---------------------------------------------------------------------------------------------------------------------
# Pictures; each returns its path


def histogram(axes, values, kinds=KINDS):
    """Densities of {kind: [n]} over common bins, without the outermost thousandths, and their means as lines."""
    low, high = np.quantile(np.concatenate([values[kind] for kind in kinds]), (0.001, 0.999))
    for kind in kinds:
        axes.hist(
            values[kind],
            np.linspace(low, high + 1e-9, 41),
            density=True,
            histtype="step",
            linewidth=1.5,
            color=COLOURS[kind],
            label=kind,
        )
        axes.axvline(values[kind].mean(), color=COLOURS[kind], linewidth=1, linestyle=":")
    axes.set_yticks([])


def plot_critics(scores, gaps, path):
    """The critic's scores of training, unseen and generated slices, a panel a class."""
    figure = Figure(figsize=(6.5 * len(scores), 4), layout="constrained")
    for axes, (name, values) in zip(figure.subplots(1, len(scores), squeeze=False)[0], scores.items()):
        histogram(axes, values)
        axes.set(xlabel="score of the critic (dotted: means)")
        axes.set_title(
            f"{name}: train - unseen {gaps[name]['train - unseen']:+.2f}, unseen - generated "
            f"{gaps[name]['unseen - generated']:+.2f} standard deviations",
            fontsize=10,
        )
        axes.legend(frameon=False)
    figures.save_figure(figure, path)
    return path


def plot_classifier(found, path):
    """AUC of the three classifiers: each seed, the mean and its interval."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    for x, name in enumerate(TEACHERS):
        mean, low, high = found[name]["auc"]
        axes.plot([x, x], [low, high], color=figures.CRITIC, linewidth=1.5)
        axes.plot(x, mean, "_", color=figures.CRITIC, markersize=24)
        axes.plot([x + 0.08] * len(found[name]["seeds"]), found[name]["seeds"], "o", color=figures.FAKE, markersize=4)
        axes.annotate(f"{mean:.3f}", (x - 0.12, mean), ha="right", va="center")
    axes.axhline(0.5, color="grey", linewidth=0.5)
    axes.set(
        xticks=range(3),
        xticklabels=[f"trained on {name}" for name in TEACHERS.values()],
        xlim=(-0.6, 2.5),
        ylabel="AUC, AD against NC, on unseen real slices",
        ylim=(min(0.48, axes.get_ylim()[0]), 1.005),
    )
    axes.set_title(f"dots: seeds; bars: 95% interval of their mean over other {found['resampled']}", fontsize=10)
    figures.save_figure(figure, path)
    return path


def plot_areas(areas, found, path):
    """Areas of generated beside training slices, a row a tissue, a column a class."""
    names = list(areas["train"])
    figure = Figure(figsize=(5.5 * len(names), 3 * len(AMOUNT)), layout="constrained")
    for row, tissue in zip(figure.subplots(len(AMOUNT), len(names), squeeze=False), AMOUNT):
        for axes, one in zip(row, names):
            histogram(axes, {kind: areas[kind][one][tissue] for kind in ("train", "generated")}, ("train", "generated"))
            here = found[one][tissue]
            if "truth" in here:
                axes.axvline(here["truth"], color="black", linewidth=1, label="true mean")
            axes.set_title(
                f"{tissue}, {one}: generated {here['generated / train - 1'].value:+.1%}, Wasserstein "
                f"{here['wasserstein']:.0f} (unseen {here['floor']:.0f})",
                fontsize=10,
            )
    unit = "mm$^2$" if "truth" in here else "nominal mm$^2$"
    for axes in row:
        axes.set_xlabel(f"area, {unit} (dotted: means)")
    figure.axes[0].legend(frameon=False)
    for row in range(len(AMOUNT)):  # one scale for both classes
        here = figure.axes[row * len(names) : (row + 1) * len(names)]
        limits = np.array([axes.get_xlim() for axes in here])
        for axes in here:
            axes.set_xlim(limits[:, 0].min(), limits[:, 1].max())
    figures.save_figure(figure, path)
    return path
