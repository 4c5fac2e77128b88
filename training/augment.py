"""Augmentation of everything the critic sees, real and generated images alike.

    critic(augment(real, p, rng)), critic(augment(fake, p, rng))

Follows Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data" (arXiv:2006.06676), called K20a: a
critic that knows its few training images by heart stops teaching the generator, so every operation is applied to every image
with probability p (ada.py controls it). The generator still learns unaugmented images, as long as only one distribution of
images can explain the augmented ones (K20a, section 2.2): the augmentation has to be invertible as an operator T = (1 - p) I +
p A on distributions. Strengths are drawn from normal and triangular densities, whose Fourier transforms are not negative, so
that no eigenvalue of T is below 1 - p. (With a uniform density T would have an eigenvalue of 0 at p = 0.82. Resampling and
what leaves the image are not covered by this argument.)

The operations are those of K20a that leave a slice of a head on black, and a gamma curve: no quarter turns, colours, stretching
or filters, and black where K20a mirrors the image at its edge or fills with grey. `python -m report.augmentation` draws them all.
"""

import math

import torch
import torch.nn.functional as F

OPERATIONS = "flip", "shift", "rotate", "scale", "brightness", "contrast", "gamma", "noise", "cutout"  # in this order
SHIFT = 1 / 8  # of the side, at most (triangular density, as for ROTATE)
ROTATE = math.radians(20)  # at most
SCALE = 0.1  # standard deviations (normal densities): of log2 of the factor,
BRIGHTNESS = 0.1  # ... of an intensity, where black is 0 and white is 1,
CONTRAST = 0.3  # ... of log2 of the factor,
GAMMA = 0.5  # ... of log2 of the curve's gamma,
NOISE = 0.05  # ... of the noise's own standard deviation, an intensity
CUTOUT = 1 / 2  # of the side


# ---------------------------------------------------------------------------------------------------------------------
# The operations, on intensities v [N, 1, R, R] with black at 0 and white at 1, unclipped. Every image has its own strengths.


def move(v, mirror, shift, angle, zoom):
    """Mirror, then shift, then rotate and scale about the centre, in one bilinear resampling; black outside of the image.

    mirror [N]: -1 swaps left and right, 1 does not; shift [N, 2]: pixels right and down; angle [N]: radians, anticlockwise;
    zoom [N]: above 1 magnifies. R must be a power of two: then mirrored and shifted pixels are exact, since all coordinates
    are floats without rounding.
    """
    size = v.shape[-1]
    place = (2 * torch.arange(size, device=v.device, dtype=v.dtype) + 1) / size - 1  # pixel centres; edges at -1 and 1
    x, y = place, place[:, None]
    cos, sin = ((f(angle) / zoom)[:, None, None] for f in (torch.cos, torch.sin))  # [N, 1, 1]
    right, down = (2 / size * shift).T[:, :, None, None]
    source = torch.stack([mirror[:, None, None] * (cos * x - sin * y - right), sin * x + cos * y - down], dim=3)
    return F.grid_sample(v, source.to(v.dtype), align_corners=False)


def tone(v, brightness, contrast, gamma):
    """Add `brightness`, multiply by `contrast`, then bend mid-grey down (`gamma` above 1) or up (below), each [N].

    The curve v / (v + gamma (1 - v)) keeps black and white and maps 1/2 to 1 / (1 + gamma). Unlike v^gamma, its slope stays
    between gamma and 1 / gamma, even at black, and the composition of two such curves is a third. Outside [0, 1] it
    continues with slope 1, so that values beyond black and white, which a generator may produce, keep a gradient.
    """
    brightness, contrast, gamma = (strength[:, None, None, None] for strength in (brightness, contrast, gamma))
    v = (v + brightness) * contrast
    inside = v.clamp(0, 1)
    return inside / (inside + gamma * (1 - inside)) + (v - inside)


def add_noise(v, sigma, rng=None):
    """Add N(0, sigma^2) to every pixel; sigma [N]."""
    return v + sigma[:, None, None, None] * torch.randn(v.shape, device=v.device, generator=rng)


def cut_out(v, centre, side):
    """Blacken a square around `centre` [N, 2], right and down, of `side` [N]; both in units of the image's side."""
    size = v.shape[-1]
    place = (torch.arange(size, device=v.device) + 0.5) / size
    column, row = ((place - centre[:, i, None]).abs() < side[:, None] / 2 for i in (0, 1))  # [N, R]
    return v.masked_fill((row[:, :, None] & column[:, None, :])[:, None], 0)


def augment(images, p, rng=None, operations=OPERATIONS):
    """Apply each operation to each image with probability p: images [N, 1, R, R] of about [-1, 1] -> the same shape.

    p: in [0, 1], a number or a 0-dim tensor on the images' device, whose value Python does not read (so nothing waits for the
    GPU). rng: a generator on that device, or None for PyTorch's own. operations: those allowed; the others draw random numbers
    without effect. Half of the images chosen for "flip" are mirrored, as in K20a. float32 or float64; differentiable once with
    respect to the images. With p = 0 images are returned as they are, or, if p is a tensor, within 2e-7.
    """
    if isinstance(p, (int, float)) and p == 0:
        return images
    n, size = len(images), images.shape[-1]
    chance = torch.rand((n, len(OPERATIONS)), device=images.device, generator=rng).T
    uniform = torch.rand((n, 9), device=images.device, generator=rng).T
    wide = 2 * uniform[3:] - 1  # in [-1, 1)
    normal = torch.randn((n, 5), device=images.device, generator=rng).T
    applied = {name: (row < p if name in operations else row < 0).float() for name, row in zip(OPERATIONS, chance)}  # [N], 0 or 1

    mirror = 1 - 2 * applied["flip"] * (uniform[0] < 0.5)
    shift = applied["shift"] * (SHIFT / 2 * size * wide[:4]).round().unflatten(0, (2, 2)).sum(0)  # [2, N], triangular
    angle = applied["rotate"] * ROTATE / 2 * wide[4:].sum(0)
    zoom = torch.exp2(applied["scale"] * SCALE * normal[0])
    v = move((images + 1) / 2, mirror, shift.T, angle, zoom)
    v = tone(
        v,
        applied["brightness"] * BRIGHTNESS * normal[1],
        torch.exp2(applied["contrast"] * CONTRAST * normal[2]),
        torch.exp2(applied["gamma"] * GAMMA * normal[3]),
    )
    v = add_noise(v, applied["noise"] * NOISE * normal[4].abs(), rng)
    return 2 * cut_out(v, uniform[1:3].T, applied["cutout"] * CUTOUT) - 1
