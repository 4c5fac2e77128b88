"""Sections, tables and figures of an EvaluationResult: AUCs of the classifiers, areas, image quality.

for section in draw_evaluation(result, "all-conditional", "predictions"):       # predictions/all-conditional_areas.png, ...
"""

import itertools
import json
import os

import numpy as np
from matplotlib.figure import Figure

from analysis.areas import SIDE
from analysis.bootstrap import MIN_PEOPLE, POWER_NOTE
from analysis.evaluation import KINDS
from analysis.position import beyond_position, position_text
from report import figures
from report.quality_report import plot_quality, save_nearest
from report.report import ReportFigure, ReportTable, Section, plain
from utils import atomic_path

COLOURS = dict(zip(KINDS, (figures.CRITIC, figures.REAL, figures.FAKE)))
TRAINED_ON = {"train": "real slices", "generated": "generated slices", "both": "both"}  # the classifiers

# ---------------------------------------------------------------------------------------------------------------------
# All of it


def draw_evaluation(result, title, output_dir):
    """Write <title>_evaluation.json and the figures of an EvaluationResult; returns its report.Sections."""
    with atomic_path(os.path.join(output_dir, f"{title}_evaluation.json")) as temporary, open(temporary, "w") as file:
        json.dump(plain(result.numbers()), file, indent=2)

    def path(name):
        return os.path.join(output_dir, f"{title}_{name}.png")

    sections = []
    if result.classifier:
        plot_classifier(result.classifier, result.slices.unit, path("classifier"))
        text, tables = [classifier_text(result.classifier), *result.slices.resampled], classifier_tables(result.classifier)
        shown = [ReportFigure(path("classifier"), "AUC on held-out real slices.")]
        sections.append(Section(f"{title}: a classifier of AD and NC", text, tables, shown, result.classifier))
        table = ladder_table(result.ladder, result.classifier["train"])
        name = f"{title}: what the style space keeps of AD and NC"
        sections.append(Section(name, ladder_text(table), [table], numbers=result.ladder))
    if result.slices.side >= SIDE:
        sections.append(area_section(result, title, path("areas")))
    return [*sections, quality_section(result, title, path)]


def area_section(result, title, path):
    if not result.areas:
        return Section(f"{title}: areas", ["Not measured: the view of the training slices cannot be told."])
    plot_areas(result.areas, result.area_comparison, path)
    text = [area_text(result.area_comparison)]
    text += [*(area_position_text(result.classifier) if result.classifier else []), *result.slices.resampled]
    shown = [ReportFigure(path, "Areas of generated and of training slices.")]
    return Section(f"{title}: areas", text, area_tables(result.area_comparison), shown, result.area_comparison)


def quality_section(result, title, path):
    """path: a function that gives the path of the figure of a name."""
    compared, nearest = [], []
    for name, quality in result.quality.items():
        plot_quality(quality, path(f"metrics_{name}"))
        compared.append(ReportFigure(path(f"metrics_{name}"), f"Generated slices compared with held-out ones, {name}."))
        pixels = result.slices.sample["generated"][name], result.slices.pixels["train"][name]
        save_nearest(*pixels, quality.memory, path(f"nearest_{name}"))
        nearest.append(ReportFigure(path(f"nearest_{name}"), f"Generated {name} slices beside the nearest training slices."))
    values = {name: quality.values for name, quality in result.quality.items()}
    return Section(f"{title}: metrics", [], quality_tables(values), compared + nearest, values)


# ---------------------------------------------------------------------------------------------------------------------
# Text and tables, from the parts of an EvaluationResult


def classifier_text(results):
    """What share of the above-chance AUC training on generated slices reaches, and whether slice position may explain it."""
    real, difference = results["train"], results["difference"]
    position = real.get("position")
    if difference is None:
        text = f"Fewer than {MIN_PEOPLE} held-out people of a class: too few to compare the classifiers."
    elif results["ratio"] is None:
        text = (
            f"Trained on real slices, the classifier was not shown to be better than chance (AUC {real['auc']}): there is no "
            "above-chance AUC of which training on generated slices could reach a share."
        )
    else:
        share, low, high = results["ratio"]
        text = (
            f"Trained on generated slices alone, the classifier reaches {share:.0%} ({low:.0%} to {high:.0%}) of the above-chance "
            "AUC (AUC less 0.5) of one trained on as many real slices."
        )
        if position and position["known"] and not beyond_position(position):
            text += " The latter was not shown to see more than slice position, so this share says nothing about AD and NC."
    if difference:
        found = "were not shown to differ" if difference.low <= 0 <= difference.high else "differ"
        text += f" The AUCs {found}: generated less real {difference}."
    scorer, shown = "the classifier trained on real slices", results["ratio"] is not None
    return " ".join([text, *(position_text(position, scorer, shown) if position else [])])


def area_position_text(results):
    """[A sentence, where the slice index alone tells AD from NC: their areas may differ by that], of `classify`."""
    alone = results["train"].get("position", {}).get("slice index alone")
    if not alone or alone.low <= 0.5:
        return []
    return [f"Slice index alone tells AD from NC (AUC {alone}), so AD minus NC may be a difference of slice position."]


def area_text(results):
    """A sentence that names every area in which generated slices were shown to differ from training slices, of `compare_areas`."""
    compared = {
        f"{name} {tissue}": row["generated / train - 1"]
        for name, tissues in results.items()
        if name != "AD - NC"
        for tissue, row in tissues.items()
    }
    apart = [f"{name} {x.value:+.1%} ({x.low:+.1%} to {x.high:+.1%})" for name, x in compared.items() if not x.low <= 0 <= x.high]
    if not apart:
        return "No area of generated slices was shown to differ from that of training slices: all intervals include zero."
    return f"{len(apart)} of {len(compared)} areas differ from those of training slices: {', '.join(apart)}."


def classifier_tables(results):
    position = results["train"].get("position", {})
    columns = ["trained on", "AUC on held-out real slices", "standard deviation over seeds"]
    rows = [[name, results[kind]["auc"], results[kind]["spread"]] for kind, name in TRAINED_ON.items()]
    kept = results["validation"]
    caption = (
        f"AUC of AD against NC by the mean score of {len(results['train']['seeds'])} classifiers in each row, trained until they "
        f"do no better on {kept['people']} other people or scans of the training set ({kept['slices']} slices). {POWER_NOTE}"
    )
    if position.get("known"):
        columns.append("position-stratified AUC")
        rows = [[*row, results[kind]["position"]["position-stratified"]] for row, kind in zip(rows, TRAINED_ON)]
        rows.append(["nothing but the slice index", position["slice index alone"], None, None])
        caption += (
            " Position-stratified: AD and NC are compared within equal slice indices. The slice index alone: log-odds of AD by "
            "index in the training slices."
        )
    return [ReportTable(columns, rows, caption)]


def ladder_table(rungs, classifier):
    """A ReportTable of `ladder`'s rungs and of `classify`'s results for real training slices, the best that is known."""
    rows = [[name, of["auc"], of["position"]["position-stratified"], of["p"]] for name, of in rungs.items()]
    position = classifier.get("position", {})
    rows.append(["classifier of real slices", classifier["auc"], position.get("position-stratified"), classifier["p"]])
    if position.get("slice index alone"):
        rows.insert(0, ["nothing but the slice index", position["slice index alone"], None, None])
    caption = (
        "AUC of AD against NC on held-out people, of linear probes fitted to training slices. p: by permutation of the held-out "
        f"people's labels. {POWER_NOTE}"
    )
    return ReportTable(["features", "AUC", "position-stratified AUC", "p"], rows, caption)


def ladder_text(table):
    """A sentence with the AUC of each row of a `ladder_table`."""
    return ["AUC of AD against NC on held-out people: " + "; ".join(f"{row[0]} {row[1]}" for row in table.rows) + "."]


def area_tables(results):
    columns = {name: name for name in (*KINDS, "generated / train - 1", "held-out / train - 1")}
    columns |= {"wasserstein": "Wasserstein", "floor": "Wasserstein, held-out", "truth": "truth, train"}
    compared = {name: tissues for name, tissues in results.items() if name != "AD - NC"}
    rows = [[name, tissue, *map(row.get, columns)] for name, tissues in compared.items() for tissue, row in tissues.items()]
    caption = (
        "Mean areas, mm2 (nominal except for phantoms), measured in the same way in all images, and the Wasserstein distance of "
        "generated slices from training slices; that of held-out slices is what a perfect generator would get."
    )
    tables = [ReportTable(["class", "tissue", *columns.values()], rows, caption)]
    if "AD - NC" in results:
        rows = [[tissue, *map(row.get, KINDS)] for tissue, row in results["AD - NC"].items()]
        caption = "AD minus NC, mm2: whether the generated classes differ as the real ones do."
        tables.append(ReportTable(["tissue", *KINDS], rows, caption))
    return tables


def quality_tables(results):
    metrics = [metric for metric in next(iter(results.values())) if not metric.startswith("floor_")]
    pairs = {metric: [(values.get(metric), values.get(f"floor_{metric}")) for values in results.values()] for metric in metrics}
    rows = [[metric, *itertools.chain(*of_metric)] for metric, of_metric in pairs.items()]
    caption = (
        "Generated slices compared with held-out ones, as by metrics.py; the floor is that of training slices drawn in place of "
        "the generated ones. lost: how far the worst of precision, recall and coverage is on the way from its floor to nothing. "
        "memorised: share of generated slices closer to a training slice than 99% of held-out ones are."
    )
    return [ReportTable(["", *(head for name in results for head in (name, f"{name}, floor"))], rows, caption)]


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def histogram(axes, values, kinds=KINDS):
    """Draw densities of {kind: [n]} over common bins that leave out the outermost thousandths, with dotted lines at the means."""
    low, high = np.quantile(np.concatenate([values[kind] for kind in kinds]), (0.001, 0.999))
    bins = np.linspace(low, high + 1e-9, 41)
    for kind in kinds:
        style = {"color": COLOURS[kind], "linewidth": 1.5}
        axes.hist(values[kind], bins, density=True, histtype="step", label=kind, **style)
        axes.axvline(values[kind].mean(), linestyle=":", **style)
    axes.set_yticks([])


def plot_classifier(results, unit, path):
    """The AUC of the three classifiers: of each seed, of their mean score with its interval over `unit` (people, scans or slices),
    with the position-stratified AUC and that of the slice index alone where it is known."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    for x, kind in enumerate(TRAINED_ON):
        (mean, low, high), seeds = results[kind]["auc"][:3], results[kind]["seeds"]
        axes.plot([x, x], [low, high], color=figures.CRITIC, linewidth=1.5)
        axes.plot(x, mean, "_", color=figures.CRITIC, markersize=24)
        axes.plot([x + 0.08] * len(seeds), seeds, "o", color=figures.FAKE, markersize=4)
        axes.annotate(f"{mean:.3f}", (x - 0.12, mean), ha="right", va="center")
        if stratified := results[kind].get("position", {}).get("position-stratified"):
            axes.plot([x + 0.2] * 2, stratified[1:3], color=figures.NEUTRAL, linewidth=1.5)
            axes.plot(x + 0.2, stratified.value, "D", color=figures.NEUTRAL, markersize=5, label="position-stratified")
    if alone := results["train"].get("position", {}).get("slice index alone"):
        axes.axhspan(alone.low, alone.high, color=figures.REAL, alpha=0.15, linewidth=0)
        axes.axhline(alone.value, color=figures.REAL, linestyle="--", linewidth=1, label=f"slice index alone: {alone}")
    if labelled := dict(zip(*reversed(axes.get_legend_handles_labels()))):  # one of each label
        axes.legend(labelled.values(), labelled, frameon=False, fontsize=8)
    axes.axhline(0.5, color="grey", linewidth=0.5)
    axes.annotate("chance", (2.48, 0.5), ha="right", va="bottom", color="grey", fontsize=8)
    axes.set(xlim=(-0.6, 2.5), ylim=(min(0.48, axes.get_ylim()[0]), 1.005), ylabel="AUC, AD against NC, on held-out real slices")
    axes.set_xticks(range(3), [f"trained on {name}" for name in TRAINED_ON.values()])
    axes.set_title(f"dots: seeds; bars: their mean score, 95% interval over {unit}", fontsize=10)
    figures.save_figure(figure, path)


def plot_areas(areas, results, path):
    """Areas {kind: {class: {tissue: [n]}}} of generated and training slices with their `compare_areas`: tissues by classes."""
    classes, tissues = list(areas["train"]), list(next(iter(areas["train"].values())))
    figure = Figure(figsize=(5.5 * len(classes), 3 * len(tissues)), layout="constrained")
    panels = figure.subplots(len(tissues), len(classes), squeeze=False, sharex="row")
    for row, tissue in zip(panels, tissues):
        for axes, name in zip(row, classes):
            histogram(axes, {kind: areas[kind][name][tissue] for kind in ("train", "generated")}, ("train", "generated"))
            compared = results[name][tissue]
            if "truth" in compared:
                axes.axvline(compared["truth"], color="black", linewidth=1, label="true mean of train")
            axes.set_title(
                f"{tissue}, {name}: generated {compared['generated / train - 1'].value:+.1%}, Wasserstein "
                f"{compared['wasserstein']:.0f} (held-out {compared['floor']:.0f})",
                fontsize=10,
            )
    for axes in panels[-1]:
        axes.set_xlabel(f"area, {'' if 'truth' in compared else 'nominal '}mm$^2$ (dotted: means)")
    panels[0, 0].legend(frameon=False)
    figures.save_figure(figure, path)
