"""Drawing the tokens of one scale one after another, for a transformer with a refiner."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from torch import Tensor

from nextscale.sampling.kept import Kept, Places, draw_at, one_each, places_of, places_to_draw, to_draw, whole_samples
from nextscale.sampling.scale import ScaleSettings
from nextscale.tokens.inputs import ScaleInput
from nextscale.tokens.space import Generators, TokenSpace
from nextscale.transformer import DrawNext


def draw_refined(
    run: Callable[[DrawNext], Tensor],
    space: TokenSpace,
    inputs: ScaleInput,
    num_samples: int,
    settings: ScaleSettings,
    generator: Generators,
    kept: Kept | None,
) -> tuple[Tensor, None]:
    """Tokens B L_k *token_shape of one scale, in raster order or in groups.

    ``run`` calls a function that draws the next token, or the next of every group.

    A kept token takes the place of the drawn one before the next token is drawn. With one generator per sample, padding
    uses no random numbers, so the tokens of a sample do not depend on how far its batch is padded.
    """
    real = to_draw(inputs, num_samples, kept)

    @cache
    def places() -> list[Places]:
        if inputs.mask is None or not one_each(generator):
            return [places_to_draw(inputs, num_samples, kept, generator)] * inputs.length
        return [whole_samples(column) for column in real.T.tolist()]  # one transfer for the whole scale

    def draw(i: int | Tensor, logits: Tensor) -> Tensor:
        if isinstance(i, Tensor):
            here = places_of(real & i) if one_each(generator) else None
            token = draw_at(here, space, logits, generator, settings.filters)
            return token if kept is None else kept.over(token)
        token = draw_at(places()[i], space, logits, generator, settings.filters)
        return token if kept is None else kept.at(i).over(token)

    return run(draw), None
