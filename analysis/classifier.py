"""AD against NC by a small classifier: how much of the difference between the classes do generated slices carry?

    classify({"AD": ..., "NC": ...}, generated, unseen, subjects)["generated"]["auc"]       # uint8 [n, R, R] each

It learns from real slices, from generated ones, and from both, and tells apart unseen real ones: the classification accuracy
score of Ravuri and Vinyals 2019 (arXiv:1905.10887), with the AUC in place of the accuracy. A generator that carries the whole
difference teaches as well as the slices that it learnt from. At 64x64 one training takes half a minute on a
free CPU core.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock
from tqdm import tqdm

from analysis.bootstrap import auc, bootstrap
from dataset import to_float
from utils import CLASSES, UserError, pick_dtype, random_stream

SEEDS = 0, 1, 2  # of the classifier: its start and its batches
STEPS, BATCH, WIDTH = 600, 32, 16  # of its training; twice the steps changed little on phantoms
SHIFT = 2  # pixels up or down, left or right, by which its training slices are moved


# ---------------------------------------------------------------------------------------------------------------------
# The classifier


def build_classifier():
    """Slices [N, 1, R, R] -> logit of AD [N, 1]: torchvision's residual blocks (He et al. 2016), one a level, four levels."""
    layers, channels = [nn.Conv2d(1, WIDTH, 3, 2, 1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU(inplace=True)], WIDTH
    for i in range(4):
        out, stride = WIDTH << i, 2 if i else 1
        shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)) if i else None
        layers.append(BasicBlock(channels, out, stride, shortcut))
        channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1))


def train_classifier(pixels, is_ad, seed, device="cpu", bar=None):
    """A classifier in evaluation mode, from uint8 [N, R, R] and bool [N] in STEPS steps, so that no choice is left to make.

    AdamW on a one-cycle schedule; slices are mirrored and moved at random. `bar` counts steps.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build_classifier().to(device, memory_format=torch.channels_last)
    rng, device = random_stream("classifier", seed), torch.device(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS)
    pixels, target = torch.as_tensor(pixels), torch.as_tensor(is_ad, dtype=torch.float32)
    sides = [target.nonzero()[:, 0], (target == 0).nonzero()[:, 0]]
    dtype = pick_dtype(None, device)
    for _ in range(STEPS):
        rows = torch.cat([side[torch.randint(len(side), [BATCH // 2], generator=rng)] for side in sides])
        mirrored = torch.rand(BATCH, 1, 1, generator=rng) < 0.5
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
    """Of AD, float32 [N], for uint8 [N, R, R]."""
    parts = torch.as_tensor(pixels).split(64)
    return torch.cat([network(to_float(part.to(device)))[:, 0].cpu() for part in parts]).numpy()


def summary(scores, is_ad, groups):
    """The AUC of several classifiers' scores [seeds, N]: Interval of their mean, each, and their standard deviation."""
    each = [auc(one, is_ad) for one in scores]
    mean = bootstrap(lambda weights: np.mean([auc(one, is_ad, weights) for one in scores]), groups, is_ad)
    return {"auc": mean, "seeds": each, "spread": float(np.std(each, ddof=1))}


def classify(train, generated, unseen, groups=None, device="cpu"):
    """AUC of AD against NC on unseen real slices, learnt from real ones, from generated ones, and from both.

    train, generated, unseen: {class: uint8 [n, R, R]}; groups: {class: subjects of the unseen slices [n], or None}, or None. As
    many generated slices of a class are learnt from as real ones; "both" is both together. Returns {"train", "generated",
    "both": {"auc": mean over SEEDS, "seeds": each, "spread": their standard deviation, "interval": of the mean, over other
    unseen subjects}, "ratio": generated over train, "resampled": "subjects" or "slices"}.
    """
    for name, slices in (("real", train), ("generated", generated), ("unseen", unseen)):
        if missing := [one for one in CLASSES if one not in slices or not len(slices[one])]:
            raise UserError(f"AD against NC needs slices of both: there are no {name} ones of {' and '.join(missing)}")
    rng = np.random.default_rng(0)
    count = {one: min(len(train[one]), len(generated[one])) for one in CLASSES}
    parts = {
        name: {one: slices[one][rng.permutation(len(slices[one]))[: count[one]]] for one in CLASSES}
        for name, slices in (("train", train), ("generated", generated))
    }
    parts["both"] = {one: np.concatenate([parts["train"][one], parts["generated"][one]]) for one in CLASSES}
    is_ad = np.repeat([True, False], [len(unseen[one]) for one in CLASSES])
    unseen = np.concatenate([unseen[one] for one in CLASSES])
    named = groups is not None and all(groups[one] is not None for one in CLASSES)
    groups = np.concatenate([groups[one] for one in CLASSES]) if named else np.arange(len(unseen))
    found = {}
    with tqdm(total=len(parts) * len(SEEDS) * STEPS, desc="classifiers", unit=" steps", disable=None) as bar:
        for name, part in parts.items():
            learnt = np.concatenate([part[one] for one in CLASSES])
            labels = np.repeat([True, False], [len(part[one]) for one in CLASSES])
            scores = [logits(train_classifier(learnt, labels, seed, device, bar), unseen, device) for seed in SEEDS]
            found[name] = summary(scores, is_ad, groups)
    return {
        **found,
        "ratio": found["generated"]["auc"].value / found["train"]["auc"].value,
        "resampled": "subjects" if named else "slices",
    }
