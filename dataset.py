"""Brain slices for training: decoded once into a cached uint8 array, served as shuffled batches in [-1, 1].

    AD_NC/train/AD/<scan>_<slice>.jpeg       Alzheimer's disease, label 0
    AD_NC/train/NC/<scan>_<slice>.jpeg       normal control, label 1

    slices = Slices("AD_NC/train", resolution=256)
    images, labels = next(batches(slices, batch_size=16, device="cpu", seed=0))   # [16, 1, 256, 256] and [16]

As a command, this file reports on a data set before training: counts, sizes, damaged files, people, and what train and test
share (analysis/dataset_report.py). Its flags are in analysis/dataset_flags.py.
"""

import startup  # noqa: F401  # isort: skip

import copy
import os
from concurrent.futures import ThreadPoolExecutor

from utils import CLASSES, UserError, answer_early, has_room, printable, run_cli, walk


def parse_args(argv=None):
    from analysis.dataset_flags import parse_args  # here, since this file must not need analysis/

    return parse_args(argv)


if __name__ == "__main__":
    answer_early(parse_args)  # --help and typing errors need no PyTorch, which takes seconds to import

import numpy as np
import torch

from data.cache import load_folder, short_hash
from data.checks import check_brightness, warn, warn_of_kinds, warn_once
from data.decode import FIRST_KIND, PAGES, light_of

EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff")
NAMES = {"AD": ("AD",), "NC": ("NC", "CN")}  # of the folders of each of CLASSES, in any letter case; CN is ADNI's name
NOT_SLICES = (".csv", ".html", ".json", ".log", ".md", ".tsv", ".txt", ".xlsx", ".xml", ".yaml", ".yml")  # notes and tables
SYSTEM_FILES = ("desktop.ini", "ehthumbs.db", "icon\r", "thumbs.db", "w.npy")  # of Windows, macOS and predict.py --export
SAMPLED = 64  # slices of each class whose brightness is looked at


# ----------------------------------------------------------------------------------------------------------------------
# Folders


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


def class_folders(dataset_dir, classes="all"):
    """{class: folder} of `classes`, "all" or one of CLASSES; a line on stderr names folders whose name is not the class's.

    UserError if a folder is missing, a class has two, or two classes have one.
    """
    if not os.path.isdir(dataset_dir):
        raise UserError(f"--dataset_dir {dataset_dir}: no such folder; it should hold {' and '.join(CLASSES)}")
    if not os.access(dataset_dir, os.R_OK | os.X_OK):
        raise UserError(f"--dataset_dir {dataset_dir}: cannot look into this folder (Permission denied)")
    if missing := missing_text(dataset_dir, classes):
        nearby = os.path.join(dataset_dir, "train"), os.path.dirname(os.path.abspath(dataset_dir))
        hint = next((f"; did you mean --dataset_dir {other}?" for other in nearby if holds_classes(other, classes)), "")
        raise UserError(f"--dataset_dir {dataset_dir}: {missing}{hint}")
    result = {}
    for name, folders in find_classes(dataset_dir, classes).items():
        if len(folders) > 1:
            raise UserError(f"--dataset_dir {dataset_dir}: {' and '.join(folders)} both stand for class {name}; keep one of them")
        if folders != [name]:
            warn_once(f"note: {os.path.join(dataset_dir, *folders)} is read as class {name}")
        result[name] = os.path.join(dataset_dir, *folders)
    if len(set(map(os.path.realpath, result.values()))) < len(result):
        raise UserError(f"--dataset_dir {dataset_dir}: {' and '.join(result)} are one folder, by a link")
    return result


def holds_classes(folder, classes):
    """Whether `folder` has a subfolder for each of `classes`, "all" or one of CLASSES."""
    return os.path.isdir(folder) and not missing_text(folder, classes)


def find_splits(dataset_dir, classes="all"):
    """{split: folder} of "train" and "test", in `dataset_dir` or beside it; {name of the folder: dataset_dir} if it has neither.

    A line on stderr names a split that is left out since a class is missing in it. UserError if `dataset_dir` is neither a split
    nor a folder of splits.
    """
    parent, name = os.path.split(os.path.abspath(dataset_dir))
    for place in (dataset_dir, parent) if name.lower() in ("train", "test") else (dataset_dir,):
        there = {folder.lower(): os.path.join(place, folder) for folder in subfolders(place)}
        there = {split: there[split] for split in ("train", "test") if split in there}
        splits = {split: folder for split, folder in there.items() if holds_classes(folder, classes)}
        if place == dataset_dir and splits or name.lower() in splits:
            for split, folder in there.items():
                if split not in splits:
                    warn_once(f"warning: {folder} is left out: {missing_text(folder, classes)}")
            return splits
    class_folders(dataset_dir, classes)  # raises the UserError
    return {name: dataset_dir}


def find_slices(folder):
    """Sorted [(path below `folder` with /, bytes, mtime, ctime in ns)] of the slices in a folder, at any depth; UserError if none.

    Hidden files and folders are left out, and other files, which a line on stderr counts and names.
    """
    files, others, strange = [], [], []
    for root, names in walk(folder):
        if class_named(os.path.basename(root)) not in (None, class_named(os.path.basename(os.path.abspath(folder)))):
            strange.append(os.path.relpath(root, folder))
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
        raise UserError(f"--dataset_dir: no slices in {folder} (looked for {', '.join(EXTENSIONS)} at any depth{there})")
    if strange and class_named(os.path.basename(os.path.abspath(folder))):
        warn_once(f"warning: {folder}: slices in folders of another class's name are read as of this class: {some_of(strange)}")
    if others:
        kinds = f"{len(others)} file{'s' * (len(others) > 1)} of kinds that are not read"
        warn_once(f"warning: {folder}: {kinds} left out: {some_of(sorted(others))}")
    return sorted(files)


def some_of(names, limit=10):
    """The first names as text in printable characters: "a, b and 3 more"."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return printable(", ".join(names[:limit])) + more


def warn_of_unreadable(names):
    """Print one line on stderr that names the unreadable files that were left out, if there are any."""
    if names:
        warn(f"warning: {len(names)} unreadable file{'s' * (len(names) > 1)} left out: {some_of(names)}")


def require_readable(dataset_dir, folder, status, files):
    """UserError if none of `files` of `folder`, of this status (see `decode.Files`), was read."""
    if not (status >= FIRST_KIND).any():
        pages = (status == PAGES).sum()
        reason = "damaged, or of a kind that Pillow does not read, such as TIFFs of 64-bit floats"
        reason = f"{pages} hold several images each: save each image as a file of its own" if pages else reason
        raise UserError(f"--dataset_dir {dataset_dir}: no readable slice in {folder}, tried {some_of(files)} ({reason})")


# ----------------------------------------------------------------------------------------------------------------------
# The slices of a data set


class Slices:
    """All readable slices of the chosen classes, uint8, decoded at first use and read from the cache after that.

    dataset_dir: the folder that holds AD and NC; classes: "all", "AD" or "NC"; resolution: side of the square, one of
    RESOLUTIONS; num_workers: decoding threads (None: one per core, up to 16); progress: show a bar on a terminal.

    labels       int64 [N], the index of each slice's class in CLASSES
    names        file names [N], such as "AD/218391_78.jpeg"
    counts       {class: number of slices}
    unreadable   names of the files left out, which one line on stderr also names; others name what else is doubtful
    fingerprint  16 hex digits of the names and sizes in bytes of the slices; moving the folder does not change it

    UserError if a folder is missing, or a class has no readable slice or is nearly black.
    """

    def __init__(self, dataset_dir, classes="all", resolution=256, num_workers=None, progress=True):
        self.resolution, self.unreadable, self.counts = resolution, [], {}
        self._pixels, labels, rows, identities, notes = {}, [], [], [], set()
        status, levels, bright = {}, {}, {}
        files_of = {name: (folder, find_slices(folder)) for name, folder in class_folders(dataset_dir, classes).items()}
        for name, (folder, files) in files_of.items():
            label = CLASSES.index(name)
            bar = f"decoding {name}" if progress else None
            pixels, status[name], levels[name], note = load_folder(folder, files, resolution, num_workers, bar)
            self._pixels[label] = pixels
            notes.add(note)
            readable_rows = np.flatnonzero(status[name] >= FIRST_KIND)
            require_readable(dataset_dir, folder, status[name], [file for file, *_ in files])
            bright[name] = [light_of(pixels[i]) for i in readable_rows[:: -(-len(readable_rows) // SAMPLED)]]
            self.unreadable += [f"{name}/{files[i][0]}" for i in np.flatnonzero(status[name] < FIRST_KIND)]
            self.counts[name] = len(readable_rows)
            rows.append(readable_rows)
            labels.append(np.full(len(readable_rows), label))
            identities += [(name, *files[i][:2]) for i in readable_rows]
        self.labels = np.concatenate(labels).astype(np.int64)
        self._rows = np.concatenate(rows)
        self._identities = identities
        self.names = [f"{name}/{file}" for name, file, _ in identities]
        self.fingerprint = short_hash(identities)
        for note in notes - {None}:
            warn(f"note: {note}")
        warn_of_unreadable(self.unreadable)
        warn_of_kinds(dataset_dir, status, levels)
        check_brightness(dataset_dir, bright)

    def only(self, chosen):
        """The slices where `chosen`, bool [N], is True, as new Slices with the names, counts and fingerprint of these alone."""
        part = copy.copy(self)
        part.labels, part._rows = self.labels[chosen], self._rows[chosen]
        part._identities = [identity for identity, taken in zip(self._identities, chosen) if taken]
        part.names = [name for name, taken in zip(self.names, chosen) if taken]
        part.counts = {name: int((part.labels == CLASSES.index(name)).sum()) for name in self.counts}
        part.fingerprint = short_hash(part._identities)
        return part

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, indices):
        """The slices at `indices`, int [n], as a new uint8 array [n, R, R]."""
        labels, rows = self.labels[indices], self._rows[indices]
        pixels = np.empty((len(rows), self.resolution, self.resolution), np.uint8)
        for label, stored in self._pixels.items():
            pixels[labels == label] = stored[rows[labels == label]]
        return pixels


# ----------------------------------------------------------------------------------------------------------------------
# Batches


def to_float(batch):
    """uint8 [N, R, R] -> float32 [N, 1, R, R] in [-1, 1]."""
    return batch.unsqueeze(1).to(torch.float32).div_(127.5).sub_(1)


def to_uint8(images):
    """Float [N, 1, R, R] in [-1, 1] -> uint8 [N, R, R], rounded and clipped; the exact inverse of `to_float`."""
    return images.squeeze(1).float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def steps_per_epoch(num_slices, batch_size):
    """Number of full batches in one pass over the data, at least 1; each pass leaves out a different remainder."""
    return max(1, num_slices // batch_size)


def schedule(num_slices, batch_size, seed, start_step=0):
    """Yield (indices int64 [batch_size], mirrored bool [batch_size]) without end; the k-th pair depends on seed and k alone."""
    steps = steps_per_epoch(num_slices, batch_size)
    while True:
        epoch, first = divmod(start_step, steps)
        rng = np.random.default_rng((seed, epoch))
        repeats = -(-batch_size // num_slices)  # above 1 only if a batch is larger than the data set
        order = np.concatenate([rng.permutation(num_slices) for _ in range(repeats)])
        for step in range(first, steps):
            mirrored = np.random.default_rng((seed, epoch, step)).random(batch_size) < 0.5
            yield order[step * batch_size : (step + 1) * batch_size], mirrored
        start_step = (epoch + 1) * steps


def shard(x, shards, index):
    """x[index::shards], the part of a batch [N, ...] that process `index` of `shards` works on: [N / shards, ...].

    Strided, because image i of N is in minibatch standard deviation group i mod N/4 (modules.minibatch_std): if N is a multiple
    of 4 * shards, every group of the whole batch is in one shard, and is a group there too.
    """
    return x[index::shards]


def batches(slices, batch_size, device, seed, start_step=0, mirror=False, resident=None, shards=1, shard_index=0):
    """Yield (images float32 [N, 1, R, R] in [-1, 1], labels int64 [N]) on `device` without end.

    Each pass is in a new random order; `mirror`: each slice is mirrored left-right with probability 0.5. Batch k is the same
    whether the iterator starts at step 0 or at `start_step=k`. Of each batch of `batch_size` only its `shard` is read and given.
    resident: keep all pixels on the device; None: if it is CUDA and has room for them.
    A background thread prepares the next batch, in pinned memory for CUDA; closing the iterator ends the thread.
    """
    device = torch.device(device)
    pixel_bytes = len(slices) * slices.resolution**2
    if resident is None:
        resident = has_room(device, pixel_bytes)
    if resident:
        all_labels = torch.from_numpy(slices.labels).to(device)
        all_pixels = torch.empty(len(slices), slices.resolution, slices.resolution, dtype=torch.uint8, device=device)
        for part in np.array_split(np.arange(len(slices)), -(-pixel_bytes // 2**28)):  # not all at once in host memory
            all_pixels[part[0] : part[-1] + 1] = torch.from_numpy(slices[part])
    plan = schedule(len(slices), batch_size, seed, start_step)

    def prepare():
        indices, mirrored = (np.ascontiguousarray(shard(x, shards, shard_index)) for x in next(plan))
        arrays = (indices, mirrored) if resident else (slices[indices], slices.labels[indices], mirrored)
        tensors = [torch.from_numpy(array) for array in arrays]
        return [tensor.pin_memory() for tensor in tensors] if device.type == "cuda" else tensors

    with ThreadPoolExecutor(1) as background:
        prepared = background.submit(prepare)
        while True:
            *data, mirrored = (tensor.to(device, non_blocking=True) for tensor in prepared.result())
            prepared = background.submit(prepare)
            pixels, labels = (all_pixels[data[0]], all_labels[data[0]]) if resident else data
            if mirror:
                pixels = torch.where(mirrored[:, None, None], pixels.flip(-1), pixels)
            yield to_float(pixels), labels


def main(argv=None):
    from analysis import dataset_report, subject_split  # here, since they import this file

    args = parse_args(argv)
    data = args.dataset_dir, args.classes
    if args.split_by_subject:
        subject_split.split_by_subject(*data, args.split_by_subject, args.subjects, args.test_share, args.seed, args.match)
    else:
        dataset_report.report(*data, args.resolution, args.output_dir, args.num_workers, args.subjects)
    return 0


if __name__ == "__main__":
    run_cli(main)
