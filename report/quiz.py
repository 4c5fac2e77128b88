"""A reader test, the file of predict.py --quiz: can a person tell generated from real slices? One page that needs no network.

    section = draw_quiz(model, "predictions/quiz.html", 16, "AD_NC/test")

It is blind: the slices lie in random order in one lossless picture, in cells of one size, and what they are is in the page only as
text in base64, which its script quiz.js decodes after the last answer.
"""

import base64
import json
from collections import Counter

import numpy as np

from analysis.models import BATCH, generate
from data.damage import find_damaged, leave_out, scans_of
from data.subjects import identify, resampling_groups
from dataset import Slices, resize
from report.atlas import make_sprite
from report.report import Section, fill_template
from utils import CLASSES, atomic_path, plural

LARGEST = 256  # pixels of a slice, at most: the page holds them all
MOST = 100  # real slices of each class, at most
FIRST = 10_000  # number of the first generated slice of a class, and twice this: grids, which the reader may know, end before


def choose_real(groups, count, rng):
    """Rows of at most `count` of N slices in random order, one of each of the groups [N] (people) before a second of any: int."""
    order, seen = rng.permutation(len(groups)), Counter()
    turns = []
    for group in groups[order]:
        turns.append(seen[group])
        seen[group] += 1
    return order[np.argsort(turns, kind="stable")][:count]


def independence(groups, unit):
    """Sentences: what the interval of a result takes for granted, given the groups [N] of the real slices and what these are."""
    people, slices = len(np.unique(groups)), plural(len(groups), "real slice")
    if unit == "people" and people == len(groups):
        return f"The {slices} are of as many people."
    if unit == "people":
        text = f"The {slices} are of {plural(people, 'person').replace('persons', 'people')}"
        return f"{text}, and slices of one person are not independent: the interval is too narrow."
    unknown = "whose these are is not known" if unit == "scans" else "file names do not tell all scans"
    text = f"The {slices} are of {people} {unit}, and {unknown}"
    return f"{text}; slices of one person are not independent, so the interval is too narrow if some share one."


def collect(model, count, dataset_dir, table, seed, psi):
    """(uint8 slices [N, R, R] in random order, what each is as a list of {"real", "class", "slice"}, sentences on the real ones).

    Of each class of the model there are as many real as generated slices, at most `count`; scans that are damaged are left out.
    """
    rng, pixels, about, used = np.random.default_rng(seed), [], [], []
    for first, label, name in zip((FIRST, 2 * FIRST), model.labels, model.classes):  # no latent as AD and as NC
        slices = Slices(dataset_dir, name, model.resolution)
        slices = leave_out(slices, find_damaged(slices, scans_of(slices.names)))
        scans = identify(slices.names, table)
        rows = choose_real(resampling_groups(scans)[0], min(count, MOST), rng)
        used += [scans[i] for i in rows]
        batches = generate(model, first + len(rows), seed, psi, label, first // BATCH)
        pixels += [*slices[rows], *np.concatenate(list(batches))]
        about += [{"real": True, "class": CLASSES[slices.labels[i]], "slice": slices.names[i]} for i in rows]
        facts = {"real": False, "class": name.replace("all", "")}
        about += [facts | {"slice": f"seed {seed}, number {i}"} for i in range(first, first + len(rows))]
    order = rng.permutation(len(pixels))
    return np.stack(pixels)[order], [about[i] for i in order], independence(*resampling_groups(used))


def draw_quiz(model, path, count, dataset_dir, table=None, seed=0, psi=1.0):
    """Write the page, with at most `count` real and as many generated slices of each class of a Model; returns its report.Section.

    table: of `find_subjects`. UserError as of `Slices`, for --dataset_dir.
    """
    pixels, about, sentences = collect(model, count, dataset_dir, table, seed, psi)
    sprite, columns = make_sprite(resize(pixels, min(LARGEST, pixels.shape[-1])), format="PNG")
    data = {
        "side": min(LARGEST, pixels.shape[-1]),
        "columns": columns,
        "count": len(pixels),
        "key": base64.b64encode(json.dumps(about).encode()).decode(),
    }
    sprite = "data:image/png;base64," + base64.b64encode(sprite).decode()
    page = fill_template("quiz.html.j2", model=model.name, sentences=sentences, data=data, sprite=sprite)
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", errors="replace", newline="\n") as file:
        file.write(page)
    return Section(
        f"{model.name}: a reader test",
        ["Can you tell generated from real slices?"],
        pages=[(path, "a reader test: which slices are real?")],
    )
