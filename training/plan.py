"""What a run would do, for --dry_run: network, data, length, and an estimate of its memory."""

import functools
import math

import torch

from dataset import steps_per_epoch
from modules import GROUP_SIZE, build_networks
from training.growth import stage_shares
from training.loss import LOSSES
from training.step import FLOAT32_UP_TO


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

    labels = torch.zeros(micro_batch, dtype=torch.long, device="meta") if network["num_classes"] else None
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        w = model["mapping"](torch.empty(micro_batch, network["z_dim"], device="meta"), labels)
        fake = model["generator"](w, dtype=dtype)
        real = torch.empty(micro_batch, 1, size, size, device="meta")
        for images in (real, fake.detach()):
            critic(images, labels, dtype)
        penalised = functools.partial(critic, dtype=dtype, exact=FLOAT32_UP_TO)
        LOSSES[loss].penalty(penalised, real, fake.detach(), labels)
    return 4 * (5 * model_size + 4 * critic_size) + sum(nbytes for nbytes, _ in saved.values())


def out_of_memory(args, network, dtype, processes):
    """What a run with too little memory takes, and what would take less, as text; `processes`: their number."""
    step = GROUP_SIZE * processes  # a micro-batch holds whole groups of every process
    divisors = [n for n in range(args.grad_accum + 1, args.batch_size // step + 1) if args.batch_size % (step * n) == 0]
    takes = [
        f"about {estimate_memory(network, args.loss, args.batch_size // processes // accum, dtype) / 2**30:.1f} GiB"
        for accum in (args.grad_accum, *divisors[:1])
    ]
    less = f"--grad_accum {divisors[0]} would take {takes[1]}" if divisors else "a smaller --batch_size would take less"
    return (
        f"--batch_size {args.batch_size} with --grad_accum {args.grad_accum} takes {takes[0]}; {less}, a lower --channel_base or "
        "--resolution would, too"
    )


def describe_recipe(args):
    """The numbers of a run that most change how it learns, as text; they are columns of recipes.RECIPES."""
    return (
        f"{args.network} network, {args.loss}: batch {args.batch_size}, learning rates {args.lr:g} (generator) and "
        f"{args.lr_critic:g} (critic), {args.n_critic} critic updates per generator update"
    )


def print_plan(args, slices, held_out, folder, config, device, dtype, shards, status, first):
    """Print the plan of a run; `shards`: micro-batches of all processes together; `first`: resolution of the first stage."""
    mirrored = ", mirrored at random" if args.mirror else ""
    counts = " + ".join(f"{n} {name}" for name, n in slices.counts.items())
    with torch.device("meta"):  # shapes alone
        networks = build_networks(config["network"])
    model, critic = (sum(p.numel() for p in module.parameters()) / 1e6 for module in networks)
    shares = stage_shares(args, first)
    per_epoch = steps_per_epoch(len(slices), args.batch_size)
    kimg = args.epochs * per_epoch * args.batch_size / 1000
    memory = estimate_memory(config["network"], args.loss, args.batch_size // shards, dtype) / 2**30
    print(
        f"run         {folder} ({status})\n"
        f"images      {len(slices)} ({counts}) at {args.resolution}x{args.resolution}{mirrored}\n"
        f"unseen      {'none (--test_dir)' if held_out is None else f'{len(held_out)} to compare with'}\n"
        f"recipe      {describe_recipe(args)}\n"
        f"penalties   {args.lambda_gp:g} every {args.gp_every} steps, path length {args.path_length:g}\n"
        f"augmented   {args.augment}\n"
        f"parameters  generator {model:.2f} M, critic {critic:.2f} M\n"
        f"device      {device}, activations in {str(dtype).removeprefix('torch.')}\n"
        f"memory      about {memory:.1f} GiB at batch {args.batch_size}" + f" in {shards} micro-batches" * (shards > 1) + "\n"
        f"steps       {args.epochs} epochs of {per_epoch} = {args.epochs * per_epoch}, {kimg:.0f} kimg"
        + (f", or {args.max_minutes:g} minutes" if args.max_minutes < math.inf else "")
    )
    for size, end in shares.items() if len(shares) > 1 else ():
        print(f"stage       {size}x{size} to {end:.0%} of the run, or {end * kimg:.1f} kimg")
