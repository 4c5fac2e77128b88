"""A factor of the loss with which gradients neither vanish nor overflow in float16 (Micikevicius et al. 2018, arXiv:1710.03740).

    loss_scale = LossScale(torch.float16, device)
    loss_scale(loss).backward()
    loss_scale.divide_out(gradients)
    loss_scale.update(norm)                 # halved if it is not finite; that step is to be left out

Nothing waits for the GPU.
"""

import torch

START, GROWS_AFTER = 2.0**10, 1000  # scale; steps without an overflow after which it doubles


class LossScale:
    """The scale of one network's loss: 1 for activations of another dtype than float16, which changes nothing."""

    def __init__(self, dtype, device):
        self.active = dtype == torch.float16
        self.scale = torch.full([], START, device=device)
        self.steps = torch.zeros([], device=device)  # since the scale changed

    def __call__(self, loss):
        """The loss, a 0-dim tensor, times the scale."""
        return loss * self.scale if self.active else loss

    @torch.no_grad()
    def divide_out(self, gradients):
        """Divide float32 gradients by the scale, in place."""
        if self.active:
            torch._foreach_div_(gradients, self.scale)

    @torch.no_grad()
    def update(self, norm):
        """After a step whose gradient has this norm, 0-dim: halve the scale if that is not finite, double it if it is time."""
        if not self.active:
            return
        steps = torch.where(norm.isfinite(), self.steps + 1, 0)
        factor = torch.where(norm.isfinite(), torch.where(steps >= GROWS_AFTER, 2.0, 1.0), 0.5)
        self.scale.mul_(factor)  # in place: a CUDA graph reads and writes both
        self.steps.copy_(torch.where(steps >= GROWS_AFTER, 0, steps))

    def state_dict(self):
        return {"scale": self.scale, "steps": self.steps} if self.active else {}

    def load_state_dict(self, state):
        """Resume from `state`; from {}, of a run that was not in float16, begin anew."""
        for name, value in state.items() if self.active else ():
            getattr(self, name).copy_(value)
