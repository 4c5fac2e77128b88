"""AD against NC by a small classifier: how much of the AD/NC difference do generated slices preserve?

    classify({"AD": ..., "NC": ...}, generated, held_out, groups)["generated"]["auc"]         # uint8 [n, R, R] each

Classifiers trained on real slices, on generated slices and on both tell AD from NC on held-out real slices: the
classification accuracy score of Ravuri and Vinyals (2019, arXiv:1905.10887), with the AUC in place of the accuracy. If generated
slices preserve the whole difference, a classifier trained on them does as well as one trained on the real slices that the generator
learnt from. At 64x64 one training takes half a minute on an otherwise idle CPU core.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from analysis.bootstrap import auc, bootstrap
from analysis.position import position_probe, slice_indices
from dataset import to_float
from utils import CLASSES, UserError, pick_dtype, random_stream

SEEDS = 0, 1, 2  # of the initial weights and the batches
STEPS, BATCH, WIDTH = 600, 32, 16  # of a training; twice the steps changed little on phantoms
SHIFT = 2  # pixels; training slices are moved by up to this much in either direction

# ---------------------------------------------------------------------------------------------------------------------
# The classifier


def build_classifier():
    """Slices [N, 1, R, R] -> logit of AD [N, 1]: torchvision's residual blocks (He et al. 2016), one at each of four levels."""
    from torchvision.models.resnet import BasicBlock  # takes seconds to import

    layers, channels = [nn.Conv2d(1, WIDTH, 3, 2, 1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU(inplace=True)], WIDTH
    for level in range(4):
        out, stride = WIDTH << level, 2 if level else 1
        shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)) if level else None
        layers.append(BasicBlock(channels, out, stride, shortcut))
        channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1))


def train_classifier(pixels, is_ad, seed, device="cpu", bar=None, mirror=False):
    """A classifier trained on slices uint8 [N, R, R] with labels bool [N], in evaluation mode; `bar` counts steps.

    AdamW on a one-cycle schedule for STEPS steps: nothing is chosen on validation slices. Batches hold both classes in equal
    numbers; slices are moved at random and, with `mirror`, mirrored.
    """
    with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU; with several GPUs PyTorch would warn
        torch.manual_seed(seed)
        network = build_classifier().to(device, memory_format=torch.channels_last)
    rng, device = random_stream("classifier", seed), torch.device(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS)
    pixels, target = torch.as_tensor(pixels), torch.as_tensor(is_ad, dtype=torch.float32)
    rows_of_classes = [target.nonzero()[:, 0], (target == 0).nonzero()[:, 0]]
    dtype = pick_dtype(None, device)
    for _ in range(STEPS):
        rows = torch.cat([members[torch.randint(len(members), [BATCH // 2], generator=rng)] for members in rows_of_classes])
        mirrored = torch.rand(BATCH, 1, 1, generator=rng) < (0.5 if mirror else 0)
        images = torch.where(mirrored, pixels[rows].flip(-1), pixels[rows])
        shift = torch.randint(-SHIFT, SHIFT + 1, [2], generator=rng).tolist()
        images = to_float(images.roll(shift, (1, 2)).to(device)).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logit = network(images)[:, 0]
        loss = F.binary_cross_entropy_with_logits(logit.float(), target[rows].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if bar is not None:
            bar.update()
    return network.eval()


@torch.no_grad()
def logits(network, pixels, device="cpu"):
    """Logits of AD, float32 [N], of slices uint8 [N, R, R]."""
    batches = torch.as_tensor(pixels).split(64)
    return torch.cat([network(to_float(batch.to(device)))[:, 0].cpu() for batch in batches]).numpy()


# ---------------------------------------------------------------------------------------------------------------------
# What it learns from real and from generated slices


def classify(train, generated, held_out, groups=None, device="cpu", mirror=False, names=None):
    """AUC of AD against NC on held-out real slices after training on real slices, on generated ones, and on both together.

    train, generated, held_out: {class: uint8 [n, R, R]}; groups: {class: [n]} of the held-out slices, which
    intervals resample (None: each slice is one); mirror: see `train_classifier`. Real and generated slices are used in equal
    numbers per class. names: {"train", "held-out": {class: names of the files [n]}}. Returns {"train", "generated", "both":
    `summary`, with names also "position": `position_probe`, whose rule for the slice index is fitted to the training slices;
    "ratio": `above_chance`}. UserError if a class has no slices.
    """
    for kind, slices in (("real", train), ("generated", generated), ("held-out", held_out)):
        if missing := [name for name in CLASSES if not len(slices.get(name, ()))]:
            raise UserError(f"AD against NC needs slices of both classes: there are no {kind} slices of {' and '.join(missing)}")
    rng, sets = np.random.default_rng(0), {}
    count = {name: min(len(train[name]), len(generated[name])) for name in CLASSES}
    for kind, slices in (("train", train), ("generated", generated)):
        sets[kind] = {name: slices[name][rng.permutation(len(slices[name]))[: count[name]]] for name in CLASSES}
    sets["both"] = {name: np.concatenate([sets["train"][name], sets["generated"][name]]) for name in CLASSES}
    held_out, is_ad = pool_classes(held_out)
    groups = np.arange(len(held_out)) if groups is None else np.concatenate([groups[name] for name in CLASSES])
    if names:
        files, (train_files, train_is_ad) = pool_classes(names["held-out"])[0], pool_classes(names["train"])
        fitted = slice_indices(train_files), train_is_ad
    results = {}
    with tqdm(total=len(sets) * len(SEEDS) * STEPS, desc="classifiers", unit=" steps", disable=None) as bar:
        for kind, slices in sets.items():
            pixels, labels = pool_classes(slices)
            scores = [logits(train_classifier(pixels, labels, seed, device, bar, mirror), held_out, device) for seed in SEEDS]
            results[kind] = summary(scores, is_ad, groups)
            if names:
                results[kind]["position"] = position_probe(scores, is_ad, groups, files, fitted)
    return {**results, "ratio": above_chance(results["generated"]["auc"].value, results["train"]["auc"].value)}


def pool_classes(slices):
    """({class: uint8 [n, R, R], or names [n]}) -> all slices [N, R, R] or names [N], and which of them are AD, bool [N]."""
    pixels = [slices[name] for name in CLASSES]
    return np.concatenate(pixels), np.repeat([name == "AD" for name in CLASSES], [len(part) for part in pixels])


def summary(scores, is_ad, groups):
    """{"auc": Interval of the mean AUC, "seeds": the AUC of each, "spread": their standard deviation} of scores [seeds, N].

    The interval is over other held-out groups (people), not over other trainings.
    """

    def mean_auc(weights):
        return np.mean([auc(seed_scores, is_ad, weights) for seed_scores in scores])

    aucs = [auc(seed_scores, is_ad) for seed_scores in scores]
    return {"auc": bootstrap(mean_auc, groups, is_ad), "seeds": aucs, "spread": float(np.std(aucs, ddof=1))}


def above_chance(generated, real):
    """How much of a real-data classifier's AUC above chance (0.5) training on generated slices reaches; None if it has none.

    0: no better than chance; 1: as well as after training on real slices; below 0: worse than chance.
    """
    return (generated - 0.5) / (real - 0.5) if real > 0.5 else None
