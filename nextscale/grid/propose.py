"""Sizes of models for grids, from which ``nextscale train --minutes`` chooses (``Modality.propose``)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nextscale.modality import Proposal

SIZES = ((3, 192, 3), (3, 256, 4), (3, 384, 3), (4, 512, 4), (6, 768, 6), (8, 1024, 8))
"""Depth, width and heads of transformers. Few wide blocks are as good as many narrow ones on short sequences, and
faster (docs/RESULTS.md)."""
TOKENS_PER_WEIGHT = 2.5
"""A transformer is worth its size if it sees this many tokens per weight; the tuned presets see 2.5 to 5."""
FINEST = 8.5
"""Longest side of the latent grid, about."""


def halvings(side: int) -> int:
    """How many times to halve a grid so that its longest side is 6 to 11 places (but 1 time at least)."""
    return max(1, math.ceil(math.log2(side / FINEST)))


def grid_proposals(
    tokenizer: Mapping[str, Any],
    tokens: int,
    *,
    batch_size: int = 16,
    share: float = 0.25,
    settings: Mapping[str, Any] | None = None,
) -> list[Proposal]:
    """One proposal per size of transformer, with the same ``tokenizer`` section but for the width of its networks and
    its number of codes.

    Args:
        tokenizer: the tokenizer section; ``width`` and ``quantizer.codes`` are those of the smallest size.
        tokens: per sample.
        batch_size: of the transformer's stage; the tokenizer's is half of it.
        share: of the time, for the tokenizer.
        settings: further sections, such as ``sampling``.
    """
    found = []
    for number, (depth, width, heads) in enumerate(SIZES):
        grown = 1 + 0.5 * max(0, number - 2)
        quantizer = {**tokenizer["quantizer"], "codes": int(tokenizer["quantizer"]["codes"] * 2 ** max(0, number - 2))}
        sections = {
            "tokenizer": {**tokenizer, "width": 8 * round(tokenizer["width"] * grown / 8), "quantizer": quantizer},
            "transformer": {
                "depth": depth,
                "width": width,
                "heads": heads,
                "positions": "rotary",
                "head": "codebook",
                "drop_path": 0.0,
            },
            "training": {
                "tokenizer_share": share,
                "tokenizer": {"batch_size": max(1, batch_size // 2), "lr": 4e-3 / grown},
                "transformer": {"batch_size": batch_size, "lr": min(2e-3, 2e-3 * 384 / width)},
            },
            **(settings or {}),
        }
        needed = TOKENS_PER_WEIGHT * 12 * depth * width**2 / (batch_size * tokens)
        found.append(Proposal(sections, 0 if number == 0 else math.ceil(needed)))
    return found


def cooled(num_scales: int, finest: Sequence[float] = (0.9, 0.8, 0.7)) -> list[float]:
    """Temperatures per scale: 1, but lower at the finest scales, whose tokens are drawn all at once and would not fit
    together if drawn from a broad distribution."""
    kept = list(finest[-num_scales:])
    return [1.0] * (num_scales - len(kept)) + kept
