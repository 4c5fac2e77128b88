"""Pictures of given style vectors: of real slices, encoded (predict.py --encode) or projected (--project), or of a table.

section = draw_encoded(model, encoder, targets, scans, "predictions")
section = draw_projection(model, projection, targets.names, "predictions")
section = draw_chosen(drawn, "predictions/styles", "predictions")
"""

import csv
import os

import numpy as np

from analysis.encoded_maps import trained_text
from analysis.models import synthesize
from analysis.projector import clean_names
from data.subjects import slice_index
from report.figures import colour, save_grids, save_image_table
from report.report import ReportFigure, ReportTable, Section
from utils import CLASSES, atomic_path, make_folder, printable

SHOWN_SLICES, SHOWN_ENCODED = 12, 8  # projected slices in the report; encoded ones in the figure
ERROR = 64  # grey levels at which the colours of an error map end
SHOWN_STYLES = 36  # chosen slices of a set in the figure


def draw_encoded(model, encoder, targets, scans, output_dir, trained=None):
    """Encode Targets of these `subjects.Scan`s and write <model>_encoded.csv, .npz and .png; returns a report.Section.

    trained: of `encoded_maps.trained_people`. .csv: file, class, person, scan, slice, outside (of `Encoder.outside`), refused.
    .npz, in the same order: w [N, w_dim], points and deviation [N, K] of an Encoded, mean [w_dim] and basis [K, w_dim], with
    w = mean + points @ basis.
    """
    encoded = encoder.encode(targets.images)
    outside = encoder.outside(model, targets.images, encoded, "reproducing")
    w, base = encoder.style_vectors(encoded.points), os.path.join(output_dir, f"{model.name}_encoded")
    with atomic_path(f"{base}.csv") as temporary, open(temporary, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "class", "person", "scan", "slice", "outside", "refused"])
        for name, label, scan, value in zip(targets.files, targets.labels, scans, outside.tolist()):
            class_name = CLASSES[label] if label >= 0 else ""
            table.writerow([name, class_name, scan.person, scan.image, slice_index(name), f"{value:.3f}", value > 1])
    arrays = encoded._asdict() | {name: x.cpu() for name, x in (("w", w), ("mean", encoder.mean), ("basis", encoder.basis))}
    with atomic_path(f"{base}.npz") as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)
    rows = np.linspace(0, len(w) - 1, min(SHOWN_ENCODED, len(w))).round().astype(int)
    drawn = synthesize(model, w[rows])
    cells = [targets.images[rows], drawn, colour(drawn.astype(float) - targets.images[rows], ERROR)]
    captions = [f"{targets.names[i][-14:]}{chr(10)}outside: {outside[i]:.1f}" for i in rows]
    note = (
        "Real slices, what the model draws of their encodings, with fixed noise, and the difference, "
        f"\u00b1{ERROR} grey levels: red brighter,\nblue darker. Outside: above 1, further from what the model draws than "
        "99% of its own slices."
    )
    save_image_table(cells, f"{base}.png", ["real", "encoded", "difference"], captions, note)
    refused = (outside > 1).mean()
    text = (
        f"{len(w)} slices encoded: {base}.csv, .npz. {refused:.0%} are refused, as unlike anything that the model draws "
        f"(of its own slices 1%)."
    )
    text = [line for line in (trained_text(trained, scans), text) if line]
    figures = [ReportFigure(f"{base}.png", "Slices spread over the folder, their reconstructions and differences.")]
    return Section(f"{model.name}: real slices encoded", text, figures=figures, numbers={"slices": len(w), "refused": refused})


def draw_projection(model, projection, names, output_dir):
    """Write the files of `save_projection` into <output_dir>/<model>_projected; returns a report.Section."""
    folder = os.path.join(output_dir, f"{model.name}_projected")
    images = [path for path in save_projection(projection, names, folder) if path.endswith(".png")]
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


def save_projection(projection, names, output_dir):
    """Write <name>.png and .npz of every slice.

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
