"""Adaptive discriminator augmentation: the probability p with which everything the critic sees is augmented.

    augmentation = AugmentationStrength("ada", device)
    augment(real, augmentation.p, rng), augment(fake, augmentation.p, rng)
    augmentation.update({"separation": score_separation(score_real, score_fake)}, batch_size)

Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data" (arXiv:2006.06676), called K20a: p grows while
the critic overfits to the training images, and falls otherwise. The operations themselves are in augment.py.
"""

import torch

MODES = "ada", "none"
TARGET = 0.6  # separation at which p neither grows nor falls, when there are no held-out images
OVERFITTING_TARGET = 0.5  # overfitting at which p neither grows nor falls, when there are
MIN_SEPARATION = 0.2  # below it p falls even if the overfitting measure is high: the critic hardly tells real from generated
SPEED_KIMG = 100  # thousand images in which p can move from 0 to 1 (K20a: 500, in runs of 25,000)
P_MAX = 0.8  # below it K20a found leaks into the generated images unlikely
HELD_OUT_EVERY = 4  # steps from one look at held-out images to the next
SEPARATION_HALF_LIFE = 256  # images, of the averaged separation (K20a: 4 batches of 64)
OVERFITTING_HALF_LIFE = 2000  # images, of the averaged score differences


@torch.no_grad()
def score_separation(score_real, score_fake):
    """How well the critic separates real from generated images: the mean of sign(real_i - fake_i); [N], [N] -> [].

    0: not at all; 1: every real image scores above its partner. Its expectation is 2 AUC - 1. K20a uses r_t =
    E[sign(D(real))], but the scores of a Wasserstein critic have no natural zero, so generated images take its place here.
    Both are near 1 when the critic has overfitted; this one also when the generator is poor.
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
        self.p = (self.p + excess.sign() * images * self.speed).clamp(0, self.p_max)

    def state_dict(self):
        return {name: torch.as_tensor(getattr(self, name)) for name in ("p", "separation", "gap_generated", "gap_held_out")}

    def load_state_dict(self, state):
        """Resume from `state` in mode "ada"; in mode "none" p stays 0."""
        if self.mode == "ada":
            for name, value in state.items():
                setattr(self, name, value.to(self.p.device))
