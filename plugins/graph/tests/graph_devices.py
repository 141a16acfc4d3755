"""A second device for machines that have none: tensors on it are refused together with tensors on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
"""A kind that torch knows everywhere, and that the code under test never uses; tensors on it do have values here."""


class Elsewhere(torch.Tensor):
    """A tensor that says it is on ``DEVICE``, and is computed on the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Elsewhere:
        with torch.inference_mode(False):  # wrappers need a version counter, inference tensors have none
            made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
                cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
                device=DEVICE, requires_grad=False,
            )  # fmt: skip
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})

    def tolist(self) -> Any:
        return self.inner.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy")


class _Factories(TorchDispatchMode):
    """Sends what is created on ``DEVICE`` there, and moves tensors between devices."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


class _Constants(TorchFunctionMode):
    """``torch.tensor`` moves its values to a device below all dispatch."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.tensor and torch.device(kwargs.get("device") or "cpu") == DEVICE:
            return Elsewhere(torch.tensor(*args, **{**kwargs, "device": "cpu"}))
        return function(*args, **kwargs)


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    away = any(isinstance(leaf, Elsewhere) for leaf in tensors)
    here = any(not isinstance(leaf, Elsewhere) and leaf.dim() > 0 for leaf in tensors)
    devices = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.device)]
    copies = function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default, torch.ops.aten.to.other)
    if away and here and not copies:
        raise RuntimeError(f"Expected all tensors to be on the same device, in {function}")
    if function is torch.ops.aten.to.other:
        away = isinstance(args[1], Elsewhere)
    elif devices:
        away = devices[0].type == DEVICE.type
    args, kwargs = tree_map(_inner, (args, kwargs))
    found = function(*args, **kwargs)
    return tree_map(lambda leaf: Elsewhere(leaf) if isinstance(leaf, Tensor) else leaf, found) if away else found


def _inner(leaf: Any) -> Any:
    if isinstance(leaf, torch.device):
        return torch.device("cpu")
    return leaf.inner if isinstance(leaf, Elsewhere) else leaf


@contextmanager
def second_device() -> Iterator[torch.device]:
    with _Constants(), _Factories():
        yield DEVICE


def move(module: nn.Module) -> None:
    """Move parameters and buffers to ``DEVICE`` in place."""
    for each in module.modules():
        for name, parameter in each._parameters.items():
            if parameter is not None:
                each._parameters[name] = nn.Parameter(Elsewhere(parameter.detach()), requires_grad=False)
        for name, buffer in each._buffers.items():
            if buffer is not None:
                each._buffers[name] = Elsewhere(buffer)
