"""What the two networks minimise: three adversarial losses with their gradient penalties, path length, style mixing.

    loss            critic                              generator               penalty
    wgan-gp         E[fake] - E[real] + drift           -E[fake]                E[(|grad C(x)| - 1)^2], x between real and fake
    logistic        E[sp(fake)] + E[sp(-real)]          E[sp(-fake)]            R1 = E[|grad C(real)|^2] / 2
    relativistic    E[sp(fake - real)]                  E[sp(real - fake)]      R1 + R2, R2 the same at generated slices

with real, fake the critic's scores and sp the softplus. wgan-gp: Gulrajani et al. 2017 (arXiv:1704.00028), drift: Karras
et al. 2018 (arXiv:1710.10196, appendix A.1). logistic: Goodfellow et al. 2014 with R1 of Mescheder et al. 2018
(arXiv:1801.04406, eq. 9), as in StyleGAN2. relativistic: Jolicoeur-Martineau 2018 with R1 and R2, as in Huang et al. 2024
(arXiv:2501.05441, eq. 2 to 4). Scores and losses are float32.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from ops import by_pictures_alone

DRIFT = 1e-3  # weight of critic(real)^2 in wgan-gp, which has no other hold on the scores' level


def critic_loss(kind, score_real, score_fake):
    """The critic's loss without its penalty, from the scores [N] of real and of generated slices; 0-dim."""
    if kind == "wgan-gp":
        return score_fake.mean() - score_real.mean() + DRIFT * score_real.square().mean()
    if kind == "logistic":
        return F.softplus(score_fake).mean() + F.softplus(-score_real).mean()
    return F.softplus(score_fake - score_real).mean()


def generator_loss(kind, score_real, score_fake):
    """The generator's loss from the scores [N]; real ones matter to the relativistic loss alone."""
    if kind == "wgan-gp":
        return -score_fake.mean()
    if kind == "logistic":
        return F.softplus(-score_fake).mean()
    return F.softplus(score_real - score_fake).mean()


class _Bounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images):
        ctx.save_for_backward(images)
        return images.clamp(-1, 1)

    @staticmethod
    def backward(ctx, grad):
        (images,) = ctx.saved_tensors
        return grad * (((images > -1) | (grad < 0)) & ((images < 1) | (grad > 0)))  # descending goes against grad


def bounded(images):
    """Images [N, 1, R, R] as they will be saved, clipped to [-1, 1]; gradients that lead further outside do not pass.

    About half of a real slice is exactly black, which no unclipped generated slice is: a critic can tell them by that alone.
    """
    return _Bounded.apply(images)


def gradient_penalty(kind, critic, real, fake, labels=None, rng=None):
    """The penalty of `kind`, unweighted, and the mean norm of the critic's gradient where it is taken.

    real, fake [N, 1, R, R] without gradient, labels [N] or None; rng draws the points between real and fake. Both results
    are 0-dim, the first differentiable by the critic's weights. Under wgan-gp the norm wants to be 1, else small.
    """
    if kind == "wgan-gp":
        mix = torch.rand(len(real), 1, 1, 1, device=real.device, generator=rng).to(real.dtype)
        norm = _gradient_norm(critic, torch.lerp(real, fake, mix), labels)
        return (norm - 1).square().mean(), norm.mean()
    norm = _gradient_norm(critic, real, labels)
    penalty = norm.square().mean() / 2
    if kind == "relativistic":
        penalty = penalty + _gradient_norm(critic, fake, labels).square().mean() / 2
    return penalty, norm.mean()


def _gradient_norm(critic, images, labels):
    """|grad critic(x)| at every image, [N], differentiable once more."""
    images = images.detach().requires_grad_()
    with by_pictures_alone():
        (gradient,) = torch.autograd.grad(critic(images, labels).sum(), images, create_graph=True)
    return (gradient.square().sum((1, 2, 3)) + 1e-20).sqrt()  # the root of 0 has no derivative


class PathLength(nn.Module):
    """Path length regularisation (Karras et al. 2020, eq. 4): E[(|J^T y| - a)^2] with its running mean a as a buffer.

    Called with images [N, 1, R, R] and the ws [N, num_ws, w_dim] that they were made from, with a graph between them; gives
    the penalty and the mean of |J^T y|, 0-dim. y is Gaussian noise over the pixels, so |J^T y| says how far an image moves
    when w does; a follows its mean when that is given to `track`.
    """

    def __init__(self, decay=0.01):
        super().__init__()
        self.register_buffer("mean", torch.zeros([]))
        self.decay = decay

    def forward(self, images, ws, rng=None):
        noise = torch.randn(images.shape, device=images.device, generator=rng) / math.sqrt(images[0].numel())
        with by_pictures_alone():
            (gradient,) = torch.autograd.grad((images * noise).sum(), ws, create_graph=True)
        length = (gradient.square().sum(2).mean(1) + 1e-20).sqrt()  # [N]
        return (length - self.mean).square().mean(), length.mean().detach()

    def track(self, length):
        """Let a follow `length`, the mean of |J^T y| over a batch, 0-dim."""
        self.mean.lerp_(torch.where(length.isfinite(), length, self.mean), self.decay)  # one bad step spoils only itself


def mixed_styles(mapping, z, labels, num_ws, share, rng=None):
    """w of latents z [N, z_dim] for every layer, [N, num_ws, w_dim], mixed (Karras et al. 2019, section 3.1).

    With probability `share` a sample takes the layers from a random one on from a second latent.
    """
    first = mapping(z, labels)[:, None].expand(-1, num_ws, -1)
    if share == 0:
        return first
    second = mapping(torch.randn(z.shape, device=z.device, generator=rng), labels)[:, None]
    chance, place = torch.rand(len(z), 2, 1, 1, device=z.device, generator=rng).unbind(1)
    crossover = torch.where(chance < share, 1 + (place * (num_ws - 1)).floor(), num_ws)
    layer = torch.arange(num_ws, device=z.device)[:, None]
    return torch.where(layer < crossover, first, second)
