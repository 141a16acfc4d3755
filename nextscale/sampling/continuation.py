"""Going on from the start of a sample, along the first axis of its grid: prediction, and samples of any length.

Both are edits: the start is kept, the rest drawn anew. What follows is not known, so a sample is encoded with its last
known place repeated: nothing of what really followed can reach the tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from nextscale.data import Samples
from nextscale.errors import NextscaleError
from nextscale.modality import TrainedModel
from nextscale.randomness import mixed_seed
from nextscale.sampling.editing import check_grid
from nextscale.tokens.capabilities import EditsPlaces, ability


def held(samples: Tensor, places: int) -> Tensor:
    """B C T *rest: ``samples`` with all after the first ``places`` along T replaced by the last of these.

    Raises:
        NextscaleError: the samples lie on no grid, none is known, or nothing is left to predict.
    """
    check_grid(samples)
    total = samples.shape[2]
    if not 0 < places < total:
        raise NextscaleError(f"{places} of {total} places cannot be gone on from: give 1 to {total - 1}")
    last = samples[:, :, places - 1 : places]
    return torch.cat([samples[:, :, :places], last.expand(-1, -1, total - places, *samples.shape[3:])], 2)


def predict(model: TrainedModel, samples: Tensor, places: int, **settings: Any) -> Samples:
    """Samples like ``samples`` (B C T *rest), the first ``places`` along T kept and the rest drawn.

    The last known place, standing still, is the guess (``editing.with_guess``): what does not move stays sharp.

    Args:
        settings: of ``Model.edit``: ``seed``, ``sampling``, conditions ...

    Raises:
        NextscaleError, ConfigError: as ``Model.edit``; no place known, none to predict, or a start that does not end
            where the tokenizer can cut (``MultiscaleTokenizer.cuts``).
    """
    frozen = held(samples, places)
    cuts = ability(model.tokenizer, EditsPlaces).cuts(samples.shape[2])
    if places not in cuts:
        nearest = sorted(sorted(cuts, key=lambda cut: abs(cut - places))[:2])
        valid = f"give {' or '.join(map(str, nearest))}" if nearest else "samples so short cannot be gone on from"
        raise NextscaleError(
            f"a start of {places} places ends within what one token of the finest scale covers: {valid}"
        )
    keep = torch.zeros(samples.shape[2:], dtype=torch.bool)
    keep[:places] = True
    return model.edit(frozen, keep, guess=True, **settings)


def go_on(
    model: TrainedModel, samples: Tensor, places: int, pieces: int, seed: int = 0, **settings: Any
) -> Iterator[Tensor]:
    """Predict ``pieces`` times, each time from the last ``places`` of what was drawn: parts B C t *rest, to be joined.

    The first part is a whole sample, each later one what it adds to those before. Memory does not grow with
    ``pieces``, if the parts are not kept.
    """
    total = samples.shape[2]
    for number in range(pieces):
        drawn = predict(model, samples, places, seed=mixed_seed(seed, number) >> 32, **settings).samples
        yield drawn if number == 0 else drawn[:, :, places:]
        start = drawn[:, :, total - places :].to(samples.device)
        samples = held(torch.cat([start, start[:, :, -1:].expand(-1, -1, total - places, *start.shape[3:])], 2), places)
