"""A training step's work as CUDA graphs: recorded once for every kind of step, then replayed by the GPU without Python.

A step asks for thousands of small kernels, the same ones at every step of its kind but for the numbers in them, and a fast GPU
waits for Python between them. A graph asks for all at once; to it a second derivative is a kernel as any other. What has been
recorded is first held against the same work done kernel by kernel, from the same random numbers. Where the gradients differ, or
recording fails, training goes on as without graphs.
"""

from collections import Counter
from types import SimpleNamespace

import torch

WARM_UP = 2  # steps of a kind that are not recorded yet: libraries look for their fastest kernels then
TOLERANCE = 0.05  # of the gradient's norm: kernels may add up in another order at every call, in bfloat16 too


class Tape:
    """work() as a CUDA graph.

    work launches kernels alone, on memory that is still there at every replay: it never looks at a number. It returns tensors
    by name and leaves gradients in `parameters`; random numbers come from `rng`. pool: of memory, shared with tapes that are
    replayed in the order in which they were recorded, or between them.
    """

    def __init__(self, work, parameters, rng, pool):
        self.graph = torch.cuda.CUDAGraph()
        self.graph.register_generator_state(rng)
        for p in parameters:
            p.grad = None
        stream = torch.cuda.current_stream(rng.device)
        with torch.cuda.graph(self.graph, pool, stream, capture_error_mode="thread_local"):  # the loader's thread is not meant
            self.results = work()
        self.gradients = [p.grad for p in parameters]

    def replay(self):
        """Launch it: (what work returned, the gradients), valid until the next replay."""
        self.graph.replay()
        return self.results, self.gradients


class Recorder:
    """Tapes of the parts of a step, for every kind of step. fault: why there are none, once recording has failed, else None."""

    def __init__(self, rng, tape=Tape):
        self.rng, self.tape, self.fault = rng, tape, None
        self.tapes, self.inputs, self.met, self.pool = {}, {}, Counter(), None
        if rng.device.type == "cuda":
            # Nothing can be recorded on the default stream, and autograd goes back to where it met a weight first: so all leave it.
            stream = torch.cuda.Stream(rng.device)
            stream.wait_stream(torch.cuda.current_stream(rng.device))
            torch.cuda.set_stream(stream)
            self.pool = torch.cuda.graph_pool_handle()

    def begin(self, kind, parts, batch):
        """A step begins: of `kind`, a tuple of what it does beyond the numbers, or None: not to be recorded; with named `parts`.

        batch: {name: tensor, shaped alike in all steps, or None}. Says in `whole` whether this step's parts can be replayed, else
        in `recording` whether they are to be recorded.
        """
        self.kind, self.whole = kind, all((kind, part) in self.tapes for part in parts)
        self.met[kind] += 1
        self.recording = not self.whole and not self.fault and kind is not None and self.met[kind] > WARM_UP
        if self.whole or self.recording:
            self.turn = SimpleNamespace(**{name: self._keep(name, tensor) for name, tensor in batch.items()})

    def _keep(self, name, tensor):
        """The tensor's numbers, for tapes to find: in the same memory at every step."""
        if tensor is not None:
            self.inputs.setdefault(name, torch.empty_like(tensor)).copy_(tensor)
        return None if tensor is None else self.inputs[name]

    def record(self, part, work, parameters, state):
        """Record work(turn), after it was done on this step's own batch from the generator's `state` on."""
        done, expected = self.rng.get_state(), [p.grad for p in parameters]
        try:
            turn = self.turn
            tape = self.tape(lambda: work(turn), parameters, self.rng, self.pool)
            self.rng.set_state(state)
            _, found = tape.replay()
            error = _norm([a - b for a, b in zip(expected, found) if a is not None]) / _norm(filter(torch.is_tensor, expected))
            if error.isnan():
                self.recording = False  # this step's gradients are not finite: another one will do
            elif error > TOLERANCE:
                raise RuntimeError(f"the {part}'s gradients are off by {error:.0%}")
            else:
                self.tapes[self.kind, part] = tape
        except RuntimeError as error:
            self.fault, self.recording = str(error).splitlines()[0], False
            self.tapes.clear()
            if self.rng.device.type == "cuda":  # else a recording that broke off holds the generator for good
                self.rng.graphsafe_set_state(torch.Generator(self.rng.device))
        for p, gradient in zip(parameters, expected):
            p.grad = gradient
        self.rng.set_state(done)

    def replay(self, part, parameters):
        """What work would return, and its gradients in `parameters`."""
        results, gradients = self.tapes[self.kind, part].replay()
        for p, gradient in zip(parameters, gradients):
            p.grad = gradient
        return {name: value.clone() for name, value in results.items()}


def _norm(tensors):
    return torch.stack(torch._foreach_norm(list(tensors))).norm()
