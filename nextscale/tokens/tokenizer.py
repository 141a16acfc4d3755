"""The multiscale tokenizer: a state machine that refines a sample scale by scale.

The same three functions serve training, sampling, editing and decoding::

    state = tokenizer.initial_state(num_samples)
    for k in range(tokenizer.num_scales(state)):
        inputs = tokenizer.scale_input(state, k)      # what the transformer sees at scale k
        tokens = ...                                  # predicted, or the ground truth's
        state = tokenizer.update(state, k, tokens)    # absorb scale k
    samples = tokenizer.decode(state)

so what a transformer sees in training and in sampling is the same by construction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nextscale.tokens.inputs import ScaleInput, pack_inputs
from nextscale.tokens.pyramid import Schedule, TokenPyramid
from nextscale.tokens.space import TokenSpace
from nextscale.tokens.stem import Stem


class MultiscaleTokenizer(nn.Module, ABC):
    """Encodes samples to token pyramids and refines a state from tokens.

    ``token_space`` says what one token is; ``feature_dim`` is the width F of ``ScaleInput.features``. A tokenizer
    with weights is trained in stage 1; one without simply has no parameters.
    """

    token_space: TokenSpace
    feature_dim: int
    description: dict[str, Any] | None = None
    """What a stored tokenizer was told of its data (``DataSplits.description``)."""
    adaptive: bool = False
    """The number and the lengths of scales depend on what is drawn: a schedule is only what one batch turned out to be.
    Settings that are one a scale make no sense then, and known tokens only as long as nothing else is drawn."""

    @abstractmethod
    def schedule(self) -> Schedule:
        """The default schedule, used where a caller names none."""

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
        """What the transformer sees at scale k; depends on tokens of scales below k only."""

    @abstractmethod
    def update(self, state: Any, k: int, tokens: Tensor) -> Any:
        """The state after scale k; ``tokens`` is B L_k. Must not modify ``state``."""

    @abstractmethod
    def decode(self, state: Any) -> Any:
        """Samples from a state; valid after any scale (a coarse sample), exact after the last."""

    def build_stem(self, width: int) -> Stem | None:
        """The modality's own network from inputs to embeddings of ``width`` and from hidden states to logits, a
        ``tokens.stem.Stem``. None, the default, is a linear layer on ``ScaleInput.features``."""
        return None

    def scale_names(self, num_scales: int) -> list[str]:
        """What scales are called where they are measured; those of one name are measured together."""
        return [f"scale{k}" for k in range(num_scales)]

    def num_scales(self, state: Any) -> int:
        """K. A tokenizer whose number of scales depends on what was drawn returns the number known so far."""
        return len(state.schedule)

    @property
    def decoding(self) -> nn.Module | None:
        """The network that ``decode`` runs, which ``nextscale.load`` may store in half precision or compile."""
        return None

    @property
    def codebook(self) -> Tensor | None:
        """V C: where the codes lie, if tokens are codes that stand for vectors."""
        return None

    @property
    def device(self) -> torch.device:
        return next((tensor.device for tensor in (*self.parameters(), *self.buffers())), torch.device("cpu"))

    # What follows from the machine.

    def states(self, pyramid: TokenPyramid, conditions: Mapping[str, Tensor] | None = None) -> list[Any]:
        """K + 1 states: before the first scale, and after each, under known tokens."""
        states = [self.initial_state(len(pyramid), conditions, pyramid.schedule)]
        for k in range(len(pyramid.schedule)):
            states.append(self.update(states[-1], k, pyramid.scale(k)))
        return states

    def decode_tokens(self, pyramid: TokenPyramid, num_scales: int | None = None) -> Any:
        """Samples from known tokens, or from the first ``num_scales`` scales of them."""
        return self.decode(self.states(pyramid)[-1 if num_scales is None else num_scales])

    def teacher_forcing(self, pyramid: TokenPyramid, conditions: Mapping[str, Tensor] | None = None) -> ScaleInput:
        """The inputs of all scales under known tokens, packed along L.

        The default runs the machine. A tokenizer may override it with a faster equivalent, which the contract
        suite holds against the machine.
        """
        state = self.initial_state(len(pyramid), conditions, pyramid.schedule)
        inputs = []
        for k in range(len(pyramid.schedule)):
            inputs.append(self.scale_input(state, k))
            if k + 1 < len(pyramid.schedule):
                state = self.update(state, k, pyramid.scale(k))
        return pack_inputs(inputs, len(pyramid), self.feature_dim, pyramid.mask)
