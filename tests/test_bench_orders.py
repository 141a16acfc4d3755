"""`nextscale bench orders`: kinds are trained alike, once, and a killed comparison goes on to the same table."""

from __future__ import annotations

import builtins
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from killing import assert_equal_weights, attempt_all
from typer.testing import CliRunner

from nextscale.bench import fair
from nextscale.bench.fair import Effort
from nextscale.bench.kinds import Kind, choose_kinds, parse_kind
from nextscale.config.run import load_config, load_run_config
from nextscale.errors import ConfigError
from nextscale.training import plan as planning
from nextscale.training.pilot import Pilot, Timing
from nextscale.training.plan import Plan
from nextscale_cli.main import app

Settings = Callable[..., list[str]]
MARKOV = "markov: transformer.attention=markov"
QUICK = ["--samples", "6", "--batch", "2", "--guidance", "0,1", "-m", "image"]
STEPS = [*QUICK, "--steps", "4", "--tokenizer-steps", "3"]


def command(out: Path, *arguments: str) -> list[str]:
    return ["bench", "orders", "--out", str(out), *arguments]


def invoke(out: Path, *arguments: str) -> Any:
    return CliRunner().invoke(app, command(out, *arguments))


def refused(out: Path, *arguments: str) -> str:
    result = invoke(out, *arguments)
    assert result.exit_code == 2 and "Traceback" not in result.output
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("warning")]
    return line


def written(out: Path) -> dict[str, float]:
    """When each model was written."""
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}


def counted(costs: dict[str, Any]) -> list[Any]:
    """Of costs, what does not depend on the machine's speed and memory."""
    rows = [(guidance, row["passes"], row["sample_flops"]) for guidance, row in costs["sampling"].items()]
    return [costs["weights"], costs["train_step_flops"], *rows]


@pytest.fixture(scope="module")
def compared(forked_pools: None, tiny: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("orders") / "comparison"
    result = invoke(out, *STEPS, "--kind", MARKOV, "--seeds", "2", *tiny())
    assert result.exit_code == 0, result.output
    assert result.stdout.count("scales") >= 5 and "±" in result.stdout and "real samples" in result.stdout
    return out


def test_results(compared: Path) -> None:
    results = json.loads((compared / "results.json").read_text())
    scales, markov = (results["kinds"][name] for name in ("scales", "markov"))
    assert scales["tokenizer"] == markov["tokenizer"], "the first stage does not depend on the attention"
    assert sorted(path.name for path in compared.iterdir() if not path.name.startswith(".")) == [
        "comparison.json", "eval-cache", "markov-seed0", "markov-seed1", "results.json", "results.svg",
        "scales-seed0", "scales-seed1", "tokenizers",
    ]  # fmt: skip
    assert len(list((compared / "tokenizers").iterdir())) == 1
    for row in (scales, markov):
        assert row["seeds"] == [0, 1] and row["training"]["steps"] == 4
        assert row["validation"]["loss"] > 0 and row["validation"]["loss_std"] > 0, "seeds differ"
        assert set(row["samples"]) == {"0", "1"}
        assert row["training"]["flops"] == 4 * row["costs"]["train_step_flops"] > 0
        for cost in row["costs"]["sampling"].values():
            assert cost["passes"] == 4, "one per scale"
            assert min(cost["ms_batch_1"], cost["ms_batch_2"], cost["sample_flops"]) > 0
    plain, guided = (scales["costs"]["sampling"][guidance]["sample_flops"] for guidance in "01")
    assert plain < guided < 2 * plain, "guidance doubles the transformer's work, not the decoder's"
    assert (compared / "results.svg").read_text().lstrip().startswith("<?xml")


def test_what_is_trained_is_not_trained_again(compared: Path, tiny: Settings, tmp_path: Path) -> None:
    out = tmp_path / "again"
    shutil.copytree(compared, out)
    before = written(out)
    result = invoke(out, *STEPS, "--kinds", "scales,one-by-one,raster", *tiny())
    assert result.exit_code == 0, result.output
    after = written(out)
    assert {name: after[name] for name in before} == before
    new = {tuple(name.split("/")[: 1 if name[0] != "t" else 2]) for name in after.keys() - before.keys()}
    kinds = json.loads((out / "results.json").read_text())["kinds"]
    assert new == {("one-by-one-seed0",), ("raster-seed0",), ("tokenizers", kinds["raster"]["tokenizer"])}
    assert kinds["scales"]["tokenizer"] == kinds["one-by-one"]["tokenizer"] != kinds["raster"]["tokenizer"]
    passes = {name: row["costs"]["sampling"]["0"]["passes"] for name, row in kinds.items()}
    assert passes == {"scales": 4, "one-by-one": 1 + 4 + 9 + 16, "raster": 2 * 16}
    assert all(row["validation"]["nats_per_sample"] > 0 for row in kinds.values())
    recorded = json.loads((out / "comparison.json").read_text())["kinds"]
    assert set(recorded) == {"scales", "markov", "one-by-one", "raster"}


@pytest.mark.slow
def test_killed_and_continued_is_the_same_comparison(compared: Path, tiny: Settings, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    arguments = command(out, *STEPS, "--kind", MARKOV, *tiny())
    ends = attempt_all(
        [
            (arguments, "tokenizer", 2, 0.0),
            (arguments, "transformer", 3, 0.0),
            (arguments, "sampling", 0, 0.0),
            (arguments, "never", 0, 0.0),
        ]
    )
    assert [code for code, _ in ends] == [-9, -9, -9, 0]
    again, first = (json.loads((folder / "results.json").read_text())["kinds"] for folder in (out, compared))
    for name, row in again.items():
        assert_equal_weights(out / f"{name}-seed0", compared / f"{name}-seed0")
        uninterrupted = json.loads((compared / f"{name}-seed0" / "eval.json").read_text())
        assert row["samples"] == uninterrupted["samples"] and row["validation"] == uninterrupted["validation"]
        assert counted(row["costs"]) == counted(first[name]["costs"])


def test_equal_time(forked_pools: None, tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stage is planned for its own minutes, as if it were all of the run, and the clock has them."""
    asked: list[tuple[str, float]] = []

    def plan(configure: Callable[[Any], Any], minutes: float, *, propose: bool, stage: str) -> Plan:
        asked.append((stage, minutes))
        return Plan(configure(None))  # of 6 steps, too few for the clock to judge

    monkeypatch.setattr(fair, "plan", plan)
    out = tmp_path / "timed"
    limits = ["--minutes", "9", "--tokenizer-minutes", "8"]
    result = invoke(out, *QUICK, *limits, "--kinds", "scales", *tiny())
    assert result.exit_code == 0, result.output
    assert asked == [("tokenizer", 8), ("transformer", 9)]
    assert load_run_config(out / "scales-seed0").training.minutes == 9
    row = json.loads((out / "results.json").read_text())["kinds"]["scales"]["training"]
    assert row["steps"] == 6 and 0 < row["minutes"] < 9


@pytest.mark.parametrize(("stage", "steps"), [("tokenizer", 552), ("transformer", 184), ("all", 276)])
def test_a_stage_alone_has_all_the_minutes(
    stage: str, steps: int, tiny: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pilot, "time", lambda self, config: Timing(0.1, 0.3, 0.0, 10**6, 21))
    settings = [text for text in tiny() if ".steps=" not in text]

    def configure(proposal: Any) -> Any:
        base = {"training": {"tokenizer": {"steps": 300}, "transformer": {"steps": 100}}}
        return load_config("image", "digits", None, settings, proposal=proposal or base)

    training = planning.plan(configure, 1, propose=False, stage=stage).config.training
    found = training.transformer.steps if stage == "transformer" else training.tokenizer.steps
    assert 0.9 * steps <= found <= steps


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "4", "--kinds", "rasters"], "unknown kind 'rasters'; did you mean 'raster'?"),
        (["--steps", "4", "--kinds", "scales,scales"], "kind 'scales' is named twice"),
        (["--steps", "4", "--kinds", ""], "no kinds to compare"),
        (["--steps", "4", "--kind", "markov"], "--kind 'markov' is wrong"),
        (["--steps", "4", "--kind", "a/b: transformer.depth=2"], "--kind 'a/b: transformer.depth=2' is wrong"),
        (["--steps", "4", "--kind", "x: transformer.dpeth=2"], "kind x: unknown"),
        (["--steps", "4", "--kind", "x: transformer.width=33"], "kind x: transformer: width 33"),
        (["--steps", "4", "--kind", "x: seed=3"], "kind x: seed is set by the command itself"),
        (["--steps", "4", "training.init=runs/a"], "training.init is set by the command itself"),
        (["--steps", "4", "eval.sede=3"], "eval.sede"),
        ([], "say how long each kind trains: --minutes N (equal time) or --steps N (equal steps)"),
        (["--minutes", "0"], "--minutes 0 is wrong: should be a number above 0"),
        (["--minutes", "1", "--steps", "4"], "say how long each kind trains"),
        (["--minutes", "1", "--tokenizer-steps", "4"], "exclude each other"),
        (["--steps", "4", "--guidance", "much"], "--guidance 'much' should be numbers"),
        (["--steps", "4", "--kinds", "raster", "-m", "graph"], "graph has no tokenizer on a grid"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(arguments: list[str], message: str, tmp_path: Path) -> None:
    kinds = [] if any("--kind" in text for text in arguments) else ["--kinds", "scales"]
    assert message in refused(tmp_path / "out", *kinds, *arguments)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_as_it_is(compared: Path, tiny: Settings, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert "holds no comparison" in refused(tmp_path, *STEPS, "--kinds", "scales", *tiny())
    before = written(compared)
    for change, message in (
        ([*STEPS, *tiny(**{"data.crop": 6})], "data.crop was None, is now 6"),
        ([*QUICK, "--steps", "5", "--tokenizer-steps", "3", *tiny()], "--steps was 4, is now 5"),
        ([*STEPS, "--kind", "markov: transformer.depth=2", *tiny()], "kind markov was transformer.attention=markov"),
        ([*QUICK, "--steps", "4", "-m", "graph"], "modality was image, is now graph"),
    ):
        line = refused(compared, "--kinds", "scales", *change)
        assert "holds another comparison" in line and message in line
    assert written(compared) == before


def test_without_matplotlib(compared: Path, tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nextscale.bench.plot import plot_comparison

    real = builtins.__import__

    def importing(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", importing)
    monkeypatch.setattr("nextscale.figures.find_spec", lambda name: None)
    out = tmp_path / "out"
    shutil.copytree(compared, out)
    (out / "results.svg").unlink()
    result = invoke(out, *STEPS, "--kinds", "scales", *tiny())
    assert result.exit_code == 0 and "pip install 'nextscale[plot]'" in result.stderr
    assert (out / "results.json").exists() and not (out / "results.svg").exists()
    with pytest.raises(Exception, match="needs matplotlib"):
        plot_comparison(json.loads((out / "results.json").read_text()), out / "results.svg")


def test_the_finest_grid_alone() -> None:
    base = load_config("video", "moving-digits")
    last = list(base.tokenizer.scales[-1])
    (kind,) = choose_kinds(["raster"], [], base, passes=3)
    assert kind.settings[:2] == (f"tokenizer.scales={[last] * 3}", "tokenizer.order=raster")
    config = load_config("video", "moving-digits", overrides=kind.settings[:1])
    assert [list(scale) for scale in config.tokenizer.scales] == [last] * 3


def test_a_kind_of_ones_own() -> None:
    assert parse_kind("a.b: x.y=1 'z=[1, 2]'") == Kind("a.b", ("x.y=1", "z=[1, 2]"))
    with pytest.raises(ConfigError, match="exclude"):
        Effort(steps=3, tokenizer_minutes=1)
