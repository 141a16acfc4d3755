"""Invariant 20: which scales a scale hears of through attention is what the settings say."""

from __future__ import annotations

import torch
from torch import Tensor

from nextscale.testing.checks import Conditions
from nextscale.testing.invariants import holds, likely
from nextscale.tokens.pyramid import TokenPyramid
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale.transformer import ScaleTransformer


@holds("attention")
@torch.no_grad()
def check_attention(
    tokenizer: MultiscaleTokenizer,
    transformer: ScaleTransformer,
    pyramid: TokenPyramid,
    j: int,
    seed: int,
    conditions: Conditions = None,
) -> None:
    """20. Noise on the embeddings of scale j changes the logits of exactly the scales that hear of it.

    A scale hears of j if a chain of at most ``depth`` looks leads to it, by the rule in ``transformer.config``. That it
    does hear is not asked of a modality's own complete stem, whose logits may come from elsewhere.
    """
    depth = len(transformer.blocks)
    reached = _reached(transformer.config.attention, len(pyramid.schedule), depth)
    inputs, span = tokenizer.teacher_forcing(pyramid, conditions), pyramid.schedule.span(j)
    cond = transformer.conditioner(conditions or {}, len(pyramid))
    before = transformer(inputs, cond, tokens=pyramid.tokens)
    embed, generator = transformer.embed, torch.Generator().manual_seed(seed)

    def disturbed(*args: object) -> tuple[Tensor, object]:
        x_BLD, memory = embed(*args)  # type: ignore[arg-type]
        x_BLD = x_BLD.clone()
        x_BLD[:, span] += 3 * torch.randn(x_BLD[:, span].shape, generator=generator)
        return x_BLD, memory

    transformer.embed = disturbed  # type: ignore[method-assign]
    try:
        after = transformer(inputs, cond, tokens=pyramid.tokens)
    finally:
        del transformer.embed
    mask = torch.ones_like(before[..., 0], dtype=torch.bool) if pyramid.mask is None else pyramid.mask
    moved = (after - before).abs().amax(-1)
    rule = transformer.config.attention if isinstance(transformer.config.attention, str) else "the matrix"
    for k in range(len(pyramid.schedule)):
        at = pyramid.schedule.span(k)
        heard = float((moved[:, at] * mask[:, at]).max())
        if not reached[k][j]:
            with likely(f"scale {k} hears of scale {j}, which {rule} forbids: is the rule ignored or taken as full?"):
                assert heard <= 1e-5, f"invariant 20 (scale attention): scale {k}, logits change by {heard:.3g}"
        elif depth and _both(mask, span, at) and not transformer.stem.complete:
            with likely(f"scale {k} does not hear of scale {j}, which {rule} allows: does attention see too little?"):
                assert heard > 0, f"invariant 20 (scale attention): scale {k}, logits do not change with scale {j}"


def _both(mask: Tensor, one: slice, two: slice) -> bool:
    """Whether some sample has real tokens at both scales."""
    return bool((mask[:, one].any(1) & mask[:, two].any(1)).any())


def _reached(rule: object, scales: int, depth: int) -> list[list[bool]]:
    """K x K: whether row k hears of column j through ``depth`` layers. Written without ``ScaleAttention``, which it
    checks."""
    looks = torch.eye(scales, dtype=torch.bool)
    if rule == "full":
        looks = torch.ones(scales, scales).tril().bool()
    elif rule != "markov":
        looks = torch.tensor(rule)
    heard = torch.eye(scales)
    for _ in range(depth):
        heard = (looks.float() @ heard).clamp_max(1)
    return heard.bool().tolist()
