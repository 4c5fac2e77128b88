"""Splitting a data set so that train/ and test/ share no person, and matching the classes in each."""

import csv
import filecmp
import os
import shutil
from collections import Counter
from typing import NamedTuple

import numpy as np

from data.folders import class_folders, find_slices, find_splits
from data.subjects import Scan, identify, image_order, slice_index
from utils import CLASSES, UserError, atomic_path

SPLITS = "train", "test"


class File(NamedTuple):
    """A slice of a data set."""

    path: str
    name: str  # below train/ or test/, such as "AD/218391_78.jpeg"
    scan: Scan
    split: str = ""  # of SPLITS

    @property
    def label(self):
        """Its class."""
        return self.name.split("/")[0]


def list_files(dataset_dir, classes, table):
    """The Files of all splits; one that is in two of them counts once. UserError if two of one name differ."""
    files = {}
    for split_dir in find_splits(dataset_dir, classes).values():
        for label, folder in class_folders(split_dir, classes).items():
            names = [name for name, *_ in find_slices(folder)]
            for name, scan in zip(names, identify(names, table)):
                file = File(os.path.join(folder, name), f"{label}/{name}", scan)
                other = files.setdefault(file.name, file)
                if other != file and not filecmp.cmp(other.path, file.path, shallow=False):
                    raise UserError(f"--dataset_dir: {other.path} and {file.path} have one name but differ; rename one of them")
    return list(files.values())


def strata_of(files):
    """{person: (class, sex, tercile of the age at the first scan)}; "" and -1 where unknown, "AD NC" for one with scans of both."""
    labels, sex, age = {}, {}, {}
    for file in files:
        person = file.scan.person
        labels.setdefault(person, set()).add(file.label)
        sex[person] = sex.get(person) or file.scan.sex or ""
        if file.scan.age is not None:
            age[person] = min(file.scan.age, age.get(person, np.inf))
    limits = np.quantile(list(age.values()), (1 / 3, 2 / 3)) if age else []
    tercile = {person: int(np.searchsorted(limits, years)) for person, years in age.items()}
    return {person: (" ".join(sorted(labels[person])), sex[person], tercile.get(person, -1)) for person in labels}


def draw_test(strata, share, seed=0):
    """The people who go to test/, a set, of {person: stratum}: systematic sampling (Cochran 1977, chapter 8).

    People are sorted by stratum, in random order within one, and taken at even steps from a random start: of any n who follow each
    other, so of a class, a sex in it and an age tercile in that, n * share go to test/, rounded up or down.
    """
    rng = np.random.default_rng(seed)
    people = np.array(sorted(strata), object)[rng.permutation(len(strata))]
    steps = np.floor(rng.random() + share * np.arange(len(people) + 1))
    return {person for person, taken in zip(sorted(people, key=strata.get), np.diff(steps)) if taken}


def match_classes(files, strata, match, seed=0):
    """Those of the Files of both splits that make as many AD as NC slices of each split in every cell of equal values of `match`.

    match: some of "position" (the slice index), "age" (the tercile in `strata` of `strata_of`) and "sex"; slices of which one is
    unknown are left out. Of the class that has more slices in a cell some are drawn, with `seed`, from as many people as there
    are. UserError if a value is unknown of all, or a split would lack a class.
    """
    cells, unknown = {}, Counter()  # {(split, index, ...): {class: [File]}}
    for file in files:
        _, sex, tercile = strata[file.scan.person]
        values = {"position": slice_index(file.name), "age": tercile, "sex": sex}
        missing = [name for name in match if values[name] in (None, -1, "")]
        unknown.update(missing)
        if not missing:
            cell = file.split, *(values[name] for name in match)
            cells.setdefault(cell, {name: [] for name in CLASSES})[file.label].append(file)
    for name, count in unknown.items():
        if count == len(files):
            source = "file names do not give it (218391_78.jpeg is slice 78)" if name == "position" else "--subjects lacks it"
            raise UserError(f"--match {name}: unknown of all {count} slices: {source}")
        if name != "position":  # of which `print_position` tells
            print(f"{name} unknown: of {count} of {len(files)} slices, left out")
    rng, kept = np.random.default_rng(seed), set()
    for cell in cells.values():
        count = min(map(len, cell.values()))
        for available in cell.values():
            kept |= {file.name for file in draw_over_people(available, count, rng)}
    files = [file for file in files if file.name in kept]
    for split in SPLITS:
        if not any(file.split == split for file in files):
            raise UserError(f"--match {','.join(match)}: no AD slice in {split}/ has an NC slice that is equal; match by fewer")
    return files


def differences(files):
    """{(split, "position", "age" or "sex"): (mean of AD, mean of NC, standardised difference)} of the Files of both classes.

    Over slices of which the value is known: the slice index, years, and the share of women. The difference AD - NC is divided by
    the root of the mean of both variances (Austin 2009, https://doi.org/10.1002/sim.3697): below 0.1, classes count as balanced.
    A value unknown of a class is left out; nan where neither class varies.
    """
    values = {}
    for file in files:
        of_file = slice_index(file.name), file.scan.age, {"F": 1, "M": 0}.get(file.scan.sex or "")
        for name, value in zip(("position", "age", "sex"), of_file):
            if value is not None:
                values.setdefault((file.split, name), {label: [] for label in CLASSES})[file.label].append(value)
    found = {}
    for key, (ad, nc) in ((key, of_class.values()) for key, of_class in values.items()):
        if ad and nc:
            spread = float(np.sqrt((np.var(ad) + np.var(nc)) / 2))
            means = float(np.mean(ad)), float(np.mean(nc))
            found[key] = *means, (means[0] - means[1]) / spread if spread else float("nan")
    return found


def draw_over_people(files, count, rng):
    """`count` of the files, drawn so that nobody has two more than another who has some left."""
    drawn, ranks, order = [files[i] for i in rng.permutation(len(files))], Counter(), []
    for file in drawn:
        order.append(ranks[file.scan.person])  # how many of the person's files are before
        ranks[file.scan.person] += 1
    return [drawn[i] for i in np.argsort(order, kind="stable")[:count]]


def link(source, target):
    """Make `target` a hard link to the file `source`, or a copy where that is impossible, such as on another disk."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copy2(source, target)


def write_table(path, files):
    """Write a row for each scan of the Files, split and class: what is known of it, and its number of slices."""
    slices = Counter((file.scan, file.split, file.label) for file in files)
    rows = sorted(slices, key=lambda row: (row[1], row[2], row[0].person, image_order(row[0].image)))
    header = "image", "subject", "group", "sex", "age", "date", "split", "class", "slices"
    write_csv(path, header, [[*row[0], row[1], row[2], slices[row]] for row in rows])


def write_csv(path, header, rows):
    """Write a table; another process only ever sees a whole one."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
