"""The report of dataset.py: counts, sizes, damaged files, people and their scans, and what train and test share.

report("AD_NC", classes="all", resolution=256, output_dir="dataset_report")
"""

import hashlib
import os
from collections import Counter
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from analysis.subjects import contradictions, find_subjects, identify, image_order, look_up
from data.checks import check_brightness, warn_of_kinds
from data.decode import Light, decode, light_of, read_files
from dataset import class_folders, find_slices, find_splits, require_readable, some_of
from utils import UserError, atomic_path, make_folder

SAMPLES = 8  # slices of each class in samples.png


class FileFacts(NamedTuple):
    """The properties of one file that the report is about."""

    mode: str  # PIL's
    size: tuple  # width, height
    light: Light
    digest: bytes  # SHA-256 of the grey pixels: the same for the same image in any file format


def inspect(_, image, grey):
    """The FileFacts of an image, as `decode.read_files` gives it."""
    digest = hashlib.sha256(repr(image.size).encode() + grey.tobytes()).digest()
    return FileFacts(image.mode, image.size, light_of(np.asarray(grey)), digest)


def report(dataset_dir, classes, resolution, output_dir, num_workers=None, subjects=None):
    """Print a report on every split of `dataset_dir` and on what they share; write `output_dir`/samples.png.

    classes: "all", "AD" or "NC"; resolution: of the samples; num_workers: decoding threads (None: one per core, up to 16);
    subjects: path of a table for `read_subjects`. UserError if a folder is missing, or a class has no readable slice or is nearly
    black.
    """
    table = find_subjects(subjects, dataset_dir)
    splits = find_splits(dataset_dir, classes)
    make_folder(output_dir, "--output_dir")
    samples_path, facts_of = os.path.join(output_dir, "samples.png"), {}
    for split, split_folder in splits.items():
        facts, unreadable, samples, counts = {}, [], {}, {}  # facts: {"AD/file name": FileFacts} of the readable files
        status, levels = {}, {}
        for name, folder in class_folders(split_folder, classes).items():
            files = [file for file, *_ in find_slices(folder)]
            paths = [os.path.join(folder, file) for file in files]
            results, status[name], levels[name] = read_files(paths, inspect, num_workers, f"reading {split}/{name}")
            readable = [file for file, result in zip(files, results) if result]
            require_readable(dataset_dir, folder, status[name], files)
            unreadable += [f"{name}/{file}" for file, result in zip(files, results) if not result]
            facts |= {f"{name}/{file}": result for file, result in zip(files, results) if result}
            counts[name] = len(readable)
            shown = np.linspace(0, len(readable) - 1, min(SAMPLES, len(readable))).astype(int)
            samples[name] = [os.path.join(folder, readable[i]) for i in shown]
        if not facts_of:  # of the first split
            save_samples(samples_path, samples, resolution, levels)
        facts_of[split] = facts
        print(f"{split}: {' + '.join(f'{n} {name}' for name, n in counts.items())} slices in {split_folder}")
        print_facts(facts.values(), unreadable)
        warn_of_kinds(split_folder, status, levels)
        of_class = {name: [fact.light for file, fact in facts.items() if file.startswith(f"{name}/")] for name in counts}
        check_brightness(split_folder, of_class)
    if len(facts_of) == 2:
        compare_pictures(**facts_of)
    else:
        print(f"only {' '.join(facts_of)} is here, so what train and test share cannot be told")
    scans_of = {split: dict(zip(facts, identify(facts, table))) for split, facts in facts_of.items()}
    print_scans(scans_of)
    if table:
        print_people(scans_of, table)
    else:
        print("people: unknown, since a file name gives a scan and not whose it is; --subjects CSV would tell")
    print(f"samples: {samples_path}")


def print_facts(facts, unreadable):
    """Print what a split's files have in common: its FileFacts, and the names of the unreadable files."""
    print(f"  width x height: {tally(f'{fact.size[0]} x {fact.size[1]}' for fact in facts)}")
    print(f"  modes: {tally(fact.mode for fact in facts)}")
    print(f"  unreadable: {count_and_names(unreadable)}")
    print(f"  pictures that are there more than once: {len(facts) - len({fact.digest for fact in facts})}")


def compare_pictures(train, test):
    """Print the images that two splits {file name: FileFacts} have in common."""
    train_files = {fact.digest: file for file, fact in train.items()}
    shared = [f"test/{file} = train/{train_files[fact.digest]}" for file, fact in test.items() if fact.digest in train_files]
    print(f"test slices whose picture is in train too, pixel for pixel: {count_and_names(shared)}")


def print_scans(scans_of):
    """Print the number of scans of each split {split: {file name: Scan}}, and which two splits share."""
    images = [{scan.image for scan in scans.values() if scan.image} for scans in scans_of.values()]
    text = ", ".join(f"{len(of_split)} in {split}" for split, of_split in zip(scans_of, images))
    shared = f", in both {count_and_names(sorted(set.intersection(*images), key=image_order))}" if len(images) > 1 else ""
    print(f"scans: {text}{shared}")
    nameless = [f"{split}/{file}" for split, scans in scans_of.items() for file, scan in scans.items() if not scan.image]
    if nameless:
        print(f"  file names that give no scan (218391_78.jpeg is slice 78 of scan 218391): {count_and_names(nameless)}")


def print_people(scans_of, table):
    """Print who is in the splits {split: {file name: Scan}}, and what is wrong with them, by the `table` of `read_subjects`."""
    people, places, repeats = {}, {}, {}  # {split: names}, {image: {class of its folder}}, {(person, date): images}
    print("people:")
    for split, scans in scans_of.items():
        for name in sorted({file.split("/")[0] for file in scans}):
            known = [scan for file, scan in scans.items() if file.startswith(f"{name}/") and scan.person]
            who, images = {scan.person for scan in known}, {scan.image for scan in known}
            print(f"  {split} {name}: {len(who)} people, {len(images)} scans, {len(known)} slices")
            people[split] = people.get(split, set()) | who
            for image in images:
                places.setdefault(image, set()).add(name)
    if len(people) > 1:
        print(f"  in both train and test: {count_and_names(sorted(people['train'] & people['test']))}")
    strangers = {scan.image for scans in scans_of.values() for scan in scans.values() if scan.image and not scan.person}
    print(f"  scans that --subjects lacks: {count_and_names(sorted(strangers, key=image_order))}")
    for image in sorted(places, key=image_order):
        scan = look_up(image, table)
        if scan.date:
            repeats.setdefault((scan.person, scan.date), []).append(image)
    print(f"  scans whose folder contradicts their group: {count_and_names(contradictions(places, table))}")
    same_day = [f"{' '.join(images)} of {person} on {date}" for (person, date), images in repeats.items() if len(images) > 1]
    print(f"  people scanned more than once on one day: {count_and_names(same_day)}")


def count_and_names(names):
    """Text: "12 (a, b and 10 more)", or "0"."""
    return f"{len(names)}" + (f" ({some_of(names)})" if names else "")


def tally(values):
    """Text that counts equal values, most common first: "3605 of L, 2 of RGB"."""
    return ", ".join(f"{count} of {value}" for value, count in Counter(values).most_common())


def save_samples(path, samples, resolution, levels):
    """Draw the slices in `samples`, {class: [path]}, as training sees them, a row per class; levels: {class: those of `Files`}."""
    columns = max(len(paths) for paths in samples.values())
    figure = Figure(figsize=(1.5 * columns + 0.5, 1.5 * len(samples)), facecolor="black", layout="constrained")
    axes = figure.subplots(len(samples), columns, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], facecolor="black")
        axis.spines[:].set_visible(False)
    for row, (name, paths) in zip(axes, samples.items()):
        row[0].set_ylabel(name, color="white", fontsize=14)
        for axis, slice_path in zip(row, paths):
            axis.imshow(decode(slice_path, resolution, levels[name]), cmap="gray", vmin=0, vmax=255)
    try:
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=200)
    except OSError as error:
        raise UserError(f"--output_dir: cannot write {path} ({error.strerror})") from None
