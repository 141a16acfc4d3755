"""The floor of a computation: the total time of its matrix products and convolutions, each shape timed alone.

No implementation of a model is faster than its products, so the ratio of time to floor shows how much is spent on
everything else.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Clock = Callable[[], float]
# Index of the first of the two factors among an operator's arguments.
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
    """One matrix product (or a batch of them), with the memory layout of its factors."""

    a: Factor
    b: Factor
    dtype: torch.dtype
    device: torch.device

    @property
    def flops(self) -> int:
        return 2 * math.prod(self.a.shape) * self.b.shape[-1]

    def first(self) -> Tensor:
        return self.a.random(self.dtype, self.device)

    def second(self) -> Tensor:
        return self.b.random(self.dtype, self.device)

    @property
    def second_kind(self) -> Hashable:
        """Products with the same kind can share their second factors."""
        return self.b, self.dtype, self.device

    def compute(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.mm(a, b) if a.dim() == 2 else torch.bmm(a, b)

    @property
    def weight_bytes(self) -> int:
        return math.prod(self.b.shape) * self.dtype.itemsize

    @property
    def activation_bytes(self) -> int:
        """Of input and output. Batched products count 0: a fused attention kernel does not store its weights."""
        rows, columns = self.a.shape[-2:]
        return rows * (columns + self.b.shape[-1]) * self.dtype.itemsize if len(self.a.shape) == 2 else 0


@dataclass(frozen=True)
class Convolution:
    """One forward convolution: shapes of input and weight, settings, and the memory layout of the input."""

    shape: tuple[int, ...]
    weight: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    channels_last: bool
    dtype: torch.dtype
    device: torch.device

    @property
    def places(self) -> int:
        """Number of positions in the output, over the batch."""
        sizes = zip(self.shape[2:], self.weight[2:], self.stride, self.padding, self.dilation, strict=True)
        out = [(side + 2 * pad - dilation * (k - 1) - 1) // step + 1 for side, k, step, pad, dilation in sizes]
        return self.shape[0] * math.prod(out)

    @property
    def flops(self) -> int:
        return 2 * self.places * math.prod(self.weight)

    def first(self) -> Tensor:
        return self._laid_out(torch.randn(self.shape, dtype=self.dtype, device=self.device))

    def second(self) -> Tensor:
        return self._laid_out(torch.randn(self.weight, dtype=self.dtype, device=self.device))

    @property
    def second_kind(self) -> Hashable:
        return self.weight, self.channels_last, self.dtype, self.device

    def _laid_out(self, tensor: Tensor) -> Tensor:
        if not self.channels_last:
            return tensor
        return tensor.to(memory_format=torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d)

    def compute(self, x: Tensor, weight: Tensor) -> Tensor:
        transposed = (False, (0,) * len(self.stride))
        return torch.convolution(x, weight, None, self.stride, self.padding, self.dilation, *transposed, self.groups)

    @property
    def weight_bytes(self) -> int:
        return math.prod(self.weight) * self.dtype.itemsize

    @property
    def activation_bytes(self) -> int:
        return (math.prod(self.shape) + self.places * self.weight[0]) * self.dtype.itemsize


class MatrixProducts(TorchDispatchMode):
    """Counts the matrix products computed inside a ``with`` block, forward and backward.

    With ``convolutions``, it also counts forward convolutions, except transposed ones. ``counting`` can be switched off
    and on.

    Fused attention counts as the products it replaces: q k^T and p v over the full L x L, and two backward products
    for each. The masked half is not subtracted, and what a fused kernel recomputes in its backward is not added.
    """

    def __init__(self, convolutions: bool = False) -> None:
        super().__init__()
        self.counts: Counter[Product | Convolution] = Counter()
        self.convolutions, self.counting = convolutions, True

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if torch.is_inference_mode_enabled():  # where operators such as linear are not yet decomposed
            with self:
                result = func.decompose(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        name = func.overloadpacket.__name__ if self.counting else ""
        if name == "convolution" and self.convolutions:
            self._convolution(*args)
        elif name in _FACTORS:
            a, b = args[_FACTORS[name] : _FACTORS[name] + 2]
            self.counts[Product(Factor.of(a), Factor.of(b), a.dtype, a.device)] += 1
        elif name.startswith("_scaled_dot_product"):
            backward = "backward" in name
            q, k, v = args[1:4] if backward else args[:3]
            self._attention(q, k, v, backward)
        return func(*args, **(kwargs or {}))

    def _convolution(
        self, x: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any, *rest: Any
    ) -> None:
        transposed, _, groups = rest
        if not transposed:
            settings = (tuple(stride), tuple(padding), tuple(dilation), groups)
            last = x.dim() > 3 and x.stride(1) == 1 and x.shape[1] > 1
            self.counts[Convolution(tuple(x.shape), tuple(weight.shape), *settings, last, x.dtype, x.device)] += 1

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, backward: bool) -> None:
        pairs, queries, keys = q.shape[0] * q.shape[1], q.shape[2], k.shape[2]
        rows = [Factor((pairs, x.shape[2], x.shape[3]), False) for x in (q, k, v)]
        columns = [Factor((pairs, x.shape[3], x.shape[2]), True) for x in (q, k, v)]
        weights, turned = Factor((pairs, queries, keys), False), Factor((pairs, keys, queries), True)
        out = Factor((pairs, queries, v.shape[3]), False)
        factors = [(rows[0], columns[1]), (weights, rows[2])]
        if backward:
            # Gradients of v, of the attention weights, of q and of k.
            factors = [(turned, out), (out, columns[2]), (weights, rows[1]), (turned, rows[0])]
        for a, b in factors:
            self.counts[Product(a, b, q.dtype, q.device)] += 1


class Floor:
    """Times counted products. Calling it returns the seconds they take together; each shape is measured once.

    ``cold``: the calls of a product cycle through as many second factors (weights) as it has occurrences, up to
    ``COLD_BYTES`` in total. A model goes through all its layers before it uses a weight again, so each weight comes
    from memory. Where a scale has few tokens, fetching the weight takes most of the time. A single matrix would stay
    in the processor's cache, and the floor would be lower than any model can reach.

    Without ``cold``, two calls with the same factors are timed.
    """

    COLD_BYTES = 2**28

    def __init__(self, counts: Mapping[Any, int], clock: Clock, cold: bool = False) -> None:
        self.counts, self.clock, self.cold = counts, clock, cold
        self.flops = sum(product.flops * count for product, count in counts.items())

    @torch.no_grad()
    def __call__(self) -> float:
        pool: dict[Hashable, list[Tensor]] = {}
        return sum(self._seconds(product, count, pool) * count for product, count in self.counts.items())

    def _seconds(self, product: Product | Convolution, count: int, pool: dict[Hashable, list[Tensor]]) -> float:
        """The mean time of at least two calls, after one to warm up."""
        copies = max(1, min(count, self.COLD_BYTES // product.weight_bytes)) if self.cold else 1
        first, others = product.first(), pool.setdefault(product.second_kind, [product.second()])
        others += [others[0].clone() for _ in range(copies - len(others))]
        product.compute(first, others[0])
        calls = others[:copies] if copies > 1 else 2 * others[:1]
        start = self.clock()
        for other in calls:
            product.compute(first, other)
        return (self.clock() - start) / len(calls)


def synchronized(clock: Clock, device: torch.device) -> float:
    """The time once all work queued on ``device`` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock()


def typical(turn: Sequence[tuple[str, Callable[[], float]]], repeats: int, seconds: float) -> dict[str, float]:
    """The median seconds of each function in ``turn``. Every turn times all of them; the first turn is a warm-up."""
    start = time.perf_counter()
    turns: list[list[float]] = []
    while len(turns) <= repeats and (not turns or time.perf_counter() - start < seconds):
        turns.append([measure() for _, measure in turn])
    times: dict[str, list[float]] = {}
    for row in turns[1:] or turns:
        for (name, _), value in zip(turn, row, strict=True):
            times.setdefault(name, []).append(value)
    return {name: statistics.median(values) for name, values in times.items()}
