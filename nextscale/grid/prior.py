"""What tokens cost: a small prior that is trained along with stage 1, for entropy-constrained quantization.

A vector is assigned the code with the least squared distance + price x nats, where a code costs minus the logarithm of
its probability under the prior (Chou, Lookabaugh and Gray 1989, https://doi.org/10.1109/29.17498). So a code that is
nearly as good and much likelier is taken. The prior sees what the transformer will see: the state before the scale.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale import distributed
from nextscale.grid.phi import CONVOLUTIONS

WIDTH = 64
DECAY = 0.9


class ScalePrior(nn.Module):
    """Predicts the codes of a scale from the state before it.

    Args:
        axes: N, the grid's number of axes.
        channels: C, length of a code.
        num_codes: V.
        num_scales: K; each scale has a bias for every code.
        rate: what a nat costs, in mean squared distances between vectors and the nearest codes. (Distances to the codes
            that are chosen would make a nat dearer the fewer codes are in use, until one is left.)
    """

    price_K: Tensor

    def __init__(self, axes: int, channels: int, num_codes: int, num_scales: int, rate: float) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[axes]
        self.axes, self.rate = axes, rate
        self.known = convolution(channels, WIDTH, 3, padding=1)
        self.scale = nn.Embedding(num_scales, WIDTH)
        self.hidden = convolution(WIDTH, WIDTH, 3, padding=1)
        self.logits = nn.Linear(WIDTH, num_codes)
        self.bias = nn.Embedding(num_scales, num_codes)
        for weight in (self.logits.weight, self.logits.bias, self.bias.weight):
            nn.init.zeros_(weight)  # at first, all codes cost the same
        self.register_buffer("price_K", torch.zeros(num_scales))

    def forward(self, known: Tensor, k: int, num_codes: int) -> Tensor:
        """B L_k V_k: what each of the first ``num_codes`` codes costs at scale k, in nats.

        Args:
            known: B C *grid, the state before the scale, on its grid.
        """
        h = F.silu(self.known(known) + self.scale.weight[k].view(-1, *[1] * self.axes))
        h = F.silu(h + self.hidden(h))
        logits = self.logits(h.flatten(2).mT) + self.bias.weight[k]
        return -logits[..., :num_codes].log_softmax(-1)

    @torch.no_grad()
    def record(self, spread_K: Tensor) -> None:
        """Update prices; ``spread_K`` are the mean squared distances between vectors and the nearest codes, in this
        process's share of the batch. Prices rise from 0 over the first calls."""
        price_K = self.rate * distributed.total(spread_K) / distributed.world_size()
        self.price_K.lerp_(price_K, 1 - DECAY)
