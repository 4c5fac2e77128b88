"""Maps of style vectors, drawn: predict.py --plot_umap and its controls, computed in analysis/style_maps.py and encoded_maps.py.

section = draw_maps(maps, settings, "predictions")          # writes umap.png, umap.csv, umap_epochs.gif
section = draw_encoded(encoded, settings, "predictions")    # writes umap_<model>.png and .csv
"""

import csv
import os

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analysis.age_probe import age_sentences
from analysis.bootstrap import MIN_PEOPLE, POWER_NOTE
from analysis.encoded_maps import encoded_conclusions
from analysis.style_maps import conclusions
from analysis.style_space import SIGNIFICANT
from report.figures import CRITIC, FAKE, NEUTRAL, save_figure, save_gif, wrap
from report.report import ReportFigure, ReportTable, Section
from utils import CLASSES, atomic_path

POSITION = {"slice index alone": "AUC of slice index alone", "position-stratified": "position-stratified AUC of the probe"}
EPOCHS_NOTE = (
    "Same-class k-NN fraction: 50% if both sets mix, 100% if they are fully separated. Models of two seeds are separated before "
    "any training, and a conditional model is told the class: no gap here is by itself a finding about AD and NC."
)
PANELS = {
    "person": "person: lines through neighbouring slices",
    "age": "age, years",
    "ventricle area": "ventricle area, mm² (nominal)",
}
JUMP = 0.1  # of the map's side: no line joins neighbouring slices that lie further apart
VALUE_MAP, GENERATED = "viridis", "#d4d4d4"
VALUE_COLOURS = {"AD": "#c8553d", "NC": "#2a6f97", "F": "#e69f00", "M": "#0072b2"}  # pairs told apart by colour-blind people

# ---------------------------------------------------------------------------------------------------------------------
# All of it


def draw_maps(maps, settings, output_dir):
    """Draw StyleMaps, made by these MapSettings, and write their points; returns a report.Section.

    Writes <method>.png and .csv, and <method>_epochs.gif if the runs have saved style vectors.
    """
    path, csv_path = (os.path.join(output_dir, settings.method + end) for end in (".png", ".csv"))
    text = list(dict.fromkeys(conclusions(maps).values()))
    plot_maps(maps, path, "\n".join(text))
    sets = [(one.spec.title, name, points.tolist()) for one in maps for name, points in one.points.items()]
    rows = [[title, name, i, *point] for title, name, points in sets for i, point in enumerate(points)]
    save_points(csv_path, ["panel", "set", "number", "x", "y"], rows)
    caption = (
        f"{settings.num_styles} style vectors of each class, as the mapping networks give them, of the same latents, by "
        f"{settings.method}. The measures are taken in w, with 95% intervals."
    )
    shown = [ReportFigure(path, caption)]
    if over_epochs := {style_map.spec.title: style_map.epochs for style_map in maps if style_map.epochs}:
        gif = os.path.join(output_dir, f"{settings.method}_epochs.gif")
        save_gif(epoch_frames(over_epochs), gif, 500)
        shown.append(ReportFigure(gif, f"The same 512 latents over the epochs. {EPOCHS_NOTE}"))
    separations = {style_map.spec.title: style_map.separation for style_map in maps}
    numbers = {title: separation._asdict() for title, separation in separations.items()}
    return Section("Style space", text, [separation_table(separations)], shown, numbers)


def draw_encoded(encoded, settings, output_dir):
    """Draw an EncodedMap and write its points; returns a report.Section. Writes <method>_<model>.png and .csv."""
    base, text = os.path.join(output_dir, f"{settings.method}_{encoded.model.name}"), encoded_conclusions(encoded)
    plot_encoded(encoded, f"{base}.png", "\n".join(text))
    columns, rows = ["set", "file", "x", "y", "refused", "trained on", *encoded.values], []
    for name, one in encoded.sets.items():
        rows += [
            [name, "", *point] + [""] * (2 + len(encoded.values)) for point in one.points.tolist() if not name.startswith("real")
        ]
    points = np.concatenate([one.points for name, one in encoded.sets.items() if name.startswith("real")]).tolist()
    trained = [""] * len(points) if encoded.trained is None else encoded.trained
    for i, (name, point) in enumerate(zip(encoded.real.names, points)):
        values = [value[i] for value in encoded.values.values()]
        rows.append([f"real {CLASSES[encoded.real.classes[i]]}", name, *point, encoded.refused[i], trained[i], *values])
    save_points(f"{base}.csv", columns, rows)
    caption = f"{len(points)} real slices and generated ones, by the encoder of {encoded.model.name} and {settings.method}."
    tables = [separation_table({encoded.title: encoded.separation}, encoded.position)]
    numbers = {"separation": encoded.separation, "mixing": encoded.mixing, "refused": encoded.refused.mean()} | encoded.position
    if encoded.trained is not None:
        numbers["trained_on"] = encoded.trained.mean()
    if encoded.age:
        shown = encoded.separation.p <= SIGNIFICANT
        text, numbers = text + age_sentences(encoded.age, shown, encoded.seen), numbers | {"age": encoded.age}
        tables.append(age_table(encoded.age))
    return Section(encoded.title, text, tables, [ReportFigure(f"{base}.png", caption)], numbers)


def separation_table(separations, position=None):
    """A ReportTable of {title: StyleSeparation}; position: `position_probe` of the only one."""
    columns = ["sets", "same-class k-NN fraction", "by chance", "linear probe, AUC", "p"]
    rows = [[title, pair.same_class, pair.chance, pair.auc, pair.p] for title, pair in separations.items()]
    if position and position["known"]:
        columns += POSITION.values()
        rows = [[*row, *(position[name] for name in POSITION)] for row in rows]
    note = "All are 1 if the sets are fully separated, and AUCs 0.5 by chance; in brackets 95% bootstrap intervals. " + POWER_NOTE
    return ReportTable(columns, rows, note)


def measures_of(separation, position=None):
    """{name: (Interval, its value by chance)} of a StyleSeparation and of the `position_probe` beside it."""
    measures = {
        "same-class k-NN fraction": (separation.same_class, separation.chance),
        "AUC of a linear probe": (separation.auc, 0.5),
    }
    return measures | {name: (position[key], 0.5) for key, name in POSITION.items() if position and position.get(key)}


def save_points(path, columns, rows):
    """Write points of maps as a table."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def age_table(results):
    few = f"too few (under {MIN_PEOPLE} of a class)"
    columns = {"probe": "linear probe, AUC", "age": "age alone, AUC"}
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
        f"AUC of AD against NC by a linear probe, {by}: 0.5 by chance. Stratified: only pairs of the same {held} are "
        f"compared. {POWER_NOTE} {results['slices']} slices.{unknown}"
    )
    return ReportTable(["compared", "AD people", "NC people", *columns.values()], rows, caption)


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def plot_maps(maps, path, note):
    """Write StyleMaps side by side, each above its measures with intervals and the level of chance, and a note at the bottom."""
    measures = [measures_of(style_map.separation) for style_map in maps]
    width, rows = max(8.4, 4.2 * len(maps)), max(map(len, measures))
    note = wrap(note, width)
    figure = Figure(figsize=(width, 4.9 + 0.5 * rows + 0.17 * note.count("\n")), layout="constrained")
    axes = figure.subplots(2, len(maps), squeeze=False, height_ratios=[5.2, rows / 2])
    for map_axes, measure_axes, style_map, measured in zip(*axes, maps, measures):
        _scatter(map_axes, style_map.points)
        map_axes.set_title(style_map.spec.title, fontsize=10)
        _draw_measures(measure_axes, measured, rows)
    figure.supxlabel(note, fontsize=9)
    save_figure(figure, path)


def plot_encoded(encoded, path, note):
    """Write an EncodedMap as small multiples: real slices in the colours of what is known of them, over generated ones in grey."""
    real = np.concatenate([one.points for name, one in encoded.sets.items() if name.startswith("real")])
    generated = np.concatenate([one.points for name, one in encoded.sets.items() if not name.startswith("real")])
    measures, values = measures_of(encoded.separation, encoded.position), {"class": np.array(CLASSES)[encoded.real.classes]}
    values |= {name: of for name, of in encoded.values.items() if (of != "" if of.dtype.kind == "U" else np.isfinite(of)).any()}
    columns = 2 if len(values) in (2, 4) else 3
    width = 4.2 * columns
    lines, note = -(-len(values) // columns), wrap(note, width)
    figure = Figure(figsize=(width, 4.3 * lines + 0.5 * len(measures) + 0.4 + 0.17 * note.count("\n")), layout="constrained")
    grid = figure.add_gridspec(lines + 1, columns, height_ratios=[4.3] * lines + [0.5 * len(measures)])
    if encoded.trained is not None and encoded.trained.any():
        warning = f"WARNING: {encoded.trained.mean():.0%} of the real slices are of people that the model was trained on"
        figure.suptitle(warning, color=FAKE, fontsize=11)
    for i, (name, of) in enumerate(values.items()):
        axes = figure.add_subplot(grid[i // columns, i % columns])
        axes.set(xticks=[], yticks=[])
        axes.set_title(PANELS.get(name, name), fontsize=10)
        axes.scatter(*generated.T, s=4, color=GENERATED, linewidths=0, label="generated")
        if name == "person":
            _draw_people(axes, real, of, encoded.values["slice index"])
        else:
            _scatter_values(axes, real, of)
    _draw_measures(figure.add_subplot(grid[lines, :]), measures, len(measures))
    figure.supxlabel(note, fontsize=9)
    save_figure(figure, path)


def _draw_people(axes, points, people, indices):
    """Slices [N, 2] in a colour for each person, with a line in the order of their indices that is broken where it would jump."""
    names, longest = np.unique(people), JUMP * np.ptp(points, axis=0).max()
    for i, person in enumerate(names):
        rows = np.flatnonzero(people == person)
        line = points[rows[np.argsort(indices[rows], kind="stable")]]
        jumps = np.flatnonzero(np.linalg.norm(np.diff(line, axis=0), axis=1) > longest)
        line, colour = np.insert(line, jumps + 1, np.nan, axis=0), colormaps["turbo"](i * 0.618 % 1)
        axes.plot(*line.T, ".-", color=colour, linewidth=0.7, markersize=2, alpha=0.8)
    axes.text(0.02, 0.02, f"{len(names)} people", transform=axes.transAxes, fontsize=8)


def _scatter_values(axes, points, values):
    """Draw points [N, 2] in the colours of their values: numbers, or names with a legend; unknown values in black outline."""
    known = np.isfinite(values) if values.dtype.kind == "f" else values != ""
    style = {"s": max(4, min(20, 8000 / len(points))), "linewidths": 0}
    if (~known).any():
        axes.scatter(*points[~known].T, **style | {"facecolors": "none", "edgecolors": NEUTRAL, "linewidths": 0.4}, label="unknown")
    if values.dtype.kind == "f":
        low, high = np.quantile(values[known], (0.02, 0.98))  # so that no outlier takes the colours
        drawn = axes.scatter(*points[known].T, c=values[known], cmap=VALUE_MAP, vmin=low, vmax=high, **style)
        axes.figure.colorbar(drawn, ax=axes, shrink=0.8, pad=0.01).ax.tick_params(labelsize=8)
        return
    order = np.random.default_rng(0).permutation(np.flatnonzero(known))  # so that no class hides another
    axes.scatter(*points[order].T, c=[VALUE_COLOURS[value] for value in values[order]], **style)
    for value in np.unique(values[known]):
        axes.scatter([], [], s=20, color=VALUE_COLOURS[value], label=f"real {value} ({(values == value).sum()})")
    for handle in axes.legend(loc="best", framealpha=0.7, edgecolor="none", fontsize=8).legend_handles:
        handle.set_sizes([20])


def _draw_measures(axes, measures, rows):
    white = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    for i, (name, (interval, chance)) in enumerate(measures.items(), 1):
        y = rows - i
        axes.plot([interval.low, interval.high], [y, y], color=CRITIC, linewidth=2.5, solid_capstyle="butt")
        axes.plot(interval.value, y, "o", color=CRITIC, markersize=5)
        axes.text(0, y + 0.28, f"{name}: {interval}", fontsize=8, transform=axes.get_yaxis_transform(), bbox=white)
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
    """Draw sets of points {legend: [n, 2]}."""
    axes.set(xticks=[], yticks=[])
    for name, points in sets.items():
        style = {"s": max(1, min(6, 6000 / len(points))), "alpha": 0.6, "linewidths": 0}
        axes.scatter(*np.asarray(points).T, color=VALUE_COLOURS.get(name, "#b8860b"), label=name, **style)
    for handle in axes.legend(loc="best", framealpha=0.7, edgecolor="none", fontsize=8).legend_handles:
        handle.set_sizes([26])
