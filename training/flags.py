"""train.py's flags and their defaults. Nothing here needs PyTorch until the device is known, so that --help is quick."""

import math
import sys

from utils import (
    CLASSES,
    EARLIER_FLAGS,
    LARGEST,
    MAPPING_LAYERS,
    RESOLUTIONS,
    ArgumentParser,
    Group,
    UserError,
    number,
    pick_dtype,
    read_config,
    read_network,
)

LAMBDA_GP = {"wgan-gp": 10.0, "logistic": 5.0, "relativistic": 5.0}  # defaults of --lambda_gp
GP_EVERY = {"wgan-gp": 1, "logistic": 8, "relativistic": 8}  # defaults of --gp_every
PATH_LENGTH = {"wgan-gp": 0.0, "logistic": 0.0, "relativistic": 8.0}  # defaults of --path_length
N_CRITIC = {"wgan-gp": 1, "logistic": 1, "relativistic": 2}  # defaults of --n_critic
GENERATOR_RATE = {"wgan-gp": 0.5, "logistic": 1.0, "relativistic": 1.0}  # --lr / --lr_critic with --n_critic 1: Heusel et al. 2017
LOSSES = tuple(LAMBDA_GP)
DEFAULTS = {
    "a GPU": {"channel_base": 8192, "channel_max": 256, "batch_size": 32, "lr": 2e-3},
    "a CPU": {"channel_base": 1024, "channel_max": 64, "batch_size": 8, "lr": 4e-3},
}


def by_device(name):
    return "default: " + ", ".join(f"{values[name]:g} on {device}" for device, values in DEFAULTS.items())


def by_loss(values):
    return "default: " + ", ".join(f"{value:g} with {loss}" for loss, value in values.items())


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
    data.add("--subjects", metavar="CSV", help="LONI's table, or one with the columns image and subject: are people in both?")
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
    network.add(
        "--mapping_layers",
        type=number(int, 1, LARGEST["mapping_layers"]),
        help=f"layers of the mapping network (default: {MAPPING_LAYERS}, with which slices were more varied than with 8)",
    )

    training = Group(parser, "training")
    training.add(
        "--batch_size", type=number(int, 2, 2**16), help=f"slices per step, of all processes together ({by_device('batch_size')})"
    )
    training.add(
        "--lr",
        type=number(float, 0, open_low=True),
        help=f"Adam's learning rate of generator and mapping network ({by_device('lr')}; with wgan-gp half of it; "
        "half as much more for every further update of --n_critic)",
    )
    training.add(
        "--lr_critic",
        type=number(float, 0, open_low=True),
        help=f"the critic's learning rate ({by_device('lr')}; in proportion to --lr if that is given)",
    )
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
    training.add_bool(
        "--grow",
        True,
        "train in stages of doubling resolution from 16x16 on, each of which takes its share of --epochs or --max_minutes, "
        "whichever is nearer; False: at --resolution throughout",
    )
    training.add("--lambda_gp", type=number(float, 0), help=f"weight of the gradient penalty ({by_loss(LAMBDA_GP)})")
    training.add(
        "--gp_every",
        type=number(int, 1, 10**6),
        help=f"steps between two gradient penalties, each weighted by as many ({by_loss(GP_EVERY)})",
    )
    training.add(
        "--n_critic",
        type=number(int, 1, 10**6),
        help=f"critic updates, each on a batch of its own, per generator update ({by_loss(N_CRITIC)})",
    )
    training.add_bool(
        "--mirror",
        None,
        "mirror real slices left-right with probability 1/2, and let --augment mirror, too: for slices that look like their mirror "
        "images, never for sagittal ones (default: False, or as the run was begun)",
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
    training.add("--path_length", type=number(float, 0), help=f"weight of the path length penalty ({by_loss(PATH_LENGTH)})")
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
    machine.add_bool(
        "--deterministic",
        False,
        "on a GPU, only operations that give the same bits every time, which are slower; a CPU's always do",
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
    """Fill in flags that are None: from the run in `folder` if it is to be resumed, else as suits the torch.device.

    The channels and mapping layers of a run that starts from another are those of the other.
    """
    saved = read_network(folder) | read_learning_flags(folder) if folder else {}
    if args.lr is not None:
        saved.pop("lr_critic", None)  # it follows a new --lr, unless --lr_critic says otherwise
    if not saved and args.start_from:
        saved = read_network(args.start_from)
    amp = str(pick_dtype(None, device)) == "torch.bfloat16"
    defaults = dict(DEFAULTS["a CPU" if device.type == "cpu" else "a GPU"])
    lr = defaults.pop("lr")
    defaults |= {
        "amp": amp,
        "mapping_layers": MAPPING_LAYERS,
        "n_critic": N_CRITIC[args.loss],
        "path_length": PATH_LENGTH[args.loss],
        "mirror": False,
    }
    for name, value in (defaults | saved).items():
        if getattr(args, name, 0) is None:
            setattr(args, name, value)
    rate = GENERATOR_RATE[args.loss] * (1 + args.n_critic) / 2  # fewer updates, each of them longer
    args.lr = args.lr or lr * rate
    args.lr_critic = args.lr_critic or args.lr / rate
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
