"""CUDA graphs on the CPU: what was captured is done again on the same memory, with the numbers that Python passed then."""

import contextlib
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tape(TorchDispatchMode):
    """In place of torch.cuda.CUDAGraph. Within `with tape` operations are recorded and, unlike on a GPU, done: the first replay."""

    def __init__(self):
        super().__init__()
        self.operations, self.replays, self.rng = [], 0, None

    def register_generator_state(self, rng):
        self.rng = rng

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        rng = kwargs.get("generator")
        assert rng is None or torch.equal(rng.get_state(), self.rng.get_state()), "a generator that is not registered"
        result = function(*args, **kwargs)
        if function.namespace == "aten":  # not the profiler's marks
            self.operations.append((function, args, kwargs, result))
        return result

    @torch.no_grad()
    def replay(self):
        self.replays += 1
        for function, args, kwargs, result in self.operations if self.replays > 1 else ():
            for old, new in zip(tree_leaves(result), tree_leaves(function(*args, **kwargs))):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():  # neither in place nor a view
                    old.copy_(new)


@contextlib.contextmanager
def fake_graphs():
    """A context in which states on the CPU can be trained with CUDA graphs."""
    stream = mock.Mock(return_value=mock.MagicMock())
    captured = {"CUDAGraph": Tape, "graph": lambda tape, *_, **__: tape, "graph_pool_handle": mock.Mock()}
    with mock.patch.multiple("torch.cuda", Stream=stream, current_stream=stream, stream=contextlib.nullcontext, **captured):
        yield
