"""The stem: the network that maps the known part of a sample to token embeddings, and hidden states to logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from nextscale.tokens.inputs import ScaleInput


class Stem(nn.Module, ABC):
    """The network between a tokenizer's inputs and the transformer, and between the transformer and the logits.

    A modality provides its own stem if its inputs are not a grid of features, or its tokens not entries of a fixed
    vocabulary. Such a stem reads ``ScaleInput.structure``, which its tokenizer wrote, and the tokens already revealed
    within the scale, and gives the transformer one embedding per token. ``logits`` then maps the transformer's hidden
    states to logits, with the help of the memory that ``forward`` returned: a token can thus point at a part of the
    structure, or be scored against it. The stem initialises its own weights.
    """

    complete: ClassVar[bool] = True
    """Whether the stem also embeds revealed tokens, computes the logits and initialises its weights. For the linear
    stem, the transformer does this."""

    @abstractmethod
    def forward(self, inputs: ScaleInput, revealed: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Any]:
        """B L D embeddings, and a memory for ``logits``.

        B is ``inputs.num_samples``. ``revealed`` holds tokens B L and a mask of the known ones (B L booleans); None if
        no token is known.
        """

    @abstractmethod
    def logits(self, hidden_BLD: Tensor, memory: Any) -> Tensor:
        """B L num_logits. Every row has at least one finite logit, even on padding."""

    def logits_by_scale(self, hidden_BLD: Tensor, memory: Any) -> list[Tensor]:
        """The same logits in parts along L, each B L_k V_k: from V_k on, no token is possible.

        Training and sampling use these. Override it, and let ``logits`` join the parts, if most scales need few of the
        ``num_logits``: the parts together then take less memory and time. Every token of a scale must be below its V_k.
        """
        return [self.logits(hidden_BLD, memory)]
