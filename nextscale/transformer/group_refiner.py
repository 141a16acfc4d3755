"""The refiner of tokens that a modality's own stem gives a meaning: a causal network along each group of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nextscale.config.sections import TransformerConfig
from nextscale.tokens.inputs import ScaleInput
from nextscale.tokens.space import TokenSpace
from nextscale.tokens.stem import Refinement
from nextscale.transformer.attention import AttentionMask
from nextscale.transformer.positions import rotation_angles
from nextscale.transformer.refiner import DrawNext, Refiner
from nextscale.transformer.sequences import Sequences


@dataclass(frozen=True)
class Refining:
    """What stays the same while the tokens of ``inputs`` are refined, however many of them are drawn.

    Attributes:
        memory: of the stem.
        sequences: the tokens that are refined.
        places: B L, the place of each token in its sequence; -1 where it is not refined.
        touching: S T T booleans, which tokens of a sequence are related; None if the stem knows of no relation.
    """

    memory: Any
    sequences: Sequences
    places: Tensor
    touching: Tensor | None


class GroupRefiner(Refiner):
    """Takes the tokens of each group one after another, and all groups side by side.

    The stem says what a drawn token means, in which order those of a group are drawn and which of them touch
    (``tokens.stem.Refinement``). Positions count along the group.
    """

    before: Refinement

    def __init__(
        self, config: TransformerConfig, token_space: TokenSpace, scale_names: Sequence[str], refinement: Refinement
    ) -> None:
        super().__init__(config, token_space, scale_names)
        self.before = refinement  # instead of one embedding per token of the vocabulary
        self.nearness = nn.ParameterList(torch.zeros(self.heads, 1, 1) for _ in self.blocks)

    def begin(self, inputs: ScaleInput, memory: Any) -> Refining:
        """``memory``: of the stem, for these inputs."""
        sequences = self.sequences(inputs)
        related = self.before.related(inputs) if sequences.longest and self.blocks else None
        touching = None if related is None else sequences.touching(related)
        return Refining(memory, sequences, sequences.of_tokens(sequences.place), touching)

    def sequences(self, inputs: ScaleInput) -> Sequences:
        """One sequence per group."""
        refined = self._refined(inputs)
        return Sequences.of(inputs, refined, self.before.order(inputs) if refined else None)

    def forward(self, hidden_BLD: Tensor, refining: Refining, tokens: Tensor) -> Tensor:  # type: ignore[override]
        """B L D: the refined hidden states. With guidance, both halves of the batch share what the stem saw."""
        number = len(refining.places)
        halves = zip(hidden_BLD.split(number), tokens.split(number), strict=True)
        return torch.cat([self._refine(hidden, refining, known) for hidden, known in halves])

    def draw(  # type: ignore[override]
        self,
        hidden_BLD: Tensor,
        refining: Refining,
        head: Callable[[Tensor, Tensor], Tensor],
        draw_next: DrawNext,
    ) -> Tensor:
        """B L *token_shape: the tokens of one scale. Each step draws the next token of every group.

        Args:
            hidden_BLD: the hidden states of the scale.
            head: maps refined hidden states B L D and tokens to logits B L num_logits.
            draw_next: draws tokens; called once for each step.
        """
        times = len(hidden_BLD) // len(refining.places)
        places, shape = refining.places.repeat(times, 1), (*hidden_BLD.shape[:2], *self.token_shape)
        tokens = torch.zeros(shape, dtype=torch.long, device=hidden_BLD.device)
        with parametrize.cached():  # as in ``Refiner.draw``
            for step in range(refining.sequences.longest):
                now = places == step
                drawn = draw_next(now, head(self(hidden_BLD, refining, tokens), tokens))
                tokens = torch.where(now.view(*now.shape, *[1] * (tokens.dim() - 2)), drawn, tokens)
        return tokens

    def _refine(self, hidden_BLD: Tensor, refining: Refining, tokens: Tensor) -> Tensor:
        sequences = refining.sequences
        if not sequences.longest:
            return hidden_BLD
        said_MR = self.before.describe(tokens, refining.memory).flatten(0, 1)[sequences.at]
        x_MR = self.state(hidden_BLD.flatten(0, 1)[sequences.at]) + sequences.before(said_MR, self.first)
        if self.blocks:
            x_STR, row, place = sequences.rows(x_MR), sequences.row, sequences.place
            count = torch.arange(sequences.longest, device=x_STR.device)
            rotation = rotation_angles(count[:, None], self.width // self.heads)
            for block, nearness in zip(self.blocks, self.nearness, strict=True):
                x_STR = block(x_STR, _mask(count, refining.touching, nearness), rotation)
            x_MR = x_STR[row, place]
        correction_MD = self._project(x_MR).to(hidden_BLD.dtype)
        return hidden_BLD.flatten(0, 1).index_add(0, sequences.at, correction_MD).view_as(hidden_BLD)


def _mask(count_T: Tensor, touching: Tensor | None, nearness: Tensor) -> AttentionMask:
    """Causal; with ``touching``, tokens that touch get ``nearness`` (H 1 1) more."""
    causal = count_T[:, None] >= count_T
    if touching is None:
        return AttentionMask(causal[None, None])
    return AttentionMask((touching[:, None] * nearness).masked_fill(~causal, -torch.inf))
