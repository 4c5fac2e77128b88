"""Whose slices are these? File names give scans; a table that the user has (--subjects) gives the people.

    table = find_subjects("ADNI.csv", "AD_NC")      # {"218391": Scan("218391", "037_S_4001", "AD", "M", 71.5, "2011-05-03"), ...}
    scans = identify(["AD/218391_78.jpeg", "AD/218391_79.jpeg", "NC/218393_78.jpeg"], table)    # a Scan for each file name
    groups, unit = resampling_groups(scans)         # three times "people 037_S_4001", and "people"

Slices of one person are alike, so a model must not be tested on people that it was trained on, and an interval resamples people.
"""

import functools
import os
import re
import sys

import numpy as np

from data.folders import EXTENSIONS, some_of
from data.subject_tables import Scan, read_subjects, scan_id
from utils import CLASSES, UserError, walk

FOUND_BY_NAME = "meta_data_with_label.json", "participants.tsv", "subjects.csv"  # of ADNI, BIDS, and phantom.py
CLASS_OF = {"AD": "AD", "DEMENTIA": "AD", "CN": "NC", "NC": "NC", "HC": "NC", "CONTROL": "NC", "NORMAL": "NC"}  # of a group
NEITHER = "MCI", "EMCI", "LMCI"  # groups of no class


def slice_index(name):
    """Where a slice lies in its scan, the number after the last underscore: 78 of "AD/218391_78.jpeg"; None in any other name."""
    match = re.search(r"_([0-9]{1,9})\.\w+\Z", name)
    return match and int(match[1])


def image_order(image):
    """A key that sorts the IDs of scans: by number, and sub-9 before sub-10."""
    return len(image), image


def identify(names, table=None):
    """The Scan of each slice, given their file names and what `find_subjects` returned (None: no table, so people are unknown, but
    for BIDS names)."""
    return [look_up(scan_id(name), table or {}) for name in names]


def row_of(image, table):
    """The key in a table of an image ID, or None. A BIDS image sub-01_ses-02_T1w that the table lacks is looked for as
    sub-01_ses-02, then as sub-01."""
    parts = image.split("_")
    return next((known for n in range(len(parts), 0, -1) if (known := "_".join(parts[:n])) in table), None)


def look_up(image, table):
    """The Scan of an image ID, or of None: of its row in the table, else what a BIDS name tells."""
    if row := row_of(image or "", table):
        return table[row]._replace(image=image)
    person = (image or "").split("_")[0]
    return Scan(image, person if person.startswith("sub-") else None)


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


def shared_text(train, held_out):
    """A sentence: how many people, or scans where people are unknown, of the held-out slices' Scans are among `train`'s."""
    text = ""
    for unit, field in (("people", "person"), ("scans", "image")):
        known, tested = ({getattr(scan, field) for scan in scans} - {None} for scans in (train, held_out))
        if shared := len(known & tested):
            return f"{shared} of {len(tested)} {unit} of the test slices are in the training set too: results are too good."
        if not all(scan.person for scan in (*train, *held_out)):
            text = "Whether the people of the test slices are in the training set too is not known; results are too good if so."
    return text or "No person of the test slices is in the training set."


def find_subjects(path, dataset_dir, quiet=False):
    """The table {image: Scan} of `read_subjects` for the slices in `dataset_dir` (or None); None if nothing tells people.

    path: of --subjects; None looks for one of FOUND_BY_NAME in `dataset_dir` and above it, up to the folder above the data set; one
    that cannot be read, or knows none of the slices, is not used. Without a file, BIDS names tell people. What was found, and scans
    whose group contradicts their folder, are named on stderr, unless `quiet`. UserError as of `read_subjects`, for `path`.
    """
    say = (lambda _: None) if quiet else functools.partial(print, file=sys.stderr)
    places = places_of(dataset_dir) if dataset_dir else {}
    found = None if path or not dataset_dir else table_beside(dataset_dir)
    if not (path or found):
        return {image: scan for image in places if (scan := look_up(image, {})).person} or None
    try:
        table = read_subjects(path, quiet) if path else read_subjects(found, quiet, flag="")
    except UserError as error:
        if path:
            raise
        say(f"warning: {error}; so it is not used; --subjects names another table")
        return None
    if places and all(look_up(image, table) == look_up(image, {}) for image in places):
        none = f"none of the {len(places)} scans in {dataset_dir}"
        say(f"warning: --subjects {path} has {none}" if path else f"note: {found} has {none}, so it is not used")
        return table if path else None
    if found:
        people = len({scan.person for scan in table.values()})
        say(f"note: {found} tells whose the slices are ({people} people, {len(table)} scans); --subjects names another table")
    if wrong := contradictions(places, table):
        say(f"warning: {path or found}: scans whose folder contradicts their group ({len(wrong)}): {some_of(wrong)}")
    return table


def table_beside(dataset_dir):
    """The path of a file of FOUND_BY_NAME in `dataset_dir` or a folder above it, up to the one above the data set; None if none.

    dataset_dir: may also be a slice.
    """
    if os.path.isfile(dataset_dir):
        dataset_dir = os.path.dirname(dataset_dir)
    for folder in dict.fromkeys((os.path.abspath(dataset_dir), os.path.realpath(dataset_dir))):
        places, inside = [folder], True  # inside: the data set, of which the first folder may be a split or a class
        while inside:
            inside = os.path.basename(places[-1]).upper() in (*CLASSES, "CN", "TRAIN", "TEST")
            places.append(os.path.dirname(places[-1]))
        for path in (os.path.join(place, name) for place in places for name in FOUND_BY_NAME):
            if os.path.isfile(path):
                return path
    return None


def places_of(dataset_dir):
    """{image: the classes of the folders, as a set, that its slices lie in} of the file names in a folder that may not be there."""
    places, base = {}, os.path.abspath(dataset_dir)
    for folder, names in walk(base) if os.path.isdir(base) else ():
        parts = os.path.relpath(folder, os.path.dirname(base)).upper().split(os.sep)
        classes = [CLASS_OF[part] for part in parts if part in (*CLASSES, "CN")]
        for image in {scan_id(name) for name in names if name.lower().endswith(EXTENSIONS)} - {None}:
            places.setdefault(image, set()).update(classes[-1:])
    return places


def contradictions(places, table):
    """["218391 in AD but of group CN", ...] of {image: classes of its folders} and a table; other groups contradict no folder."""
    found = []
    for image in sorted(places, key=image_order):
        group = look_up(image, table).group or ""
        label = CLASS_OF.get(group.upper())
        if places[image] and (group.upper() in NEITHER or label and places[image] != {label}):
            found.append(f"{image} in {' and '.join(sorted(places[image]))} but of group {group}")
    return found


def count_and_names(names):
    """Text: "12 (a, b and 10 more)", or "0"."""
    return f"{len(names)} ({some_of(names)})" if names else "0"
