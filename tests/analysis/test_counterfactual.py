"""Twins of the other class: sampled latents against their closed form, and the axioms on a model whose twins are known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from analysis import bootstrap as bootstrap_module
from analysis import counterfactual
from analysis.counterfactual import (
    Twins,
    abduct,
    area_changes,
    axioms,
    both_classes,
    class_probe,
    counterfactuals,
    draw_pairs,
    nearest,
    other_class,
    rms,
    with_values,
)
from analysis.encoder import Encoded
from analysis.models import Model
from utils import CLASSES, random_stream

SIDE, SIZE = 32, 6  # pixels; numbers in z and in w
EFFECT, VARIED = 2.0, 1.0  # of the class on w[0]: its mean, and its change with z[2], which no slice tells
TOLD = 0.1  # standard deviation of w[0] and w[1] given a slice


class Mapping(nn.Module):
    """w = z, but for w[0], to which NC adds `effect` + `varied` z[2]."""

    def __init__(self, effect, varied):
        super().__init__()
        self.z_dim, self.w_dim, self.effect, self.varied = SIZE, SIZE, effect, varied
        self.register_buffer("w_mean", torch.zeros(2, SIZE))

    def forward(self, z, labels):
        return torch.cat([z[:, :1] + (labels * (self.effect + self.varied * z[:, 2]))[:, None], z[:, 1:]], 1)


class Discs(nn.Module):
    """A grey disc, of a radius given by w[1], with a dark core of a radius given by w[0], and a little noise."""

    def __init__(self):
        super().__init__()
        self.resolution, y = SIDE, torch.arange(SIDE) - 15.5
        self.distance = (y[:, None].square() + y.square()).sqrt()
        self.blocks = [SimpleNamespace(styles=[SimpleNamespace(fixed_noise=torch.zeros(1, 1, SIDE, SIDE))])]

    def forward(self, w, noise="fixed", rng=None, dtype=None):
        core, head = (3 + 0.5 * w[:, 0])[:, None, None], (12 + 0.5 * w[:, 1])[:, None, None]
        grey = torch.sigmoid(4 * (head - self.distance)) * torch.sigmoid(4 * (self.distance - core))
        texture = 0.0 if isinstance(noise, str) else 0.02 * noise[0][:, 0]
        return (1.5 * grey - 0.9 + texture)[:, None]


def radii(pixels):
    """(core, head) radii [N] of discs uint8 [N, SIDE, SIDE], by their areas."""
    grey = (pixels / 127.5 - 1 + 0.9) / 1.5
    core = 1 - grey[:, SIDE // 2, SIDE // 4 : SIDE // 2].mean(1)  # along a radius, of which it takes a share
    area = grey.sum((1, 2))
    core = 8 * core
    return core, np.sqrt(area / np.pi + core**2)


class Exact:
    """Stands for an encoder that measures radii, and knows nothing of the other numbers."""

    side, mean, basis = SIDE, torch.zeros(SIZE), torch.eye(SIZE)

    def encode(self, pixels):
        core, head = radii(np.asarray(pixels))
        points = np.zeros((len(pixels), SIZE), np.float32)
        points[:, 0], points[:, 1] = (core - 3) / 0.5, (head - 12) / 0.5
        return Encoded(points, np.float32([TOLD, TOLD, 1, 1, 1, 1]) * np.ones_like(points))

    def reduce(self, pixels):
        return torch.from_numpy(np.ascontiguousarray(pixels))


def made(effect=EFFECT, varied=VARIED):
    return Model("discs", Mapping(effect, varied), Discs(), list(CLASSES), [0, 1], "")


def slices_of(model, z, label):
    """uint8 [N, SIDE, SIDE] of z [N, SIZE] with a label."""
    return counterfactual.synthesize(model, model.mapping(z, torch.full([len(z)], label)))


@pytest.fixture(scope="module")
def twins():
    """Of 12 slices whose twins are known, six of each class, and z."""
    model, z = made(), torch.randn(12, SIZE, generator=torch.Generator().manual_seed(1))
    labels = np.repeat([0, 1], 6)
    pixels = np.concatenate([slices_of(model, z[:6], 0), slices_of(model, z[6:], 1)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counterfactual, "DRAWS", 48)
        patch.setattr(counterfactual, "measure_areas", lambda images, view: {"core": radii(images)[0]})
        found = counterfactuals(model, Exact(), pixels, labels, lambda points: points[:, 0] < 1, [0, 7], "discs")
    return found, z, pixels


def test_latents_are_drawn_from_the_distribution_of_the_encoder():
    """In closed form: z = (t / s^2 + p z0) / (1 / s^2 + p) with t ~ N(m, s^2), z0 ~ N(0, 1), where w = z but for a shift."""
    model, encoder, draws, prior = made(varied=0.0), Exact(), 1500, counterfactual.PRIOR
    mean, s = np.float32([[1.5, -1, 0.5, 0, 0, 0.2]]), np.float32([[0.1, 0.3, 1, 1, 0.7, 2]])
    z = abduct(model, encoder, Encoded(mean, s), np.array([1]), draws, random_stream("test", 0))[0].numpy()
    told = (mean - [[EFFECT, 0, 0, 0, 0, 0]])[0]
    weight = 1 / (1 / s[0] ** 2 + prior)
    expected, deviation = weight * told / s[0] ** 2, weight * np.sqrt(1 / s[0] ** 2 + prior**2)
    np.testing.assert_array_less(np.abs(z.mean(0) - expected), 5 * deviation / np.sqrt(draws))
    np.testing.assert_allclose(z.std(0), deviation, rtol=0.1)
    assert np.abs(np.corrcoef(z.T) - np.eye(SIZE)).max() < 0.12


def test_both_classes_share_the_latent():
    model, z = made(), torch.randn(3, 4, SIZE)
    own, other = both_classes(model, z, np.array([0, 1, 0]))
    torch.testing.assert_close((other - own)[..., 0], torch.tensor([1, -1, 1])[:, None] * (EFFECT + VARIED * z[..., 2]))
    assert torch.equal(own[..., 1:], z[..., 1:]) and torch.equal(other[..., 1:], z[..., 1:])


def test_the_other_class_has_the_same_values():
    labels = with_values(np.array([0, 1]), np.float32([[85, np.nan], [90, 71]]))
    np.testing.assert_array_equal(labels, [[0, 85, np.nan], [1, 90, 71]])
    np.testing.assert_array_equal(other_class(labels), [[1, 85, np.nan], [0, 90, 71]])
    np.testing.assert_array_equal(other_class(with_values(np.array([0, 1]), None)), [1, 0])


def test_pairs_share_the_noise_and_draws_do_not():
    model, w = made(), torch.zeros(2, 3, SIZE)
    first, second = draw_pairs(model, w, random_stream("test", 0))
    np.testing.assert_array_equal(first, second)
    assert (first[0] != first[1]).any()


def test_twins_of_a_real_generator_differ_by_their_w_alone(conditional):
    """The maps of noise fit every block, and the pair is what the generator draws of its members."""
    w = torch.randn(1, 2, conditional.mapping.w_dim).repeat(2, 1, 1)
    w[1, 1] += 0.5
    first, second = draw_pairs(conditional, w, random_stream("test", 0))
    assert first.shape == (2, 32, 32)
    np.testing.assert_array_equal(first[0], second[0])
    assert (first[1] != second[1]).any()


def test_the_twin_is_the_true_twin_within_its_uncertainty(twins):
    found, z, _ = twins
    change = found.areas["core"][1] - found.areas["core"][0]  # [DRAWS, N]
    sign, is_ad = np.where(found.labels == 0, 1, -1), found.labels == 0
    # Nothing is known of z[2] of AD slices: in closed form its mean is 0, its variance (1 + PRIOR^2) / (1 + PRIOR)^2.
    np.testing.assert_allclose(change[:, is_ad].mean(0), 0.5 * EFFECT, atol=0.3)
    np.testing.assert_allclose(change[:, is_ad].std(0, ddof=1), 0.5 * VARIED * np.sqrt(1.01 / 1.21), rtol=0.35)
    np.testing.assert_allclose(change.mean(0), sign * 0.5 * EFFECT, atol=0.8)
    true = sign * 0.5 * (EFFECT + VARIED * z[:, 2].numpy())
    error = (change.mean(0) - true) / change.std(0, ddof=1)
    assert 0.3 < np.square(error).mean() < 2.5 and np.abs(error).max() < 3.5


def test_composition_reversibility_effectiveness_minimality(twins):
    found, _, pixels = twins
    real, encoding, twin, again, back = found.small
    moved = rms(twin, encoding)
    assert (rms(encoding, real) < 0.35 * moved).all() and (rms(again, encoding) < 0.35 * moved).all()
    assert (rms(back, encoding) < 0.5 * moved).all()
    np.testing.assert_allclose(radii(twin)[1], radii(pixels)[1], atol=0.15)  # the head stays
    towards = np.where(found.labels == 0, 1, -1) * (found.points[2] - found.points[1])[:, 0]
    assert (towards > 0.5 * EFFECT).all() and (found.called_ad[2] != found.called_ad[1]).mean() > 0.5
    grown = found.difference.mean((1, 2))
    assert grown[0] < 0 < grown[1]  # a larger, then a smaller dark core
    outside = Discs().distance.numpy() > 11
    clear = np.abs(found.difference) > 4 * found.deviation / np.sqrt(48)
    assert clear[:, outside].mean() < 0.02 < clear[:, ~outside].mean()


def test_a_label_that_changes_nothing_gives_the_same_slice(monkeypatch):
    monkeypatch.setattr(counterfactual, "DRAWS", 4)
    model = made(0.0, 0.0)
    pixels = slices_of(model, torch.randn(3, SIZE, generator=torch.Generator().manual_seed(2)), 0)
    found = counterfactuals(model, Exact(), pixels, np.zeros(3, int), lambda points: points[:, 0] < 1, [1])
    np.testing.assert_array_equal(found.small[1], found.small[2])
    assert not found.difference.any() and not found.deviation.any() and found.areas == {}


def test_an_unknown_class_is_that_of_the_probe(monkeypatch):
    monkeypatch.setattr(counterfactual, "DRAWS", 2)
    model = made()
    pixels = np.concatenate([slices_of(model, torch.zeros(1, SIZE), label) for label in (0, 1)])
    found = counterfactuals(model, Exact(), pixels, np.array([-1, -1]), lambda points: points[:, 0] < 1)
    assert list(found.labels) == [0, 1] and found.images is None


def test_the_probe_of_the_class_tells_classes_that_the_model_draws_differently(conditional, monkeypatch):
    monkeypatch.setattr(counterfactual, "JUDGED", 64)
    monkeypatch.setattr(counterfactual, "draw_slices", lambda *_: (np.arange(64), None))
    even = SimpleNamespace(side=32, encode=lambda i: Encoded(np.float32([i % 2, i]).T, None))  # labels take turns, from AD on
    judge = class_probe(conditional, even)
    assert list(judge(np.float32([[0, 30], [1, 30]]))) == [True, False]


# ---------------------------------------------------------------------------------------------------------------------
# The measures


def handmade(points, called=None, labels=(0, 0, 1, 1), areas=None, small=None):
    """Twins of four slices whose points [3, 4, K] are given; the other parts are black."""
    called = np.zeros((3, 4), bool) if called is None else called
    small = np.zeros((5, 4, 32, 32), np.uint8) if small is None else small
    return Twins(np.array(labels), np.float32(points), small, called, areas or {}, None, None, None)


def test_axioms_of_known_points(monkeypatch):
    monkeypatch.setattr(bootstrap_module, "RESAMPLED", 50)
    real = [[0.0], [1.0], [10.0], [11.0]]  # two slices of each of two people
    twin = [[9.0], [10.6], [10.4], [2.0]]  # nearest others: 10, 11, 11, 1
    called = np.array([[1, 1, 0, 0], [1, 1, 0, 1], [0, 1, 1, 1]], bool)
    found = axioms(handmade([real, real, twin], called), np.array(["a", "a", "b", "b"]), np.array([5, 6, 7, 9]))
    called, person, position = (
        found[next(name for name in found if word in name)] for word in ("effect", "same person", "error of")
    )
    assert [one.value for one in called] == [0.25, 0.75]
    assert [one.value for one in person] == [1.0, 0.25]
    # All is black, so that nothing but the mean position of the other person is known: 8, 8, 5.5 and 5.5.
    assert [one.value for one in position] == pytest.approx([(3 + 2 + 1.5 + 3.5) / 4] * 2)
    assert found["RMS from the real slice"][0].value == 0


def test_positions_are_told_by_other_people(monkeypatch):
    """The brightness is the position; in the third set every slice is two positions further."""
    monkeypatch.setattr(counterfactual, "PENALTIES", [1e-4])
    indices = np.array([5.0, 6, 7, 9])
    levels = np.uint8([10 * indices, 10 * indices, 10 * indices + 20])[:, :, None, None] * np.ones((1, 1, 32, 32), np.uint8)
    found = counterfactual.positions(levels, np.array(["a", "a", "b", "b"]), indices)
    np.testing.assert_allclose(found, [indices, indices, indices + 2], atol=0.02)


def test_measures_that_need_several_people_are_left_out(monkeypatch):
    monkeypatch.setattr(bootstrap_module, "RESAMPLED", 20)
    points = np.random.default_rng(0).normal(size=(3, 4, 2))
    for groups, indices, count in (
        (["a"] * 4, np.arange(4.0), 3),
        (list("abcd"), np.arange(4.0), 4),
        (list("abcd"), [np.nan] * 4, 3),
    ):
        assert len(axioms(handmade(points), np.array(groups), np.array(indices))) == count


def test_nearest_is_another():
    points = np.float32([[0], [1], [5]])
    assert list(nearest(points, points)) == [1, 0, 1] and list(nearest(points[::-1].copy(), points)) == [2, 0, 0]


def test_area_changes_are_ratios_of_sums_over_people(monkeypatch):
    monkeypatch.setattr(bootstrap_module, "RESAMPLED", 50)
    before = np.array([[10.0, 30, 20, 20]] * 3)
    after = np.array([[12.0, 36, 10, 20], [14, 36, 10, 20], [13, 36, 10, 20]])  # means 13, 36, 10, 20
    areas = {"ventricle": np.stack([before, after]), "grey": np.stack([before, before]), "white": np.stack([before, before])}
    found = area_changes(handmade(np.zeros((3, 4, 1)), areas=areas), np.array(list("abcd")))
    mean, change = found[0]["ventricle"]
    assert mean == 20 and change.value == pytest.approx(9 / 40) and change.low == pytest.approx(0.2, abs=0.01)
    assert found[1]["ventricle"][1].value == pytest.approx(-10 / 40) and found[1]["grey"][1].value == 0
    assert found[0]["brain"][0] == 60 and found[0]["brain"][1].value == pytest.approx(9 / 120)
