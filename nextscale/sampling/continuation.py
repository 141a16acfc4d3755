"""Continuing the start of a sample along the first axis of its grid: prediction, and samples of any length.

Both are edits: the start is kept, and the rest is redrawn. A sample is encoded with its last known place repeated, so
that nothing of the true continuation can reach the tokens.
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
    """B C T *rest: ``samples`` in which the last of the first ``places`` along T is repeated to the end.

    Raises:
        NextscaleError: the samples do not lie on a grid, no place is known, or no place is left to predict.
    """
    check_grid(samples)
    total = samples.shape[2]
    if not 0 < places < total:
        raise NextscaleError(f"cannot continue from {places} of {total} places: give 1 to {total - 1}")
    last = samples[:, :, places - 1 : places]
    return torch.cat([samples[:, :, :places], last.expand(-1, -1, total - places, *samples.shape[3:])], 2)


def predict(model: TrainedModel, samples: Tensor, places: int, **settings: Any) -> Samples:
    """Samples of the same size as ``samples`` (B C T *rest): the first ``places`` along T are kept, the rest is drawn.

    The guess (``editing.with_guess``) repeats the last known place, so that parts that do not move stay sharp.

    Args:
        settings: arguments of ``Model.edit``: ``seed``, ``sampling``, conditions ...

    Raises:
        NextscaleError, ConfigError: as ``Model.edit``; also if no place is known, none is left to predict, or the start
            does not end where the tokenizer can cut (``EditsPlaces.cuts``).
    """
    frozen = held(samples, places)
    cuts = ability(model.tokenizer, EditsPlaces).cuts(samples.shape[2])
    if places not in cuts:
        nearest = sorted(sorted(cuts, key=lambda cut: abs(cut - places))[:2])
        valid = f"give {' or '.join(map(str, nearest))}" if nearest else "samples this short cannot be continued"
        raise NextscaleError(f"a start of {places} places ends inside a token of the finest scale: {valid}")
    keep = torch.zeros(samples.shape[2:], dtype=torch.bool)
    keep[:places] = True
    return model.edit(frozen, keep, guess=True, **settings)


def go_on(
    model: TrainedModel, samples: Tensor, places: int, pieces: int, seed: int = 0, **settings: Any
) -> Iterator[Tensor]:
    """Predict ``pieces`` times, each time from the last ``places`` of the previous result.

    Yields parts B C t *rest to be joined: first a whole sample, then only the new places of each prediction. Memory
    does not grow with ``pieces`` unless the caller keeps the parts.
    """
    total = samples.shape[2]
    for number in range(pieces):
        drawn = predict(model, samples, places, seed=mixed_seed(seed, number) >> 32, **settings).samples
        yield drawn if number == 0 else drawn[:, :, places:]
        start = drawn[:, :, total - places :].to(samples.device)
        samples = held(torch.cat([start, start[:, :, -1:].expand(-1, -1, total - places, *start.shape[3:])], 2), places)
