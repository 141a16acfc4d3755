"""The transformer's input at one scale, and the packing of the inputs of all scales for training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
from torch import Tensor


@dataclass
class ScaleInput:
    """The transformer's input for predicting one scale (or, packed along L, all scales).

    Shapes:
        num_samples: B.
        features: B L_k F, the features known so far, which the stem embeds. None if nothing is known yet (the coarsest
            scale of a grid): the input is then the condition's start token alone. Packed inputs hold zeros for such
            tokens, which come first; ``start`` is their number.
        coordinates: L_k N or B L_k N, positions in units of the finest scale.
        scale_ids: L_k integers.
        mask: B L_k booleans, False on padding; None if nothing is padded.
        legal: B L_k V booleans, the tokens that may be drawn; None if all may be drawn.
        structure: input for a modality's own stem, one entry per scale; opaque to the core.
        groups: B L_k integers from 0: the tokens of a group are drawn one after another (``sampling/reveal.py``).
        turns: L_k integers from 0: the sub-step that draws each token, where the tokenizer fixes it
            (``sampling/turns.py``); else None.
        num_turns: the number of sub-steps of each scale, as Python numbers: ``{k: number}``. Goes with ``turns``.
        weight: B L_k, the weight of each token in the loss; None gives every token weight 1.
        known_scales: the number of tokens of each scale, in order, as Python numbers: ``{k: L_k}``. It says what
            ``scale_ids`` say. Without it, ``scales`` reads ``scale_ids``, and on a GPU the host waits for that.
    """

    num_samples: int
    features: Tensor | None
    coordinates: Tensor
    scale_ids: Tensor
    mask: Tensor | None = None
    legal: Tensor | None = None
    start: int = 0
    structure: tuple[Any, ...] = ()
    groups: Tensor | None = None
    turns: Tensor | None = None
    num_turns: dict[int, int] | None = None
    weight: Tensor | None = None
    known_scales: dict[int, int] | None = None

    @cached_property
    def scales(self) -> dict[int, int]:
        """The number of tokens of each scale, in order."""
        if self.known_scales is not None:
            return self.known_scales
        return {k: len(list(same)) for k, same in groupby(self.scale_ids.tolist())}

    @property
    def length(self) -> int:
        return self.scale_ids.shape[0]

    @property
    def num_start(self) -> int:
        """Number of leading tokens about which nothing is known yet."""
        return self.length if self.features is None else self.start

    def of_scale(self, k: int) -> ScaleInput:
        """The input of scale k alone, taken out of packed inputs. Tokens that are ``legal`` are not packed."""
        first = sum(number for scale, number in self.scales.items() if scale < k)
        span = slice(first, first + self.scales[k])
        features, start = self.features, span.stop <= self.start
        place = list(self.scales).index(k) if len(self.structure) > 1 else 0
        return ScaleInput(
            num_samples=self.num_samples,
            features=None if features is None or start else features[:, span],
            coordinates=self.coordinates[..., span, :],
            scale_ids=self.scale_ids[span],
            mask=None if self.mask is None else self.mask[:, span],
            structure=self.structure[place : place + 1],
            groups=None if self.groups is None else self.groups[:, span],
            turns=None if self.turns is None else self.turns[span],
            num_turns=None if self.num_turns is None else {k: self.num_turns[k]},
            weight=None if self.weight is None else self.weight[:, span],
            known_scales={k: self.scales[k]},
        )

    def repeated(self, times: int) -> ScaleInput:
        """What is known, with each sample ``times`` times in a row; without ``legal``, ``groups`` and ``weight``.

        For inputs without a ``structure``, which the core cannot repeat.
        """

        def each(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.repeat_interleave(times, 0)

        known = {"features": each(self.features), "mask": each(self.mask)}
        coordinates = self.coordinates if self.coordinates.dim() == 2 else each(self.coordinates)
        number = times * self.num_samples
        return replace(self, num_samples=number, coordinates=coordinates, legal=None, groups=None, weight=None, **known)


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
    known_scales: dict[int, int] = {}
    num_turns: dict[int, int] = {}
    for known in inputs:
        known_scales |= known.scales
        num_turns |= known.num_turns or dict.fromkeys(known.scales, 1)
    fixed = any(known.turns is not None for known in inputs)
    turns = [torch.zeros_like(known.scale_ids) if known.turns is None else known.turns for known in inputs]
    return ScaleInput(
        num_samples=num_samples,
        features=features,
        coordinates=torch.cat([known.coordinates for known in inputs], -2),
        scale_ids=torch.cat([known.scale_ids for known in inputs]),
        mask=mask,
        start=start,
        structure=tuple(part for known in inputs for part in known.structure),
        groups=_pack_optional([known.groups for known in inputs], inputs, num_samples, 0),
        turns=torch.cat(turns) if fixed else None,
        num_turns=num_turns if fixed else None,
        weight=_pack_optional([known.weight for known in inputs], inputs, num_samples, 1.0),
        known_scales=known_scales,
    )


def _pack_optional(
    parts: list[Tensor | None], inputs: list[ScaleInput], num_samples: int, default: float
) -> Tensor | None:
    """Concatenate along L a field that only some scales have. In the other scales, each token gets the weight
    ``default``, or its own group if ``default`` is 0."""
    if all(part is None for part in parts):
        return None
    filled = []
    for part, known in zip(parts, inputs, strict=True):
        if part is None:
            one = torch.arange(known.length) if default == 0 else torch.full((known.length,), default)
            part = one.to(known.scale_ids.device).expand(num_samples, -1)
        filled.append(part)
    return torch.cat(filled, 1)
