"""The slices of a run: those that it trains on, and those of people whom it never trains on, by which it is validated.

    slices = read_slices("AD_NC/train", "AD", 256, table=find_subjects("ADNI.csv", "AD_NC/train"))
    slices.train, slices.validation

Everything that chooses looks at validation people: best.pt, alerts, --augment ada. The test set is for metrics.py and predict.py.
"""

import hashlib
import sys
from typing import NamedTuple

import numpy as np
import torch

from data.damage import damaged_text, find_damaged, leave_out, scans_of
from data.fingerprints import training_record
from data.subjects import identify, resampling_groups
from dataset import Slices, spread
from modules import EXAMPLES
from utils import CLASSES, plural

SHARE = 0.1  # of the people are kept for validation,
MIN_KEPT, MIN_PEOPLE = 2, 10  # ... at least so many of each class, and nobody where a class has fewer people


class RunSlices(NamedTuple):
    """What `read_slices` finds."""

    train: Slices
    groups: np.ndarray  # [N] of `train`: the person, else the scan, else the file of each slice, as text
    validation: Slices | None  # with the classes in the shares of `train`
    validation_groups: np.ndarray | None
    validation_text: str  # how many people and slices these are
    record: dict  # what config.json keeps as "data"; its "validation" is None for a run that training slices choose
    keep_damaged: bool
    fingerprints: np.ndarray = np.empty(0, np.int32)  # `fingerprints.training_record` of `train`


def read_slices(
    dataset_dir,
    classes,
    resolution,
    validation_dir=None,
    keep_damaged=False,
    chooses=True,
    table=None,
    begun=None,
    listed=None,
    quiet=False,
):
    """RunSlices of the folder `dataset_dir`; what is special about them is said on stderr.

    validation_dir: folder of the validation slices; without it some people of `dataset_dir` are kept, if the run `chooses` anything
    by them. table: of `data.subjects.find_subjects`. begun: what `run_folder.read_run` read of a run that is resumed, which keeps
    to what it was begun with. listed: {folder: what `list_slices` found there}. quiet: say nothing and take no fingerprints, in a
    process that writes nothing. UserError, which names the folder's flag: as of `Slices`, or a class has damaged scans alone.
    """

    def say(text):
        if not quiet:
            print(text, file=sys.stderr)

    listed = listed or {}
    slices = Slices(dataset_dir, classes, resolution, progress=not quiet, listed=listed.get(dataset_dir))
    damaged, keep_damaged = choose_damaged(slices, keep_damaged, begun, say)
    slices = leave_out(slices, damaged)
    groups, unit = group_slices(slices.names, table)
    kept = np.zeros(len(slices), bool)
    if begun is not None:
        kept = np.isin(scans_of(slices.names), (begun["data"]["validation"] or {}).get("scans") or [])
    elif chooses and not validation_dir:
        kept = choose_people(groups, slices.labels)
        if not kept.any():
            say(f"note: fewer than {MIN_PEOPLE} {unit} of a class: none are kept for validation; --validation_dir names others")
    train, validation, scans = slices, None, None
    if kept.any():
        train, validation = slices.only(~kept), slices.only(kept)
        scans = sorted(set(scans_of(validation.names)))
    if validation_dir:
        place = {"flag": "--validation_dir", "listed": listed.get(validation_dir)}
        validation, scans = Slices(validation_dir, classes, resolution, progress=not quiet, **place), None
        if not keep_damaged and (found := find_damaged(validation, scans_of(validation.names))):
            say(f"note: validation slices: {damaged_text(found)}; left out")
            validation = leave_out(validation, found, "--validation_dir")
    prints = np.empty(0, np.int32) if quiet else training_record(train.paths, identify(train.names, table), table)
    record = {"counts": train.counts, "fingerprint": train.fingerprint, "damaged": damaged, "validation": None}
    if validation is None:
        return RunSlices(train, groups, None, None, "none", record, keep_damaged, prints)

    validation = match_shares(validation, train.counts)
    validation_groups, unit = group_slices(validation.names, table)
    people = set(validation_groups)
    text = f"{len(people)} {unit}, {plural(len(validation), 'slice')}"
    if unit != "people":
        text += ", of people who may be trained on, too, as --subjects does not tell"
    say(f"note: {'validation' if validation_dir else 'kept for validation, not trained on'}: {text}")
    if shared := len(people & set(groups[~kept])):
        say(f"warning: {shared} of {len(people)} {unit} of the validation slices are trained on, too, so that they choose badly")
    record["validation"] = {"counts": validation.counts, "fingerprint": validation.fingerprint, "scans": scans}
    return RunSlices(train, groups[~kept], validation, validation_groups, text, record, keep_damaged, prints)


def choose_damaged(slices, keep_damaged, begun, say):
    """({scan: reason} of the damaged scans that a run leaves out, whether it keeps damaged ones); arguments as of `read_slices`."""
    found = find_damaged(slices, scans_of(slices.names))
    if begun is None:
        if found and not keep_damaged:
            say(f"note: {damaged_text(found)}; left out, --keep_damaged True keeps them")
        return ({} if keep_damaged else found), keep_damaged
    left_out, kept = begun["data"]["damaged"], begun["flags"]["keep_damaged"]
    if left_out and keep_damaged:
        text = f"this run was begun without {damaged_text(left_out)}, and continues so"
        say(f"note: {text}; --resume False starts again with them")
    elif found and kept and not keep_damaged:
        say(f"note: this run was begun with them and keeps them: {damaged_text(found)}")
    return left_out, kept


# ---------------------------------------------------------------------------------------------------------------------
# What a conditional model is told of each slice


@torch.no_grad()
def keep_values(state, slices):
    """Keep in the networks of a new TrainingState how the values of its Slices are standardised."""
    values = torch.from_numpy(slices.values)
    mean = values.nanmean(0)
    std = (values - mean).square().nanmean(0).sqrt()
    std[std == 0] = 1
    for part in (state.model["mapping"], state.averaged["mapping"], state.critic):
        part.embedding.mean.copy_(mean)
        part.embedding.std.copy_(std)


@torch.no_grad()
def keep_examples(state, slices):
    """Keep in the mapping networks of a new TrainingState the values of some of its Slices of each class."""
    values, rng = torch.from_numpy(slices.values), np.random.default_rng(0)
    rows = [rng.choice(np.flatnonzero(slices.labels == label), EXAMPLES) for label in range(len(CLASSES))]
    for mapping in (state.model["mapping"], state.averaged["mapping"]):
        mapping.examples.copy_(torch.stack([values[chosen] for chosen in rows]))


# ---------------------------------------------------------------------------------------------------------------------
# Validation people


def group_slices(names, table):
    """(groups str [N] of slices, given their file names: people, else scans, else files; the unit of these in words)."""
    groups, unit = resampling_groups(identify(names, table))
    return np.array([name if group.startswith("slices ") else group for group, name in zip(groups, names)]), unit


def choose_people(groups, labels):
    """Which of N slices are kept for validation, bool [N]: about SHARE of the people, always the same ones.

    groups, labels [N]. The hash of its name gives every person a place in [0, 1), whatever the seed, the class and the others:
    people below SHARE are kept, and in each class the first MIN_KEPT. Nobody if a class has fewer than MIN_PEOPLE.
    """
    place = {group: int(hashlib.sha256(group.encode()).hexdigest()[:12], 16) / 16**12 for group in groups.tolist()}
    chosen = {group for group in place if place[group] < SHARE}
    for label in np.unique(labels):
        people = sorted(set(groups[labels == label].tolist()), key=place.get)
        if len(people) < MIN_PEOPLE:
            return np.zeros(len(groups), bool)
        chosen.update(people[:MIN_KEPT])
    return np.isin(groups, list(chosen))


def match_shares(slices, counts):
    """The slices without some of each class that has too many for the shares of `counts`, {class: n}, evenly spread over it.

    Otherwise classes that the critic scores differently, or that features differ by, would be taken for overfitting, or for a
    distance.
    """
    counts = {name: count for name, count in counts.items() if count}
    share, rows = min(slices.counts[name] / count for name, count in counts.items()), []
    for name, count in counts.items():
        rows.append(spread(np.flatnonzero(slices.labels == CLASSES.index(name)), max(1, round(share * count))))
    chosen = np.zeros(len(slices), bool)
    chosen[np.concatenate(rows)] = True
    return slices.only(chosen)
