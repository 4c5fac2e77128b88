"""The terms of the loss against a second computation, the search against images whose w is known, and the files."""

import copy
import functools
import math
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from analysis import projector
from analysis.distances import Features, random_vgg16
from analysis.models import Model, draw_z, style_vectors, synthesize
from analysis.projector import Distance, clean_names, nearest_starts, noise_structure, project, read_targets
from dataset import to_float, to_uint8
from modules import NOISE_LR, build_generator
from report.projections import save_projection
from utils import UserError

STEPS = 40


@pytest.fixture(scope="module", autouse=True)
def one_vgg16():
    """One VGG16 for all tests, and fewer starting points."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(projector, "Features", functools.cache(projector.Features))
        patch.setattr(projector, "STARTS", 32)
        yield


def tiny(num_classes=0, noise=0.2):
    """An untrained model of 32x32, grey on average rather than black, whose w differ enough for the search to tell them apart."""
    torch.manual_seed(0)
    networks = (
        build_generator(
            {
                "resolution": 32,
                "channel_base": 256,
                "channel_max": 16,
                "z_dim": 16,
                "w_dim": 16,
                "mapping_layers": 8,
                "num_classes": num_classes,
            }
        )
        .eval()
        .requires_grad_(False)
    )
    networks["generator"].blocks[-1].image_bias.zero_()
    for block in networks["generator"].blocks:
        for style in block.styles:
            style.noise_strength.fill_(noise / NOISE_LR)
    labels = list(range(num_classes)) or [None]
    return Model("tiny", networks["mapping"], networks["generator"], ["AD", "NC"][: max(1, num_classes)], labels, "")


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def projected(model):
    """Three slices of the model's own, of latents that are not among its starting points, and their projection."""
    targets = synthesize(model, style_vectors(model.mapping, draw_z(3, 16, seed=99))[0])
    return targets, project(model, targets, [-1] * 3, STEPS)


def rms(a, b):
    return np.sqrt(np.square(a.astype(float) - b).mean((-2, -1)))


# ---------------------------------------------------------------------------------------------------------------------
# The distance


def test_distance_is_the_sum_over_pixels_and_features():
    distance, (a, b) = Distance(), torch.rand(2, 3, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ours = (distance.embed(a) - distance.embed(b)).square().sum(1)
    network, expected = random_vgg16(0), projector.PIXEL_WEIGHT * (a - b).square().mean((1, 2, 3))
    maps = [F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)]
    for layers in (network[:4], network[4:9]):
        maps = [layers(x).detach() for x in maps]
        x, y = (x / x.norm(dim=1, keepdim=True) for x in maps)
        expected = expected + (x - y).square().sum(1).mean((1, 2))
    torch.testing.assert_close(ours, expected)


def test_distance_clips_to_black_and_white():
    distance, x = Distance(), torch.full((1, 1, 32, 32), -1.0)
    assert torch.equal(distance.embed(x), distance.embed(x - 3))


def test_distance_gradient_equals_finite_differences():
    distance = Distance()
    distance.blocks = [[copy.deepcopy(layer).double() for layer in block] for block in distance.blocks]
    rng = torch.Generator().manual_seed(1)
    x, y, direction = (torch.rand(2, 1, 16, 16, generator=rng, dtype=torch.float64) - 0.5 for _ in range(3))

    def value(images):
        return (distance.embed(images) - distance.embed(y)).square().sum()

    (gradient,) = torch.autograd.grad(value(x.requires_grad_()), x)
    step = 1e-7
    with torch.no_grad():
        slope = (value(x + step * direction) - value(x - step * direction)) / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# The noise term


def test_noise_structure_of_small_maps_is_the_sum_over_neighbours():
    noise = torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    x = noise[:, 0].numpy()
    right = [sum(map8[i, j] * map8[i, (j + 1) % 8] for i in range(8) for j in range(8)) / 64 for map8 in x]
    below = [sum(map8[i, j] * map8[(i + 1) % 8, j] for i in range(8) for j in range(8)) / 64 for map8 in x]
    np.testing.assert_allclose(noise_structure([noise]).numpy(), np.square(right) + np.square(below))


def test_noise_structure_is_near_zero_only_for_white_noise():
    rng = torch.Generator().manual_seed(3)
    white = torch.randn(64, 1, 32, 32, generator=rng, dtype=torch.float64)
    expected = sum(2 / side**2 for side in (32, 16, 8))  # each mean of side^2 products of variance 1, squared
    assert noise_structure([white]).mean().item() == pytest.approx(expected, rel=0.4)
    fine = F.avg_pool2d(white, 3, 1, 1)
    coarse = F.interpolate(white[..., :8, :8], scale_factor=4)
    stripes = torch.ones(1, 1, 32, 32).cumsum(3).remainder(2).sub(0.5).mul(2)
    for smooth in (fine / fine.std(), coarse / coarse.std(), stripes):
        assert noise_structure([smooth]).min() > 10 * expected


def test_normalise_gives_mean_zero_and_variance_one():
    noise = [3 * torch.randn(2, 1, side, side) + 5 for side in (4, 16)]
    projector.normalise(noise)
    for noise_map in noise:
        torch.testing.assert_close(noise_map.mean((2, 3)), torch.zeros(2, 1), atol=1e-5, rtol=0)
        torch.testing.assert_close(noise_map.square().mean((2, 3)), torch.ones(2, 1))


# ---------------------------------------------------------------------------------------------------------------------
# The search


def test_constants_of_the_search():
    assert (projector.RATE_W, projector.RATE_NOISE) == (0.1, 0.1)  # Karras et al. 2020 (arXiv:1912.04958), appendix D
    assert (projector.BLOCKS, projector.PIXEL_WEIGHT) == (2, 5.0)
    assert (projector.SPREAD_WEIGHT, projector.STRUCTURE_WEIGHT) == (0.02, 0.1)
    assert projector.LATENTS == 4096


def test_learning_rate_rises_over_a_twentieth_of_the_steps_and_falls_over_the_last_two_fifths():
    assert projector.ramp(0) == pytest.approx(0.02) and projector.ramp(0.02) == pytest.approx(0.42)
    assert [projector.ramp(done) for done in (0.05, 0.3, 0.6)] == pytest.approx([1, 1, 1])
    assert projector.ramp(0.8) == pytest.approx(0.5) and projector.ramp(1) == pytest.approx(0)
    assert projector.ramp(0.7) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_project_recovers_generated_images(model, projected):
    targets, projection = projected
    others = synthesize(model, style_vectors(model.mapping, draw_z(64, 16, seed=7))[0])
    nearest = np.array([rms(target, others).min() for target in targets])
    assert (projection.rms[:, 0] < 0.5 * nearest).all(), (projection.rms, nearest)
    assert (projection.rms[:, 1] < projection.rms[:, 0] + 1).all()
    assert ((0.3 < projection.spread) & (projection.spread < 2)).all()


def test_project_reports_errors_and_spread_of_its_own_images(model, projected):
    targets, projection = projected
    np.testing.assert_array_equal(projection.images[:, 0], synthesize(model, projection.ws))
    np.testing.assert_array_equal(projection.images[:, 1], to_uint8(model.generator(projection.ws, projection.noise)).numpy())
    np.testing.assert_allclose(projection.rms, rms(projection.images, targets[:, None]))
    distance = Distance()
    a, b = (distance.features(to_float(torch.from_numpy(x))) for x in (projection.images[:, 1].copy(), targets))
    np.testing.assert_allclose(projection.perceptual[:, 1], (a - b).square().sum(1), rtol=1e-4, atol=1e-7)
    w = style_vectors(model.mapping, draw_z(projector.LATENTS, 16, 0))[0]
    size = (w - w.mean(0)).norm(dim=1).square().mean().sqrt()
    np.testing.assert_allclose(projection.spread, (projection.ws[:, 0] - w.mean(0)).norm(dim=1) / size, rtol=1e-4)
    assert (projection.rms < project(model, targets, [-1] * 3, 1).rms).all()  # the search moves towards the target
    assert all(torch.equal(projection.ws[:, 0], w) for w in projection.ws.unbind(1))


def test_project_gives_a_slice_the_same_result_in_a_batch_and_alone(projected, monkeypatch):
    """In float64: Adam divides gradients by their size, so float32 rounding can turn the sign of a step where one is near 0."""
    features = Features("cpu")
    features.network.double()
    monkeypatch.setattr(projector, "Features", lambda *_: features)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # the generator sums its image in float32
    model, targets = tiny(), projected[0]
    model.mapping.double(), model.generator.double()
    together, again = (project(model, targets, [-1] * 3, 8) for _ in range(2))
    assert torch.equal(together.ws, again.ws) and np.array_equal(together.images, again.images)
    for i in range(3):
        alone = project(model, targets[i : i + 1], [-1], 8)
        for of_one, of_batch in ((alone.ws, together.ws), *zip(alone.noise, together.noise)):
            assert of_one.dtype == torch.float64
            torch.testing.assert_close(of_one[0], of_batch[i], atol=1e-7, rtol=0)
        assert np.abs(alone.images[0].astype(int) - together.images[i]).max() <= 1


def test_project_finds_random_noise_and_keeps_it_white(model, projected, monkeypatch):
    targets = synthesize(model, projected[1].ws, "random", torch.Generator().manual_seed(1))
    projection = project(model, targets, [-1] * 3, STEPS)
    assert (projection.rms[:, 1] < 0.7 * projection.rms[:, 0]).all(), projection.rms
    for noise_map in projection.noise:
        torch.testing.assert_close(noise_map.square().mean((2, 3)), torch.ones(3, 1))
    rng = torch.Generator().manual_seed(2)
    white = noise_structure([torch.randn(noise_map.shape, generator=rng) for noise_map in projection.noise]).mean()
    assert noise_structure(projection.noise).max() < white
    monkeypatch.setattr(projector, "STRUCTURE_WEIGHT", 0.0)
    assert noise_structure(project(model, targets, [-1] * 3, STEPS).noise).mean() > 3 * noise_structure(projection.noise).mean()


def test_nearest_starts_are_the_nearest_of_the_class():
    model, distance = tiny(2), Distance()
    drawn = torch.stack([style_vectors(model.mapping, draw_z(20, 16, 0), label)[0] for label in (0, 1)])
    images = torch.cat([model.generator(drawn[0, 17:18], "fixed"), model.generator(drawn[1, 3:4], "fixed")])
    starts, classes = nearest_starts(model, drawn, distance, images, torch.tensor([-1, -1]))
    torch.testing.assert_close(starts, torch.stack([drawn[0, 17], drawn[1, 3]]))
    assert classes.tolist() == [0, 1]
    starts, classes = nearest_starts(model, drawn, distance, images, torch.tensor([1, 1]))
    assert classes.tolist() == [1, 1] and not torch.equal(starts[0], drawn[0, 17])
    torch.testing.assert_close(starts[1], drawn[1, 3])


def test_spread_is_measured_from_the_mean_of_the_class_that_was_searched(monkeypatch):
    monkeypatch.setattr(projector, "LATENTS", 64)
    model = tiny(2)
    drawn = [style_vectors(model.mapping, draw_z(64, 16, 0), label)[0] for label in (0, 1)]
    projection = project(model, synthesize(model, torch.stack([drawn[0][40], drawn[1][5]])), [0, -1], 1)
    assert projection.labels.tolist() == [0, 1]  # the second slice is that of a starting point
    for w, of_class, spread in zip(projection.ws[:, 0], drawn, projection.spread):
        size = (of_class - of_class.mean(0)).square().sum(1).mean().sqrt()
        assert spread == pytest.approx(((w - of_class.mean(0)).norm() / size).item(), rel=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Files


def test_clean_names_are_safe_and_different():
    names = clean_names(
        ["../../etc/passwd.png", "a b.png", "a_b.PNG", "A B.png", "é/.jpg", "", "x" * 300 + ".png", "C:\\d\ne.png", "AD/1_2.png"]
    )
    assert names[:4] == ["etc_passwd", "a_b", "a_b_2", "A_B_3"] and names[-1] == "AD_1_2"
    assert len({name.lower() for name in names}) == len(names)
    assert all(
        0 < len(name) < 100 and set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
        for name in names
    )


def test_read_targets_takes_classes_from_folder_names(slices_dir, tmp_path):
    both = read_targets(os.path.dirname(slices_dir) + "/test", 32)
    assert both.images.shape == (13, 32, 32) and both.images.dtype == np.uint8
    assert both.labels.tolist() == [0] * 6 + [1] * 7 and both.names[0] == "AD_100_0"
    assert read_targets(slices_dir + "/NC", 32).labels.tolist() == [1] * 11
    one = read_targets(slices_dir + "/AD/103_0.png", 64)
    assert one.images.shape == (1, 64, 64) and one.labels.tolist() == [0] and one.names == ["103_0"]
    Image.fromarray(both.images[0]).save(tmp_path / "unknown.png")
    assert read_targets(tmp_path, 32).labels.tolist() == [-1]


def test_read_targets_refuses_folders_without_readable_slices(tmp_path, capsys):
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(UserError, match=str(path)):
            read_targets(path, 32)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    for path in (tmp_path, tmp_path / "broken.png"):
        with pytest.raises(UserError, match="no readable slice, tried broken.png"):
            read_targets(path, 32)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "good.png")
    assert read_targets(tmp_path, 32).names == ["good"]
    assert "1 unreadable file left out: broken.png" in capsys.readouterr().err


def test_save_projection_writes_the_projection(model, projected, tmp_path):
    targets, projection = projected
    paths = save_projection(projection, ["../../../outside", "b", "b"], str(tmp_path / "out"))
    assert sorted(os.listdir(tmp_path)) == ["out"]
    assert sorted(os.listdir(tmp_path / "out")) == sorted(
        f"{name}.{kind}" for name in ("outside", "b", "b_2") for kind in ("png", "npz")
    )
    with np.load(paths[3], allow_pickle=False) as kept:
        noise = {f"noise_{i:02d}" for i in range(model.generator.num_ws - 1)}
        assert set(kept) == {"ws", "target", "images", "rms", "perceptual", "spread", "label"} | noise
        noise = [torch.from_numpy(kept[f"noise_{i:02d}"])[None, None] for i in range(model.generator.num_ws - 1)]
        drawn = to_uint8(model.generator(torch.from_numpy(kept["ws"])[None], noise))[0].numpy().astype(int)
        assert np.abs(drawn - kept["images"][1]).max() <= 1  # alone, not in the batch: rounding
        np.testing.assert_array_equal(kept["target"], targets[1])
        assert kept["label"] == -1 and kept["rms"].shape == kept["perceptual"].shape == (2,)
