"""Which runs predict.py works on: are they what its flags ask for, and in which folders are they?

models = map_models({"AD_dir": "AD", "NC_dir": "NC", "control_dir": "control/NC"}, None, "model", "last", device)
model = open_run("AD", "model", "last", device, "--classes")
"""

import itertools
import os
import sys

from analysis.models import describe_runs, find_run, holds_generator, list_runs, load_model, same_weights
from utils import CLASSES, UserError, printable, read_config

CONDITIONAL = "all-conditional"  # name of the run of a conditional model
MAP_FLAGS = {"AD_dir": "AD", "NC_dir": "NC", "control_dir": "NC"}  # class of the run that each flag of the maps takes
NOTHING_TO_MAP = (
    "--plot_umap True also needs --AD_dir and --NC_dir, such as --AD_dir AD --NC_dir NC, or a conditional model, such as "
    f"--classes {CONDITIONAL}"
)


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
            check_class(f"--classes {name}", model, name)
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


def map_models(asked, name, model_dir, which, device):
    """The Models of the maps of predict.py --plot_umap: {flag of MAP_FLAGS or "conditional": Model}.

    asked: {flag: name or path of a run}. The conditional model is that of --classes (`name`), else the run all-conditional under
    `model_dir`; without AD_dir and NC_dir, whatever `choose_model` takes. Says on stderr in which folders they are. UserError if a
    run was not trained on what its flag takes, two flags mean one run, or there is nothing to map.
    """
    runs = list_runs(model_dir)
    if not asked and not name and len(runs) > 1 and CONDITIONAL not in runs:
        raise UserError(NOTHING_TO_MAP)
    if not asked:
        model = choose_model(name or (CONDITIONAL if CONDITIONAL in runs else None), model_dir, which, device)
        if not model.is_conditional:
            raise UserError(f"{NOTHING_TO_MAP}: the run in {model.folder} is not conditional")
        return {"conditional": model}
    models = {flag: open_run(run, model_dir, which, device, f"--{flag}") for flag, run in asked.items()}
    for flag, model in models.items():
        check_class(f"--{flag} {asked[flag]}", model, MAP_FLAGS[flag])
    for one, other in itertools.combinations(models, 2):
        if reason := same_run(models[other], models[one]):
            raise UserError(
                f"--{other} {asked[other]} is the run of --{one} {asked[one]}: {reason}; train another model, with another --seed"
            )
    for flag, model in models.items():
        tell_run(f"--{flag} {asked[flag]}", model)
    if name or CONDITIONAL in runs:
        model = open_run(name or CONDITIONAL, model_dir, which, device, "--classes")
        if model.is_conditional:
            models["conditional"] = model
            tell_run(name or CONDITIONAL, model)
    return models


def check_class(asked, model, expected):
    """UserError, which begins with the flag and its value `asked`, unless the Model was trained on the class `expected` alone."""
    if model.is_conditional:
        raise UserError(f"{asked} is a conditional model: it takes one of {expected} alone (--classes takes conditional ones)")
    if model.trained_on != [expected]:
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
