"""Attention by blocks of rows: keys that no row of a block may look at are skipped.

Attention between scales is block-triangular, so a third of all query-key pairs is masked. On CPUs, plain matrix
products over the rest take half the time of PyTorch's fused kernel, whose backward pass is slow there (most of all in
bfloat16). They keep the attention weights for the backward pass, so long sequences use the fused kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

MAX_PAIRS = 2**26
"""Query-key pairs of all samples and heads of a layer. Keeps the memory for the backward pass below 256 MiB."""
MIN_ROWS = 32
"""Blocks with fewer rows cost more in calls than they save in pairs."""


@dataclass(frozen=True)
class RowBlock:
    """Rows (queries) and the range of keys that any of them looks at; ``mask`` (rows x keys) unless all look at all."""

    rows: slice
    keys: slice
    mask: Tensor | None


def row_blocks(allowed: Tensor) -> list[RowBlock]:
    """Split ``allowed`` (L_q L_k booleans, at least one True per row) between rows that differ."""
    length = len(allowed)
    differ = (allowed[1:] != allowed[:-1]).any(1).nonzero()[:, 0] + 1
    blocks, start = [], 0
    for end in [*differ.tolist(), length]:
        if end - start >= MIN_ROWS or end == length:
            looked = allowed[start:end].any(0).nonzero()[:, 0]
            keys = slice(int(looked[0]), int(looked[-1]) + 1)
            mask = allowed[start:end, keys]
            blocks.append(RowBlock(slice(start, end), keys, None if bool(mask.all()) else mask))
            start = end
    return blocks


def pays(q: Tensor, k: Tensor) -> bool:
    """Whether attention of ``q`` to ``k`` (B H L d each) is faster by blocks than by the fused kernel."""
    learns = torch.is_grad_enabled() and q.requires_grad
    return q.device.type == "cpu" and learns and q.shape[:3].numel() * k.shape[2] <= MAX_PAIRS


def block_attention(q: Tensor, k: Tensor, v: Tensor, blocks: list[RowBlock], scale: float) -> Tensor:
    """B H L d: the result of ``scaled_dot_product_attention`` for the mask that ``blocks`` describe."""
    flat = [x.flatten(0, 1) for x in (q if scale == 1 else q * scale, k, v)]
    return _BlockAttention.apply(*flat, blocks).unflatten(0, q.shape[:2])  # type: ignore[union-attr]


class _BlockAttention(Function):
    """Queries, keys and values, N L d each; N runs over samples and heads."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, blocks: list[RowBlock]) -> Tensor:
        out, all_weights = torch.empty_like(q), []
        with torch.autocast(q.device.type, enabled=False):  # autocast would compute the softmax in float32
            for block in blocks:
                weights = torch.bmm(q[:, block.rows], k[:, block.keys].mT)
                if block.mask is not None:
                    weights.masked_fill_(~block.mask, -torch.inf)
                weights = torch.softmax(weights, -1)
                out[:, block.rows] = torch.bmm(weights, v[:, block.keys])
                all_weights.append(weights)
        ctx.save_for_backward(q, k, v, *all_weights)
        ctx.blocks = blocks
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, *all_weights = ctx.saved_tensors
        (grad,) = grads
        grad_q, grad_k, grad_v = torch.empty_like(q), None, None
        # The last rows come first: they look at the most keys, often all, so the other blocks can add to their result.
        for block, weights in zip(reversed(ctx.blocks), reversed(all_weights), strict=True):
            rows, keys = (slice(None), block.rows), (slice(None), block.keys)
            by_weight = torch.bmm(grad[rows], v[keys].mT)
            gradient = torch._softmax_backward_data  # pyright: ignore[reportPrivateImportUsage]
            by_logit = gradient(by_weight, weights, -1, weights.dtype)
            grad_q[rows] = torch.bmm(by_logit, k[keys])
            grad_k = _added(grad_k, torch.bmm(by_logit.mT, q[rows]), block.keys, k)
            grad_v = _added(grad_v, torch.bmm(weights.mT, grad[rows]), block.keys, v)
        return grad_q, grad_k, grad_v, None


def _added(total: Tensor | None, part: Tensor, keys: slice, like: Tensor) -> Tensor:
    """``total`` with ``part`` added at ``keys``; a ``total`` of None means zeros like ``like``."""
    if total is None:
        if part.shape == like.shape:
            return part
        total = torch.zeros_like(like)
    total[:, keys] += part
    return total
