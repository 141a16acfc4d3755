"""The multiscale tokenizer: a state machine that refines a sample scale by scale.

The same three functions serve training, sampling, editing and decoding::

    state = tokenizer.initial_state(num_samples)
    for k in range(tokenizer.num_scales(state)):
        inputs = tokenizer.scale_input(state, k)      # what the transformer sees at scale k
        tokens = ...                                  # predicted, or the ground truth's
        state = tokenizer.update(state, k, tokens)    # absorb scale k
    samples = tokenizer.decode(state)

so the transformer sees the same inputs in training and in sampling by construction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nextscale.tokens.inputs import ScaleInput, pack_inputs
from nextscale.tokens.pyramid import Schedule, TokenPyramid
from nextscale.tokens.space import TokenSpace
from nextscale.tokens.stem import Stem

NAMED_SCALES = 4096
"""If the number of scales depends on what is drawn, names stand for so many scales, which contain every name."""


class MultiscaleTokenizer(nn.Module, ABC):
    """Encodes samples to token pyramids, and refines a state from tokens.

    ``token_space`` defines what a token is; ``feature_dim`` is the width F of ``ScaleInput.features``. A tokenizer
    with weights is trained in stage 1; one without weights simply has no parameters.
    """

    token_space: TokenSpace
    feature_dim: int
    _place: Tensor
    description: dict[str, Any] | None = None
    """What a stored tokenizer knows about its data (``DataSplits.description``)."""
    adaptive: bool = False
    """Whether the number and lengths of scales depend on what is drawn. If so, a schedule describes a single batch,
    settings with one value per scale make no sense, and known tokens apply only until other tokens are drawn."""

    group_order: Literal["random", "fixed"] | None = None
    """How ``sampling.reveal=groups`` orders the tokens of a group: at random (``ScaleInput.groups``), or as the
    tokenizer fixes it (``ScaleInput.turns``). None: it forms no groups."""
    order: str = "scales"
    """How tokens are drawn, if one schedule could mean several orders. A token cache belongs to one of them."""

    def __init__(self) -> None:
        super().__init__()
        # ``.to`` moves this where a tokenizer has no weights. On the CPU even if weights are yet to come (on meta).
        self.register_buffer("_place", torch.zeros((), device="cpu"), persistent=False)

    @abstractmethod
    def schedule(self) -> Schedule:
        """The default schedule, used if the caller gives none."""

    @abstractmethod
    def encode(self, samples: Any) -> TokenPyramid:
        """The token pyramid of a batch of samples."""

    @abstractmethod
    def initial_state(
        self,
        num_samples: int,
        conditions: Mapping[str, Tensor] | None = None,
        schedule: Schedule | None = None,
    ) -> Any:
        """The state before any token is known."""

    @abstractmethod
    def scale_input(self, state: Any, k: int) -> ScaleInput:
        """The transformer's input at scale k. Depends only on the tokens of scales below k."""

    @abstractmethod
    def update(self, state: Any, k: int, tokens: Tensor) -> Any:
        """The state after scale k; ``tokens`` is B L_k. Must not modify ``state``."""

    @abstractmethod
    def decode(self, state: Any) -> Any:
        """Samples from a state; valid after any scale (a coarse sample), exact after the last."""

    def build_stem(self, width: int) -> Stem | None:
        """The modality's own stem (``tokens.stem.Stem``), from inputs to embeddings of ``width`` and from hidden states
        to logits. None, the default, means a linear layer on ``ScaleInput.features``."""
        return None

    def scale_names(self, num_scales: int) -> list[str]:
        """The names under which scales are measured. Scales with the same name are measured together."""
        return [f"scale{k}" for k in range(num_scales)]

    def every_scale_name(self, num_scales: int) -> list[str]:
        """``scale_names``; with an adaptive tokenizer, of so many scales that every name is among them."""
        return self.scale_names(max(num_scales, NAMED_SCALES) if self.adaptive else num_scales)

    def num_scales(self, state: Any) -> int:
        """K. If the number of scales depends on what is drawn, this is the number known so far."""
        return len(state.schedule)

    @property
    def decoding(self) -> nn.Module | None:
        """The network that ``decode`` runs, which ``nextscale.load`` may store in half precision."""
        return None

    @property
    def codebook(self) -> Tensor | None:
        """V C: the code vectors, if tokens are codes that stand for vectors."""
        return None

    @property
    def device(self) -> torch.device:
        """Where the tokenizer lies, and with it its states."""
        return self._place.device

    # Methods that follow from the state machine above.

    def states(self, pyramid: TokenPyramid, conditions: Mapping[str, Tensor] | None = None) -> list[Any]:
        """K + 1 states for known tokens: before the first scale, and after each scale."""
        states = [self.initial_state(len(pyramid), conditions, pyramid.schedule)]
        for k in range(len(pyramid.schedule)):
            states.append(self.update(states[-1], k, pyramid.scale(k)))
        return states

    def decode_tokens(self, pyramid: TokenPyramid, num_scales: int | None = None) -> Any:
        """Samples decoded from known tokens, or from their first ``num_scales`` scales only."""
        return self.decode(self.states(pyramid)[-1 if num_scales is None else num_scales])

    def teacher_forcing(self, pyramid: TokenPyramid, conditions: Mapping[str, Tensor] | None = None) -> ScaleInput:
        """The inputs of all scales for known tokens, packed along L.

        The default runs the state machine. A tokenizer may override it with a faster equivalent; the contract suite
        compares that with the state machine.
        """
        state = self.initial_state(len(pyramid), conditions, pyramid.schedule)
        inputs = []
        for k in range(len(pyramid.schedule)):
            inputs.append(self.scale_input(state, k))
            if k + 1 < len(pyramid.schedule):
                state = self.update(state, k, pyramid.scale(k))
        return pack_inputs(inputs, len(pyramid), self.feature_dim, pyramid.mask)
