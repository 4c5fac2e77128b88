"""The losses and penalties in closed form and against finite differences, in float64 where rounding would hide an error."""

import math

import pytest
import torch

from modules import Discriminator, build_generator
from training import recipes
from training.loss import LOSSES, PathLength, clip_images, r1_penalty, r1_r2_penalty

REAL, FAKE = (2.0, -1.0, 0.5), (-3.0, 0.25, 1.0)


WEIGHT = 0.001  # of the drift (Karras et al. 2018, arXiv:1710.10196, appendix A.1)


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def softplus(x):
    return math.log(1 + math.exp(x))


def seeded_rng(seed=0):
    return torch.Generator().manual_seed(seed)


def assert_gradients(loss, module):
    """The gradients of loss() by every parameter of `module`, along a random direction, are finite differences.

    Where the step crosses a ReLU's kink, at which a penalty jumps, up to two other directions are tried.
    """
    module.zero_grad()
    loss().backward()
    for name, parameter in module.named_parameters():
        for last in (False, False, True):
            direction, step, values = torch.randn_like(parameter), 1e-7, []
            analytic = 0.0 if parameter.grad is None else (parameter.grad * direction).sum().item()
            for sign in (1, -1):
                with torch.no_grad():
                    parameter += sign * step * direction
                values.append(loss().item())
                with torch.no_grad():
                    parameter -= sign * step * direction
            expected = pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4, abs=1e-6)
            if analytic == expected:
                break
            assert not last, (name, analytic, expected)


def small_networks(conditional=False):
    """Mapping network and generator, critic, real slices, latents and labels at 8x8 in float64."""
    torch.manual_seed(0)
    model = build_generator(
        {
            "resolution": 8,
            "channel_base": 32,
            "channel_max": 4,
            "z_dim": 8,
            "w_dim": 8,
            "mapping_layers": 8,
            "num_classes": 2 if conditional else 0,
        }
    ).double()
    critic = Discriminator(8, 32, 4, num_classes=2 if conditional else 0).double()
    return (
        model,
        critic,
        torch.randn(4, 1, 8, 8, dtype=torch.float64),
        torch.randn(4, 8, dtype=torch.float64),
        torch.tensor([0, 1, 1, 0]) if conditional else None,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Images as they are saved


def test_clip_images_clips_and_passes_only_gradients_that_lead_back_inside():
    images = torch.tensor([-1.5, -1.5, -1.0, -1.0, -0.3, 0.7, 1.0, 1.0, 2.0, 2.0], requires_grad=True)
    weight = torch.tensor([0.5, -0.5, 0.5, -0.5, 0.5, -0.5, 0.5, -0.5, 0.5, -0.5])  # descending moves an image against it
    clipped = clip_images(images)
    torch.testing.assert_close(clipped, torch.tensor([-1.0, -1.0, -1.0, -1.0, -0.3, 0.7, 1.0, 1.0, 1.0, 1.0]))
    (weight * clipped).sum().backward()
    torch.testing.assert_close(images.grad, torch.tensor([0.0, -0.5, 0.0, -0.5, 0.5, -0.5, 0.5, 0.0, 0.5, 0.0]))


def test_clip_images_lets_pixels_outside_come_back():
    target = torch.linspace(-1, 1, 9, dtype=torch.float64)
    images = (-3 * target).requires_grad_()
    for _ in range(200):
        (gradient,) = torch.autograd.grad((clip_images(images) - target).square().sum(), images)
        images = (images - 0.1 * gradient).detach().requires_grad_()
    torch.testing.assert_close(images.detach().clamp(-1, 1), target)


def test_clip_images_derivatives_inside_match_finite_differences():
    images = torch.rand(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: clip_images(x).pow(3), images)
    assert torch.autograd.gradgradcheck(lambda x: clip_images(x).pow(3), images)


# ---------------------------------------------------------------------------------------------------------------------
# Adversarial losses


@pytest.mark.parametrize(
    "kind, of_critic, of_generator",
    [
        ("wgan-gp", mean(FAKE) - mean(REAL) + WEIGHT * mean(r * r for r in REAL), -mean(FAKE)),
        ("logistic", mean(map(softplus, FAKE)) + mean(softplus(-r) for r in REAL), mean(softplus(-f) for f in FAKE)),
        ("relativistic", mean(softplus(f - r) for r, f in zip(REAL, FAKE)), mean(softplus(r - f) for r, f in zip(REAL, FAKE))),
    ],
)
def test_losses_in_closed_form(kind, of_critic, of_generator):
    real, fake = (torch.tensor(scores, dtype=torch.float64) for scores in (REAL, FAKE))
    assert LOSSES[kind].critic(real, fake).item() == pytest.approx(of_critic, rel=1e-12)
    assert LOSSES[kind].generator(fake, real).item() == pytest.approx(of_generator, rel=1e-12)


def test_losses_and_recipes_have_the_same_names():
    assert set(LOSSES) == set(recipes.LOSSES)


@pytest.mark.parametrize("kind", LOSSES)
def test_critic_pulls_scores_apart_and_generator_raises_its_own(kind):
    real, fake = (torch.tensor(scores, requires_grad=True) for scores in (REAL, FAKE))
    by_real, by_fake = torch.autograd.grad(LOSSES[kind].critic(real, fake), (real, fake))
    assert (by_real < 0).all() and (by_fake > 0).all()  # down the gradient: real up, generated down
    (by_fake_g,) = torch.autograd.grad(LOSSES[kind].generator(fake, real), fake)
    assert (by_fake_g < 0).all()  # and generated up again


def test_gradients_of_softplus_losses_are_sigmoids():
    real, fake = (torch.tensor(scores, requires_grad=True) for scores in (REAL, FAKE))
    by_real, by_fake = torch.autograd.grad(LOSSES["logistic"].critic(real, fake), (real, fake))
    torch.testing.assert_close(by_real, -torch.sigmoid(-real) / 3)
    torch.testing.assert_close(by_fake, torch.sigmoid(fake) / 3)
    by_real, by_fake = torch.autograd.grad(LOSSES["relativistic"].critic(real, fake), (real, fake))
    torch.testing.assert_close(by_fake, torch.sigmoid(fake - real) / 3)
    torch.testing.assert_close(by_real, -by_fake)


def test_relativistic_loss_depends_on_score_differences_alone():
    real, fake = (torch.tensor(scores, dtype=torch.float64) for scores in (REAL, FAKE))
    for network, scores in (("critic", (real, fake)), ("generator", (fake, real))):
        relativistic, logistic = (getattr(LOSSES[kind], network) for kind in ("relativistic", "logistic"))
        raised = [score + 7 for score in scores]
        assert relativistic(*raised).item() == pytest.approx(relativistic(*scores).item())
        assert logistic(*raised).item() != pytest.approx(logistic(*scores).item(), rel=0.1)
    drift = LOSSES["wgan-gp"].critic(real + 7, fake + 7) - LOSSES["wgan-gp"].critic(real, fake)  # its drift alone fixes the level
    assert drift.item() == pytest.approx(WEIGHT * (49 + 14 * mean(REAL)), rel=1e-9)


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("kind", LOSSES)
def test_gradients_of_both_losses_match_finite_differences(kind, conditional):
    _, critic, real, _, labels = small_networks(conditional)
    fake = torch.nn.ParameterList([torch.randn_like(real)])
    assert_gradients(lambda: LOSSES[kind].critic(critic(real, labels), critic(fake[0].detach(), labels)), critic)
    assert_gradients(lambda: LOSSES[kind].generator(critic(fake[0], labels), critic(real, labels)), fake)


# ---------------------------------------------------------------------------------------------------------------------
# Gradient penalties


@pytest.mark.parametrize(
    "kind, penalty, derivative",
    [  # of the gradient's norm, and the derivative
        ("wgan-gp", lambda x: (x - 1) ** 2, lambda x: 2 * (x - 1)),
        ("logistic", lambda x: x**2 / 2, lambda x: x),
        ("relativistic", lambda x: x**2, lambda x: 2 * x),
    ],
)
def test_penalty_of_a_linear_critic(kind, penalty, derivative):
    slope = torch.randn(1, 8, 8, dtype=torch.float64, requires_grad=True)
    real, fake = torch.randn(2, 5, 1, 8, 8, dtype=torch.float64)
    found, norm = LOSSES[kind].penalty(lambda x, labels, groups=1: (slope * x).sum((1, 2, 3)), real, fake)
    length = slope.detach().norm()
    assert norm.item() == pytest.approx(length.item())
    assert found.item() == pytest.approx(penalty(length).item())
    (by_slope,) = torch.autograd.grad(found, slope)
    torch.testing.assert_close(by_slope, derivative(length) * slope.detach() / length)


@pytest.mark.parametrize("kind", LOSSES)
def test_penalty_is_computed_at_the_right_images(kind):
    seen, given = [], torch.tensor([0, 1, 1, 0, 0, 1])

    def critic(x, labels, groups=1):
        assert all(torch.equal(part, given) for part in labels.chunk(groups))
        seen.extend(x.detach().chunk(groups))
        return x.square().sum((1, 2, 3)) / 2  # its gradient is x

    real, fake = torch.randn(2, 6, 1, 4, 4)
    penalty, norm = LOSSES[kind].penalty(critic, real, fake, given, seeded_rng(1))
    norms = [images.flatten(1).norm(dim=1) for images in seen]
    assert norm.item() == pytest.approx(norms[0].mean().item(), rel=1e-5)
    if kind == "wgan-gp":
        (between,) = seen
        share = ((between - real) / (fake - real)).flatten(1)
        assert (share.std(1) < 1e-3).all() and (0 <= share.mean(1)).all() and (share.mean(1) <= 1).all()
        assert share.mean(1).std() > 0.05  # a share of its own for every pair
        assert penalty.item() == pytest.approx((norms[0] - 1).square().mean().item(), rel=1e-5)
    else:
        expected = [real] if kind == "logistic" else [real, fake]
        assert len(seen) == len(expected) and all(map(torch.equal, seen, expected))
        assert penalty.item() == pytest.approx(sum(x.square().sum((1, 2, 3)).mean().item() / 2 for x in expected), rel=1e-5)


@pytest.mark.parametrize("conditional", [False, True])
def test_r1_and_r2_in_one_pass_are_those_of_two(conditional):
    _, critic, real, _, labels = small_networks(conditional)
    fake = torch.randn_like(real)
    one, norm = r1_r2_penalty(critic, real, fake, labels)
    (r1, norm_real), (r2, _) = (r1_penalty(critic, images, None, labels) for images in (real, fake))
    assert one.item() == pytest.approx((r1 + r2).item(), rel=1e-12)
    assert norm.item() == pytest.approx(norm_real.item(), rel=1e-12)
    weights = list(critic.parameters())
    for a, b in zip(*(torch.autograd.grad(penalty, weights, materialize_grads=True) for penalty in (one, r1 + r2))):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("kind", LOSSES)
def test_gradients_of_the_penalty_match_finite_differences(kind, conditional):
    _, critic, real, _, labels = small_networks(conditional)
    fake = torch.randn_like(real)
    assert_gradients(lambda: LOSSES[kind].penalty(critic, real, fake, labels, seeded_rng())[0], critic)


@pytest.mark.parametrize("kind", LOSSES)
def test_penalty_of_a_constant_critic_has_a_finite_gradient(kind):
    slope = torch.zeros(1, 4, 4, requires_grad=True)
    penalty, norm = LOSSES[kind].penalty(lambda x, labels, groups=1: (slope * x).sum((1, 2, 3)), *torch.randn(2, 3, 1, 4, 4))
    assert norm.item() < 1e-9 and penalty.item() == pytest.approx(1 if kind == "wgan-gp" else 0)
    assert torch.autograd.grad(penalty, slope)[0].isfinite().all()


# ---------------------------------------------------------------------------------------------------------------------
# Path length


class Linear(torch.nn.Module):
    """ws [N, L, D] -> images [N, 1, 4, 4], the sum of a matrix times w over the layers."""

    def __init__(self, matrices):
        super().__init__()
        self.matrices = torch.nn.Parameter(matrices)  # [L, 16, D]

    def forward(self, ws):
        return torch.einsum("lpd,nld->np", self.matrices, ws).reshape(-1, 1, 4, 4)


def test_path_length_matches_the_jacobian():
    torch.manual_seed(0)
    generator, path_length = Linear(torch.randn(3, 16, 5)), PathLength()
    ws = torch.randn(6, 3, 5, requires_grad=True)

    def images(ws):
        return generator(ws).tanh()

    path_length.mean.fill_(0.2)
    penalty, length = path_length(images(ws), ws, seeded_rng(2))
    y = torch.randn(6, 1, 4, 4, generator=seeded_rng(2)) / 4  # N(0, 1 / pixels)
    lengths = []
    for i in range(6):
        jacobian = torch.autograd.functional.jacobian(lambda w: images(w[None])[0].flatten(), ws[i].detach())  # [16, 3, 5]
        lengths.append(torch.einsum("p,pld->ld", y[i].flatten(), jacobian).square().sum(1).mean().sqrt())
    lengths = torch.stack(lengths)
    assert penalty.item() == pytest.approx((lengths - 0.2).square().mean().item(), rel=1e-4)
    assert length.item() == pytest.approx(lengths.mean().item(), rel=1e-4)
    path_length.update_mean(length)
    assert path_length.mean.item() == pytest.approx(0.2 * 0.99 + 0.01 * lengths.mean().item(), rel=1e-4)


def test_path_length_of_an_orthogonal_generator_is_its_scale():
    orthogonal, _ = torch.linalg.qr(torch.randn(16, 16, generator=seeded_rng()))
    generator, path_length = Linear(3 * orthogonal[None]), PathLength(decay=0.05)
    rng, ws = seeded_rng(1), torch.randn(4096, 1, 16, requires_grad=True)
    for _ in range(150):
        penalty, length = path_length(generator(ws), ws, rng)
        path_length.update_mean(length)
    # |J^T y| = 3 |y|, and 4 |y| has a chi distribution with 16 degrees of freedom
    mean = 3 * math.sqrt(2) * math.gamma(8.5) / math.gamma(8) / 4
    assert path_length.mean.item() == pytest.approx(mean, rel=2e-3)
    assert penalty.item() == pytest.approx(9 - mean**2, rel=0.1)  # E[|3 y|^2] = 9
    again = PathLength()
    again.load_state_dict(path_length.state_dict())
    assert again.mean == path_length.mean


@pytest.mark.parametrize("conditional", [False, True])
def test_gradients_of_the_path_length_match_finite_differences(conditional):
    model, _, _, z, labels = small_networks(conditional)
    path_length = PathLength(decay=0).double()  # a is a constant in the derivative
    path_length.mean.fill_(0.3)

    def penalty():
        ws = model["mapping"](z, labels)[:, None].expand(-1, model["generator"].num_ws, -1)
        return path_length(model["generator"](ws, noise="fixed"), ws, seeded_rng(3))[0]

    assert_gradients(penalty, model)
    assert path_length.mean == 0.3


def test_mean_path_length_ignores_a_batch_that_is_not_finite():
    generator, path_length = Linear(torch.randn(1, 16, 5)), PathLength()
    ws = torch.randn(4, 1, 5, requires_grad=True)
    path_length.update_mean(path_length(generator(ws), ws)[1])
    before = path_length.mean.clone()
    penalty, length = path_length(generator(ws) * torch.tensor([1, 1, 1, math.nan])[:, None, None, None], ws)
    path_length.update_mean(length)
    assert not penalty.isfinite() and before > 0 and path_length.mean == before
