"""Brain slices for training: found, decoded once into a cached uint8 array, served as shuffled batches in [-1, 1].

    AD_NC/train/AD/<subject>_<slice>.jpeg       Alzheimer's disease, label 0
    AD_NC/train/NC/<subject>_<slice>.jpeg       normal control, label 1

`Slices` reads one such folder and `batches` draws from it for ever. Run as a script, this file reports on a data set
before anything is trained on it: counts, sizes, damaged files, and what leaks from train into test.
"""

import glob
import hashlib
import os
import re
import stat
import sys
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from training.distributed import share_of
from utils import CLASSES, RESOLUTIONS, ArgumentParser, UserError, atomic_path, make_folder, number, printable, run_cli

EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff")
FORMATS = "BMP", "JPEG", "PNG", "TIFF"  # PIL knows more by their first bytes, scripts among them
CACHE_VERSION = 1  # raise it when decoding gives other pixels than before


# ----------------------------------------------------------------------------------------------------------------------
# From a file to a square of grey pixels


def to_grey(image):
    """8-bit grey ("L") picture of the same size from a PIL image of any mode; ValueError where PIL knows no way (LAB).

    Colour becomes luma (ITU-R 601-2) and transparency is laid over black. 16-bit grey (modes I;16, I;16B, I) is scaled
    by 1/257, so 65535 is white. Float grey (F) has no agreed range: white is 1 for a picture that nowhere exceeds 1,
    else 255 if it nowhere exceeds that, else 65535; what is not finite is black.
    """
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image), nan=0, posinf=0, neginf=0)
        white = next((white for white in (1, 255) if values.max() <= white), 65535)
        return Image.fromarray((values.clip(0, white) * (255 / white)).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return image.convert("L")


def pad_and_resize(image, resolution):
    """Centre an "L" picture on a black square and bring that to `resolution` x `resolution`; never stretched.

    A picture whose longer side is `resolution` keeps every pixel (an odd margin has its extra pixel right or below);
    others are resized with an antialiasing filter.
    """
    side = max(image.size)
    square = Image.new("L", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square if side == resolution else square.resize((resolution, resolution), Image.Resampling.LANCZOS)


def open_slice(path):
    """The picture at `path`, a context manager; raises what PIL raises for a damaged file, and ValueError where it is no file
    (a pipe would be waited for), or its square would hold more pixels than PIL takes for harmless."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("not a file")
    image = Image.open(path, formats=FORMATS)
    if max(image.size) ** 2 > Image.MAX_IMAGE_PIXELS:
        image.close()
        raise ValueError(f"{image.width} x {image.height} pixels are too many")
    return image


def decode(path, resolution):
    """The file at `path` as uint8 [resolution, resolution]; raises what `open_slice` and PIL raise."""
    with open_slice(path) as image:
        return np.asarray(pad_and_resize(to_grey(image), resolution))


def for_each(work, items, num_workers=None, label=None):
    """[work(item), or None where it raised] in the order of `items`, by `num_workers` threads (None: one per core).

    PIL decodes without Python's lock, so threads do use all cores. `label` names a progress bar; None shows none.
    """

    def attempt(item):
        try:
            return work(item)
        except Exception:  # for a damaged file PIL raises nearly anything
            return None

    workers = min(16, os.cpu_count() or 1) if num_workers is None else max(1, num_workers)
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore")  # PIL on odd metadata; ours is the one line per run
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            hidden = None if label else True  # None: shown only on a terminal
            return list(tqdm(pool.map(attempt, items), label, len(items), unit=" images", disable=hidden))
        except BaseException:  # Ctrl-C must not wait for the thousands still queued
            pool.shutdown(wait=False, cancel_futures=True)
            raise


# ----------------------------------------------------------------------------------------------------------------------
# From a folder to one uint8 array


def class_folders(dataset_dir, classes="all"):
    """{class: its folder} for `classes` "all" or one of CLASSES; UserError that says which folder is not there."""
    if not os.path.isdir(dataset_dir):
        raise UserError(f"--dataset_dir {dataset_dir}: no such folder; it should hold {' and '.join(CLASSES)}")
    folders = {name: os.path.join(dataset_dir, name) for name in (CLASSES if classes == "all" else (classes,))}
    missing = [name for name, folder in folders.items() if not os.path.isdir(folder)]
    if missing:
        others = os.path.join(dataset_dir, "train"), os.path.dirname(os.path.abspath(dataset_dir))
        hint = next((f"; did you mean --dataset_dir {other}?" for other in others if holds_classes(other, classes)), "")
        raise UserError(f"--dataset_dir {dataset_dir}: no folder {' or '.join(missing)} in it{hint}")
    return folders


def holds_classes(folder, classes):
    return all(os.path.isdir(os.path.join(folder, name)) for name in (CLASSES if classes == "all" else (classes,)))


def find_slices(folder):
    """[(path below `folder` with /, bytes, mtime in ns)] of all slices at any depth, sorted; UserError if none."""

    def refuse(error):
        raise UserError(f"{error.filename}: cannot look into this folder ({error.strerror})")

    found, seen = [], set()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        if os.path.realpath(root) in seen:  # a link back up would otherwise go round for ever
            folders.clear()
            continue
        seen.add(os.path.realpath(root))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = os.path.relpath(root, folder).replace(os.sep, "/") + "/"
        for name in names:
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                try:
                    entry = os.stat(os.path.join(root, name))
                    size, mtime = entry.st_size, entry.st_mtime_ns
                except OSError:  # a dangling link: it will count as unreadable
                    size, mtime = 0, 0
                found.append((inside.removeprefix("./") + name, size, mtime))
    if not found:
        raise UserError(f"--dataset_dir: no slices in {folder} (looked for {', '.join(EXTENSIONS)} at any depth)")
    return sorted(found)


def short_hash(value):
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def cache_folder():
    """Where this user's caches go: XDG_CACHE_HOME, else ~/.cache; LOCALAPPDATA on Windows."""
    base = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME")
    return os.path.join(base or os.path.join(os.path.expanduser("~"), ".cache"), "stylegan2-brain")


def load_folder(folder, files, resolution, num_workers=None, label=None):
    """The `files` of `folder`, as `find_slices` gives them, decoded now or by an earlier run.

    Returns (pixels, readable, note): pixels uint8 [len(files), R, R] is a memory map of the cache, readable is bool
    [len(files)], and note is None, or why there is no cache; pixels are in memory then.
    """
    cache, identity = cache_folder(), short_hash(os.path.realpath(folder))
    prefix = os.path.join(cache, f"{os.path.basename(folder)}-{identity}-{resolution}-")
    path = f"{prefix}{short_hash((CACHE_VERSION, resolution, files))}.npy"
    # One array holds it all, so that one rename publishes it: a row per file, and last a status byte per file.
    shape = len(files) + -(-len(files) // resolution**2), resolution, resolution
    rows, note = read_cache(path, shape, folder, files), None
    if rows is None:
        try:
            os.makedirs(cache, exist_ok=True)
            remove_stale(prefix, keep=path)
            with atomic_path(path) as temporary:
                rows = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
                reserve(temporary)
                fill(rows, folder, files, num_workers, label)
                rows.flush()
                del rows  # Windows renames no file that is still mapped
            rows = np.lib.format.open_memmap(path, mode="r")
        except OSError as error:
            note = f"no cache in {cache} ({error.strerror or error}): slices stay in memory, the next run decodes again"
            rows = np.zeros(shape, np.uint8)
            fill(rows, folder, files, num_workers, label)
    return rows[: len(files)], status(rows, files) == READABLE, note


UNWRITTEN, READABLE, UNREADABLE = 0, 1, 2  # status bytes


def status(rows, files):
    """The view uint8 [len(files)] of the status bytes in `rows`."""
    return rows[len(files) :].reshape(-1)[: len(files)]


def fill(rows, folder, files, num_workers, label):
    """Decode all `files` into `rows`; an unreadable one leaves its row black and never to be served."""

    def work(i):
        rows[i] = decode(os.path.join(folder, files[i][0]), rows.shape[1])
        return READABLE

    status(rows, files)[:] = [done or UNREADABLE for done in for_each(work, range(len(files)), num_workers, label)]


def read_cache(path, shape, folder, files):
    """The rows in the cache at `path`, or None where it has to be built (again)."""
    try:
        rows = np.lib.format.open_memmap(path, mode="r")
    except Exception:  # absent, truncated, or not a .npy: NumPy raises nearly anything
        return None
    if rows.shape != shape or rows.dtype != np.uint8 or not np.isin(status(rows, files), (READABLE, UNREADABLE)).all():
        return None
    # A file may have been out of reach for a moment, or for want of a permission, and neither changes its mtime.
    failed = [os.path.join(folder, files[i][0]) for i in np.flatnonzero(status(rows, files) == UNREADABLE)]
    mended = [done for done in for_each(lambda file: decode(file, shape[1]), failed) if done is not None]
    return None if mended else rows


def remove_stale(prefix, keep):
    """Delete the caches that start with `prefix`, but not `keep`, and what a run killed over a day ago left behind."""
    half_written = os.path.join(glob.escape(os.path.dirname(prefix)), ".tmp-*.npy")
    for path in glob.glob(glob.escape(prefix) + "*.npy") + glob.glob(half_written):
        try:
            if path != keep and (path.startswith(prefix) or time.time() - os.path.getmtime(path) > 86400):
                os.unlink(path)
        except OSError:  # another run was faster, or (Windows) still reads it
            pass


def reserve(path):
    """Claim a sparse file's disk blocks: OSError on a full disk, which would kill a run that writes to a memory map."""
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))


def some_of(names, limit=10):
    """ "a, b and 3 more" in printable characters."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return printable(", ".join(names[:limit])) + more


def refuse_unreadable(dataset_dir, folder, readable, files):
    """UserError if none of `files` is `readable`."""
    if not len(readable):
        raise UserError(f"--dataset_dir {dataset_dir}: no readable slice in {folder}, tried {some_of(files)}")


class Slices:
    """All readable slices of the chosen classes, uint8; the first use decodes them, later ones map the cache.

    dataset_dir: holds the folders AD and NC; classes: "all", "AD" or "NC"; resolution: side of the square, one of
    RESOLUTIONS; num_workers: decoding threads, None for one per core up to 16; progress: show a bar on a terminal.

    labels       int64 [N], the place of each slice's class in CLASSES
    counts       {class: number of its slices}
    unreadable   names of the files left out; one warning line on stderr tells of them
    fingerprint  16 hex digits of the names and bytes of the slices, the same wherever the folder lies

    UserError: a folder is missing, or a class has no readable slice.
    """

    def __init__(self, dataset_dir, classes="all", resolution=256, num_workers=None, progress=True):
        self.resolution, self.unreadable, self.counts = resolution, [], {}
        self._pixels, labels, rows, names, notes = {}, [], [], [], set()
        found = {name: (folder, find_slices(folder)) for name, folder in class_folders(dataset_dir, classes).items()}
        for name, (folder, files) in found.items():
            label = CLASSES.index(name)
            self._pixels[label], readable, note = load_folder(
                folder, files, resolution, num_workers, f"decoding {name}" if progress else None
            )
            notes |= {note} - {None}
            rows.append(np.flatnonzero(readable))
            refuse_unreadable(dataset_dir, folder, rows[-1], [file for file, *_ in files])
            self.unreadable += [f"{name}/{files[i][0]}" for i in np.flatnonzero(~readable)]
            self.counts[name] = len(rows[-1])
            labels.append(np.full(len(rows[-1]), label))
            names += [(name, *files[i][:2]) for i in rows[-1]]
        self.labels = np.concatenate(labels).astype(np.int64)
        self._rows = np.concatenate(rows)
        self.fingerprint = short_hash(names)
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
        if self.unreadable:
            print(
                f"warning: {len(self.unreadable)} unreadable file{'s' * (len(self.unreadable) > 1)} left out: "
                f"{some_of(self.unreadable)}",
                file=sys.stderr,
            )

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, indices):
        """Slices number `indices` (int [n]) as a new uint8 array [n, R, R]."""
        labels, rows = self.labels[indices], self._rows[indices]
        pixels = np.empty((len(rows), self.resolution, self.resolution), np.uint8)
        for label, stored in self._pixels.items():
            pixels[labels == label] = stored[rows[labels == label]]
        return pixels


# ----------------------------------------------------------------------------------------------------------------------
# From the array to batches


def to_float(batch):
    """uint8 [N, R, R] -> float32 [N, 1, R, R] in [-1, 1]."""
    return batch.unsqueeze(1).to(torch.float32).div_(127.5).sub_(1)


def to_uint8(images):
    """Float [N, 1, R, R] in [-1, 1] -> uint8 [N, R, R], rounded and clipped; the exact inverse of `to_float`."""
    return images.squeeze(1).float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def steps_per_epoch(num_slices, batch_size):
    """Full batches in one pass over the data; the remainder is dropped, and is another one in every pass."""
    return max(1, num_slices // batch_size)


def schedule(num_slices, batch_size, seed, start_step=0):
    """Endless (indices int64 [batch_size], mirrored bool [batch_size]); the k-th depends on seed and k alone."""
    steps = steps_per_epoch(num_slices, batch_size)
    while True:
        epoch, first = divmod(start_step, steps)
        rng = np.random.default_rng((seed, epoch))
        repeats = -(-batch_size // num_slices)  # 1, unless there are fewer slices than a batch holds
        order = np.concatenate([rng.permutation(num_slices) for _ in range(repeats)])
        for step in range(first, steps):
            mirrored = np.random.default_rng((seed, epoch, step)).random(batch_size) < 0.5
            yield order[step * batch_size : (step + 1) * batch_size], mirrored
        start_step = (epoch + 1) * steps


def batches(slices, batch_size, device, seed, start_step=0, flip=True, resident=None, shares=1, which=0):
    """Endless iterator of (images float32 [N, 1, R, R] in [-1, 1], labels int64 [N]), both on `device`.

    Every pass takes the slices in a new order; `flip` mirrors each left-right with probability 0.5. Batch k is the same
    whether counted from 0 or begun at `start_step=k`. With `shares`, only share number `which` of every batch is read and
    given (`shares.share_of`). `resident`: keep all pixels on the device; None: if it is CUDA and they fill at most a third of
    its free memory. What a batch needs from the host, a background thread makes ready one batch ahead, in pinned memory for
    CUDA, so that no copy ever waits; closing the iterator ends the thread.
    """
    device = torch.device(device)
    pixel_bytes = len(slices) * slices.resolution**2
    if resident is None:
        resident = device.type == "cuda" and pixel_bytes <= torch.cuda.mem_get_info(device)[0] / 3
    if resident:
        all_labels = torch.from_numpy(slices.labels).to(device)
        all_pixels = torch.empty(len(slices), slices.resolution, slices.resolution, dtype=torch.uint8, device=device)
        for part in np.array_split(np.arange(len(slices)), -(-pixel_bytes // 2**28)):  # never twice in host memory
            all_pixels[part[0] : part[-1] + 1] = torch.from_numpy(slices[part])
    plan = schedule(len(slices), batch_size, seed, start_step)

    def prepare():
        indices, mirrored = (share_of(drawn, shares, which) for drawn in next(plan))
        needed = (indices, mirrored) if resident else (slices[indices], slices.labels[indices], mirrored)
        needed = [torch.from_numpy(array) for array in needed]
        return [tensor.pin_memory() for tensor in needed] if device.type == "cuda" else needed

    with ThreadPoolExecutor(1) as background:
        ahead = background.submit(prepare)
        while True:
            *needed, mirrored = (tensor.to(device, non_blocking=True) for tensor in ahead.result())
            ahead = background.submit(prepare)
            pixels, labels = (all_pixels[needed[0]], all_labels[needed[0]]) if resident else needed
            if flip:
                pixels = torch.where(mirrored[:, None, None], pixels.flip(-1), pixels)
            yield to_float(pixels), labels


# ----------------------------------------------------------------------------------------------------------------------
# The report


def find_splits(dataset_dir, classes="all"):
    """{split: folder}: "train" and "test" in or beside `dataset_dir`, or only itself; UserError if it is none."""
    parent, name = os.path.split(os.path.abspath(dataset_dir))
    for place in (dataset_dir, parent) if name in ("train", "test") else (dataset_dir,):
        splits = {split: os.path.join(place, split) for split in ("train", "test")}
        splits = {split: folder for split, folder in splits.items() if holds_classes(folder, classes)}
        if place == dataset_dir and splits or name in splits:
            return splits
    class_folders(dataset_dir, classes)  # says what is missing
    return {name: dataset_dir}


class Fact(NamedTuple):
    """What the report needs to know of one file."""

    mode: str
    size: tuple  # width, height
    peak: int  # the greatest value of a 16-bit slice, else None
    digest: bytes  # of the grey pixels, whatever file format holds them


def inspect(path):
    with open_slice(path) as image:
        grey = to_grey(image)
        peak = int(np.asarray(image).max()) if image.mode.startswith("I") else None
        return Fact(image.mode, image.size, peak, hashlib.sha256(repr(image.size).encode() + grey.tobytes()).digest())


def report(dataset_dir, classes, resolution, output_dir, num_workers):
    """Print what `dataset_dir` holds and what train and test share, and write `output_dir`/samples.png."""
    splits, facts = find_splits(dataset_dir, classes), {}  # facts: {split: {"AD/name": Fact}} of the readable files
    make_folder(output_dir, "--output_dir")
    for split, split_folder in splits.items():
        facts[split], unreadable, samples, counts = {}, [], {}, {}
        for name, folder in class_folders(split_folder, classes).items():
            files = [file for file, *_ in find_slices(folder)]
            paths = [os.path.join(folder, file) for file in files]
            found = dict(zip(files, for_each(inspect, paths, num_workers, f"reading {split}/{name}")))
            readable = [file for file in files if found[file]]
            refuse_unreadable(dataset_dir, folder, readable, files)
            unreadable += [f"{name}/{file}" for file in files if not found[file]]
            facts[split] |= {f"{name}/{file}": found[file] for file in readable}
            counts[name] = len(readable)
            shown = np.linspace(0, len(readable) - 1, min(8, len(readable))).astype(int)
            samples[name] = [os.path.join(folder, readable[i]) for i in shown]
        if len(facts) == 1:
            save_samples(os.path.join(output_dir, "samples.png"), samples, resolution)
        seen = facts[split].values()
        print(f"{split}: {' + '.join(f'{n} {name}' for name, n in counts.items())} slices in {split_folder}")
        print(f"  width x height: {tally(f'{fact.size[0]} x {fact.size[1]}' for fact in seen)}")
        print(f"  modes: {tally(fact.mode for fact in seen)}")
        peak = max((fact.peak for fact in seen if fact.peak is not None), default=65535)
        if peak < 4096:
            print(f"  warning: no 16-bit slice exceeds {peak} of 65535, so they will look dark; rescale them first")
        print(f"  unreadable: {counted(unreadable, len(unreadable))}")
        print(f"  pictures that are there more than once: {len(seen) - len({fact.digest for fact in seen})}")
    if len(facts) == 2:
        compare(**facts)
    else:
        print(f"only {' '.join(facts)} is here, so what train and test share cannot be told")
    print(f"samples: {os.path.join(output_dir, 'samples.png')}")


def compare(train, test):
    """Print which pictures and which subjects two {file name: Fact} have in common."""
    known = {fact.digest: file for file, fact in train.items()}
    shared = [f"test/{file} = train/{known[fact.digest]}" for file, fact in test.items() if fact.digest in known]
    print(f"test slices whose picture is in train too, pixel for pixel: {counted(shared)}")
    matches = [[re.fullmatch(r"(.*/)?(\d+)_\d+\.\w+", file) for file in split] for split in (train, test)]
    of_train, of_test = ({match[2] for match in split if match} for split in matches)
    if of_train and of_test:
        both = counted(sorted(of_train & of_test))
        print(f"subjects: {len(of_train)} in train, {len(of_test)} in test, in both {both}")
    unnamed = sum(split.count(None) for split in matches)
    if unnamed:
        print(
            f"subjects: {unnamed} of {len(train) + len(test)} file names carry none (218391_78.jpeg would be slice "
            "78 of subject 218391), so it cannot be told whether train and test share theirs"
        )


def counted(names, limit=10):
    """ "12 (a, b and 10 more)", or "0"."""
    return f"{len(names)}" + (f" ({some_of(names, limit)})" if names else "")


def tally(values):
    """ "3605 of L, 2 of RGB", most common first."""
    return ", ".join(f"{count} of {value}" for value, count in Counter(values).most_common())


def save_samples(path, samples, resolution):
    """Draw `samples`, {class: [path of a slice]}, one row per class, as training will see them."""
    from matplotlib.figure import Figure  # only the report draws; training need not wait for it

    columns = max(len(files) for files in samples.values())
    figure = Figure(figsize=(1.5 * columns + 0.5, 1.5 * len(samples)), facecolor="black", layout="constrained")
    axes = figure.subplots(len(samples), columns, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], facecolor="black")
        axis.spines[:].set_visible(False)
    for row, (name, files) in zip(axes, samples.items()):
        row[0].set_ylabel(name, color="white", fontsize=14)
        for axis, file in zip(row, files):
            axis.imshow(decode(file, resolution), cmap="gray", vmin=0, vmax=255)
    try:
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=200)
    except OSError as error:
        raise UserError(f"--output_dir: cannot write {path} ({error.strerror})") from None


def main(argv=None):
    parser = ArgumentParser(
        "Report on a data set: counts, sizes, damaged files, what train and test share, samples.", "dataset.py --dataset_dir AD_NC"
    )
    parser.add_argument("--dataset_dir", required=True, help="AD_NC, or AD_NC/train with AD and NC in it")
    parser.add_argument("--classes", choices=("all", *CLASSES), default="all", help="which classes to look at")
    parser.add_argument("--resolution", type=int, choices=RESOLUTIONS, default=256, help="side of the sample pictures")
    parser.add_argument("--output_dir", default="dataset_report", help="folder for samples.png")
    parser.add_argument("--num_workers", type=number(int, 0), help="decoding threads (default: one per core, up to 16)")
    report(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    run_cli(main)
