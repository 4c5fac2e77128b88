"""The record of a run of prepare.py, `output_dir`/provenance.json, and the files that it speaks for.

    {"format": 2, "flags": {...}, "people": {person: side}, "runs": [...],
     "scans": {image: {"folder", "slices": {name: SHA-256}, "stamp", "sha256", ...}}}

It is written before the first slice, while scans are done and at the end; a scan that it has not is done again.
"""

import contextlib
import json
import os
import re

from data.split import SPLITS, File, write_table
from data.subjects import CLASS_OF, Scan, scan_id
from data.volumes import file_checksum
from lock import Held, Lock
from utils import CLASSES, UserError, atomic_path, printable

RECORD = "provenance.json"
FORMAT = 2  # of the record; another one is refused
FOLDERS = [f"{split}/{label}" for split in SPLITS for label in CLASSES]  # of slices


def label_of(scan):
    """The class of a Scan, of CLASSES, or None."""
    return CLASS_OF.get((scan.group or "").upper())


def folder_of(record, scan):
    """Where the slices of a Scan belong, below the output folder: one of FOLDERS."""
    return f"{record['people'][scan.person]}/{label_of(scan)}"


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


def read_record(folder, flags):
    """The record in `folder`, or a new one if it is empty; UserError if it holds anything else, or slices of other flags."""
    path = os.path.join(folder, RECORD)
    try:
        with open(path, encoding="utf-8") as file:
            record = json.load(file)
        check_record(record)
    except FileNotFoundError:
        if names := sorted(name for name in os.listdir(folder) if not name.startswith(".")):
            text = f"holds other files ({names[0]}, ...) and is left as it is; choose a new folder"
            raise UserError(f"--output_dir {folder}: {text}") from None
        return {"format": FORMAT, "flags": flags, "people": {}, "runs": [], "scans": {}}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        text = f"cannot be read ({printable(str(error))[:100]}), so nothing can be resumed; choose a new --output_dir"
        raise UserError(f"{path}: {text}") from None
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
        if entry["folder"] not in FOLDERS or not named:
            raise ValueError("damaged")


def write_json(path, value):
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)


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


def follow_table(output_dir, record, image, scan):
    """Move the slices of a scan whose volume is gone to where its row in the table says; remove those of another group now."""
    entry = record["scans"][image]
    if label_of(scan) is None:
        print(f"{image}: its slices are removed, since the table says now that its group is {printable(scan.group or 'unknown')}")
        forget(output_dir, record, image)
        return
    folder = folder_of(record, scan)
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
    for folder in FOLDERS:
        for name in os.listdir(os.path.join(output_dir, folder)):
            image = scan_id(name)
            entry = record["scans"].get(image, {"folder": "", "slices": ()})
            if image in table and (entry["folder"] != folder or name not in entry["slices"]):
                os.unlink(os.path.join(output_dir, folder, name))
