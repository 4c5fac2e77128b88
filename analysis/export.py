"""Slices as single files: data sets of generated ones (predict.py --export), and of chosen style vectors (--export CSV).

    <output_dir>/AD/000000.png ...                                              a model of one class, or of both unlabelled
    <output_dir>/all-conditional/AD/000000.png ...  .../NC/000000.png ...       a conditional model
    metadata.csv  w.npy, or w_AD.npy and w_NC.npy                               beside them
    <output_dir>/styles/000000.png ...                                          style vectors that a table lists

If an export was stopped or is to be extended, the same command makes the images that are missing and no others.
"""

import csv
import io
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from analysis.models import BATCH, generate, latents, short_checksum, style_vectors, synthesize
from utils import CLASSES, UserError, atomic_path, make_folder, printable

COLUMNS = "path", "class", "seed", "number", "truncation", "model", "weights", "w_file", "w_row"
QUEUED = 64  # images that may wait to be written, per thread
LARGEST = 1e6  # of a number in a style vector; real ones are of the order of 1

# ---------------------------------------------------------------------------------------------------------------------
# A data set of generated slices


def export(model, count, seed, truncation, output_dir):
    """Write `count` PNGs, of each class of a conditional model, under <output_dir>/<model>; those that exist are kept.

    Returns the folders that hold them. Threads, one per core, write while the generator works. UserError if the folder holds
    another export.
    """
    run_folder = os.path.join(output_dir, model.name)
    folders = [run_folder if label is None else os.path.join(run_folder, CLASSES[label]) for label in model.labels]
    for folder in folders:
        make_folder(folder, "--output_dir")
    write_metadata(run_folder, metadata(model, count, seed, truncation))
    for label, folder in zip(model.labels, folders):
        with atomic_path(os.path.join(run_folder, styles_file(label))) as path:
            np.save(path, exported_styles(model, count, seed, truncation, label))
        write_images(model, count, seed, truncation, label, folder)
    return folders


def styles_file(label):
    """Name of the file of the style vectors of a label."""
    return "w.npy" if label is None else f"w_{CLASSES[label]}.npy"


def metadata(model, count, seed, truncation):
    """The lines of metadata.csv, the header first: `count` images of each class, in the order of their numbers."""
    weights = short_checksum(model)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for number in range(count):
        for label in model.labels:
            folder = "" if label is None else CLASSES[label]
            path, class_name = os.path.join(folder, f"{number:06d}.png"), folder or "+".join(model.trained_on)
            name = printable(model.name)
            table.writerow([path, class_name, seed, number, truncation, name, weights, styles_file(label), number])
    return text.getvalue().splitlines(keepends=True)


def write_metadata(folder, lines):
    """Write metadata.csv, unless it holds `lines` already or the first of them; UserError if the folder holds something else."""
    path, old_lines = os.path.join(folder, "metadata.csv"), []
    if os.path.isfile(path):
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            old_lines = file.readlines()
        if old_lines[: len(lines)] != lines[: len(old_lines)]:
            raise UserError(f"{folder} holds an export of another model, seed or truncation: choose another folder, or remove it")
        if len(old_lines) > len(lines):
            raise UserError(
                f"{folder} holds {len(old_lines) - 1} slices from an earlier export, more than the {len(lines) - 1} "
                "asked for: choose another folder, or remove it"
            )
    elif any(name.endswith(".png") for _, _, names in os.walk(folder) for name in names):
        raise UserError(f"{folder} holds PNGs without a metadata.csv: choose another folder, or remove them")
    if old_lines != lines:
        with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            file.writelines(lines)


@torch.no_grad()
def exported_styles(model, count, seed, truncation, label):
    """The style vectors [count, w_dim], float32, of the images that `generate` makes with the same arguments."""
    batches = []
    for z in latents(model.mapping.z_dim, seed, -(-count // BATCH)):
        w, labels = style_vectors(model.mapping, z.to(model.device), label)
        batches.append(model.mapping.truncate(w, truncation, labels).cpu().numpy())
    return np.concatenate(batches)[:count]


def write_images(model, count, seed, truncation, label, folder):
    """Write those of the images 0 to `count` - 1 that <folder>/000000.png ... lacks."""
    existing, threads = set(os.listdir(folder)), os.cpu_count() or 1
    missing = [number for number in range(count) if f"{number:06d}.png" not in existing]
    first_batch = missing[0] // BATCH if missing else -(-count // BATCH)
    first_number = min(count, first_batch * BATCH)
    images = (image for batch in generate(model, count, seed, truncation, label, first_batch) for image in batch)
    with (
        ThreadPoolExecutor(threads) as writers,
        tqdm(total=count, initial=first_number, unit=" images", desc=f"export {folder}") as bar,
    ):
        queue = deque()
        for number, image in enumerate(images, first_number):
            if f"{number:06d}.png" not in existing:
                if len(queue) >= QUEUED * threads:
                    queue.popleft().result()
                queue.append(writers.submit(write_png, image, os.path.join(folder, f"{number:06d}.png")))
            bar.update()
        for written in queue:
            written.result()


def write_png(image, path):
    """Write an image uint8 [R, R]."""
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG")


# ---------------------------------------------------------------------------------------------------------------------
# Chosen style vectors


class StyleRow(NamedTuple):
    """A row of the table."""

    line: int  # in the file
    run: str
    set: str  # "" if the table does not say
    w: np.ndarray  # float32 [w_dim]


def read_style_table(path):
    """The StyleRows in a CSV, as atlas.html downloads it: columns run (its name or folder), w0, w1, ... and, perhaps, set.

    UserError if there are none, a column is missing or a row holds no finite style vector.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
            rows = csv.DictReader(file, restval="")
            names = rows.fieldnames or []
            columns = [f"w{i}" for i in range(sum(name[:1] == "w" and name[1:].isdecimal() for name in names))]
            if not columns or not {"run", *columns} <= set(names):
                raise UserError(f"{path}: no columns run, w0, w1, ...; atlas.html of predict.py downloads such a file")
            table = [StyleRow(rows.line_num, row["run"], row.get("set", ""), style_vector(row, columns)) for row in rows]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV file ({error})") from None
    if not table:
        raise UserError(f"{path}: there are no rows below its header")
    if bad := [row.line for row in table if not row.run or row.w is None]:
        raise UserError(f"{path}: line {bad[0]} holds no run with a style vector of finite numbers")
    return table


def style_vector(row, columns):
    """w float32 of a row, None if there is none; the last columns may be empty: another run may have longer style vectors."""
    texts = [row[name] for name in columns]
    while texts and not texts[-1]:
        texts.pop()
    try:
        w = np.array(texts, float)
    except ValueError:
        return None
    return w.astype(np.float32) if len(w) and (np.abs(w) <= LARGEST).all() else None


def draw_style_table(table, models, folder, path):
    """Draw every StyleRow of `table`, read from `path`, with fixed noise into <folder>/000000.png ..., in the order of the rows.

    models: {run: Model}. Returns {(set, run): uint8 [n, R, R]}. UserError if a model takes style vectors of another length, or the
    folder holds more slices; nothing is drawn then.
    """
    for row in table:
        if len(row.w) != (expected := models[row.run].mapping.w_dim):
            raise UserError(f"{path}: line {row.line} has {len(row.w)} numbers, but the style vectors of {row.run} have {expected}")
    make_folder(folder, "--output_dir")
    if os.path.exists(os.path.join(folder, f"{len(table):06d}.png")):
        raise UserError(f"{folder} holds the slices of a longer table: choose another --output_dir, or remove it")
    drawn = {}
    for run, model in models.items():
        numbers = [i for i, row in enumerate(table) if row.run == run]
        images = synthesize(model, torch.from_numpy(np.stack([table[i].w for i in numbers])).to(model.device))
        for i, image in zip(numbers, images):
            write_png(image, os.path.join(folder, f"{i:06d}.png"))
            drawn.setdefault((table[i].set, run), []).append(image)
    return {key: np.stack(images) for key, images in drawn.items()}
