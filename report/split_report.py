"""A new train/ and test/ that share no person: dataset.py --split_by_subject.

    split_by_subject("AD_NC", "all", "AD_NC_new", "ADNI.csv", test_share=0.3, seed=0)

All slices of a person go to the same side, so that what is measured on test/ is measured on other people. Slices of scans that
the table lacks, or that are damaged (data/damage.py), go to neither. With match=("position", "age") train/ and test/ each have as
many AD as NC slices of every slice index and tercile of ages, so that neither tells the classes apart (analysis/position.py);
matching.csv says what it costs and what is left of the differences.
"""

import os
import shutil
from collections import Counter

import numpy as np

from analysis.position import index_auc, slice_indices, unknown_text
from data.damage import SIDE as DAMAGE_SIDE
from data.damage import damaged_text, find_damaged, scans_of
from data.folders import find_splits
from data.split import SPLITS, differences, draw_test, link, list_files, match_classes, strata_of, write_csv, write_table
from data.subjects import count_and_names, find_subjects, image_order
from dataset import Slices
from utils import CLASSES, UserError, make_folder

CELLS = {"position": "slice index", "age": "age tercile", "sex": "sex"}  # what --match compares slices within
MEANS = {"position": "slice index", "age": "years", "sex": "share of women"}  # of `differences`


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
    splits = [Slices(folder, classes, DAMAGE_SIDE) for folder in find_splits(dataset_dir, classes).values()]
    pixels = np.concatenate([slices[np.arange(len(slices))] for slices in splits])
    damaged = find_damaged(pixels, scans_of([name for slices in splits for name in slices.names]))
    files = list_files(dataset_dir, classes, table)
    sound = [file for file in files if file.scan.image not in damaged]
    known = [file for file in sound if file.scan.person]
    if not known:
        scans = len({file.scan.image for file in files})
        raise UserError(f"--subjects {subjects or '(found by itself)'}: has none of the {scans} scans in {dataset_dir}")
    strata = strata_of(known)
    test = draw_test(strata, test_share, seed)
    known = [file._replace(split=SPLITS[file.scan.person in test]) for file in known]
    for label in sorted({file.label for file in known}):
        people = {file.scan.person for file in known if file.label == label}
        for split, there in zip(SPLITS, (people - test, people & test)):
            if not there:
                text = f"no one of {len(people)} people of class {label} would be in {split}/"
                raise UserError(f"--test_share {test_share:g}: {text}")
    kept = match_classes(known, strata, match, seed) if match else known
    make_folder(output_dir, "--split_by_subject")
    try:
        for file in kept:
            link(file.path, os.path.join(output_dir, file.split, file.name))
        write_table(os.path.join(output_dir, "split.csv"), kept)
        if match:
            write_matching(os.path.join(output_dir, "matching.csv"), known, kept)
    except BaseException:
        for split in SPLITS:
            shutil.rmtree(os.path.join(output_dir, split), ignore_errors=True)
        raise
    print_split(kept, strata)
    unmatched = sorted({file.scan.image for file in sound if file.scan.image and not file.scan.person}, key=image_order)
    print(f"left out: {len(sound) - len(known)} slices; scans that --subjects lacks: {count_and_names(unmatched)}")
    if damaged:
        print(f"left out: {damaged_text(damaged)}")
    if match:
        print_matching(known, kept, match)
    print_position(known, kept, match)
    print(os.path.join(output_dir, "split.csv"))


def print_split(files, strata):
    """Print the people, scans and slices of each split and class."""
    for split in SPLITS:
        for label in sorted({file.label for file in files}):
            there = [file for file in files if (file.split, file.label) == (split, label)]
            people = {file.scan.person for file in there}
            terciles = [sum(strata[person][2] == i for person in people) for i in range(3)]
            sexes = Counter(strata[person][1] or "sex unknown" for person in people)
            details = [f"{count} {sex}" for sex, count in sorted(sexes.items())]
            details += [f"age terciles {'/'.join(map(str, terciles))}"] if any(terciles) else []
            scans = len({file.scan.image for file in there})
            print(f"{split} {label}: {len(people)} people ({', '.join(details)}), {scans} scans, {len(there)} slices")


def people_of(files, label):
    """The people with slices of a class among Files, a set."""
    return {file.scan.person for file in files if file.label == label}


def print_matching(known, kept, match):
    """Print how many slices and people `match_classes` left out, and the differences of the classes before and after."""
    lost = Counter(file.label for file in known)
    lost.subtract(file.label for file in kept)
    people = {label: (people_of(known, label), people_of(kept, label)) for label in CLASSES}
    costs = " and ".join(f"{len(before - after)} of {len(before)} {label}" for label, (before, after) in people.items())
    print(
        f"matched by {', '.join(match)}: {len(known) - len(kept)} of {len(known)} slices are left out ({lost['AD']} AD, "
        f"{lost['NC']} NC), and with them {costs} people, "
        f"so that train and test have as many AD as NC slices of each {', '.join(map(CELLS.get, match))}"
    )
    states = differences(known), differences(kept)
    for split, name in ((split, name) for split in SPLITS for name in MEANS):
        found = [state[split, name] for state in states if (split, name) in state]
        if len(found) == len(states):
            before, after = (f"{ad - nc:+.2f} ({standardised:+.2f} SD)" for ad, nc, standardised in found)
            print(f"{split}: AD - NC in {MEANS[name]}: {before} before, {after} after matching")


def write_matching(path, known, kept):
    """Write matching.csv: people and `differences` of each split, before and after `match_classes`."""
    rows = []
    for state, files in (("before", known), ("after", kept)):
        for (split, name), found in sorted(differences(files).items()):
            people = [len(people_of([file for file in files if file.split == split], label)) for label in CLASSES]
            rows.append((split, state, name, *people, *(f"{value:.4f}" for value in found)))
    write_csv(path, ("split", "matching", "value", "AD people", "NC people", "AD mean", "NC mean", "standardised difference"), rows)


def print_position(known, kept, match):
    """Print what the slice index alone tells of AD in test/ before and after."""
    if unknown := unknown_text([file.name for file in known]):
        print(unknown + (", left out" if "position" in match else ""))
    before, after = (index_interval(files) for files in (known, kept))
    if before or after:
        matched = f", {after or 'too few people'} after matching" if match else "; --match position would hold it"
        print(f"slice index alone, AUC of AD against NC in test by a rule fitted to train: {before or 'too few people'}{matched}")


def index_interval(files):
    """`index_auc` of the files in test/ by a rule fitted to those in train/."""
    of_train = np.array([file.split == "train" for file in files])
    indices, positive = slice_indices([file.name for file in files]), np.array([file.label == "AD" for file in files])
    people = np.array([file.scan.person for file in files])
    return index_auc(indices[~of_train], positive[~of_train], people[~of_train], (indices[of_train], positive[of_train]))
