"""Scorers beyond the contract: what they learn, what is kept, and what is refused. Runs: test_scorer_runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nextscale.config.sections import SamplingConfig, ScorerConfig, ScorerStageConfig
from nextscale.data import Batch
from nextscale.errors import ConfigError, NextscaleError
from nextscale.randomness import Draws
from nextscale.sampling.candidates import Chooser
from nextscale.sampling.generate import Generation, generate
from nextscale.storage.scorer import new_scorer
from nextscale.testing.helpers import random_pyramid
from nextscale.testing.tiny import CODES, grid_tokenizer, scorer_for, transformer_for
from nextscale.tokens.inputs import ScaleInput
from nextscale.tokens.pyramid import Schedule
from nextscale.tokens.space import Bits, Codes, TokenSpace
from nextscale.tokens.stem import Stem
from nextscale.training.scorer_stage import ScorerObjective
from nextscale.transformer import ScaleTransformer, Scorer

TOKENIZER = grid_tokenizer((6, 6))  # scales of 1, 4 and 9 tokens
REFINER = {"depth": 1, "width": 8, "heads": 1}
LABELS = {"label": torch.tensor([0, 1, 2])}
KINDS: dict[str, dict[str, Any]] = {"plain": {}, "refined": {"refiner": REFINER}, "in steps": {"in_scale_steps": True}}


def draw(transformer: ScaleTransformer, scorer: Any, seed: int = 0, **sampling: Any) -> Generation:
    generators = [torch.Generator().manual_seed(seed + i) for i in range(3)]
    return generate(TOKENIZER, transformer, 3, LABELS, SamplingConfig(**sampling), generators, scorer=scorer)


class Likes(torch.nn.Module):
    """A scorer that counts a token."""

    def __init__(self, token: int) -> None:
        super().__init__()
        self.token, self.seen, self.times = token, [], 0

    def conditioner(self, conditions: dict[str, Tensor], num_samples: int) -> Tensor:
        return torch.zeros(num_samples, 1)

    def forward(self, inputs: ScaleInput, cond_BD: Tensor, tokens: Tensor) -> Tensor:
        assert inputs.num_samples == len(tokens) == len(cond_BD)
        self.seen.append(tokens)
        return (tokens == self.token).float().mean(1, keepdim=True)


# What is kept.


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_of_the_candidates_is_kept(kind: str) -> None:
    """Whatever is shown to the scorer at a scale, each sample gets the one with most tokens that it likes."""
    transformer, scorer = transformer_for(TOKENIZER, **KINDS[kind]), Likes(3)
    drawn = draw(transformer, scorer, candidates=5, guidance=1.5)
    assert len(scorer.seen) == 3, "once per scale"
    for seen, tokens in zip(scorer.seen, drawn.tokens, strict=True):
        candidates = seen.unflatten(0, (3, 5))
        scores = (candidates == 3).sum(2)
        assert len(candidates.flatten(0, 1).unique(dim=0)) > 1, "candidates differ"
        for i in range(3):
            assert torch.equal(tokens[i], candidates[i, scores[i].argmax()])


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_candidate_is_drawn_as_without_a_scorer(kind: str) -> None:
    transformer = transformer_for(TOKENIZER, **KINDS[kind])
    pairs = zip(draw(transformer, Likes(3)).tokens, draw(transformer, None).tokens, strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_the_first_candidate_is_what_is_drawn_without_others() -> None:
    transformer, scorer = transformer_for(TOKENIZER), Likes(3)
    draw(transformer, scorer, candidates=4)
    assert torch.equal(scorer.seen[0].unflatten(0, (3, 4))[:, 0], draw(transformer, None).tokens[0])


@pytest.mark.parametrize("kind", KINDS)
def test_the_transformer_runs_once_per_scale(kind: str) -> None:
    transformer, calls = transformer_for(TOKENIZER, **KINDS[kind]), []
    transformer.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    draw(transformer, scorer_for(TOKENIZER, transformer), candidates=6)
    assert len(calls) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_candidates_are_scored_in_pieces_if_they_are_many(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    transformer = transformer_for(TOKENIZER, **KINDS[kind])
    scorer = scorer_for(TOKENIZER, transformer)
    whole = draw(transformer, scorer, candidates=7)
    monkeypatch.setattr("nextscale.sampling.candidates.SCORED_AT_ONCE", 30)
    pieces = draw(transformer, scorer, candidates=7)
    assert all(torch.equal(one, other) for one, other in zip(whole.tokens, pieces.tokens, strict=True))


def test_following_tokens_draws_each_scale_after_them() -> None:
    """The logits are those of teacher forcing."""
    transformer, logits = transformer_for(TOKENIZER), []
    own, transformer.token_space = transformer.token_space, Codes(CODES)
    transformer.token_space.draw = lambda part, *rest: (logits.append(part), own.draw(part, *rest))[1]  # type: ignore[method-assign]
    pyramid, sampling = random_pyramid(TOKENIZER, 3, 0), SamplingConfig(guidance=0)
    drawn = generate(TOKENIZER, transformer, 3, LABELS, sampling, torch.Generator().manual_seed(0), follow=pyramid)
    forced = transformer(TOKENIZER.teacher_forcing(pyramid), transformer.conditioner(LABELS, 3))
    assert isinstance(forced, Tensor) and torch.allclose(torch.cat(logits, 1), forced, atol=1e-4)
    assert not torch.equal(drawn.pyramid(pyramid.schedule).tokens, pyramid.tokens)


# What it learns.


@pytest.mark.parametrize("space", [Codes(2), Bits(1)])
def test_tokens_that_must_agree(space: TokenSpace) -> None:
    """Real pairs are equal, drawn ones by chance. With candidates, nearly all that are kept are equal."""
    torch.manual_seed(0)
    inputs = ScaleInput(64, None, Schedule.of([(2,)]).coordinates(0), torch.zeros(2, dtype=torch.long))
    transformer = transformer_for(TOKENIZER)
    transformer.token_space, transformer.schedule = space, Schedule.of([(2,)])
    scorer = Scorer(ScorerConfig(depth=1, width=16, heads=1), transformer, 1)
    optimizer, shape = torch.optim.Adam(scorer.parameters(), 1e-2), (64, 2, *space.token_shape)
    generator = torch.Generator().manual_seed(0)
    for _ in range(80):
        real = torch.randint(2, shape, generator=generator)[:, :1].expand(shape)
        tokens = torch.cat([real, torch.randint(2, shape, generator=generator)])
        logits = scorer(inputs.repeated(2), scorer.conditioner({}, 128), tokens)[:, 0]
        loss = F.binary_cross_entropy_with_logits(logits, (torch.arange(128) < 64).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        drawn = torch.randint(2, (64, 8, *shape[1:]), generator=generator)
        kept = Chooser(scorer.eval(), {}, 64, 8)._best(inputs, drawn)
    assert float((kept[:, 0] == kept[:, 1]).float().mean()) > 0.95


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99), masked=st.booleans())
def test_padding_is_not_scored(seed: int, masked: bool) -> None:
    transformer = transformer_for(TOKENIZER, positions="rotary")
    scorer, generator = scorer_for(TOKENIZER, transformer), torch.Generator().manual_seed(seed)
    assert scorer is not None
    places, ids = torch.rand(6, 2, generator=generator), torch.tensor([0, 0, 0, 1, 1, 1])
    real = torch.tensor([True, True, masked, True, not masked, False])
    features, tokens = torch.randn(2, 6, 4, generator=generator), torch.randint(CODES, (2, 6), generator=generator)
    with torch.no_grad():
        cond_BD = scorer.conditioner({}, 2)
        padded = scorer(ScaleInput(2, features, places, ids, real.expand(2, -1)), cond_BD, tokens)
        bare = scorer(ScaleInput(2, features[:, real], places[real], ids[real]), cond_BD, tokens[:, real])
    assert torch.allclose(padded, bare, atol=1e-5)


def test_what_is_drawn_for_training_depends_on_its_seed_alone() -> None:
    transformer = transformer_for(TOKENIZER)
    scorer = scorer_for(TOKENIZER, transformer)
    assert scorer is not None
    objective = ScorerObjective(scorer, transformer, TOKENIZER, ScorerStageConfig(), SamplingConfig(candidates=3))
    pyramid = random_pyramid(TOKENIZER, 3, 0)
    every, _ = objective.drawn(pyramid, Batch(pyramid, LABELS), [5, 6, 7])
    one = random_pyramid(TOKENIZER, 3, 0)
    one.tokens = one.tokens[1:2]
    alone, _ = objective.drawn(one, Batch(one, {"label": LABELS["label"][1:2]}), [6])
    assert torch.equal(every[1:2], alone) and not torch.equal(every, pyramid.tokens)
    scalars = objective.validate(scorer, Batch(pyramid, LABELS))
    assert {"loss", "accuracy", *(f"{name}/scale{k}" for name in ("loss", "accuracy") for k in range(3))} == {*scalars}
    assert float(scalars["accuracy"]) == pytest.approx(sum(float(scalars[f"accuracy/scale{k}"]) for k in range(3)) / 3)


def test_draws_from_logits_that_are_not_finite_are_no_training_data() -> None:
    transformer = transformer_for(TOKENIZER)
    scorer = scorer_for(TOKENIZER, transformer)
    assert scorer is not None
    objective = ScorerObjective(scorer, transformer, TOKENIZER, ScorerStageConfig(), SamplingConfig())
    pyramid = random_pyramid(TOKENIZER, 3, 0)
    batch, draws = Batch(pyramid, LABELS), Draws(0, 0, slice(0, 3), 3)
    loss = objective(batch, 0, draws)[0]
    loss.backward()
    assert loss.isfinite()
    with torch.no_grad():
        transformer.head.bias[0] = torch.nan
    assert objective(batch, 0, draws)[0].isnan()
    with pytest.raises(NextscaleError, match="logits are not finite"):
        objective.validate(scorer, batch)


# What is refused.


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"smooth": True}, "smooth sampling mixes codes: set smooth=false, or sampling.candidates=1"),
        ({"steps": 2}, "draws a scale at once, as its scorer has learned it: set steps=1, or sampling.candidates=1"),
        ({"reveal": "groups"}, "set reveal=random"),
    ],
)
def test_settings_that_do_not_go_together(sampling: dict[str, Any], message: str) -> None:
    transformer = transformer_for(TOKENIZER, in_scale_steps=True)
    with pytest.raises(ConfigError, match=f"sampling.candidates=2 .*{message}"):
        draw(transformer, scorer_for(TOKENIZER, transformer), candidates=2, **sampling)


def test_candidates_need_a_scorer() -> None:
    with pytest.raises(ConfigError, match="candidates=2 needs a scorer: train one on the finished run with --stage"):
        draw(transformer_for(TOKENIZER), None, candidates=2)


class OwnStem(Stem):
    def forward(self, inputs: ScaleInput, revealed: tuple[Tensor, Tensor] | None) -> tuple[Tensor, None]:
        raise NotImplementedError

    def logits(self, hidden_BLD: Tensor, memory: Any) -> Tensor:
        raise NotImplementedError


def test_models_that_cannot_have_one() -> None:
    config = ScorerConfig(depth=1, width=16, heads=2)
    with pytest.raises(ConfigError, match="OwnStem gives them a meaning of its own: this modality cannot have one"):
        new_scorer(config, TOKENIZER, transformer_for(TOKENIZER, stem=OwnStem()))
    with pytest.raises(ConfigError, match="scorer: width 15 must be an even multiple of heads 2"):
        new_scorer(config.model_copy(update={"width": 15}), TOKENIZER, transformer_for(TOKENIZER))
    with pytest.raises(ConfigError, match="here every scale is a single token"):
        new_scorer(config, TOKENIZER, transformer_for(TOKENIZER, schedule=Schedule.of([(1, 1), (1, 1)])))
    adaptive = grid_tokenizer((6, 6))
    adaptive.adaptive = True
    with pytest.raises(ConfigError, match="a scorer needs the same scales in all samples, and those of GridTokenizer"):
        new_scorer(config, adaptive, transformer_for(TOKENIZER))
