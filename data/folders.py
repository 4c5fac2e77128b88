"""Where slices lie: the folders of classes and splits, and the files in them."""

import os

from data.checks import warn, warn_once
from data.decode import FIRST_KIND, PAGES
from utils import CLASSES, UserError, plural, printable, walk

EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff")
NAMES = {"AD": ("AD",), "NC": ("NC", "CN")}  # of the folders of each of CLASSES, in any letter case; CN is ADNI's name
NOT_SLICES = (".csv", ".html", ".json", ".log", ".md", ".tsv", ".txt", ".xlsx", ".xml", ".yaml", ".yml")  # notes and tables
SYSTEM_FILES = ("desktop.ini", "ehthumbs.db", "icon\r", "thumbs.db", "w.npy")  # of Windows, macOS and predict.py --export


def class_named(folder):
    """The one of CLASSES that a folder of this name holds, or None."""
    return next((name for name in CLASSES if folder.upper() in NAMES[name]), None)


def subfolders(folder):
    """Sorted names of the folders in `folder`, hidden ones left out; none if it is no folder, or may not be looked into."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except OSError:
        return []


def find_classes(dataset_dir, classes="all"):
    """{class: names of its folders in `dataset_dir`} of `classes`, "all" or one of CLASSES; of links to one folder, only one."""
    found = {name: {} for name in (CLASSES if classes == "all" else (classes,))}
    for folder in sorted(subfolders(dataset_dir), key=lambda folder: folder not in CLASSES):
        if (name := class_named(folder)) in found:
            found[name].setdefault(os.path.realpath(os.path.join(dataset_dir, folder)), folder)
    return {name: list(folders.values()) for name, folders in found.items()}


def missing_text(dataset_dir, classes):
    """Text: which class folders are missing in `dataset_dir`, and what is there instead; "" if none is."""
    missing = [name for name, folders in find_classes(dataset_dir, classes).items() if not folders]
    if not missing:
        return ""
    there = subfolders(dataset_dir)
    return f"no folder {' or '.join(missing)} in it" + (f", but {some_of(there)}" if there else "")


def class_folders(dataset_dir, classes="all", flag="--dataset_dir"):
    """{class: folder} of `classes`, "all" or one of CLASSES; a line on stderr names folders whose name is not the class's.

    UserError, which names `flag`, if a folder is missing, or a class has two.
    """
    if not os.path.isdir(dataset_dir):
        raise UserError(f"{flag} {dataset_dir}: no such folder; it should hold {' and '.join(CLASSES)}")
    if not os.access(dataset_dir, os.R_OK | os.X_OK):
        raise UserError(f"{flag} {dataset_dir}: cannot look into this folder (Permission denied)")
    if missing := missing_text(dataset_dir, classes):
        nearby = os.path.join(dataset_dir, "train"), os.path.dirname(os.path.abspath(dataset_dir))
        hint = next((f"; did you mean {flag} {other}?" for other in nearby if holds_classes(other, classes)), "")
        raise UserError(f"{flag} {dataset_dir}: {missing}{hint}")
    result = {}
    for name, folders in find_classes(dataset_dir, classes).items():
        if len(folders) > 1:
            raise UserError(f"{flag} {dataset_dir}: {' and '.join(folders)} both stand for class {name}; keep one of them")
        if folders != [name]:
            warn_once(f"note: {os.path.join(dataset_dir, *folders)} is read as class {name}")
        result[name] = os.path.join(dataset_dir, *folders)
    return result


def holds_classes(folder, classes):
    """Whether `folder` has a subfolder for each of `classes`, "all" or one of CLASSES."""
    return os.path.isdir(folder) and not missing_text(folder, classes)


def find_splits(dataset_dir, classes="all"):
    """{split: folder} of "train" and "test", in `dataset_dir` or beside it; {name of the folder: dataset_dir} if it has neither; a
    line on stderr names one that lacks a class. UserError if `dataset_dir` is neither a split nor a folder of splits."""
    parent, name = os.path.split(os.path.abspath(dataset_dir))
    for place in (dataset_dir, parent) if name.lower() in ("train", "test") else (dataset_dir,):
        there = {folder.lower(): os.path.join(place, folder) for folder in subfolders(place)}
        there = {split: there[split] for split in ("train", "test") if split in there}
        splits = {split: folder for split, folder in there.items() if holds_classes(folder, classes)}
        if place == dataset_dir and splits or name.lower() in splits:
            for folder in set(there.values()) - set(splits.values()):
                warn_once(f"warning: {folder} is left out: {missing_text(folder, classes)}")
            return splits
    class_folders(dataset_dir, classes)  # raises the UserError
    return {name: dataset_dir}


def find_slices(folder, flag="--dataset_dir"):
    """Sorted [(path below `folder` with /, bytes, mtime, ctime in ns)] of the slices in a folder, at any depth; UserError, which
    names `flag`, if none.

    Hidden files and folders are left out, and other files, which a line on stderr counts and names.
    """
    files, others = [], []
    for root, names in walk(folder):
        below = (os.path.relpath(root, folder).replace(os.sep, "/") + "/").removeprefix("./")
        for name in names:
            if name.lower().endswith(EXTENSIONS):
                try:
                    entry = os.stat(os.path.join(root, name))
                    facts = entry.st_size, entry.st_mtime_ns, entry.st_ctime_ns
                except OSError:  # a broken link, which counts as an unreadable slice
                    facts = 0, 0, 0
                files.append((below + name, *facts))
            elif not name.lower().endswith(NOT_SLICES) and name.lower() not in SYSTEM_FILES:
                others.append(below + name)
    if not files:
        there = f"; there is {some_of(sorted(others))}" if others else ""
        raise UserError(f"{flag}: no slices in {folder} (looked for {', '.join(EXTENSIONS)} at any depth{there})")
    if others:
        kinds = f"{plural(len(others), 'file')} of kinds that are not read"
        warn_once(f"warning: {folder}: {kinds} left out: {some_of(sorted(others))}")
    return sorted(files)


def list_slices(dataset_dir, classes="all", flag="--dataset_dir"):
    """{class: (its folder, the files of `find_slices`)} of `classes`, "all" or one of CLASSES; UserError as of both functions."""
    return {name: (folder, find_slices(folder, flag)) for name, folder in class_folders(dataset_dir, classes, flag).items()}


def some_of(names, limit=10):
    """The first names as text in printable characters: "a, b and 3 more"."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return printable(", ".join(names[:limit])) + more


def warn_of_unreadable(names):
    """Print one line on stderr that names the unreadable files that were left out, if there are any."""
    if names:
        warn(f"warning: {plural(len(names), 'unreadable file')} left out: {some_of(names)}")


def require_readable(folder, status, files, flag="--dataset_dir"):
    """UserError, which names `flag`, if none of `files` of `folder`, of this status (see `decode.Files`), was read."""
    if not (status >= FIRST_KIND).any():
        reason = "damaged, or of a kind that Pillow does not read, such as TIFFs of 64-bit floats"
        if pages := (status == PAGES).sum():
            reason = f"{pages} hold several images each: save each image as a file of its own"
        raise UserError(f"{flag}: no readable slice in {folder}, tried {some_of(files)} ({reason})")
