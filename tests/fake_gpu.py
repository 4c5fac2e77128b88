"""A GPU of which only shapes, types and devices exist: on a machine without one, it finds operations that mix two devices.

    with fake_gpu() as device:
        torch.zeros(3, device=device) + torch.zeros(3)      # DeviceMismatch

PyTorch's FakeTensorMode computes shapes alone. It overlooks some mixtures, a kernel on the CPU in PyTorch 2.11's convolution
and a generator on the CPU among them, so that every operation is checked here as well. Numbers that are read are 1, masks
select every row, and all elements are unique. Derivatives of "cuda" need a driver; fake_gpu_worker.py has them without one.
"""

import contextlib
import warnings
from unittest import mock

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import ops

MIXING = {"copy_", "_to_copy", "_foreach_copy_", "index", "index_put_", "_index_put_impl_"}  # allowed on a real GPU, too


class DeviceMismatch(RuntimeError):
    """Tensors on two devices, or a generator on another one, in one operation."""


class SameDevice(TorchDispatchMode):
    """Refuses tensors on two devices, except for those without dimensions, which a GPU takes for numbers; and float64, which
    Apple's GPUs lack."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._overloadpacket.__name__
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        for x in tensors:
            x.constant = None  # whose value PyTorch would compute on the device
        devices = {x.device.type for x in tensors if x.ndim}
        if any(x.device.type != "cpu" and x.dtype == torch.float64 for x in tensors):
            raise DeviceMismatch(f"{name} in float64 on {' and '.join(sorted(devices))}")
        if len(devices) > 1 and name not in MIXING:
            raise DeviceMismatch(f"{name} of tensors on {' and '.join(sorted(devices))}")
        if name == "_local_scalar_dense":
            return 1.0 if args[0].dtype.is_floating_point else 1
        if name == "index":
            args = args[0], [torch.arange(len(i)) if i is not None and i.dtype == torch.bool else i for i in args[1]]
        if name == "_fused_adam_":  # FakeTensorMode only knows it with a number for the learning rate
            function, kwargs = torch.ops.aten._fused_adam_.default, kwargs | {"lr": 1.0}
        return function(*args, **(kwargs or {}))


class OwnGenerators(TorchFunctionMode):
    """Refuses random numbers from a generator on another device, and NumPy's look at a GPU's memory."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.numpy:
            if args[0].device.type != "cpu":
                raise DeviceMismatch(f"NumPy looks at a tensor on {args[0].device}")
            return np.zeros(args[0].shape, str(args[0].dtype).removeprefix("torch."))
        kwargs = kwargs or {}
        if function is torch.Tensor.unique:
            return args[0].clone()
        result, rng = function(*args, **kwargs), kwargs.get("generator")
        if rng is not None and rng.device.type != result.device.type:
            raise DeviceMismatch(f"{function.__name__} on {result.device} from a generator on {rng.device}")
        return result


class FakeGenerator(torch.Generator):
    """A generator on the CPU that says that it is on `device`."""

    device = torch.device("cpu")

    def __new__(cls, device="cpu"):
        made = super().__new__(cls)
        made.device = torch.device(device)
        return made


@torch.no_grad()
def convert(module, function, recurse=True):
    """nn.Module._apply, behind `to`, which would swap tensors that FakeTensorMode still refers to."""
    for part in module.modules():
        for name, x in part._parameters.items():
            part._parameters[name] = None if x is None else torch.nn.Parameter(function(x), x.requires_grad)
        for name, x in part._buffers.items():
            part._buffers[name] = function(x)
    return module


def tensor(data, device="cpu", make=torch.tensor, **options):
    """torch.tensor, which would copy its numbers to the device."""
    x = make(data, **options)
    return torch.zeros(x.shape, dtype=x.dtype, device=device)


@contextlib.contextmanager
def ignored_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def fake_gpu(kind="cuda"):
    """A context with a torch.device of this kind. Tensors from outside of it count as the CPU's."""
    with (
        ignored_warnings(),  # copy.deepcopy asks for the address of a fake tensor
        mock.patch("torch.Generator", FakeGenerator),
        mock.patch("torch.tensor", tensor),
        mock.patch("torch.Tensor.pin_memory", lambda x: x),
        mock.patch("torch.nn.Module._apply", convert),
        mock.patch("ops._binomial_kernel", ops._binomial_kernel.__wrapped__),  # no fake kernel must stay in its cache
        torch.autograd.set_multithreading_enabled(False),  # else derivatives run in a thread that knows nothing of this
        FakeTensorMode(allow_non_fake_inputs=True),
        SameDevice(),
        OwnGenerators(),
    ):
        yield torch.device(kind, 0)
