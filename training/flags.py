"""train.py's flags. Nothing here needs PyTorch until the device is known, so that --help is quick. Numbers: recipes.py."""

import argparse
import math

from training.recipes import COLUMNS, FLAGS, LOSSES, NETWORKS, RECIPES, Recipe, table
from utils import CLASSES, RESOLUTIONS, VALUES, ArgumentParser, Group, UserError, class_name, number


def parse_args(argv=None):
    """The flags. Those whose default depends on the device or on the run to resume are None: see `choose_recipe`."""
    parser = ArgumentParser(
        "Train StyleGAN2 on brain slices. A run is a folder, <model_dir>/<classes>; the same command resumes it.",
        "train.py --dataset_dir AD_NC/train --classes AD",
        "train.py --dataset_dir AD_NC/train --classes all --conditional True",
        "train.py --dataset_dir AD_NC/train --classes AD --loss relativistic --max_minutes 9",
        "train.py --dataset_dir AD_NC/train --classes AD --lr 0.001 --set lr_critic=0.002 n_critic=2",
    )
    add_data_flags(Group(parser, "data"))
    add_run_flags(Group(parser, "the run"))
    add_recipe_flags(
        Group(parser, "the recipe: networks, rates and penalties; the defaults are the table below"), ", or as the run was begun"
    )
    add_training_flags(Group(parser, "training"))
    add_machine_flags(Group(parser, "the machine"))
    parser.epilog = f"{recipes_text()}\n\n{parser.epilog}"
    args = parser.parse_args(argv)
    args.conditional = args.conditional or ()
    if args.conditional and args.classes != "all":
        raise UserError(f"--conditional needs both classes: use it with --classes all, not {args.classes}")
    return args


def add_data_flags(group):
    group.add("--dataset_dir", required=True, help="folder that holds AD/ and NC/, such as AD_NC/train")
    group.add("--classes", type=class_name, choices=("all", *CLASSES), default="all", help="slices to learn from")
    text = "with --classes all: one model that is told the class, or class,position,age,sex: some of these beside the class"
    group.add("--conditional", type=told, nargs="?", const=("class",), metavar="True|False|class,...", help=text)
    group.add("--resolution", type=int, choices=RESOLUTIONS, default=256, help="pixels a side")
    group.add(
        "--validation_dir",
        help="slices of other people, by which best.pt, alerts and --augment ada choose (default: those of about a tenth of the "
        "people in --dataset_dir, who are not trained on then)",
    )
    group.add("--subjects", metavar="CSV", help="LONI's CSV, or another table of the slices' people (docs/data.md)")
    group.add_bool(
        "--keep_damaged", False, "train on scans that are black, far darker than the others or noise, too; dataset.py shows which"
    )


def told(text):
    """An argparse type: True, or names out of class and VALUES -> ("class", ...), what a conditional model is told; False -> ()."""
    if text.lower() in ("true", "false"):
        return ("class",) if text.lower() == "true" else ()
    names = text.lower().split(",")
    if wrong := [name for name in names if name not in ("class", *VALUES)]:
        allowed = f"True, False, or some of class, {', '.join(VALUES)}"
        raise argparse.ArgumentTypeError(f"{', '.join(map(repr, wrong))} is not known; expected {allowed}")
    return ("class", *(name for name in VALUES if name in names))


def add_run_flags(group):
    group.add("--model_dir", default="model", help="folder of the runs")
    group.add_bool("--resume", True, "resume the run if there is one; False renames its folder and starts a new run")
    group.add(
        "--start_from",
        metavar="RUN",
        help="folder of another run, or of a generator.pt, of at most this resolution, whose networks a new run begins with",
    )
    group.add("--epochs", type=number(int, 1, 10**9), default=100, help="passes over the slices")
    group.add(
        "--max_minutes", type=number(float, 0, math.inf, open_low=True), default=math.inf, help="save and stop after this long"
    )
    group.add("--save_every", type=interval, default=5, help="epochs between two saves, or minutes, such as 10min")
    group.add(
        "--eval_every",
        type=number(int, 0),
        default=5,
        help="epochs between two evaluations (standardised KID, precision, recall, the critic's scores); 0: none",
    )
    group.add("--seed", type=number(int, 0, 2**63 - 1), default=0, help="of weights, order, latents and noise")
    group.add_bool("--dry_run", False, "check everything, print the plan and exit")


def interval(text):
    """An argparse type: a number of epochs -> int, of minutes, such as 10min -> the text itself, which `save_intervals` reads."""
    try:
        if text.endswith("min"):
            number(float, 0, 10**6, open_low=True)(text.removesuffix("min"))
            return text
        return number(int, 1)(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither epochs, such as 5, nor minutes, such as 10min") from None


def save_intervals(save_every):
    """(epochs, minutes) between two saves that --save_every means; the one that it does not name is inf."""
    return (save_every, math.inf) if isinstance(save_every, int) else (math.inf, float(save_every.removesuffix("min")))


def add_recipe_flags(group, kept=""):
    """The flags that choose a row of the recipes and change numbers of it; `kept` follows their defaults in --help."""
    group.add("--network", choices=NETWORKS, help=f"(default: full on an NVIDIA GPU, else thin{kept})")
    group.add(
        "--loss",
        choices=LOSSES,
        help=f"what the networks minimise; relativistic does better in equal time (default: {LOSSES[0]}{kept})",
    )
    for name in FLAGS:
        group.add(f"--{name}", type=COLUMNS[name].parse, help=COLUMNS[name].help)
    others = "; ".join(f"{name}: {column.help}" for name, column in COLUMNS.items() if name not in FLAGS)
    group.add("--set", type=setting, nargs="+", action="extend", metavar="NAME=NUMBER", help=f"other numbers. {others}")


def add_training_flags(group):
    group.add_bool(
        "--grow",
        True,
        "train in stages of doubling resolution from 16x16 on, each of which takes its share of --epochs or --max_minutes, "
        "whichever is nearer; False: at --resolution throughout",
    )
    group.add_bool(
        "--mirror",
        None,
        "mirror real slices left-right with probability 1/2, and let --augment mirror, too: for slices that look like their mirror "
        "images, never for sagittal ones (default: False, or as the run was begun)",
    )
    group.add(
        "--augment",
        choices=("ada", "none"),
        default="none",
        help="augmentation of what the critic sees; ada: as strong as the critic overfits",
    )


def add_machine_flags(group):
    group.add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ..., or mps: Apple's GPU, which is untested")
    group.add_bool(
        "--amp",
        None,
        "activations in bfloat16, in the gradient penalty down to 32x32 (default: on a processor with instructions for it: a CPU "
        "with AMX or AVX512-BF16, a GPU from Ampere on); on an older GPU in float16, down to 32x32",
    )
    text = "micro-batches per step and process, for GPUs with little memory (default: as few as the GPU's free memory allows)"
    group.add("--grad_accum", type=number(int, 1), help=text)


def recipes_text():
    """The recipes in columns, for --help."""
    rows = table()
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join(["recipes (a flag overrides one number, --set NAME=NUMBER one whose name has no dashes):", *lines])


def setting(text):
    """An argparse type: NAME=NUMBER -> (name, number), for columns of a recipe that have no flag of their own."""
    name, equals, value = text.partition("=")
    names = [name for name in COLUMNS if name not in FLAGS]
    if name not in names or not equals:
        hint = f"{name} has a flag of its own, --{name}" if name in FLAGS else f"NAME is one of {', '.join(names)}"
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=NUMBER: {hint}")
    try:
        return name, COLUMNS[name].parse(value)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{name}: {error}") from None


# ---------------------------------------------------------------------------------------------------------------------
# Which recipe the flags mean


def choose_recipe(args, device, kept=None):
    """(network, loss, Recipe) that the flags of `add_recipe_flags` mean on a torch.device.

    kept: {"network", "loss", column: number} of another run, which stand in place of the defaults.
    """
    kept = kept or {}
    network = args.network or kept.get("network") or ("full" if device.type == "cuda" else "thin")
    loss = args.loss or kept.get("loss") or LOSSES[0]
    given = {name: getattr(args, name) for name in FLAGS if getattr(args, name) is not None} | dict(args.set or [])
    numbers = {name: value for name, value in kept.items() if name in COLUMNS}
    return network, loss, RECIPES[network, loss]._replace(**numbers | given)


def kept_settings(config):
    """What a run keeps when it is resumed unless flags say otherwise: {"network", "loss", "mirror", column: number}.

    config: of `run_folder.read_run`.
    """
    return {name: config["flags"][name] for name in ("network", "loss", "mirror", *Recipe._fields)}


def kept_sizes(network):
    """The sizes among the settings of a network: {column: number}."""
    return {name: value for name, value in network.items() if name in Recipe._fields}
