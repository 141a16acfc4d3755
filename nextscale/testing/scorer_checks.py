"""Invariants of scorers: what a score depends on, and that training and sampling compute the same: 2 and 3."""

from __future__ import annotations

import torch
from torch import Tensor

from nextscale.testing.checks import Conditions
from nextscale.testing.helpers import assert_same
from nextscale.testing.invariants import holds
from nextscale.tokens.pyramid import TokenPyramid
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale.transformer import Scorer


def _scores(tokenizer: MultiscaleTokenizer, scorer: Scorer, pyramid: TokenPyramid, conditions: Conditions) -> Tensor:
    cond_BD = scorer.conditioner(conditions or {}, len(pyramid))
    return scorer(tokenizer.teacher_forcing(pyramid, conditions), cond_BD, pyramid.tokens)


@holds("causality")
@torch.no_grad()
def check_scored_tokens(
    tokenizer: MultiscaleTokenizer,
    scorer: Scorer,
    pyramid: TokenPyramid,
    changed: TokenPyramid,
    j: int,
    conditions: Conditions = None,
) -> None:
    """2. The score of a scale depends on its own tokens, and on no finer ones.

    ``changed`` is ``pyramid`` with other tokens at scale j, wherever there is a choice, and at finer ones.
    """
    name = "invariant 2 (causality)"
    before, after = (_scores(tokenizer, scorer, each, conditions) for each in (pyramid, changed))
    for k in range(j):
        assert_same(name, "score", after[:, k], before[:, k], scale=k)
    differ = (pyramid.scale(j) != changed.scale(j)).flatten(1).any(1)
    still = differ & (after[:, j] == before[:, j])
    assert not bool(still.any()), f"{name}: scale {j}: a score ignores the tokens that it judges"


@holds("train_equals_sample")
@torch.no_grad()
def check_scores(
    tokenizer: MultiscaleTokenizer,
    scorer: Scorer,
    pyramid: TokenPyramid,
    conditions: Conditions = None,
    candidates: int = 2,
    atol: float = 1e-4,
) -> None:
    """3. Scores of all scales at once, as in training, are those of one scale after another, as in sampling, where each
    sample has several candidates."""
    name, together = "invariant 3 (train = sample)", _scores(tokenizer, scorer, pyramid, conditions)
    cond_BD = scorer.conditioner(conditions or {}, len(pyramid)).repeat_interleave(candidates, 0)
    state = tokenizer.initial_state(len(pyramid), conditions, pyramid.schedule)
    for k in range(len(pyramid.schedule)):
        inputs, tokens = tokenizer.scale_input(state, k).repeated(candidates), pyramid.scale(k)
        alone = scorer(inputs, cond_BD, tokens.repeat_interleave(candidates, 0)).view(-1, candidates)
        for candidate in alone.unbind(1):
            assert_same(name, "score", candidate, together[:, k], scale=k, atol=atol)
        state = tokenizer.update(state, k, tokens)
