"""Train StyleGAN2 on brain MRI slices with WGAN-GP or another adversarial loss.

    python train.py --dataset_dir AD_NC/train --classes AD

Trains on one class or on both, and keeps everything about the run in <model_dir>/<AD|NC|all|all-conditional>. The two updates
are in training/step.py, the losses in training/loss.py, every number in training/recipes.py, the flags in training/flags.py, the
stages of a run that grows in training/growth.py, what the loop counts in training/state.py, the files in training/run_folder.py.
"""

import startup  # noqa: F401  # isort: skip

import contextlib
import itertools
import math
import os
import signal
import sys
import time

from training.flags import choose_recipe, kept_settings, kept_sizes, parse_args, save_intervals
from training.recipes import Z_DIM, Options, network_settings
from utils import CLASSES, UserError, make_folder, parse_before_import, pick_device, pick_dtype, run_cli

if __name__ == "__main__":
    parse_before_import(parse_args)  # --help and typing errors need no PyTorch, which takes seconds to import

import torch

from analysis.values import check_values, slice_values
from data.fingerprints import merge_records
from data.folders import list_slices
from data.subjects import find_subjects, identify
from data.view import mirror_warning
from dataset import batches, steps_per_epoch
from report import figures
from training.augment import HELD_OUT_EVERY
from training.checkpoint import read_checkpoint
from training.distributed import Processes, check_divisible, join_slurm
from training.growth import (
    Stage,
    check_source,
    describe_source,
    fade_images,
    first_resolution,
    grow,
    read_source,
    set_fade,
    start_from,
)
from training.monitor import Alerts, layer_names, memory_gib
from training.plan import Plan, describe_recipe, fitted, out_of_memory, print_plan
from training.progress import StopSignals, progress_bar, show_progress
from training.run_folder import RunFolder, check_place, check_same_run, earlier_record, find_run, lock_folder, read_run, rename_run
from training.slices import keep_examples, keep_values, read_slices
from training.state import RunState, Schedule
from training.step import TERMS, Batch, mean_row, split_batch, update_average, update_critic, update_generator
from training.validation import VALIDATION, Validation

QUICK = "--resolution 64 --loss relativistic"
MAX_SKIPPED = 5  # steps with gradients that are not finite, in one row or in several without others, before going back
SAMPLES_SHOWN = 16  # generated slices in a picture of fake_vs_real/
POSITION = "step", "epoch", "images", "seconds", "resolution"
LOSS_COLUMNS = (*POSITION, "images_per_second", "memory_gib", "lr", "augment_p", "skipped", *TERMS)
EVALUATION_COLUMNS = (*POSITION, *VALIDATION)


# ---------------------------------------------------------------------------------------------------------------------
# The loop


def train(plan, config):
    """Train until the last epoch, the deadline or a signal; returns the process's exit status. config: that of the run's files."""
    layers = tuple(f"std {name}" for name in layer_names(plan.schedule.resolution))
    columns = {"losses": LOSS_COLUMNS + layers, "evaluations": EVALUATION_COLUMNS}
    files, recipe = RunFolder(plan.folder, config, columns, plan.processes, trained_on(plan)), plan.options.recipe
    plan.processes.barrier()  # all have looked for a checkpoint before one is written
    state, run = begin(plan, files)
    if run.finished:
        return exit_status(plan, run)
    alerts, validate = Alerts(), make_validation(plan)
    data, terms = training_batches(plan, run.step), []  # terms: of the steps since the last row of losses.csv
    run.start_clock()
    with StopSignals() as signals, progress_bar(plan.name, plan.schedule, run.images, plan.processes.leading) as bar:
        while True:
            # Grow
            if run.stage_over:
                run.begin_stage()
                state = grow(state, plan.new_state(run.stage.resolution))
            set_fade(state.critic, run.stage, run.images)
            state.scale_learning_rates(run.rate_factor())

            # Batch, critic, generator, average
            with state.activations.recording(not terms):  # once per row
                micro_batches, shared = split_batch(state, run.step, next(data).resized(run.stage.resolution))
                term = update_critic(state, run.step, micro_batches, shared)
                if run.step % recipe.n_critic == 0:
                    term |= update_generator(state, run.step, micro_batches, shared, term["critic_gradient"])
            update_average(state, run.images_learnt + recipe.batch_size)
            state.augmentation.update(term, recipe.batch_size)
            terms.append(term)
            run.advance(signals.signum, plan.processes, len(terms))
            bar.update(recipe.batch_size)
            due = run.due(len(terms))
            if not due.row:
                continue

            # Log
            row, skipped = mean_row(terms)  # waits for the GPU
            if checkpoint := skip_or_go_back(plan, files, run, len(terms), skipped):
                data.close()
                state, data, terms = checkpoint, training_batches(plan, run.step), []
                bar.n = run.images
                continue
            row |= dict.fromkeys(layers, math.nan) | measure_row(plan, state, run, len(terms))
            files.log("losses", row)
            show_progress(bar, plan.name, row, plan.schedule)

            # Evaluate, watch, save
            rows = [row]
            if due.evaluation and validate:
                rows.append(run.position() | validate(state.averaged, state.critic, recipe.batch_size // plan.shards))
                files.log_evaluation(rows[-1], state.averaged)
            for line in itertools.chain.from_iterable(map(alerts.check, rows)):
                files.alert(line)
            if due.save:
                save(plan, files, state, run)
            if due.stop:
                return exit_status(plan, run)
            terms = []
            run.begin_row()


def trained_on(plan):
    """The fingerprints of this run's training slices, and of those that it, or the run of --start_from, has seen before."""
    folders = [plan.folder] + ([plan.source.folder] if plan.source else [])
    return merge_records(plan.slices.fingerprints, earlier_record(*folders))


def begin(plan, files):
    """(TrainingState, RunState) of the run in `files`, resumed; or of a new one, saved, maybe with another run's networks."""
    run = RunState(plan.schedule, first_stage(plan))
    if files.exists:
        state = files.resume(run, plan.new_state)
        if plan.schedule.lr_decay and run.lr_decay < 1 and not run.finished and plan.processes.leading:
            print(f"note: {plan.folder} resumes at {run.lr_decay:.3g} of its learning rates; --set lr_decay=0 resets them")
        return state, run
    state = plan.new_state(run.stage.resolution)
    if plan.network["values"]:
        keep_values(state, plan.slices.train)
    if plan.source:
        run.images_before = plan.source.images
        start_from(plan.source, state, plan.new_state(plan.source.network["resolution"], plan.source.network))
    if plan.network["values"]:
        keep_examples(state, plan.slices.train)  # not those of the other run
    save(plan, files, state, run)
    return state, run


def first_stage(plan):
    """The Stage in which a new run begins."""
    source, reached = plan.source, plan.source.network["resolution"] if plan.source else None
    resolution = first_resolution(plan.schedule.resolution, plan.schedule.grow, reached)
    return Stage(resolution, fade_images=fade_images(source.images) if source else 0)


def make_validation(plan):
    """The Validation of a run, in the process that needs one; else None."""
    if plan.schedule.eval_every and plan.processes.leading:
        return Validation(plan.slices, Z_DIM, plan.network["num_classes"], plan.device, plan.options.mirror)
    return None


def training_batches(plan, step):
    """Endless `Batch`es of this process from step number `step` on; for --augment ada some with validation images."""

    def shards(slices, start_step):
        options, processes = plan.options, plan.processes
        place = {"shards": processes.size, "shard_index": processes.rank}
        return batches(slices, options.recipe.batch_size, plan.device, options.seed, start_step, options.mirror, **place)

    real, held_out = shards(plan.slices.train, step), None
    if plan.slices.validation and plan.options.augment == "ada":
        held_out = shards(plan.slices.validation, -(-step // HELD_OUT_EVERY))
    for k in itertools.count(step):
        batch = Batch(*next(real), *(next(held_out) if held_out and k % HELD_OUT_EVERY == 0 else ()))
        yield batch if plan.network["num_classes"] else batch._replace(labels=None, held_out_labels=None)


def skip_or_go_back(plan, files, run, steps, skipped):
    """Report steps that were left out, as their gradients are not finite; after too many in a row, go back to the checkpoint.

    steps, skipped: numbers of the row that ends. Returns None, or the TrainingState of the checkpoint, from which `run` continues
    with half the learning rates. UserError the second time in a run's life.
    """
    run.skipped_in_a_row = skipped + (run.skipped_in_a_row if skipped == steps else 0)
    if run.skipped_in_a_row <= MAX_SKIPPED:
        run.skipped += skipped
        if skipped and plan.dtype != torch.float16:  # whose loss scale is too large every now and then
            files.alert(f"skipped {skipped} of the {steps} steps before step {run.step}: their gradients are not finite")
        return None
    reason = f"the gradients of {run.skipped_in_a_row} steps shortly before step {run.step} are not finite"
    if run.lr_scale < 1:
        raise UserError(
            f"{plan.folder}: {reason} again, after going back to a checkpoint once already; the last checkpoint is kept, run again "
            "with a lower --lr to continue from it"
        )
    state = files.resume(run, plan.new_state)
    run.lr_scale = 0.5
    files.alert(f"{reason}: went back to {run.images / 1000:.1f} kimg and continues with half the learning rates")
    run.begin_row()
    return state


def measure_row(plan, state, run, steps):
    """The columns of a row of losses.csv beside its TERMS, of the layers of this stage; the row ends now, after so many steps."""
    rate = steps * plan.schedule.batch_size / run.end_row()
    deviations = {f"std {name}": value for name, value in state.activations.deviations().items()}
    measured = {"images_per_second": rate, "memory_gib": memory_gib(plan.device), "skipped": run.skipped}
    measured |= {"lr": run.lr_scale * run.lr_decay * state.recipe.lr, "augment_p": float(state.augmentation.p)}
    return run.position() | measured | deviations


def save(plan, files, state, run):
    """Save the run, and draw its curves and some generated slices beside real ones; collective."""
    styles = files.save(state, run)
    if styles is None:
        return
    generator, resolution = state.averaged["generator"], run.stage.resolution
    shown = styles[:, : SAMPLES_SHOWN // len(styles)].flatten(0, 1)
    fake = torch.cat([generator(part, noise="fixed") for part in shown.split(4)])
    title = f"epoch {run.epoch}, {run.images / 1000:.1f} kimg"
    name = f"{resolution}x{resolution}" if run.stage_over else f"epoch_{run.epoch:04d}"  # the last of a stage is kept
    figures.save_fake_and_real(fake, plan.slices.train, title, files.path("fake_vs_real", f"{name}.png"))
    if files.rows["losses"]:
        losses, evaluations = (figures.columns(files.rows[name], columns) for name, columns in files.tables.items())
        figures.plot_dashboard(losses, evaluations, files.path("losses.png"))
        figures.plot_loss_proportion(losses, files.path("loss_proportion.png"))


def exit_status(plan, run):
    """Print in one line what was reached and how to continue; collective. 0, or 128 + signum if a signal ended the run early."""
    schedule, resolution, signum = plan.schedule, run.stage.resolution, int(run.signum)
    reason = "stopped by " + signal.Signals(signum).name if signum else f"{schedule.max_minutes:g} minutes are over"
    place = f"epoch {run.step // schedule.steps_per_epoch + 1}"
    if resolution < schedule.resolution:
        place += f" at {resolution}x{resolution}"
    if not run.finished:
        text = f"{reason} in {place}, {run.images / 1000:.1f} kimg, saved; the same command resumes from here"
    else:
        text = f"{schedule.epochs} epochs done, {run.images / 1000:.1f} kimg; --epochs {2 * schedule.epochs} would continue"
    if plan.processes.leading:
        print(f"{plan.folder}: {text}", flush=True)
    plan.processes.barrier()  # a process that ends with another status than 0 makes torchrun and srun -K end the others
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0))  # for which torchrun would take any status but 0
    return 128 + signum if signum and not run.finished and not restarts else 0


# ---------------------------------------------------------------------------------------------------------------------
# The command


def note(text, leading):
    """Print a line on stderr, in one of all processes."""
    if leading:
        print(text, file=sys.stderr)


def look_at_folders(args, validation_dir):
    """(Table of the people, {folder: what `list_slices` finds there}); the system is asked about every file."""
    table = find_subjects(args.subjects, args.dataset_dir)
    folders = {args.dataset_dir: "--dataset_dir", validation_dir: "--validation_dir"}
    return table, {folder: list_slices(folder, args.classes, flag) for folder, flag in folders.items() if folder}


def make_plan(args, folder, resuming, device, begun):
    """(Plan, contents of config.json) of the run in `folder`; `begun`: when the command was, in seconds of time.monotonic().

    config.json holds network and data, which a run cannot change, and the flags it was started with.
    """
    resumed = read_run(folder) if resuming else None
    source = read_source(args.start_from) if args.start_from and not resuming else None
    kept = kept_settings(resumed) if resuming else kept_sizes(source.network) if source else {}
    network_name, loss, recipe = choose_recipe(args, device, kept)
    mirror = args.mirror if args.mirror is not None else kept.get("mirror", False)
    if device.type == "mps" and args.augment != "none":
        raise UserError("--augment ada: Apple's GPUs lack the derivative of its rotations; leave it out, or use --device cpu")
    processes, dtype = Processes(device), pick_dtype(args.amp, device)
    check_divisible(recipe.batch_size, processes.size * (args.grad_accum or 1))
    chooses = args.eval_every > 0 or args.augment == "ada"
    validation_dir = args.validation_dir or (resumed["flags"]["validation_dir"] if resumed and chooses else None)
    table, listed = processes.from_leading(lambda: look_at_folders(args, validation_dir))
    place = args.dataset_dir, args.classes, args.resolution, validation_dir, args.keep_damaged, chooses, table
    slices = processes.first_on_each_machine(lambda: read_slices(*place, resumed, listed, not processes.leading))
    network = network_settings(recipe, args.resolution, args.conditional)
    if wanted := network["values"]:
        for part in filter(None, (slices.train, slices.validation)):
            part.values = slice_values(part.names, wanted, identify(part.names, table))
        check_values(slices.train.values, wanted, quiet=not processes.leading)
    if mirror and (warning := mirror_warning(slices.train)):
        note(f"warning: {warning}", processes.leading)
    if source:
        check_source(source, network)
    options = Options(loss, recipe, args.augment, mirror, args.grad_accum or 1, args.seed)
    schedule = Schedule(
        *(args.epochs, steps_per_epoch(len(slices.train), recipe.batch_size), recipe.batch_size, args.resolution, args.grow),
        *(recipe.lr_decay, *save_intervals(args.save_every), args.eval_every, args.max_minutes, begun + 60 * args.max_minutes),
    )
    plan = Plan(folder, slices, network_name, network, options, schedule, source, device, dtype, processes)
    if args.grad_accum is None:
        plan, why = fitted(plan)
        if why:
            note(f"note: {why}", processes.leading)
    minutes = None if args.max_minutes == math.inf else args.max_minutes
    flags = vars(args) | recipe._asdict() | {"network": network_name, "loss": loss, "mirror": mirror, "max_minutes": minutes}
    flags |= {"amp": dtype != torch.float32, "grad_accum": plan.options.grad_accum, "keep_damaged": slices.keep_damaged}
    config = {
        "network": network,
        "classes": list(CLASSES) if args.classes == "all" else [args.classes],
        "data": slices.record,
        "flags": {name: value for name, value in flags.items() if name != "set"},
        "torch": torch.__version__,
    }
    return plan, config


def describe_start(plan, config, resuming, mirror_asked):
    """Print what is special about this start of a run; UserError if the run in the folder is another one."""
    leading = plan.processes.leading
    if resuming:
        changed, source = check_same_run(plan.folder, config), config["flags"]["start_from"]
        if source not in (None, read_run(plan.folder)["flags"].get("start_from")):
            note(f"note: {plan.folder} goes on: --start_from {source} is for new runs, such as one by --resume False", leading)
        if changed:
            note(f"note: {plan.folder} was started with other flags, and continues with {', '.join(changed)}", leading)
        if plan.options.mirror and mirror_asked is None:
            note(f"note: {plan.folder} was begun with mirrored slices and keeps them; --mirror False ends it", leading)
    elif plan.source and leading:
        print(describe_source(plan.source, plan.network))
    if plan.device.type == "cpu" and plan.schedule.resolution > 64:
        note(f"note: without a GPU this takes long; {QUICK} learns in minutes", leading)


@contextlib.contextmanager
def taken_folder(plan, found, resume):
    """A context in which the folder of the run is this command's own; an old run in it is renamed if `found` says so."""
    processes, folder = plan.processes, plan.folder
    processes.barrier()  # all have looked at the old run
    with contextlib.ExitStack() as stack:
        stack.callback(processes.close)
        if processes.leading:
            make_folder(folder, "--model_dir")
            lock = lock_folder(folder)
            stack.callback(lock.release)
            if find_run(folder, resume) != found:
                raise UserError(f"{folder} has changed since this command looked at it: run the same command again")
            if found == "rename":
                lock.release()  # Windows renames no folder with an open file in it
                rename_run(folder)
                make_folder(folder, "--model_dir")
                stack.callback(lock_folder(folder).release)
        processes.barrier()  # the old run has been renamed
        yield


def main(argv=None):
    begun = time.monotonic()
    args = parse_args(argv)
    join_slurm()
    device = pick_device(args.device)
    folder = os.path.join(args.model_dir, args.classes + ("-conditional" if args.conditional else ""))
    check_place(folder, {"--dataset_dir": args.dataset_dir, "--validation_dir": args.validation_dir})
    found = find_run(folder, args.resume)
    plan, config = make_plan(args, folder, found == "resume", device, begun)
    describe_start(plan, config, found == "resume", args.mirror)
    if args.dry_run:
        first = read_checkpoint(folder)["first_resolution"] if found == "resume" else first_stage(plan).resolution
        status = {"resume": "to be resumed", "rename": "new; the old one will be renamed", "new": "new"}[found]
        if plan.processes.leading:
            print_plan(plan, status, first)
        return 0
    with taken_folder(plan, found, args.resume):
        if plan.processes.leading:
            print(f"{folder}: {describe_recipe(plan)}", file=sys.stderr)
        try:
            return train(plan, config)
        except torch.OutOfMemoryError:
            raise UserError(f"{device} is out of memory: {out_of_memory(plan)}") from None


if __name__ == "__main__":
    run_cli(main)
