"""The kinds of prediction that are compared, and their models on a grid of side n."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from nextscale.config.grid import ConvolutionalConfig
from nextscale.config.sections import RunConfig, TransformerConfig
from nextscale.config.tree import parse_override
from nextscale.errors import ConfigError, unknown
from nextscale.grid import GridTokenizer
from nextscale.grid.build import residual_pyramid
from nextscale.grid.ordered import OrderedTokenizer
from nextscale.tokens.inputs import ScaleInput, pack_inputs
from nextscale.tokens.pyramid import Schedule
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale.transformer import KVCache, ScaleTransformer
from nextscale.transformer.model import Modulation


@dataclass(frozen=True)
class Kind:
    """A way to draw a grid.

    Attributes:
        by_token: one code per place, drawn one after another in raster order; else scale by scale.
        cached: keys and values of earlier tokens are kept; else every pass computes all tokens so far again.
    """

    name: str
    by_token: bool
    cached: bool

    def sides(self, side: int) -> tuple[int, ...]:
        """The sides of the scales of a grid of ``side`` places along each axis."""
        return (side,) if self.by_token else doubling_sides(side)

    def theory(self, axes: int) -> dict[str, float]:
        """Exponents of the side n, as n grows, of sequential passes, of the operations of linear layers, and of those
        of attention. Next-scale makes about log(n) passes, which is exponent 0.

        VAR's appendix on time complexity counts attention without a cache: O(n^4) for next-scale prediction, O(n^6) for
        next-token prediction (https://arxiv.org/abs/2404.02905). With a cache, next-token attention is O(n^4) as well.
        """
        again = axes if self.by_token and not self.cached else 0
        return {"passes": axes if self.by_token else 0, "linear": axes + again, "attention": 2 * axes + again}


KINDS = {
    kind.name: kind
    for kind in (
        Kind("next-scale", by_token=False, cached=True),
        Kind("next-scale-uncached", by_token=False, cached=False),
        Kind("next-token", by_token=True, cached=True),
        Kind("next-token-uncached", by_token=True, cached=False),
    )
}

SET_BY_KIND = ("tokenizer.scales", "tokenizer.order")
"""Settings that a kind and a side decide."""


def chosen_kinds(names: Sequence[str]) -> list[Kind]:
    """The kinds with these names.

    Raises:
        ConfigError: no name, an unknown one, or one that is given twice.
    """
    for name in names:
        if name not in KINDS:
            raise ConfigError(f"--kinds: {unknown('kind', name, KINDS)}")
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"--kinds = {','.join(names)} is wrong: should name each kind once, such as next-scale")
    return [KINDS[name] for name in names]


def doubling_sides(side: int) -> tuple[int, ...]:
    """1 2 4 ... ``side``: each scale has half the side of the next, rounded up. This is a = 2 in VAR's appendix.

    VAR's own ten scales belong to one side, and their number would have to grow with the side in some way; the appendix
    takes a constant ratio.
    """
    sides = [side]
    while sides[0] > 1:
        sides.insert(0, -(-sides[0] // 2))
    return tuple(sides)


def build_tokenizer(kind: Kind, config: ConvolutionalConfig, axes: int, side: int) -> MultiscaleTokenizer:
    """A grid tokenizer with a latent of ``side`` places along each axis, and without encoder and decoder."""
    sides = kind.sides(side)
    pyramid = residual_pyramid(config, axes, len(sides))
    build = OrderedTokenizer if kind.by_token else GridTokenizer
    return build(nn.Identity(), nn.Identity(), pyramid, sides, (side,) * axes, (1,) * axes)


def build_transformer(
    kind: Kind, config: TransformerConfig, tokenizer: MultiscaleTokenizer, schedule: Schedule | None = None
) -> ScaleTransformer:
    """An untrained transformer without conditions for this kind of prediction."""
    transformer = ScaleTransformer if kind.cached else RecomputingTransformer
    schedule = schedule or tokenizer.schedule()
    return transformer(config, tokenizer.token_space, tokenizer.feature_dim, schedule, codebook=tokenizer.codebook)


def check_config(config: RunConfig, overrides: Sequence[str]) -> None:
    """Raise ConfigError for settings that do not describe a grid, that belong to one schedule, or that a kind sets."""
    if not isinstance(config.tokenizer, ConvolutionalConfig):
        raise ConfigError(f"bench growth needs a tokenizer on a grid; modality {config.modality} has none")
    if not isinstance(config.transformer.attention, str):
        raise ConfigError(
            "transformer.attention is a matrix for one number of scales, and here that number grows with the side: "
            "set transformer.attention=full"
        )
    for key in (".".join(path) for path, _ in map(parse_override, overrides)):
        if key in SET_BY_KIND:
            raise ConfigError(f"{key} has no effect here: bench growth sets it, for each kind and side; leave it out")


class RecomputingTransformer(ScaleTransformer):
    """Draws without a cache of keys and values: each pass computes all tokens so far, and the head the newest scale."""

    _seen: ScaleInput | None = None

    def forward(
        self, inputs: ScaleInput, cond: Tensor | Modulation, cache: KVCache | None = None, *rest: Any, **named: Any
    ) -> Tensor | list[Tensor]:
        if self._seen is not None and int(inputs.scale_ids[0]) > 0:
            # Only the first scale has no features, and this is not the first.
            width = inputs.features.shape[-1] if inputs.features is not None else 0
            packed = pack_inputs([self._seen, inputs], inputs.num_samples, width, None)
            self._seen = replace(packed, start=self._seen.num_start)
        else:
            self._seen = inputs
        newest = self.head.register_forward_pre_hook(lambda _, given: _last(given, inputs.length))
        try:
            return super().forward(self._seen, cond, None, *rest, **named)
        finally:
            newest.remove()


def _last(given: tuple[Any, ...], length: int) -> tuple[Any, ...]:
    """The head's arguments: hidden states B L D, of which the last ``length`` are kept, and what follows."""
    return given[0][:, -length:], *given[1:]
