"""`nextscale eval`: the core's measurements of a run (the modalities test their own metrics)."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from nextscale import evaluation, plugins
from nextscale.config.run import load_config
from nextscale.data import Samples
from nextscale.errors import CheckpointError, ConfigError, NextscaleWarning, TrainingError
from nextscale.evaluation import evaluate
from nextscale.storage.models import load_tokenizer
from nextscale.tokens.pyramid import Schedule, TokenPyramid
from nextscale.training.run import train
from nextscale.training.signals import Interrupted
from nextscale_cli.main import app

SCALES, CODES, TOKENS = 3, 16, 21
SETTINGS = [
    "tokenizer.scales=1,2,4",
    "tokenizer.width=8",
    "tokenizer.channels=4",
    f"tokenizer.quantizer.codes={CODES}",
    "transformer.depth=1",
    "transformer.width=16",
    "transformer.heads=2",
    *(
        f"training.{stage}.{setting}"
        for stage in ("tokenizer", "transformer")
        for setting in ("steps=5", "batch_size=8", "precision=fp32")
    ),
]
FAST = ["eval.classifier_epochs=1"]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation") / "run"
    train(load_config("image", "digits", None, SETTINGS), folder)
    return folder


@pytest.fixture(scope="session")
def results(run: Path) -> dict[str, Any]:
    return evaluate(run, samples=12, guidance=(0.0, 1.5), device="cpu", options=FAST)


def written(run: Path) -> dict[str, Any]:
    """The results in ``eval.json``."""
    found = json.loads((run / "eval.json").read_text())
    return {name: values for name, values in found.items() if name != "measured"}


def measured(run: Path) -> dict[str, Any]:
    return json.loads((run / "eval.json").read_text())["measured"]


def test_returned_results_are_written(run: Path, results: dict[str, Any]) -> None:
    assert set(results) == {"reconstruction", "codebook", "validation", "samples"}
    assert written(run) == results
    assert measured(run)["samples"] == 12 and measured(run)["guidance"] == [0.0, 1.5]
    assert 0 < results["reconstruction"]["psnr"] < 40


def test_codebook(results: dict[str, Any]) -> None:
    codebook = results["codebook"]
    for name in (*(f"scale{k}" for k in range(SCALES)), "total"):
        used, perplexity = codebook[f"used_{name}"] * CODES, codebook[f"perplexity_{name}"]
        assert used == pytest.approx(round(used)) and 1 <= used <= CODES
        assert 1 - 1e-6 <= perplexity <= used * (1 + 1e-6)
        assert codebook["used_total"] >= codebook[f"used_{name}"]


def test_codebook_of_known_tokens(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scale 0 is always code 5; scale 1 has codes 0 to 3 equally often; scale 2 has only code 5."""
    tokenizer = load_tokenizer(run)
    data = plugins.modality("image").open_data(load_config("image", "digits").data)
    row = torch.tensor([5, 0, 1, 2, 3, *[5] * 16])
    schedule = Schedule.of([(1, 1), (2, 2), (4, 4)])
    monkeypatch.setattr(tokenizer, "encode", lambda x: TokenPyramid(row.expand(len(x), -1), schedule))
    usage = evaluation.codebook_usage(tokenizer, data)
    assert [usage[f"used_scale{k}"] * CODES for k in range(SCALES)] == [1, 4, 1]
    assert [usage[f"perplexity_scale{k}"] for k in range(SCALES)] == pytest.approx([1, 4, 1])
    assert usage["used_total"] * CODES == 5
    entropy = -(17 / 21) * math.log(17 / 21) - 4 * (1 / 21) * math.log(1 / 21)
    assert usage["perplexity_total"] == pytest.approx(math.exp(entropy), rel=1e-5)


def test_padding_does_not_count_as_code_usage(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_tokenizer(run)
    data = plugins.modality("image").open_data(load_config("image", "digits").data)
    tokens = torch.arange(TOKENS).clamp_max(CODES - 1)
    mask = torch.tensor([True, *[True, False, False, False], *[False] * 16])
    schedule = Schedule.of([(1, 1), (2, 2), (4, 4)])
    monkeypatch.setattr(
        tokenizer, "encode", lambda x: TokenPyramid(tokens.expand(len(x), -1), schedule, mask.expand(len(x), -1))
    )
    usage = evaluation.codebook_usage(tokenizer, data)
    assert [usage[f"used_{name}"] * CODES for name in ("scale0", "scale1", "scale2", "total")] == [1, 1, 0, 2]


def test_validation_loss_is_the_mean_over_scales_weighted_by_their_tokens(results: dict[str, Any]) -> None:
    validation = results["validation"]
    for key in ("loss", "accuracy"):
        mean = sum(validation[f"{key}/scale{k}"] * n for k, n in enumerate((1, 4, 16))) / TOKENS
        assert validation[key] == pytest.approx(mean, rel=1e-4, abs=1e-6)
    assert 0.5 * math.log(CODES) < validation["loss"] < 1.5 * math.log(CODES)  # five steps: near chance


def test_validation_loss_equals_the_one_logged_in_training(run: Path, results: dict[str, Any]) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if (line["stage"], line["kind"]) == ("transformer", "validation")]
    best = min(logged, key=lambda line: line["loss"])
    for key, value in results["validation"].items():
        if key != "bits_per_value":  # of arrays, which training from cached tokens does not see
            assert value == pytest.approx(best[key], rel=1e-4, abs=1e-5), key


def test_the_cost_of_a_sample(results: dict[str, Any]) -> None:
    validation = results["validation"]
    assert validation["nats_per_sample"] == pytest.approx(validation["loss"] * TOKENS, rel=1e-5)
    assert validation["bits_per_value"] == pytest.approx(validation["nats_per_sample"] / math.log(2) / 64)
    assert "nats_per_sample_bound" not in validation


def test_samples_at_each_guidance(results: dict[str, Any]) -> None:
    assert list(results["samples"]) == ["0", "1.5"]
    for quality in results["samples"].values():
        assert 0 <= quality["classifier_accuracy"] <= 1
        assert "frechet_classifier_floor" in quality and "diversity_floor" in quality


def test_the_modality_gets_evenly_spread_classes_and_the_options(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []
    modality = type(plugins.modality("image"))

    def evaluate_samples(self: Any, samples: Any, conditions: Any, data: Any, *told: Any) -> dict[str, float]:
        seen.append((samples, conditions, told))
        return {"x": 1.0}

    monkeypatch.setattr(modality, "evaluate_samples", evaluate_samples)
    copy = run.with_name("options")
    shutil.copytree(run, copy)
    results = evaluate(copy, samples=20, guidance=[2.0], seed=4, device="cpu", options=["eval.features=both"])
    again = evaluate(copy, samples=20, guidance=[2.0], seed=4, device="cpu")
    assert results["samples"] == again["samples"] == {"2": {"x": 1.0}}
    (samples, conditions, (options, context)), (repeated, _, (defaults, _)) = seen
    assert samples.shape == (20, 1, 8, 8) and torch.equal(samples, repeated)
    assert torch.bincount(conditions["label"]).tolist() == [2] * 10
    assert options.features == "both" and defaults.features == "classifier"
    assert context.cache == copy / "eval-cache" and context.device.type == "cpu"


def test_a_tokenizer_alone(run: Path, tmp_path: Path) -> None:
    for name, only in (("untrained", False), ("asked", True)):
        copy = tmp_path / name
        shutil.copytree(run, copy)
        if not only:
            shutil.rmtree(copy / "transformer")
        results = evaluate(copy, device="cpu", reconstruction_only=only)
        assert set(results) == set(written(copy)) == {"reconstruction", "codebook"}


def test_errors_leave_results_as_they_were(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "eval.json").write_text("before")
    with pytest.raises(ConfigError, match=r"unknown key eval.featres; did you mean 'features'"):
        evaluate(copy, samples=4, guidance=[0.0], device="cpu", options=["eval.featres=both"])
    (copy / "transformer" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError):
        evaluate(copy, samples=4, device="cpu", options=FAST)
    assert (copy / "eval.json").read_text() == "before"
    with pytest.raises((CheckpointError, ConfigError)):
        evaluate(tmp_path / "missing")
    assert not (tmp_path / "missing").exists()


# As it goes


def test_an_interrupt_leaves_what_was_measured(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    modality, calls = type(plugins.modality("image")), []

    def evaluate_samples(self: Any, *told: Any) -> dict[str, float]:
        calls.append(json.loads((copy / "eval.json").read_text()))
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return {"x": float(len(calls))}

    monkeypatch.setattr(modality, "evaluate_samples", evaluate_samples)
    with pytest.raises(Interrupted, match=r"interrupted: what was measured so far .*samples.* is in") as caught:
        evaluate(copy, samples=2, guidance=(0.0, 1.0, 2.0), repeats=2, device="cpu")
    assert caught.value.exit_code == 130 and "\n" not in str(caught.value)
    left = written(copy)
    assert left["incomplete"] is True and {"reconstruction", "codebook", "validation"} < left.keys()
    assert left["samples"] == {"0": {"x": 1.5, "x_std": pytest.approx(0.5**0.5)}}
    assert [list(found.get("samples", {})) for found in calls] == [[], ["0"], ["0"]], "written after each round"
    calls.extend([{}] * 9)
    finished = evaluate(copy, samples=2, guidance=(0.0,), device="cpu")
    assert written(copy) == finished and "incomplete" not in finished


def test_a_run_that_cannot_be_written(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)

    def read_only(*arguments: Any, **named: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("nextscale.evaluation.tempfile.TemporaryFile", read_only)
    seen: list[Any] = []
    modality = type(plugins.modality("image"))
    monkeypatch.setattr(modality, "evaluate_samples", lambda self, *told: {"cache": float(bool(seen.append(told[-1])))})
    before = sorted(copy.rglob("*"))
    with pytest.warns(NextscaleWarning, match="cannot be written .*: the results are only shown") as told:
        results = evaluate(copy, samples=2, guidance=(0.0,), device="cpu")
    assert len(told) == 1 and results["samples"]["0"] == {"cache": 0.0}
    assert seen[0].cache is None, "nothing that takes long can be cached there"
    assert sorted(copy.rglob("*")) == before
    result = CliRunner().invoke(app, ["eval", str(copy), "--reconstruction-only", "--device", "cpu"])
    assert result.exit_code == 0 and "reconstruction.psnr" in result.stdout and "eval.json" not in result.stdout


def test_a_disk_that_fills_up(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)

    def full(*arguments: Any) -> None:
        raise TrainingError("the disk is full: eval.json was not saved")

    monkeypatch.setattr(evaluation, "write_json_atomic", full)
    with pytest.warns(NextscaleWarning, match="the disk is full"):
        results = evaluate(copy, device="cpu", reconstruction_only=True)
    assert set(results) == {"reconstruction", "codebook"}


def test_sampling_settings_are_checked_first(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Any] = []
    monkeypatch.setattr(type(plugins.modality("image")), "evaluate_tokenizer", lambda *told: measured.append(told))
    with pytest.raises(ConfigError, match="top_k has 2 values; this model has 3 scales"):
        evaluate(run, samples=2, device="cpu", sampling={"top_k": (1, 2)})
    assert not measured


def test_samples_are_measured_where_the_data_is(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn on an accelerator, they are moved: a modality that joins them with real ones would fail otherwise."""

    class Drawn:
        def to(self, device: str) -> str:
            return f"on {device}"

    copy, seen = tmp_path / "copy", []
    shutil.copytree(run, copy)
    monkeypatch.setattr(evaluation.Model, "generate", lambda *told, **named: Samples(Drawn(), [], {}))
    modality = type(plugins.modality("image"))
    monkeypatch.setattr(modality, "evaluate_samples", lambda self, samples, *told: seen.append(samples) or {})
    evaluate(copy, samples=2, guidance=(0.0,), device="cpu")
    assert seen == ["on cpu"]


def test_command_line(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    result = CliRunner().invoke(app, ["eval", str(copy), "--reconstruction-only", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "reconstruction.psnr" in result.stdout and "codebook.used_total" in result.stdout
    assert set(written(copy)) == {"reconstruction", "codebook"}
