"""From hidden states to logits: a linear head, a head that knows the codebook, and the head that a stem brings."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nextscale.config.sections import TransformerConfig
from nextscale.errors import ConfigError
from nextscale.tokens.space import TokenSpace
from nextscale.tokens.stem import Refinement, Stem

Drawn = tuple[Tensor, Tensor]
"""For logits that know tokens drawn before: tokens B L *token_shape, and their places B L (``Refinement.logits``)."""


@dataclass(frozen=True)
class StemMemory:
    """What a stem keeps for computing its logits, for ``num_samples`` samples."""

    num_samples: int
    of_stem: Any


class Head(nn.Module, ABC):
    """Maps hidden states B L D, and what the stem remembers, to logits B L num_logits."""

    @abstractmethod
    def forward(self, hidden: Tensor, memory: StemMemory, drawn: Drawn | None = None) -> Tensor:
        """``drawn`` is for the head of a stem alone; others see drawn tokens in refined hidden states."""

    def by_scale(self, hidden: Tensor, memory: StemMemory, drawn: Drawn | None = None) -> list[Tensor]:
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
    """The logits of a stem that computes its own. The head has no weights; they belong to the stem, and with a refiner
    to that."""

    def __init__(self, stem: Stem) -> None:
        super().__init__()
        # In tuples, so that they are no submodules of this one.
        self._stem = (stem,)
        self._refinement: tuple[Refinement, ...] = ()

    def refine(self, refinement: Refinement) -> None:
        """Compute the logits of drawn tokens with this."""
        self._refinement = (refinement,)

    def forward(self, hidden: Tensor, memory: StemMemory, drawn: Drawn | None = None) -> Tensor:
        if drawn is None:
            return torch.cat([self._stem[0].logits(*half) for half in self._halves(hidden, memory)])
        return torch.cat([self._refinement[0].logits(*half) for half in self._halves(hidden, memory, drawn)])

    def by_scale(self, hidden: Tensor, memory: StemMemory, drawn: Drawn | None = None) -> list[Tensor]:
        if drawn is None:
            halves = [self._stem[0].logits_by_scale(*half) for half in self._halves(hidden, memory)]
        else:
            halves = [self._refinement[0].logits_by_scale(*half) for half in self._halves(hidden, memory, drawn)]
        return halves[0] if len(halves) == 1 else [torch.cat(parts) for parts in zip(*halves, strict=True)]

    def _halves(self, hidden: Tensor, memory: StemMemory, drawn: Drawn | None = None) -> Iterator[tuple[Any, ...]]:
        """With guidance, both halves of the batch share what the stem saw."""
        rows = memory.num_samples
        if drawn is None:
            yield from ((part, memory.of_stem) for part in hidden.split(rows))
            return
        tokens, places = drawn
        for part, known in zip(hidden.split(rows), tokens.split(rows), strict=True):
            yield part, memory.of_stem, known, places


class LinearHead(nn.Linear, Head):
    def forward(self, hidden: Tensor, memory: StemMemory, drawn: Drawn | None = None) -> Tensor:  # type: ignore[override]
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

    def forward(self, hidden: Tensor, memory: StemMemory, drawn: Drawn | None = None) -> Tensor:  # type: ignore[override]
        precision = self.log_precision(hidden).exp()
        # One matrix product for all three terms.
        states = torch.cat([hidden, precision * self.point(hidden), precision], -1)
        half_norms = self.codes.square().sum(-1, keepdim=True) / -2
        return nn.functional.linear(states, torch.cat([self.weight, self.codes, half_norms], -1), self.bias)
