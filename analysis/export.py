"""A labelled synthetic set: single PNGs of a model in the layout of AD_NC, with what each was made of.

    <output_dir>/AD/000000.png ...                                              a model of one class, or of both unlabelled
    <output_dir>/all-conditional/AD/000000.png ...  .../NC/000000.png ...       a conditional model
    metadata.csv  w.npy, or w_AD.npy and w_NC.npy                               beside them

An export that was stopped, or is to be larger, goes on: the same command makes what is missing and nothing else.
"""

import csv
import hashlib
import io
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from analysis.models import BATCH, generate, latents, style_vectors
from utils import CLASSES, UserError, atomic_path, make_folder

COLUMNS = "path", "class", "seed", "number", "truncation", "model", "weights", "w_file", "w_row"
AHEAD = 64  # pictures that may wait to be written, for each thread


def metadata(model, count, seed, truncation):
    """The lines of metadata.csv, the header first: `count` slices of each class, number by number."""
    weights = hashlib.sha256()
    for tensor in (*model.mapping.state_dict().values(), *model.generator.state_dict().values()):
        weights.update(tensor.cpu().numpy().tobytes())
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for number in range(count):
        for label in model.labels:
            name = "" if label is None else CLASSES[label]
            table.writerow(
                [
                    os.path.join(name, f"{number:06d}.png"),
                    name or "+".join(model.trained_on),
                    seed,
                    number,
                    truncation,
                    model.name,
                    weights.hexdigest()[:16],
                    f"w_{name}.npy" if name else "w.npy",
                    number,
                ]
            )
    return text.getvalue().splitlines(keepends=True)


@torch.no_grad()
def styles(model, count, seed, truncation, label, device):
    """The w [count, w_dim], float32, of the slices that `generate` makes of the same arguments."""
    rows = []
    for z in latents(model.mapping.z_dim, seed, -(-count // BATCH)):
        w, labels = style_vectors(model.mapping, z.to(device), label)
        rows.append(model.mapping.truncate(w, truncation, labels).cpu().numpy())
    return np.concatenate(rows)[:count]


def begin(folder, lines):
    """Write metadata.csv, or find that it holds the first of these `lines`; UserError if the folder holds something else."""
    path, kept = os.path.join(folder, "metadata.csv"), []
    if os.path.isfile(path):
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            kept = file.readlines()
        if kept[: len(lines)] != lines[: len(kept)]:
            raise UserError(
                f"{folder} holds an export of another model, --seed or --truncation: choose another --output_dir, or remove it"
            )
        if len(kept) > len(lines):
            raise UserError(
                f"{folder} holds {len(kept) - 1} slices from an earlier export, more than the {len(lines) - 1} "
                "asked for: choose another --output_dir, or remove it"
            )
    elif any(name.endswith(".png") for _, _, names in os.walk(folder) for name in names):
        raise UserError(f"{folder} holds PNGs that no metadata.csv tells of: choose another --output_dir, or remove them")
    if kept != lines:
        with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            file.writelines(lines)


def write_png(image, path):
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG")


def export(model, count, seed, truncation, device, output_dir):
    """Write `count` PNGs (of each class of a conditional model) under <output_dir>/<model>, as far as they are not there yet.

    Returns the folders that hold them. A background thread a core writes; the generator goes on meanwhile. UserError if the
    folder holds another export.
    """
    top = os.path.join(output_dir, model.name)
    folders = [os.path.join(top, *([] if label is None else [CLASSES[label]])) for label in model.labels]
    for folder in folders:
        make_folder(folder, "--output_dir")
    begin(top, metadata(model, count, seed, truncation))
    for label, folder in zip(model.labels, folders):
        name = "w.npy" if label is None else f"w_{CLASSES[label]}.npy"
        with atomic_path(os.path.join(top, name)) as temporary:
            np.save(temporary, styles(model, count, seed, truncation, label, device))
        paths = [os.path.join(folder, f"{number:06d}.png") for number in range(count)]
        there = set(os.listdir(folder))
        missing = [number for number, path in enumerate(paths) if os.path.basename(path) not in there]
        start = missing[0] // BATCH if missing else -(-count // BATCH)
        with (
            ThreadPoolExecutor(os.cpu_count()) as writers,
            tqdm(total=count, initial=min(count, start * BATCH), unit=" images", desc=f"export {folder}") as bar,
        ):
            waiting = deque()
            for images in generate(model, count, seed, truncation, label, device, start):
                for image in images:
                    if len(waiting) >= AHEAD * os.cpu_count():
                        waiting.popleft().result()
                    waiting.append(writers.submit(write_png, image, paths[bar.n]))
                    bar.update()
            for written in waiting:
                written.result()
    return folders
