"""Scans prepared by several processes, none of which can stop the others.

for result in run_jobs(jobs, num_workers=8):        # jobs: of volume_steps.prepare_scan
    print(result["image"], result.get("error"))
"""

import functools
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from tqdm import tqdm

from data.volume_steps import prepare_scan
from startup import start_workers

MAX_PROCESSES = 61  # the most that Windows can wait for
DIED = "its process died, most likely for lack of memory: try fewer --num_workers"


def start_worker():
    """Leave Ctrl-C to the parent, which ends this process; end it, too, if the parent is killed."""
    for signum in (signal.SIGINT, getattr(signal, "SIGUSR1", signal.SIGINT)):
        signal.signal(signum, signal.SIG_IGN)

    def follow():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def run_jobs(jobs, num_workers, work=prepare_scan):
    """Yield what work(job) returns of each job, as soon as it has it.

    Of the jobs under way when a process dies (out of memory, a fault in a library), each is tried again alone; one of which the
    process dies again gives {"image", "error"}. The others go on with half as many processes. Closing the generator, or an
    exception in it, ends the processes at once.
    """
    waiting, suspects = deque(jobs), deque()
    while waiting or suspects:
        alone, queue = (True, suspects) if suspects else (False, waiting)
        limit = 1 if alone else min(num_workers, len(waiting), MAX_PROCESSES)
        pool = ProcessPoolExecutor(limit, multiprocessing.get_context("spawn"), start_worker)
        running = {}
        try:
            while queue or running:
                while queue and len(running) < limit:  # no more than that: a pool that breaks fails all that it has
                    running[start_workers(functools.partial(pool.submit, work, queue[0]))] = queue[0]
                    queue.popleft()
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield future.result()
                    del running[future]
        except BrokenProcessPool:
            if alone:
                (job,) = running.values() or (queue.popleft(),)
                yield {"image": job.volume.image, "error": DIED}
            else:
                suspects.extend(running.values())
                num_workers = max(1, limit // 2)
                tqdm.write(f"warning: a process died, most likely for lack of memory: going on with {num_workers}", file=sys.stderr)
        finally:
            for child in multiprocessing.active_children() if running else ():
                child.terminate()
            pool.shutdown(cancel_futures=True)
