"""The slices of a run: people kept for validation, always the same; damaged scans; and what a resumed run keeps to."""

import csv
import json

import numpy as np
import pytest
import torch
from conftest import read_table, refusal, start
from planted import Corner
from synthetic import brains, draw_heads, noise, save

from data.subjects import find_subjects
from dataset import Slices, batches
from training import slices as slices_module
from training import validation
from training.augment import OVERFITTING_TARGET, AugmentationStrength
from training.slices import MIN_KEPT, MIN_PEOPLE, SHARE, choose_people, match_shares, read_slices
from training.validation import critic_scores

# ---------------------------------------------------------------------------------------------------------------------
# Which people


def people(count, first=0):
    return np.array([f"people {i:04d}" for i in range(first, first + count)])


def kept_of(groups, labels=None):
    return set(groups[choose_people(groups, np.zeros(len(groups)) if labels is None else labels)])


def test_about_a_tenth_of_the_people_are_kept_whole():
    groups = np.repeat(people(2000), 3)
    chosen = choose_people(groups, np.arange(6000) % 2)
    assert chosen.mean() == pytest.approx(SHARE, abs=5 * np.sqrt(SHARE * (1 - SHARE) / 2000)) and SHARE == 0.1
    assert all(len(set(part)) == 1 for part in chosen.reshape(-1, 3))


def test_people_stay_where_they_are_whatever_the_order_the_class_and_the_other_people():
    groups, rng = people(300), np.random.default_rng(0)
    kept = kept_of(groups)
    assert kept == kept_of(rng.permutation(groups)) == kept_of(groups, rng.integers(0, 2, 300))
    assert kept_of(people(900)) & set(groups) == kept and len(kept_of(people(900))) > len(kept)
    assert kept_of(groups[:200]) == kept & set(groups[:200])


def test_each_class_keeps_at_least_two_people_and_none_if_one_has_fewer_than_ten():
    for first in range(0, 500, 10):
        groups, labels = people(20, first), np.repeat([0, 1], 10)
        kept = choose_people(groups, labels)
        assert kept[:10].sum() >= MIN_KEPT == 2 and kept[10:].sum() >= MIN_KEPT
        assert not choose_people(groups[1:], labels[1:]).any() and MIN_PEOPLE == 10


def test_someone_with_slices_of_both_classes_is_kept_with_all_of_them():
    groups, labels = np.tile(people(40), 2), np.repeat([0, 1], 40)
    kept = choose_people(groups, labels)
    assert (kept[:40] == kept[40:]).all() and kept.any()


# ---------------------------------------------------------------------------------------------------------------------
# Shares of the classes


class Labelled:
    """Stands for Slices of so many AD and NC: a slice of AD is white, one of NC black, and both are grey in the corner."""

    resolution = 8

    def __init__(self, ad, nc):
        self.labels = np.repeat([0, 1], [ad, nc])
        self.counts = {"AD": ad, "NC": nc}

    def told(self, indices=slice(None)):
        return self.labels[indices]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, rows):
        return np.where(self.labels[rows] == 0, 255, 0).astype(np.uint8)[:, None, None] * np.ones((1, 8, 8), np.uint8)

    def only(self, chosen):
        return Labelled(*((self.labels[chosen] == label).sum() for label in (0, 1)))


@pytest.mark.parametrize(
    "before, shares, after", [((50, 50), (9, 1), (50, 6)), ((9, 90), (100, 100), (9, 9)), ((8, 4), (16, 8), (8, 4))]
)
def test_validation_slices_have_the_classes_in_the_shares_of_training(before, shares, after):
    matched = match_shares(Labelled(*before), dict(zip(("AD", "NC"), shares)))
    assert tuple(matched.counts.values()) == after


def overfitting(train_slices, held_out, steps=400, batch_size=8):
    """What the controller of --augment ada takes from a critic whose score is a slice's grey level, where generated slices score 1
    lower: the running mean of (training - held-out) scores, over that of (training - generated)."""
    ada, critic = AugmentationStrength("ada"), Corner()
    streams = [batches(part, batch_size, "cpu", seed) for seed, part in enumerate((train_slices, held_out))]
    for _ in range(steps):
        real, other = (critic(next(stream)[0]).mean() for stream in streams)
        ada.update({"separation": torch.tensor(0.5), "wasserstein": torch.tensor(1.0), "held_out": real - other}, batch_size)
    return (ada.gap_held_out / ada.gap_generated).item(), ada.p.item()


def test_classes_of_other_shares_are_no_overfitting():
    """Nine AD for each NC in training, half and half among the validation slices, a critic that scores AD 1 and NC 0: as they are,
    the means differ by 0.4 without any overfitting, and nearly move p, which half of the way would do."""
    train_slices, held_out = Labelled(90, 10), Labelled(50, 50)
    found, _ = overfitting(train_slices, held_out)
    assert found == pytest.approx(0.4, abs=0.1)
    found, p = overfitting(train_slices, match_shares(held_out, train_slices.counts))
    assert found == pytest.approx(0, abs=0.1) and p == 0 and OVERFITTING_TARGET == 0.5
    scores = critic_scores(Corner(), match_shares(held_out, train_slices.counts)[np.arange(56)], None, 56, "cpu")
    assert scores.mean().item() == pytest.approx(0.9, abs=0.02)


# ---------------------------------------------------------------------------------------------------------------------
# Runs


@pytest.fixture
def data(tmp_path):
    """AD_NC/train with 12 people of AD and 14 of NC, two scans of one slice each, and people.csv, which tells them."""
    rows = []
    for label, first, count in (("AD", 100, 24), ("NC", 200, 28)):
        for i, image in enumerate(brains(count, first, 32)):
            save(tmp_path / f"AD_NC/train/{label}/{first + i}_0.png", image)
            rows.append((first + i, f"{label}{i // 2:02d}"))
    with open(tmp_path / "people.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image", "subject"), *rows])
    return str(tmp_path / "AD_NC/train")


@pytest.fixture
def others(tmp_path):
    """A folder with four AD and four NC slices of other scans."""
    for label, first in (("AD", 500), ("NC", 600)):
        for i, image in enumerate(brains(4, first, 32)):
            save(tmp_path / f"others/{label}/{first + i}_0.png", image)
    return str(tmp_path / "others")


@pytest.fixture
def cheap(monkeypatch, unplotted):
    monkeypatch.setattr(validation, "VALIDATED", 16)
    monkeypatch.setattr(validation, "Features", lambda *_: lambda pixels: torch.as_tensor(pixels[:, ::8, ::8]).flatten(1).float())


def config_of(folder):
    return json.loads((folder / "AD/config.json").read_text())


def scans(slices):
    return {name.split("/")[1].split("_")[0] for name in slices.names}


def test_people_are_kept_for_validation_by_the_table_and_scans_without_one(data, tmp_path):
    table = find_subjects(str(tmp_path / "people.csv"), data, quiet=True)
    found = read_slices(data, "all", 32, table=table, quiet=True)
    both = [{table[scan].person for scan in scans(part)} for part in (found.train, found.validation)]
    assert not both[0] & both[1] and len(both[0] | both[1]) == 26
    assert set(found.groups) == {f"people {person}" for person in both[0]} and len(found.groups) == len(found.train)
    assert found.validation_text == f"{len(both[1])} people, {len(found.validation)} slices"
    by_scan = read_slices(data, "all", 32, quiet=True)
    assert (
        not scans(by_scan.train) & scans(by_scan.validation) and "of people who may be trained on, too" in by_scan.validation_text
    )


def test_a_run_that_chooses_nothing_trains_on_everybody(data, tmp_path, unplotted, capsys):
    everybody = Slices(data, "AD", 32)
    assert read_slices(data, "AD", 32, chooses=False).train.fingerprint == everybody.fingerprint
    for flags, chooses in (([], False), (["--augment", "ada"], True), (["--eval_every", 1], True)):
        assert start(data, tmp_path, "--dry_run", *flags) == 0
        captured = capsys.readouterr()
        assert ("validation  none\n" in captured.out) != chooses and ("kept for validation, not" in captured.err) == chooses
        assert ("images      24 (24 AD)" in captured.out) != chooses


@pytest.mark.slow
def test_a_resumed_run_keeps_the_same_people_without_its_table(data, tmp_path, cheap, capsys):
    assert start(data, tmp_path, "--epochs", 1, "--eval_every", 1, "--subjects", tmp_path / "people.csv") == 0
    record = config_of(tmp_path)["data"]
    assert record["counts"]["AD"] + len(record["validation"]["scans"]) == 24 and len(record["validation"]["scans"]) >= 4
    for flags in (["--eval_every", 1], ["--eval_every", 0], ["--eval_every", 1, "--seed", 5]):
        assert start(data, tmp_path, "--epochs", 2, *flags) == 0
        assert "holds another run" not in capsys.readouterr().err
    assert config_of(tmp_path)["data"] == record
    rows = read_table(tmp_path / "AD/evaluations.csv")
    assert len(rows) == 2 and all(np.isfinite([row["kid"], row["kid_train"], row["score_validation"]]).all() for row in rows)
    assert all(row["kid"] != row["kid_train"] for row in rows)
    best = torch.load(tmp_path / "AD/best.pt", weights_only=True)
    assert best["images"] == min(rows, key=lambda row: row["kid"])["images"]


@pytest.mark.slow
def test_a_folder_of_validation_slices_is_kept_and_no_other_taken(data, others, tmp_path, cheap, capsys):
    flags = ["--epochs", 1, "--eval_every", 1]
    assert start(data, tmp_path, *flags, "--validation_dir", others) == 0
    record = config_of(tmp_path)["data"]
    assert record["counts"] == {"AD": 24} and record["validation"]["counts"] == {"AD": 4} and record["validation"]["scans"] is None
    assert start(data, tmp_path, *flags, "--dry_run") == 0
    assert "validation  4 scans, 4 slices" in capsys.readouterr().out
    with pytest.raises(
        Exception, match=r"differs in --validation_dir .*train \(its slices differ from those of .*others: .*'AD': 4"
    ):
        start(data, tmp_path, *flags, "--validation_dir", data)


def test_people_of_the_validation_folder_who_are_trained_on_are_warned_of(data, others, tmp_path, capsys):
    table = find_subjects(str(tmp_path / "people.csv"), data, quiet=True)
    read_slices(data, "AD", 32, others, table=table)
    assert "warning" not in capsys.readouterr().err
    save(tmp_path / "others/AD/101_7.png", brains(1, 1, 32)[0])
    read_slices(data, "AD", 32, others, table=table)
    expected = "warning: 1 of 5 people and scans of the validation slices are trained on, too"
    assert capsys.readouterr().err.count(expected) == 1


def test_too_few_people_are_all_trained_on_with_one_note(slices_dir, capsys):
    found = read_slices(slices_dir, "all", 32)  # 9 scans of AD
    assert found.validation is None and len(found.train) == 20 and found.record["validation"] is None
    assert "note: fewer than 10 scans of a class: none are kept for validation" in capsys.readouterr().err
    assert read_slices(slices_dir, "NC", 32).validation.counts["NC"] >= 2


def test_bad_validation_folders_are_refused_by_name(data, tmp_path):
    (tmp_path / "empty/AD").mkdir(parents=True)
    for folder in ("empty", "nowhere"):
        assert refusal(lambda flags: read_slices(data, "AD", 32, *flags), tmp_path / folder).startswith("--validation_dir")


# ---------------------------------------------------------------------------------------------------------------------
# Damaged scans

DAMAGED = "note: 1 damaged scan: 102, noise (neighbouring pixels correlate at "


@pytest.fixture
def damaged(tmp_path):
    """damaged/train/AD with six scans of two slices, of which 102 is noise; damaged/test/AD with six, of which 302 is black."""
    for split, first in (("train", 100), ("test", 300)):
        for i, image in enumerate(brains(12, first, 32)):
            spoilt = noise(32, 32, i) if split == "train" else 0 * image
            save(tmp_path / f"damaged/{split}/AD/{first + i // 2}_{i % 2}.png", spoilt if i // 2 == 2 else image)
    return str(tmp_path / "damaged/train")


def notes(folder, run_folder, epochs, capsys, *flags):
    """Train to this epoch; returns the lines on stderr that are notes."""
    assert start(folder, run_folder, "--epochs", epochs, *flags) == 0
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]


def test_a_new_run_leaves_them_out_and_names_them(damaged, tmp_path, unplotted, capsys):
    (note,) = notes(damaged, tmp_path, 1, capsys)
    assert note.startswith(DAMAGED) and note.endswith("; left out, --keep_damaged True keeps them")
    kept = config_of(tmp_path)["data"]
    assert kept["counts"] == {"AD": 10} and list(kept["damaged"]) == ["102"]
    assert notes(damaged, tmp_path, 2, capsys) == [] and config_of(tmp_path)["data"] == kept  # resumed in silence


def test_a_run_begun_with_all_scans_keeps_them_all(damaged, tmp_path, unplotted, capsys):
    assert notes(damaged, tmp_path, 1, capsys, "--keep_damaged") == []
    everything = {"counts": {"AD": 12}, "fingerprint": Slices(damaged, "AD", 32).fingerprint, "damaged": {}, "validation": None}
    assert config_of(tmp_path)["data"] == everything
    (note,) = notes(damaged, tmp_path, 2, capsys)
    assert note.startswith("note: this run was begun with them and keeps them: 1 damaged scan: 102, noise")


def test_a_run_resumes_without_the_scans_that_it_left_out_whatever_is_found_now(damaged, tmp_path, unplotted, capsys, monkeypatch):
    notes(damaged, tmp_path, 1, capsys)
    monkeypatch.setattr(slices_module, "find_damaged", lambda *_: {"104": "another rule"})
    assert notes(damaged, tmp_path, 2, capsys) == []
    (note,) = notes(damaged, tmp_path, 3, capsys, "--keep_damaged")
    assert note.startswith("note: this run was begun without 1 damaged scan: 102") and "--resume False" in note
    (note,) = notes(damaged, tmp_path, 1, capsys, "--resume", "False")
    assert "104, another rule; left out" in note and list(config_of(tmp_path)["data"]["damaged"]) == ["104"]


@pytest.mark.parametrize("keep, count", [(False, 10), (True, 12)])
def test_validation_slices_are_judged_likewise(damaged, tmp_path, keep, count, capsys):
    found = read_slices(damaged, "AD", 32, str(tmp_path / "damaged/test"), keep)
    assert len(found.validation) == count
    assert ("note: validation slices: 1 damaged scan: 302, black" in capsys.readouterr().err) != keep


def test_mirroring_sagittal_slices_is_warned_of(tmp_path, unplotted, capsys):
    for i, image in enumerate(draw_heads(10, False, side=32)):
        save(tmp_path / f"AD_NC/train/AD/{100 + i}_0.png", image)
    for mirror, warned in (("False", 0), ("True", 1)):
        assert start(str(tmp_path / "AD_NC/train"), tmp_path / mirror, "--epochs", 1, "--mirror", mirror) == 0
        lines = [
            line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: --mirror True: 100% of the slices")
        ]
        assert len(lines) == warned
