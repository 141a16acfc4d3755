"""In-scale steps in an order that the tokenizer fixes (``ScaleInput.turns``): training, sampling and likelihood.

Sub-step t of a scale draws the tokens of turn t, given those of earlier turns. So the likelihood of a sample is exact,
a product over sub-steps. Blocks on grids are an example (``grid/turns.py``). They resemble the masked steps within a
scale of HMAR (https://arxiv.org/abs/2506.04421), but their order is fixed.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import torch
from torch import Tensor

from nextscale.device import to_device
from nextscale.randomness import Draws
from nextscale.sampling.kept import Kept, draw_at, places_to_draw, where_chosen
from nextscale.sampling.reveal import spread
from nextscale.sampling.scale import ScaleSettings
from nextscale.tokens.inputs import ScaleInput
from nextscale.tokens.pyramid import TokenPyramid
from nextscale.tokens.space import Generators, TokenSpace
from nextscale.transformer import KVCache, ScaleTransformer


def reveal_turns(pyramid: TokenPyramid, inputs: ScaleInput, draws: Draws) -> tuple[Tensor, Tensor]:
    """The tokens that a random sub-step of each scale has revealed (B L booleans), and the weight of each token in the
    loss (B L).

    One sub-step, t, is drawn per sample and scale; in it, the tokens of turns below t are known. A token of turn j is
    learned in all sub-steps up to its own, so that fewer sub-steps can be taken in sampling, too. With G sub-steps, its
    weight is G / (j + 1): each token counts once on average.
    """
    assert inputs.turns is not None and inputs.num_turns is not None
    device, turns_L = pyramid.tokens.device, inputs.turns
    steps_K = to_device(torch.tensor(list(inputs.num_turns.values())), device)
    scale_L = pyramid.schedule.scale_ids(device)
    now_BK = spread(draws.uniform().double(), steps_K.expand(len(pyramid), -1))
    known_BL = turns_L < now_BK[:, scale_L]
    return known_BL, (steps_K[scale_L] / (turns_L + 1)) * ~known_BL


def draw_in_turns(
    predict: Callable[[tuple[Tensor, Tensor] | None], Tensor],
    space: TokenSpace,
    inputs: ScaleInput,
    num_samples: int,
    settings: ScaleSettings,
    generator: Generators,
    kept: Kept | None,
) -> tuple[Tensor, Tensor]:
    """Tokens B L_k of one scale, and the logits from which each was drawn.

    ``settings.group_steps`` limits the number of sub-steps; each then takes as many turns as it must. A kept token is
    shown from the sub-step after its own, as in training.
    """
    assert inputs.turns is not None and inputs.num_turns is not None
    (number,) = inputs.num_turns.values()
    turns_L = inputs.turns
    if settings.group_steps is not None:
        at_once = ceil(number / settings.group_steps)
        turns_L, number = turns_L // at_once, ceil(number / at_once)
    places = places_to_draw(inputs, num_samples, kept, generator)
    tokens = torch.zeros(num_samples, inputs.length, *space.token_shape, dtype=torch.long, device=turns_L.device)
    tokens = tokens if kept is None else kept.over(tokens)
    every: Tensor | None = None
    for turn in range(number):
        logits = predict((tokens, (turns_L < turn).expand(num_samples, -1)))
        # All tokens are drawn, so that nothing needs to know which places a sub-step has.
        drawn = draw_at(places, space, logits, generator, settings.filters)
        drawn = drawn if kept is None else kept.over(drawn)
        now_L = turns_L == turn
        tokens = where_chosen(now_L.expand(num_samples, -1), drawn, tokens)
        every = logits if every is None else torch.where(now_L[:, None], logits, every)
    assert every is not None
    return tokens, every


def logits_in_turns(
    model: ScaleTransformer, pyramid: TokenPyramid, inputs: ScaleInput, cond_BD: Tensor
) -> list[Tensor]:
    """The logits of each scale, B L_k V: those from which sampling would draw the tokens of ``pyramid``.

    ``inputs`` are packed. Finer scales see a coarser one as its last sub-step left it, as in sampling.
    """
    assert inputs.turns is not None and inputs.num_turns is not None
    modulation, cache, parts = model.modulation(cond_BD), KVCache(inputs.length), []
    for k, number in inputs.num_turns.items():
        here, tokens, every = inputs.of_scale(k), pyramid.scale(k), None
        assert here.turns is not None
        for turn in range(number):
            known = (here.turns < turn).expand(len(pyramid), -1)
            (logits,) = model(here, modulation, cache, (tokens, known), by_scale=True)
            every = logits if every is None else torch.where((here.turns == turn)[:, None], logits, every)
        parts.append(every)
    return parts
