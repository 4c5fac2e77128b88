"""The cache: the decoded slices of one folder at one resolution, as one memory-mapped array, below the user's ~/.cache.

    pixels, status, levels, note = load_folder("AD_NC/train/AD", find_slices("AD_NC/train/AD"), 256)

A folder is decoded again when the name, size or a time of a file has changed. The system sets ctime whenever a file is written or
replaced; mtime alone would miss files that `cp -p`, rsync or an unpacked archive have replaced by others of the same time.
"""

import contextlib
import glob
import hashlib
import os
import time

import numpy as np

from data.decode import FIRST_KIND, FULL_RANGE, KINDS, PAGES, UNREADABLE, code_of, decode, for_each, pad_and_resize, read_files
from lock import Held, Lock
from utils import atomic_path

CACHE_VERSION = 3  # increase it when a change to decoding changes the pixels
WAIT = 1800  # seconds at most for another process, of this node or another one, that decodes the same folder
COMPARED = 8  # slices of a cache that are compared with their files
LEVELS = np.empty((len(KINDS), 2))  # what black and white of each kind take in the cache


def short_hash(value):
    """16 hex digits of the SHA-256 of repr(value)."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def load_folder(folder, files, resolution, num_workers=None, label=None):
    """Read the `files` of `folder` (as `find_slices` lists them) from the cache; decode them into it if it is missing or old.

    Returns (pixels uint8 [len(files), R, R], status and levels of `decode.Files`, note): pixels are a memory map of the cache; note
    is None, or the reason why it cannot be written, with the pixels in memory.
    """
    base = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME")
    cache = os.path.join(base or os.path.join(os.path.expanduser("~"), ".cache"), "stylegan2-brain")
    identity = short_hash(os.path.realpath(folder))
    prefix = os.path.join(cache, f"{os.path.basename(folder)}-{identity}-{resolution}-")
    path = f"{prefix}{short_hash((CACHE_VERSION, resolution, files))}.npy"
    # One array, so that one rename replaces everything: an image per file, then the status bytes of all files and the levels.
    shape = len(files) + -(-(len(files) + LEVELS.nbytes) // resolution**2), resolution, resolution
    rows, note = read_cache(path, shape, folder, files), None
    if rows is None:
        try:
            os.makedirs(cache, exist_ok=True)
            with one_at_a_time(os.path.join(cache, f".{identity}-{resolution}.lock")) as waited:
                if waited:
                    rows = read_cache(path, shape, folder, files)  # which nobody may rename another file over: it is mapped
                if rows is None:
                    remove_stale(prefix, keep=path)
                    write_cache(path, shape, folder, files, num_workers, label)
                    rows = np.lib.format.open_memmap(path, mode="r")
        except OSError as error:
            note = f"no cache in {cache} ({error.strerror or error}): slices stay in memory, the next run decodes again"
            rows = np.zeros(shape, np.uint8)
            fill(rows, folder, files, num_workers, label)
    status, levels = facts(rows, len(files))
    levels = {kind: tuple(pair) for kind, pair in zip(KINDS, levels.tolist()) if kind != KINDS[0] and code_of(kind) in status}
    return rows[: len(files)], status, levels, note


@contextlib.contextmanager
def one_at_a_time(path):
    """A context that one process at a time enters, or any after WAIT seconds; with whether it has waited. path: of the lock."""
    lock, begun, waited = None, time.monotonic(), False
    while lock is None and time.monotonic() - begun < WAIT:
        try:
            lock = Lock(path)
        except Held:
            waited = True
            time.sleep(0.2)
    try:
        yield waited
    finally:
        if lock is not None:
            lock.release()


def write_cache(path, shape, folder, files, num_workers, label):
    """Decode all `files` into a new cache at `path`."""
    with atomic_path(path) as temporary:
        rows = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        if hasattr(os, "posix_fallocate"):  # OSError if the disk is full, where writing would kill the process
            with open(temporary, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, os.path.getsize(temporary))
        fill(rows, folder, files, num_workers, label)
        rows.flush()
        del rows  # Windows cannot rename a file that is still mapped


def facts(rows, count):
    """Of `count` files in `rows`: the status bytes, a view uint8 [count], and the levels, a view float64 of the shape of LEVELS."""
    end = rows[count:].reshape(-1)
    return end[:count], end[count : count + LEVELS.nbytes].view(np.float64).reshape(LEVELS.shape)


def fill(rows, folder, files, num_workers, label):
    """Decode all `files` into `rows` and write their status bytes and levels; the row of an unreadable file stays black."""

    def fill_row(i, _, grey):
        rows[i] = pad_and_resize(grey, rows.shape[1])
        return True

    found = read_files([os.path.join(folder, file) for file, *_ in files], fill_row, num_workers, label)
    status, levels = facts(rows, len(files))
    status[:], levels[:] = found.status, [found.levels.get(kind, FULL_RANGE) for kind in KINDS]


def read_cache(path, shape, folder, files):
    """The array in the cache at `path`; None if it is missing, damaged or out of date."""
    try:
        rows = np.lib.format.open_memmap(path, mode="r")
    except Exception:  # NumPy raises nearly any error on a missing or damaged file
        return None
    status, levels = facts(rows, len(files)) if (rows.shape, rows.dtype) == (shape, np.uint8) else ([0], LEVELS)
    if not np.isin(status, (UNREADABLE, PAGES, *map(code_of, KINDS))).all() or not np.isfinite(levels).all():
        return None
    # Unreadable files may have become readable without a new time, when a network disk came back. A few others are compared: a disk
    # may have garbled the pixels, and Windows has no time that replaced files cannot keep.
    lost, readable = np.flatnonzero(status < FIRST_KIND), np.flatnonzero(status >= FIRST_KIND)
    few, levels = [*lost, *readable[:: -(-len(readable) // COMPARED) or 1]], dict(zip(KINDS, map(tuple, levels)))
    again = for_each(lambda i: decode(os.path.join(folder, files[i][0]), shape[1], levels), few)
    same = [
        image is None or status[i] >= FIRST_KIND and np.abs(image - rows[i].astype(int)).mean() < 1 for i, image in zip(few, again)
    ]
    return rows if all(same) else None


def remove_stale(prefix, keep):
    """Delete the caches whose path starts with `prefix`, except `keep`, and temporary files older than a day."""
    temporary = os.path.join(glob.escape(os.path.dirname(prefix)), ".tmp-*.npy")
    for path in glob.glob(glob.escape(prefix) + "*.npy") + glob.glob(temporary):
        try:
            if path != keep and (path.startswith(prefix) or time.time() - os.path.getmtime(path) > 86400):
                os.unlink(path)
        except OSError:  # another run has deleted it, or (on Windows) still reads it
            pass
