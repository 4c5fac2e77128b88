"""Each measure in the presence of the fault that it is meant to detect, the values as a whole, and their floors."""

import math

import numpy as np
import pytest
import torch
from synthetic import blurred, brains, few_modes, increases, noisy

from analysis import distances, quality
from analysis.bootstrap import Interval
from utils import UserError


@pytest.fixture(scope="module")
def extract():
    return distances.Features()


@pytest.fixture(scope="module")
def measured(extract):
    """{name: values against the same 150 real slices}: `half` is drawn from the same distribution, the others have faults."""
    real, half = brains(150, 0), brains(150, 1)
    sets = {
        "half": half,
        "blur1": blurred(half, 1),
        "blur3": blurred(half, 3),
        "noise25": noisy(half, 25),
        "noise60": noisy(half, 60),
        "modes30": few_modes(half, 30),
        "modes5": few_modes(half, 5),
    }
    described = {name: quality.describe(images, extract) for name, images in (sets | {"copy": real}).items()}
    return {name: quality.compare_sets(described["copy"], generated, 150, 150) for name, generated in described.items()}


@pytest.mark.slow
def test_two_draws_of_one_distribution_have_no_distance(measured):
    half = measured["half"]
    assert abs(half["kid_x1000"]) < 3 * half["kid_x1000_error"]
    assert half["precision"] > 0.85 and half["recall"] > 0.85 and half["coverage"] > 0.9
    assert 0.8 < half["density"] < 1.2
    assert half["spectrum_db"] < 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    "metric, ladders",
    [
        ("kid_x1000", (("half", "blur1", "blur3"), ("half", "noise25", "noise60"), ("half", "modes30", "modes5"))),
        ("swd_x1000", (("half", "blur1", "blur3"), ("half", "noise25", "noise60"))),
        ("swd_x1000_32", (("half", "blur1", "blur3"), ("half", "noise25", "noise60"))),
        ("spectrum_db", (("half", "blur1", "blur3"), ("half", "noise25", "noise60"))),
    ],
)
def test_distances_grow_with_the_fault(measured, metric, ladders):
    for ladder in ladders:
        values = [measured[name][metric] for name in ladder]
        assert increases(*values) and values[-1] > 2 * values[0], (ladder, values)


@pytest.mark.slow
def test_precision_and_density_detect_bad_images_but_no_missing_modes(measured):
    for ladder in (("blur3", "blur1", "half"), ("noise60", "noise25", "half")):
        assert increases(*(measured[name]["density"] for name in ladder)), ladder
    assert measured["noise60"]["precision"] < 0.5 * measured["half"]["precision"]
    assert measured["modes30"]["precision"] > 0.8


@pytest.mark.slow
def test_recall_and_coverage_detect_missing_modes(measured):
    for metric in ("recall", "coverage"):
        assert increases(*(measured[name][metric] for name in ("modes5", "modes30", "half"))), metric
    assert measured["modes5"]["recall"] < 0.1


@pytest.mark.slow
def test_copied_set_has_no_distance(measured):
    copy = measured["copy"]
    assert copy["swd_x1000"] == 0 and copy["spectrum_db"] == 0 and copy["coverage"] == copy["precision"] == 1


@pytest.mark.slow
def test_measure_quality_gives_finite_floats_and_the_same_ones_again():
    real, fake, train = brains(30, 1), brains(24, 2), brains(40, 0)
    values = quality.measure_quality(real, fake, train).values
    assert all(type(value) is float and math.isfinite(value) for value in values.values())
    assert {"kid_x1000", "precision", "swd_x1000_32", "swd_x1000_16", "floor_kid_x1000", "memorised"} <= set(values)
    assert values["memorised_low"] <= values["memorised"] <= values["memorised_high"]
    assert values["swd_x1000"] == pytest.approx((values["swd_x1000_32"] + values["swd_x1000_16"]) / 2)
    assert values == quality.measure_quality(real, fake, train).values
    assert "memorised" not in quality.measure_quality(real, fake).values


@pytest.mark.slow
def test_measure_quality_has_no_floor_for_few_images_and_refuses_other_sizes():
    real, fake = brains(30, 1), brains(24, 2)
    assert "floor_kid_x1000" not in quality.measure_quality(real[:8], fake).values
    for images, message in ((brains(24, 2, side=64), "not of 32 and 64 pixels"), (fake[:5], "5 generated slices are too few")):
        with pytest.raises(UserError, match=message):
            quality.measure_quality(real, images)


def described(seed):
    """A Description of 20 images by random numbers: features, patches of two bands and power."""
    rng = torch.Generator().manual_seed(seed)
    features, power = torch.randn(20, 8, generator=rng) + 0.2 * seed, torch.rand(20, 16, generator=rng).double() * (1 + seed)
    power[:, :8] /= 1 + 7 * seed  # weaker at low frequencies, stronger at high ones
    patches = [torch.randn(20, 128, 49, generator=rng) ** (1 + 2 * seed) for _ in range(2)]
    return quality.Description(features, patches, power)


def test_compare_sets_gives_what_each_distance_gives():
    real, fake = described(0), described(1)
    values = quality.compare_sets(real, fake, 20, 12)
    standard = distances.standardise(real.features, fake.features)
    assert (values["kid_x1000"], values["kid_x1000_error"]) == tuple(1000 * x for x in distances.polynomial_mmd(*standard))
    people = np.repeat(np.arange(5), 4)
    error = 1000 * distances.polynomial_mmd(*standard, x_groups=people)[1]
    assert quality.compare_sets(real._replace(groups=people), fake, 20, 12)["kid_x1000_error"] == error != values["kid_x1000_error"]
    neighbourhoods = distances.prdc(real.features, fake.features)
    assert {name: values[name] for name in neighbourhoods} == neighbourhoods
    by_people = quality.compare_sets(real._replace(groups=people), fake, 20, 12)
    expected = distances.prdc(real.features, fake.features, real_groups=people)
    assert {name: by_people[name] for name in expected} == expected != neighbourhoods
    decibels = [10 * np.log10(of_set.power.numpy().mean(0) + (1 / 127.5) ** 2 / 12) for of_set in (real, fake)]
    assert values["spectrum_db"] == pytest.approx(np.abs(decibels[0] - decibels[1]).mean())
    rng = np.random.default_rng(0)
    bands = [
        1000 * distances.sliced_wasserstein(*(of_set.patches[i][:12].flatten(0, 1) for of_set in (real, fake)), rng) for i in (0, 1)
    ]
    assert [values["swd_x1000_32"], values["swd_x1000_16"]] == bands and values["swd_x1000"] == pytest.approx(sum(bands) / 2)


def test_measure_quality_searches_for_copies_of_training_images_among_generated_ones(monkeypatch):
    asked, distant = [], torch.tensor([0.5, 0.7, 0.9])

    def memorisation(*images_and_progress):
        asked.append(images_and_progress[:3])
        assert images_and_progress[4] == list("aabbccdd")
        return distances.Memorisation(Interval(0.25, 0.1, 0.5), distant, 2 * distant, None, None)

    monkeypatch.setattr(quality, "memorisation", memorisation)
    images = real, fake, train = brains(8, 1), brains(7, 2), brains(6, 0)
    values = quality.measure_quality(real, fake, train, groups=list("aabbccdd")).values
    assert all(a is b for a, b in zip(*asked, images))
    assert (values["memorised"], values["memorised_low"], values["memorised_high"]) == (0.25, 0.1, 0.5)
    assert (values["nearest_fake"], values["floor_nearest_fake"]) == pytest.approx((0.7, 1.4))


@pytest.mark.slow
def test_set_sizes_that_each_distance_is_measured_at(monkeypatch):
    """Those that grow or fall with size use as many of both sets, and the sliced Wasserstein distance as many as its floor."""
    seen = {"prdc": [], "sliced_wasserstein": []}
    for name, calls in seen.items():
        measure = getattr(quality, name)
        monkeypatch.setattr(
            quality, name, lambda a, b, *rest, calls=calls, measure=measure: calls.append((len(a), len(b))) or measure(a, b, *rest)
        )
    quality.measure_quality(brains(30, 1), brains(25, 2))
    assert seen["prdc"] == [(12, 12)] * 2  # the second time for the floor: two halves of 24 real images
    assert seen["sliced_wasserstein"] == [(12 * distances.PATCHES,) * 2] * 4  # two bands each


def test_share_lost_is_the_way_of_the_worst_from_its_floor_to_nothing():
    floor = {"precision": 0.8, "recall": 0.9, "coverage": 0.5}
    assert quality.share_lost(floor, floor) == 0 and quality.share_lost(dict.fromkeys(floor, 0.0), floor) == 1
    assert quality.share_lost({"precision": 0.9, "recall": 0.6, "coverage": 0.4}, floor) == pytest.approx(1 / 3)  # recall
    for values, reference in ((floor | {"recall": math.nan}, floor), (floor, floor | {"precision": 0.0})):
        assert math.isnan(quality.share_lost(values, reference))


def test_halves_are_the_even_and_the_odd_images(extract):
    images = brains(11, 0)
    even, odd = quality.halves(quality.describe(images, extract), 5)
    for half, start in ((even, 0), (odd, 1)):
        np.testing.assert_allclose(half.power, distances.radial_power(distances.as_batch(images[start:10:2])), rtol=1e-4)
        np.testing.assert_allclose(half.features, extract(images[start:10:2]), atol=1e-5)
        assert [band.shape for band in half.patches] == [(5, 128, 49)] * 2


def test_halves_share_no_group_and_are_equally_large():
    description, groups = described(0), np.array(list("abcabcabcabcabcddddd"))
    first, second = quality.halves(description._replace(groups=groups), 8)
    index = {tuple(row): name for row, name in zip(description.features.tolist(), groups)}
    people = [[index[tuple(row)] for row in half.features.tolist()] for half in (first, second)]
    assert people == [first.groups.tolist(), second.groups.tolist()]
    assert not set(people[0]) & set(people[1]) and [len(names) for names in people] == [8, 8]
    assert all(len(part) == 8 for half in (first, second) for part in (half.power, *half.patches))
    assert [len(half.power) for half in quality.halves(description._replace(groups=np.repeat("a", 20)), 10)] == [0, 0]


@pytest.mark.slow
def test_floor_is_that_of_other_people():
    """Two people who differ: with slices of both in both halves, the floor would be near zero."""
    two = np.concatenate([brains(1, 1).repeat(20, 0), brains(1, 2).repeat(20, 0)])
    real, people = noisy(two, 3)[np.arange(40).reshape(2, 20).T.ravel()], np.tile(["a", "b"], 20)
    mixed, apart = (
        quality.measure_quality(real, brains(40, 3), groups=groups).values for groups in (np.repeat(range(20), 2), people)
    )
    assert mixed["floor_precision"] > 0.5 and np.isnan(apart["floor_precision"])  # no one else in a half that gives a radius
    assert apart["floor_kid_x1000"] > 100 > mixed["floor_kid_x1000"]
    alone = quality.measure_quality(real, brains(40, 3), groups=["a"] * 40).values
    assert "floor_kid_x1000" not in alone and np.isnan(alone["kid_x1000_error"])


@pytest.mark.slow
def test_with_a_training_set_the_floor_is_that_of_training_slices():
    """Of the same size as the generated set, and with the training people as groups."""
    real, fake, train = brains(30, 1), brains(24, 2), brains(40, 0)
    people, train_people = np.repeat(np.arange(15), 2), np.repeat(np.arange(20), 2)
    found = quality.measure_quality(real, fake, train, groups=people, train_groups=train_people)
    rows = np.random.default_rng(0).permutation(40)[:24]
    again = quality.measure_quality(real, train[rows], groups=people)
    assert found.floor == "training slices" and again.floor == "real halves"
    for name in ("kid_x1000", "swd_x1000_32", "spectrum_db"):
        assert found.values[f"floor_{name}"] == pytest.approx(again.values[name], rel=1e-9), name
    drawn = quality.describe(train[rows], distances.Features())
    expected = distances.prdc(found.real.features[:24], drawn.features, 5, people[:24], train_people[rows])
    assert {name: found.values[f"floor_{name}"] for name in expected} == expected
    assert found.values["floor_memorised"] == distances.expected_share(30)
