"""Analyse trained models: what they generate, what their style space holds, and how far either can be trusted.

    python predict.py --plot_umap True --AD_dir AD --NC_dir NC

The command: its flags, and in `main` what each flag calls. analysis/ computes and report/ draws: images of a model in latents.py
and samples.py, maps in style_maps.py and maps.py, projections in projector.py and projections.py, --evaluate in evaluation.py
and evaluation_report.py.
"""

import startup  # noqa: F401  # isort: skip

import argparse
import importlib.util
import os
import platform
import shlex
import sys
import time

from utils import ArgumentParser, Group, UserError, make_folder, number, parse_before_import, pick_device, run_cli

PICTURES = "grid", "mixing", "sweep", "interpolate", "noise", "pyramid", "directions", "morph", "values"  # of --draw
MAP_FLAGS = "AD_dir", "NC_dir", "control_dir"  # each takes a run


def choice(*names):
    """An argparse type: one of the names."""

    def parse(text):
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(names)}")
        return text

    return parse


MAP_SETTINGS = {  # of --umap: type and default
    "method": (choice("umap", "tsne", "pca"), "umap"),
    "n_neighbors": (number(int, 2), 15),
    "min_dist": (number(float, 0, 1), 0.1),
    "num_styles": (number(int, 20, 10**5), 1000),
}


# ---------------------------------------------------------------------------------------------------------------------
# Flags


def parse_args(argv=None):
    parser = ArgumentParser(
        "Analyse trained models: what they generate, what their style space holds, and how far either can be trusted.",
        "predict.py --dataset_dir AD_NC/train",
        "predict.py --plot_umap True --AD_dir AD --NC_dir NC --control_dir control/NC",
        "predict.py --classes all-conditional --draw morph,directions",
        "predict.py --classes all-conditional --project AD_NC/test/AD/218391_78.jpeg",
        "predict.py --classes AD --export 1000 --truncation 0.7 --output_dir out",
        "predict.py --classes all-conditional --dataset_dir AD_NC/test --report True",
    )
    add_model_flags(Group(parser, "models"))
    add_image_flags(Group(parser, "images of a model"))
    add_map_flags(Group(parser, "maps of style vectors"))
    add_evaluation_flags(Group(parser, "evaluation"))
    add_general_flags(Group(parser, "how"))
    args = parser.parse_args(argv)
    check_map_flags(args)
    args.umap = {name: default for name, (_, default) in MAP_SETTINGS.items()} | dict(args.umap or [])
    if isinstance(args.export, str):
        for name in ("draw", "dataset_dir", "plot_umap", "evaluate", "encode", "project", "playground", "onnx", "quiz", "report"):
            if getattr(args, name) not in (None, False, ["grid"]):
                raise UserError(f"--export {args.export} draws the slices of this table and nothing else: leave out --{name}")
    if args.onnx and (missing := [name for name in ("onnx", "onnxscript") if not importlib.util.find_spec(name)]):
        raise UserError(f"--onnx True needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    if args.evaluate and not args.dataset_dir:
        raise UserError("--evaluate True also needs --dataset_dir: slices that the model was not trained on, such as AD_NC/test")
    if args.quiz and not args.dataset_dir:
        raise UserError("--quiz True also needs --dataset_dir: real slices, best those that the model was not trained on")
    return args


def add_model_flags(group):
    group.add("--model_dir", default="model", help="folder of the runs, or one run itself")
    text = (
        "name of the run under --model_dir: AD, NC, all, all-conditional (default: all, or the only one; of maps: all-conditional)"
    )
    group.add("--classes", help=text)
    text = "the averaged generator of the last checkpoint, or of the evaluation with the lowest KID"
    group.add("--which", choices=("last", "best"), default="last", help=text)


def add_image_flags(group):
    group.add("--dataset_dir", help="folder that holds AD/ and NC/: also show real slices beside generated images")
    group.add("--num_images", type=number(int, 1, 10_000), default=16, help="images in a grid (of each class)")
    text = "psi: below 1, style vectors are moved towards their mean: less variety, fewer artefacts"
    group.add("--truncation", type=number(float, 0), default=1.0, help=text)
    text = (
        "pictures, or all: grid; mixing of the styles of two latents; sweep over truncations; interpolate between latents; "
        "noise: what it changes at the same style vector; pyramid: what each resolution adds; directions: the principal ones of "
        "the style space (GANSpace, SeFa); morph: the same latents as AD and as NC, in a conditional model, and with --encode or "
        "--project each real slice beside its twin of the other class; values: the same latents told another position, age or sex, "
        "in a model that is told these"
    )
    group.add("--draw", type=pictures, default="grid", metavar="NAME,...", help=text)
    text = (
        "also write N single PNGs (of each class) with metadata.csv, completing an export that was stopped; or draw the style "
        "vectors in a table that atlas.html or playground.html saved, and nothing else"
    )
    group.add("--export", type=export_target, metavar="N|CSV", help=text)
    text = "the style vectors of real slices, by an encoder that the first use makes (minutes), and which the model cannot draw"
    group.add("--encode", metavar="FILE|DIR", help=text)
    text = "also write playground.html: the generator itself, alive in one offline page, with sliders and for slices of your own"
    group.add_bool("--playground", False, text)
    text = "also write mapping network and generator as ONNX, for other runtimes; needs the packages onnx and onnxscript"
    group.add_bool("--onnx", False, text)
    text = "search for the style vectors, then the noise, that reproduce real slices"
    group.add("--project", metavar="FILE|DIR", help=text)


def add_map_flags(group):
    text = "plot the style vectors of the models of --AD_dir and --NC_dir, and those of a conditional model"
    group.add_bool("--plot_umap", False, text)
    group.add("--AD_dir", help="run of the AD model: its name under --model_dir, or a path")
    group.add("--NC_dir", help="run of the NC model, likewise")
    text = "run of a second NC model, trained with another --seed, to compare the gap between AD and NC with"
    group.add("--control_dir", help=text)
    group.add_bool("--atlas", False, "also write atlas.html: one page of the maps in which every point shows its slice")
    text = (
        "how maps are made: method (umap, tsne or pca), UMAP's n_neighbors and min_dist, num_styles: style vectors of each "
        f"class (default: {' '.join(f'{name}={default}' for name, (_, default) in MAP_SETTINGS.items())})"
    )
    group.add("--umap", type=map_setting, nargs="+", metavar="NAME=VALUE", help=text)


def add_evaluation_flags(group):
    text = (
        "does the model preserve the AD/NC difference? Classifiers trained on generated images and tested on held-out slices, "
        "tissue areas and image quality; needs --dataset_dir, such as AD_NC/test"
    )
    group.add_bool("--evaluate", False, text)
    text = (
        "a page that asks which slices are real, of --num_images real ones (at most 100) and as many generated ones of each class; "
    )
    group.add_bool("--quiz", False, f"{text}needs --dataset_dir")
    group.add_bool("--report", False, "everything that the other flags allow, in one page, report.html, and report.json")
    text = "LONI's CSV, or another table of the slices' people (docs/data.md): intervals over people"
    group.add("--subjects", metavar="CSV", help=text)


def add_general_flags(group):
    group.add("--output_dir", default="predictions", help="folder for everything that is written")
    group.add("--seed", type=number(int, 0, 2**32 - 1), default=0, help="of latents, noise, maps and searches")
    group.add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")


def pictures(text):
    """An argparse type: "grid,morph" -> ["grid", "morph"], in the order of PICTURES; "all" -> all of them."""
    names = [choice(*PICTURES, "all")(name) for name in text.split(",")]
    return [name for name in PICTURES if name in names or "all" in names]


def export_target(text):
    """An argparse type: a number of slices, or the path of a table of style vectors."""
    return text if text.endswith(".csv") else number(int, 1, 10**7)(text)


def map_setting(text):
    """An argparse type: "n_neighbors=15" -> ("n_neighbors", 15)."""
    name, _, value = text.partition("=")
    if name not in MAP_SETTINGS:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE with one of the names {', '.join(MAP_SETTINGS)}, not {text!r}")
    try:
        return name, MAP_SETTINGS[name][0](value)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{name}: {error}") from None


def check_map_flags(args):
    """UserError if a flag of the maps lacks another one."""
    given = [flag for flag in (*MAP_FLAGS, "atlas") if getattr(args, flag)]
    if not args.plot_umap:
        for flag in [*given, "umap"] if args.umap else given:
            raise UserError(f"--{flag} belongs to --plot_umap True")
    if given and not (args.AD_dir and args.NC_dir) and given != ["atlas"]:
        raise UserError(f"--{given[0]} goes with both --AD_dir and --NC_dir, such as --AD_dir AD --NC_dir NC")


if __name__ == "__main__":
    parse_before_import(parse_args)

import torch

from analysis import style_maps
from analysis.encoded_maps import encoded_map, read_real_slices, trained_people
from analysis.encoder import find_encoder
from analysis.evaluation import evaluate_models, evaluation_groups, generate_classes, train_and_test
from analysis.export import draw_style_table, export, read_style_table
from analysis.models import holds_generator
from analysis.onnx_files import write_onnx
from analysis.projector import project, read_targets
from analysis.runs import CONDITIONAL, choose_model, map_models, open_run
from data.fingerprints import fingerprints
from data.subjects import find_subjects, identify, resampling_groups
from report.atlas import write_style_atlas
from report.evaluation_report import draw_evaluation
from report.maps import draw_encoded as draw_encoded_map
from report.maps import draw_maps
from report.playground import draw_playground
from report.projections import draw_chosen, draw_encoded, draw_projection
from report.quiz import draw_quiz
from report.report import write_report
from report.samples import DRAW, Samples, name_apart, plot_grids, plot_values
from report.twins import draw_twins

# ---------------------------------------------------------------------------------------------------------------------
# What each flag calls


def main(argv=None):
    """Do what the flags ask for; print every path as soon as its file is written."""
    args = parse_args(argv)
    device, start = pick_device(args.device), time.monotonic()
    if isinstance(args.export, str):
        show(chosen_styles(args, device))
        return 0
    table = find_subjects(args.subjects, args.dataset_dir or args.encode or args.project)
    mapped = {}
    if args.plot_umap:
        asked = {flag: run for flag in MAP_FLAGS if (run := getattr(args, flag))}
        mapped = map_models(asked, args.classes, args.model_dir, args.which, device)
    models = models_to_look_into(args, mapped, device)
    specs = style_maps.map_specs(*(mapped.get(name) for name in (*MAP_FLAGS, "conditional")))
    real = None
    if args.plot_umap and args.dataset_dir:
        resolution = max(source.model.resolution for spec in specs for source in spec.sources.values())
        real = read_real_slices(args.dataset_dir, resolution, table)
    models, sections = name_apart(models), []
    evaluated = evaluation_groups(models) if args.evaluate or args.report and args.dataset_dir else []
    for group in evaluated:
        train_and_test(args.dataset_dir, [name for model in group for name in model.classes])  # an error before anything is drawn
    make_folder(args.output_dir, "--output_dir")
    for model in models:
        sections += [show(section) for section in draw_model(args, model, table)]
        if args.playground:
            page = page_path(args, models, model, "playground.html")
            sections.append(show(draw_playground(model, args.seed, page)))
        if args.quiz:
            page = page_path(args, models, model, "quiz.html")
            sections.append(show(draw_quiz(model, page, args.num_images, args.dataset_dir, table, args.seed, args.truncation)))
    sections += [show(section) for section in evaluate(args, evaluated, table)]
    if args.plot_umap:
        sections += [show(section) for section in plot_maps(args, specs, real)]
    if args.report:
        facts = report_facts(args, models, argv, start)
        print("\n".join(write_report(args.output_dir, "What the models learnt", facts, sections)))
    return 0


def page_path(args, models, model, name):
    """Where a page of one of `models` goes: its name tells which model only where there are several."""
    return os.path.join(args.output_dir, name if len(models) == 1 else f"{model.name}_{name}")


def show(section):
    """Print the text and the paths of a report.Section, and return it."""
    paths = [*(figure.path for figure in section.figures), *(path for path, _ in section.pages)]
    print("\n".join([*section.text, *paths]), flush=True)
    return section


def chosen_styles(args, device):
    """The report.Section of the slices in a table of style vectors."""
    table, folder = read_style_table(args.export), os.path.join(args.output_dir, "styles")
    runs = dict.fromkeys(row.run for row in table)
    models = {run: open_run(run, args.model_dir, args.which, device, f"--export {args.export}") for run in runs}
    return draw_chosen(draw_style_table(table, models, folder, args.export), folder, args.output_dir)


def models_to_look_into(args, mapped, device):
    """The Models of which images are drawn: those of --classes or --model_dir, else those of the map, as of `map_models`."""
    if args.plot_umap and not args.AD_dir:
        models = [mapped["conditional"]]
    elif args.plot_umap and not args.classes and not holds_generator(args.model_dir):
        models = [mapped["AD_dir"], mapped["NC_dir"]]
    else:
        models = [choose_model(args.classes, args.model_dir, args.which, device)]
    if "morph" in args.draw and args.draw != list(PICTURES) and not all(model.is_conditional for model in models):
        raise UserError(
            f"--draw morph needs a conditional model (train.py --classes all --conditional True), such as --classes {CONDITIONAL}"
        )
    if "values" in args.draw and args.draw != list(PICTURES) and not all(model.values for model in models):
        raise UserError("--draw values needs a model that is told some (train.py --classes all --conditional class,position)")
    return models


def draw_model(args, model, table):
    """Yield the report.Sections of what the flags ask for of one model; --report asks for all pictures."""
    samples = Samples(model, args.seed, args.truncation, args.output_dir)
    for picture in PICTURES if args.report else args.draw:
        if picture == "grid":
            yield plot_grids(samples, args.num_images, args.dataset_dir)
        elif picture == "values" and model.values:
            yield plot_values(samples, args.dataset_dir, table)
        elif picture != "values" and (picture != "morph" or model.is_conditional):
            yield DRAW[picture](samples)
    if args.export:
        print("\n".join(export(model, args.export, args.seed, args.truncation, args.output_dir)))
    if args.onnx:
        print("\n".join(write_onnx(model, args.output_dir)))
    for flag, path in (("--encode", args.encode), ("--project", args.project)):
        if not path:
            continue
        targets = read_targets(path, model.resolution, flag)
        scans = identify(targets.files, table)
        trained = trained_people(model, fingerprints(targets.paths, scans, table), resampling_groups(scans)[0])
        twins = model.is_conditional and (args.report or "morph" in args.draw) and (flag == "--encode" or not args.encode)
        encoder = find_encoder(model, args.seed, progress=True) if flag == "--encode" or twins else None
        if flag == "--encode":
            yield draw_encoded(model, encoder, targets, scans, args.output_dir, trained)
        if twins:
            yield draw_twins(model, encoder, targets, scans, args.output_dir, trained, args.seed)
        if flag == "--project":
            projection = project(model, targets.images, targets.labels, seed=args.seed, progress=True)
            yield draw_projection(model, projection, targets.names, args.output_dir)


def report_facts(args, models, argv, start):
    """{name: text or number} for the head of report.html; start: `time.monotonic` when the command began."""
    return {
        "models": ", ".join(model.folder for model in models),
        "weights": args.which,
        "command": shlex.join(["python", "predict.py", *(sys.argv[1:] if argv is None else argv)]),
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "seconds": round(time.monotonic() - start),
        "versions": f"Python {platform.python_version()}, PyTorch {torch.__version__}",
    }


# ---------------------------------------------------------------------------------------------------------------------
# Maps


def plot_maps(args, specs, real):
    """Yield the report.Sections of the maps of MapSpecs, then of RealSlices, encoded by the conditional model or by both models of
    the pair, with an atlas of all if it is asked for."""
    settings = style_maps.MapSettings(**args.umap, seed=args.seed)
    maps, encoded = style_maps.compute_maps(specs, settings), []
    section = draw_maps(maps, settings, args.output_dir)
    if real:
        compared = [spec for spec in specs if spec.title != style_maps.CONTROL]
        sources = {source.model.folder: source.model for spec in compared for source in spec.sources.values()}
        models = [model for model in sources.values() if model.is_conditional] or list(sources.values())
        encoded = [encoded_map(model, real, settings) for model in name_apart(models)]
    if args.atlas:
        page = os.path.join(args.output_dir, "atlas.html")
        write_style_atlas(page, maps, encoded, args.seed)
        section = section._replace(pages=[(page, "every point shows its slice.")])
    yield section
    for one in encoded:
        yield draw_encoded_map(one, settings, args.output_dir)


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation


def evaluate(args, groups, table):
    """Yield the report.Sections of --evaluate of each of `evaluation_groups`."""
    for group in groups:
        generated = generate_classes(group, args.dataset_dir, args.seed, args.truncation)
        result = evaluate_models(group, generated, args.dataset_dir, table)
        yield from draw_evaluation(result, "_and_".join(model.name for model in group), args.output_dir)


if __name__ == "__main__":
    run_cli(main)
