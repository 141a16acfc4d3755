"""``training.transformer.corrupt``: after wrong tokens, finer ones are chosen anew, and the loss asks for those."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextscale.config.run import load_config
from nextscale.config.sections import TransformerStageConfig
from nextscale.data import Batch
from nextscale.errors import ConfigError, NextscaleError
from nextscale.grid.resample import resample
from nextscale.randomness import Draws
from nextscale.testing.tiny import grid_tokenizer, transformer_for
from nextscale.training import run as training_run
from nextscale.training.check import check_run
from nextscale.training.transformer_stage import TransformerObjective, mistakes

Settings = Callable[..., list[str]]
SIDES = (6, 6)


def samples(number: int, seed: int) -> torch.Tensor:
    return torch.rand(number, 2, *SIDES, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def drawn(seed: int, number: int) -> Draws:
    return Draws(seed, 0, slice(0, number), number)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), share=st.sampled_from([0.0, 0.3, 1.0]))
def test_tokens_are_those_nearest_to_what_the_absorbed_ones_left_over(seed: int, share: float) -> None:
    tokenizer, images = grid_tokenizer(SIDES), samples(3, seed)
    with torch.no_grad():
        chosen, absorbed = tokenizer.encode_after(images, mistakes(share, tokenizer, drawn(seed, 3)))
        states, features = tokenizer.states(absorbed), tokenizer.features(images)
        for k, scale in enumerate(chosen.schedule.scales):
            left = resample(features - states[k].f_hat, scale.shape, "area").flatten(2).mT
            distances = torch.cdist(left, tokenizer.codebook)
            found = distances.gather(-1, chosen.scale(k)[..., None])[..., 0]
            torch.testing.assert_close(found, distances.amin(-1), rtol=1e-3, atol=1e-4)
    same = bool((chosen.tokens == absorbed.tokens).all())
    assert same if share == 0 else not same
    if share == 0:
        assert torch.equal(chosen.tokens, tokenizer.encode(images).tokens)


def test_later_tokens_make_up_for_a_wrong_one() -> None:
    """With a codebook that can describe anything, the sum comes back to where it would have been."""
    tokenizer, images = grid_tokenizer(SIDES), samples(8, 1)
    last = len(tokenizer.schedule()) - 1
    with torch.no_grad():
        features = tokenizer.features(images)
        tokenizer.codebook.data.copy_(features.movedim(1, -1).flatten(0, -2)[torch.arange(len(tokenizer.codebook))])

        def wrong(tokens: torch.Tensor, k: int) -> torch.Tensor:
            return (tokens + 1) % len(tokenizer.codebook) if k == 0 else tokens

        _, corrected = tokenizer.encode_after(images, wrong)
        stubborn = tokenizer.encode(images)
        stubborn.tokens[:, :1] = corrected.tokens[:, :1]
        errors = [
            float((tokenizer.states(pyramid)[last + 1].f_hat - features).square().mean())
            for pyramid in (corrected, stubborn)
        ]
    assert errors[0] < errors[1]


def test_the_loss_asks_for_the_tokens_chosen_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs come from the absorbed tokens, targets are the chosen ones."""
    tokenizer, images = grid_tokenizer(SIDES), samples(4, 2)
    transformer = transformer_for(tokenizer)
    objective = TransformerObjective(transformer, tokenizer, TransformerStageConfig(corrupt=0.4))
    seen: list[torch.Tensor] = []
    forcing, loss = tokenizer.teacher_forcing, transformer.token_space.loss

    def watched_inputs(pyramid: Any, conditions: Any = None) -> Any:
        seen.append(pyramid.tokens)
        return forcing(pyramid, conditions)

    def watched_loss(logits: torch.Tensor, tokens: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
        seen.append(tokens)
        return loss(logits, tokens, smoothing)

    monkeypatch.setattr(tokenizer, "teacher_forcing", watched_inputs)
    monkeypatch.setattr(transformer.token_space, "loss", watched_loss)
    objective(Batch(images), 0, drawn(5, 4))
    chosen, absorbed = tokenizer.encode_after(images, mistakes(0.4, tokenizer, drawn(5, 4)))
    assert torch.equal(seen[0], absorbed.tokens) and torch.equal(seen[1], chosen.tokens)
    assert not torch.equal(seen[0], seen[1])


def test_a_refiner_sees_the_absorbed_tokens() -> None:
    """As in sampling, where the tokens before one are those that were drawn, right or wrong. The loss asks for the
    tokens chosen anew."""
    tokenizer, images = grid_tokenizer(SIDES), samples(4, 2)
    transformer = transformer_for(tokenizer, (), refiner={"depth": 1, "width": 8, "heads": 1})
    objective = TransformerObjective(transformer, tokenizer, TransformerStageConfig(corrupt=0.4))
    with torch.no_grad():
        loss = objective(Batch(images), 0, drawn(5, 4))[0]
        chosen, absorbed = tokenizer.encode_after(images, mistakes(0.4, tokenizer, drawn(5, 4)))
        cond_BD, losses = transformer.conditioner({}, 4), []
        for context in (absorbed, chosen):
            logits = transformer(tokenizer.teacher_forcing(absorbed), cond_BD, tokens=context.tokens)
            losses.append(float(transformer.token_space.loss(logits, chosen.tokens).mean()))
    assert float(loss) == pytest.approx(losses[0], rel=1e-5) and losses[0] != pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("group_side", [None, 2])
def test_in_scale_steps_reveal_the_absorbed_tokens(group_side: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What finer scales are shown of a scale is what its state has absorbed."""
    tokenizer, images = grid_tokenizer(SIDES, group_side=group_side), samples(4, 2)
    transformer = transformer_for(tokenizer, in_scale_steps=True)
    objective = TransformerObjective(transformer, tokenizer, TransformerStageConfig(corrupt=0.4))
    seen: list[torch.Tensor] = []
    own = transformer.embed

    def watched(inputs: Any, cond_BD: torch.Tensor, revealed: Any) -> Any:
        seen.append(revealed[0])
        return own(inputs, cond_BD, revealed)

    monkeypatch.setattr(transformer, "embed", watched)
    objective(Batch(images), 0, drawn(5, 4))
    chosen, absorbed = tokenizer.encode_after(images, mistakes(0.4, tokenizer, drawn(5, 4)))
    assert torch.equal(seen[0], absorbed.tokens) and not torch.equal(seen[0], chosen.tokens)


def test_cached_tokens_are_refused_by_the_objective() -> None:
    tokenizer = grid_tokenizer(SIDES)
    objective = TransformerObjective(transformer_for(tokenizer), tokenizer, TransformerStageConfig(corrupt=0.1))
    with pytest.raises(ConfigError, match=r"set training\.transformer\.cache=false"):
        objective(Batch(tokenizer.encode(samples(2, 0))), 0, drawn(0, 2))


def test_a_run_does_without_its_cache(tiny: Settings, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    changes = {"training.transformer.corrupt": 0.3, "training.transformer.steps": 2}
    training_run.train(load_config("image", overrides=tiny(**changes)), tmp_path / "run")
    assert "corrupt chooses tokens anew for every batch: tokens are not cached" in capfd.readouterr().err
    assert not (tmp_path / "run/tokens.zarr").exists() and (tmp_path / "run/transformer/model.safetensors").exists()


def test_a_tokenizer_that_cannot(tiny: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from nextscale import plugins

    config = load_config("image", overrides=tiny(**{"training.transformer.corrupt": 0.3}))
    modality = plugins.modality("image")
    data = modality.open_data(config.data)
    monkeypatch.setattr("nextscale.training.check.Requantizes", type("Other", (), {"missing": "cannot"}))
    with pytest.raises(NextscaleError, match=r"GridTokenizer cannot: set training\.transformer\.corrupt=0"):
        check_run(config, modality, data, ["transformer"])
