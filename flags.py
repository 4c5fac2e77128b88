"""The flags of train.py and predict.py, what they choose among, and how a wrong one is answered.

Without PyTorch, which takes seconds to import: the two scripts look at their flags with `answer_early` before they import
it, so that `--help` and a typing error are answered at once.
"""
import argparse
import difflib
import math

from utils import UserError, run_cli

CLASSES = ("AD", "NC")                                                  # label 0, label 1
RESOLUTIONS = (32, 64, 128, 256, 512, 1024)
LAMBDA_GP = {"wgan-gp": 10., "logistic": 5., "relativistic": 5.}        # weight of the penalty unless --lambda_gp says,
GP_EVERY = {"wgan-gp": 1, "logistic": 8, "relativistic": 8}             # steps between two unless --gp_every does (README)
LOSSES = tuple(LAMBDA_GP)
AUGMENT = "ada", "fixed", "none"
FOR = {"a GPU": {"channel_base": 8192, "channel_max": 256, "batch_size": 32, "lr": 2e-3},              # unless the flags say,
       "a CPU": {"channel_base": 1024, "channel_max": 64, "batch_size": 16, "lr": 4e-3}}               # by device (README)
WEIGHTS = {"last": "generator.pt", "best": "best.pt"}                   # files of a run


# ---------------------------------------------------------------------------------------------------------------------
# Reading a command line

class ArgumentParser(argparse.ArgumentParser):
    """argparse, but a wrong flag gives one line (as every other error does) and defaults stand in `--help`.

    example: command lines that `--help` ends with.
    """
    def __init__(self, description, example=None):
        super().__init__(description=description, formatter_class=HelpFormatter, allow_abbrev=False,
                         epilog=example and "example:\n" + "\n".join("  python " + line for line in example))

    def error(self, message):
        raise UserError(f"{message} (see python {self.prog} --help)")

    def parse_args(self, argv=None):
        args, unknown = self.parse_known_args(argv)
        if unknown:
            near = difflib.get_close_matches(unknown[0].split("=")[0], self._option_string_actions, 1)
            self.error(f"unknown: {' '.join(unknown)}" + (f", did you mean {near[0]}?" if near else ""))
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


def number(kind, low, high=float("inf"), open_low=False):
    """An argparse type: an int or float within [low, high], or (low, high] with `open_low`."""
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {'a whole' if kind is int else 'a'} number") from None
        if not low <= value <= high or (open_low and value == low):       # also refuses nan
            bounds = f"{'above' if open_low else 'at least'} {low}" + (f", at most {high}" if high < float("inf") else "")
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
    parser = ArgumentParser("Train StyleGAN2 on brain slices. A run lives in <model_dir>/<classes>; the same command goes on "
                            "with it.", ("train.py --dataset_dir AD_NC/train --classes AD",
                                         "train.py --dataset_dir AD_NC/train --classes all --conditional True",
                                         "train.py --dataset_dir AD_NC/train --classes AD --loss relativistic --max_minutes 9"))
    data = Group(parser, "data")
    data.add("--dataset_dir", required=True, help="folder that holds AD/ and NC/, such as AD_NC/train")
    data.add("--classes", choices=("all", *CLASSES), default="all", help="slices to learn from")
    data.add_bool("--conditional", False, "with --classes all: one model that is told the class")
    data.add("--resolution", type=int, choices=RESOLUTIONS, default=256, help="pixels a side")
    data.add("--test_dir", help="slices that evaluations compare with beside the training slices (default: test/ beside "
                                "--dataset_dir, if there is one)")
    data.add("--num_workers", type=number(int, 1),
             help="threads that decode images on the first pass (default: one a core)")

    run = Group(parser, "the run")
    run.add("--model_dir", default="model", help="folder of the runs")
    run.add_bool("--resume", True, "go on with the run when there is one; False renames its folder and starts anew")
    run.add("--epochs", type=number(int, 1), default=100, help="passes over the slices")
    run.add("--max_minutes", type=number(float, 0, open_low=True), default=math.inf, help="save and stop after this long")
    run.add("--save_every", type=number(int, 1), default=5, help="epochs from one save to the next")
    run.add("--eval_every", type=number(int, 0), default=5,
            help="epochs from one evaluation (KID, the critic's scores) to the next; 0: none")
    run.add("--seed", type=number(int, 0, 2 ** 63 - 1), default=0, help="of weights, order, latents and noise")
    run.add_bool("--debug", False, "print what every block puts out, at the start and at every save")
    run.add_bool("--tensorboard", False, "also write TensorBoard event files; needs the package tensorboard")
    run.add_bool("--dry_run", False, "check everything, print the plan and exit")

    network = Group(parser, "the networks")
    network.add("--channel_base", type=number(int, 32),
                help=f"feature maps at a resolution: channel_base / resolution ... ({by_device('channel_base')})")
    network.add("--channel_max", type=number(int, 1), help=f"... and at most this many ({by_device('channel_max')})")

    training = Group(parser, "training")
    training.add("--batch_size", type=number(int, 2),
                 help=f"slices a step, of all processes together ({by_device('batch_size')})")
    training.add("--lr", type=number(float, 0, open_low=True), help=f"Adam's learning rate ({by_device('lr')})")
    training.add("--lr_critic", type=number(float, 0, open_low=True), help="the critic's own (default: --lr)")
    training.add("--lr_decay", type=number(float, 0, 1), default=0.,
                 help="share of the run, at its end, in which both rates fall to 0; the end is that of --epochs or "
                      "--max_minutes, whichever is nearer")
    training.add("--loss", choices=LOSSES, default=LOSSES[0],
                 help="what the networks minimise; relativistic did better in the same time (README, Results)")
    training.add("--lambda_gp", type=number(float, 0), help="weight of the gradient penalty (default: "
                 + ", ".join(f"{weight:g} with {kind}" for kind, weight in LAMBDA_GP.items()) + ")")
    training.add("--gp_every", type=number(int, 1), help="steps from one gradient penalty, then weighted as many times, to the "
                 "next (default: " + ", ".join(f"{every} with {kind}" for kind, every in GP_EVERY.items()) + ")")
    training.add_bool("--bounded", True, "the critic sees generated slices clipped to what a picture holds, as real ones are")
    training.add("--augment", choices=AUGMENT, default="none",
                 help="what the critic sees: ada augments as much as it overfits, or, without unseen slices, separates")
    training.add("--augment_p", type=number(float, 0, 1), help="probability of each augmentation; for --augment fixed")
    training.add("--style_mixing", type=number(float, 0, 1), default=0., help="share of slices made from two latents")
    training.add("--path_length", type=number(float, 0), default=0., help="weight of the path length penalty")
    training.add("--ema_kimg", type=number(float, 0, open_low=True), default=10.,
                 help="half-life of the averaged generator in thousand images, less at the start")

    machine = Group(parser, "the machine")
    machine.add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    machine.add_bool("--amp", None, "activations in bfloat16, but for the penalty's (default: where the processor has it, that "
                                    "is a CPU with AMX or a GPU from Ampere on)")
    machine.add("--grad_accum", type=number(int, 1), default=1,
                help="turns in which a batch is computed, for small cards: the same gradients from less memory")

    args = parser.parse_args(argv)
    if args.conditional and args.classes != "all":
        raise UserError(f"--conditional True needs both classes: use it with --classes all, not {args.classes}")
    if (args.augment == "fixed") != (args.augment_p is not None):
        raise UserError("--augment fixed and --augment_p belong together, such as --augment fixed --augment_p 0.3")
    args.augment_p = args.augment_p or 0.
    args.lambda_gp = LAMBDA_GP[args.loss] if args.lambda_gp is None else args.lambda_gp
    args.gp_every = args.gp_every or GP_EVERY[args.loss]
    return args


def settle(args, device, network={}):
    """Fill in what the flags leave open: as in the `network` of a run that goes on, else as suits the torch.device `device`."""
    for name, value in (FOR["a CPU" if device.type == "cpu" else "a GPU"] | network).items():
        if getattr(args, name, 0) is None:
            setattr(args, name, value)
    args.lr_critic = args.lr_critic or args.lr
    return args


# ---------------------------------------------------------------------------------------------------------------------
# predict.py

def parse_predict(argv=None):
    parser = ArgumentParser("Draw what trained models generate, and UMAPs of their style vectors.",
                            ("predict.py --dataset_dir AD_NC/train",
                             "predict.py --plot_umap True --AD_dir AD --NC_dir NC --control_dir control/AD",
                             "predict.py --classes AD --export 1000 --truncation 0.7 --output_dir out"))
    models = Group(parser, "models")
    models.add("--model_dir", default="model", help="folder of the runs, or one run itself")
    models.add("--classes", help="name of the run under --model_dir: AD, NC, all, all-conditional (default: all, or the only "
                                 "one there)")
    models.add("--which", choices=tuple(WEIGHTS), default="last",
               help="the averaged generator as it is now, or as it was at the evaluation with the lowest KID")

    pictures = Group(parser, "pictures")
    pictures.add("--dataset_dir", help="folder that holds AD/ and NC/: also draw real slices beside generated ones")
    pictures.add("--num_images", type=number(int, 1), default=16, help="slices in a grid (of each class)")
    pictures.add("--truncation", type=number(float, 0), default=1.,
                 help="psi: 1 leaves the styles as they are, less draws them to the mean: more alike, fewer faults")
    pictures.add("--export", type=number(int, 1), metavar="N", help="also write N single PNGs (of each class)")

    umap = Group(parser, "UMAP of style vectors")
    umap.add_bool("--plot_umap", False, "also draw the UMAP of two models' style vectors; needs --AD_dir and --NC_dir")
    umap.add("--AD_dir", help="run of the AD model: a path, or its name under --model_dir")
    umap.add("--NC_dir", help="run of the NC model, likewise")
    umap.add("--control_dir", help="run of a second AD model, trained with another --seed: what a gap between AD and NC has to "
                                   "be held against")

    machine = Group(parser, "how")
    machine.add("--output_dir", default="predictions", help="where pictures go")
    machine.add("--seed", type=number(int, 0, 2 ** 32 - 1), default=0, help="of latents, noise and UMAP")
    machine.add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")

    args = parser.parse_args(argv)
    missing = [flag for flag in ("AD_dir", "NC_dir") if args.plot_umap and not getattr(args, flag)]
    if missing:
        raise UserError(f"--plot_umap True also needs {' and '.join(f'--{flag}' for flag in missing)}: the run of that "
                        f"class's model, such as --AD_dir AD --NC_dir NC")
    return args
