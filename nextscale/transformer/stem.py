"""A stem of a modality's own: the network from what is known to token embeddings, and back to logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from nextscale.tokenizer import ScaleInput


class Stem(nn.Module, ABC):
    """For modalities whose inputs are no grid of features, and whose tokens are no places of a fixed vocabulary.

    It reads ``ScaleInput.structure``, which its tokenizer wrote, and the tokens already revealed within the scale, and
    gives the transformer one embedding a token. ``logits`` then maps the transformer's hidden states back, together
    with whatever ``forward`` left for it: so a token may point at a part of the structure, or be scored by it. A stem
    initialises its own weights. A plain module instead of a ``Stem`` maps ``ScaleInput.features`` alone.
    """

    @abstractmethod
    def forward(self, inputs: ScaleInput, revealed: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Any]:
        """B L D embeddings, and a memory for ``logits``.

        ``revealed`` holds tokens B L and which of them are known (B L booleans); None where nothing is.
        """

    @abstractmethod
    def logits(self, hidden_BLD: Tensor, memory: Any) -> Tensor:
        """B L num_logits; finite somewhere in every row, on padding too."""
