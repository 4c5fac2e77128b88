"""Look into trained models: what they generate, what their style space holds, and how far either can be trusted.

    python predict.py --dataset_dir AD_NC/train --model_dir model
    python predict.py --plot_umap True --AD_dir AD --NC_dir NC
    python predict.py --classes all-conditional --dataset_dir AD_NC/test --report True

This is the command line; every part of it gives a `report.Section`, whose pictures it has written to --output_dir. What a
map of style vectors can carry stands in styles.py, how slices are changed in explore.py, how real ones are found again in
projector.py, and what the slices are worth in evaluate.py.
"""

import argparse
import csv
import math
import os
import platform
import sys
import time

from utils import CLASSES, ArgumentParser, Group, UserError, answer_early, number

METHODS = "umap", "tsne", "pca"
SPACES = "w", "w+"


def parse_args(argv=None):
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
        choices=("last", "best"),
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


if __name__ == "__main__":
    answer_early(parse_args)  # before PyTorch is imported

import numpy as np
import torch
from tqdm import tqdm

from analysis import evaluation as evaluate
from analysis import figures, projector
from analysis import latents as explore
from analysis import style_space as styles
from analysis.export import export
from analysis.models import BATCH, describe_runs, draw_z, find_run, generate, list_runs, load_model, style_vectors
from analysis.report import ReportFigure, ReportTable, Section, write_report
from dataset import Slices, class_folders, find_slices, find_splits
from utils import atomic_path, make_folder, pick_device, read_config, run_cli

CONDITIONAL = "all-conditional"
SHOWN = 6  # projected slices in the report
DIRECTIONS = 5  # of each kind, in the report
REAL_SLICES = "real slices in one conditional model"
MEASURES = {"alike": "neighbours alike", "auc": "AUC of a linear probe"}


def choose_runs(args):
    """Folders of the runs to draw: --model_dir itself, --classes, the two of the UMAP, `all`, or the only one there."""
    if os.path.isfile(os.path.join(args.model_dir, "generator.pt")) and not args.classes:
        return [os.path.normpath(args.model_dir)]
    if args.classes:
        return [find_run(args.classes, args.model_dir)]
    if args.plot_umap:
        return [find_run(run, args.model_dir) for run in (args.AD_dir, args.NC_dir, args.conditional_dir) if run]
    runs = list_runs(args.model_dir)
    if "all" not in runs and len(runs) != 1:
        raise UserError(f"{describe_runs(args.model_dir)}: say which with --classes" if runs else describe_runs(args.model_dir))
    return [find_run("all" if "all" in runs else runs[0], args.model_dir)]


# ---------------------------------------------------------------------------------------------------------------------
# Slices of a model


def draw_grids(model, args, device):
    """Generated slices and, given --dataset_dir, real beside them; each class of a conditional model under its caption."""
    grids, reals = {}, {}
    for label in model.labels:
        classes = model.trained_on if label is None else [CLASSES[label]]
        name = " and ".join(classes)
        grids[f"generated, {name}"] = np.concatenate(
            list(generate(model, args.num_images, args.seed, args.truncation, label, device))
        )
        if args.dataset_dir:
            slices = Slices(args.dataset_dir, "all" if len(classes) > 1 else classes[0], model.generator.resolution)
            reals[f"real, {name}"] = figures.spread(slices, args.num_images)
    columns = max(4, math.ceil(math.sqrt(args.num_images)))
    pictures = {"generated": grids, "fake_vs_real": grids | reals} if args.dataset_dir else {"generated": grids}
    paths = [os.path.join(args.output_dir, f"{model.name}_{name}.png") for name in pictures]
    for path, shown in zip(paths, pictures.values()):
        figures.save_grids(shown, path, columns)
    return Section(
        f"{model.name}: generated slices",
        figures=[
            ReportFigure(path, f"{args.num_images} latents of seed {args.seed}, psi {args.truncation:g}, not chosen.")
            for path in paths
        ],
    )


def explore_model(model, args):
    """Sections of the tools that the flags ask for; --report asks for all that the model can show."""
    scene = explore.Scene(model, args.seed, args.truncation, args.output_dir)
    tools = {
        "mixing": lambda: explore.draw_mixing(scene, args.mix_layers),
        "sweep": lambda: explore.draw_sweep(scene),
        "interpolate": lambda: explore.draw_interpolation(scene),
        "noise_map": lambda: explore.draw_noise(scene),
        "pyramid": lambda: explore.draw_pyramid(scene),
        "directions": lambda: explore.draw_directions(scene, args.directions or DIRECTIONS),
        "morph": lambda: explore.draw_morph(scene),
    }
    for name, draw in tools.items():
        if getattr(args, name) or args.report and (name != "morph" or len(model.labels) == 2):
            yield draw()


# ---------------------------------------------------------------------------------------------------------------------
# Maps of style vectors


def style_sets(runs, which, count, seed, device):
    """{legend: w [count, w_dim]} of the trained models {legend: folder}, or of each class of one conditional run (a folder)."""
    if isinstance(runs, str):
        mapping = load_model(runs, device, which).mapping
        networks = {name: (mapping, label) for label, name in enumerate(CLASSES)}
    else:
        networks = {name: (load_model(folder, device, which).mapping, None) for name, folder in runs.items()}
    widths = {name: mapping.w_dim for name, (mapping, _) in networks.items()}
    if len(set(widths.values())) > 1:
        raise UserError("style vectors of different length cannot be compared: " + str(widths))
    with torch.no_grad():
        return {
            name: style_vectors(mapping, draw_z(count, mapping.z_dim, seed).to(device), label)[0].cpu().numpy()
            for name, (mapping, label) in networks.items()
        }


def projected_slices(folder, args, device):
    """{"real AD": w [n, w_dim], "real NC": ...} of --dataset_dir, each found without being told its class."""
    model, found = load_model(folder, device, args.which), {}
    slices = {name: Slices(args.dataset_dir, name, model.generator.resolution) for name in CLASSES}
    shown = {name: figures.spread(some, min(args.umap_slices, len(some))) for name, some in slices.items()}
    pixels = np.concatenate(list(shown.values()))
    ws = projector.project(model, pixels, np.full(len(pixels), -1), seed=args.seed, progress=True).ws[:, 0].numpy()
    for name, pixels in shown.items():
        found[f"real {name}"], ws = ws[: len(pixels)], ws[len(pixels) :]
    return found


def plot_umaps(args, device):
    """Maps of the models' style vectors (umap.png, .csv) and of what the runs kept over the epochs (umap_epochs.png, .gif)."""
    lines, text, numbers = {}, [], {}  # lines: {title: {legend: folder}, or a conditional run's folder}
    if args.AD_dir:
        ad, nc = (find_run(run, args.model_dir) for run in (args.AD_dir, args.NC_dir))
        lines["AD and NC"] = {"AD": ad, "NC": nc}
        if args.control_dir:
            control = find_run(args.control_dir, args.model_dir)
            lines["control: NC twice"] = {"NC": nc, "NC, other seed": control}
    shared = args.conditional_dir or CONDITIONAL
    if args.conditional_dir or shared in list_runs(args.model_dir):
        lines["one conditional model"] = find_run(shared, args.model_dir)

    options = {"method": args.method, "seed": args.seed, "neighbours": args.umap_neighbors, "min_dist": args.umap_min_dist}
    panels, kept = [], {title: had for title, runs in lines.items() if (had := styles.history(runs))}
    with tqdm(total=len(lines) + sum(map(len, kept.values())), desc=args.method, unit=" maps") as bar:
        for title, runs in lines.items():
            sets = style_sets(runs, args.which, args.num_styles, args.seed, device)
            gap = numbers[title] = styles.style_separation(*sets.values(), seed=args.seed)
            if isinstance(runs, str) and args.dataset_dir:
                real = projected_slices(runs, args, device)
                title, gap = REAL_SLICES, styles.style_separation(*real.values(), paired=False, seed=args.seed)
                numbers[title], sets = gap, sets | real
            points = styles.embed(np.concatenate(list(sets.values())), **options)
            panels.append(
                figures.Panel(
                    title, styles.split_like(points, sets), {MEASURES[name]: value for name, value in gap._asdict().items()}
                )
            )
            bar.update()
        over = {title: styles.maps_over_epochs(had, bar.update, **options) for title, had in kept.items()}

    if args.AD_dir:
        seeds = [read_config(folder).get("flags", {}).get("seed") for folder in (ad, nc, *([control] if args.control_dir else []))]
        like = len(seeds) < 3 or (seeds[0] == seeds[1]) == (seeds[1] == seeds[2])
        text.append(styles.verdict(numbers["AD and NC"], numbers.get("control: NC twice"), like))
    if "one conditional model" in lines:
        text.append(styles.conditional_verdict(numbers.get(REAL_SLICES)))
    paths = [os.path.join(args.output_dir, f"{args.method}{name}") for name in (".png", ".csv", "_epochs.png", "_epochs.gif")]
    figures.plot_styles(panels, paths[0], "\n".join(text))
    save_points(panels, paths[1])
    shown = [
        ReportFigure(
            paths[0],
            f"{args.num_styles} style vectors a class, of the same latents, by {args.method}. The numbers are "
            "measured in w, with 95% bootstrap intervals.",
        )
    ]
    if over:
        chosen = {
            title: [one for one in maps if one[0] in styles.epochs_to_show([epoch for epoch, *_ in maps])]
            for title, maps in over.items()
        }
        figures.plot_epochs(chosen, paths[2], "The same 512 latents over the epochs. " + styles.EPOCHS_NOTE)
        figures.save_gif(figures.epoch_frames(over), paths[3], 500)
        shown += [ReportFigure(paths[2], "Over the epochs."), ReportFigure(paths[3], "The same, in motion.")]
    table = ReportTable(
        ["sets", "neighbours alike", "linear probe, AUC"],
        [[title, *gap] for title, gap in numbers.items()],
        "Both are 0.5 by chance and 1 when the sets lie apart; in brackets 95% bootstrap intervals.",
    )
    return Section("Style space", text, [table], shown, {title: gap._asdict() for title, gap in numbers.items()})


def save_points(panels, path):
    """Write the maps as a table: panel, set, number, x, y."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["panel", "set", "number", "x", "y"])
        for panel in panels:
            for name, points in panel.sets.items():
                table.writerows([panel.title, name, i, *map(float, point)] for i, point in enumerate(points))


# ---------------------------------------------------------------------------------------------------------------------
# Real slices, and judgement


def project_slices(model, args):
    """Projections of --project into <run>_projected/: per slice a picture, a GIF, what was found, and AD to NC."""
    folder = os.path.join(args.output_dir, f"{model.name}_projected")
    targets = projector.read_targets(args.project, model.generator.resolution)
    found = projector.project(model, targets.images, targets.labels, args.project_steps, args.space, args.seed, progress=True)
    moved = projector.move_class(model, found, args.seed) if len(model.labels) == 2 else None
    paths = projector.save_projection(found, targets.names, folder, moved)
    rows = [[name, *map(float, (*errors, spread))] for name, errors, spread in zip(targets.names, found.rms, found.spread)]
    means = [float(np.mean(column)) for column in (found.rms[:, 0], found.rms[:, 1], found.spread)]
    table = ReportTable(
        ["slice", "RMS of w alone", "RMS of w and noise", "distance of w from its mean"],
        [*rows, ["mean", *means]],
        "RMS in grey levels; drawn w lie 1 from their mean on average. What noise reproduces shows nothing of the model.",
    )
    print(f"{len(rows)} slices projected into {folder}: RMS {means[0]:.1f} grey levels by w, {means[1]:.1f} with noise")
    pictures = [path for path in paths if path.endswith(".png")][: 2 * SHOWN]
    return Section(
        f"{model.name}: real slices projected",
        tables=[table],
        figures=[ReportFigure(path, "") for path in pictures],
        numbers={"rms": means[0], "rms_with_noise": means[1], "distance": means[2]},
    )


def judge(models, args, device):
    """Sections of evaluate.py: of each conditional model, of a pair of an AD and an NC model, or of each model alone."""
    classes = {
        model.folder: (
            tuple(CLASSES) if len(model.labels) == 2 else tuple(model.trained_on) if len(model.trained_on) == 1 else ("all",)
        )
        for model in models
    }
    single = [model for model in models if len(model.labels) == 1]
    pair = sorted(classes[model.folder] for model in single) == [(name,) for name in CLASSES]
    for members in ([single] if pair else []) + [[model] for model in models if not (pair and model in single)]:
        title = "_and_".join(model.name for model in members)
        train = find_splits(args.dataset_dir, classes[members[0].folder][0]).get("train", args.dataset_dir)
        slices = {}
        for model in members:
            for label, name in zip(model.labels, classes[model.folder]):
                count = sum(len(find_slices(folder)) for folder in class_folders(train, name).values())
                made = list(
                    tqdm(
                        generate(model, count, args.seed, args.truncation, label, device),
                        f"{count} {name} slices",
                        -(-count // BATCH),
                        unit=" batches",
                        disable=None,
                    )
                )
                slices[name] = np.concatenate(made)
        found = evaluate.evaluate_models(
            {model.folder: classes[model.folder] for model in members}, slices, args.dataset_dir, args.output_dir, title, device
        )
        yield from evaluate.sections(*found, title)


# ---------------------------------------------------------------------------------------------------------------------
# The command line


def check_styles(args, device):
    """UserError unless every run of the map is of its kind: a wrong name is better found before the work than after it."""
    for flag, conditional in (("AD_dir", False), ("NC_dir", False), ("control_dir", False), ("conditional_dir", True)):
        run = getattr(args, flag)
        if run and bool(load_model(find_run(run, args.model_dir), device, args.which).mapping.num_classes) != conditional:
            raise UserError(
                f"--{flag} {run} is {'no' if conditional else 'a'} conditional model: "
                + (
                    "it takes one that is told the class (train.py --conditional True)"
                    if conditional
                    else "it takes a model of one class (a conditional one goes to --conditional_dir)"
                )
            )


def main(argv=None):
    args = parse_args(argv)
    device, began = pick_device(args.device), time.monotonic()
    if args.plot_umap:
        check_styles(args, device)
    models = [load_model(folder, device, args.which) for folder in choose_runs(args)]
    if args.morph and [None] in (model.labels for model in models):
        raise UserError(
            f"--morph True needs a conditional model (train.py --classes all --conditional True), such as --classes {CONDITIONAL}"
        )
    make_folder(args.output_dir, "--output_dir")
    sections = []

    def tell(section):
        """Print what was written as soon as it is there."""
        sections.append(section)
        print("\n".join([*section.text, *(figure.path for figure in section.figures)]), flush=True)

    for model in models:
        tell(draw_grids(model, args, device))
        for section in explore_model(model, args):
            tell(section)
        if args.export:
            print("\n".join(export(model, args.export, args.seed, args.truncation, device, args.output_dir)))
        if args.project:
            tell(project_slices(model, args))
    if args.evaluate or args.report and args.dataset_dir:
        for section in judge(models, args, device):
            tell(section)
    if args.plot_umap:
        tell(plot_umaps(args, device))
    if args.report:
        facts = {
            "models": ", ".join(model.folder for model in models),
            "weights": args.which,
            "command": "python predict.py " + " ".join(argv or sys.argv[1:]),
            "date": time.strftime("%Y-%m-%d %H:%M"),
            "seconds": round(time.monotonic() - began),
            "versions": f"Python {platform.python_version()}, PyTorch {torch.__version__}",
        }
        print("\n".join(write_report(args.output_dir, "What the models learnt", facts, sections)))
    return 0


if __name__ == "__main__":
    run_cli(main)
