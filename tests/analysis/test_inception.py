"""FID and KID by a file of the literature's form: its resizing, what it refuses, and values and floors where the truth is known."""

import numpy as np
import pytest
import torch
from inception_file import Pooled, save_network
from synthetic import brains

from analysis.inception import SIDE, SOURCE, Inception, clean_resize, compare_features
from utils import UserError


def bicubic(size):
    """The matrix [299, size] of the bicubic filter with a = -1/2 (Keys 1981), stretched where it reduces."""
    step = size / SIDE
    width = max(1, step)
    x = np.abs(np.arange(size) + 0.5 - step * (np.arange(SIDE)[:, None] + 0.5)) / width
    weights = np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("side", [64, 256, 512])
def test_resizing_is_that_of_clean_fid(side):
    images = np.random.default_rng(0).choice(np.array([0, 30, 255], np.uint8), (2, side, side))
    expected = np.clip(bicubic(side) @ images @ bicubic(side).T, 0, 255)
    resized = clean_resize(images)
    assert resized.shape == (2, 3, SIDE, SIDE) and resized.dtype == torch.float32
    for channel in range(3):
        np.testing.assert_allclose(resized[:, channel], expected, atol=2e-3)
    assert resized.min() == 0 and resized.max() == 255 and (resized % 1 > 0.1).any()  # clipped, and not rounded


def test_network_sees_grey_levels_and_gives_its_features(tmp_path):
    images = brains(20, 0)
    extract = Inception(save_network(Pooled(), tmp_path / "pooled.pt"))
    features = extract(images)
    assert features.shape == (20, 48) and features.dtype == torch.float32
    torch.testing.assert_close(features, Pooled()(clean_resize(images), True), rtol=1e-5, atol=1e-5)
    assert 0.2 < features.max() < 1


class OneArgument(torch.nn.Module):
    def forward(self, img):
        return img.mean((2, 3))


class Unpooled(torch.nn.Module):
    def forward(self, img, return_features: bool = False):
        return img


class NotFinite(torch.nn.Module):
    def forward(self, img, return_features: bool = False):
        return img.mean((2, 3)) / 0


@pytest.mark.parametrize(
    "content", [None, "folder", b"", b"no network", {"weight": torch.ones(2)}, OneArgument, Unpooled, NotFinite]
)
def test_other_files_are_refused_with_the_place_of_the_right_one(tmp_path, content):
    path = tmp_path / "file.pt"
    if content == "folder":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        torch.save(content, path)
    elif content:
        save_network(content(), path)
    with pytest.raises(UserError) as refused:
        Inception(str(path))
    assert str(refused.value).startswith(f"--fid_weights {path}: no InceptionV3") and "\n" not in str(refused.value)
    assert str(refused.value).endswith(f"download it once from {SOURCE}")


def people(count, slices, shift=0.0, spread=1.0, seed=0):
    """(features [count * slices, 6] of people with slices that are alike, the person of each), in random order."""
    rng = np.random.default_rng(seed)
    x = rng.normal(shift, spread, (count, 1, 6)) + rng.normal(0, 0.3, (count, slices, 6))
    order = rng.permutation(count * slices)
    return torch.from_numpy(x.reshape(-1, 6)[order]), np.repeat(np.arange(count), slices)[order]


def test_floor_is_of_halves_of_different_people_and_is_reached_by_the_same_distribution():
    real, groups = people(40, 10)
    found = compare_features(real, people(400, 1, seed=1)[0], groups)
    assert found["size"] == 200
    alike, different = found["half"], compare_features(real, people(400, 1, shift=1.0, seed=1)[0], groups)["half"]
    floor, of_slices = found["floor"], compare_features(real, real, None)["floor"]
    assert floor.fid > 5 * of_slices.fid  # halves that share people would be too alike
    assert abs(alike.fid - floor.fid) < 2 * np.hypot(alike.fid_error, floor.fid_error)
    assert different.fid - floor.fid > 2 * np.hypot(different.fid_error, floor.fid_error)
    assert different.fid - alike.fid == pytest.approx(6, rel=0.4)  # six features, each moved by 1
    assert abs(alike.kid_x1000) < 3 * alike.kid_x1000_error < different.kid_x1000


def test_sizes_are_those_of_the_smallest_half_or_of_the_generated_slices():
    real, groups = people(9, 4)  # halves of five and of four people
    assert compare_features(real, torch.randn(50, 6), groups)["size"] == 16
    few = compare_features(real, torch.randn(7, 6), groups)
    assert few["size"] == 7 and few["half"].fid > 0
    alone = compare_features(real, torch.randn(50, 6), np.zeros(36))
    assert (alone["size"], alone["half"], alone["floor"]) == (0, None, None) and alone["all"].fid > 0
    assert np.isnan(alone["all"].fid_error)  # one person
    with pytest.raises(UserError, match="one slice is too few"):
        compare_features(real[:1], real)
