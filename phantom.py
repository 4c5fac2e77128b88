"""Phantom brains: synthetic T1 slices in the layout of the ADNI AD_NC set, for anyone who has no access to the real ones.

    python phantom.py AD_NC --subjects 100 --seed 0
    python phantom.py AD_NC --subjects 100 --traps all                # with what makes AD_NC hard to use: see --help
    python phantom.py AD_NC --subjects 4 --scans 2 --volumes True     # and the volumes of which prepare.py makes these slices

A subject is one three-dimensional anatomy (data/phantom_anatomy.py) cut at 20 neighbouring slices, once for each of its scans.
`subjects.csv` lists whose each scan is, what was drawn and the true areas in each slice, and serves as --subjects of the other
commands. The phantoms are nobody's brain and have no clinical meaning.
"""

import startup  # isort: skip

import argparse
import contextlib
import csv
import datetime
import functools
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections import Counter
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from data.phantom_anatomy import POSE, VIEWS, add_rician_noise, draw_age_and_sex, draw_subject, render, slice_tissue, true_areas
from utils import CLASSES, ArgumentParser, Group, UserError, atomic_path, make_folder, number, reason, run_cli, usable_cores

SLICES = 20  # of each scan
FIRST_SLICE = {"axial": (75, 75), "sagittal": (78, 86)}  # lowest and highest number of a scan's first slice
SPLITS = "train", "test"

TRAPS = {  # what AD_NC has beside the disease
    "windows": "AD scans tend to begin at lower slices than NC scans",
    "people": "most people of test/ are in train/, too, with another scan",
    "sessions": "AD has 3.4 scans a person on average and NC 1.7, some of one day",
    "damaged": "one scan is noise and one is nearly black",
    "metadata": "writes meta_data_with_label.json into the folder above, with entries of MCI that have no slices",
}
# First slices of AD_NC: medians 78 (AD) and 88 (NC); a rule that knows them alone gets 68% of the scans right.
WINDOW = 67, 95
WINDOW_BETA = {"AD": (0.95, 1.30), "NC": (1.50, 0.70)}
EXTRA_SCANS = {"AD": 2.4, "NC": 0.7}  # mean number of a person's scans after the first
SAME_DAY = 0.25  # share of them that are of the day of the scan before
METADATA = "meta_data_with_label.json"
MCI_SHARE = 0.43  # entries of MCI in it, per scan that has slices


class Scan(NamedTuple):
    """One scan of a subject, as planned."""

    image: int  # Image Data ID
    split: str
    first: int  # number of its first slice
    date: datetime.date
    damaged: str = ""  # "noise", "black"


class Settings(NamedTuple):
    """What a set of phantoms depends on, as `main` takes it."""

    subjects: int
    seed: int
    scans: int = 1  # of each subject, unless there are sessions
    view: str = "sagittal"
    traps: tuple = ()  # names of TRAPS
    disease: float = 1.0  # share of the difference between the classes


def place(subject):
    """Split and class of subject number `subject`: classes alternate, every fifth subject of each is for testing."""
    return SPLITS[subject // 2 % 5 == 1], CLASSES[subject % 2]


def plan_scans(settings):
    """The Scans of each subject: a list of lists, in order of their Image Data IDs."""
    planned, images, windows = [], itertools.count(), "windows" in settings.traps
    low, high = WINDOW if windows else FIRST_SLICE[settings.view]
    for subject in range(settings.subjects):
        split, label = place(subject)
        rng = np.random.default_rng([settings.seed, subject, 3])
        scans = []
        for date in scan_dates(settings, label, rng):
            share = rng.beta(*WINDOW_BETA[label]) if windows else rng.random()
            scans.append(Scan(next(images), split, low + min(int(share * (high - low + 1)), high - low), date))
        if "people" in settings.traps and len(scans) > 1 and subject // 2 % 5 in (0, 2, 3):  # of train/
            scans[-1] = scans[-1]._replace(split="test")
        planned.append(scans)
    if "damaged" in settings.traps:
        places = [(scans, k) for scans in planned for k in range(len(scans))]
        chosen = np.random.default_rng([settings.seed, 4]).choice(len(places), 2, replace=False)
        for damaged, (scans, k) in zip(("noise", "black"), (places[n] for n in chosen)):
            scans[k] = scans[k]._replace(damaged=damaged)
    return planned


def scan_dates(settings, label, rng):
    """The days of a subject's scans: one of January in each year, or with sessions as in AD_NC."""
    if "sessions" not in settings.traps:
        return [datetime.date(2010 + scan, 1, 1) for scan in range(settings.scans)]
    dates = [datetime.date(2005, 9, 1) + datetime.timedelta(int(rng.integers(1500)))]
    for _ in range(min(rng.poisson(EXTRA_SCANS[label]), 12)):
        later = 0 if rng.random() < SAME_DAY else int(rng.integers(150, 450))
        dates.append(dates[-1] + datetime.timedelta(later))
    return dates


def metadata(settings, planned):
    """What meta_data_with_label.json holds: {Image Data ID: {"raw", "masked", "c1" to "c5": paths, "label": 0 NC, 1 MCI, 2 AD}}."""
    entries = [(scan, i, {"NC": 0, "AD": 2}[place(i)[1]]) for i, scans in enumerate(planned) for scan in scans]
    rng, count = np.random.default_rng([settings.seed, 5]), len(entries)
    for i in range(round(MCI_SHARE * count)):
        date = datetime.date(2005, 9, 1) + datetime.timedelta(int(rng.integers(3000)))
        entries.append((Scan(count + i, "", 0, date), settings.subjects + i // 2, 1))
    found = {}
    for scan, subject, label in entries:
        person = f"000_S_{subject:04d}"
        folder = f"ADNI/{person}/MP-RAGE/{scan.date}_09_00_00.0/I{scan.image}"
        file = f"ADNI_{person}_MR_MP-RAGE__br_raw_{scan.date:%Y%m%d}090000000_1_S{scan.image}_I{scan.image}.nii"
        prefixes = {"raw": "", "masked": "masked_", **{f"c{k}": f"c{k}" for k in range(1, 6)}}
        found[str(scan.image)] = {key: f"{folder}/{prefix}{file}" for key, prefix in prefixes.items()} | {"label": label}
    return found


def draw_slice(params, number_in_scan, rng, view="sagittal", damaged=""):
    """Position (mm), tissue (of `slice_tissue`) and image (of `render`) of a slice of a subject's scan."""
    position = VIEWS[view].spacing_mm * (number_in_scan - VIEWS[view].zero) + (params["lowest_z_mm"] if view == "axial" else 0)
    tissue = slice_tissue(params, position, view)
    image = render(params, tissue, position, rng, view)
    if damaged == "black":
        image = np.uint8(image * 0.03)
    elif damaged == "noise":
        image = np.uint8(add_rician_noise(np.zeros(image.shape), 6.2, rng))
    return position, tissue, image


def write_subject(folder, settings, subject, scans, write_volume=None):
    """Draw the `scans` of `plan_scans` of a subject, write their slices below `folder`; returns its rows of subjects.csv.

    write_volume (data/phantom_volumes.py): called with each scan's whole volume, in which a slice's index is its number.
    """
    seed, view, label = settings.seed, settings.view, place(subject)[1]
    about = {"view": view, "traps": " ".join(settings.traps), "disease": settings.disease}
    rng = np.random.default_rng([seed, subject])
    params, rows = draw_subject(rng, label, settings.disease), []
    own = np.random.default_rng([seed, subject, 1])  # anatomy and noise stay as they were
    age_and_sex = draw_age_and_sex(own, params, label, settings.disease)
    for k, scan in enumerate(scans):
        if k:
            params |= {name: value for name, value in draw_subject(rng, label).items() if name in POSE}
        years = (scan.date - scans[0].date).days / 365.25 if "sessions" in settings.traps else 0
        whose = age_and_sex | {"age": round(age_and_sex["age"] + years, 1)}
        planes = {}
        for number_in_scan in range(scan.first, scan.first + SLICES):
            position, tissue, planes[number_in_scan] = draw_slice(params, number_in_scan, rng, view, scan.damaged)
            path = f"{scan.split}/{label}/{scan.image:06d}_{number_in_scan}.jpeg"
            with atomic_path(os.path.join(folder, path)) as temporary:
                Image.fromarray(planes[number_in_scan]).save(temporary, quality=95)
            numbers = {"z_mm" if view == "axial" else "x_mm": position, **true_areas(tissue, view), **params}
            rows.append(
                {"path": path, "seed": seed, "subject": subject, "split": scan.split, "class": label, **whose}
                | {
                    "date": str(scan.date),
                    **about,
                    "damaged": scan.damaged,
                    "slice": number_in_scan,
                    "pixel_mm": VIEWS[view].pixel_mm,
                }
                | {name: round(value, 4) for name, value in numbers.items()}
            )
        if write_volume:
            rest = np.random.default_rng([seed, subject, 2, k])
            indices = range(VIEWS[view].volume_slices)
            drawn = [planes[i] if i in planes else draw_slice(params, i, rest, view, scan.damaged)[2] for i in indices]
            write_volume(folder, *volume_of(np.stack(drawn), view), subject, k, scan.image, age_and_sex["sex"], scan.date)
    return rows


def volume_of(slices, view):
    """(voxels [z upwards, y backwards, x to the right], (x, y, z) mm of a voxel) of all slices [N, 240, 256] of a scan."""
    pixel, spacing = VIEWS[view].pixel_mm, VIEWS[view].spacing_mm
    if view == "axial":
        return slices, (pixel, pixel, spacing)
    return slices.transpose(2, 1, 0)[:, ::-1], (spacing, pixel, pixel)


def write_subjects(folder, settings, num_workers, write_volume=None):
    """Yield the rows of each subject in order; `num_workers` processes draw them."""
    write = functools.partial(write_planned, folder, settings, write_volume)
    planned = list(enumerate(plan_scans(settings)))
    num_workers = min(num_workers, settings.subjects, 61)  # the most that Windows can wait for
    if num_workers == 1:
        yield from map(write, planned)
        return
    # The workers ignore Ctrl-C: this process handles it and ends them.
    pool = functools.partial(multiprocessing.get_context("spawn").Pool, num_workers, signal.signal, (signal.SIGINT, signal.SIG_IGN))
    with startup.start_workers(pool) as pool:
        yield from pool.imap(write, planned)


def write_planned(folder, settings, write_volume, planned):
    """`write_subject` of (subject, its scans)."""
    return write_subject(folder, settings, *planned, write_volume=write_volume)


def already_written(folder, settings, volumes=False):
    """True if `folder` holds exactly these phantoms, False if it is empty; UserError if it holds anything else."""
    rows = []
    try:
        names = [name for name in os.listdir(folder) if not name.startswith(".")]
        if "subjects.csv" in names:
            with open(os.path.join(folder, "subjects.csv"), newline="") as file:
                rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{folder}: cannot be read ({error}); choose another folder") from None
    shared = tuple(map(str, (settings.seed, settings.view, " ".join(settings.traps), settings.disease)))
    wanted = {(str(i), *shared): SLICES * len(scans) for i, scans in enumerate(plan_scans(settings))}
    there = Counter(tuple(map(row.get, ("subject", "seed", "view", "traps", "disease"))) for row in rows)
    if names and (there != wanted or ("volumes" in names) != volumes):
        raise UserError(f"{folder}: holds other files, or phantoms of other flags, and is left as it is; choose another folder")
    return bool(names)


def write_phantoms(folder, subjects, seed, num_workers=1, scans=1, volumes=False, view="sagittal", traps=(), disease=1.0):
    """Write `folder`/{train,test}/{AD,NC}/<scan>_<slice>.jpeg and, when all are there, `folder`/subjects.csv.

    volumes: also write `folder`/volumes and `folder`/masks (data/phantom_volumes.py), which needs SimpleITK. traps: of TRAPS.
    Equal arguments give equal bytes, whatever `num_workers`. Returns the number of slices written, 0 if they were there before;
    whatever stops it half way, they are removed. UserError if `folder` is not its own, or traps exclude other flags.
    """
    settings = Settings(subjects, seed, scans, view, tuple(name for name in TRAPS if name in traps), float(disease))
    check_traps(settings)
    write_scan = None
    if volumes:
        from data.phantom_volumes import write_scan
    make_folder(folder, "folder")
    if already_written(folder, settings, volumes):
        return 0
    beside = os.path.join(os.path.dirname(os.path.abspath(folder)), METADATA)
    if "metadata" in traps and os.path.lexists(beside):
        raise UserError(f"{beside}: is there already and is left as it is; choose a folder in another place")
    planned, rows = plan_scans(settings), []
    try:
        for split, label in itertools.product(SPLITS, CLASSES):
            make_folder(os.path.join(folder, split, label), "folder")
        with (
            tqdm(total=SLICES * sum(map(len, planned)), desc="drawing", unit=" slices", disable=None) as bar,
            contextlib.closing(write_subjects(folder, settings, num_workers, write_scan)) as drawn,
        ):
            for subject_rows in drawn:
                rows += subject_rows
                bar.update(len(subject_rows))
        if "metadata" in traps:
            with atomic_path(beside) as path, open(path, "w") as file:
                json.dump(metadata(settings, planned), file, indent=1)
        with atomic_path(os.path.join(folder, "subjects.csv")) as path, open(path, "w", newline="") as file:
            table = csv.DictWriter(file, rows[0])
            table.writeheader()
            table.writerows(rows)
    except BaseException as error:
        for name in (*SPLITS, "volumes", "masks"):
            shutil.rmtree(os.path.join(folder, name), ignore_errors=True)
        if "metadata" in traps:
            with contextlib.suppress(OSError):
                os.unlink(beside)
        if isinstance(error, OSError):
            raise UserError(f"folder {folder}: cannot write there ({reason(error)}); choose another") from None
        raise
    return len(rows)


def check_traps(settings):
    """UserError if traps need, or exclude, what the other flags say."""
    if "windows" in settings.traps and settings.view != "sagittal":
        raise UserError(f"--traps windows is of sagittal slices; --view {settings.view} always cuts the same levels")
    if "sessions" in settings.traps and settings.scans > 1:
        raise UserError(f"--scans {settings.scans}: --traps sessions decides how many scans each subject has; leave --scans out")
    if "people" in settings.traps and "sessions" not in settings.traps and settings.scans == 1:
        raise UserError("--traps people needs people with several scans: add --scans 2, or --traps people,sessions")


def parse_traps(text):
    """An argparse type: the names of TRAPS in a list with commas, or all of them."""
    names = [name.strip().lower() for name in text.split(",")]
    if unknown := [name for name in names if name not in (*TRAPS, "all")]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(TRAPS)}, all")
    return tuple(name for name in TRAPS if name in names or "all" in names)


def main(argv=None):
    parser = ArgumentParser("Draw phantom brains in the layout of the ADNI AD_NC set.", "phantom.py AD_NC --subjects 300")
    parser.add_argument("folder", help="where to write train/, test/ and subjects.csv; new or empty")
    parser.add_argument("--view", choices=VIEWS, default="sagittal", help="sagittal as in AD_NC, or axial")
    parser.add_argument("--subjects", type=number(int, 4, 10**6), default=100, help="people; a fifth are for testing")
    parser.add_argument("--scans", type=number(int, 1, 100), default=1, help="of each subject, 20 slices each")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="other seeds give other people")
    text = "share of the difference between AD and NC; 0: none"
    parser.add_argument("--disease", type=number(float, 0, 1), default=1.0, help=text)
    text = "what else AD_NC has, or all of it. " + "; ".join(f"{name}: {text}" for name, text in TRAPS.items())
    parser.add_argument("--traps", type=parse_traps, default=(), metavar="NAME,...", help=text)
    Group(parser, "volumes").add_bool("--volumes", False, "also each scan's volume and brain mask, for prepare.py")
    parser.add_argument("--num_workers", type=number(int, 1), default=usable_cores(), help="processes")
    args = parser.parse_args(argv)
    start = time.monotonic()
    written = write_phantoms(**vars(args))
    if not written:
        print(f"{args.folder} already holds these {args.subjects} phantoms of seed {args.seed}; nothing to do")
        return
    what, rate = f"{written} {args.view} slices of {args.subjects} phantoms", written / (time.monotonic() - start)
    print(f"wrote {what} and subjects.csv to {args.folder}: {rate:.0f} slices a second")


if __name__ == "__main__":
    run_cli(main)
