"""What the two networks minimise: three adversarial losses with their gradient penalties, and path length regularisation.

    loss            critic                              generator               gradient penalty
    wgan-gp         E[fake] - E[real] + drift           -E[fake]                E[(|grad C(x)| - 1)^2], x between real and fake
    logistic        E[sp(fake)] + E[sp(-real)]          E[sp(-fake)]            R1 = E[|grad C(real)|^2] / 2
    relativistic    E[sp(fake - real)]                  E[sp(real - fake)]      R1 + R2, where R2 is R1 at generated images

Here real and fake are the critic's scores and sp is softplus. wgan-gp: Gulrajani et al. 2017 (arXiv:1704.00028, eq. 3), drift:
Karras et al. 2018 (arXiv:1710.10196, appendix A.1). logistic: Goodfellow et al. 2014 with R1 of Mescheder et al. 2018
(arXiv:1801.04406, eq. 9), as in StyleGAN2. relativistic: Jolicoeur-Martineau 2018 with R1 and R2, as in Huang et al. 2024
(arXiv:2501.05441, eq. 2 to 4). Scores and losses are float32.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ops import input_gradients_only

DRIFT = 1e-3  # weight of E[real^2] in wgan-gp, where nothing else determines the level of the scores


# ---------------------------------------------------------------------------------------------------------------------
# Losses without penalty, 0-dim: the critic's of the scores [N] of real and of generated images, the generator's of those of
# generated and of real ones


def wasserstein_critic(real, fake):
    return fake.mean() - real.mean() + DRIFT * real.square().mean()


def wasserstein_generator(fake, real=None):
    return -fake.mean()


def logistic_critic(real, fake):
    return F.softplus(fake).mean() + F.softplus(-real).mean()


def logistic_generator(fake, real=None):
    return F.softplus(-fake).mean()


def relativistic_critic(real, fake):
    return F.softplus(fake - real).mean()


def relativistic_generator(fake, real):
    return F.softplus(real - fake).mean()


class _Clip(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images):
        ctx.save_for_backward(images)
        return images.clamp(-1, 1)

    @staticmethod
    def backward(ctx, grad):
        (images,) = ctx.saved_tensors
        return grad * (((images > -1) | (grad < 0)) & ((images < 1) | (grad > 0)))  # a descent step goes along -grad


def clip_images(images):
    """Images [N, 1, R, R] clipped to [-1, 1], as they will be saved. Gradients that would push pixels further out are zero.

    About half of a real slice is exactly black. Without clipping the critic could recognise generated images by that alone.
    """
    return _Clip.apply(images)


# ---------------------------------------------------------------------------------------------------------------------
# Gradient penalties, unweighted: (critic, real [N, 1, R, R], fake [N, 1, R, R], labels [N] or None, rng) -> the penalty, which can
# be differentiated with respect to the critic's weights, and the mean norm of the critic's gradient, both 0-dim.


def norm_one_penalty(critic, real, fake, labels=None, rng=None):
    """Drives the norm to 1 at points that `rng` draws between real and generated images."""
    mix = torch.rand(len(real), 1, 1, 1, device=real.device, generator=rng).to(real.dtype)
    norm = _gradient_norm(critic, torch.lerp(real, fake, mix), labels)
    return (norm - 1).square().mean(), norm.mean()


def r1_penalty(critic, real, fake, labels=None, rng=None):
    """Drives the norm towards 0 at real images."""
    norm = _gradient_norm(critic, real, labels)
    return norm.square().mean() / 2, norm.mean()


def r1_r2_penalty(critic, real, fake, labels=None, rng=None):
    """Drives the norm towards 0 at real and at generated images, two `groups` of one pass."""
    both_labels = None if labels is None else torch.cat([labels, labels])
    norm = _gradient_norm(functools.partial(critic, groups=2), torch.cat([real, fake]), both_labels)
    return norm.square().mean(), norm[: len(real)].mean()  # the mean over both halves of the batch is R1 + R2


def _gradient_norm(critic, images, labels):
    """|grad critic(x)| for each image, [N], which can be differentiated once more."""
    images = images.detach().requires_grad_()
    with input_gradients_only():
        (gradient,) = torch.autograd.grad(critic(images, labels).sum(), images, create_graph=True)
    return (gradient.square().sum((1, 2, 3)) + 1e-20).sqrt()  # sqrt has no derivative at 0


# ---------------------------------------------------------------------------------------------------------------------
# One record for each loss


class Loss(NamedTuple):
    """An adversarial loss; its numbers are the rows of the same name in training/recipes.py."""

    critic: Callable  # (real, fake)
    generator: Callable  # (fake, real), where real may be None unless generator_sees_real
    penalty: Callable  # (critic, real, fake, labels, rng)
    generator_sees_real: bool = False  # whether the generator's loss needs the scores of real images


LOSSES = {
    "wgan-gp": Loss(wasserstein_critic, wasserstein_generator, norm_one_penalty),
    "logistic": Loss(logistic_critic, logistic_generator, r1_penalty),
    "relativistic": Loss(relativistic_critic, relativistic_generator, r1_r2_penalty, generator_sees_real=True),
}


class PathLength(nn.Module):
    """Path length regularisation (Karras et al. 2020, arXiv:1912.04958, eq. 4): E[(|J^T y| - a)^2], a in the buffer `mean`.

    Called with images [N, 1, R, R] and the w [N, num_ws, w_dim] that generated them, returns the penalty and the mean of
    |J^T y|, both 0-dim. y is Gaussian noise over the pixels: |J^T y| measures how much an image changes with w.
    """

    def __init__(self, decay=0.01):
        super().__init__()
        self.register_buffer("mean", torch.zeros([]))
        self.decay = decay

    def forward(self, images, ws, rng=None):
        noise = torch.randn(images.shape, device=images.device, generator=rng) / math.sqrt(images[0].numel())
        with input_gradients_only():
            (gradient,) = torch.autograd.grad((images * noise).sum(), ws, create_graph=True)
        length = (gradient.square().sum(2).mean(1) + 1e-20).sqrt()  # [N]
        return (length - self.mean).square().mean(), length.mean().detach()

    def update_mean(self, length):
        """Move a towards `length`, the mean of |J^T y| over a batch (0-dim), unless that is not finite."""
        self.mean.lerp_(torch.where(length.isfinite(), length, self.mean), self.decay)
