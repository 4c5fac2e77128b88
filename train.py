"""Train StyleGAN2 on brain MRI slices with WGAN-GP or another adversarial loss.

    python train.py --dataset_dir AD_NC/train --classes AD

Trains on one class or on both, and keeps everything about the run in <model_dir>/<AD|NC|all|all-conditional>. One step is in
training/step.py, the losses in training/loss.py, the flags in training/flags.py, the stages of a run that grows in
training/growth.py, the files of a run in training/run_folder.py.
"""

import startup  # noqa: F401  # isort: skip

import contextlib
import itertools
import math
import os
import signal
import sys
import time

from training.flags import fill_defaults, parse_args
from utils import CLASSES, UserError, make_folder, parse_before_import, pick_device, pick_dtype, read_config, run_cli

if __name__ == "__main__":
    parse_before_import(parse_args)  # --help and typing errors need no PyTorch, which takes seconds to import

import torch

from data.damage import damaged_text, find_damaged, leave_out, leave_out_damaged, scans_of
from data.folders import find_splits
from data.subjects import find_subjects, identify, shared_text
from data.view import mirror_warning
from dataset import Slices, batches, steps_per_epoch
from training.ada import HELD_OUT_EVERY
from training.checkpoint import read_checkpoint
from training.distributed import Processes, check_divisible
from training.growth import Stage, fade_images, first_resolution, grow, resolution_at, set_fade, stage_shares
from training.monitor import Alerts, layer_names, memory_gib
from training.plan import describe_recipe, out_of_memory, print_plan
from training.progress import StopSignals, progress_bar, show_progress
from training.recipes import Options
from training.run_folder import RunFolder, check_place, check_same_run, find_run, lock_folder, set_aside
from training.source import describe_source, read_source, start_from
from training.step import TERMS, Batch, TrainingState, train_step
from training.validation import VALIDATION, Validation

Z_DIM = W_DIM = 256
QUICK = "--resolution 64 --loss relativistic"
LOG_STEPS, LOG_SECONDS = 16, 20  # a row of losses.csv averages at most so many steps and seconds
MAX_SKIPPED = 5  # steps with gradients that are not finite, in one row or in several without others, before going back
POSITION = "step", "epoch", "images", "seconds", "resolution"
LOSS_COLUMNS = (*POSITION, "images_per_second", "memory_gib", "lr", "augment_p", "skipped", *TERMS)
EVALUATION_COLUMNS = (*POSITION, *VALIDATION)


# ---------------------------------------------------------------------------------------------------------------------
# The loop


def train(args, slices, held_out, folder, config, device, dtype, processes, deadline, source=None):
    """Train until `args.epochs`, the deadline (time.monotonic() seconds) or a signal; returns the process's exit status.

    source: what `source.read_source` has read of the run that a new one starts from, or None.
    """

    def new_state(resolution, network=config["network"]):
        options = Options(**{name: getattr(args, name) for name in Options._fields})
        return TrainingState(options, network | {"resolution": resolution}, device, dtype, processes)

    std_columns = tuple(f"std {name}" for name in layer_names(args.resolution))
    tables = {"losses": LOSS_COLUMNS + std_columns, "evaluations": EVALUATION_COLUMNS}
    run = RunFolder(folder, config, slices, tables, processes, args.tensorboard)
    processes.barrier()  # all have looked for a checkpoint before one is written
    if run.exists:
        state = run.resume(new_state)
    else:
        state, run.stage = first_stage(args, source, new_state)
        run.first_resolution = state.resolution
        run.start(state)
    batch_size, per_epoch = args.batch_size, steps_per_epoch(len(slices), args.batch_size)
    step, last_step = run.saved_images // batch_size, args.epochs * per_epoch
    shares = stage_shares(args, run.first_resolution)
    if step >= last_step and state.resolution == args.resolution:
        if processes.leading:
            print(f"{folder}: {args.epochs} epochs are done already; --epochs {2 * args.epochs} would continue")
        return 0
    if args.lr_decay and run.lr_decay < 1 and processes.leading:
        print(f"note: {folder} resumes at {run.lr_decay:.3g} of its learning rate, as --lr_decay left it; --lr_decay 0 resets it")
    validation = None
    if args.eval_every and processes.leading:
        validation = Validation(slices, held_out, Z_DIM, config["network"]["num_classes"], device, args.mirror)
    micro_batch = batch_size // (processes.size * args.grad_accum)
    alerts, terms, skipped_in_a_row, time_share, done_before = Alerts(), [], 0, 0.0, run.done
    data = training_batches(slices, held_out, args, processes, device, step)
    begun = row_begun = time.monotonic()
    with StopSignals() as signals, progress_bar(folder, args, per_epoch, step, processes.leading) as bar:
        while True:
            # Grow
            if resolution_at(shares, run.done) > state.resolution:
                state = grow(state, new_state(resolution_at(shares, run.done)))
                run.stage = Stage(state.resolution, step * batch_size, fade_images(step * batch_size))

            # Step
            set_fade(state.critic, run.stage, step * batch_size)
            if args.lr_decay:
                run.lr_decay = min(run.lr_decay, decay_factor(max(step / last_step, time_share), args.lr_decay))
            else:
                run.lr_decay = 1.0
            state.scale_learning_rates(run.lr_scale * run.lr_decay)
            with state.activations.recording(not terms):  # once per row
                terms.append(train_step(state, step, next(data).resized(state.resolution)))
            step += 1
            bar.update(batch_size)

            # What is due now, in all processes alike
            now = time.monotonic()
            elapsed = (now - begun) / (deadline - begun) if deadline > begun else 1.0
            signum, time_share, row_due = processes.maximum(signals.signum or 0, elapsed, now - row_begun >= LOG_SECONDS)
            run.done = max(run.done, step / last_step, done_before + (1 - done_before) * min(1.0, time_share))
            stage_over = resolution_at(shares, run.done) > state.resolution
            stopping = signum or time_share >= 1 or (step >= last_step and not stage_over)
            save_due = stopping or stage_over or step % (args.save_every * per_epoch) == 0
            evaluation_due = bool(args.eval_every) and not signum and (stopping or step % (args.eval_every * per_epoch) == 0)
            if not (row_due or save_due or evaluation_due or len(terms) == LOG_STEPS):
                continue

            # Log
            row, skipped = mean_row(terms)  # the only wait for the GPU
            skipped_in_a_row = skipped + (skipped_in_a_row if skipped == len(terms) else 0)
            if skipped_in_a_row > MAX_SKIPPED:
                reason = f"the gradients of {skipped_in_a_row} steps shortly before step {step} are not finite"
                state = run.go_back(new_state, reason)
                step = run.saved_images // batch_size
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
            position["resolution"] = state.resolution
            row |= position | {
                "images_per_second": len(terms) * batch_size / seconds,
                "memory_gib": memory_gib(device),
                "lr": state.model_optimizer.param_groups[0]["lr"],
                "skipped": run.skipped,
                "augment_p": float(state.augmentation.p),
            }
            deviations = dict(zip(state.activations.names, state.activations.standard_deviations().tolist()))
            row |= {f"std {name}": deviations.get(name, math.nan) for name in layer_names(args.resolution)}
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
                run.save(state, step * batch_size, -(-step // per_epoch), stage_over)
            if stopping:
                break
            terms, row_begun = [], time.monotonic()
    return exit_status(folder, step, state.resolution, int(signum), args, per_epoch, processes.leading)


def first_stage(args, source, new_state):
    """The TrainingState of a new run, with the networks of `source`, if it is to start from another run, and its Stage."""
    resolution = first_resolution(args, source)
    state = new_state(resolution)
    if source is None:
        return state, Stage(resolution)
    saved, network = source
    start_from(source, state, new_state(network["resolution"], network))
    return state, Stage(resolution, fade_images=fade_images(saved["images"]))


def training_batches(slices, held_out, args, processes, device, step):
    """Endless `Batch`es of this process from step number `step` on; for --augment ada some with held-out images."""

    def shards(source, start_step):
        place = {"shards": processes.size, "shard_index": processes.rank}
        return batches(source, args.batch_size, device, args.seed, start_step, args.mirror, **place)

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
    values = iter(torch.stack([value.float() for term in terms for value in term.values()]).tolist())
    terms = [{name: next(values) for name in term} for term in terms]
    gradients = [[term[name] for name in ("critic_gradient", "generator_gradient") if name in term] for term in terms]
    skipped = sum(not all(map(math.isfinite, norms)) for norms in gradients)
    finite = {name: [term[name] for term in terms if name in term and math.isfinite(term[name])] for name in TERMS}
    return {name: sum(values) / len(values) if values else math.nan for name, values in finite.items()}, skipped


def exit_status(folder, step, resolution, signum, args, per_epoch, leading):
    """Print in one line what was reached and how to continue; returns 0, or 128 + signum if a signal ended it early."""
    kimg, finished = step * args.batch_size / 1000, step >= args.epochs * per_epoch and resolution == args.resolution
    reason = "stopped by " + signal.Signals(signum).name if signum else f"{args.max_minutes:g} minutes are over"
    if leading and finished:
        print(f"{folder}: {args.epochs} epochs done, {kimg:.1f} kimg")
    elif leading:
        place = f"epoch {step // per_epoch + 1}" + f" at {resolution}x{resolution}" * (resolution < args.resolution)
        print(f"{folder}: {reason} in {place}, {kimg:.1f} kimg, saved; the same command resumes from here")
    return 128 + signum if signum and not finished else 0


# ---------------------------------------------------------------------------------------------------------------------
# The command


def load_held_out(args, leading=True):
    """Slices of --test_dir, else of test/ beside --dataset_dir; None if there are none, or nothing would use them."""
    if not args.eval_every and args.augment != "ada" and not args.test_dir:
        return None
    folder = args.test_dir or find_splits(args.dataset_dir, args.classes).get("test")
    if folder is None or os.path.realpath(folder) == os.path.realpath(args.dataset_dir):
        return None
    try:
        slices = Slices(folder, args.classes, args.resolution, args.num_workers)
        if args.keep_damaged:
            return slices
        slices, left_out = leave_out_damaged(slices)
        if left_out and leading:
            print(f"note: held-out slices: {damaged_text(left_out)}; left out", file=sys.stderr)
        return slices
    except UserError as error:
        raise UserError(str(error).replace("--dataset_dir", "--test_dir")) from None


def load_slices(args, resumed, leading):
    """(training slices, {scan: reason} of the damaged scans left out of them, held-out slices or None).

    A run that is `resumed`, its config.json's contents or None, keeps to what it was begun with: args.keep_damaged becomes that.
    """
    slices = Slices(args.dataset_dir, args.classes, args.resolution, args.num_workers, leading)
    found = find_damaged(slices, scans_of(slices.names))
    if resumed is None:
        left_out = {} if args.keep_damaged else found
        note = f"{damaged_text(left_out)}; left out, --keep_damaged True keeps them" if left_out else ""
    else:
        left_out = resumed.get("data", {}).get("damaged")  # None in runs of earlier commits, which were begun with all scans
        left_out = left_out if isinstance(left_out, dict) else {}
        asked, args.keep_damaged = args.keep_damaged, resumed.get("flags", {}).get("keep_damaged") is not False
        note = ""
        if left_out and asked:
            note = f"this run was begun without {damaged_text(left_out)}, and continues so; --resume False starts again with them"
        elif found and args.keep_damaged and not asked:
            note = f"this run was begun with them and keeps them: {damaged_text(found)}"
    if note and leading:
        print(f"note: {note}", file=sys.stderr)
    return leave_out(slices, left_out), left_out, load_held_out(args, leading)


def make_config(args, slices, damaged):
    """The contents of config.json: network and data, which a run cannot change, and the flags it was started with."""
    return {
        "network": {
            "resolution": args.resolution,
            "channel_base": args.channel_base,
            "channel_max": args.channel_max,
            "mapping_layers": args.mapping_layers,
            "z_dim": Z_DIM,
            "w_dim": W_DIM,
            "num_classes": len(CLASSES) if args.conditional else 0,
        },
        "classes": list(CLASSES) if args.classes == "all" else [args.classes],
        "data": {"counts": slices.counts, "fingerprint": slices.fingerprint, "damaged": damaged},
        "flags": vars(args) | {"max_minutes": None if args.max_minutes == math.inf else args.max_minutes},
        "torch": torch.__version__,
    }


def main(argv=None):
    start = time.monotonic()
    args = parse_args(argv)
    device = pick_device(args.device, args.deterministic)
    folder = os.path.join(args.model_dir, args.classes + ("-conditional" if args.conditional else ""))
    check_place(folder, {flag: path for flag, path in (("--dataset_dir", args.dataset_dir), ("--test_dir", args.test_dir)) if path})
    found, kept = find_run(folder, args.resume), args.mirror is None
    fill_defaults(args, device, folder if found == "resume" else None)
    kept = kept and args.mirror
    dtype = pick_dtype(args.amp, device)
    processes = Processes(device)
    shards = processes.size * args.grad_accum
    check_divisible(args.batch_size, shards)
    table = find_subjects(args.subjects, args.dataset_dir, quiet=not processes.leading)
    resumed = read_config(folder) if found == "resume" else None
    slices, damaged, held_out = processes.first_on_each_machine(lambda: load_slices(args, resumed, processes.leading))
    if table and held_out and processes.leading:
        print(f"note: {shared_text(identify(slices.names, table), identify(held_out.names, table))}", file=sys.stderr)
    if args.mirror and processes.leading and (warning := mirror_warning(slices)):
        print(f"warning: {warning}", file=sys.stderr)
    config = make_config(args, slices, damaged)
    source = None
    if found == "resume":
        changed = check_same_run(folder, config)
        if changed and processes.leading:
            print(f"note: {folder} was started with other flags, and continues with {', '.join(changed)}", file=sys.stderr)
        if kept and processes.leading:
            print(f"note: {folder} was begun with mirrored slices and keeps them; --mirror False ends it", file=sys.stderr)
    elif args.start_from:
        source = read_source(args.start_from, config["network"])
        if processes.leading:
            print(describe_source(args.start_from, *source, config["network"]))
    if device.type == "cpu" and args.resolution > 64 and processes.leading:
        print(f"note: without a GPU this takes long; {QUICK} learns in minutes", file=sys.stderr)
    if args.dry_run:
        first = read_checkpoint(folder)["first_resolution"] if found == "resume" else first_resolution(args, source)
        status = {"resume": "to be resumed", "rename": "new; the old one will be renamed", "new": "new"}[found]
        if processes.leading:
            print_plan(args, slices, held_out, folder, config, device, dtype, shards, status, first)
        return 0
    processes.barrier()  # all have looked at the old run
    with contextlib.ExitStack() as stack:
        stack.callback(processes.close)
        if processes.leading:
            make_folder(folder, "--model_dir")
            lock = lock_folder(folder)
            stack.callback(lock.release)
            if find_run(folder, args.resume) != found:
                raise UserError(f"{folder} has changed since this command looked at it: run the same command again")
            if found == "rename":
                lock.release()  # Windows renames no folder with an open file in it
                set_aside(folder)
                make_folder(folder, "--model_dir")
                stack.callback(lock_folder(folder).release)
            print(f"{folder}: {describe_recipe(args)}", file=sys.stderr)
        processes.barrier()  # the old run has been set aside
        try:
            return train(args, slices, held_out, folder, config, device, dtype, processes, start + 60 * args.max_minutes, source)
        except torch.OutOfMemoryError:
            hint = out_of_memory(args, config["network"], dtype, processes.size)
            raise UserError(f"{device} is out of memory: {hint}") from None


if __name__ == "__main__":
    run_cli(main)
