"""Everything to run on the day there is a GPU: tests, speed, training, analysis and memory, with every figure in gpu.json.

    python -m tools.gpu_check --dataset_dir AD_NC/train --output_dir gpu

    part    what
    1       the tests that are marked "gpu"
    2       bench.py, a profile of train.py's step, and that step as CUDA graphs; WGAN-GP and relativistic
    3       five minutes of training of AD and, called again, without growing: KID, precision and recall at 2, 4 and 5 minutes
    4       with the model of part 3: a projection, an export, a report, a map of styles
    5       peak memory of a step against the estimate of --dry_run

A call of one part ends within ten minutes; all together within 14, in the order 1, 2, 3, 5, 4, and what has no time left is
left out. Each figure is written as soon as it is measured, and stays when other parts are run. With --device cpu everything is
tiny, to try the command itself.
"""

import csv
import gc
import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from typing import NamedTuple

from utils import ArgumentParser, UserError, atomic_path, make_folder, number, parse_before_import, pick_device, pick_dtype, run_cli

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LIMIT, TOTAL = 590, 840  # seconds for one call of a part, and of all
LIMITS = {1: 150, 2: 200, 3: 380, 5: 110, 4: 240}  # seconds of each part when all are run, in this order
MOMENTS = 2, 4, 5  # minutes of training whose evaluations are kept
LOSSES = "wgan-gp", "relativistic"
LEAST = 30  # seconds without which a part is not begun
PROFILED_STEPS, PROFILED_KERNELS = 8, 12  # steps, among them one of the relativistic loss's penalties; the longest kernels
GRAPH_STEPS = 16  # timed with and without CUDA graphs: a whole cycle of the relativistic loss's penalties
MAP = (  # of two runs of AD, which predict.py does not take for AD and NC: only the time counts
    "import sys; from analysis.models import load_model; from analysis.style_maps import MapSettings, compute_maps, map_specs; "
    "from report.maps import draw_maps; ad, nc, output, device = sys.argv[1:]; settings = MapSettings('umap', 15, 0.1, 1000, 0); "
    "draw_maps(compute_maps(map_specs(load_model(ad, device), load_model(nc, device)), settings), settings, output)"
)


class Sizes(NamedTuple):
    resolution: int
    channel_base: int
    channel_max: int
    batch_size: int
    minutes: float  # of training
    export: int  # slices
    steps: int  # of a benchmark


SIZES = {"cuda": Sizes(256, 8192, 256, 32, 5, 1000, 50), "cpu": Sizes(64, 128, 8, 4, 0.1, 8, 1)}


def parse_args(argv=None):
    parser = ArgumentParser(
        "Try everything on a GPU: tests, speed, training, analysis, memory.",
        "-m tools.gpu_check --dataset_dir AD_NC/train --output_dir gpu",
        "-m tools.gpu_check --dataset_dir AD_NC/train --output_dir gpu --part 2",
    )
    parser.prog = "-m tools.gpu_check"
    parser.add_argument("--dataset_dir", help="folder that holds AD/ and NC/, such as AD_NC/train; parts 3 and 4 need it")
    parser.add_argument("--output_dir", default="gpu", help="folder for gpu.json, logs and models")
    parser.add_argument("--part", type=number(int, 1, 5), help="only this part")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ..., or cpu to try this command")
    args = parser.parse_args(argv)
    if not args.dataset_dir and args.part in (None, 3, 4):
        raise UserError("--dataset_dir: parts 3 and 4 train on slices; give a folder such as AD_NC/train, or another --part")
    return args


if __name__ == "__main__":
    parse_before_import(parse_args)  # before PyTorch is imported

import torch

from training.graphs import WARM_UP, GraphedUpdates
from training.monitor import memory_gib
from training.plan import estimate_memory
from training.recipes import RECIPES, Options, network_settings
from training.step import Batch, TrainingState, train_step, update_networks


class Results:
    """{name: {figure: value}} in <folder>/gpu.json, written after every measurement."""

    def __init__(self, folder, machine):
        self.folder, self.path, self.deadline, self.measured = folder, os.path.join(folder, "gpu.json"), math.inf, {}
        try:
            with open(self.path) as file:
                measured = dict(json.load(file))
            if measured["machine"] == machine:
                self.measured = measured
        except (OSError, ValueError, TypeError, KeyError):
            pass  # none yet, or none that can be read: all is measured again
        self.add("machine", machine)

    def add(self, name, figures):
        self.measured[name] = figures
        with atomic_path(self.path) as path, open(path, "w") as file:
            json.dump(self.measured, file, indent=2)
        shown = [f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in figures.items()]
        print(f"{name}: {', '.join(shown[:4])}", flush=True)


def run(results, name, *command):
    """Run a Python command line with its output in a log file; its text, or None if it failed, which the results then say."""
    log, begun = os.path.join(results.folder, re.sub(r"\W+", "_", name) + ".log"), time.monotonic()
    with open(log, "w") as file:
        try:
            done = subprocess.run(
                [sys.executable, *map(str, command)], stdout=file, stderr=file, cwd=ROOT, timeout=max(1, results.deadline - begun)
            )
            problem = f"exit status {done.returncode}" if done.returncode else None
        except subprocess.TimeoutExpired:
            problem = "the time of this part was over"
    with open(log, errors="replace") as file:
        text = file.read()
    if problem:
        results.add(name, {"failed": problem, "last line": (text.strip().splitlines() or [""])[-1][:200], "log": log})
        return None
    return text + f"\nseconds {time.monotonic() - begun:.1f}\n"


# ---------------------------------------------------------------------------------------------------------------------
# The parts


def test(results, args, sizes):
    """Part 1."""
    chosen = ["-m", "gpu"] if args.device != "cpu" else ["-k", "float32_is_float32 and cpu"]
    if text := run(results, "tests", "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen, "tests/test_gpu.py"):
        results.add("tests", {"result": re.search(r"\d+ passed.*", text)[0]})


def size_flags(sizes):
    """Flags of train.py and bench.py."""
    return [f"--{name}={getattr(sizes, name)}" for name in ("resolution", "channel_base", "channel_max", "batch_size")]


def new_step(loss, sizes, device, dtype, update=update_networks):
    """A function that takes the step of this number, on black images; the TrainingState; and the settings of its networks."""
    side, n = sizes.resolution, sizes.batch_size
    recipe = RECIPES["full", loss]._replace(batch_size=n, channel_base=sizes.channel_base, channel_max=sizes.channel_max)
    network = network_settings(recipe, side)
    state = TrainingState(Options(loss, recipe, augment="none", mirror=False, grad_accum=1, seed=0), network, device, dtype)
    batch = Batch(torch.full([n, 1, side, side], -1.0, device=device))
    return lambda step: train_step(state, step, batch, update), state, network


def bench(results, args, sizes):
    """Part 2."""
    flags = [*size_flags(sizes), "--device", args.device, "--steps", sizes.steps]
    for loss in LOSSES:
        results.add(f"profile {loss}", profile(loss, sizes, torch.device(args.device)))
    for loss in LOSSES:
        if text := run(results, f"bench {loss}", "bench.py", "--loss", loss, *flags):
            rows = re.findall(r"^(.{34})(\S+) +([\d.e+]+)$", text, re.MULTILINE)
            results.add(f"bench {loss}", {f"{label.strip()}, {unit}": float(value) for label, unit, value in rows})
    for loss in LOSSES if args.device != "cpu" else ():
        try:
            results.add(f"graphs {loss}", graphs(loss, sizes, torch.device(args.device)))
        except RuntimeError as error:  # what a capture meets that no GPU has shown yet
            results.add(f"graphs {loss}", {"failed": str(error).splitlines()[0]})


def timed(take, steps, device):
    """Milliseconds that each of these steps takes."""
    begun = time.perf_counter()
    for step in steps:
        take(step)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1000 * (time.perf_counter() - begun) / len(steps)


def graphs(loss, sizes, device):
    """Milliseconds of a step with and without CUDA graphs, and how far apart the weights are in the end, relative to their norm.

    Two runs without graphs differ as well: on a GPU sums have another order at every call.
    """
    figures, weights = {}, []
    for name, update in (("without", update_networks), ("without again", update_networks), ("with graphs", GraphedUpdates())):
        take, state, _ = new_step(loss, sizes, device, pick_dtype(None, device), update)
        timed(take, range((WARM_UP + 1) * GRAPH_STEPS), device)  # each variant is captured
        figures[f"{name}, ms"] = timed(take, range(GRAPH_STEPS), device)
        weights.append(torch.cat([weight.detach().flatten() for weight in state.critic_weights + state.model_weights]))
        figures[f"{name}, difference"] = float((weights[-1] - weights[0]).norm() / weights[0].norm())
    return figures


def profile(loss, sizes, device):
    """Milliseconds of a step, the share of the time in which the device computes, and that of the longest kernels."""
    take, *_ = new_step(loss, sizes, device, pick_dtype(None, device))
    cuda, steps = device.type == "cuda", range(PROFILED_STEPS)
    kind = torch.profiler.ProfilerActivity.CUDA if cuda else torch.profiler.ProfilerActivity.CPU
    timed(take, steps, device)  # to warm up
    milliseconds = timed(take, steps, device)
    with torch.profiler.profile(activities=[kind], acc_events=True) as profiler:
        timed(take, steps, device)
    events = [(event.self_device_time_total if cuda else event.self_cpu_time_total, event.key) for event in profiler.key_averages()]
    total = sum(microseconds for microseconds, _ in events)
    figures = {"step, ms": milliseconds, "images/s": 1000 * sizes.batch_size / milliseconds}
    figures["kernels' share of the time, %"] = total / milliseconds / PROFILED_STEPS / 10
    longest = sorted(events, reverse=True)[:PROFILED_KERNELS]
    return figures | {f"{key[:80]}, %": 100 * microseconds / total for microseconds, key in longest}


def train(results, args, sizes):
    """Part 3, of which each call does the first run that is missing."""
    runs = {"training": [], "training without growing": ["--grow", "False"]}
    name = next((name for name in runs if "failed" in results.measured.get(name, {"failed": None})), None)
    if name is None:
        print("part 3 is done: remove gpu.json to train again")
        return
    folder = os.path.join(results.folder, name.replace(" ", "_"))
    flags = [*size_flags(sizes), "--device", args.device, "--classes", "AD", "--epochs", 10**6, "--max_minutes", sizes.minutes]
    flags += ["--eval_every", 1, "--save_every", 1, *runs[name]]
    shutil.rmtree(folder, ignore_errors=True)  # of a call that was cut off
    if not run(results, name, "train.py", "--dataset_dir", os.path.abspath(args.dataset_dir), "--model_dir", folder, *flags):
        return
    figures = {}
    losses, evaluations = (read_rows(os.path.join(folder, "AD", f"{table}.csv")) for table in ("losses", "evaluations"))
    for minutes in MOMENTS:
        row = min(evaluations, key=lambda row: abs(row["seconds"] - 60 * minutes))
        place = f"at {row['seconds'] / 60:.1f} minutes"
        figures |= {f"{key} {place}": row[key] for key in ("kid", "kid_train", "precision", "recall")}
        figures[f"kimg {place}"] = row["images"] / 1000
    rates = [row["images_per_second"] for row in losses[len(losses) // 2 :]]
    figures |= {"images/s, mean of the second half": sum(rates) / len(rates), "peak memory, GiB": losses[-1]["memory_gib"]}
    results.add(name, figures)


def read_rows(path):
    with open(path, newline="") as file:
        return [{column: float(value) for column, value in row.items()} for row in csv.DictReader(file)]


def analyse(results, args, sizes):
    """Part 4."""
    runs = [os.path.join(results.folder, name, "AD") for name in ("training", "training_without_growing")]
    if not os.path.isfile(os.path.join(runs[0], "generator.pt")):
        raise UserError(f"--part 4 needs the model of part 3: no {runs[0]}/generator.pt")
    slices = os.path.join(os.path.abspath(args.dataset_dir), "AD")
    output = os.path.join(results.folder, "predictions")
    predict = ["predict.py", "--device", args.device, "--model_dir", runs[0], "--output_dir", output]
    jobs = {
        "projection": [*predict, "--project", os.path.join(slices, min(os.listdir(slices)))],
        "export": [*predict, "--export", sizes.export],
        "report": [*predict, "--report", "True"],
        "map of styles": ["-c", MAP, *runs, output, args.device],
    }
    for name, command in jobs.items():
        if name == "map of styles" and (importlib.util.find_spec("umap") is None or not os.path.isdir(runs[1])):
            print("map of styles: skipped, since it needs umap-learn and both runs of part 3")
        elif text := run(results, name, *command):
            results.add(name, {"seconds": float(text.split()[-1])})


def memory(results, args, sizes):
    """Part 5."""
    device = torch.device(args.device)
    for loss in LOSSES:
        for batch_size in (sizes.batch_size // 2, sizes.batch_size):
            for dtype in dict.fromkeys((pick_dtype(None, device), torch.float32)):
                if device.type == "cuda":
                    gc.collect()
                    torch.cuda.empty_cache()
                take, state, network = new_step(loss, sizes._replace(batch_size=batch_size), device, dtype)
                for step in (0, 1, 0, 1):
                    if step == 0 and device.type == "cuda":  # the second time after warming up: cuDNN has tried its kernels
                        torch.cuda.reset_peak_memory_stats(device)
                    take(step)
                measured, estimate = memory_gib(device), estimate_memory(network, loss, batch_size, dtype) / 2**30
                name = f"memory {loss}, batch {batch_size}, {str(dtype).removeprefix('torch.')}"
                results.add(name, {"peak, GiB": measured, "estimate, GiB": estimate, "peak / estimate": measured / estimate})
                del take, state  # before the next is made


PARTS = {1: test, 2: bench, 3: train, 4: analyse, 5: memory}


def main(argv=None):
    args = parse_args(argv)
    device = pick_device(args.device)
    args.device = str(device)
    make_folder(args.output_dir, "--output_dir")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"
    machine = {"device": name, "PyTorch": torch.__version__, "activations": str(pick_dtype(None, device)).removeprefix("torch.")}
    results = Results(os.path.abspath(args.output_dir), machine)
    end = time.monotonic() + TOTAL
    for part, limit in {args.part: LIMIT}.items() if args.part else LIMITS.items():
        results.deadline = min(end, time.monotonic() + limit)
        if results.deadline < time.monotonic() + LEAST:
            print(f"part {part}: no time is left; --part {part} runs it")
            continue
        PARTS[part](results, args, SIZES[device.type])
    print(results.path)
    return 1 if any("failed" in figures for figures in results.measured.values()) else 0


if __name__ == "__main__":
    run_cli(main)
