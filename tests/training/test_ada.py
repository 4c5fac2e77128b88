"""Adaptive augmentation: the separation against a second way of computing it, and where the controller takes p."""

import math

import numpy as np
import pytest
import torch

from training.augment import (
    HELD_OUT_EVERY,
    MIN_SEPARATION,
    MODES,
    OVERFITTING_HALF_LIFE,
    OVERFITTING_TARGET,
    P_MAX,
    SEPARATION_HALF_LIFE,
    AugmentationStrength,
    score_separation,
)


def seeded_rng(seed=0):
    return torch.Generator().manual_seed(seed)


def terms(separation, **others):
    return {name: torch.as_tensor(float(value)) for name, value in {"separation": separation, **others}.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Separation


def test_separation_is_twice_the_auc_minus_one():
    rng, n = seeded_rng(), 20_000
    real, fake = torch.randn(n, generator=rng) + 0.3, torch.randn(n, generator=rng)
    ranks = np.argsort(np.argsort(np.r_[real, fake])) + 1
    auc = (ranks[:n].sum() - n * (n + 1) / 2) / n**2
    assert score_separation(real, fake).item() == pytest.approx(2 * auc - 1, abs=4 / math.sqrt(n))


def test_separation_of_extreme_scores():
    fake = torch.randn(100, requires_grad=True)
    assert score_separation(fake + 100, fake) == 1 == -score_separation(fake, fake + 100) and score_separation(fake, fake) == 0
    assert score_separation(fake + 1, fake).shape == () and not score_separation(fake + 1, fake).requires_grad


# ---------------------------------------------------------------------------------------------------------------------
# The controller


def test_p_takes_100_kimg_from_0_to_1():
    augmentation = AugmentationStrength("ada")
    augmentation.update(terms(1), 500)
    assert augmentation.p.item() == pytest.approx(500 / 100_000)


def test_p_moves_at_its_speed_and_stops_at_its_limits():
    augmentation = AugmentationStrength("ada", speed_kimg=1)
    for _ in range(10):
        augmentation.update(terms(1), 32)
    assert augmentation.p.item() == pytest.approx(10 * 32 / 1000, rel=1e-5)
    for _ in range(100):
        augmentation.update(terms(1), 32)
    assert augmentation.p == torch.tensor(P_MAX)
    for _ in range(200):  # the running mean first has to come down
        augmentation.update(terms(-0.5), 32)
    assert augmentation.p == 0 and augmentation.separation.item() == pytest.approx(-0.5, abs=1e-3)


@pytest.mark.parametrize("batch", [8, 32])
def test_running_means_have_their_half_lives_in_images(batch):
    augmentation = AugmentationStrength("ada", target=0.0)
    for _ in range(SEPARATION_HALF_LIFE // batch):
        augmentation.update(terms(1), batch)
    assert augmentation.separation.item() == pytest.approx(0.5, abs=1e-5)
    looks = OVERFITTING_HALF_LIFE / (HELD_OUT_EVERY * batch)  # at held-out images; not always a whole number
    for _ in range(round(looks)):
        augmentation.update(terms(1, held_out=1, wasserstein=2), batch)
    assert augmentation.gap_held_out.item() == pytest.approx(1 - 0.5 ** (round(looks) / looks), abs=1e-5)
    assert augmentation.gap_generated.item() == pytest.approx(2 * augmentation.gap_held_out.item(), abs=1e-5)


def test_without_held_out_images_p_settles_where_the_separation_is_the_target():
    augmentation, rng, tail = AugmentationStrength("ada", target=0.6, speed_kimg=4), seeded_rng(), []
    for step in range(1500):  # a critic that augmentation makes work harder
        noise = 0.2 * torch.randn([], generator=rng)
        augmentation.update({"separation": (1 - augmentation.p + noise).clamp(-1, 1)}, 8)
        tail += [augmentation.p.item()] * (step >= 500)
    assert np.mean(tail) == pytest.approx(0.4, abs=0.05)


def test_with_held_out_images_p_settles_where_the_overfitting_is_the_target():
    """p follows (training - held-out) / (training - generated) of the scores, not the separation."""
    augmentation, rng, tail = AugmentationStrength("ada", speed_kimg=4), seeded_rng(), []
    for step in range(3000):  # a critic that scores held-out images as augmentation lets it, and noise
        term = terms(0.4)
        if step % HELD_OUT_EVERY == 0:
            noise = torch.randn(2, generator=rng)
            term |= {"held_out": 2 * (0.9 - augmentation.p) + noise[0], "wasserstein": 2 + noise[1]}
        augmentation.update(term, 8)
        tail += [augmentation.p.item()] * (step >= 1500)
    assert np.mean(tail) == pytest.approx(0.9 - OVERFITTING_TARGET, abs=0.05)
    assert augmentation.gap_generated.item() == pytest.approx(2, abs=0.5)


def test_p_falls_while_the_critic_hardly_tells_real_from_generated():
    """The overfitting is high throughout, and the separation falls with p: p settles where that is MIN_SEPARATION."""
    augmentation = AugmentationStrength("ada", speed_kimg=4)
    for _ in range(3000):
        augmentation.update(terms(0.6 - augmentation.p, held_out=0.9, wasserstein=1), 8)
    assert augmentation.p.item() == pytest.approx(0.6 - MIN_SEPARATION, abs=0.02)


def test_scores_that_are_not_finite_restart_the_running_means():
    augmentation = AugmentationStrength("ada")
    for _ in range(50):
        augmentation.update(terms(0.9, held_out=1, wasserstein=2), 8)
    assert augmentation.gap_generated > 0 and augmentation.gap_held_out > 0
    augmentation.update(terms(0.1, held_out=math.nan, wasserstein=math.nan), 8)
    assert augmentation.gap_generated == augmentation.gap_held_out == 0 and augmentation.p.isfinite()
    real = torch.tensor([math.nan, 1.0])
    augmentation.update({"separation": score_separation(real, torch.zeros(2))}, 8)
    assert augmentation.separation.isfinite() and augmentation.p.isfinite()


def test_controller_resumes_bit_for_bit(tmp_path):
    rng = seeded_rng()
    noisy = [dict(zip(("separation", "held_out", "wasserstein"), 0.7 + 0.3 * torch.randn(3, generator=rng))) for _ in range(60)]
    whole, first, second = (AugmentationStrength("ada", speed_kimg=2) for _ in range(3))
    for term in noisy:
        whole.update(term, 8)
    for term in noisy[:30]:
        first.update(term, 8)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for term in noisy[30:]:
        second.update(term, 8)
    assert 0 < whole.p < P_MAX
    assert set(whole.state_dict()) == {"p", "separation", "gap_generated", "gap_held_out"}
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in whole.state_dict().items())


def saved_at(p):
    """What a checkpoint keeps of an augmentation of strength p."""
    augmentation = AugmentationStrength("ada")
    augmentation.p = torch.tensor(p)
    return augmentation.state_dict()


def test_no_augmentation_ignores_updates_and_saved_states():
    augmentation = AugmentationStrength("none")
    augmentation.update(terms(1), 10**6)
    augmentation.load_state_dict(saved_at(0.9))
    assert augmentation.p == 0


def test_a_run_resumes_at_the_saved_strength_and_from_none_at_zero():
    ada = AugmentationStrength("ada")
    ada.load_state_dict(saved_at(0.4))
    assert ada.p == torch.tensor(0.4)
    ada.load_state_dict(AugmentationStrength("none").state_dict())
    assert ada.p == 0 and ada.separation == torch.tensor(ada.target)


@pytest.mark.parametrize("mode", ["some", "fixed", None])
def test_unknown_modes_are_refused(mode):
    with pytest.raises(ValueError, match=f"{MODES[0]}.*{mode}"):
        AugmentationStrength(mode)


def test_update_never_waits_for_a_gpu():
    """On PyTorch's "meta" device tensors have no values, so that reading one raises."""
    augmentation, scores = AugmentationStrength("ada", device="meta"), torch.empty(4, device="meta")
    term = {"separation": score_separation(scores, scores), "held_out": scores.mean(), "wasserstein": scores.mean()}
    augmentation.update(term, 32)
    assert augmentation.p.device.type == "meta"
