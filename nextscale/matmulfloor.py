"""The floor of a training step: its matrix products, each shape timed alone, added up.

No implementation of the same model is faster than its matrix products, so step time over floor says how much of a
step is spent on everything else.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Clock = Callable[[], float]
# Where the two factors are among an operator's arguments.
_FACTORS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}


@dataclass(frozen=True)
class Factor:
    """A matrix, or a batch of them: its shape, and whether its columns (not its rows) are contiguous in memory."""

    shape: tuple[int, ...]
    transposed: bool

    @classmethod
    def of(cls, tensor: Tensor) -> Factor:
        return cls(tuple(tensor.shape), tensor.stride(-1) > tensor.stride(-2))

    def random(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        *batch, rows, columns = self.shape
        if self.transposed:
            return torch.randn(*batch, columns, rows, dtype=dtype, device=device).mT
        return torch.randn(*batch, rows, columns, dtype=dtype, device=device)


@dataclass(frozen=True)
class Product:
    """One matrix product (or batch of them), as it is laid out in memory."""

    a: Factor
    b: Factor
    dtype: torch.dtype
    device: torch.device

    @property
    def flops(self) -> int:
        return 2 * math.prod(self.a.shape) * self.b.shape[-1]


class MatrixProducts(TorchDispatchMode):
    """Counts the matrix products computed inside a ``with`` block, forward and backward.

    Fused attention counts as what it stands for: q k^T and p v over the full L x L, and two products backward for
    each. Its masked half is not taken off, nor what a fused kernel computes again in its backward added.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[Product] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = func.overloadpacket.__name__
        if name in _FACTORS:
            a, b = args[_FACTORS[name] : _FACTORS[name] + 2]
            self.counts[Product(Factor.of(a), Factor.of(b), a.dtype, a.device)] += 1
        elif name.startswith("_scaled_dot_product"):
            backward = "backward" in name
            q, k, v = args[1:4] if backward else args[:3]
            self._attention(q, k, v, backward)
        return func(*args, **(kwargs or {}))

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, backward: bool) -> None:
        pairs, queries, keys = q.shape[0] * q.shape[1], q.shape[2], k.shape[2]
        rows = [Factor((pairs, x.shape[2], x.shape[3]), False) for x in (q, k, v)]
        columns = [Factor((pairs, x.shape[3], x.shape[2]), True) for x in (q, k, v)]
        weights, turned = Factor((pairs, queries, keys), False), Factor((pairs, keys, queries), True)
        out = Factor((pairs, queries, v.shape[3]), False)
        factors = [(rows[0], columns[1]), (weights, rows[2])]
        if backward:
            # Gradients of v, of the weights, of q and of k.
            factors = [(turned, out), (out, columns[2]), (weights, rows[1]), (turned, rows[0])]
        for a, b in factors:
            self.counts[Product(a, b, q.dtype, q.device)] += 1


class Floor:
    """Times counted products. Call it for the seconds they take together, one measurement of each."""

    def __init__(self, counts: Counter[Product], clock: Clock) -> None:
        self.counts, self.clock = counts, clock
        self.flops = sum(product.flops * count for product, count in counts.items())

    def __call__(self) -> float:
        return sum(self._seconds(product) * count for product, count in self.counts.items())

    def _seconds(self, product: Product) -> float:
        """The mean of two calls, after one that warms the caches."""
        a, b = product.a.random(product.dtype, product.device), product.b.random(product.dtype, product.device)
        multiply = torch.mm if a.dim() == 2 else torch.bmm
        multiply(a, b)
        start = self.clock()
        for _ in range(2):
            multiply(a, b)
        return (self.clock() - start) / 2
