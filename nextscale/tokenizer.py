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
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nextscale.errors import NextscaleError
from nextscale.pyramid import Schedule, TokenPyramid
from nextscale.tokenspace import TokenSpace


@dataclass
class ScaleInput:
    """What the transformer sees when it predicts one scale (or, packed along L, all scales).

    Shapes:
        features: B L_k F, what is known so far, as the stem takes it; None where nothing is known (the coarsest
            scale of a grid), and the condition's start token stands alone. Packed inputs hold zeros there, and
            ``start`` says how many leading tokens those are.
        coordinates: L_k N or B L_k N, positions in units of the finest scale.
        scale_ids: L_k integers.
        mask: B L_k booleans, False on padding; None where nothing is padded.
        legal: B L_k V booleans, what may be drawn; None where everything may.
        structure: what a stem of the modality's own reads, one entry a scale; opaque to the core.
        groups: B L_k integers from 0, one a token: the tokens of a group are drawn one after another (``reveal.py``).
        weight: B L_k, what each token's loss counts; None counts each once.
    """

    features: Tensor | None
    coordinates: Tensor
    scale_ids: Tensor
    mask: Tensor | None = None
    legal: Tensor | None = None
    start: int = 0
    structure: tuple[Any, ...] = ()
    groups: Tensor | None = None
    weight: Tensor | None = None

    @property
    def length(self) -> int:
        return self.scale_ids.shape[0]


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

    def build_stem(self, width: int) -> nn.Module | None:
        """The network from this tokenizer's inputs to embeddings of ``width``; None is a linear layer on features.

        A ``transformer.stem.Stem`` also sees revealed tokens, and makes the logits.
        """
        return None

    def scale_names(self, num_scales: int) -> list[str]:
        """What scales are called where they are measured; those of one name are measured together."""
        return [f"scale{k}" for k in range(num_scales)]

    def begin_with(self, samples: Any, conditions: Mapping[str, Tensor] | None = None) -> Any:
        """A state that holds ``samples`` already, so that what is drawn from it completes them."""
        raise NextscaleError(f"{type(self).__name__} cannot complete a part: its samples have no parts")

    def num_scales(self, state: Any) -> int:
        """K. A tokenizer whose number of scales depends on what was drawn returns the number known so far."""
        return len(state.schedule)

    def update_soft(self, state: Any, k: int, weights: Tensor) -> Any:
        """Like ``update`` with a mixture of codes, ``weights`` B L_k V summing to 1 (smooth Gumbel decoding)."""
        raise NotImplementedError(f"{type(self).__name__} has no smooth decoding: its state is not a mixture")

    requirements: tuple[str, ...] = ()
    """Properties that ``satisfies`` can tell."""

    def satisfies(self, requirement: str, state: Any) -> Tensor:
        """B booleans: whether each sample so far has the property; a state before it can be told has it."""
        raise NotImplementedError(f"{type(self).__name__} has no requirements")

    # Editing: a tokenizer whose tokens lie somewhere in the sample says where. Others cannot edit.

    def cuts(self, length: int) -> range:
        """Where a sample of this ``length`` along its first axis may be cut, so that no token belongs to both sides: by
        default anywhere."""
        return range(1, length)

    def keep_tokens(self, keep: Tensor) -> Tensor:
        """B L booleans, on the schedule that ``encode`` gives such samples: the tokens that describe what is kept.

        ``keep`` is B *grid booleans, a mask over each sample.
        """
        raise NextscaleError(f"{type(self).__name__} cannot edit: its tokens have no place in the sample")

    def splice(self, state: Any, known: Any, keep: Tensor) -> Any:
        """``state`` with what the ``known`` state, of the same scale, says of the places that are kept.

        ``keep`` is B L booleans, as ``keep_tokens`` gives them; all kept is ``known``, nothing kept is ``state``.
        """
        raise NextscaleError(f"{type(self).__name__} cannot edit: its state has no places")

    def unquantized(self, state: Any, samples: Any, keep: Tensor) -> Any:
        """``state``, of ``samples`` that ``encode`` would describe by it, with what was known of the places that
        ``keep`` keeps (as in ``keep_tokens``) before it was made tokens; by default nothing more."""
        return state

    def decode_like(self, state: Any, samples: Any) -> Any:
        """``decode``, to the size of ``samples`` where the schedule alone leaves it open (padded samples)."""
        return self.decode(state)

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


def pack_inputs(inputs: list[ScaleInput], num_samples: int, feature_dim: int, mask: Tensor | None) -> ScaleInput:
    """Concatenate the inputs of successive scales along L."""
    start = 0
    for known in inputs:
        if known.features is not None:
            break
        start += known.length
    reference = next((known.features for known in inputs if known.features is not None), None)
    features = None
    if reference is not None:
        empty = reference.new_zeros(1, 1, 1).expand(num_samples, 1, feature_dim)
        features = torch.cat([empty.expand(-1, i.length, -1) if i.features is None else i.features for i in inputs], 1)
    masks = [known.mask for known in inputs]
    if mask is None and any(m is not None for m in masks):
        shape = [(num_samples, known.length) for known in inputs]
        ones = [torch.ones(s, dtype=torch.bool, device=inputs[0].scale_ids.device) for s in shape]
        mask = torch.cat([one if m is None else m for m, one in zip(masks, ones, strict=True)], 1)
    return ScaleInput(
        features=features,
        coordinates=torch.cat([known.coordinates for known in inputs], -2),
        scale_ids=torch.cat([known.scale_ids for known in inputs]),
        mask=mask,
        start=start,
        structure=tuple(part for known in inputs for part in known.structure),
        groups=_pack_optional([known.groups for known in inputs], inputs, num_samples, 0),
        weight=_pack_optional([known.weight for known in inputs], inputs, num_samples, 1.0),
    )


def _pack_optional(
    parts: list[Tensor | None], inputs: list[ScaleInput], num_samples: int, default: float
) -> Tensor | None:
    """Concatenate along L what only some scales have; a group each (``default`` 0) or a weight of one elsewhere."""
    if all(part is None for part in parts):
        return None
    filled = []
    for part, known in zip(parts, inputs, strict=True):
        if part is None:
            one = torch.arange(known.length) if default == 0 else torch.full((known.length,), default)
            part = one.to(known.scale_ids.device).expand(num_samples, -1)
        filled.append(part)
    return torch.cat(filled, 1)
