"""The distribution of a splitting node's mass over its two children. It depends on numbers only."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nextscale_graph.structure import Structure

OUTSIDE = -1e9
"""The logit of an impossible token."""
WIDTH, FEATURES = 16, 7


class Division(nn.Module):
    """Scores every pair of masses that a mass can be divided into. Both orders of a pair get the same score.

    Masses enter as embeddings and as numeric features: communities may have 20 nodes and never 19, or a mass may be the
    sum of two of them.
    """

    def __init__(self, max_nodes: int) -> None:
        super().__init__()
        self.lighter, self.heavier, self.whole = (nn.Embedding(max_nodes + 1, WIDTH) for _ in range(3))
        for table in (self.lighter, self.heavier, self.whole):
            nn.init.zeros_(table.weight)  # numbers never seen are scored by their features alone
        self.score = nn.Sequential(
            nn.Linear(3 * WIDTH + FEATURES, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 1)
        )

    def forward(self, part: Structure) -> Tensor:
        """R V' logits of the mass of the first child, where V' is the largest mass in the batch. If a mass is unknown,
        only token 0 is possible."""
        whole = part.places
        size, target = part.numbers[part.mask.nonzero()[:, 0], :2].float().unbind(1)
        first = torch.arange(1, max(2, int(whole.max())), device=whole.device)
        lighter = torch.minimum(first, whole - first).clamp_min(0)
        heavier = (whole - lighter).clamp_min(0)
        size, target, total = (value[:, None].expand(lighter.shape) for value in (size, target, whole[:, 0].float()))
        features = torch.stack(
            [
                lighter / total.clamp_min(1), (lighter + 1).log(), (heavier + 1).log(), (total + 1).log(),
                total / target, (size + 1).log(), size / target,
            ], -1,
        )  # fmt: skip
        states = [self.lighter(lighter), self.heavier(heavier), self.whole(whole.expand_as(lighter)), features]
        scores = self.score(torch.cat(states, -1))[..., 0].float().masked_fill(first >= whole, OUTSIDE)
        unknown = torch.where(whole == 0, 0.0, OUTSIDE).to(scores.dtype)
        return torch.cat([unknown, scores], 1)
