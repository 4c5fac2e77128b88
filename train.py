"""Train StyleGAN2 on brain slices: WGAN-GP, or another adversarial loss, with what keeps a run healthy.

    python train.py --dataset_dir AD_NC/train --classes AD

Reads the slices of one class or of both, and keeps everything of a run in <model_dir>/<AD|NC|all|all-conditional>. The loop
is algorithm 1 of Gulrajani et al. 2017 (arXiv:1704.00028) with one critic step per generator step and the moving average of
the generator of Karras et al. 2018 (arXiv:1710.10196). The losses stand in losses.py, the augmentation of what the critic
sees in augment.py, what is watched in health.py, and what is kept in run.py.
"""

import contextlib
import copy
import functools
import itertools
import math
import os
import signal
import sys
import time
from types import SimpleNamespace

from utils import CLASSES, LARGEST, RESOLUTIONS, ArgumentParser, Group, UserError, answer_early, number

LAMBDA_GP = {"wgan-gp": 10.0, "logistic": 5.0, "relativistic": 5.0}  # weight of the gradient penalty unless --lambda_gp says,
GP_EVERY = {"wgan-gp": 1, "logistic": 8, "relativistic": 8}  # steps between two unless --gp_every does
LOSSES = tuple(LAMBDA_GP)
AUGMENT = "ada", "fixed", "none"
FOR = {
    "a GPU": {"channel_base": 8192, "channel_max": 256, "batch_size": 32, "lr": 2e-3},  # unless the flags say,
    "a CPU": {"channel_base": 1024, "channel_max": 64, "batch_size": 16, "lr": 4e-3},
}  # by device


def by_device(name):
    return "default: " + ", ".join(f"{values[name]:g} on {device}" for device, values in FOR.items())


def parse_args(argv=None):
    """The flags; what hangs on the device is None until `settle`."""
    parser = ArgumentParser(
        "Train StyleGAN2 on brain slices. A run lives in <model_dir>/<classes>; the same command goes on with it.",
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
    run.add_bool("--resume", True, "go on with the run when there is one; False renames its folder and starts anew")
    run.add("--epochs", type=number(int, 1, 10**9), default=100, help="passes over the slices")
    run.add("--max_minutes", type=number(float, 0, math.inf, open_low=True), default=math.inf, help="save and stop after this long")
    run.add("--save_every", type=number(int, 1), default=5, help="epochs from one save to the next")
    run.add(
        "--eval_every",
        type=number(int, 0),
        default=5,
        help="epochs from one evaluation (KID, the critic's scores) to the next; 0: none",
    )
    run.add("--seed", type=number(int, 0, 2**63 - 1), default=0, help="of weights, order, latents and noise")
    run.add_bool("--debug", False, "print what every block puts out, at the start and at every save")
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
        "--batch_size", type=number(int, 2, 2**16), help=f"slices a step, of all processes together ({by_device('batch_size')})"
    )
    training.add("--lr", type=number(float, 0, open_low=True), help=f"Adam's learning rate ({by_device('lr')})")
    training.add("--lr_critic", type=number(float, 0, open_low=True), help="the critic's own (default: --lr)")
    training.add(
        "--lr_decay",
        type=number(float, 0, 1),
        default=0.0,
        help="share of the run, at its end, in which both rates fall to 0; the end is that of --epochs or "
        "--max_minutes, whichever is nearer",
    )
    training.add(
        "--loss",
        choices=LOSSES,
        default=LOSSES[0],
        help="what the networks minimise; relativistic did better in the same time (README, Results)",
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
        help="steps from one gradient penalty, then weighted as many times, "
        "to the next (default: " + ", ".join(f"{every} with {kind}" for kind, every in GP_EVERY.items()) + ")",
    )
    training.add_bool("--bounded", True, "the critic sees generated slices clipped to what a picture holds, as real ones are")
    training.add(
        "--augment",
        choices=AUGMENT,
        default="none",
        help="what the critic sees: ada augments as much as it overfits, or, without unseen slices, separates",
    )
    training.add("--augment_p", type=number(float, 0, 1), help="probability of each augmentation; for --augment fixed")
    training.add("--style_mixing", type=number(float, 0, 1), default=0.0, help="share of slices made from two latents")
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
        "activations in bfloat16, the penalty's down to 32x32 (default: where the processor has it, that "
        "is a CPU with AMX or a GPU from Ampere on)",
    )
    machine.add_bool(
        "--cuda_graph",
        False,
        "on a GPU, replay steps as CUDA graphs, without waiting for Python; not tried on a GPU yet: a run holds them against "
        "plain steps first, and goes on without where they differ",
    )
    machine.add(
        "--grad_accum",
        type=number(int, 1),
        default=1,
        help="turns in which a batch is computed, for small cards: the same gradients from less memory",
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


def settle(args, device, network=()):
    """Fill in what the flags leave open: as in the `network` (a dict) of a run that goes on, else as suits the torch.device.

    UserError for flags that do not suit it.
    """
    for name, value in (FOR["a CPU" if device.type == "cpu" else "a GPU"] | dict(network)).items():
        if getattr(args, name, 0) is None:
            setattr(args, name, value)
    args.lr_critic = args.lr_critic or args.lr
    if args.cuda_graph and (device.type != "cuda" or args.grad_accum > 1):
        raise UserError("--cuda_graph True: only on a GPU and with --grad_accum 1; leave it out")
    return args


if __name__ == "__main__":
    answer_early(parse_args)  # before PyTorch is imported

import torch
from tqdm import tqdm

from analysis.validation import VALIDATION, Validation
from dataset import Slices, batches, find_splits, steps_per_epoch
from graphs import Recorder
from modules import Discriminator, build_generator
from training.ada import UNSEEN_EVERY, Strength, separation
from training.augment import augment
from training.distributed import Draws, Processes, check_divisible, share_of
from training.loss import PathLength, bounded, critic_loss, generator_loss, gradient_penalty, mixed_styles
from training.monitor import PICTURE, Probe, Watch, memory_gib, picture_statistics
from training.run_folder import Run, check_same_run, has_checkpoint, hold, kept_network, set_aside
from utils import STOPPING, Interrupted, make_folder, pick_device, pick_dtype, random_stream, run_cli

Z_DIM = W_DIM = 256
QUICK = "--resolution 64 --loss relativistic"
BETAS = 0.0, 0.99  # of Adam; no momentum, as in K18: the critic's gradients turn at every step
EMA_RAMP = 0.05  # the average's half-life is at most this share of the images so far: the start is forgotten
EXACT = 16  # pixels a side: the critic's blocks from here down take the penalty in float32, where rounding harms it most
PATH_EVERY = 8  # steps from one path length penalty to the next, on half a batch
LOG_STEPS, LOG_SECONDS = 16, 20  # steps averaged into one row of losses.csv; fewer where they take longer than this
# Steps with gradients that are not finite, in a row of losses.csv (or in several that hold no other steps), after which
# the run goes back to its checkpoint.
MAX_SKIPPED = 5
TERMS = (
    "critic_loss",
    "generator_loss",
    "wasserstein",
    "separation",
    "unseen",
    "penalty",
    "gradient_norm",
    "path_length",
    "critic_gradient",
    "generator_gradient",
)
COLUMNS = ("step", "epoch", "images", "seconds", "images_per_second", "memory_gib", "lr", "augment_p", "skipped", *TERMS, *PICTURE)
EVALUATION_COLUMNS = ("step", "epoch", "images", "seconds", *VALIDATION)


# ---------------------------------------------------------------------------------------------------------------------
# One step


def build_networks(network):
    """The generator's half (a mapping network and a generator) and the critic, from the settings that config.json keeps."""
    critic = Discriminator(network["resolution"], network["channel_base"], network["channel_max"], network["num_classes"])
    return build_generator(network), critic


class Training:
    """All that a step reads and changes, in `parts` what a checkpoint keeps of it; `step` is the algorithm."""

    def __init__(self, args, network, device, dtype, processes=None):
        torch.manual_seed(args.seed)
        self.args, self.dtype, self.processes = args, dtype, processes or Processes(device)
        self.model, self.critic = (network.to(device) for network in build_networks(network))
        self.averaged = copy.deepcopy(self.model).eval().requires_grad_(False)
        # Listed once: to look for them in all modules at every step takes as long as a layer.
        self.weights_g, self.weights_c, self.weights_a = (
            list(network.parameters()) for network in (self.model, self.critic, self.averaged)
        )
        self.optimizer_g = torch.optim.Adam(self.weights_g, args.lr, BETAS, fused=True)
        self.optimizer_c = torch.optim.Adam(self.weights_c, args.lr_critic, BETAS, fused=True)
        self.strength = Strength(args.augment, args.augment_p, device)
        self.path_length = PathLength().to(device)
        self.rng = random_stream("training", args.seed, device, Draws)
        self.probe = Probe(self.model, self.critic)
        self.recorder = Recorder(self.rng) if args.cuda_graph else None
        self.parts = {
            "model": self.model,
            "critic": self.critic,
            "averaged": self.averaged,
            "g": self.optimizer_g,
            "c": self.optimizer_c,
            "strength": self.strength,
            "path_length": self.path_length,
        }

    def scale_lr(self, scale):
        """Set both learning rates to `scale` times what the flags say; a resumed optimiser brings those of its checkpoint."""
        for optimizer, lr in ((self.optimizer_g, self.args.lr), (self.optimizer_c, self.args.lr_critic)):
            optimizer.param_groups[0]["lr"] = scale * lr

    def generate(self, z, labels, mixing, dtype=None):
        """Slices [N, 1, R, R] and their styles [N, num_ws, w_dim] from latents z [N, z_dim]."""
        generator = self.model["generator"]
        ws = mixed_styles(self.model["mapping"], z, labels, generator.num_ws, mixing, self.rng)
        return generator(ws, rng=self.rng, dtype=dtype), ws

    def make(self, turn):
        """Draw latents for the slices of a turn, and generate."""
        turn.z = torch.randn(len(turn.real), Z_DIM, device=turn.real.device, generator=self.rng)
        turn.made, turn.ws = self.generate(turn.z, turn.labels, self.args.style_mixing, self.dtype)
        turn.fake = bounded(turn.made) if self.args.bounded else turn.made

    def critic_half(self, k, turn):
        """The critic's loss on the slices of a turn, and its terms."""
        args, critic, p, rng, labels = self.args, self.critic, self.strength.p, self.rng, turn.labels
        if args.grad_accum > 1:
            turn.before = rng.get_state()
        with torch.set_grad_enabled(args.grad_accum == 1):  # both halves share one batch of generated slices
            self.make(turn)
        real, fake = augment(turn.real, p, rng), augment(turn.fake.detach(), p, rng)
        both = None if labels is None else labels.repeat(2)
        score_real, score_fake = critic(torch.cat([real, fake]), both, self.dtype, parts=2).chunk(2)
        turn.score_real = score_real.detach()
        loss = critic_loss(args.loss, score_real, score_fake)
        term = {
            "critic_loss": loss,
            "wasserstein": score_real.mean() - score_fake.mean(),
            "separation": separation(score_real, score_fake),
        }
        if turn.unseen is not None:
            with torch.no_grad():
                score_unseen = critic(augment(turn.unseen, p, rng), turn.unseen_labels, self.dtype)
                term["unseen"] = score_real.mean() - score_unseen.mean()
        if k % args.gp_every == 0:  # weighted as if it were taken at every step
            mixed = functools.partial(critic, dtype=self.dtype, exact=EXACT)
            penalty, term["gradient_norm"] = gradient_penalty(args.loss, mixed, real, fake, labels, rng)
            term["penalty"] = args.lambda_gp * penalty
            loss = loss + args.gp_every * term["penalty"]
        return loss, term

    def generator_half(self, k, turn):
        """The generator's loss on the slices of a turn, and its terms."""
        args, rng = self.args, self.rng
        if args.grad_accum > 1:  # again, and now with a graph: there is one at a time
            now = rng.get_state()
            rng.set_state(turn.before)
            self.make(turn)
            rng.set_state(now)
        score_fake = self.critic(augment(turn.fake, self.strength.p, rng), turn.labels, self.dtype)
        loss = generator_loss(args.loss, turn.score_real, score_fake)
        term = {"generator_loss": loss, "w": self.model["mapping"].sums(turn.ws[:, 0], turn.labels)}
        if args.path_length and k % PATH_EVERY == 0:
            half = slice(len(turn.real) // 2)
            images, ws = self.generate(turn.z[half], None if turn.labels is None else turn.labels[half], mixing=0)
            penalty, term["length"] = self.path_length(images, ws, rng)
            term["path_length"] = args.path_length * penalty
            loss = loss + PATH_EVERY * term["path_length"]
        if self.probe.active:
            term |= dict(zip(PICTURE, picture_statistics(turn.made, turn.real)))
        return loss, term

    def derive(self, half, turn):
        """half(turn)'s loss, with gradients left where they belong, and its terms, {name: 0-dim tensor}."""
        loss, term = half(turn)
        (loss / self.args.grad_accum).backward()
        return {name: value.detach() for name, value in term.items()}

    def descend(self, optimizer, half, turns, before=0.0):
        """One Adam step down the mean of half(turn)'s loss over all turns and processes; returns the terms' means and the
        gradient's norm. Every turn draws, of the same random numbers, its share's."""
        processes, recorder, part = self.processes, self.recorder, half.func.__name__
        parameters = optimizer.param_groups[0]["params"]
        if recorder and recorder.whole:
            term = recorder.replay(part, parameters)
        else:
            optimizer.zero_grad()
            terms, state = [], self.rng.get_state()
            for i, turn in enumerate(turns):
                self.rng.set_state(state)
                self.rng.divide(processes.size * len(turns), processes.rank * len(turns) + i, len(turn.real))
                terms.append(self.derive(half, turn))
            term = {name: torch.stack([term[name] for term in terms]).mean(0) for name in terms[0]}
            if recorder and recorder.recording:
                recorder.record(part, functools.partial(self.derive, half), parameters, state)
        processes.average([*gradients(optimizer), *term.values()])
        return term, adam_step(optimizer, before)

    def step(self, k, real, labels, unseen=None, unseen_labels=None):
        """Step number k, from 0: the critic's update, the generator's, the average's. Returns {name of TERMS: 0-dim tensor}.

        real [N, 1, R, R] in [-1, 1], labels [N] int64 or None: this process's share of the batch; unseen: as many slices that
        nothing is learnt from, to see whether the critic overfits, or None. Terms that this step did not take are absent;
        those of PICTURE are there while the probe watches.
        """
        args, accum = self.args, self.args.grad_accum
        batch = {"real": real, "labels": labels, "unseen": unseen, "unseen_labels": unseen_labels}
        turns = [
            SimpleNamespace(**{name: None if x is None else share_of(x, accum, i) for name, x in batch.items()})
            for i in range(accum)
        ]
        if self.recorder:
            kind = k % args.gp_every == 0, args.path_length > 0 and k % PATH_EVERY == 0, unseen is not None
            self.recorder.begin(None if self.probe.active else kind, ("critic_half", "generator_half"), batch)
        for p in self.weights_c:
            p.requires_grad_(True)
        term, critic_gradient = self.descend(self.optimizer_c, functools.partial(self.critic_half, k), turns)
        self.strength.update(term, args.batch_size)

        for p in self.weights_c:
            p.requires_grad_(False)
        more, generator_gradient = self.descend(
            self.optimizer_g, functools.partial(self.generator_half, k), turns, before=critic_gradient
        )
        self.model["mapping"].track(more.pop("w"))
        if "length" in more:
            self.path_length.track(more.pop("length"))
        update_average(self.weights_a, self.weights_g, (k + 1) * args.batch_size, args.batch_size, 1000 * args.ema_kimg)
        self.averaged["mapping"].w_mean.copy_(self.model["mapping"].w_mean)
        return term | more | {"critic_gradient": critic_gradient, "generator_gradient": generator_gradient}


def gradients(optimizer):
    return [p.grad for p in optimizer.param_groups[0]["params"] if p.grad is not None]


def adam_step(optimizer, before=0.0):
    """One step, left out if a gradient, or `before`, is not finite; returns the norm of all gradients, 0-dim.

    PyTorch's fused Adam takes `found_inf`, as from a gradient scaler, and looks at it on the device: a GPU is not waited for.
    """
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients(optimizer))))
    optimizer.found_inf = (~torch.isfinite(norm + before)).float()
    optimizer.step()
    return norm


@torch.no_grad()
def update_average(averaged, weights, images, batch_size, half_life):
    """Move averaged weights towards the weights, both lists of tensors: `half_life` in images, shorter at the start."""
    torch._foreach_lerp_(averaged, weights, 1 - 0.5 ** (batch_size / min(half_life, EMA_RAMP * images)))


# ---------------------------------------------------------------------------------------------------------------------
# The loop


def train(args, slices, test, folder, config, device, dtype, processes, deadline):
    """Train until `args.epochs`, the deadline (time.monotonic() seconds) or a signal; returns the process's exit status."""
    training, leading = Training(args, config["network"], device, dtype, processes), processes.rank == 0
    probe, watch, batch = training.probe, Watch(), args.batch_size
    run = Run(
        folder,
        config,
        slices,
        device,
        training.averaged,
        training.parts,
        training.rng,
        {"losses": COLUMNS + tuple(f"std {name}" for name in probe.layers), "evaluations": EVALUATION_COLUMNS},
        args.tensorboard,
        leading,
    )
    processes.wait()  # all have seen whether there is a checkpoint, before one is written
    step = run.resume() // batch if run.exists else 0
    per_epoch = steps_per_epoch(len(slices), batch)
    last_step = args.epochs * per_epoch
    if step >= last_step:
        if leading:
            print(f"{folder}: {args.epochs} epochs are done already; --epochs {2 * args.epochs} would go on")
        return 0
    if not run.exists:
        run.start()
    evaluator = None
    if args.eval_every and leading:
        evaluator = Validation(slices, test, Z_DIM, config["network"]["num_classes"], device)
    terms, bad, evaluated, begun = [], 0, step, time.monotonic()
    clock = begun

    def batches_from(step):
        """Endless arguments of Training.step, from step number `step` on; unseen slices where --augment ada is to see them."""

        def draw_from(slices, start_step):
            return batches(slices, batch, device, args.seed, start_step, shards=processes.size, shard_index=processes.rank)

        data = draw_from(slices, step)
        unseen = draw_from(test, -(-step // UNSEEN_EVERY)) if test and args.augment == "ada" else None
        for k in itertools.count(step):
            parts = *next(data), *(next(unseen) if unseen and k % UNSEEN_EVERY == 0 else (None, None))
            yield parts if args.conditional else (parts[0], None, parts[2], None)

    def place():
        return {"step": step, "epoch": step / per_epoch, "images": step * batch, "seconds": run.seconds}

    def evaluate():
        row = place() | evaluator(training.averaged, training.critic, batch)
        run.log_evaluation(row)
        for line in watch.check(row):
            run.tell(line)
        return step

    data = batches_from(step)
    with Stopper() as stopper, progress_bar(folder, args, per_epoch, step, leading) as bar:

        def agree():
            """In every process the same: (signal or 0, share of the time that is over, whether a row is due)."""
            now = time.monotonic()
            return processes.greatest(
                stopper.signum or 0, (now - begun) / (deadline - begun) if deadline > begun else 1, now - clock >= LOG_SECONDS
            )

        signum, over, due = agree()
        while step < last_step and not signum and over < 1:
            training.scale_lr(run.lr_scale * decayed(max(step / last_step, over), args.lr_decay))
            with probe.watching(not terms):  # the first step of every row
                terms.append(training.step(step, *next(data)))
            step += 1
            bar.update(batch)
            saving, evaluating = (
                every and (step % (every * per_epoch) == 0 or step == last_step) for every in (args.save_every, args.eval_every)
            )
            signum, over, due = agree()
            if len(terms) < LOG_STEPS and not saving and not evaluating and not due:
                continue

            row, skipped = summarise(terms)  # the only wait for the GPU
            bad = skipped + (bad if skipped == len(terms) else 0)  # also over rows of few steps
            if bad > MAX_SKIPPED:
                step = run.go_back(f"gradients of {bad} steps shortly before {step} are not finite") // batch
                data.close()
                data, terms, bad = batches_from(step), [], 0
                clock = time.monotonic()
                bar.update(step * batch - bar.n)
                continue
            if training.recorder and training.recorder.fault:
                run.tell(f"goes on without CUDA graphs: {training.recorder.fault}")
                training.recorder = None
            if skipped:
                run.tell(f"{skipped} of the {len(terms)} steps before {step} left out: their gradients are not finite")
            seconds = time.monotonic() - clock
            run.seconds, run.skipped = run.seconds + seconds, run.skipped + skipped
            row |= place() | {
                "images_per_second": len(terms) * batch / seconds,
                "memory_gib": memory_gib(device),
                "lr": training.optimizer_g.param_groups[0]["lr"],
                "skipped": run.skipped,
                "augment_p": float(training.strength.p),
            }
            row |= {f"std {name}": value for name, value in zip(probe.layers, probe.deviations().tolist())}
            run.log("losses", row)
            for line in watch.check(row):
                run.tell(line)
            show_progress(bar, folder, row, args, deadline)
            if args.debug and leading and (saving or evaluating or len(run.rows["losses"]) == 1):
                tqdm.write(f"step {step}\n{probe.table()}")
            if evaluating and evaluator:
                evaluated = evaluate()
            if saving:
                processes.check_alike(training.averaged.parameters())
                run.save(step * batch, step // per_epoch)
            terms, clock = [], time.monotonic()
        if evaluator and evaluated < step and not signum:
            evaluate()
        processes.check_alike(training.averaged.parameters())
        run.save(step * batch, -(-step // per_epoch))
    return farewell(folder, step, int(signum), args, per_epoch, leading)


def decayed(done, share):
    """Factor of the learning rates when `done` of the run is over: 1, and in its last `share` falling linearly to 0."""
    return min(1, max(0, 1 - done) / share) if share else 1


def summarise(terms):
    """A row from the terms of its steps: {name: mean over the steps that have a finite one, else nan}, steps left out."""
    names = [name for term in terms for name in term]
    values = torch.stack([value.detach().float() for term in terms for value in term.values()]).tolist()
    found = {name: [] for name in (*TERMS, *PICTURE)}
    for name, value in zip(names, values):
        found[name].append(value)
    skipped = sum(not math.isfinite(c + g) for c, g in zip(found["critic_gradient"], found["generator_gradient"]))
    finite = {name: list(filter(math.isfinite, values)) for name, values in found.items()}
    return {name: sum(values) / len(values) if values else math.nan for name, values in finite.items()}, skipped


def progress_bar(folder, args, per_epoch, step, shown):
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
    """Put epoch, losses and the time left, to the last epoch or the deadline, into the bar's next drawing."""
    if bar.disable:
        return
    rate = bar.format_dict["rate"] or (bar.n - bar.initial) / max(1e-9, bar.format_dict["elapsed"])
    left = min((bar.total - bar.n) / max(1e-9, rate), max(0, deadline - time.monotonic()))
    epoch = min(int(row["epoch"]) + 1, args.epochs)
    bar.set_description_str(f"{os.path.basename(folder)} epoch {epoch}/{args.epochs}", refresh=False)
    bar.set_postfix_str(
        f"critic {row['critic_loss']:.2f}, generator {row['generator_loss']:.2f}, "
        f"Wasserstein {row['wasserstein']:.2f}, left {tqdm.format_interval(left)}",
        refresh=False,
    )


class Stopper:
    """While it is entered, Ctrl-C, SIGTERM and SIGUSR1 only set `signum`, so that the step and the save after it end in order.

    One that comes over two seconds after the first acts at once; an earlier one is its echo, as `timeout` and `make`, which
    signal a process and its whole group, send it.
    """

    def __enter__(self):
        self.signum, self.when = None, math.inf
        self.before = {signum: signal.getsignal(signum) for signum in STOPPING}
        for signum in self.before:
            signal.signal(signum, self.note)
        return self

    def note(self, signum, _frame):
        if time.monotonic() - self.when > 2:
            raise Interrupted(signum)
        if not self.signum:
            self.signum, self.when = signum, time.monotonic()

    def __exit__(self, *_):
        for signum, handler in self.before.items():
            signal.signal(signum, handler)


def farewell(folder, step, signum, args, per_epoch, leading):
    """Say in one line what was reached and how to go on; returns the exit status."""
    kimg, finished = step * args.batch_size / 1000, step >= args.epochs * per_epoch
    why = "stopped by " + signal.Signals(signum).name if signum else f"{args.max_minutes:g} minutes are over"
    if leading and finished:
        print(f"{folder}: {args.epochs} epochs done, {kimg:.1f} kimg")
    elif leading:
        print(f"{folder}: {why} in epoch {step // per_epoch + 1}, {kimg:.1f} kimg, saved; the same command goes on from here")
    return 128 + signum if signum and not finished else 0


# ---------------------------------------------------------------------------------------------------------------------
# The command line


def load_test(args):
    """Slices of --test_dir, else of test/ beside --dataset_dir; None where there are none, or nothing looks at them."""
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
    """What config.json keeps: the network and the data, which a run cannot change, and the flags it was started with."""
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


def estimate_memory(config, batch_size, dtype):
    """Bytes that training takes at its peak: weights with gradients, Adam's moments and the average, and what a critic step
    on `batch_size` slices at once keeps for its two derivatives, counted by taking that step on PyTorch's "meta" device, which
    computes shapes only."""
    model, critic = (network.to("meta") for network in build_networks(config["network"]))
    count_g, count_c = (sum(p.numel() for p in network.parameters()) for network in (model, critic))
    size, kept = config["network"]["resolution"], {}

    def note(tensor):
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes(), storage  # held, so that no two share an address
        return tensor

    labels = torch.zeros(batch_size, dtype=torch.long, device="meta") if config["network"]["num_classes"] else None
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        fake = model["generator"](model["mapping"](torch.empty(batch_size, Z_DIM, device="meta"), labels), dtype=dtype)
        real = torch.empty(batch_size, 1, size, size, device="meta")
        for images in (real, fake.detach()):
            critic(images, labels, dtype)
        mixed = functools.partial(critic, dtype=dtype, exact=EXACT)
        gradient_penalty(config["flags"]["loss"], mixed, real, fake.detach(), labels)
    return 4 * (5 * count_g + 4 * count_c) + sum(nbytes for nbytes, _ in kept.values())


def print_plan(args, slices, test, folder, config, device, dtype, shares):
    counts = " + ".join(f"{n} {name}" for name, n in slices.counts.items())
    with torch.device("meta"):  # shapes alone
        model, critic = build_networks(config["network"])
    millions = [sum(p.numel() for p in network.parameters()) / 1e6 for network in (model, critic)]
    per_epoch = steps_per_epoch(len(slices), args.batch_size)
    state = "goes on" if has_checkpoint(folder) else "new"
    memory = estimate_memory(config, args.batch_size // shares, dtype) / 2**30
    unseen = "none (--test_dir)" if test is None else f"{len(test)} to compare with"
    print(
        f"run         {folder} ({state})\n"
        f"images      {len(slices)} ({counts}) at {args.resolution}x{args.resolution}\n"
        f"unseen      {unseen}\n"
        f"loss        {args.loss}, penalty {args.lambda_gp:g} every {args.gp_every} steps, augmentation {args.augment}\n"
        f"parameters  generator {millions[0]:.2f} M, critic {millions[1]:.2f} M\n"
        f"device      {device}, activations in {str(dtype).removeprefix('torch.')}\n"
        f"memory      about {memory:.1f} GiB at batch {args.batch_size}" + f" in {shares} shares" * (shares > 1) + "\n"
        f"steps       {args.epochs} epochs of {per_epoch} = {args.epochs * per_epoch}, "
        f"{args.epochs * per_epoch * args.batch_size / 1000:.0f} kimg"
        + (f", or {args.max_minutes:g} minutes" if args.max_minutes < math.inf else "")
    )


def main(argv=None):
    start = time.monotonic()
    args = parse_args(argv)
    device = pick_device(args.device)
    dtype = pick_dtype(args.amp, device)
    folder = os.path.join(args.model_dir, args.classes + ("-conditional" if args.conditional else ""))
    settle(args, device, kept_network(folder) if args.resume else {})
    processes = Processes(device)
    leading, shares = processes.rank == 0, processes.size * args.grad_accum
    check_divisible(args.batch_size, shares)
    slices, test = processes.first(
        lambda: (Slices(args.dataset_dir, args.classes, args.resolution, args.num_workers, leading), load_test(args))
    )
    config = make_config(args, slices)
    old = has_checkpoint(folder)
    if old and args.resume:
        changed = check_same_run(folder, config)
        if changed and leading:
            print(f"note: {folder} began otherwise, and goes on with {', '.join(changed)}", file=sys.stderr)
    if device.type == "cpu" and args.resolution > 64 and leading:
        print(f"note: without a GPU this takes long; {QUICK} learns in minutes", file=sys.stderr)
    if args.dry_run:
        if leading:
            print_plan(args, slices, test, folder, config, device, dtype, shares)
        return 0
    processes.wait()  # all have looked at the old run
    with contextlib.ExitStack() as ending:
        ending.callback(processes.end)
        if leading:
            make_folder(folder, "--model_dir")
            ending.enter_context(hold(folder))
            if old and not args.resume:
                set_aside(folder)
                make_folder(folder, "--model_dir")
                ending.enter_context(hold(folder))
        processes.wait()  # it is set aside
        try:
            return train(args, slices, test, folder, config, device, dtype, processes, start + 60 * args.max_minutes)
        except torch.OutOfMemoryError:
            raise UserError(
                f"{device} is out of memory at --batch_size {args.batch_size}: raise --grad_accum, or lower it, or "
                "--channel_base, or --resolution (--dry_run prints an estimate)"
            ) from None


if __name__ == "__main__":
    run_cli(main)
