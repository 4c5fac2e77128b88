"""Mixing, truncation, interpolation, noise, resolutions, classes and directions, each against a second computation."""

import copy

import numpy as np
import pytest
import torch
from conftest import styles
from scipy import stats

from analysis import latents
from analysis.latents import (
    find_directions,
    ganspace,
    interpolate_loop,
    layers_from,
    mix_styles,
    morph,
    move_along,
    noise_statistics,
    resolution_pyramid,
    sefa,
    sign_flips,
    truncation_sweep,
)
from analysis.models import draw_z, synthesize
from ops import upsample
from utils import random_stream


def assert_same_images(a, b):
    """Up to one grey level: the sums of a convolution may round differently in batches of different sizes."""
    assert a.shape == b.shape and np.abs(a.astype(int) - b).max() <= 1


# ---------------------------------------------------------------------------------------------------------------------
# Styles


def test_mix_styles_takes_the_given_layers_from_the_columns(model):
    rows, columns, layers = styles(model, 2), styles(model, 3, seed=1), [0, 3, 7]
    mixed = mix_styles(model, rows, columns, layers)
    assert mixed.shape == (2, 3, 32, 32)
    for i in range(2):
        for j in range(3):
            ws = torch.stack([columns[j] if layer in layers else rows[i] for layer in range(model.generator.num_ws)])
            assert_same_images(mixed[i, j], synthesize(model, ws[None])[0])
    assert_same_images(mix_styles(model, rows, columns, [])[:, 1], synthesize(model, rows))
    assert_same_images(mix_styles(model, rows, columns, range(8))[1], synthesize(model, columns))
    assert np.abs(mixed[0, 0].astype(int) - synthesize(model, rows)[0]).max() > 1


@pytest.mark.parametrize("resolution", [4, 8, 16, 32])
def test_layers_from_a_resolution_do_not_change_the_style_blocks_below_it(model, resolution):
    drawn, seen = torch.stack([styles(model, 1), styles(model, 1, seed=1)]), []
    layers = list(layers_from(resolution, model.generator.num_ws))
    mixed = drawn[0][:, None].repeat(1, model.generator.num_ws, 1)
    mixed[:, layers] = drawn[1][:, None]
    for ws in (drawn[0][:, None].repeat(1, model.generator.num_ws, 1), mixed):
        features = {}
        handles = [
            style.register_forward_hook(lambda _block, _inputs, out: features.update({len(features): out[0].detach()}))
            for block in model.generator.blocks
            for style in block.styles
        ]
        synthesize(model, ws, "none")
        for handle in handles:
            handle.remove()
        seen.append(features)
    same = [torch.equal(a, b) for a, b in zip(seen[0].values(), seen[1].values())]
    sides = [x.shape[-1] for x in seen[0].values()]
    assert same == [side < resolution for side in sides]


def test_truncation_sweep_goes_from_the_mean_to_the_image(model):
    w = styles(model, 3)
    swept = truncation_sweep(model, w, None, (0.0, 1.0))
    assert_same_images(swept[:, 1], synthesize(model, w))
    assert_same_images(swept[:, 0], np.repeat(synthesize(model, model.mapping.w_mean), 3, 0))


def test_interpolate_loop_passes_through_every_w_and_closes():
    w = torch.randn(3, 5)
    way = interpolate_loop(w, 4).reshape(3, 4, 5)
    torch.testing.assert_close(way[:, 0], w)
    torch.testing.assert_close(way[1, 1], 0.75 * w[1] + 0.25 * w[2])
    torch.testing.assert_close(way[2, 3], 0.25 * w[2] + 0.75 * w[0])


def test_noise_statistics_are_mean_and_deviation_over_noises(model):
    w = styles(model, 2)
    mean, spread = noise_statistics(model, w, 5, torch.Generator().manual_seed(1))
    rng = torch.Generator().manual_seed(1)
    slices = np.array([synthesize(model, w, "random", rng) for _ in range(5)], float)
    np.testing.assert_allclose(mean, slices.mean(0), rtol=1e-5)
    np.testing.assert_allclose(spread, np.sqrt(((slices - slices.mean(0)) ** 2).sum(0) / 4), rtol=1e-4, atol=1e-4)
    assert spread.mean() > 0.1
    silent = copy.deepcopy(model)
    for block in silent.generator.blocks:
        for style in block.styles:
            torch.nn.init.zeros_(style.noise_strength)
    assert noise_statistics(silent, w, 3, torch.Generator())[1].max() == 0


# ---------------------------------------------------------------------------------------------------------------------
# Resolutions


def test_resolution_pyramid_adds_up_to_the_image(model):
    w = styles(model, 2)
    levels = resolution_pyramid(model, w)
    assert [side for side, *_ in levels] == [4, 8, 16, 32]
    biases = [block.image_bias.item() for block in model.generator.blocks]
    assert any(biases[:-1]) and biases[-1] != 0
    total = torch.zeros(2, 1, 2, 2)
    for i, (side, so_far, added) in enumerate(levels):
        total = upsample(total) + torch.from_numpy(added)[:, None] + biases[i]
        assert so_far.shape == added.shape == (2, side, side)
        torch.testing.assert_close(total[:, 0] + sum(biases[i + 1 :]), torch.from_numpy(so_far), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(total, model.generator(w, "fixed"), atol=1e-5, rtol=1e-5)
    assert not any(block._forward_hooks for block in model.generator.blocks)


# ---------------------------------------------------------------------------------------------------------------------
# Classes


def random_images(model, w):
    """Images with the noise that `morph` draws for seed 0, however often it is called."""
    return synthesize(model, w, "random", random_stream("morph", 0))


def test_morph_goes_from_ad_to_nc_and_averages_over_latents_and_their_noise(conditional):
    z = draw_z(20, 256, 3)  # more than a batch, and not a whole number of them
    result = morph(conditional, z, 3, steps=5)
    ws = [styles(conditional, 20, 3, label) for label in (0, 1)]
    for step, w in ((0, ws[0]), (2, (ws[0] + ws[1]) / 2), (4, ws[1])):
        assert_same_images(result.images[:, step], random_images(conditional, w[:3]))
    ad, nc = (random_images(conditional, w) for w in ws)
    difference = nc.astype(float) - ad
    np.testing.assert_allclose(result.means, [ad.mean(0), nc.mean(0)], atol=1e-9)
    np.testing.assert_allclose(result.error, difference.std(0, ddof=1) / np.sqrt(20), atol=1e-4)
    assert result.latents == 20 and result.error.max() > 0
    assert result.found == (np.abs(difference.mean(0)) > 2 * result.error).mean()


def test_morph_truncated_with_psi_0_goes_from_mean_to_mean(conditional):
    result = morph(conditional, draw_z(2, 256, 0), 2, psi=0.0)
    for step, mean in ((0, conditional.mapping.w_mean[:1]), (-1, conditional.mapping.w_mean[1:])):
        assert_same_images(result.images[:, step], random_images(conditional, mean.repeat(2, 1)))


def test_morph_means_hold_no_pattern_of_one_noise(conditional):
    """At psi 0 all images of a class differ by their noise alone: with one noise for all, they would be equal."""
    result = morph(conditional, draw_z(400, 256, 0), 1, psi=0.0)
    one = synthesize(conditional, conditional.mapping.w_mean[:1])[0].astype(float)
    mean, spread = noise_statistics(conditional, conditional.mapping.w_mean[:1], 400, torch.Generator().manual_seed(5))
    assert np.abs(result.means[0] - mean[0]).mean() < 0.1 * np.abs(one - mean[0]).mean() and spread.mean() > 0.1


@pytest.mark.parametrize("same_class", [True, False])
def test_morph_finds_no_more_than_chance_where_the_label_tells_nothing(conditional, monkeypatch, same_class):
    """Both labels take latents of one class: the same ones, so that nothing differs, or others, so that all does but the mean."""
    drawn = []

    def style_vectors(mapping, z, label, held):
        drawn.append((label, held))
        other = z if same_class else torch.randn(z.shape, generator=torch.Generator().manual_seed(len(drawn)))
        return styles_of(mapping, other, 0)

    styles_of = latents.style_vectors
    monkeypatch.setattr(latents, "style_vectors", style_vectors)
    result = morph(conditional, draw_z(64, 256, 0), 1)
    assert drawn == [(0, True), (1, True)]
    if same_class:
        assert (result.found, result.chance) == (0, (0, 0))
    else:
        assert 0.01 < result.chance[0] < 0.08 and result.found <= result.chance[1] < 1


def test_sign_flips_hold_their_level_under_the_null_and_find_a_planted_difference():
    """Correlated pixels, as of slices: few of 100 sets exceed the percentile; the mean is that of the t distribution."""
    rng, exceeded = np.random.default_rng(0), 0
    for _ in range(100):
        smooth = rng.normal(size=(40, 4, 4)).repeat(4, 1).repeat(4, 2) + 0.3 * rng.normal(size=(40, 16, 16))
        error, share, (mean, high) = sign_flips(smooth.astype(np.float32))
        exceeded += share > high
        assert mean == pytest.approx(2 * stats.t.sf(2, 39), abs=0.03)
    assert exceeded <= 7  # 2.5 are expected
    np.testing.assert_allclose(error, smooth.std(0, ddof=1) / np.sqrt(40), rtol=1e-4)
    smooth[:, :8] += 2
    _, share, (_, high) = sign_flips(smooth.astype(np.float32))
    assert share > 0.5 > high


# ---------------------------------------------------------------------------------------------------------------------
# Principal directions


def test_ganspace_finds_the_axes_of_a_gaussian():
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(6, 6)).Q
    w = torch.randn(20000, 6) * torch.tensor([5.0, 3.0, 1.0, 0.1, 0.1, 0.1]) @ basis.T + 7
    vectors, shares = ganspace(w, 3)
    assert (vectors @ basis[:, :3]).abs().diagonal().min() > 0.99
    np.testing.assert_allclose(shares, np.array([25, 9, 1]) / 35.03, rtol=0.05)


def test_sefa_finds_the_directions_of_largest_gain(model):
    vectors, shares = sefa(model.generator, 5)
    rows = torch.cat([style.conv.affine.weight for block in model.generator.blocks for style in block.styles]).double()
    gains = (rows @ vectors.double().T).square().sum(0)  # |A v|^2
    np.testing.assert_allclose(shares, (gains / rows.square().sum()).numpy(), rtol=1e-4)
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(5), atol=1e-5, rtol=0)
    other = torch.nn.functional.normalize(torch.randn(1000, 256, dtype=torch.float64), dim=1)
    assert (rows @ other.T).square().sum(0).max() < gains[0] and (gains.diff() < 0).all()


@pytest.mark.parametrize("method", ["ganspace", "sefa"])
def test_find_directions_measures_deviation_and_relation_to_the_class(conditional, model, method):
    result = find_directions(conditional, 256, 0, method)
    ws = [styles(conditional, latents.DIRECTION_LATENTS, 0, label) for label in (0, 1)]
    difference = torch.nn.functional.normalize(ws[1].mean(0) - ws[0].mean(0), dim=0)
    torch.testing.assert_close(torch.from_numpy(result.cosine).float() @ result.vectors, difference, atol=1e-3, rtol=0)  # a basis
    along = (torch.cat(ws) @ result.vectors[1]).numpy()
    assert result.deviation[1] == pytest.approx(along.std(), rel=1e-3)
    assert result.correlation[1] == pytest.approx(np.corrcoef(along, np.repeat([0, 1], latents.DIRECTION_LATENTS))[0, 1], abs=1e-3)
    assert np.isnan(find_directions(model, 2, 0, method).cosine).all()


def test_move_along_has_the_image_of_w_in_the_middle(model):
    w, result = styles(model, 1)[0], find_directions(model, 2, 0, "ganspace")
    images = move_along(model, w, result, steps=3, reach=2.0).astype(int)
    assert np.abs(images[:, 1] - synthesize(model, w[None])).max() <= 1  # rounding, in a batch of another size
    moved = w + 2 * float(result.deviation[1]) * result.vectors[1]
    assert np.abs(images[1, 2] - synthesize(model, moved[None])[0]).max() <= 1 < np.abs(images[1, 2] - images[1, 1]).max()
