"""`nextscale bench rate`: tokenizers are trained alike, and judged by what their tokens cost and how they distort."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nextscale.bench.fair import Base
from nextscale.bench.kinds import Kind
from nextscale.bench.rate import both_orders, rate_rows
from nextscale_cli.main import app

Settings = Callable[..., list[str]]
STEPS = ["-m", "image", "--samples", "6", "--steps", "3", "--tokenizer-steps", "2"]
ANEW = "anew: tokenizer.quantizer.target=features"
FEWER = "fewer: tokenizer.quantizer.codes=[4,8,16,16]"


def invoke(out: Path, *arguments: str) -> Any:
    return CliRunner().invoke(app, ["bench", "rate", "--out", str(out), *STEPS, *arguments])


@pytest.fixture(scope="module")
def measured(tiny: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rate") / "comparison"
    settings = tiny(**{"tokenizer.quantizer.codes": 16})
    result = invoke(out, "--kind", ANEW, "--kind", FEWER, "--one-by-one", *settings)
    assert result.exit_code == 0, result.output
    assert "nats per" in result.stdout and "real" in result.stdout
    return out


def test_results(measured: Path) -> None:
    results = json.loads((measured / "results.json").read_text())
    kinds = results["kinds"]
    assert list(kinds) == ["scales", "scales-one-by-one", "anew", "fewer", "fewer-one-by-one"]
    for name, row in kinds.items():
        assert row["tokens"] == 1 + 4 + 9 + 16
        # Barely trained, a token costs about as much as under a uniform distribution.
        assert 0 < row["validation"]["nats_per_sample"] < 1.5 * row["tokens"] * math.log(16)
        assert row["reconstruction"]["psnr"] > 0 and row["decoded"]["frechet_classifier"] > 0
        assert row["training"]["tokenizer_steps"] == 2 and row["training"]["steps"] == 3
        twin = kinds.get(f"{name}-one-by-one", row)
        assert all(row[part] == twin[part] for part in ("tokenizer", "reconstruction", "decoded", "codebook"))
    assert len({row["tokenizer"] for row in kinds.values()}) == 3
    # Of 16 codes the coarsest scale may use 4.
    assert kinds["fewer"]["codebook"]["used_scale0"] <= 4 / 16
    *rows, real = rate_rows(results)
    assert [row["kind"] for row in rows] == list(kinds) and real["kind"] == "real samples"
    assert set(real) - {"kind"} < set(rows[0])
    assert (measured / "results.svg").read_text().lstrip().startswith("<?xml")


def test_what_is_trained_and_measured_is_kept(measured: Path, tiny: Settings, tmp_path: Path) -> None:
    out = tmp_path / "again"
    shutil.copytree(measured, out)

    def files() -> dict[str, int]:
        found = [*out.rglob("model.safetensors"), *out.rglob("rate.json")]
        return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in found}

    before = files()
    damaged = out / "scales-seed0" / "rate.json"
    damaged.write_text("{")
    settings = tiny(**{"tokenizer.quantizer.codes": 16})
    result = invoke(out, "--kind", "flat: tokenizer.scales=[4]", *settings, "--seeds", "2")
    assert result.exit_code == 0, result.output
    after = files()
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {"scales-seed0/rate.json"}, "a damaged file is measured again"
    first, second = (json.loads((folder / "results.json").read_text())["kinds"] for folder in (measured, out))
    assert set(second) == {"scales", "flat"} and second["flat"]["tokens"] == 16
    assert second["scales"]["reconstruction"]["psnr"] == pytest.approx(first["scales"]["reconstruction"]["psnr"])
    assert second["scales"]["validation"]["nats_per_sample_std"] > 0, "seeds differ"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kinds", "", "--one-by-one"], "no kinds to compare"),
        (["--kind", "x: tokenizer.quantizer.codes=[4,8]"], "kind x: tokenizer.quantizer.codes has 2 numbers for 4"),
        (["--kind", "x: tokenizer.quantizer.commitment=[1,0.5]"], "tokenizer.quantizer.commitment has 2 numbers for 4"),
        (["--kind", "x: tokenizer.quantizer.codes=[4,8,0,8]"], "tokenizer.quantizer.codes"),
        (["--kind", "x: tokenizer.quantizer.target=both"], "tokenizer.quantizer.target"),
        (["--kind", "x: tokenizer.quantizer.target=features tokenizer.order=raster"], "use order=scales"),
        (["--kind", "x: tokenizer.quantizer.target=features tokenizer.scales=[1,4,4]"], "as fine as the one before"),
        (["--kind", "x: tokenizer.quantizer.target=features tokenizer.scales=[1,4]", "eval.sede=1"], "eval.sede"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    arguments: list[str], message: str, tiny: Settings, tmp_path: Path
) -> None:
    result = invoke(tmp_path / "out", *arguments, *tiny())
    assert result.exit_code == 2 and "Traceback" not in result.output
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("warning")]
    assert message in line and not (tmp_path / "out").exists()


def test_twins_only_where_tokens_can_be_drawn_one_by_one() -> None:
    kinds = [Kind("a"), Kind("b", ("tokenizer.order=spiral",)), Kind("c", ("tokenizer.quantizer.target=features",))]
    assert [kind.name for kind in both_orders(kinds, Base("image", "digits"))] == ["a", "a-one-by-one", "b", "c"]
