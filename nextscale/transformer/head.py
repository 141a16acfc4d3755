"""From hidden states to logits: a linear head, a head that knows the codebook, and the head that a stem brings."""

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
    """What a stem keeps for computing its logits, for ``num_samples`` samples."""

    num_samples: int
    of_stem: Any


class Head(nn.Module, ABC):
    """Maps hidden states B L D, and what the stem remembers, to logits B L num_logits."""

    @abstractmethod
    def forward(self, hidden: Tensor, memory: StemMemory) -> Tensor: ...

    def by_scale(self, hidden: Tensor, memory: StemMemory) -> list[Tensor]:
        """The logits in parts along L, each of which may be narrower (``Stem.logits_by_scale``)."""
        return [self(hidden, memory)]

    def initialize(self) -> None:
        """Called once, after the weights of linear layers have been initialised."""


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
    """The logits of a stem that computes its own. The head has no weights; they belong to the stem."""

    def __init__(self, stem: Stem) -> None:
        super().__init__()
        self._stem = (stem,)  # in a tuple, so that it is no submodule of this one

    def forward(self, hidden: Tensor, memory: StemMemory) -> Tensor:
        stem, rows = self._stem[0], memory.num_samples
        # With guidance, both halves of the batch share what the stem saw.
        return torch.cat([stem.logits(part, memory.of_stem) for part in hidden.split(rows)])

    def by_scale(self, hidden: Tensor, memory: StemMemory) -> list[Tensor]:
        halves = [self._stem[0].logits_by_scale(part, memory.of_stem) for part in hidden.split(memory.num_samples)]
        return halves[0] if len(halves) == 1 else [torch.cat(parts) for parts in zip(*halves, strict=True)]


class LinearHead(nn.Linear, Head):
    def forward(self, hidden: Tensor, memory: StemMemory) -> Tensor:  # type: ignore[override]
        return super().forward(hidden)

    @torch.no_grad()
    def initialize(self) -> None:
        self.weight.mul_(0.02)


class CodebookHead(nn.Linear, Head):
    """Logits of V codes: those of a linear layer, minus how far each code lies from a predicted point.

    logit_v = w_v h + b_v + s(h) (m(h) c_v - |c_v|^2 / 2). Up to a constant per token, this is
    w_v h + b_v - s(h) |m(h) - c_v|^2 / 2: a Gaussian over the codes c_v with mean m(h) and precision s(h), times a
    correction by the linear layer. A linear head must learn each code separately, even codes that are near each
    other. Here, what one code teaches helps its neighbours from the first step.

    Args:
        width: D of the hidden states.
        codes: V C, the tokenizer's codebook. It is stored with the weights, scaled to a variance of one.
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
        """Start without preferences: a small linear part, and a wide Gaussian around the origin."""
        self.weight.mul_(0.02)
        self.log_precision.weight.zero_()
        self.log_precision.bias.fill_(math.log(0.1))

    def forward(self, hidden: Tensor, memory: StemMemory) -> Tensor:  # type: ignore[override]
        precision = self.log_precision(hidden).exp()
        # One matrix product for all three terms.
        states = torch.cat([hidden, precision * self.point(hidden), precision], -1)
        half_norms = self.codes.square().sum(-1, keepdim=True) / -2
        return nn.functional.linear(states, torch.cat([self.weight, self.codes, half_norms], -1), self.bias)
