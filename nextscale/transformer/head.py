"""From hidden states to logits: a linear head, one that knows where codes lie, and the one that a stem brings."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nextscale.config.sections import TransformerConfig
from nextscale.errors import ConfigError
from nextscale.tokens.space import TokenSpace
from nextscale.tokens.stem import Stem


@dataclass(frozen=True)
class StemMemory:
    """What a stem left for its logits, of ``num_samples`` samples."""

    num_samples: int
    of_stem: Any


class Head(nn.Module, ABC):
    """Maps hidden states B L D, and what the stem remembers, to logits B L num_logits."""

    @abstractmethod
    def forward(self, hidden: Tensor, memory: StemMemory) -> Tensor: ...

    def initialize(self) -> None:
        """Called once, after the weights of linear layers have been drawn."""


def build_head(config: TransformerConfig, space: TokenSpace, stem: Stem, codebook: Tensor | None) -> Head:
    """The head that ``config`` and the stem ask for.

    Raises:
        ConfigError: ``head: codebook`` without a codebook.
    """
    if stem.complete:
        return StemHead(stem)
    if config.head == "linear":
        return LinearHead(config.model_width, space.num_logits)
    if codebook is None:
        raise ConfigError("transformer.head=codebook needs a tokenizer whose tokens are codes of a codebook")
    return CodebookHead(config.model_width, codebook)


class StemHead(Head):
    """The logits of a stem that computes its own. Without weights: those are the stem's."""

    def __init__(self, stem: Stem) -> None:
        super().__init__()
        self._stem = (stem,)  # in a tuple it is no submodule of this one

    def forward(self, hidden: Tensor, memory: StemMemory) -> Tensor:
        stem, rows = self._stem[0], memory.num_samples
        # Under guidance, two halves of the batch share what the stem saw.
        return torch.cat([stem.logits(part, memory.of_stem) for part in hidden.split(rows)])


class LinearHead(nn.Linear, Head):
    def forward(self, hidden: Tensor, memory: StemMemory) -> Tensor:  # type: ignore[override]
        return super().forward(hidden)

    @torch.no_grad()
    def initialize(self) -> None:
        self.weight.mul_(0.02)


class CodebookHead(nn.Linear, Head):
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

    def forward(self, hidden: Tensor, memory: StemMemory) -> Tensor:  # type: ignore[override]
        precision = self.log_precision(hidden).exp()
        # One matrix product for all three terms.
        states = torch.cat([hidden, precision * self.point(hidden), precision], -1)
        half_norms = self.codes.square().sum(-1, keepdim=True) / -2
        return nn.functional.linear(states, torch.cat([self.weight, self.codes, half_norms], -1), self.bias)
