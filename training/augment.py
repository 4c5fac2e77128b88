"""Augmentation of everything the critic sees, real and generated images alike, and how strong it is.

    critic(augment(real, p, rng)), critic(augment(fake, p, rng))
    AugmentationStrength("ada", device).update(terms, images)          # moves p

Follows Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data" (arXiv:2006.06676), called K20a: a
critic that knows its few training images by heart stops teaching the generator, so every operation is applied to every image
with probability p, which grows while the critic overfits. The generator still learns unaugmented images, as long as only one
distribution of images can explain the augmented ones (K20a, section 2.2): the augmentation has to be invertible as an operator
T = (1 - p) I + p A on distributions. Strengths are drawn from normal and triangular densities, whose Fourier transforms are not
negative, so that no eigenvalue of T is below 1 - p. (With a uniform density T would have an eigenvalue of 0 at p = 0.82.
Resampling and what leaves the image are not covered by this argument.)

The operations are those of K20a that leave a slice of a head on black, and a gamma curve: no quarter turns, colours, stretching
or filters, and black where K20a mirrors the image at its edge or fills with grey.
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

MODES = "ada", "none"
TARGET = 0.6  # separation at which p neither grows nor falls, when there are no held-out images
OVERFITTING_TARGET = 0.5  # overfitting at which p neither grows nor falls, when there are
MIN_SEPARATION = 0.2  # below it p falls even if the overfitting measure is high: the critic hardly tells real from generated
SPEED_KIMG = 100  # thousand images in which p can move from 0 to 1 (K20a: 500, in runs of 25,000)
P_MAX = 0.8  # below it K20a found leaks into the generated images unlikely
HELD_OUT_EVERY = 4  # steps from one look at held-out images to the next
SEPARATION_HALF_LIFE = 256  # images, of the averaged separation (K20a: 4 batches of 64)
OVERFITTING_HALF_LIFE = 2000  # images, of the averaged score differences


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


# ---------------------------------------------------------------------------------------------------------------------
# Its strength


@torch.no_grad()
def score_separation(score_real, score_fake):
    """How well the critic separates real from generated images: the mean of sign(real_i - fake_i), 2 AUC - 1; [N], [N] -> [].

    K20a uses r_t = E[sign(D(real))], but the scores of a Wasserstein critic have no natural zero, so generated images take its
    place. Both are near 1 when the critic has overfitted; this one also when the generator is poor.
    """
    return (score_real - score_fake).sign().mean()


class AugmentationStrength:
    """The augmentation probability p, and in mode "ada" its controller.

    mode: "none" (p = 0) or "ada": p starts at 0 and follows how much the critic overfits. With held-out images, overfitting is
    K20a's r_v (eq. 1): where their mean score lies between those of training images (0) and of generated ones (1). Without, the
    separation stands in for it. ValueError for another mode.

    p is a float, in mode "ada" a 0-dim tensor on `device`, so that neither `augment` nor `update` waits for the GPU. So are the
    running means `separation`, `gap_generated` and `gap_held_out`: the scores of training images less those of generated and
    of held-out ones.
    """

    def __init__(self, mode, device="cpu", target=TARGET, speed_kimg=SPEED_KIMG, p_max=P_MAX):
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
        self.mode, self.target, self.speed, self.p_max = mode, target, 1 / (1000 * speed_kimg), p_max
        self.p, self.separation, self.gap_generated, self.gap_held_out = 0.0, float(target), 0.0, 0.0
        if mode == "ada":
            for name, value in self.state_dict().items():
                setattr(self, name, value.to(device))

    def update(self, terms, images):
        """After a critic update on `images` images, move p by a fixed speed (K20a, section 3); only in mode "ada".

        terms: {"separation"} and, every HELD_OUT_EVERY steps, "wasserstein" and "held_out": the mean score of the real images
        less that of generated and of held-out ones; tensors [].
        """
        if self.mode != "ada":
            return
        self.separation = torch.lerp(self.separation, terms["separation"].to(self.p), 1 - 0.5 ** (images / SEPARATION_HALF_LIFE))
        if "held_out" in terms:
            weight = 1 - 0.5 ** (HELD_OUT_EVERY * images / OVERFITTING_HALF_LIFE)
            gap_generated = torch.lerp(self.gap_generated, terms["wasserstein"].to(self.p), weight)
            gap_held_out = torch.lerp(self.gap_held_out, terms["held_out"].to(self.p), weight)
            self.gap_generated = torch.where(gap_generated.isfinite(), gap_generated, 0)  # a step with nan restarts the means
            self.gap_held_out = torch.where(gap_held_out.isfinite(), gap_held_out, 0)
        overfitting = self.gap_held_out - OVERFITTING_TARGET * self.gap_generated
        with_held_out = torch.minimum(overfitting, self.separation - MIN_SEPARATION)
        excess = torch.where(self.gap_generated != 0, with_held_out, self.separation - self.target)
        self.p.add_(excess.sign() * images * self.speed).clamp_(0, self.p_max)  # in place: a CUDA graph reads it

    def state_dict(self):
        return {name: torch.as_tensor(getattr(self, name)) for name in ("p", "separation", "gap_generated", "gap_held_out")}

    def load_state_dict(self, state):
        """Resume from `state` in mode "ada"; in mode "none" p stays 0."""
        if self.mode == "ada":
            for name, value in state.items():
                getattr(self, name).copy_(value)
