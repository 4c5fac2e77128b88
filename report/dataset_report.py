"""The report of dataset.py: counts, sizes, damage, view, people and their scans, positions, and what train and test share.

report("AD_NC", classes="all", resolution=256, output_dir="dataset_report")
"""

import contextlib
import hashlib
import itertools
import os
import textwrap
from collections import Counter
from typing import NamedTuple

import numpy as np

from analysis.position import index_auc, slice_indices, unknown_text, windows
from data.checks import check_brightness, warn, warn_of_kinds
from data.damage import find_damaged, scans_of, touches_upper_edge
from data.decode import Light, decode, light_of, pad_and_resize, read_files
from data.folders import class_folders, find_slices, find_splits, require_readable, some_of
from data.subjects import contradictions, count_and_names, find_subjects, identify, image_order, resampling_groups
from data.view import find_view
from dataset import spread
from report.figures import save_image_table
from utils import make_folder, printable

SAMPLES = 8  # slices of each class in samples.png, and scans that are listed by name or shown in damaged.png
EXAMINED = 64  # pixels a side at which view and damage are looked for
REMEDY = "dataset.py --split_by_subject OUT makes a split that shares nobody"


class FileFacts(NamedTuple):
    """The properties of one file that the report is about."""

    mode: str  # PIL's
    size: tuple  # width, height
    light: Light
    digest: bytes  # SHA-256 of the grey pixels: the same for the same image in any file format
    at_top: bool  # whether the head touches the upper edge
    pixels: np.ndarray  # uint8 [64, 64], the slice reduced


class Split(NamedTuple):
    """What was read of a split."""

    folder: str
    folders: dict  # {class: its folder}
    facts: dict  # {"AD/file name": FileFacts} of the readable files
    unreadable: list  # the names of the others
    status: dict  # {class: those of `decode.Files`}
    levels: dict  # likewise

    def of(self, name):
        """{path: FileFacts} of the readable files of a class."""
        return {file: fact for file, fact in self.facts.items() if file.startswith(f"{name}/")}


def inspect(_, image, grey):
    """The FileFacts of an image, as `decode.read_files` gives it."""
    digest, pixels = hashlib.sha256(repr(image.size).encode() + grey.tobytes()).digest(), np.asarray(grey)
    reduced = np.asarray(pad_and_resize(grey, EXAMINED))
    return FileFacts(image.mode, image.size, light_of(pixels), digest, touches_upper_edge(pixels), reduced)


def read_split(split, folder, classes, num_workers):
    """The Split in a folder; UserError if a class is missing or has no readable slice."""
    found = Split(folder, class_folders(folder, classes), {}, [], {}, {})
    for name, class_folder in found.folders.items():
        files = [file for file, *_ in find_slices(class_folder)]
        paths = [os.path.join(class_folder, file) for file in files]
        results, found.status[name], found.levels[name] = read_files(paths, inspect, num_workers, f"reading {split}/{name}")
        require_readable(class_folder, found.status[name], files)
        found.facts.update({f"{name}/{file}": fact for file, fact in zip(files, results) if fact})
        found.unreadable.extend(f"{name}/{file}" for file, fact in zip(files, results) if not fact)
    return found


def report(dataset_dir, classes, resolution, output_dir, num_workers=None, subjects=None):
    """Print a report on every split of `dataset_dir` and on what they share; write samples.png and, if scans are damaged,
    damaged.png into `output_dir`.

    classes: "all", "AD" or "NC"; resolution: of the samples; num_workers: decoding threads (None: one per core, up to 16);
    subjects: path of a table for `read_subjects`. UserError if a folder is missing, or a class has no readable slice or is nearly
    black.
    """
    table, folders = find_subjects(subjects, dataset_dir), find_splits(dataset_dir, classes)
    make_folder(output_dir, "--output_dir")
    samples_path, damaged_path = (os.path.join(output_dir, name) for name in ("samples.png", "damaged.png"))
    splits, damaged = {}, []
    for split, folder in folders.items():
        splits[split] = found = read_split(split, folder, classes, num_workers)
        if len(splits) == 1:
            save_samples(samples_path, found, resolution)
        damaged += print_split(split, found)
    scans_in = {split: dict(zip(found.facts, identify(found.facts, table))) for split, found in splits.items()}
    print_shared(dataset_dir, splits, scans_in)
    if table:
        print_people(scans_in, table)
    else:
        print("people: unknown, since a file name gives a scan and not whose it is; --subjects CSV would tell")
    print_positions(scans_in)
    print(f"samples: {samples_path}")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(damaged_path)  # of an earlier report
    if damaged:
        captions, cells = zip(*damaged[:SAMPLES])
        save_image_table(cells, damaged_path, captions, ["as it is", "full contrast", "not damaged"])
        kept = "train.py leaves them out; --keep_damaged True keeps them"
        print(f"damaged scans, each beside one that is not: {damaged_path} ({kept})")


def print_split(split, found):
    """Print what there is in a Split and what is doubtful in it; returns `rows_to_draw` of its damaged scans."""
    counts, facts = [f"{len(found.of(name))} {name}" for name in found.folders], list(found.facts.values())
    print(f"{split}: {' + '.join(counts)} slices in {found.folder}")
    sizes, modes = tally(f"{fact.size[0]} x {fact.size[1]}" for fact in facts), tally(fact.mode for fact in facts)
    print(f"  width x height: {sizes}; modes: {modes}")
    repeated = len(facts) - len({fact.digest for fact in facts})
    print(f"  unreadable: {count_and_names(found.unreadable)}; pictures that are there more than once: {repeated}")
    pixels, scans = np.stack([fact.pixels for fact in facts]), scans_of(found.facts)
    print(f"  view: {find_view(pixels)}")
    reasons, slices = find_damaged(pixels, scans), Counter(scans)
    at_top = Counter(scan for fact, scan in zip(facts, scans) if fact.at_top and scan not in reasons)
    touching = {scan: f"in {count} of {slices[scan]} slices; perhaps cut off there" for scan, count in at_top.items()}
    for title, notes in ("damaged scans", reasons), ("scans whose head touches the upper edge", touching):
        print(f"  {title}: {len(notes)}")
        for scan, note in list(notes.items())[:SAMPLES]:
            print(f"    {printable(scan)}: {note}")
    warn_of_kinds(found.folder, found.status, found.levels)
    check_brightness(found.folder, {name: [fact.light for fact in found.of(name).values()] for name in found.status})
    return rows_to_draw(split, pixels, scans, reasons)


def tally(values):
    """Text that counts equal values, most common first: "3605 of L, 2 of RGB"."""
    return ", ".join(f"{count} of {value}" for value, count in Counter(values).most_common())


def print_shared(dataset_dir, splits, scans_in):
    """Print the pictures and scans of {split: Split} and {split: {file name: Scan}}, and which train and test share.

    One line on stderr warns of people of test/ who are in train/, too, or of scans where that is all that file names tell.
    """
    if len(splits) == 2:
        train_files = {fact.digest: file for file, fact in splits["train"].facts.items()}
        test_files = ((file, train_files.get(fact.digest)) for file, fact in splits["test"].facts.items())
        shared = [f"test/{file} = train/{other}" for file, other in test_files if other]
        print(f"test slices whose picture is in train too, pixel for pixel: {count_and_names(shared)}")
    else:
        print(f"only {' '.join(splits)} is here, so what train and test share cannot be told")
    images = {split: {scan.image for scan in scans.values() if scan.image} for split, scans in scans_in.items()}
    text = ", ".join(f"{len(there)} in {split}" for split, there in images.items())
    both = sorted(set.intersection(*images.values()), key=image_order)
    print(f"scans: {text}" + (f", in both {count_and_names(both)}" if len(images) == 2 else ""))
    nameless = [f"{split}/{file}" for split, scans in scans_in.items() for file, scan in scans.items() if not scan.image]
    if nameless:
        print(f"  file names that give no scan (218391_78.jpeg is slice 78 of scan 218391): {count_and_names(nameless)}")
    people = {split: {scan.person for scan in scans.values() if scan.person} for split, scans in scans_in.items()}
    for unit, sets in ("people", people), ("scans", images):
        if len(sets) == 2 and (shared := set.intersection(*sets.values())):
            found = f"{len(shared)} of the {len(sets['test'])} {unit} of test/ are in train/ too"
            warn(f"warning: {dataset_dir}: {found}, so results on test/ are too good; {REMEDY}")
            break


def print_people(scans_in, table):
    """Print who is in the splits {split: {file name: Scan}}, and what is wrong with them, by the `table` of `read_subjects`."""
    people, places, days = {}, {}, {}  # {split: names}, {image: {class of its folder}}, {(person, date): {(image, split)}}
    print("people:")
    for split, scans in scans_in.items():
        for name in sorted({file.split("/")[0] for file in scans}):
            known = [scan for file, scan in scans.items() if file.startswith(f"{name}/") and scan.person]
            who, images = {scan.person for scan in known}, {scan.image for scan in known}
            print(f"  {split} {name}: {len(who)} people, {len(images)} scans, {len(known)} slices")
            people.setdefault(split, set()).update(who)
            for scan in set(known):
                places.setdefault(scan.image, set()).add(name)
                if scan.date:
                    days.setdefault((scan.person, scan.date), set()).add((scan.image, split))
    if len(people) > 1:
        print(f"  in both train and test: {count_and_names(sorted(people['train'] & people['test']))}")
    unmatched = {scan.image for scans in scans_in.values() for scan in scans.values() if scan.image and not scan.person}
    print(f"  scans that --subjects lacks: {count_and_names(sorted(unmatched, key=image_order))}")
    print(f"  scans whose folder contradicts their group: {count_and_names(contradictions(places, table))}")
    where, names = Counter(), []  # pairs of scans of one day, by split
    for (person, date), scans in days.items():
        if pairs := [pair for pair in itertools.combinations(scans, 2) if pair[0][0] != pair[1][0]]:
            where.update(one[1] if one[1] == other[1] else "across" for one, other in pairs)
            names.append(f"{' '.join(sorted({image for image, _ in scans}, key=image_order))} of {person} on {date}")
    counts = [f"{where[split]} in {split}" for split in scans_in] + [f"{where['across']} across"] * (len(scans_in) > 1)
    shown = f" ({some_of(sorted(names), 5)})" if names else ""
    print(f"  pairs of scans of one person on one day: {', '.join(counts)}{shown}")


def print_positions(scans_in):
    """Print where the scans of each class were cut, and how well the slice index alone tells AD from NC, over all splits."""
    names = [file for scans in scans_in.values() for file in scans]
    if unknown := unknown_text(names):
        print(unknown)
    if not (cut := windows(names)):
        return
    shown = [f"{name} from {span(first)}, {span(counts)} slices a scan" for name, (first, counts) in cut.items()]
    print(f"windows, the first slice index of a scan as median (range): {'; '.join(shown)}")
    if len(cut) < 2:
        return
    is_ad = np.array([file.startswith("AD/") for file in names])
    groups, unit = resampling_groups([scan for scans in scans_in.values() for scan in scans.values()])
    found = index_auc(slice_indices(names), is_ad, groups)
    told = f"{found} over {unit}: not shown to tell them apart (0.5 is chance)"
    if found is None:
        told = f"not measured, too few {unit}"
    elif found.low > 0.5:
        told = f"{found} over {unit}: the position of a slice tells AD from NC; --split_by_subject OUT --match position holds it"
    print(f"slice index alone, AUC of AD against NC: {told}")


def span(values):
    """Text of the median and, where they differ, the lowest and the highest value: "78 (67 to 90)", or "78"."""
    low, high = min(values), max(values)
    return f"{np.median(values):g}" + (f" ({low:g} to {high:g})" if low < high else "")


def save_samples(path, found, resolution):
    """Draw evenly spaced slices of a Split as training sees them, a row per class."""
    cells = []
    for name, folder in found.folders.items():
        files = spread(np.array(list(found.of(name))), min(SAMPLES, len(found.of(name))))
        pixels = [decode(os.path.join(folder, file.removeprefix(f"{name}/")), resolution, found.levels[name]) for file in files]
        cells.append(pixels + [None] * (SAMPLES - len(pixels)))
    save_image_table(cells, path, list(found.folders), [""] * SAMPLES)


def rows_to_draw(split, pixels, scans, reasons):
    """[(caption, [slice])] of {scan: reason} in a split: a damaged slice, the same with full contrast, one that is not damaged."""
    rows = {}
    for i, scan in enumerate(scans):
        rows.setdefault(scan, []).append(i)
    middle = {scan: pixels[indices[len(indices) // 2]] for scan, indices in rows.items()}
    sound = sorted((middle[scan] for scan in rows if scan not in reasons), key=np.mean)
    drawn = []
    for scan, reason in reasons.items():
        full = np.uint8(middle[scan] * (255 / max(1, middle[scan].max())))
        drawn.append((textwrap.fill(f"{split} {scan}: {reason}", 40), [middle[scan], full, sound[len(sound) // 2]]))
    return drawn
