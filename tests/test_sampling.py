from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nextscale.config.sections import SamplingConfig
from nextscale.errors import ConfigError, NextscaleError
from nextscale.sampling.generate import Generation, generate
from nextscale.sampling.predictor import guidance_at
from nextscale.sampling.scale import at_scale
from nextscale.testing.helpers import random_pyramid
from nextscale.testing.tiny import CODES, grid_tokenizer, transformer_for
from nextscale.tokens.space import Bits, Codes

TOKENIZER = grid_tokenizer((6, 6))
PLAIN, STEPWISE = transformer_for(TOKENIZER), transformer_for(TOKENIZER, in_scale_steps=True)
LABELS = {"label": torch.tensor([0, 1, 2])}
LENGTHS = TOKENIZER.schedule().lengths


def draw(transformer: Any = PLAIN, seed: int = 0, conditions: Any = LABELS, **named: Any) -> Generation:
    editing = {key: named.pop(key) for key in ("known", "keep") if key in named}
    config, generator = SamplingConfig(**named), torch.Generator().manual_seed(seed)
    return generate(TOKENIZER, transformer, 3, conditions, config, generator, **editing)


@contextmanager
def draws_of(transformer: Any) -> Iterator[list[tuple[Tensor, tuple[Any, ...]]]]:
    """Record the logits and settings of every draw."""
    recorded = []

    class Spy(Codes):
        def draw(self, logits: Tensor, generator: Any = None, *settings: Any) -> Tensor:
            recorded.append((logits, settings))
            return super().draw(logits, generator, *settings)

    own = transformer.token_space
    transformer.token_space = Spy(CODES)
    try:
        yield recorded
    finally:
        transformer.token_space = own


@contextmanager
def reveals_of(transformer: Any) -> Iterator[list[list[tuple[Tensor, Tensor]]]]:
    """Record what every sub-step revealed, by scale."""
    recorded = [[] for _ in LENGTHS]

    def hook(_: Any, args: tuple[Any, ...]) -> None:
        recorded[int(args[0].scale_ids[0])].append(args[3])

    handle = transformer.register_forward_pre_hook(hook)
    try:
        yield recorded
    finally:
        handle.remove()


# Settings.


def test_settings_are_taken_per_scale():
    with draws_of(PLAIN) as draws:
        draw(temperature=(1.0, 2.0, 3.0), top_k=(0, 1, 5), top_p=0.9)
    assert [settings for _, settings in draws] == [(1.0, 0, 0.9), (2.0, 1, 0.9), (3.0, 5, 0.9)]


def test_greedy_at_one_scale_only():
    tokens = [draw(seed=seed, top_k=(1, 0, 0)).tokens for seed in range(4)]
    assert all(torch.equal(each[0], tokens[0][0]) for each in tokens)
    assert any(not torch.equal(each[1], tokens[0][1]) for each in tokens)


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "steps"])
def test_as_many_values_as_scales_are_needed(name):
    with pytest.raises(ConfigError, match=rf"sampling\.{name} has 2 values; this model has 3 scales"):
        draw(STEPWISE, **{name: (1, 1)})


def test_a_scale_that_has_no_value():
    assert at_scale(0.5, 7, "top_p") == 0.5 and at_scale((1, 2), 1, "top_k") == 2
    with pytest.raises(ConfigError, match="top_k has 2 values, one per scale, but there is a scale 3"):
        at_scale((1, 2), 2, "top_k")


def test_what_a_model_cannot_do_is_refused(monkeypatch):
    with pytest.raises(ConfigError, match="in_scale_steps=true"):
        draw(steps=(1, 1, 2))
    with pytest.raises(NextscaleError, match="2 generators for 3 samples"):
        generate(TOKENIZER, PLAIN, 3, generator=[torch.Generator(), torch.Generator()])
    with pytest.raises(NextscaleError, match="label 3 is out of range"):
        draw(conditions={"label": torch.tensor([0, 3, 1])})
    monkeypatch.setattr(PLAIN, "token_space", Bits(CODES))
    with pytest.raises(ConfigError, match="mixes codes"):
        draw(smooth=True)


# Guidance.


@pytest.mark.parametrize(("schedule", "weights"), [("linear", (0.0, 1.5, 3.0)), ("constant", (3.0, 3.0, 3.0))])
def test_guidance_leads_away_from_the_null(schedule, weights):
    with draws_of(PLAIN) as draws:
        drawn = draw(guidance=3.0, guidance_schedule=schedule)
    with torch.inference_mode():
        inputs = TOKENIZER.teacher_forcing(drawn.pyramid(TOKENIZER.schedule()))
        conditional = PLAIN(inputs, PLAIN.conditioner(LABELS, 3))
        null = PLAIN(inputs, PLAIN.conditioner({}, 3))
    assert (conditional - null).abs().max() > 0.1
    for k, ((logits, _), weight) in enumerate(zip(draws, weights, strict=True)):
        span = TOKENIZER.schedule().span(k)
        expected = (1 + weight) * conditional[:, span] - weight * null[:, span]
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
        assert guidance_at(SamplingConfig(guidance=3.0, guidance_schedule=schedule), k, 3) == weight


def test_a_single_scale_is_guided_in_full():
    assert guidance_at(SamplingConfig(guidance=2.0), 0, 1) == 2.0


def test_without_conditions_there_is_nothing_to_guide():
    for one, other in zip(
        draw(conditions={}, guidance=5.0).tokens, draw(conditions={}, guidance=0.0).tokens, strict=True
    ):
        assert torch.equal(one, other)


# In-scale steps.


@given(st.integers(1, 12), st.sampled_from(["random", "confidence"]), st.integers(0, 99), st.booleans())
@settings(max_examples=40, deadline=None)
def test_sub_steps_reveal_every_token_once(steps, reveal, seed, edited):
    editing = {}
    if edited:
        known = random_pyramid(TOKENIZER, 3, seed)
        chance = torch.rand(known.tokens.shape, generator=torch.Generator().manual_seed(seed))
        editing = {"known": known, "keep": chance < 0.3}
    with reveals_of(STEPWISE) as reveals:
        drawn = draw(STEPWISE, seed, guidance=0.0, steps=steps, reveal=reveal, **editing)
    for k, length in enumerate(LENGTHS):
        number = min(steps, length)
        assert len(reveals[k]) == number
        for step, (tokens, known_BL) in enumerate(reveals[k]):
            expected = torch.tensor(length * step // number).expand(3)
            if edited:
                kept = editing["keep"][:, TOKENIZER.schedule().span(k)]
                assert known_BL[kept].all()
                expected = torch.maximum(expected, kept.sum(1))
            assert torch.equal(known_BL.sum(1), expected)
            # Revealed tokens stay as they are.
            assert torch.equal(tokens[known_BL], drawn.tokens[k][known_BL])


def test_full_autoregression_reveals_one_token_per_step():
    with reveals_of(STEPWISE) as reveals:
        draw(STEPWISE, guidance=0.0, steps=LENGTHS)
    for k, length in enumerate(LENGTHS):
        assert [int(known[0].sum()) for _, known in reveals[k]] == list(range(length))


def test_confidence_reveals_the_likeliest_first():
    with reveals_of(STEPWISE) as reveals, draws_of(STEPWISE) as draws:
        draw(STEPWISE, guidance=0.0, steps=(1, 1, 3), reveal="confidence", top_k=1)
    first_logits, revealed = draws[2][0], reveals[2][1][1]
    confidence = first_logits.log_softmax(-1).amax(-1)
    assert (revealed.sum(1) == 3).all()
    least = confidence.masked_fill(~revealed, torch.inf).amin(1)
    assert (least + 2e-3 > confidence.masked_fill(revealed, -torch.inf).amax(1)).all()


# Smooth decoding and editing.


def test_smooth_decoding_mixes_codes():
    smooth, again, sharp = draw(smooth=True), draw(smooth=True), draw()
    assert torch.equal(smooth.tokens[0], sharp.tokens[0])
    for one, other in zip(smooth.states, again.states, strict=True):
        assert torch.equal(one.f_hat, other.f_hat) and one.f_hat.isfinite().all()
    with torch.inference_mode():
        exact = TOKENIZER.update(smooth.states[0], 0, smooth.tokens[0])
        assert not torch.allclose(smooth.states[1].f_hat, exact.f_hat, atol=1e-3)
        assert TOKENIZER.decode(smooth.state).isfinite().all()


@torch.no_grad()
def test_a_mixture_of_one_code_is_that_code():
    tokens = torch.tensor([[3], [7]])
    state = TOKENIZER.initial_state(2)
    soft = TOKENIZER.update_soft(state, 0, torch.nn.functional.one_hot(tokens, CODES).float())
    torch.testing.assert_close(soft.f_hat, TOKENIZER.update(state, 0, tokens).f_hat)


@torch.no_grad()
def test_smooth_decoding_takes_known_tokens_exactly():
    known = random_pyramid(TOKENIZER, 3, 0)
    drawn = draw(smooth=True, known=known, keep=torch.ones_like(known.tokens, dtype=torch.bool))
    torch.testing.assert_close(drawn.state.f_hat, TOKENIZER.states(known)[-1].f_hat)


def test_an_edit_that_keeps_nothing_is_a_sample():
    known = random_pyramid(TOKENIZER, 3, 0)
    edited = draw(known=known, keep=torch.zeros_like(known.tokens, dtype=torch.bool))
    assert torch.equal(edited.pyramid(known.schedule).tokens, draw().pyramid(known.schedule).tokens)


def test_states_are_those_of_the_drawn_tokens():
    drawn = draw(guidance=2.0)
    assert len(drawn.states) == 4 and [tokens.shape[1] for tokens in drawn.tokens] == list(LENGTHS)
    with torch.inference_mode():
        states = TOKENIZER.states(drawn.pyramid(TOKENIZER.schedule()))
    assert all(torch.equal(a.f_hat, b.f_hat) for a, b in zip(drawn.states, states, strict=True))


def test_another_schedule_needs_computed_positions():
    other = TOKENIZER.schedule_for((8, 4))
    with pytest.raises(ConfigError, match=r"tied to the schedule 1x1 2x2 3x3; .*positions=rotary"):
        generate(TOKENIZER, PLAIN, 1, schedule=other)
    rotary = transformer_for(TOKENIZER, positions="rotary")
    drawn = generate(TOKENIZER, rotary, 2, schedule=other, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert TOKENIZER.decode(drawn.state).shape == (2, 2, 8, 4)
