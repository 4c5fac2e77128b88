"""Real slices beside their twins of the other class (analysis/counterfactual.py): predict.py --draw morph --encode DIR.

section = draw_twins(model, encoder, targets, scans, "predictions")        # writes <model>_twins.png and .csv
"""

import csv
import os

import numpy as np

from analysis.areas import true_twins, view_or_note
from analysis.counterfactual import DRAWS, area_changes, axioms, class_probe, counterfactuals
from analysis.encoded_maps import trained_text
from analysis.encoder import draw_slices
from analysis.position import slice_indices
from analysis.values import slice_values
from data.subjects import resampled_text, resampling_groups
from report.figures import colour, save_image_table
from report.report import ReportFigure, ReportTable, Section
from utils import CLASSES, atomic_path, plural

SHOWN, VIEWED = 5, 64  # slices in the figure; generated ones that tell the view
CLEAR = 2  # standard deviations from which on a pixel counts as changed


def draw_twins(model, encoder, targets, scans, output_dir, trained=None, seed=0):
    """Write <model>_twins.png and .csv of Targets with these `subjects.Scan`s; returns a report.Section.

    trained: of `encoded_maps.trained_people`. .csv: a row for each slice, its areas in mm^2 as encoded and as the twin, and the 95%
    interval of the relative change over the draws.
    """
    base, count = os.path.join(output_dir, f"{model.name}_twins"), len(targets.images)
    rows = np.unique(np.linspace(0, count - 1, min(SHOWN, count)).round().astype(int)).tolist()
    drawn, _ = draw_slices(model, VIEWED, encoder.side, seed)
    view = view_or_note(drawn, "areas of the twins")  # of the model: that of a few real slices may not be told
    judge = class_probe(model, encoder, seed, progress=True)
    values = slice_values(targets.files, model.values, scans) if model.values else None
    twins = counterfactuals(model, encoder, targets.images, targets.labels, judge, rows, view, values, seed, progress=True)
    outside = encoder.outside(model, targets.images, encoder.encode(targets.images))
    save_rows(twins, targets, outside, f"{base}.csv")
    plot_twins(twins, targets, rows, f"{base}.png")
    groups, unit = resampling_groups(scans)
    measured = axioms(twins, groups, slice_indices(targets.files), seed)
    changes, truth = area_changes(twins, groups, seed), true_twins(targets.paths) if view else None
    true_changes = truth and area_changes(twins._replace(areas={name: pair[:, None] for name, pair in truth.items()}), groups, seed)
    tables = [axiom_table(measured)] + ([change_table(changes, true_changes)] if twins.areas else [])
    text = [
        trained_text(trained, scans),
        f"{plural(count, 'slice')} ({len(np.unique(groups))} {unit}) and their twins of the other class, {DRAWS} draws each: "
        f"{base}.csv.",
        f"{(outside > 1).mean():.0%} of the slices are unlike anything that the model draws: there the encoding is poor."
        " A twin is what the model takes for the difference, not how this brain would change.",
        *(f"{row[0]}: {value_text(row[1])} as encoded, {value_text(row[2])} as the twin" for row in tables[0].rows),
        *(
            f"{row[0]}, {row[1]}: {row[2]:.0f} mm² (nominal) as encoded, {percent(*row[3])} in the twin"
            + (f", {percent(*row[4])} in the phantom's true twin" if truth else "")
            for row in tables[-1].rows
            if view
        ),
        resampled_text(unit),
    ]
    caption = "Slices spread over the folder: real, encoded, twin, mean difference, its uncertainty, where it is clear."
    numbers = {"axioms": measured, "areas": {CLASSES[label]: of for label, of in changes.items()}, "refused": (outside > 1).mean()}
    figures = [ReportFigure(f"{base}.png", caption)]
    return Section(f"{model.name}: twins of real slices", [line for line in text if line], tables, figures, numbers)


def axiom_table(measured):
    """A ReportTable of `axioms`."""
    caption = "RMS in grey levels, at the side of the encoder. As encoded: the floor. The class: by a probe of generated slices."
    return ReportTable(["measure", "as encoded", "twin"], [[name, *pair] for name, pair in measured.items()], caption)


def change_table(changes, truth=None):
    """A ReportTable of `area_changes`, beside those of phantoms' true twins, the same anatomies in the other class, if given."""
    columns = ["slices", "area", "as encoded, mm²", "relative change in the twin", *(["in the true twin"] if truth else [])]
    rows = [
        [f"{CLASSES[label]} to {CLASSES[1 - label]}", tissue, before, change, *([truth[label][tissue][1]] if truth else [])]
        for label, of in changes.items()
        for tissue, (before, change) in of.items()
    ]
    return ReportTable(columns, rows, "Nominal areas; brain: ventricle, grey and white matter.")


def value_text(interval):
    """An Interval with as many digits as it needs."""
    digits = 1 if interval.value >= 2 else 2
    if interval.low == interval.high:  # of one person, say
        return f"{interval.value:.{digits}f}"
    return f"{interval.value:.{digits}f} ({interval.low:.{digits}f} to {interval.high:.{digits}f})"


def percent(value, low, high):
    return f"{value:+.0%} ({low:+.0%} to {high:+.0%})" if low < high else f"{value:+.0%}"


def relative_change(twins, tissue):
    """(mean, 2.5th and 97.5th percentile) [3, N] over the draws: change of a tissue's area, relative to the mean as encoded."""
    before, after = twins.areas[tissue]  # [DRAWS, N]
    change = (after - before) / before.mean(0)
    return np.stack([change.mean(0), *np.quantile(change, (0.025, 0.975), axis=0)])


def save_rows(twins, targets, outside, path):
    """Write a row for each slice."""
    columns, changes = ["file", "class", "taken for", "outside", "probe: real", "probe: encoded", "probe: twin"], {}
    for tissue in twins.areas:
        columns += [f"{tissue}, {what}" for what in ("encoded", "twin", "change", "low", "high")]
        changes[tissue] = np.stack([*twins.areas[tissue].mean(1), *relative_change(twins, tissue)])  # [5, N]
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(columns)
        for i, name in enumerate(targets.files):
            known = CLASSES[targets.labels[i]] if targets.labels[i] >= 0 else ""
            called = [CLASSES[1 - int(is_ad)] for is_ad in twins.called_ad[:, i]]
            values = [f"{value:.5g}" for tissue in changes.values() for value in tissue[:, i]]
            table.writerow([name, known, CLASSES[twins.labels[i]], f"{outside[i]:.3f}", *called, *values])


def plot_twins(twins, targets, rows, path):
    """Draw the slices of these rows, their encodings, twins, the mean difference and where it is clear."""
    limit, cells, captions = max(1.0, float(np.quantile(np.abs(twins.difference), 0.999))), [], []
    for k, i in enumerate(rows):
        difference, deviation = twins.difference[k], twins.deviation[k]
        clear = difference * (np.abs(difference) > CLEAR * deviation)
        maps = colour(difference, limit), colour(deviation, limit, "inferno"), colour(clear, limit)
        cells.append([targets.images[i], *twins.images[k], *maps])
        own = twins.labels[i]
        captions.append(f"{targets.names[i][-14:]}\n{CLASSES[own]}, twin {CLASSES[1 - own]}")
        if twins.areas:
            change, low, high = relative_change(twins, "ventricle")[:, i]
            captions[-1] += f"\nventricles {change:+.0%}\n{low:+.0%} to {high:+.0%}"
    note = (
        "A real slice; what the model draws of its encoding; its twin, the same latent told the other class; the twin less the "
        f"encoding, mean of {DRAWS}\ndraws from what the encoder knows of w, and of noise: red brighter, blue darker, up to "
        f"{limit:.0f} grey levels; its standard deviation over the\ndraws, black to yellow, likewise; the difference where it "
        f"exceeds {CLEAR} of them: edges move from draw to draw, so that few single pixels are\ncertain where an area is. Left: "
        "change of the ventricles' area, and 95% of the draws. This is what the model takes for the difference, not\nhow a brain "
        "would change."
    )
    columns = ["real", "as encoded", "twin", "difference", "its uncertainty", f"beyond {CLEAR} sd"]
    save_image_table(cells, path, captions, columns, note, min_side=160)
