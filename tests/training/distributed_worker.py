"""Trains a few steps on given random numbers, alone or as one of several processes: python distributed_worker.py OUTPUT LOSS.

Every process draws the latents, noise, augmentation and penalty points of the whole batch and uses the rows of its shard, so
that several processes compute what one does. Everything is float64, where only rounding of about 1e-12 can differ.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import torch

from dataset import shard
from training.step import Batch, Options, TrainingState, train_step

NETWORK = {"resolution": 32, "channel_base": 128, "channel_max": 8, "z_dim": 16, "w_dim": 16, "num_classes": 2}


def rows_of_the_whole(draw, processes, rng):
    """torch.rand or torch.randn, which draws for all processes and returns the rows of this one."""

    def drawn(*shape, generator=None, device=None):
        count, *rest = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        return shard(draw(count * processes.size, *rest, generator=rng), processes.size, processes.rank)

    return drawn


def main(output, loss):
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    options = Options(16, loss=loss, gp_every=2, augment="ada", style_mixing=0.5, path_length=1.0, lr=0.001, lr_critic=0.001)
    state = TrainingState(options, NETWORK, torch.device("cpu"), torch.float64)
    state.augmentation.p = state.augmentation.p + 0.3
    data, shared = (torch.Generator().manual_seed(seed) for seed in (1, 2))
    whole_randn = torch.randn
    torch.randn, torch.rand = (rows_of_the_whole(draw, state.processes, shared) for draw in (torch.randn, torch.rand))
    terms = []
    for step in range(3):
        images, held_out = (whole_randn(16, 1, 32, 32, generator=data).clamp(-1, 1) for _ in range(2))
        labels = torch.arange(16) % 3 // 2
        batch = Batch(*(shard(x, state.processes.size, state.processes.rank) for x in (images, labels, held_out, labels)))
        terms.append(train_step(state, step, batch))
    state.processes.check_equal([*state.model_weights, *state.critic_weights, *state.averaged_weights])
    if state.processes.leading:
        weights = {name: module.state_dict() for name, module in state.parts.items() if "optimizer" not in name}
        torch.save({"weights": weights, "terms": terms}, output)
    state.processes.close()


main(*sys.argv[1:])
