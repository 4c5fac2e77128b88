"""Export generated images as a labelled data set: single PNGs in the layout of AD_NC, and metadata.csv.

    <output_dir>/AD/000000.png ...                                              a model of one class, or of both unlabelled
    <output_dir>/all-conditional/AD/000000.png ...  .../NC/000000.png ...       a conditional model
    metadata.csv  w.npy, or w_AD.npy and w_NC.npy                               beside them

If an export was stopped or is to be enlarged, the same command makes the images that are missing and no others.
"""

import csv
import io
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from analysis.models import BATCH, generate, latents, style_vectors
from utils import CLASSES, UserError, atomic_path, checksum, make_folder, printable

COLUMNS = "path", "class", "seed", "number", "truncation", "model", "weights", "w_file", "w_row"
QUEUED = 64  # images that may wait to be written, per thread


def export(model, count, seed, truncation, device, output_dir):
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
            np.save(path, exported_styles(model, count, seed, truncation, label, device))
        write_images(model, count, seed, truncation, label, device, folder)
    return folders


def styles_file(label):
    """Name of the file of the style vectors of a label."""
    return "w.npy" if label is None else f"w_{CLASSES[label]}.npy"


def metadata(model, count, seed, truncation):
    """The lines of metadata.csv, the header first: `count` images of each class, in the order of their numbers."""
    weights = checksum([model.mapping.state_dict(), model.generator.state_dict()])[:16]
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    for number in range(count):
        for label in model.labels:
            class_folder = "" if label is None else CLASSES[label]
            table.writerow(
                {
                    "path": os.path.join(class_folder, f"{number:06d}.png"),
                    "class": class_folder or "+".join(model.trained_on),
                    "seed": seed,
                    "number": number,
                    "truncation": truncation,
                    "model": printable(model.name),
                    "weights": weights,
                    "w_file": styles_file(label),
                    "w_row": number,
                }
            )
    return text.getvalue().splitlines(keepends=True)


def write_metadata(folder, lines):
    """Write metadata.csv, unless it holds `lines` already or the first of them; UserError if the folder holds something else."""
    path, old_lines = os.path.join(folder, "metadata.csv"), []
    if os.path.isfile(path):
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            old_lines = file.readlines()
        if old_lines[: len(lines)] != lines[: len(old_lines)]:
            raise UserError(
                f"{folder} holds an export of another model, --seed or --truncation: choose another --output_dir, or remove it"
            )
        if len(old_lines) > len(lines):
            raise UserError(
                f"{folder} holds {len(old_lines) - 1} slices from an earlier export, more than the {len(lines) - 1} "
                "asked for: choose another --output_dir, or remove it"
            )
    elif any(name.endswith(".png") for _, _, names in os.walk(folder) for name in names):
        raise UserError(f"{folder} holds PNGs without a metadata.csv: choose another --output_dir, or remove them")
    if old_lines != lines:
        with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            file.writelines(lines)


@torch.no_grad()
def exported_styles(model, count, seed, truncation, label, device):
    """The style vectors [count, w_dim], float32, of the images that `generate` makes with the same arguments."""
    batches = []
    for z in latents(model.mapping.z_dim, seed, -(-count // BATCH)):
        w, labels = style_vectors(model.mapping, z.to(device), label)
        batches.append(model.mapping.truncate(w, truncation, labels).cpu().numpy())
    return np.concatenate(batches)[:count]


def write_images(model, count, seed, truncation, label, device, folder):
    """Write those of the images 0 to `count` - 1 that <folder>/000000.png ... lacks."""
    existing, threads = set(os.listdir(folder)), os.cpu_count() or 1
    missing = [number for number in range(count) if f"{number:06d}.png" not in existing]
    first_batch = missing[0] // BATCH if missing else -(-count // BATCH)
    first_number = min(count, first_batch * BATCH)
    images = (image for batch in generate(model, count, seed, truncation, label, device, first_batch) for image in batch)
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
