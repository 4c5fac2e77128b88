"""How fast does training go on this machine, where does the time go, and how near is that to what the machine can do?

    python bench.py --resolution 64 --channel_base 1024 --channel_max 64 --batch_size 16
    python bench.py --against other.py

The first figure of the table is train.py's own step. Below it stands the same algorithm (but for clipping and augmentation)
written out here, so that its phases can be timed one after the other. `--against` runs that on another code base's networks
too, in turn with ours, so that whatever else the machine does meets both. The file is Python, is run, and defines

    def build(resolution, channel_base, channel_max):
        return generate, critic, generator_parameters, critic_parameters

with generate(n) -> images [n, 1, R, R] in about [-1, 1] from random latents, critic(images) -> scores [n] or [n, 1] that can
be differentiated twice, and two lists of parameters. What it makes lies on --device unless it says otherwise.
"""

import functools
import importlib.util
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from tqdm import tqdm

import train
from dataset import Slices, batches, to_uint8
from train import GP_EVERY, LAMBDA_GP, LOSSES, settle
from train import parse_args as parse_train
from training.loss import critic_loss, generator_loss, gradient_penalty
from training.monitor import memory_gib
from utils import LARGEST, RESOLUTIONS, ArgumentParser, Group, UserError, number, pick_device, pick_dtype, run_cli

PHASES = "generator", "critic", "penalty", "averaging"
ROUND = 5  # steps of one code base, at least, before the other's turn
PRODUCT = {"cpu": 2048, "cuda": 8192}  # side of the matrices whose product shows what the machine can do


class Side(NamedTuple):
    """One code base's networks; `exact` is the critic again, as the penalty wants it."""

    name: str
    generate: Callable  # n -> images [n, 1, R, R]
    critic: Callable  # images -> scores [n]
    exact: Callable  # images -> scores [n]
    parameters_g: list
    parameters_c: list


def our_side(training):
    """`Side` of the networks in a train.Training."""
    critic, dtype = training.critic, training.dtype

    def generate(n):
        z = torch.randn(n, train.Z_DIM, device=training.rng.device, generator=training.rng)
        return training.generate(z, None, mixing=0, dtype=dtype)[0]

    return Side(
        "this one",
        generate,
        lambda images: critic(images, None, dtype),
        lambda images: critic(images, None, dtype, exact=train.EXACT),
        list(training.model.parameters()),
        list(critic.parameters()),
    )


def their_side(path, args, device):
    """`Side` of what `build` in the Python file `path` returns; UserError when it is not as the head of this file says."""
    if device.type != "cpu":
        torch.set_default_device(device)
    try:
        spec = importlib.util.spec_from_file_location("against", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        generate, critic, parameters_g, parameters_c = module.build(args.resolution, args.channel_base, args.channel_max)
        images, n = generate(args.batch_size), args.batch_size
        scores = critic(images)
        if images.shape != (n, 1, args.resolution, args.resolution) or scores.numel() != n:
            raise ValueError(f"n = {n} gives images {list(images.shape)} and scores {list(scores.shape)}")
    except Exception as error:
        why = (str(error).strip().splitlines() or ["no message"])[0]
        raise UserError(
            f"--against {path}: {type(error).__name__} ({why}); the head of bench.py says what the file defines"
        ) from None

    def flat(images):
        return critic(images).flatten()

    return Side(os.path.basename(path), generate, flat, flat, list(parameters_g), list(parameters_c))


# ---------------------------------------------------------------------------------------------------------------------
# Steps: callables on real [N, 1, R, R]


class TrainStep:
    """train.py's own."""

    def __init__(self, training):
        self.training, self.steps = training, 0

    def __call__(self, real):
        self.training.step(self.steps, real, None)
        self.steps += 1


class WrittenOut:
    """The same algorithm on the networks of any `Side`, phase by phase; `seconds` adds up how long each took."""

    def __init__(self, side, loss, gp_every, device):
        self.side, self.loss, self.gp_every, self.device, self.steps = side, loss, gp_every, device, 0
        self.optimizer_g = torch.optim.Adam(side.parameters_g, 2e-3, train.BETAS, fused=True)
        self.optimizer_c = torch.optim.Adam(side.parameters_c, 2e-3, train.BETAS, fused=True)
        self.averaged = [p.detach().clone() for p in side.parameters_g]
        self.seconds = dict.fromkeys(PHASES, 0.0)

    def __call__(self, real):
        side, self.begun = self.side, now(self.device)
        fake = side.generate(len(real))
        self.end("generator")

        for p in side.parameters_c:
            p.requires_grad_(True)
        self.optimizer_c.zero_grad()
        score_real = side.critic(real)
        critic_loss(self.loss, score_real, side.critic(fake.detach())).backward()
        self.end("critic")
        if self.steps % self.gp_every == 0:
            penalty, _ = gradient_penalty(self.loss, lambda images, _: side.exact(images), real, fake.detach())
            (self.gp_every * LAMBDA_GP[self.loss] * penalty).backward()
            self.end("penalty")
        self.optimizer_c.step()
        self.end("critic")

        for p in side.parameters_c:
            p.requires_grad_(False)
        self.optimizer_g.zero_grad()
        generator_loss(self.loss, score_real.detach(), side.critic(fake)).backward()
        self.optimizer_g.step()
        self.end("generator")
        torch._foreach_lerp_(self.averaged, [p.detach() for p in side.parameters_g], 0.001)
        self.end("averaging")
        self.steps += 1

    def end(self, phase):
        begun, self.begun = self.begun, now(self.device)
        self.seconds[phase] += self.begun - begun


# ---------------------------------------------------------------------------------------------------------------------
# Measurements


def now(device):
    """Seconds, when all that was asked of `device` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def in_turn(steps, real, rounds, length, device):
    """Seconds a step of each of `steps`: the median over `rounds` of `length` steps, taken in turn."""
    seconds = [[] for _ in steps]
    with tqdm(total=rounds * length * len(steps), unit=" steps", leave=False) as bar:
        for _ in range(rounds):
            for step, durations in zip(steps, seconds):
                begun = now(device)
                for _ in range(length):
                    step(real)
                    bar.update()
                durations.append((now(device) - begun) / length)
    return [statistics.median(durations) for durations in seconds]


def rate(work, count, device, calls=10):
    """Things a second, where a call of work() makes `count`: from the median of `calls` calls, after two that do not count."""
    durations = []
    for _ in range(2 + calls):
        begun = now(device)
        work()
        durations.append(now(device) - begun)
    return count / statistics.median(durations[2:])


def product_gflops(dtype, device):
    """Billion operations a second of a product of two square matrices; a multiplication and an addition are two."""
    side = PRODUCT[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return rate(lambda: a @ b, 2 * side**3 / 1e9, device)


class Counter(TorchDispatchMode):
    """Adds up the operations of convolutions and matrix products by PyTorch's formulas, derivatives included.

    PyTorch's own FlopCounterMode also asks which module they belong to, and fails at a second derivative over that.
    """

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function._overloadpacket in flop_registry:
            self.total += flop_registry[function._overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result


def count_gflop(step, real, steps):
    """Billion operations an image in `steps` calls of `step`."""
    with Counter() as counter:
        for _ in range(steps):
            step(real)
    return counter.total / steps / len(real) / 1e9


@torch.no_grad()
def draw(side, n):
    """uint8 [n, R, R], generated with random latents."""
    return to_uint8(side.generate(n))


class RandomSlices:
    """What dataset.batches needs of dataset.Slices, with random pixels."""

    def __init__(self, resolution, count=1024):
        self.resolution, self.labels = resolution, np.zeros(count, np.int64)
        self.pixels = np.random.default_rng(0).integers(0, 256, (count, resolution, resolution), dtype=np.uint8)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, indices):
        return self.pixels[indices]


# ---------------------------------------------------------------------------------------------------------------------
# The table


def bench(args, device, dtype):
    """Yield the table's lines."""
    flags = ["--dataset_dir", "none", "--loss", args.loss, "--gp_every", str(args.gp_every), "--cuda_graph", str(args.cuda_graph)]
    flags = settle(parse_train(flags), device)
    network = {
        "resolution": args.resolution,
        "channel_base": args.channel_base,
        "channel_max": args.channel_max,
        "z_dim": train.Z_DIM,
        "w_dim": train.W_DIM,
        "num_classes": 0,
    }
    training, n = train.Training(flags, network, device, dtype), args.batch_size
    slices = Slices(args.dataset_dir, "all", args.resolution) if args.dataset_dir else RandomSlices(args.resolution)
    data = batches(slices, n, device, seed=0)
    real, _ = next(data)
    sides = [our_side(training)] + ([their_side(args.against, args, device)] if args.against else [])
    written_out = [WrittenOut(side, args.loss, args.gp_every, device) for side in sides]
    steps = [TrainStep(training), *written_out]

    length = -(-ROUND // args.gp_every) * args.gp_every  # equally many penalties in all rounds
    in_turn(steps, real, 1, length, device)  # warming up
    for step in written_out:
        step.seconds, step.steps = dict.fromkeys(PHASES, 0.0), 0
    own, *seconds = in_turn(steps, real, -(-args.steps // length), length, device)

    yield (
        f"{args.resolution}x{args.resolution}, channels {args.channel_base} / {args.channel_max}, batch {n}, {args.loss}, "
        f"penalty every {args.gp_every} steps"
    )
    yield f"{describe(device)}, PyTorch {torch.__version__}, activations in {str(dtype).removeprefix('torch.')}"
    yield ""
    yield line("", "", [side.name for side in sides])
    yield line("train.py's step", "images/s", [n / own])
    yield line("written out", "images/s", [n / each for each in seconds])
    for phase in PHASES:
        yield line(f"  {phase}", "ms", [1000 * step.seconds[phase] / step.steps for step in written_out])
    yield line("pictures", "images/s", [rate(functools.partial(draw, side, n), n, device) for side in sides])
    yield line("loader", "images/s", [rate(lambda: next(data), n, device, 100)])
    yield line("memory, at most", "GiB", [memory_gib(device)])
    gflop = count_gflop(written_out[0], real, args.gp_every)
    yield line("operations, an image", "GFLOP", [gflop])
    yield line("  a second", "GFLOP/s", [gflop * n / own])
    for kind in dict.fromkeys((dtype, torch.float32)):
        product = product_gflops(kind, device)
        yield line(f"  share of a product in {str(kind).removeprefix('torch.')}", "%", [100 * gflop * n / own / product])
    if args.against:
        yield (
            f"\ntimes as fast as {sides[1].name}: train.py's step {seconds[1] / own:.2f}, written out {seconds[1] / seconds[0]:.2f}"
        )


def line(label, unit, values):
    cells = [value if isinstance(value, str) else f"{value:.3g}" if value < 100 else f"{value:.0f}" for value in values]
    return f"{label:34}{unit:10}" + "".join(f"{cell:>14}" for cell in cells)


def describe(device):
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def main(argv=None):
    parser = ArgumentParser(
        "Time training on this machine: images/s, where the time goes, and how near it is to what the machine can do.",
        "bench.py --resolution 64 --channel_base 1024 --channel_max 64 --batch_size 16",
        "bench.py --against other.py",
    )
    run = Group(parser, "what is trained, with train.py's flags")
    run.add("--resolution", type=int, choices=RESOLUTIONS, default=256, help="pixels a side")
    run.add("--channel_base", type=number(int, 32, LARGEST["channel_base"]), default=8192, help="channels times resolution")
    run.add("--channel_max", type=number(int, 1, LARGEST["channel_max"]), default=256, help="... and at most this many")
    run.add("--batch_size", type=number(int, 2, 2**16), default=4, help="slices a step")
    run.add("--loss", choices=LOSSES, default=LOSSES[0], help="adversarial loss")
    run.add("--gp_every", type=number(int, 1), help="steps from one gradient penalty to the next (default: as in train.py)")
    run.add_bool("--amp", None, "activations in bfloat16 (default: where the processor has it)")
    run.add_bool("--cuda_graph", False, "train.py's step as CUDA graphs")

    timing = Group(parser, "how it is timed")
    timing.add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    timing.add("--steps", type=number(int, 1, 10**6), default=20, help="steps to time, at least")
    timing.add("--dataset_dir", help="slices for the loader (default: random ones)")
    timing.add(
        "--against",
        metavar="FILE.py",
        help="other networks to run the same step on; what the file defines stands at the head of bench.py",
    )
    args = parser.parse_args(argv)
    args.gp_every = args.gp_every or GP_EVERY[args.loss]
    device = pick_device(args.device)
    for text in bench(args, device, pick_dtype(args.amp, device)):
        print(text)
    return 0


if __name__ == "__main__":
    run_cli(main)
