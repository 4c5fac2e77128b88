"""The progress bar of training, and the signals that end it after the step under way."""

import signal
import sys
import time

from tqdm import tqdm

from startup import STOPPING
from utils import Interrupted


def progress_bar(name, schedule, images, shown):
    """A bar over all images of the run `name`, of which `images` have been shown; on no terminal a line every 20 seconds."""
    return tqdm(
        total=schedule.images,
        initial=images,
        unit=" images",
        desc=name,
        smoothing=0.1,
        mininterval=0.5 if sys.stderr.isatty() else 20,
        disable=not shown,
        bar_format="{desc} {percentage:3.0f}%|{bar:16}| {rate_noinv_fmt}{postfix}",
    )


def show_progress(bar, name, row, schedule):
    """Show epoch, losses and the time left until the last epoch or the deadline; row: of losses.csv."""
    if bar.disable:
        return
    rate = bar.format_dict["rate"] or (bar.n - bar.initial) / max(1e-9, bar.format_dict["elapsed"])
    left = min((bar.total - bar.n) / max(1e-9, rate), max(0, schedule.deadline - time.monotonic()))
    epoch = min(int(row["epoch"]) + 1, schedule.epochs)
    stage = f" at {row['resolution']}x{row['resolution']}" if row["resolution"] < schedule.resolution else ""
    bar.set_description_str(f"{name} epoch {epoch}/{schedule.epochs}{stage}", refresh=False)
    bar.set_postfix_str(
        f"critic {row['critic_loss']:.2f}, generator {row['generator_loss']:.2f}, "
        f"Wasserstein {row['wasserstein']:.2f}, left {tqdm.format_interval(left)}",
        refresh=False,
    )


class StopSignals:
    """A context in which Ctrl-C, SIGTERM and SIGUSR1 only set `signum`, so that the step under way can end and be saved.

    Another one acts at once, but within two seconds is taken for the same: `timeout` signals a process and then its group.
    """

    def __enter__(self):
        self.signum, self.time = None, float("inf")
        self.previous = {signum: signal.signal(signum, self.handle) for signum in STOPPING}
        return self

    def handle(self, signum, _frame):
        if time.monotonic() - self.time > 2:
            raise Interrupted(signum)
        if not self.signum:
            self.signum, self.time = signum, time.monotonic()

    def __exit__(self, *_):
        for signum, handler in self.previous.items():
            signal.signal(signum, handler)
