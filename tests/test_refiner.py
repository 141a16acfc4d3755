"""The refiner beyond the contract: what it learns, how it is added to a trained model, and what it refuses."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from typer.testing import CliRunner

import nextscale
from nextscale.config.sections import SamplingConfig, TransformerConfig
from nextscale.errors import ConfigError, NextscaleError
from nextscale.sampling.generate import generate
from nextscale.sampling.precision import prepare
from nextscale.storage.models import new_transformer
from nextscale.testing.helpers import random_pyramid
from nextscale.testing.tiny import CODES, LABEL, grid_tokenizer, transformer_for
from nextscale.tokens.inputs import ScaleInput
from nextscale.tokens.pyramid import Schedule, TokenPyramid
from nextscale.tokens.space import Codes
from nextscale.tokens.stem import Stem
from nextscale.training.describe import transformer_flops
from nextscale.transformer import ScaleTransformer
from nextscale_cli.main import app

TOKENIZER = grid_tokenizer((6, 6))  # scales of 1, 4 and 9 tokens
REFINER = {"depth": 1, "width": 8, "heads": 1}
LABELS = {"label": torch.tensor([0, 1, 2])}
SMALL: dict[str, Any] = {"depth": 2, "width": 16, "heads": 2, "drop_path": 0.0}


def refined(**refiner: Any) -> ScaleTransformer:
    return transformer_for(TOKENIZER, refiner=REFINER | refiner)


def packed(model: ScaleTransformer, pyramid: TokenPyramid, tokens: Tensor | None = None) -> Tensor:
    tokens = pyramid.tokens if tokens is None else tokens
    cond_BD = model.conditioner(LABELS, len(pyramid))
    logits = model(TOKENIZER.teacher_forcing(pyramid), cond_BD, tokens=tokens)
    assert isinstance(logits, Tensor)
    return logits


def operations(model: ScaleTransformer) -> float:
    return transformer_flops(model, lambda: TOKENIZER, None)  # type: ignore[arg-type]


def moved(model: ScaleTransformer, seed: int = 0) -> list[bool]:
    """For each scale, whether its logits depend on its own tokens."""
    pyramid = random_pyramid(TOKENIZER, 3, seed)
    others = (pyramid.tokens + 1) % CODES
    change = (packed(model, pyramid, others) - packed(model, pyramid)).abs().amax((0, 2))
    return [bool(part.max() > 0) for part in change.split(pyramid.schedule.lengths)]


# What it is for.


@pytest.mark.parametrize("depth", [0, 1])
def test_tokens_that_must_agree(depth: int) -> None:
    """Two tokens that are always equal, each 0 or 1 with even chances: log 2 together, and 2 log 2 if drawn apart."""
    inputs = ScaleInput(64, None, Schedule.of([(2,)]).coordinates(0), torch.zeros(2, dtype=torch.long))
    tokens = torch.arange(64)[:, None].expand(-1, 2) % 2

    def loss(refiner: dict[str, int] | None) -> float:
        torch.manual_seed(0)
        config = TransformerConfig.model_validate(SMALL | {"depth": 1, "refiner": refiner})
        model = ScaleTransformer(config, Codes(2), 1, Schedule.of([(2,)]))
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(60):
            value = model.token_space.loss(model(inputs, model.conditioner({}, 64), tokens=tokens), tokens)  # type: ignore[arg-type]
            optimizer.zero_grad()
            value.mean().backward()
            optimizer.step()
        return float(value.detach().sum(1).mean())  # pyright: ignore[reportPossiblyUnboundVariable]

    log2 = float(torch.tensor(2.0).log())
    assert loss(None) == pytest.approx(2 * log2, abs=0.05)
    assert loss(REFINER | {"depth": depth}) == pytest.approx(log2, abs=0.05)


# Added to a model.


@pytest.mark.parametrize("refiner", [REFINER, {"depth": 0}, {"depth": 2, "scales": [1]}])
@pytest.mark.parametrize("head", ["linear", "codebook"])
def test_a_new_refiner_changes_nothing(refiner: dict[str, Any], head: str) -> None:
    models = []
    for setting in (None, refiner):
        torch.manual_seed(0)
        config = TransformerConfig.model_validate(SMALL | {"head": head, "refiner": setting})
        models.append(new_transformer(config, TOKENIZER, (LABEL,)))
    plain, new = models
    assert all(torch.equal(value, new.state_dict()[name]) for name, value in plain.state_dict().items())
    pyramid = random_pyramid(TOKENIZER, 3, 0)
    assert torch.equal(packed(plain, pyramid), packed(new, pyramid))


def test_a_trained_model_gets_a_refiner(tiny_run: Path, tmp_path: Path) -> None:
    """From the command line: with steps that change nothing, the losses are those of the plain model."""
    frozen = ["training.transformer.steps=1", "training.transformer.warmup=1", "training.transformer.lr=1e-30"]
    losses = []
    for name, added in (("plain", []), ("refined", ["transformer.refiner.depth=1"])):
        arguments = ["train", "--init-from", str(tiny_run), "--out", str(tmp_path / name), *frozen, *added]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        assert ("newly initialised: refiner." in result.stderr) == bool(added)
        model = nextscale.load(tmp_path / name, "cpu")
        pyramid = model.tokenizer.encode(torch.zeros(2, 1, 8, 8))
        inputs, cond_BD = model.tokenizer.teacher_forcing(pyramid), model.transformer.conditioner({}, 2)
        with torch.no_grad():
            losses.append(model.transformer(inputs, cond_BD, tokens=pyramid.tokens))
    assert torch.allclose(losses[0], losses[1], atol=1e-6)
    result = CliRunner().invoke(app, ["sample", str(tmp_path / "refined"), "-n", "2", "--out", str(tmp_path / "drawn")])
    assert result.exit_code == 0 and len(list((tmp_path / "drawn/single").iterdir())) == 2, result.output
    back = ["train", "--init-from", str(tmp_path / "refined"), "--out", str(tmp_path / "back"), *frozen]
    result = CliRunner().invoke(app, [*back, "transformer.refiner=null"])
    assert result.exit_code == 2 and "refiner.before.weight is 32 x 32 there and missing" in result.stderr
    assert not (tmp_path / "back").exists()


def test_the_dry_run_counts_it(tiny: Callable[..., list[str]]) -> None:
    result = CliRunner().invoke(app, ["train", "--dry-run", *tiny(), "transformer.refiner.depth=0"])
    plain = CliRunner().invoke(app, ["train", "--dry-run", *tiny()])
    counts = [re.search(r"transformer.parameters +([0-9,]+)", each.stdout) for each in (result, plain)]
    more, fewer = (int(found[1].replace(",", "")) for found in counts if found)
    width, codes = 32, 32
    assert more - fewer == 2 * (width * width + width) + codes * width + width


def test_operations_of_a_sample() -> None:
    """Two products with matrices of 16 x 8 weights for every refined token; attention over the pairs in a scale."""
    plain, most, few = (operations(model) for model in (transformer_for(TOKENIZER), refined(), refined(scales=[1])))
    block = 4 * 8 * 8 + 2 * 4 * 8 * 8
    for count, lengths in ((most, (1, 4, 9)), (few, (4,))):
        pairs = sum(n * (n + 1) // 2 for n in lengths)
        assert count - plain == 2 * sum(lengths) * (2 * 16 * 8 + block) + 4 * 8 * pairs


# Which scales.


@pytest.mark.parametrize(
    ("scales", "expected"),
    [
        (None, [False, True, True]),  # the first scale has one token, with none before it
        (4, [False, True, False]),
        (9, [False, True, True]),
        ([2], [False, False, True]),
        (["scale1", 0], [False, True, False]),
    ],
)
def test_only_some_scales(scales: Any, expected: list[bool]) -> None:
    assert moved(refined(scales=scales)) == expected


@pytest.mark.parametrize("scales", [4, [1], ["scale1"]])
def test_the_other_scales_are_drawn_at_once(scales: Any) -> None:
    model, calls = refined(scales=scales), []
    own = model.token_space.draw
    model.token_space = Codes(CODES)
    model.token_space.draw = lambda logits, *rest: (calls.append(logits.shape[1]), own(logits, *rest))[1]  # type: ignore[method-assign]
    generate(TOKENIZER, model, 3, LABELS, SamplingConfig(), torch.Generator().manual_seed(0))
    assert calls == [1, 1, 1, 1, 1, 9]


def test_a_limit_where_samples_differ_in_length() -> None:
    model, mask = refined(scales=4), torch.tensor([[True, True], [True, False]])
    inputs = ScaleInput(2, None, torch.zeros(2, 2), torch.zeros(2, dtype=torch.long), mask)
    with pytest.raises(ConfigError, match=r"transformer\.refiner\.scales=4 counts .* list the scales instead"):
        model.refiner.refines(inputs)  # type: ignore[union-attr]


# What it sees.


@settings(max_examples=25, deadline=None)
@given(mask=st.lists(st.booleans(), min_size=6, max_size=6).filter(any), seed=st.integers(0, 99))
def test_padding_anywhere_is_passed_over(mask: list[bool], seed: int) -> None:
    """Real tokens get the logits that they have without the padding between them."""
    model = refined(depth=2)
    generator = torch.Generator().manual_seed(seed)
    hidden, tokens = torch.randn(1, 6, 16, generator=generator), torch.randint(CODES, (1, 6), generator=generator)
    places, ids = torch.rand(6, 2, generator=generator), torch.tensor([0, 0, 0, 1, 1, 1])
    real = torch.tensor(mask)
    assert model.refiner is not None
    with torch.no_grad():
        padded = model.refiner(hidden, ScaleInput(1, None, places, ids, real[None]), tokens)
        bare = model.refiner(hidden[:, real], ScaleInput(1, None, places[real], ids[real]), tokens[:, real])
    assert torch.allclose(padded[:, real], bare, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99), share=st.floats(0, 1), depth=st.integers(0, 2))
def test_kept_tokens_are_context(seed: int, share: float, depth: int) -> None:
    """In an edit, every token is drawn from its distribution given the result: kept and drawn tokens alike."""
    model, logits = refined(depth=depth), []
    own = model.token_space.draw
    model.token_space = Codes(CODES)
    model.token_space.draw = lambda part, *rest: (logits.append(part), own(part, *rest))[1]  # type: ignore[method-assign]
    known, generator = random_pyramid(TOKENIZER, 3, seed), torch.Generator().manual_seed(seed)
    keep = torch.rand(known.tokens.shape, generator=generator) < share
    drawn = generate(TOKENIZER, model, 3, LABELS, SamplingConfig(guidance=0), generator, known=known, keep=keep)
    with torch.no_grad():
        forced = packed(model, drawn.pyramid(known.schedule))
    assert torch.allclose(torch.cat(logits, 1), forced, atol=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision(precision: str) -> None:
    tokenizer, model = grid_tokenizer((6, 6)), refined()
    prepare(tokenizer, model, precision)
    drawn = [generate(tokenizer, model, 3, LABELS, None, torch.Generator().manual_seed(0)) for _ in range(2)]
    assert all(torch.equal(one, two) for one, two in zip(drawn[0].tokens, drawn[1].tokens, strict=True))


# What it refuses.


class OwnStem(Stem):
    def forward(self, inputs: ScaleInput, revealed: tuple[Tensor, Tensor] | None) -> tuple[Tensor, None]:
        raise NotImplementedError

    def logits(self, hidden_BLD: Tensor, memory: Any) -> Tensor:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("settings", "stem", "message"),
    [
        ({"in_scale_steps": True}, None, "set transformer.in_scale_steps=false or transformer.refiner=null"),
        ({}, OwnStem(), "OwnStem computes logits itself: set transformer.refiner=null"),
        ({"refiner": {"width": 9, "heads": 1}}, None, "width 9 must be an even multiple of heads 1"),
        ({"refiner": {"scales": [3]}}, None, "transformer.refiner.scales: no scale 3; scales are 0 to 2"),
        ({"refiner": {"scales": ["scale7"]}}, None, "transformer.refiner.scales: unknown scale 'scale7'"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], stem: Stem | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        transformer_for(TOKENIZER, stem=stem, **({"refiner": REFINER} | settings))


def test_smooth_sampling() -> None:
    with pytest.raises(ConfigError, match=r"refiner looks at the tokens drawn before: set smooth=false"):
        generate(TOKENIZER, refined(), 3, LABELS, SamplingConfig(smooth=True))


def test_a_forgotten_argument() -> None:
    inputs = replace(TOKENIZER.teacher_forcing(random_pyramid(TOKENIZER, 3, 0)))
    with pytest.raises(NextscaleError, match="pass the tokens"):
        refined()(inputs, refined().conditioner(LABELS, 3))
