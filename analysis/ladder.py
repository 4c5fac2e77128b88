"""What a style space keeps of the AD/NC difference: AUCs of ever better features, trained and tested on the same people.

    rungs = ladder(models, train, held_out, generated, groups, names)["w, encoded by all-conditional"]["auc"]

Linear probes of pixels, of an untrained encoder and of encoded w are fitted to real training slices and tested on held-out people.
A classifier (classifier.py) sees what is in the slices; a rung below it shows what its features lose. Since no probe has seen the
held-out people, p is by permutation of these people's labels, without fitting again.
"""

import numpy as np

from analysis.bootstrap import auc, bootstrap_auc
from analysis.encoder import find_encoder, untrained_encoder
from analysis.position import position_probe
from analysis.style_space import build_probe, permutation_test
from dataset import resize

PIXELS = 32  # a side


def ladder(models, train, held_out, generated, groups, names, seed=0):
    """{name of a rung: `rung`} for Models; see `rung` for the slices.

    train, held_out, generated: {class: uint8 [n, R, R], or Slices}; groups [N] and names, {"train", "held-out": [N]}, of the pooled
    training and held-out slices, AD's first.
    """
    (train_classes, held_out_classes, drawn_classes) = (
        np.repeat([0, 1], [len(part) for part in sets.values()]) for sets in (train, held_out, generated)
    )
    rungs = {}

    def add(name, points, fitted=train_classes):
        features, tested = points
        scores = -build_probe().fit(features, fitted).decision_function(tested)  # of AD, which is label 0
        rungs[name] = rung(scores, held_out_classes == 0, groups, names, seed)

    def encode(encoder, *sets):
        return [np.concatenate([encoder.encode(part).points for part in slices.values()]) for slices in sets]

    add(f"pixels, {PIXELS}x{PIXELS}", [pool_pixels(slices) for slices in (train, held_out)])
    add("an untrained encoder", encode(untrained_encoder(models[0], seed), train, held_out))
    for model in models:
        encoder = find_encoder(model, seed, True)
        points = encode(encoder, train, held_out, generated)
        add(f"w, encoded by {model.name}", points[:2])
        add(f"w, encoded by {model.name}, fitted to generated slices", [points[2], points[1]], drawn_classes)
    return rungs


def pool_pixels(slices):
    """Pixels [N, PIXELS^2] of {class: uint8 [n, R, R], or Slices}."""
    parts = [resize(part[start : start + 256], PIXELS) for part in slices.values() for start in range(0, len(part), 256)]
    return np.concatenate(parts).reshape(-1, PIXELS**2).astype(np.float32)


def rung(scores, is_ad, groups, names, seed=0):
    """{"auc": `Auc`, "p": of `permutation_test`, "position": `position_probe`} of scores [N] of AD."""
    p, critical = permutation_test(lambda labels: auc(scores, labels == 1), is_ad.astype(int), groups, seed)
    measured = bootstrap_auc(lambda weights: auc(scores, is_ad, weights), is_ad, groups, True, seed, critical)
    return {"auc": measured, "p": p, "position": position_probe(scores, is_ad, groups, names, seed=seed)}
