"""Principal directions of the style space against planted ones, and their relation to the class."""

import numpy as np
import pytest
import torch
from conftest import styles

from analysis import directions
from analysis.directions import find_directions, ganspace, move_along, sefa
from analysis.models import synthesize


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
    ws = [styles(conditional, directions.LATENTS, 0, label) for label in (0, 1)]
    difference = torch.nn.functional.normalize(ws[1].mean(0) - ws[0].mean(0), dim=0)
    torch.testing.assert_close(torch.from_numpy(result.cosine).float() @ result.vectors, difference, atol=1e-3, rtol=0)  # a basis
    along = (torch.cat(ws) @ result.vectors[1]).numpy()
    assert result.deviation[1] == pytest.approx(along.std(), rel=1e-3)
    assert result.correlation[1] == pytest.approx(np.corrcoef(along, np.repeat([0, 1], directions.LATENTS))[0, 1], abs=1e-3)
    assert np.isnan(find_directions(model, 2, 0, method).cosine).all()


def test_move_along_has_the_image_of_w_in_the_middle(model):
    w, result = styles(model, 1)[0], find_directions(model, 2, 0, "ganspace")
    images = move_along(model, w, result, steps=3, reach=2.0).astype(int)
    assert np.abs(images[:, 1] - synthesize(model, w[None])).max() <= 1  # rounding, in a batch of another size
    moved = w + 2 * float(result.deviation[1]) * result.vectors[1]
    assert np.abs(images[1, 2] - synthesize(model, moved[None])[0]).max() <= 1 < np.abs(images[1, 2] - images[1, 1]).max()
