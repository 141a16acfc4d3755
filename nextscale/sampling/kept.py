"""Which tokens of a scale are drawn: all, or those that an edit does not keep. And drawing them.

With one generator per sample, a token that is not drawn uses no random numbers. So the host must know which are drawn.
For an edit it does, because it has read the mask before the first scale; for padding it asks the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor

from nextscale.tokens.inputs import ScaleInput
from nextscale.tokens.space import Generators, TokenSpace, uniform

Places = Sequence[Tensor | slice | None] | None
"""For each sample, where its tokens are drawn (None: nowhere); None if all are."""


WHOLE = slice(None)


@dataclass(frozen=True)
class Kept:
    """Known tokens of one scale, of which some are kept.

    Attributes:
        tokens: B L_k *token_shape.
        mask: B L_k booleans, True where the known token is kept.
        redrawn: for each of the B samples, whether it keeps less than all of them; known to the host.
    """

    tokens: Tensor
    mask: Tensor
    redrawn: Sequence[bool]

    def over(self, drawn: Tensor) -> Tensor:
        """``drawn``, with the kept tokens in their places."""
        return where_chosen(self.mask, self.tokens, drawn)

    def at(self, i: int) -> Kept:
        """The same for token i alone."""
        return Kept(self.tokens[:, i : i + 1], self.mask[:, i : i + 1], self.redrawn)

    def repeated(self, times: int) -> Kept:
        """Each sample ``times`` times in a row."""
        redrawn = [one for one in self.redrawn for _ in range(times)]
        return Kept(self.tokens.repeat_interleave(times, 0), self.mask.repeat_interleave(times, 0), redrawn)


def to_draw(inputs: ScaleInput, num_samples: int, kept: Kept | None) -> Tensor:
    """B L_k booleans: the tokens that are drawn. Kept ones are drawn too, and then replaced, unless a sample keeps all
    its tokens."""
    shape, device = (num_samples, inputs.length), inputs.scale_ids.device
    real = torch.ones(shape, dtype=torch.bool, device=device) if inputs.mask is None else inputs.mask
    return real if kept is None else real & (real & ~kept.mask).any(1, keepdim=True)


def places_to_draw(inputs: ScaleInput, num_samples: int, kept: Kept | None, generator: Generators) -> Places:
    """The same for the host, if it has to know. It waits for the device only where a scale has padding."""
    if not one_each(generator):
        return None
    if inputs.mask is not None:
        return places_of(to_draw(inputs, num_samples, kept))
    return None if kept is None else whole_samples(kept.redrawn)


def whole_samples(drawn: Sequence[bool]) -> Places:
    """All tokens of those of the B samples that are ``drawn``."""
    return None if all(drawn) else [WHOLE if one else None for one in drawn]


def places_of(mask: Tensor) -> Places:
    """Where ``mask`` (B L) is True, on its device. The host waits once, for all samples."""
    return [row.nonzero()[:, 0].to(mask.device) if row.any() else None for row in mask.cpu()]


def one_each(generator: Generators) -> TypeGuard[Sequence[torch.Generator]]:
    """Whether each sample has a generator of its own."""
    return generator is not None and not isinstance(generator, torch.Generator)


def draw_at(
    places: Places, space: TokenSpace, logits: Tensor, generator: Generators, filters: tuple[float, int, float]
) -> Tensor:
    """``space.draw``, and 0 elsewhere. With one generator per sample, the random numbers of a sample do not depend on
    how far its batch is padded."""
    if places is None or not one_each(generator):
        return space.draw(logits, generator, *filters)
    drawn = torch.zeros(*logits.shape[:2], *space.token_shape, dtype=torch.long, device=logits.device)
    if not any(isinstance(here, Tensor) for here in places):  # together
        rows = [i for i, here in enumerate(places) if here is not None]
        if rows:
            some = space.draw(torch.stack([logits[i] for i in rows]), [generator[i] for i in rows], *filters)
            for i, tokens in zip(rows, some, strict=True):
                drawn[i] = tokens
        return drawn
    for i, (one, here) in enumerate(zip(generator, places, strict=True)):
        if here is not None:
            drawn[i, here] = space.draw(logits[i, here][None], [one], *filters)[0]
    return drawn


def priorities(places: Places, shape: tuple[int, int], generator: Generators, device: torch.device) -> Tensor:
    """B L uniform numbers, drawn in the same way."""
    if places is None or not one_each(generator):
        return uniform(shape, generator, device)
    priority = torch.zeros(shape, device=device)
    for i, (one, here) in enumerate(zip(generator, places, strict=True)):
        if here is not None:
            number = shape[1] if isinstance(here, slice) else len(here)
            priority[i, here] = torch.rand(number, generator=one, device=device)
    return priority


def where_chosen(chosen_BL: Tensor, tokens: Tensor, others: Tensor) -> Tensor:
    """B L *token_shape: ``tokens`` where chosen, ``others`` elsewhere."""
    return torch.where(chosen_BL.view(*chosen_BL.shape, *[1] * (tokens.dim() - 2)), tokens, others)
