"""Damaged scans among sound ones: each kind is found and named, sound sets raise no alarm, and what is left out is left out."""

import numpy as np
import pytest
from PIL import Image
from synthetic import brains, noise, save

from data.damage import damaged_text, find_damaged, leave_out, scans_of, slice_statistics, touches_upper_edge
from data.phantom_anatomy import VIEWS, draw_subject, render, slice_tissue
from dataset import Slices

SCANS, PER_SCAN = 12, 6
SOUND = brains(SCANS * PER_SCAN, 0, 64)
IDS = np.repeat([str(100 + i) for i in range(SCANS)], PER_SCAN)


def with_scan(change, scan="103"):
    """The sound slices, but for one scan whose slices are change(float [n, 64, 64])."""
    slices = SOUND.copy()
    slices[scan == IDS] = np.clip(change(slices[scan == IDS].astype(float)), 0, 255)
    return slices


def smaller(x, side):
    """The slices at `side` x `side` pixels, in the middle of black ones."""
    small = np.zeros_like(x)
    first = (64 - side) // 2
    for image, reduced in zip(x, small):
        reduced[first : first + side, first : first + side] = Image.fromarray(image.astype(np.uint8)).resize((side, side))
    return small


def uniform(x, high=256):
    return np.stack([noise(64, 64, i, high) for i in range(len(x))])


DAMAGE = {
    "black": (lambda x: 0 * x, "black (mean grey level 0.0, the median scan's "),
    "nearly black": (lambda x: 0.02 * x, "black ("),
    "dark": (lambda x: 0.2 * x, "far darker than the others ("),
    "noise": (uniform, "noise (neighbouring pixels correlate at "),
    "dark noise": (lambda x: uniform(x, 24), "far darker than the others ("),
    "noise where the brain was": (lambda x: uniform(x) * (x > 40), "noise ("),
    "noise, resampled once": (lambda x: 128 + 2 * (uniform(x) - 128.0 + np.roll(uniform(x), 1, 2) - 128) / 4, "noise ("),
    "a bright pixel, the rest dark": (lambda x: np.where(np.indices(x.shape).sum(0) == 80, 255, 0.1 * x), "far darker"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_scan_is_found_and_named(kind):
    change, reason = DAMAGE[kind]
    found = find_damaged(with_scan(change), IDS)
    assert list(found) == ["103"] and found["103"].startswith(reason), found


def test_dark_noise_has_both_reasons():
    reason = find_damaged(with_scan(lambda x: uniform(x, 24)), IDS)["103"]
    assert " and noise (neighbouring pixels correlate at " in reason and reason.startswith("far darker")


SETS = {
    "sound": SOUND,
    "half as bright": with_scan(lambda x: 0.5 * x),
    "twice as bright": with_scan(lambda x: 2 * x),
    "one black slice of a scan": np.where((np.arange(len(SOUND)) == 20)[:, None, None], 0, SOUND),
    "a small head": with_scan(lambda x: smaller(x, 42)),
    "any brightness": np.clip(SOUND * np.geomspace(0.1, 1, SCANS).repeat(PER_SCAN)[:, None, None], 0, 255).astype(np.uint8),
    "all noise": uniform(SOUND),
    "all black": np.zeros_like(SOUND),
    "all grey": np.full_like(SOUND, 90),
}


@pytest.mark.parametrize("name", SETS)
def test_no_alarm_without_a_scan_that_stands_out(name):
    assert find_damaged(SETS[name], IDS) == {}


def test_single_slices_of_the_tip_of_the_brain_are_no_damage():
    small = with_scan(lambda x: smaller(x, 16))  # a sixteenth of the area
    singles = [f"{scan} {i}" for i, scan in enumerate(IDS)]
    assert find_damaged(small, singles) == {}
    dark = find_damaged(with_scan(lambda x: 0.1 * x), singles)
    assert list(dark) == [name for name in singles if name.startswith("103")]


def test_two_scans_cannot_be_told_apart():
    slices = np.concatenate([SOUND[:6], 0 * SOUND[:6]])
    assert find_damaged(slices, [1] * 6 + [2] * 6) == {} == find_damaged(slices[:0], [])


def test_each_resolution_gives_the_same_answer():
    change = DAMAGE["noise"][0]
    for side in (32, 128):
        slices = brains(SCANS * PER_SCAN, 0, side)
        slices[IDS == "103"] = np.stack([noise(side, side, i) for i in range(PER_SCAN)])
        assert list(find_damaged(slices, IDS)) == list(find_damaged(with_scan(change), IDS)) == ["103"]


def test_statistics_of_slices_whose_values_are_known():
    half = np.zeros((32, 32), np.uint8)
    half[:, 16:] = np.arange(32)[:, None] * 4 + 100  # rows of equal pixels: neighbours in a row are equal, below 4 brighter
    grey, level, correlation = slice_statistics(np.stack([half, half * 0, noise(32, 32)])).T
    values = np.arange(32) * 4.0 + 100
    a = np.concatenate([np.repeat(values[1:], 16), np.repeat(values, 15)])
    b = np.concatenate([np.repeat(values[:-1], 16), np.repeat(values, 15)])
    assert grey[0] == pytest.approx(values.mean() / 2) and level[0] == pytest.approx(values.mean())
    assert correlation[0] == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-5)
    assert grey[1] == 0 and np.isnan(correlation[1]) and abs(correlation[2]) < 0.1


@pytest.mark.parametrize("view", VIEWS)
def test_heads_at_the_upper_edge_are_told_from_all_others(view):
    """Phantoms as they are, and moved upwards until a part is cut off; a bright background, noise and black are no heads."""
    for number in range(3):
        params = draw_subject(np.random.default_rng([3, number]), "AD")
        image = render(params, slice_tissue(params, 6.0, view), 6.0, np.random.default_rng(0), view)
        top = np.flatnonzero((image > 60).sum(1) > 8)[0]
        assert not touches_upper_edge(image) and not touches_upper_edge(255 - image)
        assert not touches_upper_edge(np.roll(image, 3 - top, 0)) and touches_upper_edge(image[top + 3 :])
    assert not any(map(touches_upper_edge, (noise(64, 64), noise(64, 64, high=4), 0 * image, 0 * image + 90)))


def test_scans_are_named_by_their_files():
    assert scans_of(["AD/218391_78.jpeg", "NC/I0218392_1.png", "NC/other.png"]) == ["218391", "218392", "NC/other.png"]
    assert damaged_text({"1": "black"}) == "1 damaged scan: 1, black" and damaged_text(dict.fromkeys("12", "x")).startswith(
        "2 damaged scans"
    )


@pytest.fixture
def folder(tmp_path):
    """AD_NC with six scans of three slices in each class; one AD scan is noise."""
    for name, first in (("AD", 100), ("NC", 200)):
        for i, image in enumerate(brains(18, first, 32)):
            save(
                tmp_path / f"AD_NC/{name}/{first + i // 3}_{i % 3}.png", noise(32, 32, i) if (name, i // 3) == ("AD", 2) else image
            )
    return tmp_path / "AD_NC"


def test_what_is_left_out_changes_names_counts_pixels_and_fingerprint(folder):
    slices = Slices(str(folder), resolution=32, progress=False)
    reasons = find_damaged(slices, scans_of(slices.names))
    part = leave_out(slices, reasons)
    assert list(reasons) == ["102"] and part.counts == {"AD": 15, "NC": 18} and len(part) == 33
    assert [name for name in slices.names if name not in part.names] == [f"AD/102_{i}.png" for i in range(3)]
    rows = [slices.names.index(name) for name in part.names]
    assert (part[np.arange(33)] == slices[np.array(rows)]).all() and (part.labels == slices.labels[rows]).all()
    assert slices.counts == {"AD": 18, "NC": 18} and part.fingerprint != slices.fingerprint
    for i in range(3):
        (folder / f"AD/102_{i}.png").unlink()
    assert Slices(str(folder), resolution=32, progress=False).fingerprint == part.fingerprint
    assert leave_out(slices, {}) is slices
