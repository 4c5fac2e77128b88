"""Augmentation: each operation against a second way of computing it, and that nothing leaks into generated images."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.autograd import gradcheck

from training import augment as augmentation
from training.augment import OPERATIONS, P_MAX, add_noise, augment, cut_out, move, tone


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def seeded_rng(seed=0):
    return torch.Generator().manual_seed(seed)


def neutral(n, **given):
    """Arguments of `move` that leave n images as they are, but for those given."""
    return {"mirror": torch.ones(n), "shift": torch.zeros(n, 2), "angle": torch.zeros(n), "zoom": torch.ones(n), **given}


def smooth_image(size, margin):
    """A float32 [size, size] image of smooth structure on black, black within `margin` of the edge."""
    y, x = np.mgrid[:size, :size] / size
    image = 0.5 + 0.3 * np.sin(9 * x + 4 * y) + 0.2 * np.cos(11 * y - 3 * x)
    inner = np.zeros((size, size))
    inner[margin:-margin, margin:-margin] = 1
    return (image * inner).astype(np.float32)


def test_constants_of_the_operations():
    assert augmentation.SHIFT == 1 / 8 and augmentation.CUTOUT == 1 / 2  # Karras et al. 2020 (arXiv:2006.06676), appendix B
    assert 2 * augmentation.BRIGHTNESS == 0.2 and 2 * augmentation.NOISE == 0.1  # likewise, there of intensities in [-1, 1]
    assert augmentation.SCALE == 0.1 and augmentation.CONTRAST == 0.3  # weaker than there: 0.2 and 0.5
    assert augmentation.ROTATE == math.radians(20) and augmentation.GAMMA == 0.5  # there: any angle, no gamma curve


# ---------------------------------------------------------------------------------------------------------------------
# The identity


def test_probability_0_leaves_images_as_they_are():
    images = 3 * torch.randn(8, 1, 32, 32)  # a generator's may lie outside [-1, 1]
    for zero in (0, 0.0):
        assert augment(images, zero) is images
    assert (augment(images, torch.zeros([]), seeded_rng()) - images).abs().max() < 1e-6
    assert (augment(images, 1.0, seeded_rng(), operations=()) - images).abs().max() < 1e-6


def test_share_of_images_that_no_operation_changes():
    images = torch.rand(512, 1, 32, 32) * 2 - 1
    same = (augment(images, 0.1, seeded_rng()) - images).abs().amax((1, 2, 3)) < 1e-6
    share = 0.95 * 0.9**8  # a flip shows in one of two
    assert abs(same.sum() - 512 * share) < 4 * math.sqrt(512 * share * (1 - share))


# ---------------------------------------------------------------------------------------------------------------------
# Geometry


@pytest.mark.parametrize("size", [32, 64, 256])
def test_flips_and_shifts_are_exact(size):
    v, far = torch.rand(6, 1, size, size), size // 8
    mirror = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    shift = torch.tensor([[0, 0], [0, 0], [3, -2], [3, -2], [-far, far], [far, -1]]).float()
    moved = move(v, **neutral(6, mirror=mirror, shift=shift))
    for before, after, m, (right, down) in zip(v[:, 0], moved[:, 0], mirror, shift.int().tolist()):
        expected = before.flip(1) if m < 0 else before  # first the flip, then the shift
        expected = torch.roll(F.pad(expected, (far,) * 4), (down, right), (0, 1))[far:-far, far:-far]  # black comes in
        assert torch.equal(after, expected)


@pytest.mark.parametrize("degrees, zoom", [(13, 1.0), (-7, 1.0), (0, 1.15), (20, 0.8), (90, 1.0)])
def test_rotation_and_scaling_match_pillow(degrees, zoom):
    original = smooth_image(64, 18)
    ours = move(
        torch.from_numpy(original)[None, None], **neutral(1, angle=torch.tensor([math.radians(degrees)]), zoom=torch.tensor([zoom]))
    )[0, 0].numpy()
    image = Image.fromarray(original).rotate(degrees, Image.Resampling.BILINEAR)  # anticlockwise
    if zoom != 1:
        c, s, half = math.cos(math.radians(degrees)) / zoom, math.sin(math.radians(degrees)) / zoom, 32
        image = Image.fromarray(original).transform(
            (64, 64),
            Image.Transform.AFFINE,
            (c, -s, half - c * half + s * half, s, c, half - s * half - c * half),
            Image.Resampling.BILINEAR,
        )
    np.testing.assert_allclose(ours, np.asarray(image), atol=1e-3)
    if degrees == 90:
        np.testing.assert_allclose(ours, np.rot90(original), atol=1e-5)


def test_one_resampling_equals_the_operations_in_their_order():
    """Flip, shift, rotation by a quarter and scaling, one after the other and all at once."""
    v = torch.rand(1, 1, 32, 32)
    mirror, shift, quarter = torch.tensor([-1.0]), torch.tensor([[4.0, -3.0]]), torch.tensor([math.pi / 2])
    zoom = torch.tensor([2.0])
    steps = move(move(move(v, **neutral(1, mirror=mirror)), **neutral(1, shift=shift)), **neutral(1, angle=quarter))
    torch.testing.assert_close(move(v, mirror, shift, quarter, torch.ones(1)), steps, atol=1e-4, rtol=0)
    scaled = move(steps, **neutral(1, zoom=zoom))
    torch.testing.assert_close(move(v, mirror, shift, quarter, zoom), scaled, atol=1e-4, rtol=0)


def test_outside_of_the_image_is_black():
    white = torch.ones(64, 1, 32, 32)
    for name in ("shift", "rotate", "scale"):
        changed = augment(white, 1.0, seeded_rng(), [name])
        assert changed.min() == -1 and changed.max() <= 1 + 1e-6, name
    corners = augment(-white, 1.0, seeded_rng(), ["flip", "shift", "rotate", "scale", "contrast", "gamma", "cutout"])
    torch.testing.assert_close(corners, -white, atol=1e-6, rtol=0)  # a black slice stays black


# ---------------------------------------------------------------------------------------------------------------------
# Intensities


def test_tone_in_closed_form():
    v = torch.tensor([-0.5, 0.0, 0.25, 0.5, 1.0, 1.5]).reshape(1, 1, 1, 6)

    def toned(brightness, contrast, gamma):
        return tone(v, torch.tensor([brightness]), torch.tensor([contrast]), torch.tensor([gamma])).flatten()

    torch.testing.assert_close(toned(0.1, 1.0, 1.0), v.flatten() + 0.1)
    torch.testing.assert_close(toned(0.0, 2.0, 1.0), v.flatten() * 2)
    torch.testing.assert_close(toned(0.1, 2.0, 1.0), (v.flatten() + 0.1) * 2)
    torch.testing.assert_close(toned(0.0, 1.0, 3.0), torch.tensor([-0.5, 0.0, 0.1, 0.25, 1.0, 1.5]))
    again = tone(toned(0.0, 1.0, 3.0).reshape(v.shape), torch.zeros(1), torch.ones(1), torch.tensor([1 / 3]))
    torch.testing.assert_close(again, v)  # the curve of 1 / gamma is the inverse of that of gamma


def test_tone_has_a_bounded_slope_everywhere():
    v = torch.tensor([-1e4, -2.0, 0.0, 1e-8, 0.3, 1.0, 1.1, 1e4]).reshape(1, 1, 1, -1).requires_grad_()
    for gamma in (0.2, 1.0, 5.0):
        (slope,) = torch.autograd.grad(tone(v, torch.zeros(1), torch.ones(1), torch.tensor([gamma])).sum(), v)
        assert slope.min() > min(gamma, 1 / gamma) - 1e-4 and slope.max() < max(gamma, 1 / gamma) + 1e-4


def test_noise_has_its_standard_deviation():
    v = torch.rand(3, 1, 256, 256)
    noise = add_noise(v, torch.tensor([0.0, 0.1, 0.3]), seeded_rng()) - v
    assert not noise[0].any()
    np.testing.assert_allclose(noise.std((1, 2, 3)).numpy(), [0, 0.1, 0.3], rtol=0.01)
    np.testing.assert_allclose(noise.mean((1, 2, 3)).numpy(), 0, atol=5 * 0.3 / 256)


def test_cut_out_is_a_square_of_half_the_side():
    v = torch.rand(4, 1, 32, 32) + 0.1
    centre, side = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.25, 0.75], [0.0, 1.0]]), torch.tensor([0.0, 0.5, 0.5, 0.5])
    expected = v.clone()
    expected[1, :, 8:24, 8:24] = 0
    expected[2, :, 16:32, 0:16] = 0  # right 0.25, down 0.75
    expected[3, :, 24:32, 0:8] = 0  # at the corner, a quarter of it is in the image
    assert torch.equal(cut_out(v, centre, side), expected)


# ---------------------------------------------------------------------------------------------------------------------
# The pipeline


def test_augment_is_its_operations_in_order_each_with_random_numbers_of_its_own():
    """Written out for one image after the other, in float64; strengths are rounded to float32, by 2^-24 of them."""
    torch.set_default_dtype(torch.float64)
    try:
        images, p, n, side = 2 * torch.rand(40, 1, 16, 16) - 1, 0.6, 40, 16
        ours, rng = augment(images, p, seeded_rng(2)), seeded_rng(2)
        chance, uniform = torch.rand((n, 9), generator=rng), torch.rand((n, 9), generator=rng)
        normal, noise = torch.randn((n, 5), generator=rng), torch.randn((n, 1, side, side), generator=rng)
        for i in range(n):
            flip, shift, rotate, scale, brightness, contrast, gamma, noisy, cutout = (chance[i] < p).double()
            u, z = uniform[i].tolist(), normal[i].tolist()
            sides = [round((2 * number - 1) * side / 16) for number in u[3:7]]  # halves of the shifts, in whole pixels
            v = move(
                (images[i : i + 1] + 1) / 2,
                torch.tensor([-1.0 if flip and u[0] < 0.5 else 1.0]),
                shift * torch.tensor([[float(sides[0] + sides[2]), float(sides[1] + sides[3])]]),
                rotate[None] * math.radians(10) * (2 * u[7] - 1 + 2 * u[8] - 1),
                2 ** (scale[None] * 0.1 * z[0]),
            )
            v = tone(v, brightness[None] * 0.1 * z[1], 2 ** (contrast[None] * 0.3 * z[2]), 2 ** (gamma[None] * 0.5 * z[3]))
            v = v + noisy * 0.05 * abs(z[4]) * noise[i]
            v = cut_out(v, torch.tensor([u[1:3]]), cutout[None] * 0.5)
            torch.testing.assert_close(ours[i : i + 1], 2 * v - 1, rtol=0, atol=1e-5)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("p", [0.3, 1.0])
def test_augment_derivative_matches_finite_differences(p):
    images = (2.2 * torch.rand(4, 1, 8, 8, dtype=torch.float64) - 1.1).requires_grad_()  # some outside [-1, 1]
    assert gradcheck(lambda x: augment(x, p, seeded_rng(3)), images)
    changed = augment(images, p, seeded_rng(3))
    assert changed.dtype == torch.float64 and (changed - images).abs().mean() > 0.01


def test_pixels_beyond_white_keep_a_gradient():
    images = torch.full((64, 1, 32, 32), 1.6, requires_grad=True)
    changed = augment(images, 1.0, seeded_rng(), ["brightness", "contrast", "gamma", "noise"])
    (gradient,) = torch.autograd.grad(changed.sum(), images)
    assert gradient.min() > 0.2 and gradient.max() < 5


def test_every_image_has_its_own_random_numbers():
    images = torch.rand(6, 1, 32, 32) * 2 - 1
    others = images.clone()
    others[2] = torch.rand(1, 32, 32) * 2 - 1
    one, two = augment(images, 0.8, seeded_rng()), augment(others, 0.8, seeded_rng())
    assert [torch.equal(a, b) for a, b in zip(one, two)] == [True, True, False, True, True, True]
    alike = augment(images[:1].repeat(16, 1, 1, 1), 1.0, seeded_rng())
    assert all((alike[0] - other).abs().mean() > 0.01 for other in alike[1:])


def test_seed_decides_the_augmentation():
    images = torch.rand(8, 1, 32, 32) * 2 - 1
    one, again, another = (augment(images, 0.7, seeded_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, another)
    assert torch.equal(augment(images, torch.tensor(0.7), seeded_rng(1)), one)  # a number or a tensor
    before = torch.random.get_rng_state()
    augment(images, 0.7, seeded_rng())
    assert torch.equal(torch.random.get_rng_state(), before)  # and PyTorch's own generator is left alone


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_changes_its_share_of_the_images(name):
    n, p = 2000, 0.3
    images = torch.rand(1, 1, 32, 32).repeat(n, 1, 1, 1) * 2 - 1
    changed = ((augment(images, p, seeded_rng(5), [name]) - images).abs().amax((1, 2, 3)) > 1e-6).sum().item()
    half_shift = np.array([1, 2, 2, 2, 1]) / 8  # chances of -2 ... 2 pixels; a shift is two
    share = p * {"flip": 1 / 2, "shift": 1 - (half_shift**2).sum() ** 2}.get(name, 1)  # some change nothing
    assert abs(changed - n * share) < 4 * math.sqrt(n * share * (1 - share))


def test_operations_are_independent():
    """Whether an image is mirrored says nothing about whether it is brightened: the shares multiply."""
    n, p = 4000, 0.5
    images = torch.linspace(-0.5, 0.5, 32).expand(n, 1, 32, 32)
    changed = augment(images, p, seeded_rng(7), ["flip", "brightness"])
    mirrored = changed[:, 0, 0, 0] > changed[:, 0, 0, -1]
    brightened = (changed.mean((1, 2, 3)) - images.mean()).abs() > 1e-6
    for event, share in ((mirrored, 1 / 4), (brightened, 1 / 2), (mirrored & brightened, 1 / 8)):
        assert abs(event.sum() - n * share) < 4 * math.sqrt(n * share * (1 - share))


def test_shifts_reach_an_eighth_of_the_side():
    images = torch.full((4000, 1, 32, 32), -1.0)
    images[:, :, 16, 16] = 1
    place = augment(images, 1.0, seeded_rng(), ["shift"]).flatten(1).argmax(1)
    for along in (place // 32, place % 32):
        assert (along.min(), along.max()) == (12, 20)


@pytest.mark.parametrize("p", [0.5, 1.0])
def test_augmented_images_and_gradients_are_finite(p):
    hostile = torch.randn(64, 1, 32, 32) * torch.logspace(-8, 6, 64)[:, None, None, None]
    hostile[::4] = torch.tensor([-1.0, 1.0, 0.0, -3.0]).repeat(4)[:, None, None, None]
    images = hostile.requires_grad_()
    for seed in range(5):
        changed = augment(images, p, seeded_rng(seed))
        (gradient,) = torch.autograd.grad(changed.sum(), images)
        assert changed.shape == images.shape and changed.dtype == torch.float32
        assert changed.isfinite().all() and gradient.isfinite().all()
        assert (changed.detach().abs().amax((1, 2, 3)) < 10 * hostile.detach().abs().amax((1, 2, 3)) + 10).all()


def test_augment_never_waits_for_a_gpu():
    """On PyTorch's "meta" device tensors have no values, so that reading one raises."""
    images, p = torch.empty(4, 1, 32, 32, device="meta"), torch.empty([], device="meta")
    assert augment(images, p).shape == images.shape


# ---------------------------------------------------------------------------------------------------------------------
# Nothing leaks: augmentation is invertible on distributions, and a generator learns unaugmented images through it


def test_flips_are_invertible_below_one():
    images = torch.linspace(-1, 1, 8).expand(4000, 1, 8, 8)

    def smallest_singular_value(p):
        changed = augment(torch.cat([images, images.flip(3)]), p, seeded_rng(), ["flip"])
        left = (changed[:, 0, 0, 0] < changed[:, 0, 0, -1]).float().view(2, -1).mean(1)  # share of the first kind
        return np.linalg.svd(np.array([left.numpy(), 1 - left.numpy()]), compute_uv=False)[-1]

    assert smallest_singular_value(P_MAX) > 0.8 * (1 - P_MAX)
    assert smallest_singular_value(0.5) > 0.45
    assert smallest_singular_value(1.0) < 0.05


def measured_strengths(name, p, n=8000):
    """n strengths of an operation, read from n images: pixels [n, 2], radians, log2 of the factor, or intensity."""
    y, x = torch.meshgrid(torch.arange(32.0) - 15.5, torch.arange(32.0) - 15.5, indexing="ij")
    ellipse = torch.exp(-((x / 6) ** 2) - (y / 3) ** 2)
    v = (augment((2 * ellipse - 1).expand(n, 1, 32, 32), p, seeded_rng(), [name])[:, 0] + 1) / 2
    if name == "brightness":
        return v[:, 0, 0] - ellipse[0, 0]
    if name == "contrast":
        return torch.log2(v[:, 16, 16] / ellipse[16, 16])
    mass = v.sum((1, 2))
    if name == "shift":
        return torch.stack([(v * axis).sum((1, 2)) / mass for axis in (x, y)], dim=1)
    if name == "rotate":  # of the longer axis, from second moments
        xx, xy, yy = ((v * weight).sum((1, 2)) / mass for weight in (x * x, x * y, y * y))
        return torch.atan2(2 * xy, xx - yy) / 2
    return torch.log2(mass / ellipse.sum()) / 2


@pytest.mark.parametrize("name, unit", [("shift", 1.0), ("rotate", 0.1), ("scale", 0.05), ("brightness", 0.05), ("contrast", 0.1)])
def test_distributions_of_strengths_have_no_negative_fourier_transform(name, unit):
    """The operator adds a random strength, so its eigenvalues are the Fourier transform of the strength's distribution. With
    uniform strengths that falls to 1 - p - 0.217 p, which is 0.03 at 0.8; here it stays at 1 - p, but for chance."""
    strengths = measured_strengths(name, P_MAX) / unit
    strengths = strengths if strengths.ndim == 2 else strengths[:, None]
    frequency = torch.linspace(0, math.pi, 60)
    for axis in strengths.T:
        transform = torch.cos(frequency[:, None] * axis).mean(1)
        assert transform[0] == 1 and transform.min() < 0.4  # it does spread
        assert transform.min() > 1 - P_MAX - 0.06


def bars(n, rng):
    """n images [n, 1, 16, 16] of an L of random brightness in the left half; black elsewhere."""
    v = torch.zeros(n, 1, 16, 16)
    v[:, :, 3:13, 3:6] = v[:, :, 10:13, 3:10] = 1
    return 2 * v * (0.5 + 0.4 * torch.rand(n, 1, 1, 1, generator=rng)) - 1


def learn_bars(p, steps=500, batch=64):
    """256 images by a small GAN that only sees bars through augment(., p), and that starts at the mirror image of them.

    Logistic loss with a penalty on the critic's gradient at real images (Mescheder et al. 2018, arXiv:1801.04406); the
    generator is averaged, as train.py does it.
    """
    rng = seeded_rng()
    generator = nn.Sequential(nn.Linear(8, 64), nn.LeakyReLU(0.2), nn.Linear(64, 256), nn.Unflatten(1, (1, 16, 16)))
    critic = nn.Sequential(
        nn.Flatten(), nn.Linear(256, 128), nn.LeakyReLU(0.2), nn.Linear(128, 128), nn.LeakyReLU(0.2), nn.Linear(128, 1)
    )
    with torch.no_grad():
        generator[2].bias.copy_(bars(500, rng).mean(0).flip(2).flatten())
    averaged = copy.deepcopy(generator)
    optimizer_g, optimizer_c = (
        torch.optim.Adam(network.parameters(), lr=3e-3, betas=(0.0, 0.99)) for network in (generator, critic)
    )
    for _ in range(steps):
        real = augment(bars(batch, rng), p, rng).requires_grad_()
        fake = augment(generator(torch.randn(batch, 8, generator=rng)), p, rng)
        score = critic(real)
        (slope,) = torch.autograd.grad(score.sum(), real, create_graph=True)
        loss = F.softplus(-score).mean() + F.softplus(critic(fake.detach())).mean() + slope.square().sum((1, 2, 3)).mean()
        optimizer_c.zero_grad()
        loss.backward()
        optimizer_c.step()
        loss = F.softplus(-critic(fake)).mean()
        optimizer_g.zero_grad()
        loss.backward()
        optimizer_g.step()
        torch._foreach_lerp_([p.data for p in averaged.parameters()], [p.data for p in generator.parameters()], 0.02)
    with torch.no_grad():
        return averaged(torch.randn(256, 8, generator=rng))


def left_share(images):
    """The share of images with the L in the left half rather than the right."""
    return (images[..., :8].mean((1, 2, 3)) > images[..., 8:].mean((1, 2, 3))).float().mean().item()


def traces(images, data):
    """What augmentation would leave in images: share of unflipped ones, how far the mean image is off (1: as far as the
    mirror image), spread of the background's brightness, and spread of the bar's, relative to that in the data."""
    mean, mirrored = data.mean(0), data.mean(0).flip(2)
    background = images[:, (mean == -1) & (mirrored == -1)].mean(1)
    bar, bar_data = (some[:, 0, 4:12, 4].mean(1).std() for some in (images, data))
    off = (images.mean(0) - mean).abs().mean() / (mirrored - mean).abs().mean()
    return left_share(images), off.item(), background.std().item(), (bar / bar_data).item()


@pytest.mark.slow
def test_generator_learns_unaugmented_images_at_a_probability_below_the_limit():
    images, data = learn_bars(0.6), bars(1000, seeded_rng(1))
    left, off, background, bar = traces(images, data)
    assert left > 0.95 and off < 0.3 and background < 0.12 and 0.6 < bar < 1.5
    assert images[:, 0, 0].mean().item() == pytest.approx(-1, abs=0.1)  # the top line, where nothing is
    left, off, background, bar = traces(augment(data, 0.6, seeded_rng()), data)  # the critic saw others
    assert left < 0.8 and off > 0.5 and background > 0.15 and bar > 2


@pytest.mark.slow
def test_generator_keeps_its_flip_at_probability_1():
    """At p = 1 augmented images do not tell the sides apart: the check of the test above can fail."""
    assert left_share(learn_bars(1.0, steps=250)) < 0.05
