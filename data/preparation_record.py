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
from data.subjects import CLASS_OF, Scan
from data.volumes import file_checksum
from lock import Held, Lock
from utils import CLASSES, UserError, atomic_path, printable

RECORD = "provenance.json"
FORMAT = 2  # of the record; another one is refused
FOLDERS = [f"{split}/{label}" for split in SPLITS for label in CLASSES]  # of slices


def label_of(scan):
    """The class of a Scan, of CLASSES, or None."""
    return CLASS_OF.get((scan.group or "").upper())


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


class Record:
    """The record in `folder`, or a new one if that is empty; UserError if it holds anything else, or slices of other `flags`.

    people {person: "train" or "test"}, runs and scans {image: entry} are those of the file.
    """

    def __init__(self, folder, flags):
        self.folder, self.path = folder, os.path.join(folder, RECORD)
        try:
            with open(self.path, encoding="utf-8") as file:
                self.content = json.load(file)
            check_content(self.content)
        except FileNotFoundError:
            if names := sorted(name for name in os.listdir(folder) if not name.startswith(".")):
                text = f"holds other files ({names[0]}, ...) and is left as it is; choose a new folder"
                raise UserError(f"--output_dir {folder}: {text}") from None
            self.content = {"format": FORMAT, "flags": flags, "people": {}, "runs": [], "scans": {}}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            text = f"cannot be read ({printable(str(error))[:100]}), so nothing can be resumed; choose a new --output_dir"
            raise UserError(f"{self.path}: {text}") from None
        self.people, self.runs, self.scans = (self.content[name] for name in ("people", "runs", "scans"))
        for name, value in flags.items():
            if (before := self.content["flags"].get(name)) != value:
                shown = " ".join(map(str, before)) if isinstance(before, list) else str(before)
                flag = f"another --{name}, or without" if name in ("masks", "template") else f"--{name} {shown}"
                raise UserError(f"--output_dir {folder}: its slices were made with {flag}; choose a new folder, or the same flag")

    def save(self):
        """Write the file."""
        with atomic_path(self.path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            json.dump(self.content, file, indent=1)

    def write_scans(self):
        """Write scans.csv: a row for each scan that has slices."""
        files, split_of = [], {}
        for entry in self.scans.values():
            split, label = entry["folder"].split("/")
            for name in entry["slices"]:
                file = File("", f"{label}/{name}", Scan(**entry["scan"]))
                files.append(file)
                split_of[file.name] = split
        write_table(os.path.join(self.folder, "scans.csv"), files, split_of)

    def place(self, scan):
        """Where the slices of a Scan belong, below the folder: one of FOLDERS."""
        return f"{self.people[scan.person]}/{label_of(scan)}"

    def is_done(self, image, scan, volume, mask):
        """Whether the recorded slices of a scan are still those of its volume, mask and class, and as they were written.

        The volume is read again where its files have other names, sizes or times: the entry then gets their new stamp.
        """
        old = self.scans[image]
        try:
            if old["folder"] != self.place(scan) or old["mask"] != (mask and file_checksum(mask)):
                return False
            if old["stamp"] != (stamp := volume.stamp()):
                if old["sha256"] != volume.checksum():
                    return False
                old["stamp"] = stamp
            folder = os.path.join(self.folder, old["folder"])
            return all(file_checksum(os.path.join(folder, name)) == sha for name, sha in old["slices"].items())
        except FileNotFoundError:
            return False

    def forget(self, image):
        """Remove a scan from the record, and its slices."""
        old = self.scans.pop(image)
        for name in old["slices"]:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self.folder, old["folder"], name))


def check_content(record):
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
