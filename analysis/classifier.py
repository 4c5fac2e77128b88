"""AD against NC by a small classifier: how much of the AD/NC difference do generated slices preserve?

    classify(train, generated, held_out, groups)["generated"]["auc"]        # {"AD": uint8 [n, R, R], "NC": ...} each

Classifiers trained on real slices, on generated slices and on both tell AD from NC on held-out real slices: the classification
accuracy score of Ravuri and Vinyals (2019, arXiv:1905.10887), with the AUC in place of the accuracy. If generated slices preserve
the whole difference, a classifier trained on them does as well as one trained on the real slices that the generator learnt from.
Each trains until it does no better on validation people: a fifth of the real training people, on whose slices none of them trains.
predict.py --evaluate trains nine; with the axial bundled model all of it took a quarter of an hour of a shared CPU core.
"""

import copy

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from analysis.bootstrap import MIN_PEOPLE, auc, bootstrap, bootstrap_auc, fewest_groups
from analysis.position import position_probe, slice_indices
from analysis.style_space import permutation_test
from dataset import to_float
from utils import CLASSES, UserError, pick_dtype, random_stream

SEEDS = 0, 1, 2  # of the initial weights and the batches
BATCH, WIDTH, RATE = 32, 16, 1e-3
AVERAGE = 0.99  # decay of the moving average of the weights, by step: single steps differ too much to choose among
CHECK, PATIENCE, LIMIT = 50, 10, 4000  # steps between two checks on validation people; checks without improvement; steps at most
VALIDATION_SHARE, VALIDATED = 0.2, 1000  # of the real training people; slices of each class on which checks are made, at most
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


def train_classifier(pixels, is_ad, validation, seed, device="cpu", mirror=False):
    """The classifier, in evaluation mode, of the highest AUC on validation slices, and the steps until then.

    pixels uint8 [N, R, R], is_ad bool [N]; validation: the same of other people. AdamW; a moving average of the weights is checked
    every CHECK steps, and PATIENCE checks without a higher AUC end the training. (The loss on validation people rises earlier, when
    a network becomes too sure of itself but still ranks slices better.) Batches hold both classes in equal numbers; slices are
    moved at random and, with `mirror`, mirrored.
    """
    with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU; with several GPUs PyTorch would warn
        torch.manual_seed(seed)
        network = build_classifier().to(device, memory_format=torch.channels_last)
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE), use_buffers=True)
    rng, device = random_stream("classifier", seed), torch.device(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.05)
    pixels, target = torch.as_tensor(pixels), torch.as_tensor(is_ad, dtype=torch.float32)
    rows_of_classes = [target.nonzero()[:, 0], (target == 0).nonzero()[:, 0]]
    dtype, highest, best = pick_dtype(None, device), -np.inf, (averaged, 0)
    for step in range(1, LIMIT + 1):
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
        averaged.update_parameters(network)
        if step % CHECK == 0:
            validation_auc = auc(logits(averaged.eval(), validation[0], device), validation[1])
            if validation_auc > highest:
                highest, best = validation_auc, (copy.deepcopy(averaged), step)
            elif step - best[1] >= PATIENCE * CHECK:
                break
    return best


@torch.no_grad()
def logits(network, pixels, device="cpu"):
    """Logits of AD, float32 [N], of slices uint8 [N, R, R]."""
    batches = torch.as_tensor(pixels).split(64)
    return torch.cat([network(to_float(batch.to(device)))[:, 0].cpu() for batch in batches]).numpy()


# ---------------------------------------------------------------------------------------------------------------------
# What it learns from real and from generated slices


def classify(train, generated, held_out, groups, device="cpu", mirror=False, names=None):
    """AUC of AD against NC on held-out real slices after training on real slices, on generated ones, and on both together.

    train, generated, held_out: {class: uint8 [n, R, R]}; groups: {"train", "held-out": {class: [n]}}, people, by whom validation
    slices are set aside and whom intervals resample; mirror: see `train_classifier`. Real and generated slices are used in equal
    numbers per class. names: {"train", "held-out": {class: names of the files [n]}}. Returns {"train", "generated", "both":
    `summary` and "steps", with names also "position": `position_probe`, whose rule for the slice index is fitted to the training
    slices; "difference", "ratio": `compare_arms` of generated and train; "validation": {"people", "slices": numbers}}. UserError
    if a class has no slices, or too few people.
    """
    for kind, slices in (("real", train), ("generated", generated), ("held-out", held_out)):
        if missing := [name for name in CLASSES if not len(slices.get(name, ()))]:
            raise UserError(f"AD against NC needs slices of both classes: there are no {kind} slices of {' and '.join(missing)}")
    rng = np.random.default_rng(0)
    people = validation_people(groups["train"], groups["held-out"], rng)
    kept_back = {name: np.isin(groups["train"][name], people) for name in CLASSES}
    validation = pool_classes({name: shuffled(train[name][kept_back[name]], rng)[:VALIDATED] for name in CLASSES})
    sets = {"train": {name: train[name][~kept_back[name]] for name in CLASSES}, "generated": generated}
    count = {name: min(len(slices[name]) for slices in sets.values()) for name in CLASSES}
    sets = {kind: {name: shuffled(slices[name], rng)[: count[name]] for name in CLASSES} for kind, slices in sets.items()}
    sets["both"] = {name: np.concatenate([sets["train"][name], sets["generated"][name]]) for name in CLASSES}
    held_out, is_ad = pool_classes(held_out)
    held_out_groups = np.concatenate([groups["held-out"][name] for name in CLASSES])
    if names:
        files, (train_files, train_is_ad) = pool_classes(names["held-out"])[0], pool_classes(names["train"])
        fitted = slice_indices(train_files), train_is_ad
    results, scores = {}, {}
    with tqdm(total=len(sets) * len(SEEDS), desc="training classifiers", unit=" trainings", disable=None) as bar:
        for kind, slices in sets.items():
            seed_scores, steps = [], []
            for seed in SEEDS:
                network, trained = train_classifier(*pool_classes(slices), validation, seed, device, mirror)
                seed_scores.append(logits(network, held_out, device))
                steps.append(trained)
                bar.update()
            scores[kind] = np.mean(seed_scores, 0)
            results[kind] = summary(seed_scores, is_ad, held_out_groups) | {"steps": steps}
            if names:
                results[kind]["position"] = position_probe(scores[kind], is_ad, held_out_groups, files, fitted)
    kept = {"validation": {"people": len(people), "slices": len(validation[1])}}
    return results | compare_arms(scores["generated"], scores["train"], is_ad, held_out_groups) | kept


def shuffled(slices, rng):
    return slices[rng.permutation(len(slices))]


def validation_people(train, held_out, rng):
    """VALIDATION_SHARE of the groups (people) of each class, drawn by `rng`, as few of them as possible among the held-out groups.

    train, held_out: {class: groups [n]}. UserError if a class would keep no other people to train on.
    """
    tested, chosen = np.concatenate(list(held_out.values())), np.array([], train["AD"].dtype)
    for name in CLASSES:
        people = np.unique(train[name])
        missing = max(1, round(VALIDATION_SHARE * len(people))) - np.isin(people, chosen).sum()  # some may have slices of both
        people = rng.permutation(np.setdiff1d(people, chosen))
        people = people[np.argsort(np.isin(people, tested), kind="stable")]  # those who are not tested first
        chosen = np.r_[chosen, people[: max(0, missing)]]
    for name in CLASSES:
        if np.isin(train[name], chosen).all():
            raise UserError(
                f"AD against NC needs two people or scans of each class in train/, one of them for validation; {name} has one"
            )
    return chosen


def pool_classes(slices):
    """({class: uint8 [n, R, R], or names [n]}) -> all slices [N, R, R] or names [N], and which of them are AD, bool [N]."""
    pixels = [slices[name] for name in CLASSES]
    return np.concatenate(pixels), np.repeat([name == "AD" for name in CLASSES], [len(part) for part in pixels])


def summary(scores, is_ad, groups):
    """{"auc": `Auc` of the mean score, "seeds": the AUC of each, "spread": their standard deviation, "p": of
    `permutation_test`} of scores [seeds, N]: over other held-out groups (people), not over other trainings."""
    mean, aucs = np.mean(scores, 0), [auc(seed_scores, is_ad) for seed_scores in scores]
    p, critical = permutation_test(lambda labels: auc(mean, labels == 1), is_ad.astype(int), groups)
    measured = bootstrap_auc(lambda weights: auc(mean, is_ad, weights), is_ad, groups, True, critical=critical)
    return {"auc": measured, "seeds": aucs, "spread": float(np.std(aucs, ddof=1)), "p": p}


def compare_arms(generated, real, is_ad, groups):
    """{"difference", "ratio": Interval} of the AUCs of two scores [N] of the same slices, each sample's from the same groups.

    difference: generated less real; ratio: `above_chance`, whose Interval is None unless real is shown to exceed 0.5. Both are None
    with fewer than MIN_PEOPLE groups of a class.
    """
    if fewest_groups(is_ad, groups) < MIN_PEOPLE:
        return {"difference": None, "ratio": None}

    def aucs(weights):
        return auc(generated, is_ad, weights), auc(real, is_ad, weights)

    ratio = None
    if bootstrap(lambda weights: auc(real, is_ad, weights), groups, is_ad).low > 0.5:
        ratio = bootstrap(lambda weights: above_chance(*aucs(weights)), groups, is_ad)
    return {"difference": bootstrap(lambda weights: np.subtract(*aucs(weights)), groups, is_ad), "ratio": ratio}


def above_chance(generated, real):
    """How much of a real-data classifier's AUC above chance (0.5) training on generated slices reaches; nan if it has none.

    0: no better than chance; 1: as well as after training on real slices; below 0: worse than chance.
    """
    return (generated - 0.5) / (real - 0.5) if real > 0.5 else np.nan
