"""Models built without memory and in no time, to check that settings fit together and how large the model would be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

IN_PLACE = {Tensor.uniform_, Tensor.normal_, Tensor.mul_, Tensor.div_, Tensor.zero_, Tensor.fill_}


class _NoValues(TorchFunctionMode):
    """Skips initialisation: tensors without memory hold no values, and torch would import its compiler (seconds)."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in IN_PLACE or getattr(func, "__module__", "") == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def without_memory() -> Iterator[None]:
    """Modules built here are on torch's meta device."""
    with torch.device("meta"), _NoValues():
        yield
