"""Whose slices are these? File names give scans; a table that the user has (--subjects CSV) gives the people.

    table = read_subjects("idaSearch.csv")          # {"218391": Scan("218391", "037_S_4001", "AD", "M", 71.5, "5/03/2011"), ...}
    scans = identify(["AD/218391_78.jpeg", "AD/218391_79.jpeg", "NC/218393_78.jpeg"], table)    # a Scan for each file name
    groups, unit = resampling_groups(scans)         # three times "people 037_S_4001", and "people"

The number before the underscore is an ADNI Image Data ID: it stands for one scan, not for a person, who may have many, even
several of one day. Slices of one person are alike, so a model must not be tested on people that it was trained on, and an
interval has to resample people.
"""

import csv
import io
import math
import re
from typing import NamedTuple

import numpy as np

from utils import UserError, printable

# The columns that are looked for, in any letter case and order: LONI's names (of a collection, and of its search) and plain ones.
COLUMNS = {
    "image": ("image data id", "image id", "image", "path"),
    "person": ("subject", "subject id"),
    "group": ("group", "research group", "class"),
    "sex": ("sex",),
    "age": ("age",),
    "date": ("acq date", "study date", "date"),
}
NEEDED = {"image": "Image Data ID (or image)", "person": "Subject"}
MAX_TABLE = 2**26  # characters, of some 400,000 scans
UNKNOWN = "", "-", "n/a", "nan", "na", "none", "unknown"
CLASS_OF = {"AD": "AD", "DEMENTIA": "AD", "CN": "NC", "NC": "NC", "CONTROL": "NC", "NORMAL": "NC"}  # ADNI's groups, folders' names


class Scan(NamedTuple):
    """What is known of a slice's scan; None for what is not."""

    image: str | None = None  # ADNI's Image Data ID without the leading I and zeros
    person: str | None = None
    group: str | None = None  # as in the table: AD, CN, MCI, ...
    sex: str | None = None  # its first letter: M, F
    age: float | None = None  # years
    date: str | None = None  # of the scan, as in the table


def scan_id(name):
    """The Image Data ID in a slice's file name: "218391" of "AD/218391_78.jpeg" or "I218391_78.png"; None in any other name."""
    match = re.fullmatch(r"(?:.*[/\\])?[Ii]?([0-9]+)_[0-9]+\.\w+", name)
    return match and (match[1].lstrip("0") or "0")


def slice_index(name):
    """The position of a slice in its scan, the number after the last underscore: 78 of "AD/218391_78.jpeg"; None in any other name."""
    match = re.search(r"_([0-9]{1,9})\.\w+\Z", name)
    return match and int(match[1])


def identify(names, table=None):
    """The Scan of each slice, given their file names and what `read_subjects` returned (None: no table, so people are unknown)."""
    ids = map(scan_id, names)
    return [(table or {}).get(image) or Scan(image) for image in ids]


def resampling_groups(scans):
    """(groups str [N], unit) of N slices' Scans, for intervals: slices of the same group are drawn together.

    A group is a person where known, else a scan, else the slice itself; unit says which: "people", "scans", "people and scans", ...
    """
    groups, units = [], set()
    for i, scan in enumerate(scans):
        unit, name = ("people", scan.person) if scan.person else ("scans", scan.image) if scan.image else ("slices", i)
        groups.append(f"{unit} {name}")
        units.add(unit)
    return np.array(groups), " and ".join(unit for unit in ("people", "scans", "slices") if unit in units)


def resampled_text(unit):
    """A sentence: what intervals over `unit` (of `resampling_groups`) resample, and whether they are too small for that."""
    text = f"Intervals and standard errors resample {unit}"
    if "slices" in unit:
        return f"{text}: file names do not give all scans, so they are too small, since slices of one brain are alike."
    if "scans" in unit:
        return f"{text}: whose scans they are is not known (--subjects), so they are too small if people have several."
    return text + "."


def shared_text(train, unseen):
    """A sentence: how many people, or scans where people are unknown, of the unseen slices' Scans are among `train`'s."""
    text = ""
    for unit, field in (("people", "person"), ("scans", "image")):
        seen, of_unseen = ({getattr(scan, field) for scan in scans} - {None} for scans in (train, unseen))
        if shared := len(seen & of_unseen):
            return f"{shared} of {len(of_unseen)} {unit} of the test slices are in the training set too: results are too good."
        if not all(scan.person for scan in (*train, *unseen)):
            text = "Whether the people of the test slices are in the training set too is not known; results are too good if so."
    return text or "No person of the test slices is in the training set."


# ---------------------------------------------------------------------------------------------------------------------
# Reading the table


def read_subjects(path):
    """{Image Data ID: Scan} of a CSV with a header: LONI's, or `image,subject`; several rows of one image are merged.

    Also separated by ; or tabs. An image is an ID, with or without the leading I, or the file name of a slice, as in the
    subjects.csv of phantom.py. UserError: unreadable or empty; no column of images or subjects; a row without them, or with an
    age that is none; rows of one image that contradict each other.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
            text = file.read(MAX_TABLE)
            if file.read(1):
                raise UserError(f"--subjects {path}: too large for a table of scans (more than {MAX_TABLE} characters)")
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=text.partition("\n")[0].count))
        header = [" ".join(name.replace("_", " ").split()).casefold() for name in next(rows, [])]
        columns = find_columns(path, header)
        table, lines = {}, {}
        for row in rows:
            cells = {field: row[i].strip() for field, i in columns.items() if i < len(row)}
            if not any(map(str.strip, row)):
                continue
            scan = read_row(f"--subjects {path}: line {rows.line_num}", cells)
            if before := table.get(scan.image):
                where = f"--subjects {path}: lines {lines[scan.image]} and {rows.line_num}"
                scan = merge(where, before, scan)
            table[scan.image], lines[scan.image] = scan, rows.line_num
    except OSError as error:
        raise UserError(f"--subjects {path}: cannot be read ({error.strerror or error})") from None
    except csv.Error as error:
        raise UserError(f"--subjects {path}: not a CSV file ({error})") from None
    if not table:
        raise UserError(f"--subjects {path}: there are no rows below its header")
    return table


def find_columns(path, header):
    """{field of Scan: its number in `header`} of the columns that are there; UserError without those that are needed."""
    if not any(header):
        raise UserError(f"--subjects {path}: empty; it should be a CSV with the columns {' and '.join(NEEDED.values())}")
    found = {field: next((header.index(name) for name in names if name in header), None) for field, names in COLUMNS.items()}
    if missing := [title for field, title in NEEDED.items() if found[field] is None]:
        shown = printable(", ".join(header))[:200]
        raise UserError(f"--subjects {path}: no column {' and no column '.join(missing)}; its first line is {shown}")
    return {field: i for field, i in found.items() if i is not None}


def read_row(where, cells):
    """The Scan in a row's cells {field: text}; UserError, which begins with `where`, for one without image or subject."""
    known = {field: text for field, text in cells.items() if text.casefold() not in UNKNOWN}
    image = known.get("image", "")
    plain = re.fullmatch(r"[Ii]?([0-9]+)", image)
    known["image"] = (plain[1].lstrip("0") or "0") if plain else scan_id(image)
    if not known["image"]:
        raise UserError(f"{where}: {image[:80]!r} is neither an Image Data ID such as I218391 nor a file such as 218391_78.jpeg")
    if "person" not in known:
        raise UserError(f"{where}: image {image} has no subject")
    if "sex" in known:
        known["sex"] = known["sex"][0].upper()
    if "age" in known:
        try:
            known["age"] = float(known["age"])
        except ValueError:
            known["age"] = math.nan
        if not 0 <= known["age"] < 150:
            raise UserError(f"{where}: {cells['age'][:80]!r} is no age in years")
    return Scan(**known)


def merge(where, before, scan):
    """One Scan of two rows of one image; UserError, which begins with `where`, if they contradict each other."""
    for field, a, b in zip(Scan._fields, before, scan):
        if None not in (a, b) and a != b:
            raise UserError(f"{where} contradict each other: image {scan.image} has {field} {a} and {b}; correct or remove one")
    return Scan(*(a if b is None else b for a, b in zip(before, scan)))
