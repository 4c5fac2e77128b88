"""Which runs predict.py works on: are they what its flags ask for, and in which folders are they?

models = map_models({"AD_dir": "AD", "NC_dir": "NC", "control_dir": "control/NC"}, "model", "last", device)
model = open_run("AD", "model", "last", device, "--classes")
"""

import itertools
import os
import sys

from analysis.models import describe_runs, find_run, holds_generator, list_runs, load_model, same_weights
from utils import CLASSES, UserError, printable, read_config

CONDITIONAL = "all-conditional"  # name of the run of a conditional model
TRAINED_ON = {"AD_dir": "AD", "NC_dir": "NC", "control_dir": "NC", "conditional_dir": CONDITIONAL}  # what each flag takes a run of


def open_run(name, model_dir, which, device, flag):
    """The Model of the run of this name or path; UserError, which begins with the `flag` that asks for it, if there is none."""
    folder = find_run(name, model_dir, f"{flag}:")
    try:
        return load_model(folder, device, which)
    except UserError as error:
        raise UserError(f"{flag} {name}: {error}") from None


def choose_model(name, model_dir, which, device):
    """The Model of the run `name` (of --classes), or, given None, of `model_dir` if it is a run itself, of its run "all", or of the
    only one there is. Says on stderr in which folder it is; UserError if it cannot be told or was trained on another class."""
    if name:
        model = open_run(name, model_dir, which, device, "--classes")
        tell_run(f"--classes {name}", model)
        if name in CLASSES:
            check_classes(f"--classes {name}", model, name)
        return model
    folder = os.path.normpath(model_dir)
    if not holds_generator(model_dir):
        runs = list_runs(model_dir)
        if "all" not in runs and len(runs) != 1:
            raise UserError(f"{describe_runs(model_dir)}: say which with --classes" if runs else describe_runs(model_dir))
        folder = find_run(os.path.join(model_dir, "all" if "all" in runs else runs[0]), model_dir)
    model = load_model(folder, device, which)
    tell_run(f"--model_dir {model_dir}", model)
    return model


def map_models(asked, model_dir, which, device):
    """The Models of the maps of predict.py --plot_umap: {flag: Model}, flags of TRAINED_ON in their order.

    asked: {flag: name or path of a run}; without conditional_dir, a conditional run all-conditional under `model_dir` is taken.
    Says on stderr in which folders they are. UserError if a run was not trained on what its flag takes, or two flags mean one run.
    """
    models = {flag: open_run(run, model_dir, which, device, f"--{flag}") for flag, run in asked.items()}
    for flag, model in models.items():
        check_classes(f"--{flag} {asked[flag]}", model, TRAINED_ON[flag])
    for one, other in itertools.combinations(models, 2):
        if reason := same_run(models[other], models[one]):
            raise UserError(
                f"--{other} {asked[other]} is the run of --{one} {asked[one]}: {reason}; train another model, with another --seed"
            )
    for flag, model in models.items():
        tell_run(f"--{flag} {asked[flag]}", model)
    if "conditional_dir" not in models and CONDITIONAL in list_runs(model_dir):
        folder = os.path.join(model_dir, CONDITIONAL)
        try:
            model = load_model(folder, device, which)
            check_classes(folder, model, CONDITIONAL)
            models["conditional_dir"] = model
            tell_run(CONDITIONAL, model)
        except UserError as error:
            print(printable(f"note: there is no map of a conditional model: {error}"), file=sys.stderr)
    return models


def check_classes(asked, model, expected):
    """UserError, which begins with the flag and its value `asked`, unless the Model is what `expected`, of TRAINED_ON, says."""
    if expected == CONDITIONAL and not model.is_conditional:
        raise UserError(f"{asked} is no conditional model: it takes one that is given the class (train.py --conditional True)")
    if expected != CONDITIONAL and model.is_conditional:
        raise UserError(
            f"{asked} is a conditional model: it takes one of {expected} alone (--conditional_dir takes conditional ones)"
        )
    if expected != CONDITIONAL and model.trained_on != [expected]:
        raise UserError(
            f"{asked}: the run in {model.folder} was trained on {' and '.join(model.trained_on)}, not on {expected}"
            f"{' alone' if expected in model.trained_on else ''}: give a run of train.py --classes {expected}"
        )


def same_run(*models):
    """Why two Models are of one run, as text: equal weights, or the same training, perhaps at two times; None if they are not.

    A copy of a generator alone has no settings to compare.
    """
    folders = " and ".join(model.folder for model in models)
    if same_weights(*models):
        return f"{folders} hold the same weights"
    configs = [(config, config.get("flags", {})) for config in (read_config(model.folder) for model in models)]
    one, other = ([config.get("network"), config.get("data"), flags.get("loss"), flags.get("seed")] for config, flags in configs)
    return f"{folders} have the same slices, network, loss and --seed" if one == other and None not in one else None


def tell_run(asked, model):
    """Say on stderr in which folder the run that was asked for is."""
    print(printable(f"note: {asked}: the run in {model.folder}, trained on {' and '.join(model.trained_on)}"), file=sys.stderr)
