"""Convolutions, norms and attention on grids of any number of axes, bidirectional or causal along the first axis.

A causal network reads its first axis in order: its output at a place depends on no later place. So a long sample can be
read or written piece by piece (``streaming``); each layer keeps the few places that the next piece needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.grid.phi import CONVOLUTIONS


@dataclass(frozen=True)
class Layout:
    """How a network treats the axes of its grid.

    Attributes:
        axes: N, the grid's number of axes.
        causal: along the first axis, layers look only backwards.
        alone: where the first axis is downsampled, its first place stays on its own: 1 + f n places become 1 + n.
            (MAGVIT-v2, https://arxiv.org/abs/2310.05737: a still image is then a clip of length one.)
    """

    axes: int = 2
    causal: bool = False
    alone: bool = False

    def convolution(self, inputs: int, outputs: int, kernel: int = 3) -> nn.Module:
        """A convolution that keeps the grid's shape."""
        if not self.causal or kernel == 1:
            return CONVOLUTIONS[self.axes](inputs, outputs, kernel, padding=kernel // 2)
        padding = (0, *[kernel // 2] * (self.axes - 1))
        return CAUSAL[self.axes](inputs, outputs, kernel, padding=padding)

    def norm(self, channels: int) -> nn.GroupNorm:
        # A norm turns two nearly equal values into -1 and 1. So a group needs more than two channels if its statistics
        # come from a single place.
        least = 8 if self.causal and self.axes == 1 else 2
        groups = next(g for g in (32, 16, 8, 4, 2, 1) if (channels % g == 0 and channels // g >= least) or g == 1)
        return (PlaceNorm if self.causal else nn.GroupNorm)(groups, channels, eps=1e-6)


class Streamed:
    """The state that a layer keeps between the pieces of a sample that is read or written piece by piece."""

    streaming: bool = False
    memory: Any = None

    def begin(self) -> None:
        self.streaming, self.memory = True, None

    def end(self) -> None:
        self.streaming, self.memory = False, None


@contextmanager
def streaming(network: nn.Module) -> Iterator[None]:
    """Within the block, a causal network takes each input as the continuation of the last one along the first axis.

    The outputs of the pieces, joined, equal the output of the whole.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, Streamed)]
    for layer in layers:
        layer.begin()
    try:
        yield
    finally:
        for layer in layers:
            layer.end()


class _Causal(Streamed):
    """Mixin for convolutions that look only backwards along the first axis; padding repeats the first place."""

    past: int | None = None
    """Number of padding places before the first; None means as many as the kernel reaches."""

    def forward(self, input: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]  # type: ignore[attr-defined]
        before = self.memory
        if before is None:
            past = kernel - 1 if self.past is None else self.past
            before = input[:, :, :1].expand(-1, -1, past, *input.shape[3:])
        joined = torch.cat([before, input], 2)
        if self.streaming:
            done = stride * ((joined.shape[2] - kernel) // stride + 1)
            self.memory = joined[:, :, done:].clone()  # a view would keep the whole piece in memory
        return super().forward(joined)  # type: ignore[misc]


class CausalConv1d(_Causal, nn.Conv1d):
    pass


class CausalConv2d(_Causal, nn.Conv2d):
    pass


class CausalConv3d(_Causal, nn.Conv3d):
    pass


CAUSAL = {1: CausalConv1d, 2: CausalConv2d, 3: CausalConv3d}


def fold(x: Tensor) -> Tensor:
    """B C T *rest -> (B T) C *rest: moves the first axis into the batch."""
    return x.transpose(1, 2).flatten(0, 1)


def unfold(x: Tensor, number: int) -> Tensor:
    """The inverse of ``fold``; ``number`` is B."""
    return x.unflatten(0, (number, -1)).transpose(1, 2)


class PlaceNorm(nn.GroupNorm):
    """Group norm with separate statistics for each place of the first axis, as a causal network needs."""

    def forward(self, input: Tensor) -> Tensor:
        if input.shape[2] == 1:
            return super().forward(input)
        return unfold(super().forward(fold(input)), len(input))


class SelfAttention(nn.Module):
    """One-head attention over all places of a grid; if causal, over those at the same place of the first axis."""

    def __init__(self, layout: Layout, channels: int) -> None:
        super().__init__()
        self.each = layout.causal
        self.norm = layout.norm(channels)
        self.qkv = layout.convolution(channels, 3 * channels, 1)
        self.proj = layout.convolution(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x))
        places = fold(qkv) if self.each else qkv
        q, k, v = places.reshape(*places.shape[:2], -1).mT.chunk(3, dim=-1)
        out = F.scaled_dot_product_attention(q, k, v).mT.reshape(len(places), -1, *places.shape[2:])
        return x + self.proj(unfold(out, len(x)) if self.each else out)


class Lead(Streamed, nn.Module):
    """Prepends ``number`` copies of the first place of the first axis, once per stream: 1 + f n become f + f n."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, x: Tensor) -> Tensor:
        if self.memory or self.number == 0:
            return x
        self.memory = self.streaming or None
        return torch.cat([x[:, :, :1].expand(-1, -1, self.number, *x.shape[3:]), x], 2)


class Trim(Streamed, nn.Module):
    """Cuts ``number`` places from the start of the first axis, once per stream: f + f n become 1 + f n."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, x: Tensor) -> Tensor:
        if self.memory or self.number == 0:
            return x
        self.memory = self.streaming or None
        return x[:, :, self.number :]


class Downsample(nn.Module):
    """Halves the resolution along axes of stride 2, by a strided convolution padded at the far sides.

    Causal: the first axis is padded at its start instead. At stride 2 this takes one place, or two if the layout keeps
    the first place alone.
    """

    def __init__(self, layout: Layout, channels: int, strides: Sequence[int]) -> None:
        super().__init__()
        sides = [(0, 1) if stride == 2 else (1, 1) for stride in strides]
        kind = CONVOLUTIONS[layout.axes]
        if layout.causal:
            kind, sides[0] = CAUSAL[layout.axes], (0, 0)
        self.padding = [pad for side in reversed(sides) for pad in side]
        self.conv = kind(channels, channels, 3, stride=tuple(strides))
        if isinstance(self.conv, _Causal) and strides[0] == 2 and not layout.alone:
            self.conv.past = 1

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.padding))


class Upsample(nn.Module):
    """Doubles the resolution along axes of stride 2, by repetition and a convolution."""

    def __init__(self, layout: Layout, channels: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.strides = tuple(float(stride) for stride in strides)
        self.trim = Trim(strides[0] - 1 if layout.alone else 0)
        self.conv = layout.convolution(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.trim(F.interpolate(x, scale_factor=self.strides, mode="nearest")))


def to_channels(x: Tensor, factor: Sequence[int]) -> Tensor:
    """B C *grid -> B (C prod(factor)) *(grid / factor): ``F.pixel_unshuffle`` for any number of axes."""
    axes = len(factor)
    for axis, size in enumerate(factor):
        x = x.unflatten(2 + 2 * axis, (-1, size))  # B C g0 f0 g1 f1 ...
    order = [0, 1, *(3 + 2 * axis for axis in range(axes)), *(2 + 2 * axis for axis in range(axes))]
    return x.permute(order).flatten(1, 1 + axes)


def from_channels(x: Tensor, factor: Sequence[int]) -> Tensor:
    """The inverse of ``to_channels``: ``F.pixel_shuffle`` for any number of axes."""
    axes = len(factor)
    x = x.unflatten(1, (-1, *factor))  # B C f0 f1 ... g0 g1 ...
    order = [0, 1, *(index for axis in range(axes) for index in (2 + axes + axis, 2 + axis))]
    x = x.permute(order)
    for axis in range(axes):
        x = x.flatten(2 + axis, 3 + axis)
    return x
