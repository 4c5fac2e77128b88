"""Adaptive discriminator augmentation: how often what the critic sees is changed (Karras et al. 2020, arXiv:2006.06676)."""

import torch

MODES = "ada", "fixed", "none"
TARGET = 0.6  # of the separation, to which p is driven
UNSEEN_TARGET = 0.5  # of the overfitting share, to which p is driven where there are unseen slices to tell it
BLIND = 0.2  # of the separation: a critic that tells less is not augmented further, whatever the overfitting share says
SPEED_KIMG = 100  # thousand images in which p can go from 0 to 1 (K20a: 500, in runs of 25 000)
P_MAX = 0.8  # below it K20a found leaks unlikely
UNSEEN_EVERY = 4  # steps from one look at unseen slices to the next
MEMORY = 256  # half-life of the averaged separation, in images (K20a: 4 batches of 64),
UNSEEN_MEMORY = 2000  # ... and of what the overfitting share is made of


@torch.no_grad()
def separation(score_real, score_fake):
    """How far the critic tells real from generated: the mean of sign(real_i - fake_i); [N], [N] -> tensor [].

    0: not at all; 1: every real slice scores above its partner. Its mean is 2 AUC - 1. K20a's heuristic is r_t =
    E[sign(D(real))], which needs a critic whose 0 means undecided. A Wasserstein critic's scores have no zero, since its
    loss stays the same when all of them move, so here the generated slices take the place of 0. Like r_t it is 0 when the
    critic cannot tell and near 1 when it has overfitted; but also, more than r_t, when the generator is just poor.
    """
    return (score_real - score_fake).sign().mean()


class Strength:
    """The probability p of every operation, and in mode "ada" the controller that drives it.

    mode: "none" (p = 0), "fixed" (p stays as given, in [0, 1]) or "ada": p starts at 0 and grows while the critic overfits.
    What tells is the overfitting share (K20a's r_v, eq. 1), how far unseen real slices lie on the way from those of training
    to generated ones in the critic's scores, if `update` is given what it is made of; else the separation, which falls while
    the generator learns, whether or not the critic overfits. The share says nothing when the critic hardly tells training
    slices from generated ones: then p falls.

    p is a float, in mode "ada" a tensor [] on `device`, so that neither `augment` nor `update` waits for a GPU. r, gap and
    unseen, likewise, are running means: of the separation, and of the scores of training slices less those of generated and
    of unseen ones. state_dict holds all as tensors, for a checkpoint.
    """

    def __init__(self, mode, p=0.0, device="cpu", target=TARGET, speed_kimg=SPEED_KIMG, p_max=P_MAX):
        if mode not in MODES or not 0 <= p <= 1:
            raise ValueError(f"mode must be one of {', '.join(MODES)} and p in [0, 1], not {mode!r} and {p}")
        self.mode, self.target, self.speed, self.p_max = mode, target, 1 / (1000 * speed_kimg), p_max
        self.p, self.r, self.gap, self.unseen = p if mode == "fixed" else 0.0, float(target), 0.0, 0.0
        if mode == "ada":
            for name, value in self.state_dict().items():
                setattr(self, name, value.to(device))

    def update(self, term, images):
        """Move p by a fixed speed up where the critic overfits or separates more than its target, else down (K20a, section 3).

        term: {"separation": of one batch} and, at some calls, "wasserstein" and "unseen", the mean score of its real slices
        less that of its generated and of unseen ones; tensors []. images: shown to the critic since the last call. In other
        modes nothing happens.
        """
        if self.mode == "ada":
            self.r = torch.lerp(self.r, term["separation"].float(), 1 - 0.5 ** (images / MEMORY))
            excess = self.r - self.target
            if "unseen" in term:
                share = 1 - 0.5 ** (UNSEEN_EVERY * images / UNSEEN_MEMORY)
                new = (
                    torch.lerp(mean, term[name].float(), share)
                    for mean, name in ((self.gap, "wasserstein"), (self.unseen, "unseen"))
                )
                self.gap, self.unseen = (torch.where(mean.isfinite(), mean, 0) for mean in new)  # a bad step starts anew
            share_excess = self.unseen - UNSEEN_TARGET * self.gap
            excess = torch.where(self.gap != 0, torch.minimum(share_excess, self.r - BLIND), excess)
            self.p.add_(excess.sign() * images * self.speed).clamp_(0, self.p_max)  # in place, for CUDA graphs that read it

    def state_dict(self):
        return {name: torch.as_tensor(getattr(self, name)) for name in ("p", "r", "gap", "unseen")}

    def load_state_dict(self, state):
        """Go on from `state` in mode "ada"; the p of other modes is what the flags say."""
        if self.mode == "ada":
            for name, value in state.items():
                getattr(self, name).copy_(value)
