"""Maps of style vectors, drawn: predict.py --plot_umap and its controls, computed in analysis/style_maps.py.

section = draw_maps(maps, settings, "predictions", colour="age")            # writes umap.png, umap.csv, umap_epochs.gif
section = age_section("AD: age and sex in the style space", results)        # of analysis.age_probe
"""

import csv
import os

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from analysis.age_probe import age_sentences
from analysis.bootstrap import MIN_PEOPLE
from analysis.style_maps import conclusions
from data.subjects import resampled_text
from report.figures import CRITIC, FAKE, NEUTRAL, save_figure, save_gif, wrap
from report.report import ReportFigure, ReportTable, Section
from utils import atomic_path

COLOURS = {  # --colour, and what the colours are
    "class": None,
    "age": "age at the scan, years",
    "sex": "sex, F or M",
    "area": "ventricle area of the slice, mm² (nominal unless phantoms)",
}
POSITION = {"slice index alone": "AUC of slice index alone", "position-stratified": "position-stratified AUC of the probe"}
EPOCHS_NOTE = (
    "Same-class k-NN fraction: 50% if both sets mix, 100% if they are fully separated. Models of two seeds are separated before "
    "any training, and a conditional model is told the class: no gap here is by itself a finding about AD and NC."
)
CLASS_COLOURS = {"AD": "#c8553d", "NC": "#2a6f97"}
CLASS_MARKERS = {"AD": "o", "NC": "D"}  # where colours tell something else
VALUE_MAP, VALUE_COLOURS = "viridis", {"F": "#e69f00", "M": "#0072b2"}  # both told apart by colour-blind people

# ---------------------------------------------------------------------------------------------------------------------
# All of it


def draw_maps(maps, settings, output_dir, colour="class"):
    """Draw StyleMaps, made by these MapSettings, and write their points; returns a report.Section.

    Writes <method>.png and .csv, and <method>_epochs.gif if the runs have saved style vectors.
    """
    path, csv_path = (os.path.join(output_dir, settings.method + end) for end in (".png", ".csv"))
    text = list(dict.fromkeys(conclusions(maps).values()))
    real = next((style_map for style_map in maps if style_map.real), None)
    plot_maps(maps, path, "\n".join(text), COLOURS[colour])
    save_points(maps, csv_path, colour)
    caption = (
        f"{settings.num_styles} style vectors of each class, of the same latents, by {settings.method}. The measures are taken in "
        "w, with 95% intervals."
    )
    if COLOURS[colour]:
        caption += f" Colours: {COLOURS[colour]}."
    shown = [ReportFigure(path, caption)]
    if over_epochs := {style_map.spec.title: style_map.epochs for style_map in maps if style_map.epochs}:
        gif = os.path.join(output_dir, f"{settings.method}_epochs.gif")
        save_gif(epoch_frames(over_epochs), gif, 500)
        shown.append(ReportFigure(gif, f"The same 512 latents over the epochs. {EPOCHS_NOTE}"))
    table, numbers = separation_table(maps, real)
    section = Section("Style space", text, [table], shown, numbers)
    if real and real.age:
        text, tables, numbers = text + age_sentences(real.age), [table, age_table(real.age)], numbers | {"age": real.age}
        section = section._replace(text=text, tables=tables, numbers=numbers)
    return section


def separation_table(maps, real):
    """(ReportTable of the separations in StyleMaps, numbers for report.json); real: the map with real slices, or None."""
    separations = {style_map.spec.title: style_map.separation for style_map in maps}
    if real:
        separations[real.title] = real.real_separation
    columns = ["sets", "same-class k-NN fraction", "by chance", "linear probe, AUC"]
    rows = [[title, pair.same_class, pair.chance, pair.auc] for title, pair in separations.items()]
    numbers = {title: separation._asdict() for title, separation in separations.items()}
    if real:
        numbers[real.title] |= real.position
    if real and real.position["known"]:
        columns += POSITION.values()
        rows = [[*row, *(real.position[name] if row[0] == real.title else None for name in POSITION)] for row in rows]
    note = "All are 1 if the sets are fully separated, and AUCs 0.5 by chance; in brackets 95% bootstrap intervals."
    return ReportTable(columns, rows, note), numbers


def measures_of(style_map):
    """{name: (Interval, its value by chance)} of what is shown below a StyleMap."""
    separation = style_map.real_separation or style_map.separation
    measures = {
        "same-class k-NN fraction": (separation.same_class, separation.chance),
        "AUC of a linear probe": (separation.auc, 0.5),
    }
    return measures | {name: (style_map.position[key], 0.5) for key, name in POSITION.items() if style_map.position.get(key)}


def save_points(maps, path, colour="class"):
    """Write the points of StyleMaps as a table with the columns panel, set, number, x, y and, unless it is "class", `colour`."""
    named = [] if colour == "class" else [colour]
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["panel", "set", "number", "x", "y", *named])
        for style_map in maps:
            for name, points in style_map.points.items():
                values = style_map.values.get(name, [""] * len(points))
                table.writerows(
                    [style_map.title, name, i, *map(float, point), *([values[i]] if named else [])]
                    for i, point in enumerate(points)
                )


def age_section(title, results):
    """A report.Section on the results of `age_probe`."""
    return Section(title, [*age_sentences(results), resampled_text("people")], [age_table(results)], numbers=results)


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def age_table(results):
    few = f"too few (under {MIN_PEOPLE} of a class)"
    columns = {"probe": "linear probe of w, AUC", "age": "age alone, AUC"}
    if results["placed"]:
        columns["index"] = "slice index alone, AUC"
    rows = [
        [row["among"], *row["people"].values(), *(few if row[name] is None else tuple(row[name]) for name in columns)]
        for row in results["compared"]
    ]
    unknown = f" {results['unknown']} slices of unknown age are left out." if results["unknown"] else ""
    by = "by age alone and by slice index alone" if results["placed"] else "and by age alone"
    held = "third of ages, sex or slice index" if results["placed"] else "third of ages or sex"
    caption = (
        f"AUC of AD against NC by a linear probe of w, {by}: 0.5 by chance. Stratified: only pairs of the same {held} are "
        f"compared. {results['slices']} slices.{unknown}"
    )
    return ReportTable(["compared", "AD people", "NC people", *columns.values()], rows, caption)


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def plot_maps(maps, path, note, scale=None):
    """Write StyleMaps side by side, each above its measures with their intervals and the level of chance, and a note at the bottom.

    scale: what their values are, with their unit, for a colour bar that all maps share; None: points have the colours of their
    classes.
    """
    measures = [measures_of(style_map) for style_map in maps]
    width, rows = max(8.4, 4.2 * len(maps)), max(2, *map(len, measures))
    note = wrap(note, width)
    figure = Figure(figsize=(width, 4.9 + 0.5 * rows + 0.17 * note.count("\n")), layout="constrained")
    axes = figure.subplots(2, len(maps), squeeze=False, height_ratios=[5.2, rows / 2])
    limits = _limits(maps)
    for map_axes, measure_axes, style_map, measured in zip(*axes, maps, measures):
        if scale is None:
            _scatter(map_axes, style_map.points)
        else:
            _scatter_values(map_axes, style_map, limits)
        map_axes.set_title(style_map.title, fontsize=10)
        _draw_measures(measure_axes, measured, rows)
    if scale is not None and limits:
        bar = figure.colorbar(ScalarMappable(Normalize(*limits), VALUE_MAP), ax=list(axes[0]), shrink=0.9, pad=0.01, extend="both")
        bar.set_label(scale, fontsize=9)
        bar.ax.tick_params(labelsize=8)
    figure.supxlabel(note, fontsize=9)
    save_figure(figure, path)


def _draw_measures(axes, measures, rows):
    white = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    for i, (name, ((value, low, high), chance)) in enumerate(measures.items(), 1):
        y = rows - i
        axes.plot([low, high], [y, y], color=CRITIC, linewidth=2.5, solid_capstyle="butt")
        axes.plot(value, y, "o", color=CRITIC, markersize=5)
        text = f"{name}: {value:.2f} ({low:.2f} to {high:.2f})"
        axes.text(0, y + 0.28, text, fontsize=8, transform=axes.get_yaxis_transform(), bbox=white)
        axes.plot([chance, chance], [y - 0.5, y + 0.5], color=FAKE, linestyle=":", linewidth=1.2, zorder=0)
    lowest = min([0.35, *(interval.low - 0.02 for interval, _ in measures.values())])
    axes.set(xlim=(lowest, 1.02), ylim=(-0.4, rows - 0.3), yticks=[])
    axes.set_xticks([0.5, 0.75, 1], ["0.5\nchance: dotted", "0.75", "1\nseparated"])
    axes.tick_params(labelsize=8, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def epoch_frames(lines):
    """Frames uint8 [T, H, W, 3] of maps over the epochs, {title: EpochMaps}: a panel per title, at its t-th epoch."""
    frames = []
    for t in range(max(map(len, lines.values()))):
        figure = Figure(figsize=(4 * len(lines), 4.3), layout="constrained", dpi=80)
        for axes, (title, maps) in zip(figure.subplots(1, len(lines), squeeze=False)[0], lines.items()):
            epoch_map = maps[min(t, len(maps) - 1)]
            _scatter(axes, epoch_map.points)
            axes.set_title(f"{title}, epoch {epoch_map.epoch}\nsame-class k-NN fraction: {epoch_map.same_class:.0%}", fontsize=10)
            points = np.concatenate([points for epoch_map in maps for points in epoch_map.points.values()])
            low, high = points.min(0), points.max(0)  # equal limits in all frames
            margin = 0.05 * (high - low)
            axes.set(xlim=(low[0] - margin[0], high[0] + margin[0]), ylim=(low[1] - margin[1], high[1] + margin[1]))
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        frames.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return np.stack(frames)


def _scatter(axes, sets):
    """Draw sets of points {legend: [n, 2]}; those whose name begins with "real" large and outlined."""
    axes.set(xticks=[], yticks=[])
    for name, points in sets.items():
        colour = CLASS_COLOURS.get(name.removeprefix("real "), "#b8860b")
        if name.startswith("real"):
            style = {"s": 26, "alpha": 0.9, "linewidths": 0.7, "edgecolors": "black"}
        else:
            style = {"s": max(1, min(6, 6000 / len(points))), "alpha": 0.6, "linewidths": 0}
        axes.scatter(*np.asarray(points).T, color=colour, label=name, **style)
    _legend(axes)


def _legend(axes):
    """A legend of points of one size, hollow where they have the colours of numbers: that of the first point would mislead."""
    for handle in axes.legend(loc="best", framealpha=0.7, edgecolor="none", fontsize=8).legend_handles:
        handle.set_sizes([26])
        if handle.get_array() is not None:
            handle.set(array=None, facecolor="white", edgecolor="black", linewidths=[0.8])


def _limits(maps):
    """Ends of the colour bar: percentiles 2 and 98 of the numbers in all maps' values, so that no outlier takes the colours."""
    numbers = [values for style_map in maps for values in map(np.asarray, style_map.values.values()) if values.dtype.kind == "f"]
    numbers = np.concatenate(numbers) if numbers else np.zeros(0)
    numbers = numbers[np.isfinite(numbers)]
    return tuple(np.quantile(numbers, (0.02, 0.98))) if len(numbers) else None


def _scatter_values(axes, style_map, limits):
    """Draw a StyleMap's points coloured by its values; the class is told by the marker, an unknown value by a hollow grey one."""
    axes.set(xticks=[], yticks=[])
    for name, points in sorted(style_map.points.items(), key=lambda item: item[0].startswith("real")):  # real slices on top
        points, real = np.asarray(points), name.startswith("real")
        marker = CLASS_MARKERS.get(name.removeprefix("real "), "^")
        style = {"marker": marker, "s": 30 if real else max(2, min(10, 8000 / len(points)))}
        style |= {"linewidths": 0.6, "edgecolors": "black"} if real else {"linewidths": 0, "alpha": 0.8}
        if name not in style_map.values:
            axes.scatter(*points.T, color="#c4c4c4", label=name, **style | {"alpha": 0.5, "zorder": 1})
            continue
        values = np.asarray(style_map.values[name])
        known = np.isfinite(values) if values.dtype.kind == "f" else values != ""
        if values.dtype.kind == "f":
            colours = {"c": values[known], "cmap": VALUE_MAP, "vmin": limits[0], "vmax": limits[1]} if known.any() else {}
            axes.scatter(*points[known].T, label=name, **colours, **style)
        else:
            for value in np.unique(values[known]):
                rows = values == value
                colour = VALUE_COLOURS.get(value, "#009e73")
                axes.scatter(*points[rows].T, color=colour, label=f"{name}, {value} ({rows.sum()})", **style)
        if not known.all():
            label = f"{name}, unknown ({(~known).sum()})"
            axes.scatter(*points[~known].T, label=label, **style | {"facecolors": "none", "edgecolors": NEUTRAL, "linewidths": 1.0})
    _legend(axes)
