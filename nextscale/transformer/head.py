"""The head that knows where codes lie."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class CodebookHead(nn.Linear):
    """Logits of V codes: a linear layer's, minus how far each code lies from a predicted point.

    logit_v = w_v h + b_v + s(h) (m(h) c_v - |c_v|^2 / 2), which, but for a constant of the token, is
    w_v h + b_v - s(h) |m(h) - c_v|^2 / 2: a Gaussian around m(h) of precision s(h), over the codes c_v, times what
    the linear layer knows better. A linear head must learn each code by itself, also those that are near each
    other; here what one code teaches serves its neighbours from the first step.

    Args:
        width: D of the hidden states.
        codes: V C, the tokenizer's codebook. It is kept with the weights, scaled to a variance of one.
    """

    codes: Tensor

    def __init__(self, width: int, codes: Tensor) -> None:
        super().__init__(width, len(codes))
        codes = codes.detach().float()
        self.register_buffer("codes", codes / codes.std().clamp_min(1e-6))
        self.point = nn.Linear(width, codes.shape[1])
        self.log_precision = nn.Linear(width, 1)

    @torch.no_grad()
    def initialize(self) -> None:
        """Begin with no opinion: a small linear part, and a wide Gaussian about the origin."""
        self.weight.mul_(0.02)
        self.log_precision.weight.zero_()
        self.log_precision.bias.fill_(math.log(0.1))

    def forward(self, input: Tensor) -> Tensor:
        precision = self.log_precision(input).exp()
        # One matrix product for all three terms.
        states = torch.cat([input, precision * self.point(input), precision], -1)
        half_norms = self.codes.square().sum(-1, keepdim=True) / -2
        return nn.functional.linear(states, torch.cat([self.weight, self.codes, half_norms], -1), self.bias)
