"""Attention between scales: which scale may look at which, the key/value cache, and the layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.config.sections import TransformerConfig
from nextscale.errors import ConfigError
from nextscale.tokens.inputs import ScaleInput
from nextscale.transformer.blockwise import RowBlock, block_attention, pays, row_blocks
from nextscale.transformer.functions import split_heads
from nextscale.transformer.positions import rotate

T = TypeVar("T")


class ScaleAttention:
    """The K x K matrix that says which scales a scale may look at.

    ``full``: itself and all coarser ones. ``markov``: only itself, because history arrives through its input.
    Otherwise a matrix of booleans, one row per scale that looks.

    Raises:
        ConfigError: a matrix is not square, lets a scale look at a finer one, or does not let it look at itself.
    """

    def __init__(self, rule: Literal["full", "markov"] | Sequence[Sequence[bool]]) -> None:
        self.rule = rule
        if not isinstance(rule, str):
            if any(len(row) != len(rule) for row in rule):
                raise ConfigError("transformer.attention must be a square matrix with one row and column per scale")
            matrix = np.array(rule, dtype=bool)
            if np.triu(matrix, 1).any() or not matrix.diagonal().all():
                raise ConfigError("transformer.attention must let a scale look at itself, and never at a finer one")
            self.matrix = matrix
            self._on: dict[torch.device, Tensor] = {}

    def sees_all(self, queries: Collection[int], keys: Collection[int]) -> bool:
        """Whether every scale in ``queries`` may look at every scale in ``keys``. Known without asking the device."""
        if self.rule == "full":
            return max(keys) <= min(queries)
        if self.rule == "markov":
            return len({*queries, *keys}) == 1
        return bool(self.matrix[np.ix_([*queries], [*keys])].all())

    def allowed(self, query_ids: Tensor, key_ids: Tensor) -> Tensor:
        """L_q L_k booleans, from the scale of each query and key."""
        query, key = query_ids[:, None], key_ids[None, :]
        if self.rule == "full":
            allowed = key <= query
        elif self.rule == "markov":
            allowed = key == query
        else:
            allowed = self._matrix_on(query.device)[query, key]
        return allowed

    def _matrix_on(self, device: torch.device) -> Tensor:
        if device not in self._on:
            with torch.inference_mode(False):  # training may need it after sampling
                self._on[device] = torch.from_numpy(self.matrix).to(device)
        return self._on[device]


class KVCache:
    """Keys and values of the scales seen so far, preallocated for ``length`` tokens and grown as needed.

    ``begin`` opens a scale; opening the same scale again (an in-scale sub-step) overwrites it.
    """

    def __init__(self, length: int = 0) -> None:
        self.capacity = length
        self.mask: Tensor | None = None
        self.start = self.end = 0
        self._ids: dict[int, Tensor] = {}
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._constants: dict[int, Any] = {}

    @property
    def scales(self) -> Collection[int]:
        """The scales in the cache, coarsest first."""
        return self._ids.keys()

    @property
    def scale_ids(self) -> Tensor:
        """L_k integers: the scale of each token in the cache."""
        return torch.cat([*self._ids.values()])

    def once(self, layer: int, compute: Callable[[], T]) -> T:
        """What ``compute`` returns for this layer. It is called at the first scale only."""
        if layer not in self._constants:
            self._constants[layer] = compute()
        return self._constants[layer]

    def begin(self, inputs: ScaleInput) -> None:
        """Make room for the scale (or packed scales) of ``inputs``; drop this scale and finer ones from the cache."""
        first = next(iter(inputs.scales))
        while self._ids and next(reversed(self._ids)) >= first:
            self.end -= len(self._ids.popitem()[1])
        self.start, self.end = self.end, self.end + inputs.length
        self._ids |= zip(inputs.scales, inputs.scale_ids.split([*inputs.scales.values()]), strict=True)
        if inputs.mask is not None or self.mask is not None:
            rows = inputs.mask.shape[0] if inputs.mask is not None else self.mask.shape[0]  # type: ignore[union-attr]
            device = inputs.scale_ids.device
            old = torch.ones(rows, self.start, dtype=torch.bool, device=device)
            old = old if self.mask is None else self.mask[:, : self.start]
            new = torch.ones(rows, inputs.length, dtype=torch.bool, device=device)
            self.mask = torch.cat([old, new if inputs.mask is None else inputs.mask], 1)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write the open scale's keys and values B H L_k d of ``layer``; return views B H L d of all scales so far."""
        if layer == len(self._keys):
            capacity = max(self.capacity, self.end)
            self._keys.append(k.new_empty(*k.shape[:2], capacity, k.shape[3]))
            self._values.append(v.new_empty(*v.shape[:2], capacity, v.shape[3]))
        end = self.start + k.shape[2]
        for store, new in ((self._keys, k), (self._values, v)):
            if end > store[layer].shape[2]:
                store[layer] = F.pad(store[layer], (0, 0, 0, max(end, 2 * self.start) - store[layer].shape[2]))
            store[layer][:, :, self.start : end] = new
        return self._keys[layer][:, :, :end], self._values[layer][:, :, :end]


@dataclass(frozen=True)
class AttentionMask:
    """Which keys each query looks at.

    Attributes:
        allowed: (B or 1) 1 L_q L_k booleans for scaled_dot_product_attention; None if everything is allowed.
        blocks: the same mask as blocks of rows, when training on a CPU; None elsewhere, or if it differs by sample.
    """

    allowed: Tensor | None = None
    blocks: list[RowBlock] | None = None


def attention_mask(rule: ScaleAttention, inputs: ScaleInput, cache: KVCache | None) -> AttentionMask:
    keys = inputs if cache is None else cache
    everything = rule.sees_all(inputs.scales, keys.scales)
    allowed = None if everything else rule.allowed(inputs.scale_ids, keys.scale_ids)
    return without_padding(allowed, inputs, keys.mask)


def without_padding(allowed: Tensor | None, inputs: ScaleInput, key_mask: Tensor | None) -> AttentionMask:
    """The mask of queries ``inputs`` that look at the keys in ``allowed`` (L_q L_k booleans; None: all) that are real
    (``key_mask``, B L_k booleans; None: all)."""
    if key_mask is None:
        if allowed is None:
            return AttentionMask()
        training = allowed.device.type == "cpu" and torch.is_grad_enabled()
        return AttentionMask(allowed[None, None], row_blocks(allowed) if training else None)
    # A padded query would look at nothing and give NaN: let it look at itself.
    keys, device = key_mask.shape[1], key_mask.device
    own = torch.arange(inputs.length, device=device) + (keys - inputs.length)
    itself = own[:, None] == torch.arange(keys, device=device)
    mask = key_mask[:, None, None, :]
    return AttentionMask((mask if allowed is None else mask & allowed) | itself)


class Attention(nn.Module):
    """Multi-head self-attention with published VAR's QK-norm: unit queries and keys, one learned scale per head."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, self.heads = config.model_width, config.num_heads
        self.qk_norm = config.qk_norm
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        # Keys need no bias: it would add the same to every logit of a query.
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)
        if self.qk_norm:
            self.log_scale = nn.Parameter(torch.full((self.heads, 1, 1), math.log(4)))

    def forward(
        self,
        x_BLD: Tensor,
        mask: AttentionMask,
        rotation: tuple[Tensor, Tensor] | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        bias, scale_H = self._constants() if cache is None else cache.once(layer, self._constants)
        qkv = F.linear(x_BLD, self.qkv.weight, bias)
        q, k, v = split_heads(qkv, self.heads, scale_H)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        scale = 1.0 if self.qk_norm else 0.25 / math.sqrt(q.shape[-1])
        q, k = q.to(v.dtype), k.to(v.dtype)
        if mask.blocks is not None and pays(q, k):
            out = block_attention(q, k, v, mask.blocks, scale)
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.allowed, scale=scale)
        return self.proj(out.transpose(1, 2).flatten(2))

    def _constants(self) -> tuple[Tensor, Tensor | None]:
        """The bias of the projection, 3 D, and with QK-norm the length of queries per head, H."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        # The cap keeps attention from saturating (Swin V2, https://arxiv.org/abs/2111.09883).
        return bias, self.log_scale.flatten().clamp_max(math.log(100)).exp() if self.qk_norm else None
