"""The progress bar of training: epoch, losses, images/s and the time left."""

import os
import sys
import time

from tqdm import tqdm


def progress_bar(folder, args, per_epoch, step, shown):
    """A bar over all images of the run; on no terminal a line every 20 seconds."""
    return tqdm(
        total=args.epochs * per_epoch * args.batch_size,
        initial=step * args.batch_size,
        unit=" images",
        desc=os.path.basename(folder),
        smoothing=0.1,
        mininterval=0.5 if sys.stderr.isatty() else 20,
        disable=not shown,
        bar_format="{desc} {percentage:3.0f}%|{bar:16}| {rate_noinv_fmt}{postfix}",
    )


def show_progress(bar, folder, row, args, deadline):
    """Show epoch, losses and the time left until the last epoch or the deadline (time.monotonic() seconds)."""
    if bar.disable:
        return
    rate = bar.format_dict["rate"] or (bar.n - bar.initial) / max(1e-9, bar.format_dict["elapsed"])
    left = min((bar.total - bar.n) / max(1e-9, rate), max(0, deadline - time.monotonic()))
    epoch = min(int(row["epoch"]) + 1, args.epochs)
    stage = f" at {row['resolution']}x{row['resolution']}" if row["resolution"] < args.resolution else ""
    bar.set_description_str(f"{os.path.basename(folder)} epoch {epoch}/{args.epochs}{stage}", refresh=False)
    bar.set_postfix_str(
        f"critic {row['critic_loss']:.2f}, generator {row['generator_loss']:.2f}, "
        f"Wasserstein {row['wasserstein']:.2f}, left {tqdm.format_interval(left)}",
        refresh=False,
    )
