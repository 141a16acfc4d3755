"""In-scale steps of a grid from the command line: added to a trained run, drawn, edited, measured, and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import nextscale
from nextscale.storage.models import load_tokenizer, load_transformer
from nextscale.tokens.inputs import ScaleInput
from nextscale_cli.main import app

GROUPS = ["tokenizer.group_side=2", "transformer.in_scale_steps=true", "sampling.reveal=groups"]
CODES = [*GROUPS, "transformer.known_tokens=codes"]
TWO_STEPS = [f"training.transformer.{key}=2" for key in ("steps", "validate_every")]


def invoke(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def grouped(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that started from the tokenizer and the transformer of a next-scale run."""
    folder = tmp_path_factory.mktemp("turns") / "run"
    result = invoke("train", "--init-from", tiny_run, "--out", folder, *CODES, *TWO_STEPS)
    assert result.exit_code == 0, result.output
    assert "newly initialised: known, stem.codes" in result.output
    return folder


def test_tokens_are_cached_and_the_likelihood_is_exact(grouped: Path) -> None:
    assert (grouped / "tokens.zarr/train").is_dir()
    lines = [json.loads(line) for line in (grouped / "metrics.jsonl").read_text().splitlines()]
    (last,) = [line for line in lines if line["kind"] == "validation"]
    assert "nats_per_sample" in last and "nats_per_sample_bound" not in last
    assert last["nats_per_sample"] == pytest.approx(last["loss"] * 30, rel=1e-4)


def test_it_samples_edits_and_is_measured(grouped: Path, tmp_path: Path) -> None:
    for number, settings in enumerate([[], ["group_steps=1,1,2,4"], ["reveal=random"]]):
        drawn = invoke("sample", grouped, "-n", "2", "--out", tmp_path / str(number), *settings)
        assert drawn.exit_code == 0, drawn.output
    picture = tmp_path / "0/single/000000.png"
    edited = invoke("edit", grouped, "--image", picture, "--box", "0,0,4,8", "--out", tmp_path / "edited")
    assert edited.exit_code == 0, edited.output
    measured = invoke("eval", grouped, "--samples", "20", "--guidance", "0")
    assert measured.exit_code == 0, measured.output
    assert json.loads((grouped / "eval.json").read_text())["validation"]["nats_per_sample"] > 0


def test_before_it_learns_it_draws_as_the_run_it_started_from(tiny_run: Path, grouped: Path) -> None:
    """With nothing known, the logits are those of the next-scale model with the same weights."""
    before, model = nextscale.load(tiny_run, "cpu"), nextscale.load(grouped, "cpu")
    weights = before.transformer.state_dict()
    model.transformer.load_state_dict({**model.transformer.state_dict(), **weights})
    pyramid = model.tokenizer.encode(torch.rand(3, 1, 8, 8))
    inputs: ScaleInput = model.tokenizer.teacher_forcing(pyramid)
    nothing = pyramid.tokens, torch.zeros_like(pyramid.tokens, dtype=torch.bool)
    with torch.no_grad():
        cond_BD = before.transformer.conditioner({}, 3)
        logits = [before.transformer(inputs, cond_BD), model.transformer(inputs, cond_BD, revealed=nothing)]
    assert torch.equal(*logits)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (CODES[1:], "forms no groups: set sampling.reveal=random"),
        (GROUPS[:1], "which only in-scale steps can learn: set transformer.in_scale_steps=true"),
        ([*GROUPS[:2], CODES[-1]], "which only reveal=groups draws: set sampling.reveal=groups"),
        ([*GROUPS, "tokenizer.group_side=[1,2]"], "tokenizer.group_side has 2 numbers for 4 scales"),
        ([*GROUPS, "tokenizer.group_side=0"], "tokenizer.group_side"),
        ([*GROUPS, "tokenizer.order=raster"], "use order=scales, or group_side=null"),
        ([*CODES, "sampling.group_steps=[1,2]"], "sampling.group_steps has 2 values; this model has 4 scales"),
        ([*GROUPS, "transformer.refiner.depth=1"], "set transformer.in_scale_steps=false or transformer.refiner=null"),
        (["transformer.known_tokens=codes"], "needs transformer.in_scale_steps=true"),
        (["training.transformer.scale_weights=side"], "scale_weights"),
    ],
)
def test_settings_that_do_not_fit(settings: list[str], told: str, tiny_run: Path, tmp_path: Path) -> None:
    result = invoke("train", "--init-from", tiny_run, "--out", tmp_path / "run", *settings, *TWO_STEPS)
    assert result.exit_code != 0 and "Traceback" not in result.output
    assert told in " ".join(result.output.split())
    assert not (tmp_path / "run").exists()


def test_an_embedding_needs_a_transformer_of_its_own(tiny_run: Path, tmp_path: Path) -> None:
    result = invoke("train", "--init-from", tiny_run, "--out", tmp_path / "run", *GROUPS, *TWO_STEPS)
    assert result.exit_code != 0 and "transformer.known_tokens=codes may be added" in " ".join(result.output.split())


def test_known_tokens_follow_a_tokenizer_that_is_trained_on(grouped: Path, tmp_path: Path) -> None:
    more = ["--stage", "all", "training.tokenizer.steps=2"]
    result = invoke("train", "--init-from", grouped, "--out", tmp_path / "run", *CODES, *TWO_STEPS, *more)
    assert result.exit_code == 0, result.output
    codes, before = (load_transformer(run, load_tokenizer(run)).stem.codes for run in (tmp_path / "run", grouped))
    assert torch.equal(codes, load_tokenizer(tmp_path / "run").codebook) and not torch.equal(codes, before)
