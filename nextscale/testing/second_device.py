"""A second device for machines that have none, which shows the mistakes that a GPU would show.

Its tensors hold values and are computed on the CPU, but they say that they are elsewhere. As on a GPU, an operator
refuses tensors of both devices, unless those on the CPU are scalars or indices; NumPy takes no tensor of it; and each
device takes only its own random-number generators.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.optim import optimizer  # type: ignore[attr-defined]
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta", 0)
"""A kind of device that torch knows everywhere. Models built without memory are on plain ``meta``, which is another."""

_aten = torch.ops.aten
_COPIES = {_aten._to_copy.default, _aten.copy_.default}
# Some are made of others, which they hide in inference mode.
_WAITS = {_aten._local_scalar_dense, _aten.item, _aten.is_nonzero, _aten.nonzero, _aten.masked_select, _aten.bincount,
          _aten.equal, _aten.allclose, _aten._unique2, _aten.unique_dim, _aten.unique_consecutive,
          _aten.unique_dim_consecutive, _aten.multinomial}  # fmt: skip
_MOVES = {_aten._to_copy, _aten.to}
_waited: list[str] | None = None
_INDEXED = {_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_, _aten._unsafe_index}


class Elsewhere(torch.Tensor):
    """A tensor that says it is on ``DEVICE``, and is computed on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Elsewhere:
        with torch.inference_mode(False):  # wrappers need a version counter, inference tensors have none
            made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
                cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
                device=DEVICE, requires_grad=False,
            )  # fmt: skip
        made.held = inner.detach()
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})

    def tolist(self) -> Any:
        _wait("tolist")
        return self.held.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.held.numpy()
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy: use Tensor.cpu() first")

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"{self.held!r} on {DEVICE}"


class _Generator(torch.Generator):
    """A generator of either device; the numbers come from the CPU."""

    away: bool

    def __new__(cls, device: Any = "cpu") -> _Generator:
        made = super().__new__(cls)
        made.away = _is_second(torch.device(device or "cpu"))
        return made


class _Operators(TorchDispatchMode):
    """Creates tensors where they are asked for, and moves them."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What torch does below all operators: it makes tensors of Python values, and knows where a generator belongs."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        first = args[0] if args else None
        if function is Tensor.new_tensor and isinstance(first, Elsewhere):
            function, args, kwargs = torch.tensor, args[1:], {"dtype": first.dtype, "device": DEVICE, **kwargs}
        wanted = kwargs.get("device")
        away = isinstance(first, Elsewhere) if wanted is None else _is_second(torch.device(wanted))
        if getattr(kwargs.get("generator"), "away", away) != away:
            raise RuntimeError(f"Expected a generator of the tensor's own device, in {function}")
        moved = function is torch.as_tensor and isinstance(first, Tensor)
        if function in (torch.tensor, torch.as_tensor) and away and not moved:
            made = function(*args, **{**kwargs, "device": "cpu"})
            return Elsewhere(made).requires_grad_(made.requires_grad)
        if function in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(first, Elsewhere):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(torch.as_tensor(each) if isinstance(each, list | np.ndarray) else each for each in index)
            args = (first, index, *args[2:])
        return function(*args, **kwargs)


def _is_second(device: torch.device) -> bool:
    return device == DEVICE


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given = tree_leaves((args, kwargs))
    tensors = [leaf for leaf in given if isinstance(leaf, Tensor)]
    away = any(isinstance(leaf, Elsewhere) for leaf in tensors)
    if away and function not in _COPIES:
        _check_together(function, args, tensors)
    devices = [leaf for leaf in given if isinstance(leaf, torch.device)]
    to = _is_second(devices[0]) if devices else away
    wrapped = {id(leaf.held): leaf for leaf in tensors if isinstance(leaf, Elsewhere)}
    if away and _waits(function, args, to):
        _wait(str(function))
    args, kwargs = tree_map(_inner, (args, kwargs))
    found = function(*args, **kwargs)
    if not to:
        return found
    # What an operator changed in place is still the same tensor.
    return tree_map(lambda leaf: wrapped[id(leaf)] if id(leaf) in wrapped else _outer(leaf), found)


def _check_together(function: Any, args: Any, tensors: list[Tensor]) -> None:
    if function.overloadpacket in _INDEXED and isinstance(args[0], Elsewhere):
        tensors = [args[0], *(leaf for leaf in args[2:] if isinstance(leaf, Tensor))]  # indices may be on the CPU
    if any(not isinstance(leaf, Elsewhere) and leaf.dim() > 0 for leaf in tensors):
        raise RuntimeError(f"Expected all tensors to be on the same device, in {function}")


def _waits(function: Any, args: Any, to: bool) -> bool:
    """Whether the host waits for what is queued on the device: for a value, or for the size of a result."""
    if function is _aten.copy_.default:
        return not isinstance(args[0], Elsewhere)
    if function.overloadpacket in _MOVES:
        return not to
    if function.overloadpacket is _aten.where:
        return len(args) == 1
    if function.overloadpacket in _INDEXED:
        return any(isinstance(leaf, Elsewhere) and leaf.dtype == torch.bool for leaf in args[1])
    return function.overloadpacket in _WAITS


def _wait(what: str) -> None:
    if _waited is not None:
        _waited.append(what)


@contextmanager
def waits() -> Iterator[list[str]]:
    """The list of operators within the block, on tensors of the second device, for which the host of a GPU would wait
    (https://docs.pytorch.org/docs/stable/notes/cuda.html#asynchronous-execution)."""
    global _waited
    before, _waited = _waited, []
    try:
        yield _waited
    finally:
        _waited = before


def _inner(leaf: Any) -> Any:
    if isinstance(leaf, torch.device):
        return torch.device("cpu") if _is_second(leaf) else leaf
    return leaf.held if isinstance(leaf, Elsewhere) else leaf


def _outer(leaf: Any) -> Any:
    return Elsewhere(leaf) if isinstance(leaf, Tensor) else leaf


def _accelerator(check_available: bool = False) -> torch.device | None:
    """None to whoever would go on to record graphs on it, as optimizers ask."""
    return None if check_available else torch.device(DEVICE.type)


@contextmanager
def second_device() -> Iterator[torch.device]:
    """Within the block, this machine has the accelerator ``DEVICE``. It knows no automatic mixed precision."""
    fused, autocast = optimizer._get_fused_kernels_supported_devices(), torch.autocast

    def autocast_elsewhere(device_type: str, *told: Any, **named: Any) -> torch.autocast:
        return autocast("cpu" if device_type == DEVICE.type else device_type, *told, **named)

    replaced = {
        (torch, "Generator"): _Generator,
        (torch, "autocast"): autocast_elsewhere,
        (optimizer, "_get_fused_kernels_supported_devices"): lambda: [*fused, DEVICE.type],
        (torch, "get_device_module"): lambda device=None: torch.cpu,
        (torch.accelerator, "is_available"): lambda: True,
        (torch.accelerator, "current_accelerator"): _accelerator,
        (torch.accelerator, "device_count"): lambda: 1,
    }
    with ExitStack() as stack:
        for (owner, name), new in replaced.items():
            stack.enter_context(patch.object(owner, name, new))
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message=".* to a meta parameter in the current model, which is a no-op")
        stack.enter_context(_Functions())
        stack.enter_context(_Operators())
        yield DEVICE
