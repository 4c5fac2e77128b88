"""Pictures of given style vectors: projections of real slices (predict.py --project), and chosen ones (predict.py --styles).

section = draw_projection(model, projection, targets.names, "predictions")
section = draw_chosen(drawn, "selection.csv", "predictions")
"""

import os

import numpy as np

from analysis.projector import SHIFTS, clean_names
from report.figures import colour, save_grids, save_image_table
from report.report import ReportFigure, ReportTable, Section
from utils import CLASSES, atomic_path, make_folder, printable

SHOWN_SLICES = 12  # projected slices in the report
ERROR = 64  # grey levels at which the colours of an error map end
SHOWN_STYLES = 36  # chosen slices of a set in the figure


def draw_projection(model, projection, names, output_dir, moved=None):
    """Write the files of `save_projection` into <output_dir>/<model>_projected; returns a report.Section."""
    folder = os.path.join(output_dir, f"{model.name}_projected")
    images = [path for path in save_projection(projection, names, folder, moved) if path.endswith(".png")]
    errors = np.column_stack([projection.rms, projection.spread]).astype(float)  # [N, 3]
    means = errors.mean(0).tolist()
    table = ReportTable(
        ["slice", "RMS of w alone", "RMS of w and noise", "distance of w from its mean"],
        [*([name, *row] for name, row in zip(names, errors.tolist())), ["mean", *means]],
        "RMS in grey levels. Generated w are 1 from their mean on average. What the noise reproduces says nothing about the model.",
    )
    summary = f"{len(errors)} slices projected into {folder}: RMS {means[0]:.1f} grey levels by w, {means[1]:.1f} with noise"
    return Section(
        f"{model.name}: real slices projected",
        [summary],
        [table],
        [ReportFigure(path, "") for path in images[:SHOWN_SLICES]],
        {"rms": means[0], "rms_with_noise": means[1], "distance": means[2]},
    )


def save_projection(projection, names, output_dir, moved=None):
    """Write <name>.png and .npz of every slice, and <name>_classes.png if `moved`, of `move_class`, is given.

    Returns the paths. .npz: ws [num_ws, w_dim], noise_00 ... [r, r], target [R, R], images [2, R, R], rms [2], perceptual [2],
    spread, label.
    """
    make_folder(output_dir, "--output_dir")
    paths = []
    for i, name in enumerate(clean_names(names)):
        base = os.path.join(output_dir, name)
        plot_projection(projection, i, name, f"{base}.png")
        save_arrays(projection, i, f"{base}.npz")
        paths += [f"{base}.png", f"{base}.npz"]
        if moved is not None:
            plot_moved(moved[i], name, CLASSES[projection.labels[i]], f"{base}_classes.png")
            paths.append(f"{base}_classes.png")
    return paths


def plot_projection(projection, i, name, path):
    """Draw slice number `i`, its reproductions by w and by w and noise, and the error of the last."""
    target, images, rms = projection.targets[i], projection.images[i], projection.rms[i]
    captions = ["real", f"w alone\nRMS {rms[0]:.1f}", f"w and noise\nRMS {rms[1]:.1f}", f"error\n\u00b1{ERROR} grey levels"]
    note = (
        f"{name}: RMS error in grey levels of 255. Error: w and noise less real,\nred brighter, blue darker. "
        f"w is {projection.spread[i]:.2f} from its mean; generated w are 1 from it on average."
    )
    cells = [target, *images, colour(images[1] - target.astype(float), ERROR)]
    save_image_table([cells], path, [""], captions, note, min_side=160)


def plot_moved(images, name, class_name, path):
    """Draw a slice moved by SHIFTS, images [len(SHIFTS), R, R], and the difference of the ends."""
    captions = [f"{-shift:g} to AD" if shift < 0 else f"{shift:g} to NC" if shift else "as projected" for shift in SHIFTS]
    cells = [*images, colour(images[-1].astype(float) - images[0], ERROR)]
    note = (
        f"{name}, projected as {class_name}: w moved by multiples of the mean of w(z, NC) - w(z, AD), with the same noise.\n"
        "This is what the model takes for the mean difference, not how this brain would change."
    )
    save_image_table([cells], path, [""], [*captions, f"right minus left\n\u00b1{ERROR} grey levels"], note, min_side=160)


def save_arrays(projection, i, path):
    """Write the arrays of slice number `i` as an .npz file."""
    arrays = {name: getattr(projection, name)[i] for name in ("ws", "images", "rms", "perceptual", "spread")}
    arrays |= {f"noise_{k:02d}": maps[i, 0] for k, maps in enumerate(projection.noise)}
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, target=projection.targets[i], label=projection.labels[i], **arrays)


def draw_chosen(drawn, folder, output_dir):
    """Write styles.png of slices in `folder` that `export.draw_style_table` has drawn; returns a report.Section.

    drawn: {(set, run): uint8 [n, R, R]}, of each set and run; the first SHOWN_STYLES are shown.
    """
    path, count = os.path.join(output_dir, "styles.png"), sum(map(len, drawn.values()))
    grids = {printable(f"{name}  {run}".strip()): images[:SHOWN_STYLES] for (name, run), images in drawn.items()}
    save_grids(grids, path, 6)
    text = f"{count} slices, at full size and with fixed noise, in {folder}."
    return Section("Chosen style vectors", [text], figures=[ReportFigure(path, f"At most {SHOWN_STYLES} of each set.")])
