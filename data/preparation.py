"""A run of prepare.py: which scans, on which side, done by processes, and recorded so that the same command resumes.

status = prepare(Request(volumes="ADNI", subjects="ADNI.csv", output_dir="AD_NC"), draw=report.volume_pictures.save)
"""

import contextlib
import functools
import json
import os
import platform
import re
import sys
import time
from collections import Counter
from datetime import datetime, timezone
from importlib import metadata
from typing import NamedTuple

import numpy as np
import PIL
from tqdm import tqdm

from data.folders import some_of
from data.split import SPLITS, File, draw_test, strata_of, write_csv, write_table
from data.subjects import CLASS_OF, Scan, image_order, look_up, read_subjects, row_of
from data.volume_jobs import Job, prepare_scan, run_jobs
from data.volume_steps import Settings, load_template, template_file
from data.volume_strip import STRIPPED, network
from data.volumes import file_checksum, find_volumes, sitk
from lock import Held, Lock
from utils import CLASSES, UserError, atomic_path, make_folder, plural, printable, usable_cores

SAVE_EVERY = 10  # seconds, of the record
RECORD = "provenance.json"
FORMAT = 2  # of the record; another one is refused
MASKS = "masks"  # folder for those that are made
NAMELESS = "no Image Data ID in its name or in that of a folder above it, and no BIDS name of a T1 scan (sub-..._T1w.nii.gz)"
FOLDERS = [f"{split}/{label}" for split in SPLITS for label in CLASSES]  # of slices


class Request(NamedTuple):
    """What prepare.py is asked for, as its flags name it."""

    volumes: str
    subjects: str
    output_dir: str
    masks: str | None = None
    settings: Settings = Settings()
    test_share: float = 0.3
    seed: int = 0
    pictures: int = 0
    num_workers: int = usable_cores()
    keep_doubtful: bool = False  # of settings.strip
    command: str = ""  # for the record


class Skipped(NamedTuple):
    """A row of skipped.csv."""

    image: str
    subject: str
    group: str  # of an AD or CN scan of the table, which should have slices; else ""
    where: str  # a file or folder
    reason: str


def prepare(request, draw=None):
    """Do what a Request says; returns the exit status: 0, or 3 if scans in the table have no slices.

    draw: of `prepare_scan`, for the pictures. UserError if nothing can be done: no volumes, a table without groups, other flags
    than before, nothing but failures, ...
    """
    flags = comparable(request)
    table = read_subjects(request.subjects)
    if not any(scan.group for scan in table.values()):
        raise UserError(f"--subjects {request.subjects}: no column Group (or class) that says AD or CN; add one")
    found, skipped, counts = choose(request, table)
    wanted = [row for row in skipped if row.group]
    if not found and wanted:
        text = f"none of the {len(wanted)} AD and CN scans in --subjects {request.subjects} can be used"
        raise UserError(f"{text}; {wanted[0].image}: {wanted[0].reason}")
    if not found:
        text = f"no scan of the groups AD, CN or NC among {len(table)}: {some_of(counts)}"
        raise UserError(f"--subjects {request.subjects}: {text}")
    make_folder(request.output_dir, "--output_dir")
    Record(request.output_dir, flags)  # raises for a folder of something else before anything is written there
    with only_here(request.output_dir):
        record = Record(request.output_dir, flags)
        table |= {image: look_up(image, table) for image in {**found, **record.scans} if row_of(image, table)}
        known = [table[image] for image in {**found, **record.scans} if image in table and label_of(table[image])]
        assign_sides(record.people, known, request.test_share, request.seed)
        jobs, done = plan(request, table, found, record)
        print(f"{len(found) + len(wanted)} AD and CN scans in the table: {done} done before, {len(jobs)} to do")
        for text in counts:
            print(f"left out: {text}")
        try:
            failed = work(request, table, record, jobs, done, draw)
        finally:
            record.write_scans()
        for image, reason in failed.items():
            skipped.append(Skipped(image, table[image].person, table[image].group, found[image][0].place, reason))
        rows = (map(printable, row) for row in sorted(skipped, key=lambda row: not row.group))
        write_csv(os.path.join(request.output_dir, "skipped.csv"), Skipped._fields, rows)
    return conclude(request.output_dir, record, found, skipped)


def comparable(request):
    """The flags that slices and sides depend on, as JSON has them; the template by its checksum. UserError if it is unusable, or
    deepbet is missing."""
    flags = request.settings._asdict() | {"masks": bool(request.masks), "test_share": request.test_share, "seed": request.seed}
    if template := request.settings.template:
        try:
            load_template(template)
        except (UserError, ValueError) as error:  # ValueError: numbers of its header
            raise UserError(f"--template {error}") from None
        flags["template"] = file_checksum(template_file(template))
    if request.settings.strip:
        network()
    return json.loads(json.dumps(flags))


def choose(request, table):
    """({image: (Volume, mask path or None)} to prepare, [Skipped], [what is left out, as text])."""
    volumes, nameless = find_volumes(request.volumes)
    masks = find_masks(request.masks) if request.masks else {}
    skipped = [Skipped("", "", "", place, NAMELESS) for place in nameless]
    found, groups, rows = {}, Counter(), {image: row_of(image, table) for image in volumes}
    for image in sorted({*volumes, *(table.keys() - rows.values())}, key=image_order):
        scan, there, of_image = table.get(rows.get(image) or image), volumes.get(image, []), masks.get(image, [])
        if scan is None:
            groups["that --subjects lacks (skipped.csv)"] += 1
            skipped.append(Skipped(image, "", "", there[0].place, f"not in --subjects {request.subjects}"))
        elif label_of(scan) is None:
            groups[f"of group {printable(scan.group)}" if scan.group else "without a group"] += 1
        elif len(there) == 1 and (not request.masks or len(of_image) == 1):
            made = os.path.join(request.output_dir, MASKS, f"{image}_mask.nii.gz") if request.settings.strip else None
            found[image] = there[0], of_image[0] if request.masks else made
        else:
            problem = f"{len(of_image) or 'no'} masks in --masks {request.masks} have this Image Data ID"
            if not there:
                problem = f"no volume below --volumes {request.volumes} has this Image Data ID"
            elif len(there) > 1:
                places = some_of([volume.place for volume in there], 3)
                problem = f"{len(there)} volumes have this Image Data ID: {places}; keep one"
            skipped.append(Skipped(image, scan.person, scan.group, there[0].place if there else "", problem))
    counts = [f"{plural(count, 'scan')} {group}" for group, count in sorted(groups.items())]
    if nameless:
        counts.append(f"{len(nameless)} file(s) or folder(s) without an Image Data ID or BIDS name (skipped.csv)")
    return found, skipped, counts


def find_masks(folder):
    """{image: [paths]} of the masks below `folder`; where several have one ID, those with "mask" in their names count."""
    found, _ = find_volumes(folder, "--masks", True)
    masks = {image: [volume.place for volume in there if volume.format != "DICOM"] for image, there in found.items()}
    return {image: [path for path in paths if "mask" in os.path.basename(path).lower()] or paths for image, paths in masks.items()}


def assign_sides(people, scans, share, seed):
    """Add to `people` {person: "train" or "test"} those of the Scans who have no side yet, drawn by `draw_test`."""
    new = [File("", f"{label_of(scan)}/", scan) for scan in scans if scan.person not in people]
    test = draw_test(strata_of(new), share, [seed, len(people)] if people else seed)
    people |= {file.scan.person: SPLITS[file.scan.person in test] for file in new}


def plan(request, table, found, record):
    """([Job, ...], those that get a picture first; number of scans done before). Old slices of what is to do are removed."""
    images, jobs, done = list(found), [], 0
    shown = {images[i] for i in np.linspace(0, len(images) - 1, min(request.pictures, len(images))).astype(int)}
    more = [*(["steps"] if shown else []), *([MASKS] if request.settings.strip else [])]
    for folder in (os.path.join(request.output_dir, part) for part in (*FOLDERS, *more)):
        make_folder(folder, "--output_dir")
        for name in os.listdir(folder):
            if name.startswith(".tmp-"):  # of a process that was killed
                os.unlink(os.path.join(folder, name))
    for image in [image for image in record.scans if image in table and image not in found]:
        if label_of(table[image]) is None or record.scans[image]["folder"] != record.place(table[image]):
            print(f"{image}: its slices are removed: the table gives it another group or person now")
            record.forget(image)
    for image in sorted(images, key=lambda image: image not in shown):
        (volume, mask), scan = found[image], table[image]
        picture = os.path.join(request.output_dir, "steps", f"{image}.png") if image in shown else None
        if image in record.scans:
            if record.is_done(image, scan, volume, mask) and (not picture or os.path.isfile(picture)):
                record.scans[image]["scan"] = scan._asdict()
                done += 1
                continue
            record.forget(image)
        folder = os.path.join(request.output_dir, record.place(scan))
        jobs.append(Job(volume, mask, folder, picture, request.settings, request.keep_doubtful))
    return jobs, done


def work(request, table, record, jobs, done, draw):
    """Do the jobs and record them; returns {image: why it failed}."""
    started, failed = time.monotonic(), {}
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    versions = {"python": platform.python_version(), "SimpleITK": sitk.Version.VersionString(), "numpy": np.__version__}
    versions |= {"pillow": PIL.__version__, "system": platform.platform()}
    if request.settings.strip:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions["deepbet"] = metadata.version("deepbet")
    run = {"command": request.command, "started": now, "versions": versions, "prepared": 0, "failed": 0, "seconds": 0.0}
    record.runs.append(run)

    def save():
        run["seconds"] = round(time.monotonic() - started, 1)
        record.save()
        return time.monotonic()

    saved = save()
    results = run_jobs(jobs, request.num_workers, functools.partial(prepare_scan, draw=draw))
    slow = 0.1 if sys.stderr.isatty() else 60  # a log gets a line a minute
    bar = tqdm(total=len(jobs) + done, initial=done, desc="preparing", unit=" scans", mininterval=slow, disable=not jobs)
    with bar, contextlib.closing(results):
        try:
            for result in results:
                image = result.pop("image")
                if result.get("full"):
                    text = f"{result['error']}; make room, then resume by the same command"
                    raise UserError(f"--output_dir {request.output_dir}: {text}")
                if "error" in result:
                    failed[image] = result["error"]
                    tqdm.write(f"skipped {image}: {failed[image]}", file=sys.stderr)
                else:
                    if "left_out" in result:
                        tqdm.write(f"note: {image}: left out beside the scan: {result['left_out']}", file=sys.stderr)
                    if "doubt" in result:
                        tqdm.write(f"note: {image}: kept with a doubtful mask: {result['doubt']}", file=sys.stderr)
                    place = {"scan": table[image]._asdict(), "folder": record.place(table[image])}
                    record.scans[image] = place | result | {"run": len(record.runs) - 1}
                run["prepared" if "error" not in result else "failed"] += 1
                bar.update()
                if time.monotonic() > saved + SAVE_EVERY:
                    saved = save()
        finally:
            save()
    return failed


def conclude(output_dir, record, found, skipped):
    """Print what there is now; returns the exit status."""
    entries = {folder: [entry for entry in record.scans.values() if entry["folder"] == folder] for folder in FOLDERS}
    for folder, there in entries.items():
        people, slices = {entry["scan"]["person"] for entry in there}, sum(len(entry["slices"]) for entry in there)
        print(f"{folder.replace('/', ' ')}: {len(people)} people, {len(there)} scans, {slices} slices")
    if empty := [folder for folder, there in entries.items() if not there]:
        print(f"note: nothing in {', '.join(empty)}; with few people, try another --seed or --test_share in a new folder")
    if earlier := set(record.scans) - set(found):
        print(f"note: {len(earlier)} of these scans are of earlier runs and not in this table or download; their slices stay")
    missing, path = [row.image for row in skipped if row.group], os.path.join(output_dir, "skipped.csv")
    print(os.path.join(output_dir, "scans.csv"))
    if skipped:
        print(path)
    if bare := sum(entry.get("strip") == STRIPPED for entry in record.scans.values()):
        print(f"note: {plural(bare, 'scan')} had no skull, and deepbet was not asked")
    if missing:
        text = f"{len(missing)} AD and CN scans cannot be prepared ({some_of(missing, 5)}): see {path}"
        print(f"warning: {text}; slices of earlier runs stay", file=sys.stderr)
    return 3 if missing else 0


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
        known = Settings()._asdict() | self.content["flags"]  # older records lack newer flags
        for name, value in flags.items():
            if (before := known.get(name)) != value:
                shown = " ".join(map(str, before)) if isinstance(before, list) else str(before)
                flag = f"another --{name}, or without" if name in ("masks", "template", "strip") else f"--{name} {shown}"
                raise UserError(f"--output_dir {folder}: its slices were made with {flag}; choose a new folder, or the same flag")

    def save(self):
        """Write the file."""
        with atomic_path(self.path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            json.dump(self.content, file, indent=1)

    def write_scans(self):
        """Write scans.csv: a row for each scan that has slices."""
        files = []
        for entry in self.scans.values():
            split, label = entry["folder"].split("/")
            files += [File("", f"{label}/{name}", Scan(**entry["scan"]), split) for name in entry["slices"]]
        write_table(os.path.join(self.folder, "scans.csv"), files)

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
        named = all(re.fullmatch(rf"{re.escape(image)}_[0-9]+\.\w+", name) for name in entry["slices"])
        if entry["folder"] not in FOLDERS or not named or not re.fullmatch(r"[\w+-]+", image):
            raise ValueError("damaged")
