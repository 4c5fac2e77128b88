"""Views and mirroring, on drawn heads whose symmetry is known, and on what is no head."""

import numpy as np
import pytest
from PIL import Image
from synthetic import brains, draw_heads, noise

from data.view import SYMMETRIC, find_view, fit_to_frame, likeness, mirror_warning

AXIAL, SAGITTAL = draw_heads(24, True), draw_heads(24, False)


def clip(values):
    return np.clip(values, 0, 255).round().astype(np.uint8)


def shaded(slices):
    return clip(slices * np.linspace(0.6, 1.4, slices.shape[2]))


def shifted(slices):
    small = np.pad(slices[:, ::2, ::2], ((0, 0), (4, 28), (24, 8)))  # half as large, near the upper right
    return small


def tilted(slices):
    return np.stack([np.asarray(Image.fromarray(image).rotate(10, Image.Resampling.BILINEAR)) for image in slices])


CHANGES = {
    "as drawn": lambda x: x,
    "on its side": lambda x: np.ascontiguousarray(np.rot90(x, 1, (1, 2))),
    "upside down": lambda x: x[:, ::-1],
    "shaded": shaded,
    "smaller and shifted": shifted,
    "tilted": tilted,
    "dark": lambda x: x // 12,
    "bright": lambda x: clip(x * 1.6),
    "noisy": lambda x: clip(np.hypot(x + np.random.default_rng(0).normal(0, 8, x.shape), 8)),
    "few": lambda x: x[:5],
    "a third black": lambda x: x * (np.arange(len(x)) % 3 > 0)[:, None, None].astype(np.uint8),
}


@pytest.mark.parametrize("change", CHANGES)
def test_axial_and_sagittal_heads_are_told_apart(change):
    axial, sagittal = (find_view(CHANGES[change](slices)) for slices in (AXIAL, SAGITTAL))
    assert axial.name == "axial" and axial.symmetric > 0.85, axial
    assert sagittal.name == "sagittal" and sagittal.symmetric < 0.15, sagittal
    assert axial.mean_slice > sagittal.mean_slice
    assert (axial.upright > 0.8) == (change != "on its side")


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_a_mixed_set_is_called_mixed_in_any_order(share):
    count = int(share * 24)
    both = np.concatenate([AXIAL[:count], SAGITTAL[count:]])
    for order in (np.arange(24), np.random.default_rng(0).permutation(24)):
        view = find_view(both[order])
        assert view.name == "mixed" and abs(view.symmetric - share) < 0.1, view


def test_one_slice_of_another_view_makes_no_mixed_set():
    assert find_view(np.concatenate([AXIAL[:1], SAGITTAL])).name == "sagittal"
    assert find_view(np.concatenate([AXIAL, SAGITTAL[:1]])).name == "axial"


def discs(count=20):
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    rng = np.random.default_rng(0)
    radii, greys = rng.uniform(0.3, 0.8, (count, 1, 1)), rng.uniform(80, 220, (count, 1, 1))
    return clip((np.hypot(x, y) < radii) * greys)


NO_HEADS = {
    "noise": np.stack([noise(64, 64, i) for i in range(20)]),
    "dark noise": np.stack([noise(64, 64, i, high=12) for i in range(20)]),
    "black": np.zeros((20, 64, 64), np.uint8),
    "grey": np.full((20, 64, 64), 128, np.uint8),
    "discs": discs(),
    "round brains": brains(20, 0, 64),  # symmetric about both axes
    "shading alone": np.tile(clip(np.linspace(0, 255, 64)), (20, 64, 1)),
    "none": np.zeros((0, 64, 64), np.uint8),
    "a head among noise": np.concatenate([AXIAL[:4], np.stack([noise(64, 64, i) for i in range(20)])]),
    "one sagittal slice": SAGITTAL[:1],
}


@pytest.mark.parametrize("name", NO_HEADS)
def test_what_shows_no_heads_cannot_be_told(name):
    view = find_view(NO_HEADS[name])
    assert view.name == "unknown" and str(view).startswith("cannot be told")
    assert mirror_warning(NO_HEADS[name]) is None


def test_mirroring_is_warned_of_where_slices_are_unlike_their_mirror_images():
    assert mirror_warning(AXIAL) is None
    on_side = np.ascontiguousarray(np.rot90(AXIAL, 1, (1, 2)))
    for slices, words in (
        (SAGITTAL, "100% of the slices are unlike their left-right mirror images (they are sagittal)"),
        (on_side, "they are axial or coronal, but lie on their side"),
        (np.concatenate([AXIAL[:12], SAGITTAL[:12]]), "they are partly sagittal"),
    ):
        line = mirror_warning(slices)
        assert line.startswith("--mirror True: ") and words in line and "\n" not in line


def test_likeness_of_a_picture_that_equals_its_mirror_image_is_1():
    both = np.concatenate([AXIAL[:3], SAGITTAL[:3]]).astype(int)
    halves = clip((both + both[:, :, ::-1]) / 2)  # symmetric by construction
    values = likeness(*fit_to_frame(halves))[0]
    assert (values > 0.97).all() and (likeness(*fit_to_frame(SAGITTAL[:3])).amax(0) < SYMMETRIC).all()
