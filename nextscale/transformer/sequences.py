"""Which tokens of a scale are refined one after another, and which side by side.

The tokens of a group (``ScaleInput.groups``) form a sequence; without groups, all tokens of a scale do. A token knows
those before it in its sequence, and sequences are drawn side by side: a scale takes as many steps as its longest one.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.tokens.inputs import ScaleInput


@dataclass(frozen=True)
class Sequences:
    """Tokens in sequences.

    Shapes (M refined tokens, in the order of sequences; padding is left out):
        shape: B L, of the inputs.
        at: M, the place b L + l of each token.
        row, place: M, the number of its sequence, and its place in that from 0.
    """

    shape: tuple[int, int]
    at: Tensor
    row: Tensor
    place: Tensor

    @classmethod
    def of(cls, inputs: ScaleInput, scales: Collection[int], order_BL: Tensor | None = None) -> Sequences:
        """The sequences of these scales. ``order_BL`` orders the tokens of each; None is the order along L."""
        ids, shape = inputs.scale_ids, (inputs.num_samples, inputs.length)
        real = torch.isin(ids, torch.tensor([*scales], device=ids.device)).expand(shape)
        if inputs.mask is not None:
            real = real & inputs.mask[: shape[0]]
        at = real.flatten().nonzero()[:, 0]
        key = (at // shape[1]) * (int(ids.max()) + 1) + ids[at % shape[1]]
        if inputs.groups is not None:
            groups = inputs.groups[: shape[0]]
            key = key * (int(groups.max()) + 1) + groups.flatten()[at]
        rank = at % shape[1] if order_BL is None else order_BL.flatten()[at]
        sort = (key * shape[1] + rank).argsort()
        at, key = at[sort], key[sort]
        begins = torch.ones_like(key, dtype=torch.bool)
        begins[1:] = key[1:] != key[:-1]
        row = begins.long().cumsum(0) - 1
        number = torch.arange(len(at), device=at.device)
        return cls(shape, at, row, number - number[begins][row])

    @cached_property
    def longest(self) -> int:
        """T, the number of tokens of the longest sequence. The host waits for the device, once."""
        return int(self.place.max()) + 1 if len(self.place) else 0

    def of_tokens(self, values_M: Tensor) -> Tensor:
        """B L: integers ``values_M`` of the tokens; -1 where no token is refined."""
        every = torch.full((self.shape[0] * self.shape[1],), -1, device=self.at.device)
        every[self.at] = values_M
        return every.view(self.shape)

    def rows(self, x_MR: Tensor) -> Tensor:
        """S T R: one row per sequence, padded at its end."""
        number = int(self.row[-1]) + 1
        rows = x_MR.new_zeros(number, self.longest, x_MR.shape[-1])
        return rows.index_put((self.row, self.place), x_MR)

    def before(self, said_MR: Tensor, first_R: Tensor) -> Tensor:
        """M R: what the token before each says; ``first_R`` for the first of a sequence."""
        shifted = F.pad(said_MR[:-1], (0, 0, 1, 0))
        return torch.where((self.place > 0)[:, None], shifted, first_R.to(said_MR.dtype))

    def touching(self, related_P3: Tensor) -> Tensor:
        """S T T booleans: whether a token (second axis) touches the one before another (third axis), of pairs as
        ``Refinement.related`` gives them. So a token attends to where a refiner reads what touches it."""
        length = self.longest
        touching = torch.zeros(int(self.row[-1]) + 1, length, length, dtype=torch.bool, device=self.at.device)
        rows, places = self.of_tokens(self.row), self.of_tokens(self.place)
        sample, one, other = related_P3.unbind(1)
        row = rows[sample, one]
        same = (row >= 0) & (row == rows[sample, other])
        touching[row[same], places[sample, one][same], places[sample, other][same]] = True
        return F.pad(touching[..., :-1], (1, 0))
