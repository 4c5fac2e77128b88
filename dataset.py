"""Brain slices for training: decoded once into a cached uint8 array, served as shuffled batches in [-1, 1].

    AD_NC/train/AD/<scan>_<slice>.jpeg       Alzheimer's disease, label 0
    AD_NC/train/NC/<scan>_<slice>.jpeg       normal control, label 1

    slices = Slices("AD_NC/train", resolution=256)
    images, labels = next(batches(slices, batch_size=16, device="cpu", seed=0))   # [16, 1, 256, 256] and [16]

As a command, this file reports on a data set before training: counts, sizes, damaged files, people, and what train and test
share (analysis/dataset_report.py). Its flags are in analysis/dataset_flags.py.
"""

import startup  # noqa: F401  # isort: skip

import glob
import hashlib
import os
import stat
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

from utils import CLASSES, UserError, answer_early, atomic_path, has_room, printable, run_cli, walk


def parse_args(argv=None):
    from analysis.dataset_flags import parse_args  # here, since this file must not need analysis/

    return parse_args(argv)


if __name__ == "__main__":
    answer_early(parse_args)  # --help and typing errors need no PyTorch, which takes seconds to import

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff")
FORMATS = "BMP", "JPEG", "PNG", "TIFF"  # PIL recognises others by their first bytes, among them formats that run code
CACHE_VERSION = 1  # increase it when a change to decoding changes the pixels
READABLE, UNREADABLE = 1, 2  # status bytes in the cache; 0: not written


# ----------------------------------------------------------------------------------------------------------------------
# From a file to a square grey image


def to_grey(image):
    """Convert a PIL image of any mode to 8-bit grey (mode "L"); ValueError for a mode that PIL cannot convert (LAB).

    Colour becomes luma (ITU-R 601-2) and transparency is put over black. 16-bit grey (modes I;16, I;16B, I) is scaled by
    1/257, so 65535 is white. Float grey (F) has no agreed range: white is 1, 255 or 65535, the first that no pixel exceeds;
    pixels that are not finite become black.
    """
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image), posinf=0)
        white = next((white for white in (1, 255) if values.max() <= white), 65535)
        return Image.fromarray((values.clip(0, white) * (255 / white)).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return image.convert("L")


def pad_and_resize(image, resolution):
    """Centre an "L" image on a black square and resize that to `resolution` x `resolution`, without stretching it.

    If its longer side is `resolution`, every pixel is kept (an odd margin is wider by one pixel at the right or bottom);
    otherwise it is resized with an antialiasing filter.
    """
    side = max(image.size)
    square = Image.new("L", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square.resize((resolution, resolution), Image.Resampling.LANCZOS)  # a copy if the size is right


def open_slice(path):
    """Open the image at `path`, as a context manager; its pixels are not read yet.

    Raises PIL's errors for a damaged file, and ValueError if `path` is not a regular file or the square that holds the image
    would have more than PIL's limit of pixels.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # reading a pipe would never end
        raise ValueError("not a regular file")
    image = Image.open(path, formats=FORMATS)
    if max(image.size) ** 2 > Image.MAX_IMAGE_PIXELS:
        image.close()
        raise ValueError(f"{image.width} x {image.height} pixels are too many")
    return image


def decode(path, resolution):
    """Read the image at `path` as uint8 [resolution, resolution]; raises the errors of `open_slice` and PIL."""
    with open_slice(path) as image:
        return np.asarray(pad_and_resize(to_grey(image), resolution))


def for_each(work, items, num_workers=None, label=None):
    """Return [work(item) for item in items], with None where it raised, using `num_workers` threads (None: one per core).

    PIL decodes without holding Python's lock, so threads use all cores. label: of a progress bar; None shows no bar.
    """

    def attempt(item):
        try:
            return work(item)
        except Exception:  # PIL raises nearly any error on a damaged file
            return None

    workers = min(16, os.cpu_count() or 1) if num_workers is None else max(1, num_workers)
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        warnings.simplefilter("ignore")  # PIL warns about odd metadata in every file
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            hidden = None if label else True  # None: hidden unless stderr is a terminal
            return list(tqdm(pool.map(attempt, items), label, len(items), unit=" images", disable=hidden))
        except BaseException:  # Ctrl-C must not wait for thousands of queued items
            pool.shutdown(wait=False, cancel_futures=True)
            raise


# ----------------------------------------------------------------------------------------------------------------------
# Folders


def class_folders(dataset_dir, classes="all"):
    """{class: folder} of `classes`, "all" or one of CLASSES; UserError if a folder is missing."""
    if not os.path.isdir(dataset_dir):
        raise UserError(f"--dataset_dir {dataset_dir}: no such folder; it should hold {' and '.join(CLASSES)}")
    folders = {name: os.path.join(dataset_dir, name) for name in (CLASSES if classes == "all" else (classes,))}
    missing = [name for name, folder in folders.items() if not os.path.isdir(folder)]
    if missing:
        nearby = os.path.join(dataset_dir, "train"), os.path.dirname(os.path.abspath(dataset_dir))
        hint = next((f"; did you mean --dataset_dir {other}?" for other in nearby if holds_classes(other, classes)), "")
        raise UserError(f"--dataset_dir {dataset_dir}: no folder {' or '.join(missing)} in it{hint}")
    return folders


def holds_classes(folder, classes):
    """Whether `folder` has a subfolder for each of `classes`, "all" or one of CLASSES."""
    return all(os.path.isdir(os.path.join(folder, name)) for name in (CLASSES if classes == "all" else (classes,)))


def find_splits(dataset_dir, classes="all"):
    """{split: folder} of "train" and "test", in `dataset_dir` or beside it; {name of the folder: dataset_dir} if it has neither.

    UserError if `dataset_dir` is neither a split nor a folder of splits.
    """
    parent, name = os.path.split(os.path.abspath(dataset_dir))
    for place in (dataset_dir, parent) if name in ("train", "test") else (dataset_dir,):
        splits = {split: os.path.join(place, split) for split in ("train", "test")}
        splits = {split: folder for split, folder in splits.items() if holds_classes(folder, classes)}
        if place == dataset_dir and splits or name in splits:
            return splits
    class_folders(dataset_dir, classes)  # raises the UserError
    return {name: dataset_dir}


def find_slices(folder):
    """Sorted [(path below `folder` with /, bytes, mtime in ns)] of the slices in a folder, at any depth; UserError if none.

    Hidden files and folders are left out.
    """
    files = []
    for root, names in walk(folder):
        below = os.path.relpath(root, folder).replace(os.sep, "/") + "/"
        for name in names:
            if name.lower().endswith(EXTENSIONS):
                try:
                    entry = os.stat(os.path.join(root, name))
                    size, mtime = entry.st_size, entry.st_mtime_ns
                except OSError:  # a broken link, which counts as an unreadable slice
                    size, mtime = 0, 0
                files.append((below.removeprefix("./") + name, size, mtime))
    if not files:
        raise UserError(f"--dataset_dir: no slices in {folder} (looked for {', '.join(EXTENSIONS)} at any depth)")
    return sorted(files)


def some_of(names, limit=10):
    """The first names as text in printable characters: "a, b and 3 more"."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return printable(", ".join(names[:limit])) + more


def warn_of_unreadable(names):
    """Print one line on stderr that names the unreadable files that were left out, if there are any."""
    if names:
        print(f"warning: {len(names)} unreadable file{'s' * (len(names) > 1)} left out: {some_of(names)}", file=sys.stderr)


def require_readable(dataset_dir, folder, readable, files):
    """UserError if `readable`, the readable ones among `files` of `folder`, is empty."""
    if not len(readable):
        raise UserError(f"--dataset_dir {dataset_dir}: no readable slice in {folder}, tried {some_of(files)}")


# ----------------------------------------------------------------------------------------------------------------------
# The cache: the decoded slices of one folder at one resolution, as one array


def short_hash(value):
    """16 hex digits of the SHA-256 of repr(value)."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def cache_folder():
    """The folder of this user's caches: below XDG_CACHE_HOME, else ~/.cache; on Windows below LOCALAPPDATA."""
    base = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME")
    return os.path.join(base or os.path.join(os.path.expanduser("~"), ".cache"), "stylegan2-brain")


def load_folder(folder, files, resolution, num_workers=None, label=None):
    """Read the `files` of `folder` (as `find_slices` lists them) from the cache; decode them into it if it is missing or old.

    Returns (pixels, readable, note): pixels uint8 [len(files), R, R], a memory map of the cache; readable bool [len(files)];
    note None, or the reason why the cache cannot be written, with the pixels in memory.
    """
    cache, identity = cache_folder(), short_hash(os.path.realpath(folder))
    prefix = os.path.join(cache, f"{os.path.basename(folder)}-{identity}-{resolution}-")
    path = f"{prefix}{short_hash((CACHE_VERSION, resolution, files))}.npy"
    # One array, so that one rename replaces everything: an image per file, then the status bytes of all files.
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
                del rows  # Windows cannot rename a file that is still mapped
            rows = np.lib.format.open_memmap(path, mode="r")
        except OSError as error:
            note = f"no cache in {cache} ({error.strerror or error}): slices stay in memory, the next run decodes again"
            rows = np.zeros(shape, np.uint8)
            fill(rows, folder, files, num_workers, label)
    return rows[: len(files)], status(rows, files) == READABLE, note


def status(rows, files):
    """The status bytes in `rows`, as a view uint8 [len(files)]."""
    return rows[len(files) :].reshape(-1)[: len(files)]


def fill(rows, folder, files, num_workers, label):
    """Decode all `files` into `rows` and write their status bytes; the row of an unreadable file stays black."""

    def decode_into_row(i):
        rows[i] = decode(os.path.join(folder, files[i][0]), rows.shape[1])
        return READABLE

    results = for_each(decode_into_row, range(len(files)), num_workers, label)
    status(rows, files)[:] = [result or UNREADABLE for result in results]


def read_cache(path, shape, folder, files):
    """The array in the cache at `path`; None if it is missing, damaged or out of date."""
    try:
        rows = np.lib.format.open_memmap(path, mode="r")
    except Exception:  # NumPy raises nearly any error on a missing or damaged file
        return None
    if rows.shape != shape or rows.dtype != np.uint8 or not np.isin(status(rows, files), (READABLE, UNREADABLE)).all():
        return None
    # An unreadable file may have become readable without a new mtime, by a chmod or when a network disk came back.
    unreadable = [os.path.join(folder, files[i][0]) for i in np.flatnonzero(status(rows, files) == UNREADABLE)]
    retried = for_each(lambda file: decode(file, shape[1]), unreadable)
    return rows if all(image is None for image in retried) else None


def remove_stale(prefix, keep):
    """Delete the caches whose path starts with `prefix`, except `keep`, and temporary files older than a day."""
    temporary = os.path.join(glob.escape(os.path.dirname(prefix)), ".tmp-*.npy")
    for path in glob.glob(glob.escape(prefix) + "*.npy") + glob.glob(temporary):
        try:
            if path != keep and (path.startswith(prefix) or time.time() - os.path.getmtime(path) > 86400):
                os.unlink(path)
        except OSError:  # another run has deleted it, or (on Windows) still reads it
            pass


def reserve(path):
    """Allocate a sparse file's disk blocks; OSError if the disk is full, where writing to a memory map would kill the process."""
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))


# ----------------------------------------------------------------------------------------------------------------------
# The slices of a data set


class Slices:
    """All readable slices of the chosen classes, uint8, decoded at first use and read from the cache after that.

    dataset_dir: the folder that holds AD and NC; classes: "all", "AD" or "NC"; resolution: side of the square, one of
    RESOLUTIONS; num_workers: decoding threads (None: one per core, up to 16); progress: show a bar on a terminal.

    labels       int64 [N], the index of each slice's class in CLASSES
    names        file names [N], such as "AD/218391_78.jpeg"
    counts       {class: number of slices}
    unreadable   names of the files left out, which one line on stderr also names
    fingerprint  16 hex digits of the names and sizes in bytes of the slices; moving the folder does not change it

    UserError if a folder is missing or a class has no readable slice.
    """

    def __init__(self, dataset_dir, classes="all", resolution=256, num_workers=None, progress=True):
        self.resolution, self.unreadable, self.counts = resolution, [], {}
        self._pixels, labels, rows, identities, notes = {}, [], [], [], set()
        files_of = {name: (folder, find_slices(folder)) for name, folder in class_folders(dataset_dir, classes).items()}
        for name, (folder, files) in files_of.items():
            label = CLASSES.index(name)
            bar = f"decoding {name}" if progress else None
            self._pixels[label], readable, note = load_folder(folder, files, resolution, num_workers, bar)
            notes.add(note)
            readable_rows = np.flatnonzero(readable)
            require_readable(dataset_dir, folder, readable_rows, [file for file, *_ in files])
            self.unreadable += [f"{name}/{files[i][0]}" for i in np.flatnonzero(~readable)]
            self.counts[name] = len(readable_rows)
            rows.append(readable_rows)
            labels.append(np.full(len(readable_rows), label))
            identities += [(name, *files[i][:2]) for i in readable_rows]
        self.labels = np.concatenate(labels).astype(np.int64)
        self._rows = np.concatenate(rows)
        self.names = [f"{name}/{file}" for name, file, _ in identities]
        self.fingerprint = short_hash(identities)
        for note in notes - {None}:
            print(f"note: {note}", file=sys.stderr)
        warn_of_unreadable(self.unreadable)

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


def batches(slices, batch_size, device, seed, start_step=0, flip=True, resident=None, shards=1, shard_index=0):
    """Yield (images float32 [N, 1, R, R] in [-1, 1], labels int64 [N]) on `device` without end.

    Each pass is in a new random order, and `flip` mirrors each slice left-right with probability 0.5. Batch k is the same
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
            if flip:
                pixels = torch.where(mirrored[:, None, None], pixels.flip(-1), pixels)
            yield to_float(pixels), labels


def main(argv=None):
    from analysis import dataset_report, subject_split  # here, since they import this file

    args = parse_args(argv)
    data = args.dataset_dir, args.classes
    if args.split_by_subject:
        subject_split.split_by_subject(*data, args.split_by_subject, args.subjects, args.test_share, args.seed)
    else:
        dataset_report.report(*data, args.resolution, args.output_dir, args.num_workers, args.subjects)
    return 0


if __name__ == "__main__":
    run_cli(main)
