"""Data-parallel training: the processes that torchrun or Slurm's srun starts, or a single one.

    torchrun --nproc_per_node=2 train.py ...
    srun --ntasks=2 python train.py ...

Every process trains on a shard of the batch with its own stream of random numbers. Gradients are averaged over the processes
before each Adam step, so that all weights stay equal.
"""

import os
import subprocess

import torch
import torch.distributed as dist

from modules import GROUP_SIZE
from utils import UserError


def check_divisible(batch_size, shards):
    """UserError unless the batch can be split into `shards` parts that consist of whole minibatch-std groups."""
    if shards > 1 and batch_size % (GROUP_SIZE * shards):
        nearest = max(1, round(batch_size / GROUP_SIZE / shards)) * GROUP_SIZE * shards
        raise UserError(
            f"--batch_size {batch_size}: {shards} shards (processes times --grad_accum) need a multiple of "
            f"{GROUP_SIZE * shards}, such as {nearest}"
        )


def join_slurm():
    """In a process that srun started with others, set the variables that torchrun would set, unless they are set.

    Without effect for a single task, in a batch script and in a terminal (srun --pty). UserError if the first of several nodes is
    not told.
    """
    there = os.environ
    tasks = there.get("SLURM_STEP_NUM_TASKS", "1")  # of this srun; SLURM_NTASKS may be the job's
    if tasks == "1" or "RANK" in there or "SLURM_PTY_PORT" in there:
        return
    first = "127.0.0.1"
    if "MASTER_ADDR" not in there and there["SLURM_STEP_NUM_NODES"] != "1":
        try:
            command = ["scontrol", "show", "hostnames", there["SLURM_STEP_NODELIST"]]
            first = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
        except (OSError, subprocess.CalledProcessError) as error:
            raise UserError(f"srun on several nodes: scontrol names none ({error}): set MASTER_ADDR to the first") from None
    port = 15000 + (32 * int(there["SLURM_JOB_ID"]) + int(there["SLURM_STEP_ID"])) % 15000  # one for each srun
    ranks = {"RANK": there["SLURM_PROCID"], "WORLD_SIZE": tasks, "LOCAL_RANK": there["SLURM_LOCALID"]}
    there.update({"MASTER_ADDR": first, "MASTER_PORT": str(port)} | ranks | there)


class Processes:
    """This process among all that torchrun or srun started (`rank` of `size`); rank 0 writes files and prints.

    Every method is collective: all processes must call it. All raise UserError when another process has died.
    """

    def __init__(self, device):
        self.rank, self.size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.leading = self.rank == 0
        self.first_on_machine = os.environ.get("LOCAL_RANK", "0") == "0"
        if self.size > 1 and not dist.is_initialized():
            if device.type == "cuda":
                torch.cuda.set_device(device)
            store, *_ = next(dist.rendezvous("env://"))
            if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
                # On one machine torchrun keeps its store over restarts, with addresses of dead processes in it. (On several
                # machines the agents may count restarts differently.)
                store = dist.PrefixStore(f"restart {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size)

    def _run(self, collective, *args):
        try:
            collective(*args)
        except RuntimeError as error:
            raise UserError(
                f"process {self.rank} has lost the others ({str(error).splitlines()[0]}); the same command resumes "
                "from the last checkpoint"
            ) from None

    @torch.no_grad()
    def average(self, weights, tensors):
        """Replace the gradients of weights, and other dense float32 tensors on their device, by means over all processes.

        One all-reduce of a flat buffer, of which the gradients then are views; None stays None.
        """
        if self.size == 1:
            return
        weights = [weight for weight in weights if weight.grad is not None]
        tensors = [*(weight.grad for weight in weights), *tensors]
        flat = torch.cat([tensor.as_strided([tensor.numel()], [1]) for tensor in tensors])  # in the order of their memory
        self._run(dist.all_reduce, flat, dist.ReduceOp.AVG if flat.is_cuda else dist.ReduceOp.SUM)
        if not flat.is_cuda:  # gloo has no mean
            flat /= self.size
        parts = flat.split([tensor.numel() for tensor in tensors])
        parts = [part.as_strided(tensor.shape, tensor.stride()) for part, tensor in zip(parts, tensors)]
        for weight, part in zip(weights, parts):
            weight.grad = part
        torch._foreach_copy_(tensors[len(weights) :], parts[len(weights) :])  # views would keep the buffer

    def maximum(self, *values):
        """The maximum of each number over all processes, as floats; does not wait for the GPU."""
        if self.size == 1:
            return values
        values = torch.tensor(values, dtype=torch.float64)
        self._run(dist.all_reduce, values, dist.ReduceOp.MAX)
        return values.tolist()

    def gather(self, tensor):
        """A list of every process's CPU tensor, all of one shape, in the order of their ranks."""
        tensors = [torch.empty_like(tensor) for _ in range(self.size)]
        if self.size == 1:
            return [tensor]
        self._run(dist.all_gather, tensors, tensor)
        return tensors

    def check_equal(self, tensors):
        """UserError if the norms of these tensors differ between processes, which no correct run can do."""
        norms = [float(norm) for norm in torch._foreach_norm(list(tensors))] if self.size > 1 else []
        if list(self.maximum(*norms)) != [-low for low in self.maximum(*(-norm for norm in norms))]:
            raise UserError("the processes' weights have diverged; the same command resumes from the last checkpoint")

    def barrier(self):
        """Wait until every process has reached this point."""
        self.maximum(0)

    def from_leading(self, work):
        """What work() returns, or its UserError, in all processes: the leading one does it and sends a pickle to the others."""
        if self.size == 1:
            return work()
        found = [None, None]
        if self.leading:
            try:
                found[0] = work()
            except UserError as error:
                found[1] = error
        self._run(dist.broadcast_object_list, found, 0, None, torch.device("cpu"))
        if found[1]:
            raise found[1]
        return found[0]

    def first_on_each_machine(self, work):
        """work(), by the first process of every machine before the others, which then find its results in the cache."""
        if self.first_on_machine:
            result = work()
        self.barrier()
        return result if self.first_on_machine else work()

    def close(self):
        if dist.is_initialized():
            dist.destroy_process_group()
