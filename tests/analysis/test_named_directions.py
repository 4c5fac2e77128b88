"""Named directions of generators whose directions are known, and of one that ignores its style vectors."""

import numpy as np
import pytest
import torch

from analysis import named_directions
from analysis.models import Model
from analysis.named_directions import apart, measure_quantities, name_directions, regress


def test_regression_finds_a_planted_slope_and_its_r2():
    rng = np.random.default_rng(0)
    points, slope = rng.normal(size=(4000, 5)) + 2, np.array([3.0, 0, -4, 0, 0])
    found, r2 = regress(points, points @ slope + 7 + rng.normal(0, 5, 4000), 2000)
    np.testing.assert_allclose(found, slope, atol=0.5)
    assert r2 == pytest.approx(0.5, abs=0.06)  # 25 of 50 of the variance


def test_regression_of_noise_or_of_a_constant_tells_nothing():
    rng = np.random.default_rng(0)
    r2 = [regress(rng.normal(size=(600, 20)), rng.normal(size=600), 300)[1] for _ in range(20)]
    assert max(r2) < 0.05 and np.mean(r2) < 0  # as a fit to other slices must be
    assert regress(rng.normal(size=(60, 3)), np.ones(60), 30)[1] == 0


def test_directions_are_apart_from_the_slopes_of_the_others():
    slopes = np.random.default_rng(0).normal(size=(3, 6))
    found = apart(slopes)
    products = found @ slopes.T
    np.testing.assert_allclose(products, np.diag(np.diag(products)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1)
    dual = np.linalg.pinv(slopes).T  # the shortest vectors with these products
    np.testing.assert_allclose(found, dual / np.linalg.norm(dual, axis=1, keepdims=True))
    assert not apart(np.array([[1.0, 0], [2, 0], [0, 0]])).any()
    np.testing.assert_allclose(apart(np.array([[0, 3.0], [0, 0]])), [[0, 1], [0, 0]])


def test_brightness_is_that_of_the_foreground_and_size_that_of_the_brain_with_its_holes():
    pixels = np.zeros((2, 20, 20), np.uint8)
    pixels[:, 5:15, 5:15], pixels[:, 8:10, 8:10], pixels[0, 0, 0] = 100, 0, 15  # 100 pixels with a hole of 4; grain
    pixels[1] *= 2
    found = measure_quantities(pixels, None)
    np.testing.assert_allclose(found["brightness"], [100, 200])
    np.testing.assert_allclose(found["brain size"], [25, 25])


class Squares(torch.nn.Module):
    """Squares whose brightness follows w[0] and w[1], and their size w[1]; they ignore w if it is not `heard`."""

    resolution = 32

    def __init__(self, heard=1.0):
        super().__init__()
        self.heard = heard

    def forward(self, w, noise, rng=None):
        grain = torch.randn(len(w), 2, generator=rng)
        brightness = 0.2 + 0.1 * (self.heard * (w[:, 0] + w[:, 1]) + 0.3 * grain[:, 0])
        half = 8 + 1.5 * (self.heard * w[:, 1] + 0.3 * grain[:, 1])
        place = torch.arange(32) - 15.5
        inside = (place.abs() < half[:, None]).float()
        return (inside[:, :, None] * inside[:, None] * (1 + brightness)[:, None, None] - 1)[:, None]


class Plain(torch.nn.Module):
    z_dim = 4

    def __init__(self):
        super().__init__()
        self.register_buffer("w_mean", torch.zeros(1, 4))

    def forward(self, z, labels=None):
        return z * torch.tensor([1.0, 2, 1, 1])


def test_directions_of_squares_are_found_with_what_they_change(monkeypatch):
    for name, value in {"SLICES": 512, "HELD_OUT": 256}.items():
        monkeypatch.setattr(named_directions, name, value)
    brightness, size = name_directions(Model("squares", Plain(), Squares(), ["AD"], [None], ""))
    # In components of unit variance brightness has the slope (1, 2) / 10 and size (0, 2): brightness alone is (1, 0), and size
    # without brightness (-2, 1) / sqrt 5, of which w[1] is twice as much.
    np.testing.assert_allclose(brightness.vector, [1, 0, 0, 0], atol=0.1)
    np.testing.assert_allclose(size.vector, np.array([-2, 2, 0, 0]) / 5**0.5, atol=0.15)
    assert brightness.r2 > 0.85 and size.r2 > 0.8  # clipped, and sizes are whole pixels
    assert brightness.effects["brightness"][0] == pytest.approx(12.75, rel=0.15)
    assert abs(brightness.effects["brain size"][0]) < 0.5 < size.effects["brain size"][0]
    assert abs(size.effects["brightness"][0]) < 2


def test_nothing_is_named_in_slices_that_ignore_their_style_vectors(monkeypatch):
    monkeypatch.setattr(named_directions, "SLICES", 512)
    for one in name_directions(Model("deaf", Plain(), Squares(0.0), ["AD"], [None], "")):
        assert one.r2 < 0.1 and all(abs(mean) < 0.1 for mean, _ in one.effects.values())
