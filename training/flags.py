"""train.py's flags. Nothing here needs PyTorch until the device is known, so that --help is quick. Numbers: recipes.py."""

import math
import sys

from training.recipes import LOSSES, NETWORKS, RECIPES, Options, default_network, plain_table
from utils import (
    CLASSES,
    EARLIER_FLAGS,
    LARGEST,
    RESOLUTIONS,
    ArgumentParser,
    Group,
    UserError,
    class_name,
    number,
    pick_dtype,
    read_config,
    read_network,
)


def parse_args(argv=None):
    """The flags. Those whose default depends on the device or on the run to resume are None until `fill_defaults`."""
    parser = ArgumentParser(
        "Train StyleGAN2 on brain slices. A run is a folder, <model_dir>/<classes>; the same command resumes it.",
        "train.py --dataset_dir AD_NC/train --classes AD",
        "train.py --dataset_dir AD_NC/train --classes all --conditional True",
        "train.py --dataset_dir AD_NC/train --classes AD --loss relativistic --max_minutes 9",
    )
    parser.epilog = f"recipes (a flag of the first column overrides one number):\n{plain_table()}\n\n{parser.epilog}"
    switch = Options._field_defaults
    data = Group(parser, "data")
    data.add("--dataset_dir", required=True, help="folder that holds AD/ and NC/, such as AD_NC/train")
    data.add("--classes", type=class_name, choices=("all", *CLASSES), default="all", help="slices to learn from")
    data.add_bool("--conditional", False, "with --classes all: one model that is told the class")
    data.add("--resolution", type=int, choices=RESOLUTIONS, default=256, help="pixels a side")
    data.add(
        "--test_dir",
        help="slices that evaluations compare with beside the training slices (default: test/ beside "
        "--dataset_dir, if there is one)",
    )
    data.add(
        "--subjects", metavar="CSV", help="LONI's CSV, or another table of the slices' people (docs/data.md): are people in both?"
    )
    data.add("--num_workers", type=number(int, 1, 1024), help="threads that decode images on the first pass (default: one a core)")

    run = Group(parser, "the run")
    run.add("--model_dir", default="model", help="folder of the runs")
    run.add_bool("--resume", True, "resume the run if there is one; False renames its folder and starts a new run")
    run.add(
        "--start_from",
        metavar="RUN",
        help="folder of another run, of at most this resolution, whose networks a new run begins with",
    )
    run.add("--epochs", type=number(int, 1, 10**9), default=100, help="passes over the slices")
    run.add("--max_minutes", type=number(float, 0, math.inf, open_low=True), default=math.inf, help="save and stop after this long")
    run.add("--save_every", type=number(int, 1), default=5, help="epochs between two saves")
    run.add(
        "--eval_every",
        type=number(int, 0),
        default=5,
        help="epochs between two evaluations (standardised KID, precision, recall, the critic's scores); 0: none",
    )
    run.add("--seed", type=number(int, 0, 2**63 - 1), default=switch["seed"], help="of weights, order, latents and noise")
    run.add_bool("--debug", False, "print statistics of every block's activations at the start, at saves and at evaluations")
    run.add_bool("--tensorboard", False, "also write TensorBoard event files; needs the package tensorboard")
    run.add_bool("--dry_run", False, "check everything, print the plan and exit")

    recipe = Group(parser, "the recipe: networks, rates and penalties; the defaults are the table below, by --network and --loss")
    recipe.add("--network", choices=NETWORKS, help="(default: full on a GPU, thin on a CPU)")
    recipe.add(
        "--loss",
        choices=LOSSES,
        default=LOSSES[0],
        help="what the networks minimise; relativistic did better in the same time (docs/results.md)",
    )
    recipe.add(
        "--channel_base",
        type=number(int, 32, LARGEST["channel_base"]),
        help="feature maps at a resolution: channel_base / resolution ...",
    )
    recipe.add("--channel_max", type=number(int, 1, LARGEST["channel_max"]), help="... and at most this many")
    recipe.add("--mapping_layers", type=number(int, 1, LARGEST["mapping_layers"]), help="layers of the mapping network")
    recipe.add("--batch_size", type=number(int, 2, 2**16), help="slices per step, of all processes together")
    recipe.add("--lr", type=number(float, 0, open_low=True), help="Adam's learning rate of generator and mapping network")
    recipe.add("--lr_critic", type=number(float, 0, open_low=True), help="the critic's learning rate")
    recipe.add("--n_critic", type=number(int, 1, 10**6), help="critic updates, each on a batch of its own, per generator update")
    recipe.add("--lambda_gp", type=number(float, 0), help="weight of the gradient penalty")
    recipe.add("--gp_every", type=number(int, 1, 10**6), help="steps between two gradient penalties, each weighted by as many")
    recipe.add("--path_length", type=number(float, 0), help="weight of the path length penalty")
    recipe.add(
        "--ema_kimg",
        type=number(float, 0, open_low=True),
        help="half-life of the averaged generator in thousand images, less at the start",
    )

    training = Group(parser, "training")
    training.add(
        "--lr_decay",
        type=number(float, 0, 1),
        default=0.0,
        help="share of the run, at its end, over which both rates fall to 0; the end is that of --epochs or --max_minutes, "
        "whichever is nearer; a resumed run never raises them again",
    )
    training.add_bool(
        "--grow",
        True,
        "train in stages of doubling resolution from 16x16 on, each of which takes its share of --epochs or --max_minutes, "
        "whichever is nearer; False: at --resolution throughout",
    )
    training.add_bool(
        "--mirror",
        None,
        "mirror real slices left-right with probability 1/2, and let --augment mirror, too: for slices that look like their mirror "
        "images, never for sagittal ones (default: False, or as the run was begun)",
    )
    training.add_bool("--bounded", switch["bounded"], "clip generated slices to black and white, as real ones are, for the critic")
    training.add(
        "--augment",
        choices=("ada", "fixed", "none"),
        default=switch["augment"],
        help="augmentation of what the critic sees; ada: as strong as the critic overfits",
    )
    training.add("--augment_p", type=number(float, 0, 1), help="probability of each augmentation; for --augment fixed")
    training.add(
        "--style_mixing",
        type=number(float, 0, 1),
        default=switch["style_mixing"],
        help="probability of mixing the styles of two latents",
    )

    machine = Group(parser, "the machine")
    machine.add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    machine.add_bool(
        "--amp",
        None,
        "activations in bfloat16, in the gradient penalty down to 32x32 (default: on a processor with instructions for it: a CPU "
        "with AMX or AVX512-BF16, a GPU from Ampere on)",
    )
    machine.add_bool(
        "--deterministic",
        False,
        "on a GPU, only operations that give the same bits every time, which are slower; a CPU's always do",
    )
    machine.add(
        "--grad_accum",
        type=number(int, 1),
        default=switch["grad_accum"],
        help="micro-batches per step and process, for GPUs with little memory",
    )

    args = parser.parse_args(argv)
    if args.conditional and args.classes != "all":
        raise UserError(f"--conditional True needs both classes: use it with --classes all, not {args.classes}")
    if (args.augment == "fixed") != (args.augment_p is not None):
        raise UserError("--augment fixed and --augment_p belong together, such as --augment fixed --augment_p 0.3")
    args.augment_p = args.augment_p or switch["augment_p"]
    return args


def fill_defaults(args, device, folder=None):
    """Fill in flags that are None: from the run in `folder` if it is to be resumed, else from the recipe and the torch.device.

    The channels and mapping layers of a run that starts from another are those of the other.
    """
    saved = read_network(folder) | read_learning_flags(folder) if folder else {}
    if not saved and args.start_from:
        saved = read_network(args.start_from)
    args.network = args.network or default_network(device)
    amp = str(pick_dtype(None, device)) == "torch.bfloat16"
    defaults = RECIPES[args.network, args.loss]._asdict() | {"amp": amp, "mirror": Options._field_defaults["mirror"]}
    for name, value in (defaults | saved).items():
        if getattr(args, name, 0) is None:
            setattr(args, name, value)
    return args


def read_learning_flags(folder):
    """The flags by which the run in `folder` learns, as far as its config.json holds valid ones: batch size, learning rates, ..."""
    flags = EARLIER_FLAGS | read_config(folder).get("flags", {})
    valid = {}
    above_0 = sys.float_info.min
    for name, kind, least, largest in (
        ("batch_size", int, 2, 2**16),
        ("lr", float, above_0, 1e10),
        ("lr_critic", float, above_0, 1e10),
        ("n_critic", int, 1, 10**6),
        ("path_length", float, 0, 1e10),
        ("mirror", bool, 0, 1),
    ):
        if type(flags.get(name)) is kind and least <= flags[name] <= largest:
            valid[name] = flags[name]
    return valid
