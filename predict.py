"""Analyse trained models: what they generate, what their style space holds, and how far either can be trusted.

    python predict.py --dataset_dir AD_NC/train --model_dir model
    python predict.py --plot_umap True --AD_dir AD --NC_dir NC
    python predict.py --classes all-conditional --dataset_dir AD_NC/test --report True

The command: its flags, which runs they mean, and in `main` what each flag calls. The work is done in analysis/: images of a model
in latents.py and directions.py, maps in style_maps.py, projection in projector.py, --evaluate in evaluation.py.
"""

import startup  # noqa: F401  # isort: skip

import argparse
import os
import platform
import shlex
import sys
import time

from utils import CLASSES, ArgumentParser, Group, UserError, make_folder, number, parse_before_import, pick_device, run_cli

MAP_FLAGS = "AD_dir", "NC_dir", "control_dir", "conditional_dir"  # each takes a run
METHODS = "umap", "tsne", "pca"
COLOURS = "class", "age", "sex", "area"
SPACES = "w", "w+"


def parse_args(argv=None):
    parser = ArgumentParser(
        "Analyse trained models: what they generate, what their style space holds, and how far either can be trusted.",
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
        choices=("last", "best"),
        default="last",
        help="the averaged generator of the last checkpoint, or of the evaluation with the lowest KID",
    )

    images = Group(parser, "images of a model")
    images.add("--dataset_dir", help="folder that holds AD/ and NC/: also show real slices beside generated images")
    images.add("--num_images", type=number(int, 1, 10_000), default=16, help="images in a grid (of each class)")
    images.add(
        "--truncation",
        type=number(float, 0),
        default=1.0,
        help="psi: below 1, style vectors are moved towards their mean: less variety, fewer artefacts",
    )
    images.add_bool("--mixing", False, "style mixing: coarse layers of one latent, fine layers of another")
    images.add(
        "--mix_layers",
        metavar="FIRST-LAST",
        type=layers,
        help="layers that the other latent gives, counted from 0 (default: those of 16x16 and finer)",
    )
    images.add_bool("--sweep", False, "the same latents at several truncations")
    images.add_bool("--interpolate", False, "interpolation between latents, as a figure and a GIF")
    images.add_bool("--noise_map", False, "what random noise changes at the same style vector")
    images.add_bool("--pyramid", False, "what each resolution adds to the image, from 4x4 on")
    images.add(
        "--directions",
        type=number(int, 1, 64),
        metavar="K",
        help="images along the first K principal directions of the style space (GANSpace, SeFa)",
    )
    images.add_bool("--morph", False, "with a conditional model: the same latents as AD and as NC, and the mean difference")
    images.add(
        "--export",
        type=number(int, 1, 10**7),
        metavar="N",
        help="also write N single PNGs (of each class) with metadata.csv; completes an export that was stopped",
    )

    umap = Group(parser, "maps of style vectors")
    umap.add_bool("--plot_umap", False, "plot the style vectors of two models; needs --AD_dir and --NC_dir, or --conditional_dir")
    umap.add("--AD_dir", help="run of the AD model: its name under --model_dir, or a path")
    umap.add("--NC_dir", help="run of the NC model, likewise")
    umap.add(
        "--control_dir", help="run of a second NC model, trained with another --seed, to compare the gap between AD and NC with"
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
    umap.add_bool("--atlas", False, "also write atlas.html: one page of the maps in which every point shows its slice")
    umap.add(
        "--atlas_slices",
        type=number(int, 2, 10**4),
        default=400,
        metavar="N",
        help="slices of each class in atlas.html, of --num_styles",
    )
    umap.add(
        "--colour",
        choices=COLOURS,
        default=COLOURS[0],
        help="what colours the points: their class; age or sex of the real slices' people (with --subjects and --dataset_dir, in a "
        "conditional model); the area of the ventricles in each slice",
    )
    umap.add("--method", choices=METHODS, default=METHODS[0], help="method of the map")
    umap.add(
        "--umap_neighbors",
        type=number(int, 2),
        default=15,
        help="UMAP's n_neighbors: larger for global structure, smaller for local",
    )
    umap.add("--umap_min_dist", type=number(float, 0, 1), default=0.1, help="UMAP's min_dist: smaller packs points more closely")

    project = Group(parser, "projection of real slices")
    project.add(
        "--project",
        metavar="FILE|DIR",
        help="find the style vectors that reproduce these slices; with a conditional model also move them from AD to NC",
    )
    project.add(
        "--project_steps",
        type=number(int, 1, 10**6),
        default=100,
        help="steps of the search for style vectors, and as many for noise",
    )
    project.add("--space", choices=SPACES, default=SPACES[0], help="one style vector for all layers, or one for each")

    styles = Group(parser, "chosen style vectors")
    styles.add(
        "--styles", metavar="CSV", help="draw the slices in this table, which atlas.html downloads, at full size, and nothing else"
    )

    evaluation = Group(parser, "evaluation")
    evaluation.add_bool(
        "--evaluate",
        False,
        "does the model carry the disease? The critic on unseen slices, classifiers trained on generated images, tissue areas "
        "and image quality; needs --dataset_dir, such as AD_NC/test",
    )
    evaluation.add_bool("--report", False, "everything that the other flags allow, in one page, report.html, and report.json")

    machine = Group(parser, "how")
    machine.add(
        "--subjects", metavar="CSV", help="LONI's CSV, or another table of the slices' people (docs/data.md): intervals over people"
    )
    machine.add("--output_dir", default="predictions", help="folder for everything that is written")
    machine.add("--seed", type=number(int, 0, 2**32 - 1), default=0, help="of latents, noise, maps and searches")
    machine.add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")

    args = parser.parse_args(argv)
    missing = [flag for flag in ("AD_dir", "NC_dir") if args.plot_umap and not getattr(args, flag)]
    if missing and not (len(missing) == 2 and args.conditional_dir):
        raise UserError(
            f"--plot_umap True also needs {' and '.join(f'--{flag}' for flag in missing)}: the run of that "
            "class's model, such as --AD_dir AD --NC_dir NC"
        )
    if args.atlas and not args.plot_umap:
        raise UserError("--atlas True belongs to --plot_umap True")
    if given := [flag for flag in MAP_FLAGS if getattr(args, flag) and not args.plot_umap]:
        raise UserError(f"--{given[0]} belongs to --plot_umap True")
    other = [
        name for name in ("plot_umap", "evaluate", "project", "export", "morph", "report") if args.styles and getattr(args, name)
    ]
    if other:
        raise UserError(f"--styles draws the slices of its table and nothing else: leave out --{other[0]}")
    if args.colour != "class" and not args.plot_umap:
        raise UserError(f"--colour {args.colour} belongs to --plot_umap True")
    needed = [flag for flag in ("subjects", "dataset_dir") if args.colour in ("age", "sex") and not getattr(args, flag)]
    if needed:
        raise UserError(
            f"--colour {args.colour} also needs {' and '.join(f'--{flag}' for flag in needed)}: real slices, with a table of their "
            "people, are projected into a conditional model"
        )
    if args.control_dir and missing:
        raise UserError("--control_dir is compared with --AD_dir and --NC_dir: give both")
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


if __name__ == "__main__":
    parse_before_import(parse_args)  # before PyTorch is imported

import numpy as np
import torch
from tqdm import tqdm

from analysis import areas, evaluation, style_maps
from analysis.age_probe import age_section
from analysis.directions import plot_directions
from analysis.export import export
from analysis.latents import Samples, plot_grids, plot_interpolation, plot_mixing, plot_morph, plot_noise, plot_pyramid, plot_sweep
from analysis.models import BATCH, describe_runs, find_run, generate, holds_generator, list_runs, load_model, run_places
from analysis.projector import project_files
from analysis.runs import CONDITIONAL, check_classes, is_conditional, map_runs, name_apart, tell_run
from analysis.style_maps import plot_umaps, projected_slices
from analysis.style_table import draw_style_table, read_style_table
from data.folders import class_folders, find_slices, find_splits
from data.subjects import find_subjects
from report.atlas import write_style_atlas
from report.report import write_report

DIRECTIONS = 5  # of each method, in the report


def main(argv=None):
    """Do what the flags ask for; print every path as soon as its file is written."""
    args = parse_args(argv)
    device, start = pick_device(args.device), time.monotonic()
    table = find_subjects(args.subjects, args.dataset_dir)
    if args.styles:
        styles = read_style_table(args.styles)
        make_folder(args.output_dir, "--output_dir")
        section = draw_style_table(styles, args.styles, args.model_dir, args.which, args.output_dir, device)
        print("\n".join([*section.text, *(figure.path for figure in section.figures)]))
        return 0
    if args.plot_umap:
        asked = {flag: run for flag in MAP_FLAGS if (run := getattr(args, flag))}
        maps = map_runs(asked, args.model_dir, args.which, device)
        check_colour(args, maps, device, table)
    models = [load_model(folder, device, args.which) for folder in choose_runs(args)]
    if args.classes:
        tell_run(f"--classes {args.classes}", models[0], run_places(args.classes, args.model_dir))
        if args.classes in CLASSES:
            check_classes(f"--classes {args.classes}", models[0], args.classes)
    elif not args.plot_umap or holds_generator(args.model_dir):
        tell_run(f"--model_dir {args.model_dir}", models[0])
    if args.morph and not all(is_conditional(model) for model in models):
        raise UserError(
            f"--morph True needs a conditional model (train.py --classes all --conditional True), such as --classes {CONDITIONAL}"
        )
    make_folder(args.output_dir, "--output_dir")
    models = name_apart(models, args.output_dir)
    sections = []  # of the report

    def show(section):
        sections.append(section)
        print("\n".join([*section.text, *(figure.path for figure in section.figures), *section.pages]), flush=True)

    for model in models:
        show(plot_grids(model, args.num_images, args.seed, args.truncation, args.output_dir, args.dataset_dir))
        for section in plot_latents(model, args):
            show(section)
        if args.export:
            folders = export(model, args.export, args.seed, args.truncation, device, args.output_dir)
            print("\n".join(folders))
        if args.project:
            show(project_files(model, args.project, args.output_dir, args.project_steps, args.space, args.seed))
    if args.evaluate or args.report and args.dataset_dir:
        for section in evaluate(models, args, device, table):
            show(section)
        if not args.plot_umap and any(scan.age is not None for scan in (table or {}).values()):  # else a map probes them
            for section in probe_age(models, args, device, table):
                show(section)
    if args.plot_umap:
        collected = [] if args.atlas else None
        section = plot_umaps(
            maps,
            args.output_dir,
            method=args.method,
            which=args.which,
            count=args.num_styles,
            neighbours=args.umap_neighbors,
            min_dist=args.umap_min_dist,
            seed=args.seed,
            device=device,
            dataset_dir=args.dataset_dir,
            real_count=args.umap_slices,
            table=table,
            collected=collected,
            colour=args.colour,
        )
        if args.atlas:
            page = os.path.join(args.output_dir, "atlas.html")
            count, real = min(args.atlas_slices, args.num_styles), (args.dataset_dir, args.umap_slices)
            write_style_atlas(page, collected, args.which, count, args.seed, device, *real, table)
            section = section._replace(pages=[page])
        show(section)
    if args.report:
        facts = {
            "models": ", ".join(model.folder for model in models),
            "weights": args.which,
            "command": shlex.join(["python", "predict.py", *(sys.argv[1:] if argv is None else argv)]),
            "date": time.strftime("%Y-%m-%d %H:%M"),
            "seconds": round(time.monotonic() - start),
            "versions": f"Python {platform.python_version()}, PyTorch {torch.__version__}",
        }
        print("\n".join(write_report(args.output_dir, "What the models learnt", facts, sections)))
    return 0


def plot_latents(model, args):
    """Yield a report.Section for each flag that asks for images of the model's latents; --report asks for all of them."""
    samples = Samples(model, args.seed, args.truncation, args.output_dir)
    if args.mixing or args.report:
        yield plot_mixing(samples, args.mix_layers)
    if args.sweep or args.report:
        yield plot_sweep(samples)
    if args.interpolate or args.report:
        yield plot_interpolation(samples)
    if args.noise_map or args.report:
        yield plot_noise(samples)
    if args.pyramid or args.report:
        yield plot_pyramid(samples)
    if args.directions or args.report:
        yield plot_directions(samples, args.directions or DIRECTIONS)
    if args.morph or args.report and is_conditional(model):
        yield plot_morph(samples)


# ---------------------------------------------------------------------------------------------------------------------
# Which runs


def choose_runs(args):
    """Folders of the runs to analyse: --model_dir itself, --classes, those of the map, "all", or the only one there is."""
    if holds_generator(args.model_dir) and not args.classes:
        return [os.path.normpath(args.model_dir)]
    if args.classes:
        return [find_run(args.classes, args.model_dir, "--classes:")]
    if args.plot_umap:
        return [find_run(run, args.model_dir) for run in (args.AD_dir, args.NC_dir, args.conditional_dir) if run]
    runs = list_runs(args.model_dir)
    if "all" not in runs and len(runs) != 1:
        raise UserError(f"{describe_runs(args.model_dir)}: say which with --classes" if runs else describe_runs(args.model_dir))
    return [find_run(os.path.join(args.model_dir, "all" if "all" in runs else runs[0]), args.model_dir)]


def check_colour(args, runs, device, table):
    """UserError if the `runs` of the maps, or the table of `read_subjects`, have nothing for --colour: before any work is done."""
    if args.colour in ("age", "sex"):
        if style_maps.CONDITIONAL not in runs:
            raise UserError(
                f"--colour {args.colour} also needs --conditional_dir: real slices are projected into a conditional model"
            )
        if all(getattr(scan, args.colour) is None for scan in table.values()):
            raise UserError(f"--subjects {args.subjects}: tells no {args.colour}; --colour {args.colour} needs such a column")
    if args.colour == "area":
        for folder in {folder for of_map in runs.values() for folder in ([of_map] if isinstance(of_map, str) else of_map.values())}:
            side = load_model(folder, device, args.which).generator.resolution
            if side < areas.SIDE:
                raise UserError(
                    f"--colour area: {folder} draws {side}x{side} pixels; areas need {areas.SIDE}x{areas.SIDE} at least"
                )
        for of_map in runs.values():  # refuses slices whose view cannot be told
            style_maps.ventricle_areas(of_map, style_maps.style_sets(of_map, args.which, 16, args.seed, device), args.which, device)


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation


def evaluate(models, args, device, table=None):
    """Yield the report.Sections of --evaluate: of an AD and an NC model together, if there is one of each, and of each other model.

    As many images are generated of each class as there are training slices; table: of `read_subjects`.
    """
    single = [model for model in models if not is_conditional(model)]
    pair = single if sorted(model.trained_on for model in single) == [[name] for name in CLASSES] else []
    groups = [[model] for model in models if model not in pair]
    for group in [pair, *groups] if pair else groups:
        title = "_and_".join(model.name for model in group)
        runs, generated = {}, {}
        train = find_splits(args.dataset_dir, evaluated_classes(group[0])[0]).get("train", args.dataset_dir)
        for model in group:
            runs[model.folder] = evaluated_classes(model)
            for label, classes in zip(model.labels, runs[model.folder]):
                count = sum(len(find_slices(folder)) for folder in class_folders(train, classes).values())
                batches = generate(model, count, args.seed, args.truncation, label, device)
                bar = tqdm(batches, f"{count} {classes} slices", -(-count // BATCH), unit=" batches", disable=None)
                generated[classes] = np.concatenate(list(bar))
        mirror = any(model.mirrored for model in group)
        results = evaluation.evaluate_models(runs, generated, args.dataset_dir, args.output_dir, title, device, table, mirror)
        yield from evaluation.sections(*results, title)


def probe_age(models, args, device, table):
    """Yield a report.Section for each conditional model: does a linear probe of unseen slices for AD survive when age is held?"""
    unseen = find_splits(args.dataset_dir)["test"]
    for model in filter(is_conditional, models):
        real, names = projected_slices(model.folder, args.which, unseen, args.umap_slices, args.seed, device)
        if section := age_section(real, names, table, f"{model.name}: age and sex in the style space", args.seed):
            yield section


def evaluated_classes(model):
    """The classes of which a model generates images: one for each of its labels, "all" for both without labels."""
    if is_conditional(model):
        return CLASSES
    return tuple(model.trained_on) if len(model.trained_on) == 1 else ("all",)


if __name__ == "__main__":
    run_cli(main)
