"""The encoder against style vectors that are known, and its file."""

import os

import numpy as np
import pytest
import torch
from conftest import change_weights

from analysis import encoder as encoder_module
from analysis.encoder import Normal, draw_slices, find_encoder, fine_detail, measure, principal_components, train_encoder
from analysis.models import Model, load_model
from modules import NOISE_LR, build_generator

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
QUICK = {"SLICES": 2048, "HELD_OUT": 1024, "STEPS": 250}


def plain_model():
    """An untrained class-conditional model of 32x32, whose eight style components its slices show."""
    torch.manual_seed(0)
    sizes = {
        "resolution": 32,
        "channel_base": 256,
        "channel_max": 16,
        "z_dim": 8,
        "w_dim": 8,
        "num_classes": 2,
        "mapping_layers": 8,
    }
    networks = build_generator(sizes).eval().requires_grad_(False)
    networks["generator"].blocks[-1].image_bias.zero_()
    for block in networks["generator"].blocks:
        for style in block.styles:
            style.noise_strength.fill_(0.1 / NOISE_LR)
    return Model("plain", networks["mapping"], networks["generator"], ["AD", "NC"], [0, 1], "")


@pytest.fixture(scope="module")
def trained():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUICK.items():
            patch.setattr(encoder_module, name, value)
        torch.set_num_threads(1)
        model = plain_model()
        return model, train_encoder(model, seed=0)


def test_principal_components_are_whitened_and_give_w_back():
    w = torch.randn(500, 6, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 7) + 3
    mean, basis = principal_components(w, 6)
    points = (w - mean) @ torch.linalg.pinv(basis)
    torch.testing.assert_close(points.T @ points / len(w), torch.eye(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(mean + points @ basis, w, atol=1e-3, rtol=0)
    assert torch.linalg.norm(basis[0]) > torch.linalg.norm(basis[1]) > torch.linalg.norm(basis[5])


def test_normal_is_the_mahalanobis_distance():
    sample = torch.randn(400, 5, generator=torch.Generator().manual_seed(0)) @ torch.randn(5, 5) + 2
    normal = Normal(5)
    normal.fit(sample, shrinkage=0)
    x = sample.numpy().astype(float) - sample.numpy().mean(0)
    expected = np.einsum("ni,ij,nj->n", x, np.linalg.inv(np.cov(x.T)), x) / 5
    np.testing.assert_allclose(normal(sample).numpy(), expected, rtol=1e-3)


def test_fine_detail_grows_with_grain_and_not_with_brightness():
    rng = torch.Generator().manual_seed(0)
    smooth = torch.linspace(-1, 1, 32).expand(1, 1, 32, 32)
    grain = 0.2 * torch.randn(1, 1, 32, 32, generator=rng)
    assert fine_detail(smooth + 2 * grain) - fine_detail(smooth + grain) == pytest.approx(np.log(4), abs=0.1)
    torch.testing.assert_close(fine_detail(smooth + grain + 0.3), fine_detail(smooth + grain))


def test_slices_are_drawn_of_both_classes_in_turn():
    model = plain_model()
    pixels, w = draw_slices(model, 40, 16, seed=3)
    again, w_again = draw_slices(model, 4, 16, seed=3)
    assert pixels.shape == (40, 16, 16) and pixels.dtype == np.uint8 and w.shape == (40, 8)
    assert (pixels[:4] == again).all() and torch.equal(w[:4], w_again)
    z = torch.randn(32, 8, generator=encoder_module.random_stream("encoder", 3))
    torch.testing.assert_close(w[:32], model.mapping(z, torch.arange(32) % 2))


def test_unseen_slices_are_encoded_within_calibrated_intervals(trained):
    model, encoder = trained
    pixels, w = draw_slices(model, 1000, 32, seed=7)
    encoded = encoder.encode(pixels)
    points = ((w - encoder.mean) @ torch.linalg.pinv(encoder.basis)).numpy()
    explained = 1 - np.square(points - encoded.points).mean(0) / points.var(0)
    assert explained.mean() > 0.3 and explained.min() > 0, explained
    covered = (np.abs(points - encoded.points) < 1.6449 * encoded.deviation).mean()
    assert 0.87 < covered < 0.93
    recovered = encoder.style_vectors(encoded.points)
    left = (recovered - w).square().sum() / (w - w.mean(0)).square().sum()
    assert left < 0.7
    found = measure(model, encoder, 1000, seed=7)
    assert found["coverage of 90% intervals"] == pytest.approx(covered) and found["of w"] == pytest.approx(
        1 - left.item(), abs=1e-4
    )


def test_slices_that_the_model_cannot_draw_are_outside(trained):
    """Generated ones are not: about one in a hundred."""
    model, encoder = trained
    pixels, _ = draw_slices(model, 600, 32, seed=8)

    def refused(changed):
        return (encoder.outside(model, changed, encoder.encode(changed)) > 1).mean()

    assert refused(pixels) < 0.03
    rng, some = np.random.default_rng(0), pixels[:100]
    grainy = np.clip(some + rng.normal(0, 50, some.shape), 0, 255).astype(np.uint8)
    black = some.copy()
    black[:, 8:24, 8:24] = 0
    for changed in (some[:, :, ::-1], some.transpose(0, 2, 1), grainy, black, np.zeros_like(some)):
        assert refused(np.ascontiguousarray(changed)) >= 0.95


# ---------------------------------------------------------------------------------------------------------------------
# The file


@pytest.fixture
def tiny(monkeypatch):
    for name, value in {"SLICES": 64, "HELD_OUT": 64, "STEPS": 2}.items():
        monkeypatch.setattr(encoder_module, name, value)


def test_encoder_is_kept_beside_its_generator(models, tmp_path, capsys, tiny):
    model = load_model(change_weights(os.path.join(models, "AD"), tmp_path / "AD"), "cpu")
    made = find_encoder(model)
    assert sorted(os.listdir(tmp_path / "AD")) == ["encoder.pt", "generator.pt"]
    assert os.path.getsize(tmp_path / "AD/encoder.pt") < 2e6
    read = find_encoder(model, seed=5)  # made with another seed it would differ
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32), np.uint8)
    for a, b in zip(made.encode(pixels), read.encode(pixels)):
        np.testing.assert_array_equal(a, b)
    assert (made.outside(model, pixels, made.encode(pixels)) == read.outside(model, pixels, read.encode(pixels))).all()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("damage, told", [("other", "another generator"), ("torn", "no encoder"), ("empty", "no encoder")])
def test_encoder_of_another_generator_is_made_again(models, tmp_path, capsys, tiny, damage, told):
    model = load_model(change_weights(os.path.join(models, "AD"), tmp_path / "AD"), "cpu")
    path = tmp_path / "AD/encoder.pt"
    if damage == "empty":
        path.touch()
    else:
        other = load_model(change_weights(os.path.join(models, "AD"), tmp_path / "other", 0.1), "cpu")
        find_encoder(other)
        content = (tmp_path / "other/encoder.pt").read_bytes()
        path.write_bytes(content if damage == "other" else content[:1000])
    find_encoder(model)
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line and told in line and "made again" in line
    find_encoder(model)
    assert capsys.readouterr().err == ""


def test_encoder_that_cannot_be_kept_is_used_once(models, tmp_path, capsys, tiny):
    model = load_model(change_weights(os.path.join(models, "AD"), tmp_path / "AD"), "cpu")._replace(folder=str(tmp_path / "absent"))
    assert find_encoder(model).basis.shape == (64, 256)
    (line,) = capsys.readouterr().err.splitlines()
    assert "not saved" in line


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["models/all-conditional", "models/axial/all-conditional"])
def test_bundled_encoders_are_calibrated_and_belong_to_their_models(folder, capsys):
    model = load_model(os.path.join(ROOT, folder), "cpu")
    encoder = find_encoder(model)
    assert capsys.readouterr().err == ""
    found = measure(model, encoder, 250, seed=11)
    assert 0.87 < found["coverage of 90% intervals"] < 0.93 and found["of the first eight"] > 0.6
    assert found.pop("refused: generated") <= 0.03
    assert min(value for name, value in found.items() if name.startswith("refused")) >= 0.95
