"""The flags of train.py and predict.py, what they choose among, and how a wrong one is answered.

Without PyTorch, which takes seconds to import: the two scripts look at their flags with `answer_early` before they import
it, so that `--help` and a typing error are answered at once.
"""

import argparse
import difflib
import math
import sys

from utils import UserError, run_cli

CLASSES = ("AD", "NC")  # label 0, label 1
RESOLUTIONS = (32, 64, 128, 256, 512, 1024)
LAMBDA_GP = {"wgan-gp": 10.0, "logistic": 5.0, "relativistic": 5.0}  # weight of the penalty unless --lambda_gp says,
GP_EVERY = {"wgan-gp": 1, "logistic": 8, "relativistic": 8}  # steps between two unless --gp_every does (README)
LOSSES = tuple(LAMBDA_GP)
LARGEST = {"channel_base": 2**20, "channel_max": 1024}  # beyond these no machine has the memory
AUGMENT = "ada", "fixed", "none"
FOR = {
    "a GPU": {"channel_base": 8192, "channel_max": 256, "batch_size": 32, "lr": 2e-3},  # unless the flags say,
    "a CPU": {"channel_base": 1024, "channel_max": 64, "batch_size": 16, "lr": 4e-3},
}  # by device (README)
METHODS = "umap", "tsne", "pca"
SPACES = "w", "w+"
WEIGHTS = {"last": "generator.pt", "best": "best.pt"}  # files of a run


# ---------------------------------------------------------------------------------------------------------------------
# Reading a command line


class ArgumentParser(argparse.ArgumentParser):
    """argparse, but a wrong flag gives one line (as every other error does) and defaults stand in `--help`.

    examples: command lines, without the `python`, that `--help` ends with.
    """

    def __init__(self, description, *examples):
        super().__init__(
            description=description,
            formatter_class=HelpFormatter,
            allow_abbrev=False,
            epilog="examples:\n" + "\n".join("  python " + line for line in examples) if examples else None,
        )

    def error(self, message):
        raise UserError(f"{message} (see python {self.prog} --help)")

    def parse_args(self, argv=None):
        args, unknown = self.parse_known_args(argv)
        if unknown:
            near = difflib.get_close_matches(unknown[0].split("=")[0], self._option_string_actions, 1)
            self.error(f"unknown: {' '.join(unknown)}" + (f", did you mean {near[0]}?" if near else ""))
        for name, value in vars(args).items():
            if value in ([], ""):  # [] is what argparse makes of --flag=--, unchecked
                self.error(f"--{name}: expected a value")
        return args


class Group:
    """Flags that stand together in `--help`."""

    def __init__(self, parser, title):
        self.group = parser.add_argument_group(title)
        self.add = self.group.add_argument

    def add_bool(self, flag, default, help):
        """A flag that takes True or False in any letter case; standing bare it means True."""
        self.add(flag, type=boolean, nargs="?", const=True, default=default, metavar="True|False", help=help)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)


def boolean(text):
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    raise argparse.ArgumentTypeError(f"expected True or False, not {text!r}")


def number(kind, low, high=sys.float_info.max, open_low=False):
    """An argparse type: an int or float within [low, high], or (low, high] with `open_low`; inf only where `high` is."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {'a whole' if kind is int else 'a'} number") from None
        if not low <= value <= high or (open_low and value == low):  # also refuses nan
            bounds = f"{'above' if open_low else 'at least'} {low}" + (f", at most {high}" if high < sys.float_info.max else "")
            raise argparse.ArgumentTypeError(f"{text} is out of range: {bounds}")
        return value

    return parse


def answer_early(parse):
    """Call parse() for what it refuses, or for its `--help`; either ends the process."""
    try:
        parse()
    except UserError:
        run_cli(parse)


# ---------------------------------------------------------------------------------------------------------------------
# train.py


def by_device(name):
    return "default: " + ", ".join(f"{values[name]:g} on {device}" for device, values in FOR.items())


def parse_train(argv=None):
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


# ---------------------------------------------------------------------------------------------------------------------
# predict.py


def parse_predict(argv=None):
    parser = ArgumentParser(
        "Look into trained models: what they generate, what their style space holds, what both are worth.",
        "predict.py --dataset_dir AD_NC/train",
        "predict.py --plot_umap True --AD_dir AD --NC_dir NC --control_dir control/NC",
        "predict.py --classes all-conditional --morph True --directions 5",
        "predict.py --classes all-conditional --project AD_NC/test/AD/218391_78.jpeg",
        "predict.py --classes AD --export 1000 --truncation 0.7 --output_dir out",
        "predict.py --classes all-conditional --dataset_dir AD_NC/test --report True",
    )
    models = Group(parser, "models")
    models.add("--model_dir", default="model", help="folder of the runs, or one run itself")
    models.add(
        "--classes", help="name of the run under --model_dir: AD, NC, all, all-conditional (default: all, or the only one there)"
    )
    models.add(
        "--which",
        choices=tuple(WEIGHTS),
        default="last",
        help="the averaged generator as it is now, or as it was at the evaluation with the lowest KID",
    )

    pictures = Group(parser, "pictures of a model")
    pictures.add("--dataset_dir", help="folder that holds AD/ and NC/: also draw real slices beside generated ones")
    pictures.add("--num_images", type=number(int, 1, 10_000), default=16, help="slices in a grid (of each class)")
    pictures.add(
        "--truncation",
        type=number(float, 0),
        default=1.0,
        help="psi: 1 leaves the styles as they are, less draws them to the mean: more alike, fewer faults",
    )
    pictures.add_bool("--mixing", False, "styles of two latents: one's coarse layers, the other's fine ones")
    pictures.add(
        "--mix_layers",
        metavar="FIRST-LAST",
        type=layers,
        help="layers that the other gives, from 0 (default: those of 16x16 and finer)",
    )
    pictures.add_bool("--sweep", False, "the same slices at several truncations")
    pictures.add_bool("--interpolate", False, "from slice to slice, as a strip and as a GIF")
    pictures.add_bool("--noise_map", False, "what the noise alone changes")
    pictures.add_bool("--pyramid", False, "what each resolution adds, from 4x4 on")
    pictures.add(
        "--directions",
        type=number(int, 1, 64),
        metavar="K",
        help="slices along the first K principal directions of the style space (GANSpace, SeFa)",
    )
    pictures.add_bool("--morph", False, "with a conditional model: the same latents as AD and as NC, and the mean difference")
    pictures.add(
        "--export",
        type=number(int, 1, 10**7),
        metavar="N",
        help="also write N single PNGs (of each class) with metadata.csv; goes on with an export that was stopped",
    )

    umap = Group(parser, "maps of style vectors")
    umap.add_bool("--plot_umap", False, "draw style vectors of two models; needs --AD_dir and --NC_dir, or --conditional_dir")
    umap.add("--AD_dir", help="run of the AD model: a path, or its name under --model_dir")
    umap.add("--NC_dir", help="run of the NC model, likewise")
    umap.add(
        "--control_dir",
        help="run of a second NC model, trained with another --seed: what a gap between AD and NC has to be held against",
    )
    umap.add("--conditional_dir", help="run of a conditional model, likewise (default: all-conditional, if there is one)")
    umap.add(
        "--umap_slices",
        type=number(int, 2),
        default=50,
        metavar="N",
        help="with a conditional model and --dataset_dir: real slices of each class to project into its style space",
    )
    umap.add("--num_styles", type=number(int, 20, 10**5), default=1000, help="style vectors of each class")
    umap.add("--method", choices=METHODS, default=METHODS[0], help="how the map is made")
    umap.add("--umap_neighbors", type=number(int, 2), default=15, help="UMAP's n_neighbors: more show the whole, fewer the parts")
    umap.add("--umap_min_dist", type=number(float, 0, 1), default=0.1, help="UMAP's min_dist: how closely points are packed")

    project = Group(parser, "projection of real slices")
    project.add(
        "--project",
        metavar="FILE|DIR",
        help="find the styles that draw these slices; with a conditional model also move them from AD to NC",
    )
    project.add("--project_steps", type=number(int, 1, 10**6), default=100, help="steps of the search for styles, and for noise")
    project.add("--space", choices=SPACES, default=SPACES[0], help="one style for all layers, or one for each")

    judge = Group(parser, "judgement")
    judge.add_bool(
        "--evaluate",
        False,
        "does it carry the disease? The critic on unseen slices, classifiers trained on generated "
        "ones, areas, metrics; needs --dataset_dir, such as AD_NC/test",
    )
    judge.add_bool("--report", False, "all of this, as far as the other flags allow, as one page, report.html, and report.json")

    machine = Group(parser, "how")
    machine.add("--output_dir", default="predictions", help="where everything goes")
    machine.add("--seed", type=number(int, 0, 2**32 - 1), default=0, help="of latents, noise, maps and searches")
    machine.add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")

    args = parser.parse_args(argv)
    missing = [flag for flag in ("AD_dir", "NC_dir") if args.plot_umap and not getattr(args, flag)]
    if missing and not (len(missing) == 2 and args.conditional_dir):
        raise UserError(
            f"--plot_umap True also needs {' and '.join(f'--{flag}' for flag in missing)}: the run of that "
            f"class's model, such as --AD_dir AD --NC_dir NC"
        )
    if args.control_dir and missing:
        raise UserError("--control_dir is held against --AD_dir and --NC_dir: give both")
    if args.mix_layers and not args.mixing:
        raise UserError("--mix_layers belongs to --mixing True")
    if args.evaluate and not args.dataset_dir:
        raise UserError("--evaluate True also needs --dataset_dir: slices that the model was not trained on, such as AD_NC/test")
    return args


def layers(text):
    """An argparse type: "4-9" -> range(4, 10)."""
    first, _, last = text.partition("-")
    if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise argparse.ArgumentTypeError(f"expected two layers such as 4-9, not {text!r}")
    return range(int(first), int(last) + 1)
