"""playground.html: the generator itself in one page that needs neither a network nor a server, and draws in the browser.

    section = draw_playground(model, seed=0, path="predictions/playground.html")

The page holds the weights of mapping network, generator and encoder as float16, and what `name_directions` and `find_directions`
find. playground_worker.js is modules.py and analysis/encoder.py in JavaScript, playground_areas.js is analysis/areas.py;
playground.js is the page around them. Latents and fixed noise are those of PyTorch on a CPU, so that the page shows the slices of
--draw (of a model that is told values: at their means, until a slider moves), and `--export CSV` draws what the page saves.
"""

import base64
import glob
import os
import re
import zlib

import numpy as np

from analysis.areas import AMOUNT, LEVELS, PIXEL_MM, REGIONS, SIDE, WIDTH, view_or_note
from analysis.encoder import find_encoder
from analysis.latents import find_directions, layers_from, value_range
from analysis.models import WEIGHTS, generate, short_checksum
from analysis.named_directions import UNITS, name_directions
from report.report import Section, fill_template, number_text, plain
from utils import CLASSES, atomic_path, random_stream

LATENTS = 1024  # of a seed, which the page offers; 16 of them are drawn at once, so that 16 divides it
PRINCIPAL = 5  # directions
VIEWED = 64  # slices by which the view is told
RANGES = [  # of layers, as Karras et al. 2019 (arXiv:1812.04948, section 3.1) mix them
    {"name": name, "pixels": text, "from": first, "layer": layers_from(first, first).start}
    for name, text, first in (("coarse", "4 and 8", 4), ("middle", "16 and 32", 16), ("fine", "64 up", 64))
]
SHOWN_R2 = 0.1  # a quantity of which w tells less has no slider


def draw_playground(model, seed, path):
    """Make the encoder of a Model, if it has none, and the directions; write the page; returns a report.Section."""
    encoder = find_encoder(model, seed, progress=True)
    named, principal = name_directions(model, seed, progress=True), find_directions(model, PRINCIPAL, seed, "ganspace")
    is_known = named and "ventricle area" in named[0].effects
    view = view_or_note(np.concatenate(list(generate(model, VIEWED, seed, label=model.labels[0]))), "areas") if is_known else None
    write_playground(path, model, encoder, named, principal, seed, view)
    text = f"Named directions, R^2 on slices held out: {', '.join(f'{one.name} {one.r2:.2f}' for one in named)}."
    return Section(f"{model.name}: playground", [text], pages=[(path, "the generator itself, with sliders; needs no network.")])


def write_playground(path, model, encoder, named, principal, seed=0, view=None):
    """Write the page of a Model and its Encoder, with NamedDirections and the Directions of `find_directions`.

    view: of the model's slices, as `areas.known_view` tells it, if areas are to be measured.
    """
    shown = [one for one in named if one.r2 >= SHOWN_R2]
    mapping, vectors = model.mapping, principal.vectors.cpu().numpy() * principal.deviation[:, None]
    tensors = {"named": np.array([one.vector for one in shown]).reshape(-1, mapping.w_dim), "principal": vectors}
    for name, part in (("mapping", mapping), ("generator", model.generator), ("encoder", encoder)):
        tensors |= {f"{name}.{key}": x.cpu().numpy() for key, x in part.state_dict().items()}
    for name in ("mapping.examples", "mapping.embedding.mean", "mapping.embedding.std"):  # the last two are not rounded, below
        tensors.pop(name, None)
    if model.is_conditional:
        tensors["class_difference"] = (mapping.w_mean[1] - mapping.w_mean[0]).cpu().numpy()[None]
    data = {
        "network": {
            "resolution": model.resolution,
            "side": encoder.side,
            "z_dim": mapping.z_dim,
            "w_dim": mapping.w_dim,
            "num_classes": len(CLASSES) if model.is_conditional else 0,
            "latent_seed": random_stream("latents", seed).initial_seed(),
            "latents": LATENTS,
            "values": told_values(model),
            "ranges": [one for one in RANGES if one["from"] <= model.resolution],
            "areas": view
            and {
                "view": view,
                "levels": LEVELS[view],
                "regions": REGIONS[view],
                "amounts": AMOUNT[view],
                "pixel": (PIXEL_MM[view] * WIDTH / SIDE) ** 2,
            },
        },
        "weights": pack(tensors),
        "run": model.folder,
        "name": model.name,
        "checksum": short_checksum(model),
        "units": UNITS,
        "named": [one.name for one in shown],
        "principal": len(vectors),
    }
    facts = {"model": model.folder, "weights": WEIGHTS[model.which], "seed": seed, "trained on": " and ".join(model.trained_on)}
    page = fill_template(
        "playground.html.j2",
        title=f"Playground: {model.name}",
        facts=facts,
        data=plain(data),
        conditional=model.is_conditional,
        named=shown,
        table=effect_table(named),
        quantities=[f"{name}, {UNITS[name]}" for name in (named[0].effects if named else ())],
        principal=principal.share,
        latents=LATENTS,
    )
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", errors="replace", newline="\n") as file:
        file.write(page)


def find_playgrounds(folder, models):
    """{folder of the run: file name} of the pages in a folder that hold the weights of Models."""
    pages = {}
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), "*playground.html"))):
        with open(path, encoding="utf-8", errors="replace") as file:
            pages |= {of: os.path.basename(path) for of in re.findall(r'"checksum": "(\w+)"', file.read())}
    return {model.folder: pages[of] for model in models if (of := short_checksum(model)) in pages}


def told_values(model):
    """For each value that a Model is told: its name, the mean and standard deviation by which it is standardised, the range of its
    slider, which is that of --draw values in whole numbers, and where that starts: at the mean."""
    found = []
    for k, name in enumerate(model.values):
        mean, std = (float(x[k]) for x in (model.mapping.embedding.mean, model.mapping.embedding.std))
        low, high = (round(float(x)) for x in value_range(model, name))
        found.append({"name": name, "mean": mean, "std": std, "low": low, "high": high, "start": min(max(round(mean), low), high)})
    return found


def pack(tensors):
    """{name: array} as JSON can hold it: names with shapes, and all numbers as float16, the low bytes before the high ones (which
    are alike, so that this saves an eighth), deflated, in base64."""
    numbers = np.concatenate([x.ravel() for x in tensors.values()]).astype("<f2")
    content = zlib.compress(np.ascontiguousarray(numbers.view(np.uint8).reshape(-1, 2).T).tobytes(), 9)
    return {"index": [[name, x.shape] for name, x in tensors.items()], "base64": base64.b64encode(content).decode()}


def effect_table(named):
    """Rows of text, one per NamedDirection: name, R^2, and what moving w by one standard deviation changes of each quantity."""

    def text(mean, spread):
        return f"{round(mean, 1) + 0:+.1f} \N{PLUS-MINUS SIGN} {spread:.1f}".replace("-", "\N{MINUS SIGN}")

    return [[one.name, number_text(one.r2, 2), *(text(*effect) for effect in one.effects.values())] for one in named]
