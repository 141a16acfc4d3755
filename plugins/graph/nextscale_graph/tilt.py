"""How a graph comes to the number of edges that was drawn for it: the chances of going to both children are tilted."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale_graph.coarsen import BOTH, FIRST, SECOND
from nextscale_graph.structure import Structure

STEPS, LARGEST_STEP, LARGEST = 4, 1.5, 6.0
"""Newton steps of the tilt, and how far one, and all together, may go."""
SURE = 0.05
"""A variance that is always added: no tilt is infinite."""


class Tilt(nn.Module):
    """Adds one number a graph to the scores of "both" of its open tokens.

    With independent tokens of chances p(t) under a tilt t, and later levels that double m edges with variance v, the
    law given that d are still to be doubled has the t at which d - sum p(t) - m = t v (for the Gaussian that this makes
    of later levels; where there are none, the t at which the expected number comes true). m and v are learned, as
    multiples of ``rate``, doubled edges a split in the data, and of splits to come. Messages alone hardly teach a
    network to count.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.to_come = nn.Sequential(nn.Linear(3, 32), nn.GELU(), nn.Linear(32, 2))

    def forward(self, part: Structure, logits: Tensor, seen: tuple[Tensor, Tensor] | None) -> Tensor:
        """B L V logits of an edge scale to such logits; ``seen``: tokens B L, and which of them are known."""
        size, target, _, doublings = part.numbers.float().unbind(1)
        open_BL = part.mask
        if seen is not None:
            doublings = doublings - (seen[1] & (seen[0] == BOTH) & part.mask).sum(1)
            open_BL = open_BL & ~seen[1]
        left = target - size
        features = torch.stack([size / target.clamp_min(1), (size + 1).log() / 5, (left + 1).log() / 5], 1)
        mean, variance = self.to_come(features).float().unbind(1)
        mean, variance = (self.rate * left * multiple for multiple in (mean.exp(), F.softplus(variance)))

        odds = logits.detach().float()
        odds = odds[..., BOTH] - torch.logaddexp(odds[..., FIRST], odds[..., SECOND])
        tilt = torch.zeros_like(doublings)
        for _ in range(STEPS):
            # The last step, made at the root, has the derivatives of the root.
            tilt = tilt.detach()
            chance = (odds + tilt[:, None]).sigmoid() * open_BL
            spread = (chance * (1 - chance)).sum(1)
            move = (doublings - chance.sum(1) - mean - tilt * variance) / (spread + variance + SURE)
            tilt = (tilt + move.clamp(-LARGEST_STEP, LARGEST_STEP)).clamp(-LARGEST, LARGEST)
        both = torch.arange(logits.shape[-1], device=logits.device) == BOTH
        return logits + (tilt[:, None] * part.mask).to(logits.dtype)[..., None] * both
