"""In-scale steps by groups: which tokens of a scale may be drawn together, and the training loss for it.

A tokenizer may assign each token of a scale to a group (``ScaleInput.groups``). Tokens of the same group depend on each
other and are drawn one after another; tokens of different groups are drawn together. A scale then takes as many
sub-steps as its largest group has tokens. With a single group, tokens are drawn one at a time; with one group per
token, the whole scale is drawn at once. The order within a group is random; a tokenizer that fixes it gives turns
instead (``turns.py``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from nextscale.device import to_device
from nextscale.randomness import Draws
from nextscale.tokens.pyramid import TokenPyramid

GOLDEN = (5**0.5 - 1) / 2


def rank_in_group(groups_BL: Tensor, priority_BL: Tensor, valid_BL: Tensor | None = None) -> Tensor:
    """B L integers: the rank of each token within its group, by ascending priority (in [0, 1)).

    Tokens that are not ``valid`` belong to no group; their rank is L.
    """
    length = groups_BL.shape[1]
    key = groups_BL.double() + priority_BL.double()
    if valid_BL is not None:
        key = key.masked_fill(~valid_BL, torch.inf)
    order = key.argsort(1)
    sorted_BL = groups_BL.gather(1, order)
    place = torch.arange(length, device=order.device).expand_as(order)
    begins = torch.ones_like(sorted_BL, dtype=torch.bool)
    begins[:, 1:] = sorted_BL[:, 1:] != sorted_BL[:, :-1]
    rank = place - torch.where(begins, place, 0).cummax(1).values
    ranks = torch.empty_like(rank).scatter_(1, order, rank)
    return ranks if valid_BL is None else ranks.masked_fill(~valid_BL, length)


def reveal_groups(pyramid: TokenPyramid, groups_BL: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """The tokens that a random sub-step of each scale has revealed (B L booleans), and the weight of each token in the
    loss (B L).

    A scale whose largest group has G tokens takes G sub-steps. One of them, r, is drawn per sample and scale; in it, r
    tokens of each group are known. The weight is G over the number of tokens that the group has left (0 on known
    tokens). The expected loss is then that of drawing every token once: an order-agnostic autoregressive bound
    (https://arxiv.org/abs/2110.02037), with as much parallelism as the groups allow.
    """
    schedule, device = pyramid.schedule, pyramid.tokens.device
    count, scales = len(pyramid), len(schedule)
    scale_BL = schedule.scale_ids(device).expand(count, -1)
    valid_BL = torch.ones_like(groups_BL, dtype=torch.bool) if pyramid.mask is None else pyramid.mask
    token_BL, first_B = _draw(valid_BL, draws)

    width = int(groups_BL.max()) + 1
    key_BL = scale_BL * width + groups_BL
    rank_BL = rank_in_group(key_BL, token_BL, valid_BL)
    sizes = torch.zeros(count, scales * width, dtype=torch.long, device=device)
    sizes.scatter_add_(1, key_BL, valid_BL.long())
    steps_BK = sizes.view(count, scales, width).amax(2)
    now_BK = spread(first_B, steps_BK)
    now_BL, steps_BL = now_BK.gather(1, scale_BL), steps_BK.gather(1, scale_BL)
    known_BL = (rank_BL < now_BL) & valid_BL
    left_BL = (sizes.gather(1, key_BL) - now_BL).clamp_min(1)
    return known_BL, (steps_BL / left_BL) * (valid_BL & ~known_BL)


def _draw(valid_BL: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """B L and B uniform numbers. The numbers of a sample do not depend on how far its batch is padded."""
    device, valid_BL = valid_BL.device, valid_BL.cpu()  # the host waits once, not for every sample
    token_BL = torch.zeros(valid_BL.shape)
    first_B = torch.zeros(len(valid_BL), dtype=torch.double)
    for i, seed in enumerate(draws.seeds()):
        generator = torch.Generator().manual_seed(seed)
        first_B[i] = torch.rand((), generator=generator, dtype=torch.double)
        token_BL[i, valid_BL[i]] = torch.rand(int(valid_BL[i].sum()), generator=generator)
    return to_device(token_BL, device), to_device(first_B, device)


def spread(first_B: Tensor, steps_BK: Tensor) -> Tensor:
    """B K: the sub-step of each scale, uniform over its ``steps_BK``.

    One random number per sample advances by the golden ratio from each scale with several sub-steps to the next. This
    spreads the sub-steps evenly, so that the loss, which is largest where nothing is known yet, varies less from one
    training step to the next.
    """
    turn_BK = (steps_BK > 1).cumsum(1)
    return ((first_B[:, None] + turn_BK * GOLDEN) % 1 * steps_BK).long()
