"""A new train/ and test/ that share no person: dataset.py --split_by_subject.

    split_by_subject("AD_NC", "all", "AD_NC_new", "ADNI.csv", test_share=0.3, seed=0)

All slices of a person go to the same side, so that what is measured on test/ is measured on other people. Slices of scans that
the table lacks, or that are damaged (damage.py), go to neither. With match=("position", "age") train/ and test/ each have as many
AD as NC slices of every slice index and tercile of ages, so that neither tells the classes apart (position.py).
"""

import csv
import filecmp
import os
import shutil
from collections import Counter
from typing import NamedTuple

import numpy as np

from analysis.damage import SIDE as DAMAGE_SIDE
from analysis.damage import damaged_text, find_damaged, scans_of
from analysis.dataset_report import count_and_names
from analysis.position import index_auc, slice_indices, unknown_text
from analysis.subjects import Scan, find_subjects, identify, image_order, slice_index
from dataset import Slices, class_folders, find_slices, find_splits
from utils import CLASSES, UserError, atomic_path, make_folder

SPLITS = "train", "test"
CELLS = {"position": "slice index", "age": "age tercile", "sex": "sex"}  # what --match compares slices within


class File(NamedTuple):
    """A slice of the old data set."""

    path: str
    name: str  # such as "AD/218391_78.jpeg", where it will be below the new train/ or test/
    scan: Scan

    @property
    def label(self):
        """Its class."""
        return self.name.split("/")[0]


def split_by_subject(dataset_dir, classes, output_dir, subjects, test_share=0.3, seed=0, match=()):
    """Link the slices of all splits of `dataset_dir` into `output_dir`/{train,test}/{AD,NC}; write split.csv; print who is where.

    classes: "all", "AD" or "NC". About `test_share` of the people in the table `subjects` go to test/, drawn with `seed` by
    `draw_test`; match: what `match_classes` makes equal. Files are hard links, or copies where the file system has none; whatever
    stops it, none is left. split.csv has a row for each scan, and can be given as --subjects. UserError: `output_dir` is not
    empty; the table has no one of the data set; too few people for both sides; nothing that matches; two different files of one
    name.
    """
    table = find_subjects(subjects, dataset_dir)
    if table is None:
        raise UserError("--split_by_subject also needs --subjects CSV: file names give scans, not people")
    if os.path.isdir(output_dir) and os.listdir(output_dir):
        raise UserError(f"--split_by_subject {output_dir}: not empty and left as it is; choose a new folder")
    files = list_files(dataset_dir, classes, table)
    damaged = damaged_scans(dataset_dir, classes)
    known = [file for file in files if file.scan.person and file.scan.image not in damaged]
    if not known:
        scans = len({file.scan.image for file in files})
        raise UserError(f"--subjects {subjects or '(found by itself)'}: has none of the {scans} scans in {dataset_dir}")
    strata = strata_of(known)
    test = draw_test(strata, test_share, seed)
    split_of = {file.name: SPLITS[file.scan.person in test] for file in known}
    for label in sorted({file.label for file in known}):
        people = {file.scan.person for file in known if file.label == label}
        for split, there in zip(SPLITS, (people - test, people & test)):
            if not there:
                raise UserError(
                    f"--test_share {test_share:g}: no one of {len(people)} people of class {label} would be in {split}/"
                )
    kept = match_classes(known, strata, split_of, match, seed) if match else known
    make_folder(output_dir, "--split_by_subject")
    try:
        for file in kept:
            link(file.path, os.path.join(output_dir, split_of[file.name], file.name))
        write_table(os.path.join(output_dir, "split.csv"), kept, split_of)
    except BaseException:
        for split in SPLITS:
            shutil.rmtree(os.path.join(output_dir, split), ignore_errors=True)
        raise
    print_split([file for file in files if file.scan.image not in damaged], kept, split_of, strata)
    if damaged:
        print(f"left out: {damaged_text(damaged)}")
    print_position(known, kept, split_of, match)
    print(os.path.join(output_dir, "split.csv"))


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


def damaged_scans(dataset_dir, classes):
    """{scan: reason} of the damaged scans among the slices of all splits together, by `damage.find_damaged`."""
    splits = [Slices(folder, classes, DAMAGE_SIDE) for folder in find_splits(dataset_dir, classes).values()]
    pixels = np.concatenate([slices[np.arange(len(slices))] for slices in splits])
    return find_damaged(pixels, scans_of([name for slices in splits for name in slices.names]))


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


def match_classes(files, strata, split_of, match, seed=0):
    """Those of `files` that make as many AD as NC slices of each split {file name: split} in every cell of equal values of `match`.

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
            cell = split_of[file.name], *(values[name] for name in match)
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
        for of_class in cell.values():
            kept |= {file.name for file in draw_over_people(of_class, count, rng)}
    for split in SPLITS:
        if not any(split_of[name] == split for name in kept):
            raise UserError(f"--match {','.join(match)}: no AD slice in {split}/ has an NC slice that is equal; match by fewer")
    return [file for file in files if file.name in kept]


def draw_over_people(files, count, rng):
    """`count` of the files, drawn so that nobody has two more than another who has some left."""
    drawn, ranks = [files[i] for i in rng.permutation(len(files))], Counter()
    order = []  # how many of a person's files are before each
    for file in drawn:
        order.append(ranks[file.scan.person])
        ranks[file.scan.person] += 1
    return [drawn[i] for i in np.argsort(order, kind="stable")[:count]]


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


def print_split(files, kept, split_of, strata):
    """Print the people, scans and slices of each split and class, and what the table lacks."""
    for split in SPLITS:
        for label in sorted({file.label for file in kept}):
            there = [file for file in kept if split_of[file.name] == split and file.label == label]
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


def print_position(known, kept, split_of, match):
    """Print what `match_classes` left out, and what the slice index alone tells of AD in test/ before and after."""
    if match:
        lost = Counter(file.label for file in known)
        lost.subtract(file.label for file in kept)
        print(
            f"matched by {', '.join(match)}: {len(known) - len(kept)} of {len(known)} slices are left out ({lost['AD']} AD, "
            f"{lost['NC']} NC), so that train and test have as many AD as NC slices of each {', '.join(map(CELLS.get, match))}"
        )
    if unknown := unknown_text([file.name for file in known]):
        print(unknown + (", left out" if "position" in match else ""))
    before, after = index_interval(known, split_of), index_interval(kept, split_of)
    if before or after:
        matched = f", {after or 'too few people'} after matching" if match else "; --match position would hold it"
        print(f"slice index alone, AUC of AD against NC in test by a rule fitted to train: {before or 'too few people'}{matched}")


def index_interval(files, split_of):
    """`index_auc` of the files in test/ by a rule fitted to those in train/."""
    of_train = np.array([split_of[file.name] == "train" for file in files])
    indices, positive = slice_indices([file.name for file in files]), np.array([file.label == "AD" for file in files])
    people = np.array([file.scan.person for file in files])
    return index_auc(indices[~of_train], positive[~of_train], people[~of_train], (indices[of_train], positive[of_train]))
