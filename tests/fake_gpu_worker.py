"""Whole steps of training and projection, derivatives included, on a GPU of which only devices and shapes exist.

    python fake_gpu_worker.py

A process of its own, since a new kind of device stays for good; "cuda" has no derivatives without a driver. Prints a line for
each part that works, and one for the mixture of devices that is refused; any other ends it with a traceback.
"""

import os
import sys

sys.path[:0] = [os.path.dirname(os.path.abspath(__file__)), os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]

import numpy as np
import torch
from fake_gpu import MIXING, DeviceMismatch, fake_gpu
from plain_options import plain_options
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import ops
from analysis import projector
from analysis.models import Model
from training.step import Batch, TrainingState, train_step

STEPS = ("wgan-gp", torch.float32, 1), ("logistic", torch.bfloat16, 1), ("relativistic", torch.float32, 2)
NETWORK = {"resolution": 16, "channel_base": 64, "channel_max": 4, "z_dim": 8, "w_dim": 8, "mapping_layers": 8, "num_classes": 2}


class OneDevice(TorchDispatchMode):
    """Refuses copies between devices, too."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        devices = {x.device.type for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)}
        if len(devices) > 1 and function._overloadpacket.__name__ in MIXING:
            raise DeviceMismatch(f"{function} between {' and '.join(sorted(devices))}")
        return result


def train(device, loss="wgan-gp", dtype=torch.float32, micro_batches=1):
    """Two steps with everything that a step can compute."""
    options = plain_options(loss, grad_accum=micro_batches, augment="ada", path_length=1.0, style_mixing=0.5)
    state = TrainingState(options, NETWORK, device, dtype)
    images, labels = torch.zeros(8, 1, 16, 16, device=device), torch.zeros(8, dtype=torch.long, device=device)
    terms = train_step(state, 0, Batch(images, labels, images, labels))
    tensors = [*terms.values(), *state.model_weights, *(weight.grad for weight in state.critic_weights), *state.averaged_weights]
    assert {x.device for x in tensors} == {device}
    with OneDevice():  # as a CUDA graph needs it
        train_step(state, 1, Batch(images, labels, images, labels))
    return state, terms


def project(device):
    averaged = TrainingState(plain_options(batch_size=4), NETWORK, device, torch.float32).averaged
    model = Model("model", averaged["mapping"], averaged["generator"], ["AD", "NC"], [0, 1], "model")
    projector.LATENTS, projector.STARTS = 64, 16
    return projector.project(model, np.zeros((2, 16, 16), np.uint8), np.array([-1, 1]), steps=1)


def main():
    _setup_privateuseone_for_python_backend("fakegpu")
    kept = []  # PyTorch may crash when it frees what such a device holds
    with fake_gpu("fakegpu") as device:
        for loss, dtype, micro_batches in STEPS:
            kept.append(train(device, loss, dtype, micro_batches))
            print("trained with", loss, flush=True)
        kept.append(project(device))
        print("projected", flush=True)
        ops._placeholder = lambda shape, like: torch.empty(shape, dtype=like.dtype)
        try:
            train(device)
        except DeviceMismatch as error:
            print("refused:", error, flush=True)
            os._exit(0)


if __name__ == "__main__":
    main()
