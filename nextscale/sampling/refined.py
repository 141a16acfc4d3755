"""Drawing the tokens of one scale one after another, for a transformer with a refiner."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nextscale.sampling.scale import ScaleSettings, draw_real, to_draw, where_chosen
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
    kept: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, None]:
    """Tokens B L_k *token_shape of one scale, in raster order or in groups.

    ``run`` calls a function that draws the next token, or the next of every group.

    A kept token takes the place of the drawn one before the next token is drawn. With one generator per sample, padding
    uses no random numbers, so the tokens of a sample do not depend on how far its batch is padded.
    """
    own = None if generator is None or isinstance(generator, torch.Generator) else generator
    rows: list[list[int]] | None = None
    real = to_draw(inputs, num_samples, kept)
    if own is not None and (kept is not None or inputs.mask is not None):
        drawing = real.T.tolist()  # one transfer for the whole scale
        rows = [[i for i, drawn in enumerate(column) if drawn] for column in drawing]

    def draw(i: int | Tensor, logits: Tensor) -> Tensor:
        if isinstance(i, Tensor):
            token = draw_real(space, logits, real & i, generator, settings.filters)
            return token if kept is None else where_chosen(kept[1], kept[0], token)
        if rows is None or own is None or len(rows[i]) == num_samples:
            token = space.draw(logits, generator, *settings.filters)
        else:
            token = torch.zeros(num_samples, 1, *space.token_shape, dtype=torch.long, device=logits.device)
            if rows[i]:
                token[rows[i]] = space.draw(logits[rows[i]], [own[row] for row in rows[i]], *settings.filters)
        if kept is None:
            return token
        here = slice(i, i + 1)
        return where_chosen(kept[1][:, here], kept[0][:, here], token)

    return run(draw), None
