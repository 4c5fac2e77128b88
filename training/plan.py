"""What a run is to do: network, data, length, and an estimate of its memory. --dry_run prints it."""

import functools
import math
import os
from typing import NamedTuple

import torch

from modules import GROUP_SIZE, build_networks
from training.distributed import Processes
from training.growth import Source
from training.loss import LOSSES
from training.recipes import Options
from training.slices import RunSlices
from training.state import Schedule
from training.step import FLOAT32_UP_TO, TrainingState
from utils import has_room, plural

ROOM = 0.85  # of the free memory of a GPU: the estimate counts neither what kernels work in nor fragments
FEW = 16  # slices of a batch below which a GPU has too little to do


class Plan(NamedTuple):
    """Everything that a run is given, none of which changes while it trains."""

    folder: str
    slices: RunSlices
    network_name: str  # "full" or "thin", the row of the recipes
    network: dict  # settings of the networks at the last stage's resolution, as in config.json
    options: Options
    schedule: Schedule
    source: Source | None  # the run from which a new one starts
    device: torch.device
    dtype: torch.dtype  # of activations
    processes: Processes

    @property
    def name(self):
        return os.path.basename(self.folder)

    @property
    def shards(self):
        """Micro-batches of a step, in all processes together."""
        return self.processes.size * self.options.grad_accum

    def new_state(self, resolution, network=None):
        """An untrained TrainingState of this resolution; with other settings than the run's if `network` says so."""
        network = (network or self.network) | {"resolution": resolution}
        return TrainingState(self.options, network, self.device, self.dtype, self.processes)


def estimate_memory(network, loss, micro_batch, dtype):
    """Bytes of training at its peak, on a micro-batch, with the network settings of config.json.

    Counts weights, gradients, Adam's moments and the average, and what a critic step saves for its two derivatives. The step
    runs on PyTorch's "meta" device, which computes shapes alone.
    """
    with torch.device("meta"):
        model, critic = build_networks(network)
    model_size, critic_size = (sum(p.numel() for p in module.parameters()) for module in (model, critic))
    size, saved = network["resolution"], {}

    def save(tensor):
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage.nbytes(), storage  # holding it, so that no two share an address
        return tensor

    labels = torch.zeros(micro_batch, 1 + len(network["values"]), device="meta") if network.get("values") else None
    if network["num_classes"] and labels is None:
        labels = torch.zeros(micro_batch, dtype=torch.long, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        w = model["mapping"](torch.empty(micro_batch, network["z_dim"], device="meta"), labels)
        fake = model["generator"](w, dtype=dtype)
        real = torch.empty(micro_batch, 1, size, size, device="meta")
        for images in (real, fake.detach()):
            critic(images, labels, dtype)
        penalised = functools.partial(critic, dtype=dtype, float32_up_to=FLOAT32_UP_TO)
        LOSSES[loss].penalty(penalised, real, fake.detach(), labels)
    return 4 * (5 * model_size + 4 * critic_size) + sum(nbytes for nbytes, _ in saved.values())


def memory_gib_of(plan, shards):
    """The estimate for a Plan, in GiB, with its batch split into so many micro-batches."""
    return estimate_memory(plan.network, plan.options.loss, plan.options.recipe.batch_size // shards, plan.dtype) / 2**30


def larger_grad_accum(plan):
    """The numbers of micro-batches above that of a Plan into which its batch can be split."""
    batch_size, step = plan.options.recipe.batch_size, GROUP_SIZE * plan.processes.size  # whole groups of every process
    return [n for n in range(plan.options.grad_accum + 1, batch_size // step + 1) if batch_size % (step * n) == 0]


def fitted(plan):
    """(A Plan with the fewest micro-batches, from its own on, for which its GPU has memory by the estimate, why as text or None).

    All processes get the same number: collective. A plan for another device stays as it is.
    """
    if plan.device.type != "cuda":
        return plan, None
    free, pixels = torch.cuda.mem_get_info(plan.device)[0], len(plan.slices.train) * plan.schedule.resolution**2
    room = ROOM * (free - (pixels if has_room(plan.device, pixels) else 0))  # where `dataset.batches` keeps all slices there
    numbers, size = [plan.options.grad_accum, *larger_grad_accum(plan)], plan.processes.size
    fitting = next((n for n in numbers if memory_gib_of(plan, size * n) * 2**30 <= room), numbers[-1])
    accum = int(plan.processes.maximum(fitting)[0])
    if accum == numbers[0]:
        return plan, None
    takes = f"a batch of {plan.options.recipe.batch_size} takes about {memory_gib_of(plan, plan.shards):.1f} GiB"
    text = f"--grad_accum {accum}, since {takes} and {plan.device} has {free / 2**30:.1f} free"
    return plan._replace(options=plan.options._replace(grad_accum=accum)), text


def out_of_memory(plan):
    """What a run with too little memory takes, and what would take less, as text."""
    accum, batch_size, processes = plan.options.grad_accum, plan.options.recipe.batch_size, plan.processes.size
    divisors = larger_grad_accum(plan)
    less = "a smaller --batch_size would take less"
    if divisors:
        less = f"--grad_accum {divisors[0]} would take about {memory_gib_of(plan, processes * divisors[0]):.1f} GiB"
    return (
        f"--batch_size {batch_size} with --grad_accum {accum} takes about {memory_gib_of(plan, plan.shards):.1f} GiB; {less}, "
        "a lower --channel_base or --resolution would, too"
    )


def describe_recipe(plan):
    """The numbers of a run that most change how it learns, as text."""
    recipe = plan.options.recipe
    updates = plural(recipe.n_critic, "critic update")
    return (
        f"{plan.network_name} network, {plan.options.loss}: batch {recipe.batch_size}, learning rates {recipe.lr:g} (generator) "
        f"and {recipe.lr_critic:g} (critic), {updates} per generator update"
    )


def print_plan(plan, status, first_resolution):
    """Print a Plan; status: of its run, such as "new"; first_resolution: of its first stage."""
    options, schedule, slices = plan.options, plan.schedule, plan.slices.train
    recipe, side = options.recipe, schedule.resolution
    counts = " + ".join(f"{n} {name}" for name, n in slices.counts.items())
    mirrored = ", mirrored at random" if options.mirror else ""
    with torch.device("meta"):  # shapes alone
        networks = build_networks(plan.network)
    model, critic = (sum(p.numel() for p in module.parameters()) / 1e6 for module in networks)
    split = f" in {plan.shards} micro-batches" if plan.shards > 1 else ""
    minutes = f", or {schedule.max_minutes:g} minutes" if schedule.max_minutes < math.inf else ""
    print(
        f"run         {plan.folder} ({status})\n"
        f"images      {len(slices)} ({counts}) at {side}x{side}{mirrored}\n"
        f"validation  {plan.slices.validation_text}\n"
        f"recipe      {describe_recipe(plan)}\n"
        f"penalties   {recipe.lambda_gp:g} every {recipe.gp_every} steps, path length {recipe.path_length:g}\n"
        f"augmented   {options.augment}\n"
        f"parameters  generator {model:.2f} M, critic {critic:.2f} M\n"
        f"device      {plan.device}, activations in {str(plan.dtype).removeprefix('torch.')}\n"
        f"memory      about {memory_gib_of(plan, plan.shards):.1f} GiB at batch {recipe.batch_size}{split}\n"
        f"steps       {schedule.epochs} epochs of {schedule.steps_per_epoch} = {schedule.steps}, {schedule.images / 1000:.0f} kimg"
        f"{minutes}"
    )
    if plan.processes.size > 1:
        share = recipe.batch_size // plan.processes.size
        few = f"; warning: fewer than {FEW} use a GPU badly, choose a larger --batch_size" if share < FEW else ""
        print(
            f"processes   {plan.processes.size}, each with {share} slices of every batch{few if plan.device.type == 'cuda' else ''}"
        )
    stages = schedule.stages(first_resolution)
    for size, end in stages.items() if len(stages) > 1 else ():
        print(f"stage       {size}x{size} to {end:.0%} of the run, or {end * schedule.images / 1000:.1f} kimg")
