"""Validation: sets of the same kind compared with others, and planted critics' scores."""

import math

import numpy as np
import pytest
import torch
from planted import Corner, Discs
from torch import nn

from analysis.distances import kid
from dataset import to_float
from modules import Discriminator, Generator, MappingNetwork
from training import validation
from training.monitor import Alerts
from training.slices import RunSlices
from training.validation import Validation, critic_scores, mean_score


class Drawn(nn.Module):
    """Stands for a generator: returns given slices one after the other, as many as there are style vectors."""

    def __init__(self, pixels):
        super().__init__()
        self.images, self.position = to_float(torch.from_numpy(pixels)), 0

    def forward(self, w, rng=None):
        start, self.position = self.position, self.position + len(w)
        return self.images[start : self.position]


class Mapping(nn.Module):
    """Stands for a mapping network: w = z; remembers its last labels."""

    def forward(self, z, labels=None):
        self.labels = labels
        return z


def drawing(pixels):
    return nn.ModuleDict({"mapping": Mapping(), "generator": Drawn(pixels)})


def run_slices(train, held_out=None, groups=None, chosen=True):
    """RunSlices of sets whose slices are people of their own, unless `groups` of the set that is compared with are given."""
    numbers = [None if part is None else np.arange(len(part)) for part in (train, held_out)]
    if groups is not None:
        numbers[held_out is not None] = groups
    record = {"validation": None if held_out is None or not chosen else {"counts": {}}}
    return RunSlices(train, numbers[0], held_out, numbers[1], "", record, False)


@pytest.fixture
def cheap(monkeypatch):
    """Few slices per validation and features that cost nothing, for tests that are not about them."""
    monkeypatch.setattr(validation, "VALIDATED", 100)
    monkeypatch.setattr(validation, "Features", lambda *_: lambda pixels: torch.as_tensor(pixels[:, ::8, ::8]).flatten(1).float())


def validate(train_corner, test_corner, generated, batch_size=20, classes=0, critic=None, count=130):
    """One row of a validation, and its stand-in networks."""
    held_out = None if test_corner is None else Discs(count, 1, test_corner)
    measure = Validation(run_slices(Discs(count, 0, train_corner), held_out), 8, classes, torch.device("cpu"))
    networks = drawing(generated)
    return measure(networks, critic or Corner(bool(classes)), batch_size), networks


# ---------------------------------------------------------------------------------------------------------------------
# Rows of evaluations.csv


@pytest.mark.slow
def test_validation_tells_slices_of_the_same_kind_from_noise_and_from_a_collapsed_generator(monkeypatch):
    monkeypatch.setattr(validation, "VALIDATED", 60)
    measure = Validation(run_slices(Discs(70, 0, 0), Discs(70, 1, 0)), 8, 0, torch.device("cpu"))
    noise = np.random.default_rng(0).integers(0, 256, (60, 32, 32), dtype=np.uint8)
    alike, far, collapsed = (
        measure(drawing(pixels), Corner(), 20) for pixels in (Discs(60, 2, 0).pixels, noise, Discs(70, 0, 0)[[3] * 60])
    )
    assert tuple(alike) == validation.VALIDATION
    for name in ("kid", "kid_train"):
        assert far[name] > 100 and abs(alike[name]) < 0.03 * far[name], (name, alike[name], far[name])
        assert collapsed[name] > 10 * abs(alike[name])
    assert alike["precision"] > 0.8 and alike["recall"] > 0.8
    assert far["precision"] == far["recall"] == 0
    assert collapsed["precision"] == 1 and collapsed["recall"] < 0.2


@pytest.mark.parametrize("validated", [False, True])
def test_precision_counts_slices_of_other_people(cheap, validated):
    """Of 12 people with eight equal slices each, whose balls would otherwise have no radius."""
    real, generated = Discs(96, 0, 0), Discs(100, 2, 0).pixels
    real.pixels = np.repeat(real.pixels[:12], 8, 0)
    parts = (Discs(96, 5, 0), real) if validated else (real, None)
    by_slice, by_person = (
        Validation(run_slices(*parts, groups), 8, 0, torch.device("cpu"))(drawing(generated), Corner(), 20)
        for groups in (None, np.repeat(np.arange(12), 8))
    )
    assert by_slice["precision"] == 0 and by_person["precision"] > 0.5
    assert by_slice["recall"] == by_person["recall"] > 0.5  # by the balls of generated slices


@pytest.mark.parametrize("chosen", [True, False])
def test_each_kid_compares_with_the_slices_of_its_set(cheap, chosen):
    """kid with validation slices, unless the run was begun before they chose."""
    train, held_out, generated = Discs(90, 0, 0), Discs(80, 1, 200), Discs(100, 2, 50).pixels
    row = Validation(run_slices(train, held_out, chosen=chosen), 8, 0, torch.device("cpu"))(drawing(generated), Corner(), 20)
    for column, slices in (("kid_train", train), ("kid", held_out if chosen else train)):
        real, fake = (torch.from_numpy(pixels[:, ::8, ::8].copy()).flatten(1).double() for pixels in (slices.pixels, generated))
        assert row[column] == pytest.approx(1000 * kid(real, fake), rel=1e-6)  # float32 features, in another order
    assert (row["kid"] == pytest.approx(row["kid_train"], rel=0.01)) != chosen


@pytest.mark.parametrize("test_corner, overfitting", [(250, 0), (50, 1), (150, 0.5), (0, 1.25)])
def test_overfitting_is_where_held_out_scores_lie_between_training_and_generated_ones(cheap, test_corner, overfitting):
    row, _ = validate(250, test_corner, Discs(100, 2, 50).pixels)
    assert row["score_train"] == pytest.approx(250 / 255) and row["score_generated"] == pytest.approx(50 / 255)
    assert row["score_validation"] == pytest.approx(test_corner / 255)
    assert row["overfitting"] == pytest.approx(overfitting, abs=1e-5)


def nan_columns(row):
    return {name for name, value in row.items() if math.isnan(value)}


def test_without_validation_slices_the_training_slices_are_compared_with(cheap):
    row, _ = validate(250, None, Discs(100, 2, 50).pixels)
    assert nan_columns(row) == {"score_validation", "overfitting"} and row["kid"] == row["kid_train"]


def test_overfitting_is_nan_if_the_critic_prefers_generated_slices(cheap):
    row, _ = validate(50, 100, Discs(100, 2, 250).pixels)
    assert nan_columns(row) == {"overfitting"}


def test_precision_and_recall_are_nan_for_fewer_real_slices_than_neighbours(cheap):
    row, _ = validate(250, 250, Discs(100, 2, 50).pixels, count=4)
    assert nan_columns(row) == {"precision", "recall"}


def test_a_generator_that_repeats_two_training_slices_raises_the_alert_for_low_diversity(cheap):
    """Both look real, and most training slices are unlike either."""
    row, _ = validate(250, None, Discs(130, 0, 250)[[3, 4] * 50])
    (line,) = [line for line in Alerts().check(row) if line.startswith("low diversity")]
    assert f"recall {row['recall']:.2f}" in line and row["recall"] < 0.1
    row, _ = validate(250, None, Discs(100, 2, 250).pixels)
    assert Alerts().check(row) == []


@pytest.mark.parametrize("count", [40, 100, 130])  # of training slices, fewer than generated ones, as many, more
def test_generated_slices_have_the_classes_in_the_shares_of_the_training_slices(cheap, count):
    """A critic that scores a class by its number alone finds no overfitting, and no distance from generated slices."""
    critic = Corner(conditional=True)
    row, networks = validate(0, 0, Discs(100, 2, 0).pixels, batch_size=50, classes=2, critic=critic, count=count)
    generated = np.array(critic.labels[:100])
    assert generated.mean() == pytest.approx(1 / 3, abs=0.05) and networks["mapping"].labels.tolist() == generated[50:].tolist()
    assert [row[f"score_{kind}"] for kind in ("generated", "train", "validation")] == [0.5] * 3


def test_validation_uses_the_same_latents_noise_and_slices_every_time(cheap):
    torch.manual_seed(0)
    averaged = nn.ModuleDict({"mapping": MappingNetwork(16, 16), "generator": Generator(32, 128, 8, 16)}).eval()
    critic = Discriminator(32, 128, 8)
    for block in averaged["generator"].blocks:
        for style in block.styles:
            nn.init.ones_(style.noise_strength)
    slices = run_slices(Discs(130, 0, 0), Discs(60, 1, 0))
    measure = Validation(slices, 16, 0, torch.device("cpu"))
    row = pytest.approx(measure(averaged, critic, 25), rel=0, abs=0, nan_ok=True)
    torch.manual_seed(1)  # the state of the global generator must not matter
    assert measure(averaged, critic, 25) == row
    assert Validation(slices, 16, 0, torch.device("cpu"))(averaged, critic, 25) == row


def test_networks_never_see_more_than_a_batch_of_slices(cheap):
    critic = Corner()
    validate(0, 0, Discs(100, 2, 0).pixels, batch_size=30, critic=critic)
    assert critic.sizes == [30] * 9  # three batches of generated, training and held-out slices each


@pytest.mark.parametrize("batch_size, count, sizes", [(30, 100, [30] * 3), (64, 20, [20]), (20, 20, [20])])
def test_critic_scores_full_batches_only_if_there_is_one(batch_size, count, sizes):
    critic, slices = Corner(), Discs(count, 0, 0)
    slices.pixels[:, 0, 0] = np.arange(count)
    scores = critic_scores(critic, slices.pixels, None, batch_size, torch.device("cpu"))
    assert critic.sizes == sizes
    np.testing.assert_allclose(scores, np.arange(sum(sizes)) / 255, atol=1e-6)


def test_mean_score_of_a_conditional_critic_does_not_depend_on_class_proportions():
    labels = torch.tensor([0, 0, 0, 1, 1, 0])
    scores = torch.tensor([5.0, 6.0, 7.0, -2.0, -4.0])  # of full batches: the last slice was left out
    assert mean_score(scores, labels, Corner(conditional=True)) == pytest.approx((6 - 3) / 2)
    assert mean_score(scores, labels, Corner()) == pytest.approx(scores.mean().item())
    assert mean_score(scores[:3], labels, Corner(conditional=True)) == pytest.approx(6)  # one class alone
