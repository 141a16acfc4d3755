"""The command line from data to pictures, on a tiny run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from nextscale_cli.main import app

Settings = Callable[..., list[str]]
RUN = "from nextscale_cli.main import main; main()"


def invoke(*arguments: str | Path) -> Any:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def run(tiny: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "run"
    result = invoke("train", "--modality", "image", "--preset", "digits", "--out", folder, *tiny())
    assert result.stdout == "", "training logs to stderr"
    assert "transformer 6/6  validation: loss" in result.stderr
    return folder


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_train_leaves_pictures(run: Path) -> None:
    assert size(run / "samples/samples.png") == (8 * 66 + 2, 8 * (66 + 19) + 2), "64 images and captions"
    assert size(run / "samples/reconstructions.png") == (5 * 66 + 2, 8 * 66 + 2 + 49), (
        "four scales and the sample itself, captions on top"
    )


def test_the_two_stages_one_by_one_are_the_same_run(run: Path, tiny: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    invoke("train", "--out", folder, "--stage", "tokenizer", *tiny())
    assert not (folder / "transformer").exists()
    invoke("train", "--out", folder, "--stage", "transformer", "--resume", "auto")
    for stage in ("tokenizer", "transformer"):
        file = f"{stage}/model.safetensors"
        assert (folder / file).read_bytes() == (run / file).read_bytes()


def test_sample_writes_grid_film_and_files(run: Path, tmp_path: Path) -> None:
    result = invoke("sample", run, "-n", "6", "--seed", "3", "label=3", "guidance=2", "--out", tmp_path / "a")
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"grid.png", "film.png", "single", "command.json"}
    assert result.stdout.splitlines()[:2] == [str(tmp_path / "a/grid.png"), str(tmp_path / "a/film.png")]
    assert size(tmp_path / "a/film.png") == (4 * 66 + 2, 6 * 66 + 2 + 49)
    files = sorted((tmp_path / "a/single").iterdir())
    assert len(files) == 6 and size(files[0]) == (8, 8)

    invoke("sample", run, "-n", "2", "--seed", "3", "label=3", "guidance=2", "--no-film", "--out", tmp_path / "b")
    assert not (tmp_path / "b/film.png").exists()
    for name in ("000000.png", "000001.png"):
        one, other = (np.asarray(Image.open(tmp_path / part / "single" / name), np.int64) for part in ("a", "b"))
        assert abs(one - other).max() <= 1, "sample i is a function of the seed and i alone"

    invoke("sample", run, "-n", "1", "--seed", "5", "--no-files")
    assert {path.name for path in (run / "samples/seed-5").iterdir()} == {"grid.png", "film.png", "command.json"}


def test_train_continues_after_tokenize(run: Path) -> None:
    result = invoke("tokenize", run)
    assert result.stdout.split() == [str(run / "tokens.zarr/train"), str(run / "tokens.zarr/validation")]
    assert "transformer: already trained" in invoke("train", "--out", run, "--resume", "auto").stderr


def test_dry_run_says_what_would_be_trained(tiny: Settings, tmp_path: Path) -> None:
    result = invoke("train", "--dry-run", "--out", tmp_path / "run", *tiny())
    settings, _, table = result.stdout.partition("\n\n")
    assert yaml.safe_load(settings)["transformer"]["depth"] == 1
    values = dict(line.rsplit(maxsplit=1) for line in table.splitlines() if len(line.split()) > 1)
    assert values["samples.train"] == "96" and values["samples.validation"] == "32"
    assert values["tokens per sample"] == "30"
    assert values["transformer.tokens"] == f"{6 * 8 * 30:,}"
    assert float(values["tokenizer.estimated minutes, at least"]) >= 0
    assert not (tmp_path / "run").exists()


def test_dry_run_counts_the_parameters_of_the_real_models(run: Path, tiny: Settings) -> None:
    import nextscale

    model = nextscale.load(run, "cpu")
    table = invoke("train", "--dry-run", "--name", "x", *tiny()).stdout
    for name, module in (("tokenizer", model.tokenizer), ("transformer", model.transformer)):
        count = sum(parameter.numel() for parameter in module.parameters())
        assert any(line.split() == [f"{name}.parameters", f"{count:,}"] for line in table.splitlines())


def test_dry_run_imports_no_compiler() -> None:
    """A dry run may take three seconds. Importing torch takes two of them; importing its compiler would take two
    more."""
    code = (
        "import sys\nfrom nextscale_cli.main import app\n"
        "try:\n    app(['train', '-m', 'image', '--dry-run'])\nexcept SystemExit:\n    pass\n"
        "slow = ('torch._dynamo', 'sympy', 'zarr', 'sklearn.datasets', 'scipy', 'torchmetrics')\n"
        "print([m for m in slow if m in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr.strip() == "[]", result.stderr


def test_a_finished_run_exits_cleanly_in_its_own_process(run: Path) -> None:
    started = time.perf_counter()
    command = [sys.executable, "-c", RUN, "train", "--out", str(run), "--resume", "auto"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "40"})
    assert done.returncode == 0 and time.perf_counter() - started < 60
    assert done.stderr.splitlines() == [f"{s}: already trained in {run / s}" for s in ("tokenizer", "transformer")]
