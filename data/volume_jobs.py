"""Scans prepared by several processes, none of which can stop the others.

for result in run_jobs(jobs, 8, functools.partial(prepare_scan, draw=report.volume_pictures.save)):
    print(result["image"], result.get("error"))
"""

import contextlib
import errno
import functools
import glob
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm

from data.dicom import LEFT_OUT, reason, require, sitk
from data.volume_steps import Settings, cut_slices, panel_of
from data.volume_strip import write_mask
from data.volumes import Volume, file_checksum, read_volume
from startup import start_workers
from utils import UserError, atomic_path, printable

MAX_PROCESSES = 61  # the most that Windows can wait for
DIED = "its process died, most likely for lack of memory: try fewer --num_workers"


class Job(NamedTuple):
    """A scan to prepare."""

    volume: Volume
    mask: str | None  # a NIfTI file
    folder: str  # for its slices
    picture: str | None  # where to show its steps
    settings: Settings
    keep_doubtful: bool = False  # of --strip


def prepare_scan(job, draw=None):
    """Write the slices of a Job; returns what is recorded of it, or {"image", "error"} if it failed, with {"full": True} where the
    disk is full. draw(panels, pixels, title, path): draws the picture of a Job that has one. Raises no Exception.
    """
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # the processes are the threads, and sums keep one order
    result = {"image": job.volume.image}
    try:
        remove_slices(job)  # of an earlier run that was cut off
        return result | write_scan(job, draw)
    except Exception as error:  # whatever is wrong with one scan, the others go on
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        text = reason(error) if isinstance(error, RuntimeError) else text  # SimpleITK's
        full = {"full": True} if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) else {}
    with contextlib.suppress(OSError):
        remove_slices(job)
    return result | {"error": printable(text)[:300]} | full


def remove_slices(job):
    """Remove the slices that a Job would write."""
    for old in glob.glob(os.path.join(glob.escape(job.folder), f"{job.volume.image}_*")):
        os.unlink(old)


def write_scan(job, draw):
    """Write the slices and the picture of a Job; returns what is recorded of it."""
    start = time.monotonic()
    stamp, source = job.volume.stamp(), job.volume.checksum()
    image = read_volume(job.volume)
    panels, shape, spacing = [], image.GetSize(), image.GetSpacing()
    left_out = {"left_out": image.GetMetaData(LEFT_OUT)} if image.HasMetaDataKey(LEFT_OUT) else {}
    show = (lambda *step: panels.append(panel_of(*step))) if job.picture else None
    found = {}
    if job.settings.strip:
        made, doubt = write_mask(image, job.mask, job.settings.slices_in == "mm")
        found = {"strip": made} | ({"doubt": doubt} if doubt else {})
        advice = "--keep_doubtful True keeps it as it is, --masks takes a better one"
        require(job.keep_doubtful or not doubt, f"doubtful mask, see {job.mask}: {doubt}; {advice}")
    pixels, numbers = cut_slices(image, job.settings, job.mask, show, check=True)
    slices = write_slices(job, pixels, numbers)
    if job.picture:
        title = f"image {job.volume.image}, {job.settings.plane} slices {numbers[0]} to {numbers[-1]}"
        draw(panels, pixels, title, job.picture)
    return {
        "format": job.volume.format,
        "stamp": stamp,
        "sha256": source,
        **left_out,
        **found,
        "mask": job.mask and file_checksum(job.mask),
        "voxels": shape,
        "spacing": [round(side, 5) for side in spacing],
        "slices": slices,
        "seconds": round(time.monotonic() - start, 2),
    }


def write_slices(job, pixels, numbers):
    """Write <image>_<number>.jpeg or .png for each slice; returns {name: SHA-256}."""
    written = {}
    for plane, number in zip(pixels, numbers):
        name = f"{job.volume.image}_{number}.{job.settings.format}"
        with atomic_path(os.path.join(job.folder, name)) as temporary:
            Image.fromarray(plane).save(temporary, quality=95)  # quality: of JPEG
            written[name] = file_checksum(temporary)
    return written


def start_worker():
    """Leave Ctrl-C to the parent, which ends this process; end it, too, if the parent is killed."""
    for signum in (signal.SIGINT, getattr(signal, "SIGUSR1", signal.SIGINT)):
        signal.signal(signum, signal.SIG_IGN)

    def follow():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def run_jobs(jobs, num_workers, work=prepare_scan):
    """Yield what work(job) returns of each job, in order.

    Where a process dies (out of memory, a fault in a library), half as many go on from the first job without a result; one that
    dies alone gives {"image", "error"}. Closing the generator, or an exception in it, ends the processes at once.
    """
    waiting, workers = deque(jobs), num_workers
    while waiting:
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(min(workers, len(waiting), MAX_PROCESSES), context, start_worker)
        try:
            for result in start_workers(functools.partial(pool.map, work, list(waiting))):
                yield result
                waiting.popleft()
        except BrokenProcessPool:
            if workers > 1:
                workers //= 2
                tqdm.write(f"warning: a process died, most likely for lack of memory: going on with {workers}", file=sys.stderr)
            else:
                yield {"image": waiting.popleft().volume.image, "error": DIED}
                workers = num_workers
        finally:
            for child in multiprocessing.active_children() if waiting else ():
                child.terminate()
            pool.shutdown(cancel_futures=True)
