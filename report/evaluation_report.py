"""Tables and figures of what evaluation.py measures: scores of the critic, AUCs of the classifiers, areas, image quality."""

import numpy as np
from matplotlib.figure import Figure

from analysis.position import beyond_position, position_text
from report import figures
from report.report import ReportTable

KINDS = "train", "unseen", "generated"  # of slices: the first two are real
COLOURS = dict(zip(KINDS, (figures.CRITIC, figures.REAL, figures.FAKE)))
TRAINED_ON = {"train": "real slices", "generated": "generated slices", "both": "both"}  # the classifiers

# ---------------------------------------------------------------------------------------------------------------------
# Text and tables, from the results of `evaluate_models`


def critic_tables(results):
    rows = [[name, gaps["train - unseen"], gaps["unseen - generated"]] for name, gaps in results.items()]
    caption = "Gaps between mean scores, in standard deviations. A critic that overfits scores unseen slices like generated ones."
    return [ReportTable(["class", "train less unseen", "unseen less generated"], rows, caption)]


def classifier_text(results):
    """What share of the above-chance AUC training on generated slices reaches, and whether slice position may explain it."""
    real = results["train"]
    position = real.get("position")
    if results["ratio"] is None:
        text = (
            f"Trained on real slices, the classifier is no better than chance (AUC {real['auc'][0]:.2f}): there is no "
            "above-chance AUC of which training on generated slices could reach a share."
        )
    else:
        text = (
            f"Trained on generated slices alone, the classifier reaches {results['ratio']:.0%} of the above-chance AUC (AUC less "
            "0.5) of one trained on real slices."
        )
        if position and position["known"] and not beyond_position(real["auc"], position):
            text += " The latter was not shown to see more than slice position, so this share says nothing about AD and NC."
    return " ".join([text, *(position_text(position, "the classifier trained on real slices") if position else [])])


def area_position_text(results):
    """[A sentence, where the slice index alone tells AD from NC: their areas may differ by that], of `classify`."""
    alone = results["train"].get("position", {}).get("slice index alone")
    if not alone or alone.low <= 0.5:
        return []
    return [f"Slice index alone tells AD from NC (AUC {alone}), so AD less NC may be a difference of slice position."]


def classifier_tables(results):
    position = results["train"].get("position", {})
    columns = ["trained on", "AUC on unseen real slices", "standard deviation over seeds"]
    rows = [[name, results[kind]["auc"], results[kind]["spread"]] for kind, name in TRAINED_ON.items()]
    caption = f"AUC of AD against NC, mean of {len(results['train']['seeds'])} classifiers in each row."
    if position.get("known"):
        columns.append("position-stratified AUC")
        rows = [[*row, results[kind]["position"]["position-stratified"]] for row, kind in zip(rows, TRAINED_ON)]
        rows.append(["nothing but the slice index", position["slice index alone"], None, None])
        caption += (
            " Position-stratified: AD and NC are compared within equal slice indices. The slice index alone: log-odds of AD by "
            "index in the training slices."
        )
    return [ReportTable(columns, rows, caption)]


def area_tables(results):
    columns = {name: name for name in (*KINDS, "generated / train - 1", "unseen / train - 1")}
    columns |= {"wasserstein": "Wasserstein", "floor": "Wasserstein, unseen", "truth": "truth, train"}
    rows = [
        [name, tissue, *map(row.get, columns)]
        for name, tissues in results.items()
        if name != "AD - NC"
        for tissue, row in tissues.items()
    ]
    caption = (
        "Mean areas, mm2 (nominal except for phantoms), measured in the same way in all images, and the Wasserstein distance of "
        "generated slices from training slices; that of unseen slices is what a perfect generator would get."
    )
    tables = [ReportTable(["class", "tissue", *columns.values()], rows, caption)]
    if "AD - NC" in results:
        rows = [[tissue, *map(row.get, KINDS)] for tissue, row in results["AD - NC"].items()]
        caption = "AD less NC, mm2: whether the generated classes differ as the real ones do."
        tables.append(ReportTable(["tissue", *KINDS], rows, caption))
    return tables


def quality_tables(results):
    metrics = [metric for metric in next(iter(results.values())) if not metric.startswith("floor_")]
    rows = [
        [metric, *(value for of_class in results.values() for value in (of_class[metric], of_class.get(f"floor_{metric}")))]
        for metric in metrics
    ]
    caption = (
        "Generated slices compared with unseen ones, as by metrics.py; the floor is the same between two halves of the unseen "
        "ones. memorised: share of generated slices closer to a training slice than 99% of unseen ones are."
    )
    return [ReportTable(["", *(head for name in results for head in (name, f"{name}, floor"))], rows, caption)]


# ---------------------------------------------------------------------------------------------------------------------
# Figures; each function returns the path that it wrote


def histogram(axes, values, kinds=KINDS):
    """Draw densities of {kind: [n]} over common bins that leave out the outermost thousandths, with dotted lines at the means."""
    low, high = np.quantile(np.concatenate([values[kind] for kind in kinds]), (0.001, 0.999))
    bins = np.linspace(low, high + 1e-9, 41)
    for kind in kinds:
        style = {"color": COLOURS[kind], "linewidth": 1.5}
        axes.hist(values[kind], bins, density=True, histtype="step", label=kind, **style)
        axes.axvline(values[kind].mean(), linestyle=":", **style)
    axes.set_yticks([])


def plot_critic(scores, gaps, path):
    """The critic's scores {class: {kind: [n]}} with their `critic_gaps`, one panel for each class."""
    figure = Figure(figsize=(6.5 * len(scores), 4), layout="constrained")
    for axes, (name, of_class) in zip(figure.subplots(1, len(scores), squeeze=False)[0], scores.items()):
        histogram(axes, of_class)
        axes.set(xlabel="score of the critic (dotted: means)")
        axes.set_title(
            f"{name}, gaps in standard deviations: train less unseen {gaps[name]['train - unseen']:.2f},\n"
            f"unseen less generated {gaps[name]['unseen - generated']:.2f}",
            fontsize=10,
        )
        axes.legend(frameon=False)
    figures.save_figure(figure, path)
    return path


def plot_classifier(results, unit, path):
    """The AUC of the three classifiers: each seed, their mean and its interval over `unit` (people, scans or slices), with the
    position-stratified AUC and that of the slice index alone where it is known."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    for x, kind in enumerate(TRAINED_ON):
        (mean, low, high), seeds = results[kind]["auc"], results[kind]["seeds"]
        axes.plot([x, x], [low, high], color=figures.CRITIC, linewidth=1.5)
        axes.plot(x, mean, "_", color=figures.CRITIC, markersize=24)
        axes.plot([x + 0.08] * len(seeds), seeds, "o", color=figures.FAKE, markersize=4)
        axes.annotate(f"{mean:.3f}", (x - 0.12, mean), ha="right", va="center")
        if stratified := results[kind].get("position", {}).get("position-stratified"):
            axes.plot([x + 0.2] * 2, stratified[1:], color=figures.NEUTRAL, linewidth=1.5)
            axes.plot(x + 0.2, stratified.value, "D", color=figures.NEUTRAL, markersize=5, label="position-stratified")
    if alone := results["train"].get("position", {}).get("slice index alone"):
        axes.axhspan(alone.low, alone.high, color=figures.REAL, alpha=0.15, linewidth=0)
        axes.axhline(alone.value, color=figures.REAL, linestyle="--", linewidth=1, label=f"slice index alone: {alone}")
    if labelled := dict(zip(*reversed(axes.get_legend_handles_labels()))):  # one of each label
        axes.legend(labelled.values(), labelled, frameon=False, fontsize=8)
    axes.axhline(0.5, color="grey", linewidth=0.5)
    axes.annotate("chance", (2.48, 0.5), ha="right", va="bottom", color="grey", fontsize=8)
    axes.set(
        xticks=range(3),
        xticklabels=[f"trained on {name}" for name in TRAINED_ON.values()],
        xlim=(-0.6, 2.5),
        ylabel="AUC, AD against NC, on unseen real slices",
        ylim=(min(0.48, axes.get_ylim()[0]), 1.005),
    )
    axes.set_title(f"dots: seeds; bars: their mean and its 95% interval over {unit}", fontsize=10)
    figures.save_figure(figure, path)
    return path


def plot_areas(areas, results, path):
    """Areas {kind: {class: {tissue: [n]}}} of generated and training slices with their `compare_areas`: tissues by classes."""
    classes, tissues = list(areas["train"]), list(next(iter(areas["train"].values())))
    figure = Figure(figsize=(5.5 * len(classes), 3 * len(tissues)), layout="constrained")
    panels = figure.subplots(len(tissues), len(classes), squeeze=False, sharex="row")
    for row, tissue in zip(panels, tissues):
        for axes, name in zip(row, classes):
            histogram(axes, {kind: areas[kind][name][tissue] for kind in ("train", "generated")}, ("train", "generated"))
            of_tissue = results[name][tissue]
            if "truth" in of_tissue:
                axes.axvline(of_tissue["truth"], color="black", linewidth=1, label="true mean of train")
            axes.set_title(
                f"{tissue}, {name}: generated {of_tissue['generated / train - 1'].value:+.1%}, Wasserstein "
                f"{of_tissue['wasserstein']:.0f} (unseen {of_tissue['floor']:.0f})",
                fontsize=10,
            )
    for axes in panels[-1]:
        axes.set_xlabel(f"area, {'' if 'truth' in of_tissue else 'nominal '}mm$^2$ (dotted: means)")
    panels[0, 0].legend(frameon=False)
    figures.save_figure(figure, path)
    return path
