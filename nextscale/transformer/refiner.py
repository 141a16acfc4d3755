"""The refiner: a small causal network over the tokens of a scale, so that tokens drawn together know each other.

A next-scale transformer draws the tokens of a scale independently, given the coarser ones. The refiner factorises their
joint distribution instead: it takes the hidden state of each token and the tokens before it in the scale, in raster
order, and corrects the hidden state before the head. The transformer still runs once per scale, and in training all
tokens are refined at once. Only in sampling does the refiner run token by token. Logit Refiner,
https://arxiv.org/abs/2609.11804.

Where a modality's own stem computes the logits, ``group_refiner.GroupRefiner`` refines them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from itertools import accumulate, chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nextscale.config.sections import RefinerConfig, TransformerConfig
from nextscale.errors import ConfigError, unknown
from nextscale.tokens.inputs import ScaleInput
from nextscale.tokens.space import TokenSpace
from nextscale.transformer.attention import Attention, AttentionMask, KVCache, without_padding
from nextscale.transformer.block import MLP, normalize
from nextscale.transformer.functions import gelu_tanh
from nextscale.transformer.positions import rotation_angles
from nextscale.transformer.sequences import Sequences

DrawNext = Callable[[int | Tensor, Tensor], Tensor]
"""Called with the place of a token in its scale and its logits, B 1 num_logits; returns it, B 1 *token_shape.
With groups, called with the tokens that are drawn now (B L booleans) and all logits, B L num_logits; returns B L
*token_shape, of which only those tokens count."""
WIDTH = 256
"""The default width, for transformers that are at least this wide."""


class Refiner(nn.Module):
    """Adds to hidden states B L D what the tokens before each in its scale say about it.

    What it adds is zero at first, so that a trained transformer may be given a refiner. MLP, norm and QK-norm are those
    of the transformer; attention has rotary positions.

    Args:
        config: the transformer's settings, with a ``refiner``.
        token_space: embeds the tokens.
        scale_names: the names of all scales, coarsest first.

    Raises:
        ConfigError: the width does not fit the heads, or a scale does not exist.
    """

    def __init__(self, config: TransformerConfig, token_space: TokenSpace, scale_names: Sequence[str]) -> None:
        super().__init__()
        assert config.refiner is not None
        width = refiner_width(config)
        heads = config.refiner.heads or max(1, width // 64)
        if width % heads or (width // heads) % 2:
            raise ConfigError(f"transformer.refiner: width {width} must be an even multiple of heads {heads}")
        self.limit, self.scales = _refined_scales(config.refiner, scale_names)
        self.width, self.heads, self.norm, self.token_shape = width, heads, config.norm, token_space.token_shape
        self.state = nn.Linear(config.model_width, width)
        self.before = token_space.embedding(width)
        self.first = nn.Parameter(torch.empty(width))
        own = config.model_copy(update={"width": width, "heads": heads})
        self.blocks = nn.ModuleList(RefinerBlock(own) for _ in range(config.refiner.depth))
        self.out = nn.Linear(width, config.model_width)
        self._initialize()

    def forward(self, hidden_BLD: Tensor, inputs: ScaleInput, tokens: Tensor) -> Tensor:
        """B L D: the hidden states of ``inputs`` (one scale, or several packed), refined by teacher forcing.

        Args:
            tokens: B L *token_shape. A token changes only what is refined after it in its scale.
        """
        refined = self._refined(inputs)
        if len(refined) == len(inputs.scales):
            return hidden_BLD + self._correction(hidden_BLD, inputs, tokens)
        if not refined:
            return hidden_BLD
        places = _places_of(refined, inputs)
        chosen = _chosen(inputs, refined, places)
        correction = self._correction(hidden_BLD[:, places], chosen, tokens[:, places])
        return hidden_BLD.index_add(1, places, correction.to(hidden_BLD.dtype))

    def draw(
        self, hidden_BLD: Tensor, inputs: ScaleInput, head: Callable[[Tensor], Tensor], draw_next: DrawNext
    ) -> Tensor:
        """B L *token_shape: the tokens of one scale, each drawn given those before it.

        Args:
            hidden_BLD: the hidden states of ``inputs``.
            head: maps refined hidden states B 1 D to logits.
            draw_next: draws a token; called once for each, in raster order.
        """
        number, length = hidden_BLD.shape[:2]
        states_BLR, before, cache = self.state(hidden_BLD), _places_before(inputs), KVCache(length)
        rotation, allowed = self._rotation(inputs), None
        if inputs.mask is not None and self.blocks:
            allowed = self._mask(inputs).allowed
        tokens = torch.zeros(number, length, *self.token_shape, dtype=torch.long, device=hidden_BLD.device)
        with parametrize.cached():  # weights stored in half precision are widened once, not for every token
            for i in range(length):
                cache.start, here = i, slice(i, i + 1)
                mask = AttentionMask(None if allowed is None else allowed[:, :, here, : i + 1])
                turned = None if rotation is None else (rotation[0][:, :, here], rotation[1][:, :, here])
                x_B1R = states_BLR[:, here] + self._embed(tokens, before[:, here])
                for layer, block in enumerate(self.blocks):
                    x_B1R = block(x_B1R, mask, turned, cache, layer)
                tokens[:, here] = draw_next(i, head(hidden_BLD[:, here] + self._project(x_B1R)))
        return tokens

    def refines(self, inputs: ScaleInput) -> bool:
        """Whether the one scale of ``inputs`` is refined."""
        return bool(self._refined(inputs))

    def sequences(self, inputs: ScaleInput) -> Sequences:
        """The tokens that are refined. Each knows those before it in its sequence; here, a scale is one sequence."""
        return Sequences.of(replace(inputs, groups=None), self._refined(inputs))

    def covers(self, k: int, length: int) -> bool:
        """Whether scale k, of ``length`` tokens, is refined."""
        return length <= self.limit and (self.scales is None or k in self.scales)

    def _refined(self, inputs: ScaleInput) -> dict[int, int]:
        """Those of ``inputs.scales`` that are refined."""
        if self.limit < math.inf and inputs.mask is not None:
            raise ConfigError(
                f"transformer.refiner.scales={self.limit} counts the tokens of a scale, and here samples differ in "
                "how many they have: list the scales instead"
            )
        return {k: n for k, n in inputs.scales.items() if self.covers(k, n)}

    def _correction(self, hidden_BLD: Tensor, inputs: ScaleInput, tokens: Tensor) -> Tensor:
        x_BLR = self.state(hidden_BLD) + self._embed(tokens, _places_before(inputs))
        if self.blocks:
            mask, rotation = self._mask(inputs), self._rotation(inputs)
            for block in self.blocks:
                x_BLR = block(x_BLR, mask, rotation)
        return self._project(x_BLR)

    def _embed(self, tokens: Tensor, before: Tensor) -> Tensor:
        """B T R: the embeddings of the ``tokens`` (B L) at the places ``before`` ((1 or B) T); -1 is no token."""
        before_BT = before.expand(len(tokens), -1)
        rows = torch.arange(len(tokens), device=tokens.device)[:, None]
        embedded = self.before(tokens[rows, before_BT.clamp_min(0)])
        return torch.where((before_BT >= 0)[..., None], embedded, self.first.to(embedded.dtype))

    def _project(self, x_BLR: Tensor) -> Tensor:
        """Without blocks, this makes an MLP of the hidden state and the token before."""
        return self.out(gelu_tanh(normalize(x_BLR, self.norm)))

    def _mask(self, inputs: ScaleInput) -> AttentionMask:
        ids, place = inputs.scale_ids, torch.arange(inputs.length, device=inputs.scale_ids.device)
        allowed = (ids[:, None] == ids) & (place[:, None] >= place)
        return without_padding(allowed, inputs, inputs.mask)

    def _rotation(self, inputs: ScaleInput) -> tuple[Tensor, Tensor] | None:
        return rotation_angles(inputs.coordinates, self.width // self.heads) if self.blocks else None

    @torch.no_grad()
    def _initialize(self) -> None:
        std = math.sqrt(1 / self.width / 3)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=std, a=-3 * std, b=3 * std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
        nn.init.trunc_normal_(self.first, std=std, a=-3 * std, b=3 * std)
        self.out.weight.zero_()


class RefinerBlock(nn.Module):
    """``x + attention(norm(x))``, then ``x + MLP(norm(x))``. The hidden states already know the condition."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm, self.attention, self.mlp = config.norm, Attention(config), MLP(config)

    def forward(
        self,
        x_BLR: Tensor,
        mask: AttentionMask,
        rotation: tuple[Tensor, Tensor] | None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        x_BLR = x_BLR + self.attention(normalize(x_BLR, self.norm), mask, rotation, cache, layer)
        return x_BLR + self.mlp(normalize(x_BLR, self.norm))


def refiner_width(config: TransformerConfig) -> int:
    """R, the width of the refiner that ``config`` asks for."""
    assert config.refiner is not None
    return config.refiner.width or min(WIDTH, config.model_width)


def _refined_scales(config: RefinerConfig, names: Sequence[str]) -> tuple[float, set[int] | None]:
    """The largest number of tokens of a refined scale, and the numbers of refined scales; None for all."""
    if config.scales is None or isinstance(config.scales, int):
        return config.scales or math.inf, None
    chosen: set[int] = set()
    for scale in config.scales:
        if isinstance(scale, int) and scale >= len(names):
            raise ConfigError(f"transformer.refiner.scales: no scale {scale}; scales are 0 to {len(names) - 1}")
        if isinstance(scale, str) and scale not in names:
            raise ConfigError(f"transformer.refiner.scales: {unknown('scale', scale, set(names))}")
        chosen |= {scale} if isinstance(scale, int) else {k for k, name in enumerate(names) if name == scale}
    return math.inf, chosen


def _places_of(scales: Collection[int], inputs: ScaleInput) -> Tensor:
    """The places along L of the tokens of these scales."""
    ends = accumulate(inputs.scales.values())
    spans = [range(end - n, end) for (k, n), end in zip(inputs.scales.items(), ends, strict=True) if k in scales]
    return torch.tensor(list(chain(*spans)), device=inputs.scale_ids.device)


def _chosen(inputs: ScaleInput, scales: dict[int, int], places: Tensor) -> ScaleInput:
    """What the refiner reads of ``inputs``, at the ``places`` along L of these scales."""
    mask = None if inputs.mask is None else inputs.mask[:, places]
    coordinates, ids = inputs.coordinates[..., places, :], inputs.scale_ids[places]
    return ScaleInput(inputs.num_samples, None, coordinates, ids, mask, known_scales=scales)


def _places_before(inputs: ScaleInput) -> Tensor:
    """(1 or B) L: the place of the real token before each in its scale; -1 for the first."""
    ids = inputs.scale_ids
    place = torch.arange(len(ids), device=ids.device)[None]
    real = place if inputs.mask is None else torch.where(inputs.mask, place, -1)
    before = F.pad(real.cummax(1).values[:, :-1], (1, 0), value=-1)
    begins = torch.searchsorted(ids, ids)  # of the scale of each place
    return torch.where(before >= begins, before, -1)
