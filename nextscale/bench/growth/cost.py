"""What a draw costs on paper: the operations of its matrix products, and its memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nextscale.bench.floor import MatrixProducts
from nextscale.bench.growth.kinds import Kind, build_transformer
from nextscale.config.sections import TransformerConfig
from nextscale.tokens.inputs import ScaleInput
from nextscale.tokens.pyramid import Schedule
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale.transformer import KVCache
from nextscale.transformer.head import StemMemory

BYTES = torch.float32.itemsize


@dataclass(frozen=True)
class PassCost:
    """The operations of a forward pass, per part: a multiplication and an addition are two.

    Attributes:
        body: of a token in the blocks, without attention's products.
        pair: of a query and a key in attention, in all blocks.
        stem: of embedding a token. Tokens of the first scale have nothing to embed.
        head: of the logits of a token.
        once: of the vectors of adaLN, once per draw.
        widest: bytes of input and output of the widest layer, per token.
    """

    body: int
    pair: int
    stem: int
    head: int
    once: int
    widest: int

    @classmethod
    @torch.inference_mode()
    def counted(cls, kind: Kind, config: TransformerConfig, tokenizer: MultiscaleTokenizer) -> PassCost:
        """Counts the products of two passes of one token each. They grow linearly with tokens and pairs, so two passes
        tell the cost of any other."""
        axes = len(tokenizer.schedule().scales[-1].shape)
        one = Schedule.of([(1,) * axes] * 2)
        transformer = build_transformer(Kind(kind.name, kind.by_token, cached=True), config, tokenizer, one).eval()
        first, second = (_one_token(k, axes, tokenizer.feature_dim) for k in range(2))
        modulation = transformer.modulation(torch.zeros(1, config.model_width))
        cache = KVCache(2)
        starts, widest = _count(lambda: transformer(first, modulation, cache, by_scale=True))
        follows, _ = _count(lambda: transformer(second, modulation, cache, by_scale=True))
        stem, _ = _count(lambda: transformer.stem(second, None))
        head, _ = _count(lambda: transformer.head(torch.zeros(1, 1, config.model_width), StemMemory(1, None)))
        once, _ = _count(lambda: transformer.modulation(torch.zeros(1, config.model_width)))
        pair = follows - stem - starts  # the second token looks at two keys, the first at one
        return cls(starts - head - pair, pair, stem, head, once, widest)

    def flops(self, kind: Kind, schedule: Schedule) -> int:
        """Of a draw of one sample, all passes together."""
        first = schedule.lengths[0]
        total = self.once
        for queries, keys, new in passes(kind, schedule):
            embedded = queries - first if queries == keys else queries  # such a pass has the first scale in it
            total += queries * (self.body + keys * self.pair) + embedded * self.stem + new * self.head
        return total

    def activations(self, kind: Kind, schedule: Schedule) -> int:
        """Bytes of the widest layer in the widest pass of one sample. A fused kernel does not store attention."""
        return max(queries for queries, _, _ in passes(kind, schedule)) * self.widest


def passes(kind: Kind, schedule: Schedule) -> Iterator[tuple[int, int, int]]:
    """For each pass of a draw: the tokens that are computed, those that they look at, and those that are drawn."""
    for new, keys in zip(schedule.lengths, schedule.offsets[1:], strict=True):
        yield (new if kind.cached else keys), keys, new


def paper_memory(
    kind: Kind, cost: PassCost, models: list[nn.Module], config: TransformerConfig, schedule: Schedule, batch: int
) -> int:
    """Bytes of the weights, of the cached keys and values, and of the activations of the widest layer."""
    weights = sum(tensor.nbytes for model in models for tensor in model.state_dict().values())
    cache = 2 * config.depth * schedule.length * config.model_width * BYTES if kind.cached else 0
    return weights + batch * (cache + cost.activations(kind, schedule))


def _one_token(k: int, axes: int, feature_dim: int) -> ScaleInput:
    features = torch.zeros(1, 1, feature_dim) if k else None
    return ScaleInput(1, features, torch.zeros(1, axes), torch.tensor([k]))


def _count(compute: Callable[[], Any]) -> tuple[int, int]:
    """The operations of all matrix products, and the bytes of input and output of the widest one."""
    products = MatrixProducts()
    with products:
        compute()
    total = sum(product.flops * count for product, count in products.counts.items())
    return total, max((product.activation_bytes for product in products.counts), default=0)
