"""Runs work in processes that know of each other as those of torchrun do, forked after PyTorch is imported, which takes seconds.

    python distributed_worker.py '[[1, "steps", "alone.pt", "wgan-gp"], [2, "train", "--dataset_dir", "AD_NC/train"]]'

does one after the other: each is the number of processes, the name of a function below and its arguments.
"""

import builtins
import functools
import json
import os
import socket
import sys
import traceback
from unittest import mock

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.dirname(sys.path[0]))

import torch
import torch._dynamo  # an optimiser imports it when first used: seconds, here once for all processes
from plain_options import plain_options

import train as train_script
from dataset import shard
from report import figures
from training.distributed import Processes, check_divisible
from training.step import Batch, TrainingState, train_step
from utils import UserError

CONDITIONAL = {
    "resolution": 8,
    "channel_base": 128,
    "channel_max": 8,
    "z_dim": 16,
    "w_dim": 16,
    "mapping_layers": 8,
    "num_classes": 2,
}
PARTS = "model", "critic", "averaged", "augmentation", "path_length"


def rows_of_the_whole(draw, processes, rng):
    """torch.rand or torch.randn, which draws for all processes and returns the rows of this one."""

    def drawn(*shape, generator=None, device=None):
        count, *rest = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        return shard(draw(count * processes.size, *rest, generator=rng), processes.size, processes.rank)

    return drawn


def weights(state):
    return {name: {key: value.clone() for key, value in state.parts[name].state_dict().items()} for name in PARTS}


def steps(output, loss):
    """Train three steps on given random numbers; write {"start", "end": weights, "terms"} to `output`.

    Every process draws the latents, noise, augmentation and penalty points of the whole batch and uses the rows of its shard,
    so that several processes compute what one does. Everything is float64, where only rounding can differ.
    """
    torch.set_default_dtype(torch.float64)
    options = plain_options(loss, gp_every=2, augment="ada", style_mixing=0.5, path_length=1.0, lr=0.001, lr_critic=0.001)
    state = TrainingState(options, CONDITIONAL, torch.device("cpu"), torch.float64)
    state.augmentation.p = state.augmentation.p + 0.3
    data, shared = (torch.Generator().manual_seed(seed) for seed in (1, 2))
    whole_randn = torch.randn
    torch.randn, torch.rand = (rows_of_the_whole(draw, state.processes, shared) for draw in (torch.randn, torch.rand))
    start, terms = weights(state), []
    for step in range(3):
        images, held_out = (whole_randn(8, 1, 8, 8, generator=data).clamp(-1, 1) for _ in range(2))
        labels = torch.tensor([0, 0, 1, 0, 0, 1, 1, 0])
        batch = Batch(*(shard(x, state.processes.size, state.processes.rank) for x in (images, labels, held_out, labels)))
        terms.append(train_step(state, step, batch))
    state.processes.check_equal([*state.model_weights, *state.critic_weights, *state.averaged_weights])
    if state.processes.leading:
        torch.save({"start": start, "end": weights(state), "terms": terms}, output)
    state.processes.close()


def collectives():
    """Means of gradients of any layout, of which None stays None, and of other tensors; work of the leading process alone."""
    processes, rng = Processes(torch.device("cpu")), torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(torch.zeros(shape)) for shape in ([2, 3, 4, 5], [4, 2], [3])]
    grads = [torch.randn(2, *weight.shape, generator=rng) for weight in weights[:2]]
    weights[0].grad = grads[0][processes.rank].contiguous(memory_format=torch.channels_last)
    weights[1].grad = grads[1][processes.rank].T.contiguous().T
    layouts, others = [weight.grad.stride() for weight in weights[:2]], [torch.tensor(processes.rank + 0.5), torch.full([2], 2.0)]
    processes.average(weights, others)
    assert [weight.grad.stride() for weight in weights[:2]] == layouts and weights[2].grad is None
    assert all(torch.equal(weight.grad, grad.mean(0)) for weight, grad in zip(weights, grads))
    assert [x.tolist() for x in others] == [1, [2, 2]] and others[0].untyped_storage().nbytes() == 4  # not the buffer

    assert processes.from_leading((lambda: [("AD", 1)]) if processes.leading else None) == [("AD", 1)]
    try:
        raise AssertionError(processes.from_leading((lambda: check_divisible(3, 2)) if processes.leading else None))
    except UserError as error:
        assert "multiple of 8" in str(error)
    processes.close()


def looks(*flags):
    """`train`, and a line of JSON: the rank of this process and what it asked os.stat, os.scandir and open for."""
    asked = {}
    for place, name in ((os, "stat"), (os, "scandir"), (builtins, "open")):
        asked[name] = mock.MagicMock(wraps=getattr(place, name))
        setattr(place, name, asked[name])
    train(*flags)
    calls = {name: [str(call.args[0]) for call in function.call_args_list if call.args] for name, function in asked.items()}
    sys.stdout.write(json.dumps([os.environ["RANK"], calls]) + "\n")


def train(*flags):
    """train.py with these flags, without plots, which take longer than tiny steps."""
    figures.plot_dashboard = figures.plot_loss_proportion = lambda *_: None
    assert train_script.main([*flags]) == 0


def fork(count, work):
    """Run work() in `count` processes and wait for them; exits with status 1 if one failed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(count):
        sys.stdout.flush()
        children.append(os.fork())
        if children[-1] == 0:
            ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
            os.environ.update({name: str(value) for name, value in {**ranks, "MASTER_PORT": port}.items()}, MASTER_ADDR="127.0.0.1")
            try:
                work()
                sys.stdout.flush()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    if any(statuses):
        sys.exit(1)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for count, name, *arguments in json.loads(sys.argv[1]):
        fork(count, functools.partial(globals()[name], *arguments))
