"""Draw style vectors that a table lists: slices picked in atlas.html, at full size.

    table = read_style_table("selection.csv")           # rows with a run and its style vector
    section = draw_style_table(table, "model", "last", "predictions", device)

The table is a CSV with the columns run (a folder, or a name under --model_dir) and w0, w1, ... for the style vector; set and
number name the slices in the figure, if they are there.
"""

import csv
import os
from typing import NamedTuple

import numpy as np
import torch

from analysis.export import write_png
from analysis.models import find_run, load_model, synthesize
from report import figures
from report.report import ReportFigure, Section
from utils import UserError, make_folder, printable

SHOWN = 36  # slices of a set in the figure
LARGEST = 1e6  # of a number in a style vector; real ones are of the order of 1


class StyleRow(NamedTuple):
    """A row of the table."""

    line: int  # in the file
    run: str
    set: str  # "" if the table does not say
    w: np.ndarray  # float32 [w_dim]


def read_style_table(path):
    """The StyleRows in a CSV; UserError if there is none, a column is missing or a row holds no finite style vector."""
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
            rows = csv.DictReader(file, restval="")
            names = rows.fieldnames or []
            columns = [f"w{i}" for i in range(sum(name[:1] == "w" and name[1:].isdecimal() for name in names))]
            if not columns or not {"run", *columns} <= set(names):
                raise UserError(
                    f"--styles {path}: no columns run, w0, w1, ...; atlas.html of predict.py --atlas True downloads such a file"
                )
            table = [
                StyleRow(rows.line_num, row["run"], row.get("set", ""), style_vector(path, rows, row, columns)) for row in rows
            ]
    except OSError as error:
        raise UserError(f"--styles {path}: cannot be read ({error.strerror or error})") from None
    except csv.Error as error:
        raise UserError(f"--styles {path}: not a CSV file ({error})") from None
    if not table:
        raise UserError(f"--styles {path}: there are no rows below its header")
    return table


def style_vector(path, rows, row, columns):
    """w float32 of a row; the last columns may be empty, for a run with shorter style vectors than another in the table."""
    try:
        texts = [row[name] for name in columns]
        while texts and not texts[-1]:
            texts.pop()
        w = np.array([float(text) for text in texts])
        if not len(w) or not (np.abs(w) <= LARGEST).all() or not row["run"]:
            raise ValueError
    except ValueError:
        raise UserError(f"--styles {path}: line {rows.line_num} holds no run with a style vector of finite numbers") from None
    return w.astype(np.float32)


def draw_style_table(table, path, model_dir, which, output_dir, device):
    """Draw every StyleRow of `table`, read from `path`, with fixed noise; returns a report.Section.

    Writes styles/000000.png ... in the order of the rows, and styles.png with the first SHOWN of each set. UserError if a run is
    not there or takes style vectors of another length; nothing is drawn then.
    """
    runs = {row.run: find_run(row.run, model_dir, f"--styles {path}:") for row in table}
    models = {run: load_model(folder, device, which) for run, folder in runs.items()}
    for row in table:
        if len(row.w) != models[row.run].mapping.w_dim:
            expected = models[row.run].mapping.w_dim
            raise UserError(
                f"--styles {path}: line {row.line} has {len(row.w)} numbers, but the style vectors of {row.run} have {expected}"
            )
    folder, grids = os.path.join(output_dir, "styles"), {}
    make_folder(folder, "--output_dir")
    for run, model in models.items():
        numbers = [i for i, row in enumerate(table) if row.run == run]
        images = synthesize(model, torch.from_numpy(np.stack([table[i].w for i in numbers])).to(device))
        for i, image in zip(numbers, images):
            write_png(image, os.path.join(folder, f"{i:06d}.png"))
            grids.setdefault(printable(f"{table[i].set}  {run}".strip()), []).append(image)
    figure = os.path.join(output_dir, "styles.png")
    figures.save_grids({name: np.stack(images[:SHOWN]) for name, images in grids.items()}, figure, 6)
    text = f"{len(table)} slices of {os.path.basename(path)}, at full size and with fixed noise, in {folder}."
    drawn_by = printable(f"Drawn by {', '.join(dict.fromkeys(runs.values()))}.")
    return Section("Chosen style vectors", [text, drawn_by], figures=[ReportFigure(figure, f"At most {SHOWN} of each set.")])
