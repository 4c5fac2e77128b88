"""A new train/ and test/ that share no person: dataset.py --split_by_subject.

    split_by_subject("AD_NC", "all", "AD_NC_new", "ADNI.csv", test_share=0.3, seed=0)

All slices of a person go to the same side, so that what is measured on test/ is measured on other people. Slices of scans that
the table lacks go to neither.
"""

import csv
import filecmp
import os
import shutil
from collections import Counter
from typing import NamedTuple

import numpy as np

from analysis.dataset_report import count_and_names
from analysis.subjects import Scan, find_subjects, identify, image_order
from dataset import class_folders, find_slices, find_splits
from utils import UserError, atomic_path, make_folder

SPLITS = "train", "test"


class File(NamedTuple):
    """A slice of the old data set."""

    path: str
    name: str  # such as "AD/218391_78.jpeg", where it will be below the new train/ or test/
    scan: Scan

    @property
    def label(self):
        """Its class."""
        return self.name.split("/")[0]


def split_by_subject(dataset_dir, classes, output_dir, subjects, test_share=0.3, seed=0):
    """Link the slices of all splits of `dataset_dir` into `output_dir`/{train,test}/{AD,NC}; write split.csv; print who is where.

    classes: "all", "AD" or "NC". About `test_share` of the people in the table `subjects` go to test/, drawn with `seed` by
    `draw_test`. Files are hard links, or copies where the file system has none; whatever stops it, none is left. split.csv has a
    row for each scan, and can be given as --subjects. UserError: `output_dir` is not empty; the table has no one of the data set;
    too few people for both sides; two different files of one name.
    """
    table = find_subjects(subjects, dataset_dir)
    if table is None:
        raise UserError("--split_by_subject also needs --subjects CSV: file names give scans, not people")
    if os.path.isdir(output_dir) and os.listdir(output_dir):
        raise UserError(f"--split_by_subject {output_dir}: not empty and left as it is; choose a new folder")
    files = list_files(dataset_dir, classes, table)
    known = [file for file in files if file.scan.person]
    if not known:
        scans = len({file.scan.image for file in files})
        raise UserError(f"--subjects {subjects or '(found by itself)'}: has none of the {scans} scans in {dataset_dir}")
    test = draw_test(strata_of(known), test_share, seed)
    split_of = {file.name: SPLITS[file.scan.person in test] for file in known}
    for label in sorted({file.label for file in known}):
        people = {file.scan.person for file in known if file.label == label}
        for split, there in zip(SPLITS, (people - test, people & test)):
            if not there:
                raise UserError(
                    f"--test_share {test_share:g}: no one of {len(people)} people of class {label} would be in {split}/"
                )
    make_folder(output_dir, "--split_by_subject")
    try:
        for file in known:
            link(file.path, os.path.join(output_dir, split_of[file.name], file.name))
        write_table(os.path.join(output_dir, "split.csv"), known, split_of)
    except BaseException:
        for split in SPLITS:
            shutil.rmtree(os.path.join(output_dir, split), ignore_errors=True)
        raise
    print_split(output_dir, files, split_of)


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


def link(source, target):
    """Make `target` a hard link to the file `source`, or a copy where that is impossible, such as on another disk."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copy2(source, target)


def write_table(path, files, split_of):
    """Write a row for each scan of `files` and class: what is known of it, its split, and its number of slices."""
    slices = Counter((file.scan, split_of[file.name], file.label) for file in files)
    rows = sorted(slices, key=lambda row: (row[1], row[2], row[0].person, image_order(row[0].image)))
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "subject", "group", "sex", "age", "date", "split", "class", "slices"])
        table.writerows([*row[0], row[1], row[2], slices[row]] for row in rows)


def print_split(output_dir, files, split_of):
    """Print the people, scans and slices of each split and class, and what was left out."""
    strata = strata_of([file for file in files if file.name in split_of])
    for split in SPLITS:
        for label in sorted({file.label for file in files if file.name in split_of}):
            there = [file for file in files if split_of.get(file.name) == split and file.label == label]
            people = {file.scan.person for file in there}
            terciles = [sum(strata[person][2] == i for person in people) for i in range(3)]
            sexes = Counter(strata[person][1] or "sex unknown" for person in people)
            details = [f"{count} {sex}" for sex, count in sorted(sexes.items())]
            details += [f"age terciles {'/'.join(map(str, terciles))}"] if any(terciles) else []
            scans = len({file.scan.image for file in there})
            print(f"{split} {label}: {len(people)} people ({', '.join(details)}), {scans} scans, {len(there)} slices")
    left_out = [file for file in files if file.name not in split_of]
    strangers = {file.scan.image for file in left_out if file.scan.image}
    print(f"left out: {len(left_out)} slices; scans that --subjects lacks: {count_and_names(sorted(strangers, key=image_order))}")
    print(os.path.join(output_dir, "split.csv"))
