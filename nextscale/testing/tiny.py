"""Tiny models with random weights, built in a millisecond, for any test that needs a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from torch import nn

from nextscale.conditioning import ConditionSpec
from nextscale.config.sections import ScorerConfig, TransformerConfig
from nextscale.grid import GridTokenizer, Phi, ResidualPyramid, VectorQuantizer
from nextscale.grid.phi import CONVOLUTIONS
from nextscale.grid.prior import ScalePrior
from nextscale.testing.helpers import randomize
from nextscale.tokens.pyramid import Schedule
from nextscale.tokens.stem import Stem
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale.transformer import ScaleTransformer, Scorer

CODES, LATENT, CHANNELS, SIDES = 11, 4, 2, (1, 2, 3)
LABEL = ConditionSpec(name="label", size=3)
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}

T = TypeVar("T", bound=GridTokenizer)


def grid_tokenizer(sample_shape: Sequence[int], kind: type[T] = GridTokenizer, **variant: Any) -> T:
    """Samples B 2 *sample_shape; a latent of 4 channels and half the size; scales 1 2 3; 11 codes.

    ``variant``: ``sides`` (other scales), ``codes`` (a number, or one per scale), ``target``, ``phi`` (sharing),
    ``distance``, ``upsample``, ``group_side``, ``price`` (of a nat, under a prior), and ``order`` for an
    ``OrderedTokenizer``.
    """
    axes, sides = len(sample_shape), variant.pop("sides", SIDES)
    own = {"order": variant.pop("order")} if "order" in variant else {}
    group_side = variant.pop("group_side", None)
    distance = variant.pop("distance", "euclidean")
    quantizer = VectorQuantizer(variant.pop("codes", CODES), LATENT, distance, num_scales=len(sides))
    phi = Phi(axes, LATENT, variant.pop("phi", "partial"), count=2, num_scales=len(sides))
    encoder = CONVOLUTIONS[axes](CHANNELS, LATENT, 2, stride=2)
    decoder = _TRANSPOSED[axes](LATENT, CHANNELS, 2, stride=2)
    if "price" in variant:
        variant["prior"] = prior = ScalePrior(axes, LATENT, quantizer.num_codes, len(sides), rate=1.0)
        prior.price_K.fill_(variant.pop("price"))
    pyramid = ResidualPyramid(quantizer, phi, **variant)
    tokenizer = kind(encoder, decoder, pyramid, sides, sample_shape, [2] * axes, **own)
    tokenizer.group_side = group_side
    randomize(tokenizer, 0)
    return tokenizer.eval()


def transformer_for(
    tokenizer: MultiscaleTokenizer,
    conditions: Sequence[ConditionSpec] = (LABEL,),
    schedule: Schedule | None = None,
    stem: Stem | None = None,
    config: TransformerConfig | None = None,
    seed: int = 0,
    **settings: Any,
) -> ScaleTransformer:
    """Two blocks of width 16, or as ``config`` says, with random weights that make every branch matter."""
    config = config or TransformerConfig(**{"depth": 2, "width": 16, "heads": 2, "drop_path": 0.0, **settings})
    schedule = schedule or tokenizer.schedule()
    space, width = tokenizer.token_space, tokenizer.feature_dim
    names = tokenizer.every_scale_name(len(schedule))
    transformer = ScaleTransformer(config, space, width, schedule, conditions, stem, tokenizer.codebook, names)
    randomize(transformer, seed)
    return transformer.eval()


def scorer_for(tokenizer: MultiscaleTokenizer, transformer: ScaleTransformer, seed: int = 0) -> Scorer | None:
    """One block of width 16, with random weights that make every branch matter; None if there can be no scorer."""
    if tokenizer.adaptive or transformer.stem.complete:
        return None
    scorer = Scorer(ScorerConfig(depth=1, width=16, heads=2), transformer, tokenizer.feature_dim)
    randomize(scorer, seed)
    return scorer.eval()
