"""Maps of style vectors (UMAP, t-SNE or PCA): of AD and NC models, of a conditional model, and over the epochs of training.

    runs = compared_runs(ad="model/AD", nc="model/NC", control="control/NC")
    section = plot_umaps(runs, "predictions", method="umap")

What a gap between AD and NC in these maps can show, and how it is measured, is in style_space.py.
"""

import csv
import os
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from analysis import projector
from analysis.age_probe import age_section
from analysis.areas import known_view, measure_areas
from analysis.bootstrap import fewest_groups
from analysis.models import draw_z, load_model, style_vectors, synthesize
from analysis.position import position_probe
from analysis.style_space import (
    EPOCHS_NOTE,
    conditional_verdict,
    embed,
    epochs_to_show,
    history,
    maps_over_epochs,
    probe_scores,
    split_like,
    style_separation,
    verdict,
)
from data.subjects import identify, resampled_text, resampling_groups
from dataset import Slices
from report import figures
from report.report import ReportFigure, ReportTable, Section
from utils import CLASSES, UserError, atomic_path, read_config

PAIR, CONTROL, CONDITIONAL = "AD and NC", "control: NC twice", "one conditional model"  # titles of maps
REAL = "real slices in one conditional model"
COLOURS = {  # --colour, and what the colours are
    "class": None,
    "age": "age at the scan, years",
    "sex": "sex, F or M",
    "area": "ventricle area of the slice, mm² (nominal unless phantoms)",
}
MEASURES = {"alike": "neighbours alike", "auc": "AUC of a linear probe"}
POSITION = {"slice index alone": "AUC of slice index alone", "position-stratified": "position-stratified AUC of the probe"}


class StyleMap(NamedTuple):
    """A map with what is known of it, for the atlas."""

    title: str
    runs: dict | str  # {legend: run folder}, or the folder of one conditional run
    sets: dict  # {legend: w [n, w_dim]}
    points: dict  # {legend: [n, 2]}
    measures: dict  # {name: Interval}
    sentence: str  # what the map can carry
    epochs: list  # of `maps_over_epochs`; empty if the runs have saved no style vectors
    last: dict  # {legend: w [512, w_dim]} of the last of these epochs


def compared_runs(ad=None, nc=None, control=None, conditional=None):
    """The runs of each map, {title: {legend: run folder} or the folder of one conditional run}, from the folders that are given."""
    runs = {}
    if ad and nc:
        runs[PAIR] = {"AD": ad, "NC": nc}
        if control:
            runs[CONTROL] = {"NC": nc, "NC, other seed": control}
    if conditional:
        runs[CONDITIONAL] = conditional
    return runs


def style_sets(runs, which, count, seed, device):
    """Style vectors {legend: w [count, w_dim]} of the same latents: of each model in {legend: run folder}, or, given the folder of
    one conditional run, of each of its classes. UserError if their lengths differ."""
    if isinstance(runs, str):
        mapping = load_model(runs, device, which).mapping
        networks = {name: (mapping, label) for label, name in enumerate(CLASSES)}
    else:
        networks = {name: (load_model(folder, device, which).mapping, None) for name, folder in runs.items()}
    lengths = {name: mapping.w_dim for name, (mapping, _) in networks.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"style vectors of different length cannot be compared: {lengths}")
    with torch.no_grad():
        return {
            name: style_vectors(mapping, draw_z(count, mapping.z_dim, seed).to(device), label)[0].cpu().numpy()
            for name, (mapping, label) in networks.items()
        }


def projected_slices(folder, which, dataset_dir, count, seed, device):
    """({"real AD": w [n, w_dim], "real NC": ...}, their file names): `count` slices of each class in `dataset_dir`, or all if there
    are fewer, projected into a conditional model without being given their class."""
    model = load_model(folder, device, which)
    pixels, names = chosen_slices(dataset_dir, count, model.generator.resolution)
    targets = np.concatenate(list(pixels.values()))
    unknown = np.full(len(targets), -1)
    ws = projector.project(model, targets, unknown, seed=seed, progress=True).ws[:, 0].numpy()
    return split_like(ws, pixels), names


def chosen_slices(dataset_dir, count, resolution):
    """({"real AD": uint8 [n, R, R], "real NC": ...}, their file names): `count` slices of each class, or all if there are fewer."""
    slices = {name: Slices(dataset_dir, name, resolution) for name in CLASSES}
    pixels = {f"real {name}": figures.spread(of_class, min(count, len(of_class))) for name, of_class in slices.items()}
    names = [name for of_class in slices.values() for name in figures.spread(np.array(of_class.names), min(count, len(of_class)))]
    return pixels, names


def known_values(colour, names, table):
    """What is known of slices, for --colour age (float [N], nan: unknown) or sex (str [N], "": unknown), by their file names.

    UserError if nothing is known of any of them.
    """
    found = [getattr(scan, colour) for scan in identify(names, table)]
    if not any(value is not None for value in found):
        raise UserError(f"--colour {colour}: --subjects tells the {colour} of none of the {len(found)} slices of --dataset_dir")
    return np.array([{"age": np.nan, "sex": ""}[colour] if value is None else value for value in found])


def ventricle_areas(runs, sets, which, device, real=None):
    """{legend: mm^2 [n]}: ventricle areas of real slices {legend: uint8 [n, R, R]} and, for the other style vectors in `sets`, of
    the slices that the models of `runs` (of one map) draw of them with fixed noise. UserError if their view cannot be told."""
    images = dict(real or {})
    for name, ws in sets.items():
        if name not in images:
            model = load_model(runs if isinstance(runs, str) else runs[name], device, which)
            images[name] = synthesize(model, torch.from_numpy(ws).to(device))
    view = known_view(np.concatenate([images[name] for name in sets]), "--colour area")
    return {name: measure_areas(images[name], view, f"areas, {name}")["ventricle"] for name in sets}


def plot_umaps(
    runs,
    output_dir,
    method="umap",
    which="last",
    count=1000,
    neighbours=15,
    min_dist=0.1,
    seed=0,
    device="cpu",
    dataset_dir=None,
    real_count=50,
    table=None,
    collected=None,
    colour="class",
):
    """Plot a map for each of `runs` (of `compared_runs`) and maps over the epochs; returns a report.Section.

    Writes <method>.png and .csv, and <method>_epochs.png and .gif if the runs have saved style vectors. count: style vectors of
    each class; real_count: slices of each class in `dataset_dir` to project into the conditional model (None: no slices); table: of
    `read_subjects`, whose people intervals over these slices resample; collected: a list that gets a StyleMap of each map. colour:
    one of COLOURS; "age" and "sex" need the table and these slices, UserError if it knows of none.
    """
    options = {"method": method, "seed": seed, "neighbours": neighbours, "min_dist": min_dist}
    saved = {title: epochs for title, of_title in runs.items() if (epochs := history(of_title))}
    panels, separations, of_panels, age, position = [], {}, [], None, {}
    pixels = known = None  # of real slices, for their colours
    if colour != "class" and dataset_dir and CONDITIONAL in runs:
        side = load_model(runs[CONDITIONAL], device, which).generator.resolution
        pixels, names = chosen_slices(dataset_dir, real_count, side)
        known = known_values(colour, names, table) if colour in ("age", "sex") else None
    with tqdm(total=len(runs) + sum(map(len, saved.values())), desc=method, unit=" maps") as bar:
        for title, of_title in runs.items():
            sets = style_sets(of_title, which, count, seed, device)
            separations[title] = style_separation(*sets.values(), seed=seed)
            if title == CONDITIONAL and dataset_dir:
                real, names = projected_slices(of_title, which, dataset_dir, real_count, seed, device)
                age = age_section(real, names, table, seed=seed)
                groups, unit = resampling_groups(identify(names, table))
                title = REAL
                separations[title] = style_separation(*real.values(), groups, seed)
                position = real_position(real, names, groups, seed)
                sets |= real
            points = split_like(embed(np.concatenate(list(sets.values())), **options), sets)
            measures = {MEASURES[name]: interval for name, interval in separations[title]._asdict().items()}
            if title == REAL:
                measures |= {shown: position[name] for name, shown in POSITION.items() if position[name]}
            values = {}
            if colour == "area":
                values = ventricle_areas(of_title, sets, which, device, pixels if title == REAL else None)
            elif title == REAL and known is not None:
                values = split_like(known, pixels)
            panels.append(figures.Panel(title, points, measures, values))
            of_panels.append((title, of_title, sets, points, measures))
            bar.update()
        over_epochs = {title: maps_over_epochs(epochs, bar.update, **options) for title, epochs in saved.items()}

    text = conclusions(runs, separations, position)
    if REAL in separations:
        text.append(f"Of real slices: {resampled_text(unit)}")
    if collected is not None:
        for key, (title, of_title, *parts) in zip(runs, of_panels):
            sentence = " ".join(text[PAIR in runs :]) if key == CONDITIONAL else text[0]  # the pair's comes first, if there is one
            last = saved[key][-1][1] if key in saved else {}
            collected.append(StyleMap(title, of_title, *parts, sentence, over_epochs.get(key, []), last))
    path, epochs_path, gif_path = (os.path.join(output_dir, method + end) for end in (".png", "_epochs.png", "_epochs.gif"))
    figures.plot_styles(panels, path, "\n".join(text), COLOURS[colour])
    save_points(panels, os.path.join(output_dir, f"{method}.csv"), colour)
    caption = (
        f"{count} style vectors of each class, of the same latents, by {method}. The measures are taken in w, with 95% intervals."
    )
    if COLOURS[colour]:
        caption += f" Colours: {COLOURS[colour]}."
    shown = [ReportFigure(path, caption)]
    if over_epochs:
        figures.plot_epochs(select_epochs(over_epochs), epochs_path, "The same 512 latents over the epochs. " + EPOCHS_NOTE)
        figures.save_gif(figures.epoch_frames(over_epochs), gif_path, 500)
        shown += [ReportFigure(epochs_path, "Over the epochs."), ReportFigure(gif_path, "Over the epochs, animated.")]
    columns = ["sets", "neighbours alike", "linear probe, AUC"]
    rows = [[title, *separation] for title, separation in separations.items()]
    if position.get("known"):
        columns += POSITION.values()
        rows = [[*row, *(position[name] if row[0] == REAL else None for name in POSITION)] for row in rows]
    table = ReportTable(
        columns, rows, "All are 0.5 by chance and 1 if the sets are fully separated; in brackets 95% bootstrap intervals."
    )
    numbers = {title: separation._asdict() for title, separation in separations.items()}
    if position:
        numbers[REAL] |= position
    section = Section("Style space", text, [table], shown, numbers)
    if age:
        section = section._replace(text=text + age.text, tables=[table, *age.tables], numbers=numbers | {"age": age.numbers})
    return section


def real_position(real, names, groups, seed):
    """`position_probe` of the linear probe of projected slices {"real AD": w [n, D], "real NC": ...}, of these files and groups."""
    classes = np.repeat([0, 1], [len(w) for w in real.values()])
    scores = np.zeros(len(classes))
    if fewest_groups(classes == 0, groups) >= 2:
        scores = -probe_scores(np.concatenate(list(real.values())), classes, groups, seed)  # of AD, which is label 0
    return position_probe(scores, classes == 0, groups, names, seed=seed)


def conclusions(runs, separations, position=None):
    """Sentences on what the maps of `runs` show, given {title: StyleSeparation} and the `position_probe` of real slices."""
    sentences = []
    if PAIR in runs:
        sentences.append(verdict(separations[PAIR], separations.get(CONTROL), alike_seeds(runs)))
    if CONDITIONAL in runs:
        sentences.append(conditional_verdict(separations.get(REAL), position))
    return sentences


def alike_seeds(runs):
    """Whether the pair AD and NC and the pair NC and control were trained alike: each with one shared seed, or each with two.

    True without a control.
    """
    if CONTROL not in runs:
        return True
    folders = runs[PAIR]["AD"], runs[PAIR]["NC"], runs[CONTROL]["NC, other seed"]
    ad, nc, control = (read_config(folder).get("flags", {}).get("seed") for folder in folders)
    return (ad == nc) == (nc == control)


def same_training(*folders):
    """Whether the settings of two runs are those of one run, perhaps at two times: the same network, slices, loss and seed.

    False where a run has no such settings, as a copy of its generator alone.
    """
    configs = [(config, config.get("flags", {})) for config in map(read_config, folders)]
    one, other = ([config.get("network"), config.get("data"), flags.get("loss"), flags.get("seed")] for config, flags in configs)
    return one == other and None not in one


def select_epochs(over_epochs):
    """The maps of the epochs to show in a figure, of maps over all epochs {title: [(epoch, ...)]}."""
    shown = {}
    for title, maps in over_epochs.items():
        epochs = epochs_to_show([epoch for epoch, *_ in maps])
        shown[title] = [epoch_map for epoch_map in maps if epoch_map[0] in epochs]
    return shown


def save_points(panels, path, colour="class"):
    """Write the points of maps as a table with the columns panel, set, number, x, y and, unless it is "class", `colour`."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["panel", "set", "number", "x", "y"] + [colour] * (colour != "class"))
        for panel in panels:
            for name, points in panel.sets.items():
                values = (
                    [[value] for value in panel.values.get(name, [""] * len(points))] if colour != "class" else [[]] * len(points)
                )
                table.writerows([panel.title, name, i, *map(float, point), *values[i]] for i, point in enumerate(points))
