"""The stem: the network from what is known of a sample to token embeddings, and back to logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from nextscale.tokens.inputs import ScaleInput


class Stem(nn.Module, ABC):
    """What stands between a tokenizer's inputs and the transformer, and between the transformer and the logits.

    A modality brings its own where its inputs are no grid of features, or its tokens no places of a fixed vocabulary.
    Such a stem reads ``ScaleInput.structure``, which its tokenizer wrote, and the tokens already revealed within the
    scale, and gives the transformer one embedding per token. ``logits`` then maps the transformer's hidden states
    back, together with whatever ``forward`` left for it: so a token may point at a part of the structure, or be scored
    by it. It initialises its own weights.
    """

    complete: ClassVar[bool] = True
    """Whether it also embeds revealed tokens, computes the logits, and initialises its weights. The transformer does so
    for the linear stem."""

    @abstractmethod
    def forward(self, inputs: ScaleInput, revealed: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Any]:
        """B L D embeddings, and a memory for ``logits``.

        B is ``inputs.num_samples``. ``revealed`` holds tokens B L and which of them are known (B L booleans); None
        where nothing is.
        """

    @abstractmethod
    def logits(self, hidden_BLD: Tensor, memory: Any) -> Tensor:
        """B L num_logits; finite somewhere in every row, on padding too."""
