"""Benchmark training on this machine: images/s of a step, of generating and of loading.

    python bench.py --resolution 64 --network thin --batch_size 16
    python bench.py --table True --network thin
    python bench.py --against other.py

`--table` lists parameters, memory and seconds of each network and resolution.
`--against` alternates train.py's step with a plain one on another code base's networks, so that other load on the machine affects
both: the same algorithm without clipping, augmentation and path length. The Python file is executed and must define

    def build(resolution, channel_base, channel_max):
        return generate, critic, generator_parameters, critic_parameters

with generate(n) -> images [n, 1, R, R] of about [-1, 1] from random latents, critic(images) -> scores [n] or [n, 1] that can be
differentiated twice, and two lists of parameters, all on --device unless its code says otherwise.
"""

import startup  # noqa: F401  # isort: skip

import argparse
import importlib.util
import itertools
import math
import multiprocessing
import os
import platform
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from training.flags import add_recipe_flags, choose_recipe, recipes_text
from training.recipes import NETWORKS, Options, network_settings
from utils import RESOLUTIONS, ArgumentParser, Group, UserError, number, parse_before_import, pick_device, pick_dtype, run_cli

TABLED = 64, 128, 256  # resolutions of --table


def parse_args(argv=None):
    parser = ArgumentParser(
        "Benchmark training on this machine: images/s of a step, of generating and of loading.",
        "bench.py --resolution 64 --network thin --batch_size 16",
        "bench.py --table True --network thin",
        "bench.py --set n_critic=1 path_length=0 --against other.py",
    )
    parser.epilog = f"{recipes_text()}\n\n{parser.epilog}"
    run = Group(parser, "what is trained, with train.py's flags")
    text = f"pixels a side (default: 256; of --table {', '.join(map(str, TABLED))})"
    run.add("--resolution", type=int, choices=RESOLUTIONS, help=text)
    add_recipe_flags(run)
    run.add_bool("--amp", None, "activations in bfloat16 or float16 (default: as in train.py)")

    timing = Group(parser, "how it is timed")
    timing.add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    timing.add("--steps", type=number(int, 1, 10**6), help="steps to time, at least (default: 20; of --table 2)")
    timing.add("--dataset_dir", help="slices for the loader (default: random ones)")
    text = "instead: a table of parameters, memory and seconds of each network and resolution, or those given; on a CPU, minutes"
    timing.add_bool("--table", False, text)
    timing.add("--against", metavar="FILE.py", help="a Python file with other networks to time; the head of bench.py says how")
    args = parser.parse_args(argv)
    for name in ("against", "dataset_dir") if args.table else ():
        if getattr(args, name):
            raise UserError(f"--table True times train.py's networks on random slices: leave out --{name}")
    return args


if __name__ == "__main__":
    parse_before_import(parse_args)  # --help and typing errors need no PyTorch, which takes seconds to import

import numpy as np
import torch
from tqdm import tqdm

from dataset import Slices, batches, to_uint8
from startup import start_workers
from training.loss import LOSSES
from training.monitor import memory_gib
from training.step import BETAS, Batch, TrainingState, generate, require_grad, train_step

ROUND = 5  # steps, at least, before the other code base's turn


def other_step(path, network, loss, recipe, device):
    """A `PlainStep` on what `build` in the Python file `path` returns; UserError if it is not as described above.

    network: settings, of which `build` gets the sizes.
    """
    if device.type != "cpu":
        torch.set_default_device(device)
    side, n = network["resolution"], recipe.batch_size
    try:
        spec = importlib.util.spec_from_file_location("against", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        generate, critic, *weights = module.build(side, network["channel_base"], network["channel_max"])
        images = generate(n)
        scores = critic(images)
        if images.shape != (n, 1, side, side) or scores.numel() != n:
            raise ValueError(f"n = {n} gives images {list(images.shape)} and scores {list(scores.shape)}")
        return PlainStep(generate, critic, *map(list, weights), loss, recipe)
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        raise UserError(
            f"--against {path}: {type(error).__name__} ({reason}); the head of bench.py says what the file must define"
        ) from None


class PlainStep:
    """The algorithm of train.py on any networks, but for clipping, augmentation and path length; called with real images.

    generate: n -> images [n, 1, R, R]; critic: images -> scores [n] or [n, 1].
    """

    def __init__(self, generate, critic, generator_weights, critic_weights, loss, recipe):
        self.generate, self.score = generate, critic
        self.generator_weights, self.critic_weights = generator_weights, critic_weights
        self.recipe, self.loss, self.step = recipe, LOSSES[loss], 0
        self.generator_optimizer = torch.optim.Adam(generator_weights, recipe.lr, BETAS, fused=True)
        self.critic_optimizer = torch.optim.Adam(critic_weights, recipe.lr_critic, BETAS, fused=True)
        self.averaged = [p.detach().clone() for p in generator_weights]

    def critic(self, images, labels=None, groups=1):
        return torch.cat([self.score(group).flatten() for group in images.chunk(groups)])

    def __call__(self, real):
        updates_generator = self.step % self.recipe.n_critic == 0
        with torch.set_grad_enabled(updates_generator):
            fake = self.generate(len(real))
        require_grad(self.critic_weights, True)
        self.critic_optimizer.zero_grad()
        self.loss.critic(self.critic(real), self.critic(fake.detach())).backward()
        if self.step % self.recipe.gp_every == 0:
            penalty, _ = self.loss.penalty(self.critic, real, fake.detach())
            (self.recipe.gp_every * self.recipe.lambda_gp * penalty).backward()
        self.critic_optimizer.step()

        if updates_generator:
            require_grad(self.critic_weights, False)
            self.generator_optimizer.zero_grad()
            with torch.no_grad():
                score_real = self.critic(real) if self.loss.generator_sees_real else None
            self.loss.generator(self.critic(fake), score_real).backward()
            self.generator_optimizer.step()
        torch._foreach_lerp_(self.averaged, [p.detach() for p in self.generator_weights], 0.001)
        self.step += 1


# ---------------------------------------------------------------------------------------------------------------------
# Measurements


def now(device):
    """Seconds, once all work on `device` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def alternate(steps, real, rounds, length, device, label=None):
    """Seconds per step of each of `steps`: the median over `rounds` of `length` steps, alternating between them."""
    seconds = [[] for _ in steps]
    with tqdm(desc=label, total=rounds * length * len(steps), unit=" steps", leave=False) as bar:
        for _ in range(rounds):
            for step, durations in zip(steps, seconds):
                begun = now(device)
                for _ in range(length):
                    step(real)
                    bar.update()
                durations.append((now(device) - begun) / length)
    return [statistics.median(durations) for durations in seconds]


def rate(work, count, device, calls=10):
    """Items per second if one call of work() makes `count`: by the median of `calls` calls, after two to warm up."""
    durations = []
    for _ in range(2 + calls):
        begun = now(device)
        work()
        durations.append(now(device) - begun)
    return count / statistics.median(durations[2:])


class RandomSlices:
    """Random pixels behind the part of the interface of dataset.Slices that dataset.batches uses."""

    def __init__(self, resolution, count=1024):
        self.resolution, self.labels = resolution, np.zeros(count, np.int64)
        self.pixels = np.random.default_rng(0).integers(0, 256, (count, resolution, resolution), dtype=np.uint8)

    def told(self, indices=slice(None)):
        return self.labels[indices]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, indices):
        return self.pixels[indices]


def new_state(loss, recipe, resolution, device, dtype):
    options = Options(loss, recipe, augment="none", mirror=False, grad_accum=1, seed=0)
    return TrainingState(options, network_settings(recipe, resolution), device, dtype)


def machine_text(device, dtype):
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return f"{kind}{threads}, PyTorch {torch.__version__}, activations in {str(dtype).removeprefix('torch.')}\n"


def benchmark(args, recipe, loss, device, dtype):
    """Yield the lines of images/s at one resolution."""
    resolution = args.resolution or 256
    network, n, period = network_settings(recipe, resolution), recipe.batch_size, math.lcm(recipe.gp_every, recipe.n_critic)
    state = new_state(loss, recipe, resolution, device, dtype)
    slices = Slices(args.dataset_dir, "all", resolution) if args.dataset_dir else RandomSlices(resolution)
    data, own_steps = batches(slices, n, device, seed=0), itertools.count()
    real, _ = next(data)
    steps = [lambda real: train_step(state, next(own_steps), Batch(real))]
    if args.against:
        steps.append(other_step(args.against, network, loss, recipe, device))
    length = -(-ROUND // period) * period  # as many penalties and generator updates in every round
    alternate(steps, real, 1, length, device)  # warm up
    own, *other = alternate(steps, real, -(-(args.steps or 20) // length), length, device)

    yield (
        f"{resolution}x{resolution}, channels {recipe.channel_base} / {recipe.channel_max}, batch {n}, {loss}, "
        f"penalty every {recipe.gp_every} steps, path length {recipe.path_length:g}, "
        f"{recipe.n_critic} critic updates per generator update"
    )
    yield machine_text(device, dtype)
    with torch.no_grad():
        generating = rate(lambda: to_uint8(generate(state, n, style_mixing=0)[0]), n, device)
    rows = {"train.py's step": n / own, "generating": generating, "loading": rate(lambda: next(data), n, device, 100)}
    if args.against:
        rows[f"plain step of {os.path.basename(args.against)}"] = n / other[0]
    for label, value in rows.items():
        yield line(label, "images/s", value)
    yield line("peak memory", "GiB", memory_gib(device))
    if args.against:
        yield f"\ntrain.py's step is {other[0] / own:.2f} times as fast as the plain one"


def line(label, unit, value):
    return f"{label:34}{unit:10}{value:17.3g}" if value < 100 else f"{label:34}{unit:10}{value:17.0f}"


# ---------------------------------------------------------------------------------------------------------------------
# --table


def measure_networks(device_name, amp, loss, recipe, resolution, steps):
    """A row: million parameters of generator (with mapping network) and critic, peak memory in GiB, seconds an image and a step.

    The median of whole periods of the recipe, after one to warm up; images are generated in batches of the recipe's size.
    """
    device = pick_device(device_name)
    n, period, numbers = recipe.batch_size, math.lcm(recipe.gp_every, recipe.n_critic), itertools.count()
    state = new_state(loss, recipe, resolution, device, pick_dtype(amp, device))
    real, _ = next(batches(RandomSlices(resolution, n), n, device, seed=0))
    step, label = [lambda real: train_step(state, next(numbers), Batch(real))], f"{resolution}x{resolution}"
    alternate(step, real, 1, period, device, f"{label}, warming up")
    (seconds,) = alternate(step, real, -(-steps // period), period, device, label)
    with torch.no_grad():
        generating = rate(lambda: to_uint8(generate(state, n, style_mixing=0)[0]), n, device, 1)
    sizes = [sum(p.numel() for p in weights) / 1e6 for weights in (state.model_weights, state.critic_weights)]
    return *sizes, memory_gib(device), 1 / generating, seconds


def in_own_process(work, *given):
    """work(*given) in a process of its own, whose peak memory is of this work alone; None if it dies, for lack of memory say."""
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    try:
        return start_workers(lambda: pool.submit(work, *given)).result()
    except (BrokenProcessPool, torch.OutOfMemoryError):
        return None
    except BaseException:  # Ctrl-C
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown()


def table(args, device):
    """Yield the lines of a Markdown table of the networks and resolutions that the flags leave open."""
    yield machine_text(device, pick_dtype(args.amp, device))
    titles = "network", "pixels ", "batch", "generator, M", "critic, M", "memory, GiB", "s an image", "s a step"
    yield "| " + " | ".join(titles) + " |"
    yield "|" + "|".join("-" * (len(title) + 2) for title in titles) + "|"
    for resolution in [args.resolution] if args.resolution else TABLED:
        for network in [args.network] if args.network else reversed(NETWORKS):
            _, loss, recipe = choose_recipe(argparse.Namespace(**vars(args) | {"network": network}), device)
            row = in_own_process(measure_networks, args.device, args.amp, loss, recipe, resolution, args.steps or 2)
            cells = [f"{value:.3g}" for value in row] if row else ["-", "-", "out of memory", "-", "-"]
            cells = [network, f"{resolution}x{resolution}", str(recipe.batch_size), *cells]
            yield "| " + " | ".join(cell.ljust(len(title)) for cell, title in zip(cells, titles)) + " |"
    if device.type == "cpu":
        yield "\nMemory is that of the whole process, PyTorch included."


def main(argv=None):
    args = parse_args(argv)
    device = pick_device(args.device)
    if args.table:
        for text in table(args, device):
            print(text, flush=True)
        return 0
    _, loss, recipe = choose_recipe(args, device)
    for text in benchmark(args, recipe, loss, device, pick_dtype(args.amp, device)):
        print(text)
    return 0


if __name__ == "__main__":
    run_cli(main)
