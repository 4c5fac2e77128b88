"""A batch in shares: one for every process that torchrun started, or several that a process takes in turn.

    torchrun --nproc_per_node=2 train.py ...
    rng = Draws("cpu").divide(shares=2, which=0, size=8)        # of a batch of 16, the first share

What a step computes does not depend on how its batch is divided, but for rounding. Every process draws the random numbers of
the whole batch and keeps those of its share; gradients are averaged before the optimiser sees them; and a share holds whole
groups of `modules.minibatch_std`, the one place where images of a batch meet.
"""

import os

import torch
import torch.distributed as dist

from utils import UserError

GROUP = 4  # images of a minibatch group; image i of N belongs to group i mod N / 4


def share_of(x, shares, which):
    """Share number `which` of an array or tensor [N, ...]: [N / shares, ...]; N is a multiple of GROUP * shares."""
    if shares == 1:
        return x
    return x.reshape(GROUP, shares, -1, *x.shape[1:])[:, which].reshape(-1, *x.shape[1:])


def check_divisible(batch_size, shares):
    """UserError unless a batch can be divided into `shares`, each of whole minibatch groups."""
    if shares > 1 and batch_size % (GROUP * shares):
        nearest = max(1, round(batch_size / GROUP / shares)) * GROUP * shares
        raise UserError(
            f"--batch_size {batch_size}: {shares} shares (processes times --grad_accum) need a multiple of "
            f"{GROUP * shares}, such as {nearest}"
        )


class Draws(torch.Generator):
    """A torch.Generator for `draw`, which keeps the share of a batch that `divide` names (at first: all of it)."""

    shares, which, size = 1, 0, None

    def divide(self, shares, which, size):
        """From now on: share `which` of `shares`, each of `size` images; returns itself."""
        self.shares, self.which, self.size = shares, which, size
        return self


def draw(kind, shape, device=None, rng=None):
    """kind(shape), kind being torch.rand or torch.randn; of a divided `Draws` the share's rows of what the whole batch draws.

    shape: its first number counts the share's images, or those of its first half; rng: any torch.Generator on `device`, or
    None for PyTorch's own.
    """
    if getattr(rng, "shares", 1) == 1:
        return kind(shape, device=device, generator=rng)
    n, *rest = shape
    whole = kind((n * rng.shares, *rest), device=device, generator=rng)
    return whole.reshape(-1, rng.shares, rng.size // GROUP, *rest)[:, rng.which].reshape(shape)


class Processes:
    """The processes of this run: those that torchrun started and told of each other in the environment, or one alone.

    rank: 0 writes files and lines; size: how many there are. UserError, in every method, when another process has ended.
    """

    def __init__(self, device):
        self.rank, self.size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.first_here = os.environ.get("LOCAL_RANK", "0") == "0"  # on this machine
        if self.size > 1 and not dist.is_initialized():
            if device.type == "cuda":
                torch.cuda.set_device(device)
            store, *_ = next(dist.rendezvous("env://"))
            if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
                # torchrun keeps one store over its restarts, with the addresses of processes that are gone. (Agents of several
                # machines may count restarts differently.)
                store = dist.PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", store=store, rank=self.rank, world_size=self.size
            )

    def _reduce(self, tensor, operation):
        try:
            dist.all_reduce(tensor, operation)
        except RuntimeError as error:
            raise UserError(
                f"process {self.rank} has lost the others ({str(error).splitlines()[0]}); the same command goes "
                "on from the last checkpoint"
            ) from None

    @torch.no_grad()
    def average(self, tensors):
        """Replace float32 tensors of one device by their means over all processes, in one flat buffer."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        self._reduce(flat, dist.ReduceOp.SUM)
        parts = (flat / self.size).split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(tensors, [part.view_as(tensor) for part, tensor in zip(parts, tensors)])

    def greatest(self, *values):
        """The greatest of every process's numbers, as floats, one for each; the GPU is not waited for."""
        if self.size == 1:
            return values
        values = torch.tensor(values, dtype=torch.float64)
        self._reduce(values, dist.ReduceOp.MAX)
        return values.tolist()

    def check_alike(self, tensors):
        """UserError if sums over these tensors differ from process to process: then something is drawn or averaged amiss."""
        norms = [float(norm) for norm in torch._foreach_norm(list(tensors))] if self.size > 1 else []
        if list(self.greatest(*norms)) != [-low for low in self.greatest(*(-norm for norm in norms))]:
            raise UserError(
                "the processes' weights are no longer the same; the last checkpoint is kept, and the same command goes on from it"
            )

    def wait(self):
        """Until every process has come here."""
        self.greatest(0)

    def end(self):
        if dist.is_initialized():
            dist.destroy_process_group()

    def first(self, work):
        """work(), on each machine by its first process before the others: they find in the cache what it has made."""
        if self.first_here:
            result = work()
        self.wait()
        return result if self.first_here else work()
