"""What changes when styles, noise or depth do: each picture against a second way of computing it."""

import copy

import numpy as np
import pytest
import torch

from analysis import latents as explore
from analysis.models import draw_z, style_vectors, synthesize
from ops import upsample


def styles(model, count, seed=0, label=None):
    with torch.no_grad():
        return style_vectors(model.mapping, draw_z(count, 256, seed), label)[0]


# ---------------------------------------------------------------------------------------------------------------------
# Styles


def test_mixing_takes_the_named_layers_from_the_columns(model):
    rows, columns, layers = styles(model, 2), styles(model, 3, seed=1), [0, 3, 7]
    found = explore.mix(model, rows, columns, layers)
    assert found.shape == (2, 3, 32, 32)
    for i in range(2):
        for j in range(3):
            ws = torch.stack([columns[j] if layer in layers else rows[i] for layer in range(model.generator.num_ws)])
            np.testing.assert_array_equal(found[i, j], synthesize(model, ws[None])[0])
    np.testing.assert_array_equal(explore.mix(model, rows, columns, [])[:, 1], synthesize(model, rows))
    np.testing.assert_array_equal(explore.mix(model, rows, columns, range(8))[1], synthesize(model, columns))


@pytest.mark.parametrize("resolution", [4, 8, 16, 32])
def test_layers_from_a_resolution_leave_the_style_blocks_below_alone(model, resolution):
    drawn, seen = torch.stack([styles(model, 1), styles(model, 1, seed=1)]), []
    layers = list(explore.layers_from(resolution, model.generator.num_ws))
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


def test_sweep_ends_at_the_mean_and_at_the_slice(model):
    w = styles(model, 3)
    found = explore.sweep(model, w, None, (0.0, 1.0))
    np.testing.assert_array_equal(found[:, 1], synthesize(model, w))
    np.testing.assert_array_equal(found[:, 0], np.repeat(synthesize(model, model.mapping.w_mean), 3, 0))


def test_loop_passes_through_every_style_and_closes():
    w = torch.randn(3, 5)
    way = explore.loop(w, 4).reshape(3, 4, 5)
    torch.testing.assert_close(way[:, 0], w)
    torch.testing.assert_close(way[1, 1], 0.75 * w[1] + 0.25 * w[2])
    torch.testing.assert_close(way[2, 3], 0.25 * w[2] + 0.75 * w[0])


def test_noise_spread(model):
    w = styles(model, 2)
    mean, spread = explore.noise_spread(model, w, 5, torch.Generator().manual_seed(1))
    rng = torch.Generator().manual_seed(1)
    slices = np.array([synthesize(model, w, "random", rng) for _ in range(5)], float)
    np.testing.assert_allclose(mean, slices.mean(0), rtol=1e-5)
    np.testing.assert_allclose(spread, np.sqrt(((slices - slices.mean(0)) ** 2).sum(0) / 4), rtol=1e-4, atol=1e-4)
    assert spread.mean() > 0.1
    silent = copy.deepcopy(model)
    for block in silent.generator.blocks:
        for style in block.styles:
            torch.nn.init.zeros_(style.noise_strength)
    assert explore.noise_spread(silent, w, 3, torch.Generator())[1].max() == 0


# ---------------------------------------------------------------------------------------------------------------------
# Resolutions


def test_pyramid_adds_up_to_the_slice(model):
    w = styles(model, 2)
    levels = explore.pyramid(model, w)
    assert [side for side, *_ in levels] == [4, 8, 16, 32]
    total = torch.zeros(2, 1, 2, 2)
    for side, so_far, added in levels:
        total = upsample(total) + torch.from_numpy(added)[:, None]
        assert so_far.shape == added.shape == (2, side, side)
        torch.testing.assert_close(total[:, 0], torch.from_numpy(so_far), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(total, model.generator(w, "fixed"), atol=1e-5, rtol=1e-5)
    assert not any(block._forward_hooks for block in model.generator.blocks)


# ---------------------------------------------------------------------------------------------------------------------
# Classes


def test_morph(conditional):
    z = draw_z(20, 256, 3)  # more than a batch, and not a whole number of them
    found = explore.morph(conditional, z, 3, steps=5)
    ad, nc = (synthesize(conditional, styles(conditional, 20, 3, label)) for label in (0, 1))
    np.testing.assert_array_equal(found.slices[:, 0], ad[:3])
    np.testing.assert_array_equal(found.slices[:, -1], nc[:3])
    middle = (styles(conditional, 3, 3, 0) + styles(conditional, 3, 3, 1)) / 2
    assert np.abs(found.slices[:, 2].astype(int) - synthesize(conditional, middle)).max() <= 1
    difference = nc.astype(float) - ad
    np.testing.assert_allclose(found.means, [ad.mean(0), nc.mean(0)])
    np.testing.assert_allclose(found.error, difference.std(0, ddof=1) / np.sqrt(20), atol=1e-9)
    assert found.latents == 20 and found.error.max() > 0


def test_truncated_morph_draws_each_class_to_its_own_mean(conditional):
    found = explore.morph(conditional, draw_z(2, 256, 0), 2, psi=0.0)
    means = synthesize(conditional, conditional.mapping.w_mean)
    np.testing.assert_array_equal(found.slices[:, 0], means[[0, 0]])
    np.testing.assert_array_equal(found.slices[:, -1], means[[1, 1]])


# ---------------------------------------------------------------------------------------------------------------------
# Directions


def test_ganspace_finds_planted_directions():
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(6, 6)).Q
    w = torch.randn(20000, 6) * torch.tensor([5.0, 3.0, 1.0, 0.1, 0.1, 0.1]) @ basis.T + 7
    vectors, shares = explore.ganspace(w, 3)
    assert (vectors @ basis[:, :3]).abs().diagonal().min() > 0.99
    np.testing.assert_allclose(shares, np.array([25, 9, 1]) / 35.03, rtol=0.05)


def test_sefa_solves_its_eigenvalue_problem(model):
    vectors, shares = explore.sefa(model.generator, 5)
    rows = torch.cat([style.conv.affine.weight for block in model.generator.blocks for style in block.styles]).double()
    gains = (rows @ vectors.double().T).square().sum(0)  # |A v|^2
    np.testing.assert_allclose(shares, (gains / rows.square().sum()).numpy(), rtol=1e-4)
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(5), atol=1e-5, rtol=0)
    other = torch.nn.functional.normalize(torch.randn(1000, 256, dtype=torch.float64), dim=1)
    assert (rows @ other.T).square().sum(0).max() < gains[0] and (gains.diff() < 0).all()


@pytest.mark.parametrize("method", ["ganspace", "sefa"])
def test_directions_and_the_class(conditional, model, method):
    found = explore.directions(conditional, 256, 0, method)
    ws = [styles(conditional, explore.DRAWN, 0, label) for label in (0, 1)]
    way = torch.nn.functional.normalize(ws[1].mean(0) - ws[0].mean(0), dim=0)
    torch.testing.assert_close(torch.from_numpy(found.cosine).float() @ found.vectors, way, atol=1e-3, rtol=0)  # a basis
    line = (torch.cat(ws) @ found.vectors[1]).numpy()
    assert found.spread[1] == pytest.approx(line.std(), rel=1e-3)
    assert found.correlation[1] == pytest.approx(np.corrcoef(line, np.repeat([0, 1], explore.DRAWN))[0, 1], abs=1e-3)
    assert np.isnan(explore.directions(model, 2, 0, method).cosine).all()


def test_along_passes_through_the_slice(model):
    w, found = styles(model, 1)[0], explore.directions(model, 2, 0, "ganspace")
    slices = explore.along(model, w, found, steps=3, reach=2.0)
    np.testing.assert_array_equal(slices[:, 1], np.repeat(synthesize(model, w[None]), 2, 0))
    moved = w + 2 * float(found.spread[1]) * found.vectors[1]
    assert np.abs(slices[1, 2].astype(int) - synthesize(model, moved[None])[0]).max() <= 1
