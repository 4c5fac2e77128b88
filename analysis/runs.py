"""Which runs predict.py works on: are they what its flags ask for, in which folders, and what are their files called?

runs = map_runs({"AD_dir": "AD", "NC_dir": "NC", "control_dir": "control/NC"}, "model", "last", device)
models = name_apart([load_model("a/AD", device), load_model("b/AD", device)], "predictions")      # called a_AD and b_AD
"""

import itertools
import os
import sys
from collections import Counter

from analysis.latents import grid_path, shows_another_run
from analysis.models import find_run, holds_generator, list_runs, load_model, run_places, same_weights
from analysis.style_maps import compared_runs, same_training
from utils import UserError, printable

CONDITIONAL = "all-conditional"  # name of the run of a conditional model
TRAINED_ON = {"AD_dir": "AD", "NC_dir": "NC", "control_dir": "NC", "conditional_dir": CONDITIONAL}  # what each flag takes a run of


def is_conditional(model):
    return model.labels != [None]


def map_runs(asked, model_dir, which, device):
    """The runs of the maps of predict.py --plot_umap, as `style_maps.compared_runs` gives them.

    asked: {flag: name or path of a run}, flags of TRAINED_ON in their order; without conditional_dir, a conditional run
    all-conditional under `model_dir` is taken. Says on stderr in which folders they are. UserError if a run was not trained on what
    its flag takes, or two flags mean the same run.
    """
    models = {flag: load_run(flag, run, model_dir, which, device) for flag, run in asked.items()}
    if [models[flag].trained_on for flag in ("AD_dir", "NC_dir") if flag in models] == [["NC"], ["AD"]]:
        raise UserError(f"--AD_dir {asked['AD_dir']} was trained on NC and --NC_dir {asked['NC_dir']} on AD: exchange them")
    for flag, model in models.items():
        check_classes(f"--{flag} {asked[flag]}", model, TRAINED_ON[flag])
    for one, other in itertools.combinations(models, 2):
        folders = models[other].folder, models[one].folder
        if same_weights(models[one], models[other]):
            reason = f"{' and '.join(folders)} hold the same weights"
        elif same_training(*folders):
            reason = f"{' and '.join(folders)} have the same slices, network, loss and --seed"
        else:
            continue
        raise UserError(
            f"--{other} {asked[other]} is the run of --{one} {asked[one]}: {reason}; train another model, with another --seed"
        )
    for flag, model in models.items():
        tell_run(f"--{flag} {asked[flag]}", model, run_places(asked[flag], model_dir))
    if "conditional_dir" not in models and CONDITIONAL in list_runs(model_dir):
        folder = os.path.join(model_dir, CONDITIONAL)
        try:
            model = load_model(folder, device, which)
            check_classes(folder, model, CONDITIONAL)
            models["conditional_dir"] = model
            tell_run(CONDITIONAL, model)
        except UserError as error:
            print(printable(f"note: there is no map of a conditional model: {error}"), file=sys.stderr)
    return compared_runs(*(models[flag].folder if flag in models else None for flag in TRAINED_ON))


def load_run(flag, run, model_dir, which, device):
    """The Model of the run that a flag means; UserError, which names the flag, if there is none."""
    folder = find_run(run, model_dir, f"--{flag}:")
    try:
        return load_model(folder, device, which)
    except UserError as error:
        raise UserError(f"--{flag} {run}: {error}") from None


def check_classes(asked, model, expected):
    """UserError, which begins with the flag and its value `asked`, unless the Model is what `expected`, of TRAINED_ON, says."""
    if expected == CONDITIONAL and not is_conditional(model):
        raise UserError(f"{asked} is no conditional model: it takes one that is given the class (train.py --conditional True)")
    if expected != CONDITIONAL and is_conditional(model):
        raise UserError(
            f"{asked} is a conditional model: it takes one of {expected} alone (--conditional_dir takes conditional ones)"
        )
    if expected != CONDITIONAL and model.trained_on != [expected]:
        raise UserError(
            f"{asked}: the run in {model.folder} was trained on {' and '.join(model.trained_on)}, not on {expected}"
            f"{' alone' if expected in model.trained_on else ''}: give a run of train.py --classes {expected}"
        )


def tell_run(asked, model, places=()):
    """Say on stderr in which folder the run that was asked for is, and which other of the `places` holds one, too."""
    others = [place for place in places if holds_generator(place) and not os.path.samefile(place, model.folder)]
    other = f"; another is in {others[0]}" if others else ""
    note = f"note: {asked}: the run in {model.folder}, trained on {' and '.join(model.trained_on)}{other}"
    print(printable(note), file=sys.stderr)


def name_apart(models, output_dir):
    """The models, with the folders above in the names of those whose pictures would replace one another's in `output_dir`.

    A name is taken by another of the models, letter case aside, or by a run whose pictures are there already.
    """
    parts = [os.path.abspath(model.folder).strip(os.sep).split(os.sep) for model in models]
    shared, named = Counter(of_run[-1].casefold() for of_run in parts), []
    for model, of_run in zip(models, parts):
        for depth in range(1 + (shared[of_run[-1].casefold()] > 1), 1 + len(of_run)):
            model = model._replace(name="_".join(of_run[-depth:]))
            taken = {other.name.casefold() for other in named}
            if model.name.casefold() not in taken and not shows_another_run(grid_path(model, output_dir), model):
                break
        else:
            raise UserError(f"--output_dir {output_dir} holds pictures of another run called {model.name}: choose another folder")
        if model.name != of_run[-1]:
            note = f"note: the name {of_run[-1]} is taken: files of the run in {model.folder} are called {model.name}_..."
            print(printable(note), file=sys.stderr)
        named.append(model)
    return named
