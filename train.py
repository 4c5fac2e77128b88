"""Train StyleGAN2 on brain MRI slices with WGAN-GP or another adversarial loss.

    python train.py --dataset_dir AD_NC/train --classes AD

Trains on one class or on both, and keeps everything about the run in <model_dir>/<AD|NC|all|all-conditional>. One step is in
training/step.py, the losses in training/loss.py, the files of a run in training/run_folder.py.
"""

import contextlib
import itertools
import math
import os
import signal
import sys
import time

from utils import (
    CLASSES,
    LARGEST,
    RESOLUTIONS,
    ArgumentParser,
    Group,
    StopSignals,
    UserError,
    answer_early,
    make_folder,
    number,
    pick_device,
    pick_dtype,
    read_config,
    read_network,
    run_cli,
)

LAMBDA_GP = {"wgan-gp": 10.0, "logistic": 5.0, "relativistic": 5.0}  # defaults of --lambda_gp
GP_EVERY = {"wgan-gp": 1, "logistic": 8, "relativistic": 8}  # defaults of --gp_every
LOSSES = tuple(LAMBDA_GP)
DEFAULTS = {
    "a GPU": {"channel_base": 8192, "channel_max": 256, "batch_size": 32, "lr": 2e-3},
    "a CPU": {"channel_base": 1024, "channel_max": 64, "batch_size": 16, "lr": 4e-3},
}


def by_device(name):
    return "default: " + ", ".join(f"{values[name]:g} on {device}" for device, values in DEFAULTS.items())


def parse_args(argv=None):
    """The flags. Those whose default depends on the device or on the run to resume are None until `fill_defaults`."""
    parser = ArgumentParser(
        "Train StyleGAN2 on brain slices. A run is a folder, <model_dir>/<classes>; the same command resumes it.",
        "train.py --dataset_dir AD_NC/train --classes AD",
        "train.py --dataset_dir AD_NC/train --classes all --conditional True",
        "train.py --dataset_dir AD_NC/train --classes AD --loss relativistic --max_minutes 9",
    )
    data = Group(parser, "data")
    data.add("--dataset_dir", required=True, help="folder that holds AD/ and NC/, such as AD_NC/train")
    data.add("--classes", choices=("all", *CLASSES), default="all", help="slices to learn from")
    data.add_bool("--conditional", False, "with --classes all: one model that is told the class")
    data.add("--resolution", type=int, choices=RESOLUTIONS, default=256, help="pixels a side")
    data.add(
        "--test_dir",
        help="slices that evaluations compare with beside the training slices (default: test/ beside "
        "--dataset_dir, if there is one)",
    )
    data.add("--num_workers", type=number(int, 1, 1024), help="threads that decode images on the first pass (default: one a core)")

    run = Group(parser, "the run")
    run.add("--model_dir", default="model", help="folder of the runs")
    run.add_bool("--resume", True, "resume the run if there is one; False renames its folder and starts a new run")
    run.add("--epochs", type=number(int, 1, 10**9), default=100, help="passes over the slices")
    run.add("--max_minutes", type=number(float, 0, math.inf, open_low=True), default=math.inf, help="save and stop after this long")
    run.add("--save_every", type=number(int, 1), default=5, help="epochs between two saves")
    run.add(
        "--eval_every",
        type=number(int, 0),
        default=5,
        help="epochs between two evaluations (standardised KID, precision, recall, the critic's scores); 0: none",
    )
    run.add("--seed", type=number(int, 0, 2**63 - 1), default=0, help="of weights, order, latents and noise")
    run.add_bool("--debug", False, "print statistics of every block's activations at the start, at saves and at evaluations")
    run.add_bool("--tensorboard", False, "also write TensorBoard event files; needs the package tensorboard")
    run.add_bool("--dry_run", False, "check everything, print the plan and exit")

    network = Group(parser, "the networks")
    network.add(
        "--channel_base",
        type=number(int, 32, LARGEST["channel_base"]),
        help=f"feature maps at a resolution: channel_base / resolution ... ({by_device('channel_base')})",
    )
    network.add(
        "--channel_max", type=number(int, 1, LARGEST["channel_max"]), help=f"... and at most this many ({by_device('channel_max')})"
    )

    training = Group(parser, "training")
    training.add(
        "--batch_size", type=number(int, 2, 2**16), help=f"slices per step, of all processes together ({by_device('batch_size')})"
    )
    training.add("--lr", type=number(float, 0, open_low=True), help=f"Adam's learning rate ({by_device('lr')})")
    training.add("--lr_critic", type=number(float, 0, open_low=True), help="the critic's learning rate (default: --lr)")
    training.add(
        "--lr_decay",
        type=number(float, 0, 1),
        default=0.0,
        help="share of the run, at its end, over which both rates fall to 0; the end is that of --epochs or --max_minutes, "
        "whichever is nearer; a resumed run never raises them again",
    )
    training.add(
        "--loss",
        choices=LOSSES,
        default=LOSSES[0],
        help="what the networks minimise; relativistic did better in the same time (docs/results.md)",
    )
    training.add(
        "--lambda_gp",
        type=number(float, 0),
        help="weight of the gradient penalty (default: "
        + ", ".join(f"{weight:g} with {kind}" for kind, weight in LAMBDA_GP.items())
        + ")",
    )
    training.add(
        "--gp_every",
        type=number(int, 1, 10**6),
        help="steps between two gradient penalties, each weighted by as many "
        "(default: " + ", ".join(f"{every} with {kind}" for kind, every in GP_EVERY.items()) + ")",
    )
    training.add_bool("--bounded", True, "clip generated slices to black and white, as real ones are, for the critic")
    training.add(
        "--augment",
        choices=("ada", "fixed", "none"),
        default="none",
        help="augmentation of what the critic sees; ada: as strong as the critic overfits",
    )
    training.add("--augment_p", type=number(float, 0, 1), help="probability of each augmentation; for --augment fixed")
    training.add("--style_mixing", type=number(float, 0, 1), default=0.0, help="probability of mixing the styles of two latents")
    training.add("--path_length", type=number(float, 0), default=0.0, help="weight of the path length penalty")
    training.add(
        "--ema_kimg",
        type=number(float, 0, open_low=True),
        default=10.0,
        help="half-life of the averaged generator in thousand images, less at the start",
    )

    machine = Group(parser, "the machine")
    machine.add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    machine.add_bool(
        "--amp",
        None,
        "activations in bfloat16, in the gradient penalty down to 32x32 (default: on a processor with instructions for it: a CPU "
        "with AMX or AVX512-BF16, a GPU from Ampere on)",
    )
    machine.add(
        "--grad_accum", type=number(int, 1), default=1, help="micro-batches per step and process, for GPUs with little memory"
    )

    args = parser.parse_args(argv)
    if args.conditional and args.classes != "all":
        raise UserError(f"--conditional True needs both classes: use it with --classes all, not {args.classes}")
    if (args.augment == "fixed") != (args.augment_p is not None):
        raise UserError("--augment fixed and --augment_p belong together, such as --augment fixed --augment_p 0.3")
    args.augment_p = args.augment_p or 0.0
    args.lambda_gp = LAMBDA_GP[args.loss] if args.lambda_gp is None else args.lambda_gp
    args.gp_every = args.gp_every or GP_EVERY[args.loss]
    return args


def fill_defaults(args, device, folder=None):
    """Fill in flags that are None: from the run in `folder` if it is to be resumed, else as suits the torch.device."""
    saved = read_network(folder) | read_learning_flags(folder) if folder else {}
    if args.lr is not None:
        saved.pop("lr_critic", None)  # a new --lr is for both, unless --lr_critic says otherwise
    defaults = DEFAULTS["a CPU" if device.type == "cpu" else "a GPU"] | {"amp": pick_dtype(None, device) == torch.bfloat16}
    for name, value in (defaults | saved).items():
        if getattr(args, name, 0) is None:
            setattr(args, name, value)
    args.lr_critic = args.lr_critic or args.lr
    return args


def read_learning_flags(folder):
    """Batch size and learning rates of the run in `folder`, as far as its config.json holds valid ones."""
    flags = read_config(folder).get("flags", {})
    valid = {}
    for name, kind, largest in (("batch_size", int, 2**16), ("lr", float, 1e10), ("lr_critic", float, 1e10)):
        if type(flags.get(name)) is kind and 0 < flags[name] <= largest:
            valid[name] = flags[name]
    return valid


if __name__ == "__main__":
    answer_early(parse_args)  # --help and typing errors need no PyTorch, which takes seconds to import

import torch

from analysis.validation import VALIDATION, Validation
from dataset import Slices, batches, find_splits, steps_per_epoch
from training.ada import HELD_OUT_EVERY
from training.checkpoint import has_checkpoint
from training.distributed import Processes, check_divisible
from training.monitor import Alerts, memory_gib
from training.plan import print_plan
from training.progress import progress_bar, show_progress
from training.run_folder import RunFolder, check_same_run, lock_folder, set_aside
from training.step import TERMS, Batch, Options, TrainingState, train_step

Z_DIM = W_DIM = 256
QUICK = "--resolution 64 --loss relativistic"
LOG_STEPS, LOG_SECONDS = 16, 20  # a row of losses.csv averages at most so many steps and seconds
MAX_SKIPPED = 5  # steps with gradients that are not finite, in one row or in several without others, before going back
POSITION = "step", "epoch", "images", "seconds"
LOSS_COLUMNS = (*POSITION, "images_per_second", "memory_gib", "lr", "augment_p", "skipped", *TERMS)
EVALUATION_COLUMNS = (*POSITION, *VALIDATION)


# ---------------------------------------------------------------------------------------------------------------------
# The loop


def train(args, slices, held_out, folder, config, device, dtype, processes, deadline):
    """Train until `args.epochs`, the deadline (time.monotonic() seconds) or a signal; returns the process's exit status."""
    state = TrainingState(
        Options(**{name: getattr(args, name) for name in Options._fields}), config["network"], device, dtype, processes
    )
    std_columns = tuple(f"std {name}" for name in state.activations.names)
    tables = {"losses": LOSS_COLUMNS + std_columns, "evaluations": EVALUATION_COLUMNS}
    run = RunFolder(folder, config, slices, tables, processes, args.tensorboard)
    processes.barrier()  # all have looked for a checkpoint before one is written
    batch_size, per_epoch = args.batch_size, steps_per_epoch(len(slices), args.batch_size)
    step, last_step = run.resume(state) // batch_size if run.exists else 0, args.epochs * per_epoch
    if step >= last_step:
        if processes.leading:
            print(f"{folder}: {args.epochs} epochs are done already; --epochs {2 * args.epochs} would continue")
        return 0
    if not run.exists:
        run.start(state)
    if args.lr_decay and run.lr_decay < 1 and processes.leading:
        print(f"note: {folder} resumes at {run.lr_decay:.3g} of its learning rate, as --lr_decay left it; --lr_decay 0 resets it")
    micro_batch = batch_size // (processes.size * args.grad_accum)
    validation = None
    if args.eval_every and processes.leading:
        validation = Validation(slices, held_out, Z_DIM, config["network"]["num_classes"], device)
    alerts, terms, skipped_in_a_row, time_share = Alerts(), [], 0, 0.0
    data = training_batches(slices, held_out, args, processes, device, step)
    begun = row_begun = time.monotonic()
    with StopSignals() as signals, progress_bar(folder, args, per_epoch, step, processes.leading) as bar:
        while True:
            # Step
            if args.lr_decay:
                run.lr_decay = min(run.lr_decay, decay_factor(max(step / last_step, time_share), args.lr_decay))
            else:
                run.lr_decay = 1.0
            state.scale_learning_rates(run.lr_scale * run.lr_decay)
            with state.activations.recording(not terms):  # once per row
                terms.append(train_step(state, step, next(data)))
            step += 1
            bar.update(batch_size)

            # What is due now, in all processes alike
            now = time.monotonic()
            elapsed = (now - begun) / (deadline - begun) if deadline > begun else 1.0
            signum, time_share, row_due = processes.maximum(signals.signum or 0, elapsed, now - row_begun >= LOG_SECONDS)
            stopping = signum or time_share >= 1 or step == last_step
            save_due = stopping or step % (args.save_every * per_epoch) == 0
            evaluation_due = bool(args.eval_every) and not signum and (stopping or step % (args.eval_every * per_epoch) == 0)
            if not (row_due or save_due or evaluation_due or len(terms) == LOG_STEPS):
                continue

            # Log
            row, skipped = mean_row(terms)  # the only wait for the GPU
            skipped_in_a_row = skipped + (skipped_in_a_row if skipped == len(terms) else 0)
            if skipped_in_a_row > MAX_SKIPPED:
                reason = f"the gradients of {skipped_in_a_row} steps shortly before step {step} are not finite"
                step = run.go_back(state, reason) // batch_size
                data.close()
                data = training_batches(slices, held_out, args, processes, device, step)
                terms, skipped_in_a_row, row_begun = [], 0, time.monotonic()
                bar.n = step * batch_size
                continue
            if skipped:
                run.report(f"skipped {skipped} of the {len(terms)} steps before step {step}: their gradients are not finite")
            seconds = time.monotonic() - row_begun
            run.seconds, run.skipped = run.seconds + seconds, run.skipped + skipped
            position = {"step": step, "epoch": step / per_epoch, "images": step * batch_size, "seconds": run.seconds}
            row |= position | {
                "images_per_second": len(terms) * batch_size / seconds,
                "memory_gib": memory_gib(device),
                "lr": state.model_optimizer.param_groups[0]["lr"],
                "skipped": run.skipped,
                "augment_p": float(state.augmentation.p),
            }
            row |= dict(zip(std_columns, state.activations.standard_deviations().tolist()))
            run.log("losses", row)
            show_progress(bar, folder, row, args, deadline)

            # Evaluate
            rows = [row]
            if evaluation_due and validation:
                rows.append(position | validation(state.averaged, state.critic, micro_batch))
                run.log_evaluation(rows[-1], state.averaged)

            # Watch
            for line in itertools.chain.from_iterable(map(alerts.check, rows)):
                run.report(line)
            if args.debug and processes.leading and (save_due or evaluation_due or len(run.rows["losses"]) == 1):
                bar.write(f"step {step}\n{state.activations.table()}")

            # Save
            if save_due:
                run.save(state, step * batch_size, epoch=-(-step // per_epoch))
            if stopping:
                break
            terms, row_begun = [], time.monotonic()
    return exit_status(folder, step, int(signum), args, per_epoch, processes.leading)


def training_batches(slices, held_out, args, processes, device, step):
    """Endless `Batch`es of this process from step number `step` on; for --augment ada some with held-out images."""

    def shards(source, start_step):
        return batches(source, args.batch_size, device, args.seed, start_step, shards=processes.size, shard_index=processes.rank)

    real = shards(slices, step)
    unseen = shards(held_out, -(-step // HELD_OUT_EVERY)) if held_out and args.augment == "ada" else None
    for k in itertools.count(step):
        batch = Batch(*next(real), *(next(unseen) if unseen and k % HELD_OUT_EVERY == 0 else ()))
        yield batch if args.conditional else batch._replace(labels=None, held_out_labels=None)


def decay_factor(done, decay_share):
    """Factor of the learning rates when a share `done` of the run is over: 1, then linearly to 0 over the last `decay_share`."""
    return min(1.0, max(0.0, 1 - done) / decay_share)


def mean_row(terms):
    """A row of the terms of several steps: {name of TERMS: mean over the finite ones, nan if there are none}, steps skipped."""
    names = [name for term in terms for name in term]
    values = torch.stack([value.float() for term in terms for value in term.values()]).tolist()
    columns = {name: [] for name in TERMS}
    for name, value in zip(names, values):
        columns[name].append(value)
    gradients = zip(columns["critic_gradient"], columns["generator_gradient"])
    skipped = sum(not math.isfinite(critic + generator) for critic, generator in gradients)
    finite = {name: list(filter(math.isfinite, values)) for name, values in columns.items()}
    return {name: sum(values) / len(values) if values else math.nan for name, values in finite.items()}, skipped


def exit_status(folder, step, signum, args, per_epoch, leading):
    """Print in one line what was reached and how to continue; returns 0, or 128 + signum if a signal ended it early."""
    kimg, finished = step * args.batch_size / 1000, step >= args.epochs * per_epoch
    reason = "stopped by " + signal.Signals(signum).name if signum else f"{args.max_minutes:g} minutes are over"
    if leading and finished:
        print(f"{folder}: {args.epochs} epochs done, {kimg:.1f} kimg")
    elif leading:
        print(f"{folder}: {reason} in epoch {step // per_epoch + 1}, {kimg:.1f} kimg, saved; the same command resumes from here")
    return 128 + signum if signum and not finished else 0


# ---------------------------------------------------------------------------------------------------------------------
# The command


def load_held_out(args):
    """Slices of --test_dir, else of test/ beside --dataset_dir; None if there are none, or nothing would use them."""
    if not args.eval_every and args.augment != "ada" and not args.test_dir:
        return None
    folder = args.test_dir or find_splits(args.dataset_dir, args.classes).get("test")
    if folder is None or os.path.realpath(folder) == os.path.realpath(args.dataset_dir):
        return None
    try:
        return Slices(folder, args.classes, args.resolution, args.num_workers)
    except UserError as error:
        raise UserError(str(error).replace("--dataset_dir", "--test_dir")) from None


def make_config(args, slices):
    """The contents of config.json: network and data, which a run cannot change, and the flags it was started with."""
    return {
        "network": {
            "resolution": args.resolution,
            "channel_base": args.channel_base,
            "channel_max": args.channel_max,
            "z_dim": Z_DIM,
            "w_dim": W_DIM,
            "num_classes": len(CLASSES) if args.conditional else 0,
        },
        "classes": list(CLASSES) if args.classes == "all" else [args.classes],
        "data": {"counts": slices.counts, "fingerprint": slices.fingerprint},
        "flags": vars(args) | {"max_minutes": None if args.max_minutes == math.inf else args.max_minutes},
        "torch": torch.__version__,
    }


def main(argv=None):
    start = time.monotonic()
    args = parse_args(argv)
    device = pick_device(args.device)
    folder = os.path.join(args.model_dir, args.classes + ("-conditional" if args.conditional else ""))
    fill_defaults(args, device, folder if args.resume and has_checkpoint(folder) else None)
    dtype = pick_dtype(args.amp, device)
    processes = Processes(device)
    shards = processes.size * args.grad_accum
    check_divisible(args.batch_size, shards)
    slices, held_out = processes.first_on_each_machine(
        lambda: (Slices(args.dataset_dir, args.classes, args.resolution, args.num_workers, processes.leading), load_held_out(args))
    )
    config = make_config(args, slices)
    exists = has_checkpoint(folder)
    if exists and args.resume:
        changed = check_same_run(folder, config)
        if changed and processes.leading:
            print(f"note: {folder} was started with other flags, and continues with {', '.join(changed)}", file=sys.stderr)
    if device.type == "cpu" and args.resolution > 64 and processes.leading:
        print(f"note: without a GPU this takes long; {QUICK} learns in minutes", file=sys.stderr)
    if args.dry_run:
        if processes.leading:
            print_plan(args, slices, held_out, folder, config, device, dtype, shards, "to be resumed" if exists else "new")
        return 0
    processes.barrier()  # all have looked at the old run
    with contextlib.ExitStack() as stack:
        stack.callback(processes.close)
        if processes.leading:
            make_folder(folder, "--model_dir")
            lock = lock_folder(folder)
            if exists and not args.resume:
                lock.release()  # Windows renames no folder with an open file in it
                set_aside(folder)
                make_folder(folder, "--model_dir")
                lock = lock_folder(folder)
            stack.callback(lock.release)
        processes.barrier()  # the old run has been set aside
        try:
            return train(args, slices, held_out, folder, config, device, dtype, processes, start + 60 * args.max_minutes)
        except torch.OutOfMemoryError:
            raise UserError(
                f"{device} is out of memory at --batch_size {args.batch_size}: raise --grad_accum, or lower it, or "
                "--channel_base, or --resolution (--dry_run prints an estimate)"
            ) from None


if __name__ == "__main__":
    run_cli(main)
