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

    def build_refinement(self, width: int) -> Refinement | None:
        """What a refiner of this ``width`` needs of the stem (``transformer.refiner``); None, the default, if the stem
        cannot be refined.

        Raises:
            ConfigError: settings with which it cannot.
        """
        return None


class Refinement(nn.Module, ABC):
    """What a refiner needs of a complete stem: what a token says once it is drawn, and logits that know the tokens
    drawn before.

    It initialises its own weights, which belong to the refiner. ``memory`` is what ``Stem.forward`` returned; tokens
    are B L *token_shape, of which some may not be drawn yet.
    """

    @abstractmethod
    def describe(self, tokens: Tensor, memory: Any) -> Tensor:
        """B L R: what each token says, for the tokens that are drawn after it. R is the refiner's width.

        A token is described by itself and the structure alone. Tokens not drawn yet are 0.
        """

    @abstractmethod
    def logits(self, hidden_BLD: Tensor, memory: Any, tokens: Tensor, places: Tensor) -> Tensor:
        """B L num_logits from refined hidden states, as ``Stem.logits``.

        ``places`` (B L integers) says when each token is drawn within its group; it is -1 on padding and in scales that
        are not refined, whose logits are those of the stem. Of ``tokens``, those of earlier places in the group may
        count, and no others: a token that they rule out gets a low logit.
        """

    def logits_by_scale(self, hidden_BLD: Tensor, memory: Any, tokens: Tensor, places: Tensor) -> list[Tensor]:
        """The same logits in parts along L, as ``Stem.logits_by_scale``."""
        return [self.logits(hidden_BLD, memory, tokens, places)]

    def order(self, inputs: ScaleInput) -> Tensor | None:
        """B L integers from 0 to L - 1, different within a group: its tokens are drawn in this order. None, the
        default, is the order along L. It depends on the structure alone, not on padding or batch mates."""
        return None

    def related(self, inputs: ScaleInput) -> Tensor | None:
        """P 3: a sample and two places along L whose tokens touch each other in the structure, both ways round. The
        refiner learns how much more it attends to such tokens. None, the default, if no tokens touch."""
        return None
