"""Entropy-constrained quantization: a prior learns what tokens cost, and cheaper codes are preferred."""

from __future__ import annotations

import itertools
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from training_runs import Settings, assert_equal_weights, fit, metrics, weights
from typer.testing import CliRunner

from nextscale.errors import ConfigError
from nextscale.grid import GridTokenizer, VectorQuantizer
from nextscale.grid.objectives import TokenizerObjective
from nextscale.grid.prior import ScalePrior
from nextscale.grid.resample import resample
from nextscale.grid.segments import SegmentedTokenizer
from nextscale.storage.checkpoint_folder import check_checkpoint
from nextscale.storage.models import load_tokenizer
from nextscale.testing.helpers import randomize
from nextscale.testing.tiny import grid_tokenizer
from nextscale.training.signals import Interrupted
from nextscale.training.step import Stepper
from nextscale_cli.main import app

SEEDS = st.integers(0, 2**32)
SHAPES = st.sampled_from([(7,), (6, 5), (6, 4, 3)])


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Assignment


@given(SEEDS, st.sampled_from(["euclidean", "cosine"]), st.integers(1, 6), st.floats(0, 10))
@settings(max_examples=50, deadline=None)
def test_the_code_with_the_least_distance_and_cost_is_taken(seed: int, distance: str, used: int, price: float) -> None:
    quantizer = VectorQuantizer((used, 6), 3, distance, num_scales=2)
    quantizer.codebook.data = random(seed, 6, 3)
    vectors, costs = random(seed + 1, 20, 3), price * random(seed + 2, 20, used).square()
    ours, codes = vectors, quantizer.codebook.data[:used]
    if distance == "cosine":
        ours, codes = F.normalize(ours, dim=-1), F.normalize(codes, dim=-1)
    every = torch.cdist(ours, codes).square() + costs
    chosen = quantizer.nearest(vectors, 0, costs)
    torch.testing.assert_close(every.gather(1, chosen[:, None])[:, 0], every.amin(1), atol=1e-4, rtol=1e-4)
    assert torch.equal(quantizer.nearest(vectors, 0, torch.zeros_like(costs)), quantizer.nearest(vectors, 0))
    spread = torch.cdist(ours, codes).square().amin(1).mean()
    torch.testing.assert_close(quantizer.spread(vectors, 0), spread, atol=1e-4, rtol=1e-4)


# The prior


@pytest.mark.parametrize("grid", [(5,), (3, 4), (2, 3, 4)])
def test_at_first_all_codes_of_a_scale_cost_the_same(grid: tuple[int, ...]) -> None:
    prior = ScalePrior(len(grid), 4, 11, 3, rate=1.0)
    nats = prior(random(0, 2, 4, *grid), 1, 7)
    assert nats.shape == (2, math.prod(grid), 7)
    torch.testing.assert_close(nats, torch.full_like(nats, math.log(7)))
    other = randomize(prior, 0)(random(0, 2, 4, *grid), 1, 7)
    torch.testing.assert_close((-other).exp().sum(-1), torch.ones(2, math.prod(grid)))
    assert other.std() > 0.1


def test_prices_follow_the_distance_to_codes() -> None:
    prior = ScalePrior(2, 4, 11, 2, rate=0.5)
    prior.record(torch.tensor([2.0, 4.0]))
    torch.testing.assert_close(prior.price_K, torch.tensor([0.1, 0.2]))
    for _ in range(200):
        prior.record(torch.tensor([2.0, 4.0]))
    torch.testing.assert_close(prior.price_K, torch.tensor([1.0, 2.0]))


# In a tokenizer


@given(SEEDS, SHAPES, st.sampled_from(["residual", "features"]), st.floats(0.05, 2))
@settings(max_examples=20, deadline=None)
def test_the_prior_sees_the_state_before_each_scale(
    seed: int, shape: tuple[int, ...], target: str, price: float
) -> None:
    """Training and encoding choose the same tokens, which cost what the prior says of the states before them."""
    tokenizer = grid_tokenizer(shape, codes=(3, 7, 11), target=target, price=price)
    prior, samples = tokenizer.pyramid.prior, random(seed, 3, 2, *shape)
    assert prior is not None
    with torch.no_grad():
        pyramid, quantized = tokenizer.encode(samples), tokenizer.quantize(samples)[1]
        assert quantized.nats is not None and (quantized.pyramid.tokens == pyramid.tokens).float().mean() > 0.99
        nats, states = torch.zeros(3), tokenizer.states(quantized.pyramid)
        for k, scale in enumerate(pyramid.schedule.scales):
            costs = prior(resample(states[k].f_hat, scale.shape, "area"), k, tokenizer.pyramid.quantizer.size(k))
            nats += costs.gather(-1, quantized.pyramid.scale(k)[..., None])[..., 0].sum(1)
    torch.testing.assert_close(quantized.nats, nats, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("shape", [(7,), (6, 5), (6, 4, 3)])
def test_a_price_makes_tokens_cheaper(shape: tuple[int, ...]) -> None:
    samples = random(0, 16, 2, *shape)
    spent = []
    for price in (0.0, 0.1, 1.0, 100.0):
        tokenizer = grid_tokenizer(shape, price=price)
        with torch.no_grad():
            nats = tokenizer.quantize(samples)[1].nats
        assert nats is not None
        spent.append(float(nats.mean()))
        if price == 0:
            free = tokenizer.encode(samples).tokens
            tokenizer.pyramid.prior = None
            assert torch.equal(free, tokenizer.encode(samples).tokens)
    assert spent == sorted(spent, reverse=True) and spent[-1] < 0.7 * spent[0]


def test_dropped_scales_cost_nothing() -> None:
    tokenizer = grid_tokenizer((6, 6), price=0.1)
    samples = random(0, 3, 2, 6, 6)
    kept = [tokenizer.quantize(samples, torch.full((3,), number))[1].nats for number in (1, 2, 3)]
    mixed = tokenizer.quantize(samples, torch.tensor([1, 2, 3]))[1].nats
    whole = tokenizer.quantize(samples)[1].nats
    assert mixed is not None and whole is not None
    torch.testing.assert_close(mixed, torch.stack([part[i] for i, part in enumerate(kept) if part is not None]))
    torch.testing.assert_close(kept[2], whole)


def test_what_tokens_cost_trains_the_prior_alone() -> None:
    tokenizer = grid_tokenizer((6, 6), price=0.1).train()
    nats = tokenizer.quantize(random(0, 3, 2, 6, 6))[1].nats
    assert nats is not None
    nats.mean().backward()
    for name, parameter in tokenizer.named_parameters():
        assert (parameter.grad is not None) == name.startswith("pyramid.prior."), name


def test_segments_cost_what_each_costs() -> None:
    plain = grid_tokenizer((4, 6, 6), price=0.1, sides=(1, 3))
    segments = SegmentedTokenizer(
        plain.encoder, plain.decoder, plain.pyramid, (1, 3), (4, 6, 6), (2, 2, 2), None, (1, 1), "none"
    )
    samples = random(0, 2, 2, 4, 6, 6)
    whole = segments.quantize(samples)[1]
    parts = [segments.quantize(samples[:, :, first : first + 2])[1] for first in (0, 2)]
    assert whole.nats is not None and parts[0].nats is not None and parts[1].nats is not None
    torch.testing.assert_close(whole.nats, parts[0].nats + parts[1].nats)
    assert whole.spread_K is not None and whole.spread_K.shape == (2,)


# Runs


def test_without_a_rate_there_is_no_prior(tiny_run: Path) -> None:
    tokenizer = load_tokenizer(tiny_run)
    assert isinstance(tokenizer, GridTokenizer) and tokenizer.pyramid.prior is None
    assert not any("prior" in name for name in weights(tiny_run, "tokenizer"))
    assert not any("rate" in line for kind in ("train", "validation") for line in metrics(tiny_run, "tokenizer", kind))


def test_a_rate_makes_learned_tokens_cheaper(tiny: Settings, tmp_path: Path) -> None:
    spent = {}
    for rate in (1e-6, 1.0):
        seldom = {f"training.tokenizer.{name}_every": 40 for name in ("validate", "checkpoint", "log")}
        begin = {"tokenizer.quantizer.rate": rate, "tokenizer.quantizer.rate_start": 10}
        changes = {**begin, "training.tokenizer.steps": 40, **seldom}
        run = fit(tiny, tmp_path / str(rate), stage="tokenizer", **changes)
        spent[rate] = [line["rate"] for line in metrics(run, "tokenizer", "validation")]
    assert spent[1.0][-1] < 0.8 * spent[1e-6][-1], "a price saves nats"
    assert spent[1e-6][-1] < 30 * math.log(32), "the prior learns"


def test_runs_go_on_exactly(tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens that are drawn one by one cost what they cost scale by scale."""
    changes = {"rate": 0.5, "rate_start": 2, "scale_dropout": 0.5}
    rate: dict[str, Any] = {f"tokenizer.quantizer.{name}": value for name, value in changes.items()}
    rate |= {"training.tokenizer.steps": 24, "training.tokenizer.validate_every": 12}
    whole, half = fit(tiny, tmp_path / "whole", stage="tokenizer", **rate), tmp_path / "half"
    real = Stepper.train_step

    def interrupted(self: Stepper, batches: list) -> dict[str, float]:
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, batches)

    monkeypatch.setattr(Stepper, "train_step", interrupted)
    with pytest.raises(Interrupted):
        fit(tiny, half, **rate, **{"tokenizer.order": "raster"})
    monkeypatch.setattr(Stepper, "train_step", real)
    fit(tiny, half, resume="auto", **rate, **{"tokenizer.order": "raster"})
    assert_equal_weights(whole, half, ("tokenizer",))
    for one, two in zip(*(metrics(run, "tokenizer", "validation") for run in (whole, half)), strict=True):
        assert one["rate"] == pytest.approx(two["rate"], rel=1e-5)
    stored = weights(half, "tokenizer")
    assert (stored["pyramid.prior.price_K"] > 0).all() and stored["pyramid.prior.logits.weight"].any()
    result = CliRunner().invoke(app, ["sample", str(half), "-n", "2", "--out", str(tmp_path / "samples")])
    assert result.exit_code == 0, result.output


def test_a_negative_rate_is_refused(tiny: Settings, tmp_path: Path) -> None:
    arguments = [*tiny(), "tokenizer.quantizer.rate=-1"]
    result = CliRunner().invoke(app, ["train", "-m", "image", "--out", str(tmp_path / "run"), *arguments])
    assert result.exit_code == 2 and "tokenizer.quantizer.rate" in result.stderr and not (tmp_path / "run").exists()


def test_weights_from_before_the_price_are_not_kept(
    tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if theirs is the lowest loss: they had less to pay for."""
    rising = itertools.count(1.0)
    monkeypatch.setattr(TokenizerObjective, "validate", lambda *_: {"loss": torch.tensor(next(rising))})
    changes = {"tokenizer.quantizer.rate": 0.5, "tokenizer.quantizer.rate_start": 4}
    often = {"training.tokenizer.steps": 28, "training.tokenizer.validate_every": 4}
    run = fit(tiny, tmp_path / "run", stage="tokenizer", **changes, **often)
    assert load_file(run / "tokenizer/model.safetensors")["pyramid.prior.price_K"].min() > 0
    found = check_checkpoint(run / "checkpoints/tokenizer/best")["state"]
    assert found["step"] == 24, "the first one with the whole loss"


def test_a_rate_that_would_begin_too_late_is_refused(tiny: Settings, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training.tokenizer.steps=5 is too few.* from step 520 on"):
        fit(
            tiny,
            tmp_path / "run",
            stage="tokenizer",
            **{"tokenizer.quantizer.rate": 0.2, "training.tokenizer.steps": 5},
        )
