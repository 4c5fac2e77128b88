"""A run of prepare.py: which scans, on which side, done by processes, and recorded so that the same command resumes.

    prepare(args, "prepare.py --volumes ADNI ...")      # args: the flags of prepare.py

The record is `output_dir`/provenance.json: {"flags", "people": {person: side}, "runs": [...], "scans": {image: ...}}. It is written
before the first slice, while scans are done and at the end; a scan that it has not is done again.
"""

import contextlib
import csv
import json
import os
import platform
import re
import sys
import time
from collections import Counter
from datetime import datetime, timezone
from typing import NamedTuple

import numpy as np
import PIL
from tqdm import tqdm

from data.folders import some_of
from data.split import SPLITS, File, draw_test, strata_of, write_table
from data.subjects import CLASS_OF, Scan, image_order, read_subjects, scan_id
from data.volume_jobs import run_jobs
from data.volume_steps import Job, Settings, load_template
from data.volumes import file_checksum, find_volumes, sitk
from lock import Held, Lock
from utils import CLASSES, UserError, atomic_path, make_folder, printable

RECORD = "provenance.json"
FORMAT = 2  # of the record; another one is refused
STAY = "; its slices of an earlier run stay"
FOLDERS = [(split, label) for split in SPLITS for label in CLASSES]  # of slices


class Skipped(NamedTuple):
    """A row of skipped.csv."""

    image: str
    subject: str
    group: str
    where: str  # a file or folder
    reason: str
    wanted: bool = False  # an AD or CN scan of the table: it should have slices


def prepare(args, command):
    """Do what `prepare.py` is asked to; returns its exit status: 0, or 3 if scans in the table have no slices.

    UserError if nothing can be done: no volumes, a table without groups, other flags than before, nothing but failures, ...
    """
    settings = Settings(**{name: getattr(args, name) for name in Settings._fields})
    settings = settings._replace(slices=tuple(args.slices), percentiles=tuple(args.percentiles))
    flags = comparable(settings, args)
    table = read_subjects(args.subjects)
    if not any(scan.group for scan in table.values()):
        raise UserError(f"--subjects {args.subjects}: no column Group (or class) that says AD or CN")
    found, skipped, counts = choose(args, table)
    if not found:
        raise UserError(why_none(args, table, skipped, counts))
    make_folder(args.output_dir, "--output_dir")
    read_record(args.output_dir, flags)  # refuses a folder of something else before anything is written there
    with only_here(args.output_dir):
        record = read_record(args.output_dir, flags)
        known = [table[image] for image in {**found, **record["scans"]} if image in table and label_of(table[image])]
        assign_sides(record["people"], known, args.test_share, args.seed)
        jobs, done = plan(args, settings, table, found, record)
        print(
            f"{len(found) + sum(row.wanted for row in skipped)} AD and CN scans in the table: {done} done before, {len(jobs)} to do"
        )
        for text in counts:
            print(f"left out: {text}")
        try:
            failed = work(args, command, table, record, jobs, done)
        finally:
            write_scans(args.output_dir, record)
        for image, reason in failed.items():
            scan = table[image]
            skipped.append(Skipped(image, scan.person, scan.group, found[image][0].place, reason, True))
        skipped = [row._replace(reason=row.reason + STAY) if row.image in record["scans"] else row for row in skipped]
        write_skipped(os.path.join(args.output_dir, "skipped.csv"), skipped)
    return conclude(args, record, found, skipped)


# ---------------------------------------------------------------------------------------------------------------------
# Which scans


def choose(args, table):
    """({image: (Volume, mask path or None)} to prepare, [Skipped], [what is left out, as text])."""
    volumes, nameless = find_volumes(args.volumes)
    masks = find_masks(args.masks) if args.masks else None
    skipped = [Skipped("", "", "", place, "no Image Data ID in its name or in that of a folder above it") for place in nameless]
    found, groups, strangers = {}, Counter(), 0
    for image in sorted({*volumes, *table}, key=image_order):
        scan, there = table.get(image), volumes.get(image, [])
        if scan is None:
            strangers += 1
            skipped += [Skipped(image, "", "", there[0].place, f"not in --subjects {args.subjects}")]
            continue
        row = Skipped(image, scan.person, scan.group or "", there[0].place if there else "", "", True)
        if label_of(scan) is None:
            groups[f"of group {printable(scan.group)}" if scan.group else "without a group"] += 1
        elif not there:
            skipped.append(row._replace(reason=f"no volume below --volumes {args.volumes} has this Image Data ID"))
        elif len(there) > 1:
            places = some_of([volume.place for volume in there], 3)
            skipped.append(row._replace(reason=f"{len(there)} volumes have this Image Data ID: {places}; keep one"))
        elif masks is not None and len(masks.get(image, [])) != 1:
            number = len(masks.get(image, [])) or "no"
            skipped.append(row._replace(reason=f"{number} masks in --masks {args.masks} have this Image Data ID"))
        else:
            found[image] = there[0], masks[image][0] if masks else None
    counts = [f"{count} scan{'s' * (count > 1)} {group}" for group, count in sorted(groups.items())]
    counts += [f"{strangers} volume{'s' * (strangers > 1)} that --subjects lacks (skipped.csv)"] * (strangers > 0)
    counts += [f"{len(nameless)} file(s) or folder(s) without an Image Data ID (skipped.csv)"] * bool(nameless)
    return found, skipped, counts


def label_of(scan):
    """The class of a Scan, of CLASSES, or None."""
    return CLASS_OF.get((scan.group or "").upper())


def find_masks(folder):
    """{image: [paths]} of the masks below `folder`; where several have one ID, those with "mask" in their names count."""
    found, _ = find_volumes(folder, "--masks")
    masks = {image: [volume.place for volume in there if volume.format != "DICOM"] for image, there in found.items()}
    return {image: [path for path in paths if "mask" in os.path.basename(path).lower()] or paths for image, paths in masks.items()}


def why_none(args, table, skipped, counts):
    """The line that says why there is nothing to do."""
    if wanted := [row for row in skipped if row.wanted]:
        first = f"{wanted[0].image}: {wanted[0].reason}"
        return f"none of the {len(wanted)} AD and CN scans in --subjects {args.subjects} can be used; {first}"
    return f"--subjects {args.subjects}: no scan of the groups AD, CN or NC among {len(table)}: {some_of(counts)}"


def assign_sides(people, scans, share, seed):
    """Add to `people` {person: "train" or "test"} those of the Scans who have no side yet, drawn by `draw_test`."""
    new = [File("", f"{label_of(scan)}/", scan) for scan in scans if scan.person not in people]
    test = draw_test(strata_of(new), share, [seed, len(people)] if people else seed)
    people |= {file.scan.person: SPLITS[file.scan.person in test] for file in new}


def plan(args, settings, table, found, record):
    """([Job, ...], those that get a picture first; number of scans done before). Old slices of what is to do are removed."""
    images, jobs, done = list(found), [], 0
    shown = {images[i] for i in np.linspace(0, len(images) - 1, min(args.pictures, len(images))).astype(int)}
    make_folders(args.output_dir, shown)
    for image in [image for image in record["scans"] if image in table and image not in found]:
        follow_table(args.output_dir, record, image, table[image])
    for image in sorted(images, key=lambda image: image not in shown):
        (volume, mask), scan, old = found[image], table[image], record["scans"].get(image)
        folder = f"{record['people'][scan.person]}/{label_of(scan)}"
        picture = os.path.join(args.output_dir, "steps", f"{image}.png") if image in shown else None
        if old and is_done(old, args.output_dir, folder, volume, mask) and (not picture or os.path.isfile(picture)):
            old["scan"] = scan._asdict()
            done += 1
            continue
        if old:
            forget(args.output_dir, record, image)
        jobs.append(Job(volume, mask, os.path.join(args.output_dir, folder), picture, settings))
    remove_unrecorded(args.output_dir, table, record)
    return jobs, done


def follow_table(output_dir, record, image, scan):
    """Move the slices of a scan whose volume is gone to where its row in the table says; remove those of another group now."""
    entry = record["scans"][image]
    if label_of(scan) is None:
        print(f"{image}: its slices are removed, since the table says now that its group is {printable(scan.group or 'unknown')}")
        forget(output_dir, record, image)
        return
    folder = f"{record['people'][scan.person]}/{label_of(scan)}"
    for name in entry["slices"] if entry["folder"] != folder else ():
        with contextlib.suppress(FileNotFoundError):
            os.replace(os.path.join(output_dir, entry["folder"], name), os.path.join(output_dir, folder, name))
    entry |= {"scan": scan._asdict(), "folder": folder}


def forget(output_dir, record, image):
    """Remove a scan from the record, and its slices."""
    old = record["scans"].pop(image)
    for name in old["slices"]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(output_dir, old["folder"], name))


def remove_unrecorded(output_dir, table, record):
    """Remove slices of scans in the table that the record does not have: a killed run wrote them, maybe as of another class."""
    for folder in map("/".join, FOLDERS):
        for name in os.listdir(os.path.join(output_dir, folder)):
            image = scan_id(name)
            entry = record["scans"].get(image, {"folder": "", "slices": ()})
            if image in table and (entry["folder"] != folder or name not in entry["slices"]):
                os.unlink(os.path.join(output_dir, folder, name))


def make_folders(output_dir, pictures):
    """Make the folders of slices and of `pictures`, if any; what a killed process left half written there is removed."""
    parts = [os.path.join(*folder) for folder in FOLDERS] + ["steps"] * bool(pictures)
    for folder in (os.path.join(output_dir, part) for part in parts):
        make_folder(folder, "--output_dir")
        for name in os.listdir(folder):
            if name.startswith(".tmp-"):
                os.unlink(os.path.join(folder, name))


def is_done(old, output_dir, folder, volume, mask):
    """Whether the slices of an entry of the record are still those of its volume and mask, and as they were written.

    The volume is read again where its files have other names, sizes or times: the entry then gets their new stamp.
    """
    try:
        if old["folder"] != folder or old["mask"] != (mask and file_checksum(mask)):
            return False
        if old["stamp"] != (stamp := volume.stamp()):
            if old["sha256"] != volume.checksum():
                return False
            old["stamp"] = stamp
        return all(file_checksum(os.path.join(output_dir, folder, name)) == sha for name, sha in old["slices"].items())
    except FileNotFoundError:
        return False


# ---------------------------------------------------------------------------------------------------------------------
# The work


def work(args, command, table, record, jobs, done):
    """Do the jobs and record them; returns {image: why it failed}."""
    started, failed = time.monotonic(), {}
    run = {"command": command, "started": now(), "versions": versions(), "prepared": 0, "failed": 0, "seconds": 0.0}
    record["runs"].append(run)
    path, cost, written = os.path.join(args.output_dir, RECORD), 0.0, started

    def save():
        nonlocal cost, written
        before = time.monotonic()
        run["seconds"] = round(before - started, 1)
        write_json(path, record)
        written = time.monotonic()
        cost = written - before

    save()
    with progress_bar(len(jobs) + done, done) as bar, contextlib.closing(run_jobs(jobs, args.num_workers)) as results:
        try:
            for result in results:
                image = result.pop("image")
                if result.pop("full", False):
                    raise UserError(
                        f"--output_dir {args.output_dir}: {result['error']}; make room, then resume by the same command"
                    )
                if "error" in result:
                    failed[image] = result["error"]
                    run["failed"] += 1
                    tqdm.write(f"skipped {image}: {failed[image]}", file=sys.stderr)
                else:
                    scan = table[image]
                    folder = f"{record['people'][scan.person]}/{label_of(scan)}"
                    record["scans"][image] = {"scan": scan._asdict(), "folder": folder, **result, "run": len(record["runs"]) - 1}
                    run["prepared"] += 1
                show(bar, run)
                if time.monotonic() - written > 20 * cost:  # so that writing takes at most 5% of the time
                    save()
        finally:
            save()
    return failed


def progress_bar(total, initial):
    """A bar over scans; on no terminal a line a minute."""
    return tqdm(
        total=total,
        initial=initial,
        desc="preparing",
        mininterval=0.1 if sys.stderr.isatty() else 60,
        smoothing=0.05,
        disable=total == initial,
        bar_format="{desc} {percentage:3.0f}%|{bar:16}| {n_fmt}/{total_fmt} scans [{elapsed}<{remaining}{postfix}]",
    )


def show(bar, run):
    """Count a scan in the bar."""
    minutes = max(1e-9, bar.format_dict["elapsed"]) / 60
    bar.set_postfix_str(f"{(run['prepared'] + run['failed']) / minutes:.1f} scans/min, {run['failed']} failed", refresh=False)
    bar.update()


def now():
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def versions():
    return {
        "python": platform.python_version(),
        "SimpleITK": sitk.Version.VersionString(),
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "system": platform.platform(),
    }


# ---------------------------------------------------------------------------------------------------------------------
# The record


@contextlib.contextmanager
def only_here(folder):
    """A context in which no other prepare.py writes into `folder`; UserError if one does."""
    try:
        lock = Lock(os.path.join(folder, ".prepare.lock"))
    except Held as held:
        holder = held.holder or "just started"
        raise UserError(f"--output_dir {folder}: another prepare.py is at work there ({holder}){held.remedy}") from None
    try:
        yield
    finally:
        lock.release()


def comparable(settings, args):
    """The flags that slices and sides depend on, as JSON has them; the template by its checksum. UserError if it is unusable."""
    flags = settings._asdict() | {"masks": settings.masks is not None, "test_share": args.test_share, "seed": args.seed}
    if settings.template:
        if not os.path.isfile(settings.template):
            raise UserError(f"--template {settings.template}: no such file")
        try:
            load_template(settings.template)
        except (UserError, ValueError) as error:  # ValueError: numbers of its header
            raise UserError(f"--template {error}") from None
        flags["template"] = file_checksum(settings.template)
    return json.loads(json.dumps(flags))


def read_record(folder, flags):
    """The record in `folder`, or a new one if it is empty; UserError if it holds anything else, or slices of other flags."""
    path = os.path.join(folder, RECORD)
    try:
        with open(path, encoding="utf-8") as file:
            record = json.load(file)
        check_record(record)
    except FileNotFoundError:
        if names := sorted(name for name in os.listdir(folder) if not name.startswith(".")):
            raise UserError(
                f"--output_dir {folder}: holds other files ({names[0]}, ...) and is left as it is; choose a new folder"
            ) from None
        return {"format": FORMAT, "flags": flags, "people": {}, "runs": [], "scans": {}}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: cannot be read ({printable(str(error))[:100]}), so nothing can be resumed; choose a new --output_dir"
        ) from None
    for name, value in flags.items():
        if (before := record["flags"].get(name)) != value:
            shown = " ".join(map(str, before)) if isinstance(before, list) else str(before)
            flag = f"another --{name}, or without" if name in ("masks", "template") else f"--{name} {shown}"
            raise UserError(f"--output_dir {folder}: its slices were made with {flag}; choose a new folder, or the same flag")
    return record


def check_record(record):
    """Any of several errors unless a record is one that this file writes: files that it names would be deleted."""
    if record["format"] != FORMAT:
        raise ValueError("of another version of prepare.py")
    record["flags"].items(), record["runs"].append
    if not set(record["people"].values()) <= set(SPLITS):
        raise ValueError("damaged")
    for image, entry in record["scans"].items():
        Scan(**entry["scan"]), entry["stamp"], entry["sha256"], entry["mask"], entry["slices"].items()
        named = all(re.fullmatch(rf"{int(image)}_[0-9]+\.\w+", name) for name in entry["slices"])
        if tuple(entry["folder"].split("/")) not in FOLDERS or not named:
            raise ValueError("damaged")


def write_json(path, value):
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)


def write_skipped(path, rows):
    """Write the Skipped rows, those that should have slices first."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(Skipped._fields[:-1])
        table.writerows(map(printable, row[:-1]) for row in sorted(rows, key=lambda row: not row.wanted))


def write_scans(folder, record):
    """Write scans.csv: a row for each scan that has slices."""
    files, split_of = [], {}
    for entry in record["scans"].values():
        split, label = entry["folder"].split("/")
        for name in entry["slices"]:
            file = File("", f"{label}/{name}", Scan(**entry["scan"]))
            files.append(file)
            split_of[file.name] = split
    write_table(os.path.join(folder, "scans.csv"), files, split_of)


def conclude(args, record, found, skipped):
    """Print what there is now; returns the exit status."""
    empty = []
    for split in SPLITS:
        for label in CLASSES:
            entries = [entry for entry in record["scans"].values() if entry["folder"] == f"{split}/{label}"]
            people = {entry["scan"]["person"] for entry in entries}
            slices = sum(len(entry["slices"]) for entry in entries)
            print(f"{split} {label}: {len(people)} people, {len(entries)} scans, {slices} slices")
            empty += [] if entries else [f"{split}/{label}"]
    if empty:
        print(f"note: nothing in {', '.join(empty)}; with few people, try another --seed or --test_share in a new folder")
    if earlier := set(record["scans"]) - set(found):
        print(f"note: {len(earlier)} of these scans are of earlier runs and not in this table or download; their slices stay")
    print(os.path.join(args.output_dir, "scans.csv"))
    missing = [row for row in skipped if row.wanted]
    stale = [row.image for row in missing if row.image in record["scans"]]
    none = [row.image for row in missing if row.image not in record["scans"]]
    path = os.path.join(args.output_dir, "skipped.csv")
    if skipped:
        print(path)
    for images, text in ((none, "have no slices"), (stale, "cannot be prepared now and have slices of an earlier run")):
        if images:
            print(f"warning: {len(images)} AD and CN scans {text} ({some_of(images, 5)}): see {path}", file=sys.stderr)
    return 3 if missing else 0
