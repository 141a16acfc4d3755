"""``nextscale sample`` writes as it draws: whole files after Ctrl-C, the same ones whatever the batch size, and each
says where it came from."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

import nextscale
from nextscale.api import Model
from nextscale.data import Samples
from nextscale.errors import NextscaleError
from nextscale.provenance import provenance
from nextscale.toolkit.pictures import write_png
from nextscale_cli.main import app
from nextscale_image.modality import ImageModality


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> Model:
    return nextscale.load(tiny_run, "cpu")


@settings(max_examples=15, deadline=None)
@given(number=st.integers(1, 9), batch_size=st.integers(1, 9), filmed=st.integers(0, 9))
def test_a_stream_is_what_generate_returns(model: Model, number: int, batch_size: int, filmed: int) -> None:
    whole = model.generate(number, seed=5, return_steps=True, batch_size=4)
    batches = list(model.stream(number, seed=5, return_steps=filmed, batch_size=batch_size))
    assert [len(batch.samples) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    torch.testing.assert_close(torch.cat([batch.samples for batch in batches]), whole.samples, atol=1e-3, rtol=0)
    labels = torch.cat([batch.conditions["label"] for batch in batches])
    assert torch.equal(labels, whole.conditions["label"])
    steps = sum(len(batch.samples) for batch in batches if batch.steps)
    assert min(filmed, number) <= steps < filmed + batch_size
    for k, expected in enumerate(whole.steps if steps else ()):
        found = torch.cat([batch.steps[k] for batch in batches if batch.steps])
        torch.testing.assert_close(found, expected[:steps], atol=1e-3, rtol=0)


def test_a_stream_refuses_at_once_what_it_can(model: Model) -> None:
    for number, batch_size in ((0, 4), (4, 0)):
        with pytest.raises(NextscaleError, match="ask for at least 1"):
            model.stream(number, batch_size=batch_size)


def test_every_batch_size_writes_the_same_files(tiny_run: Path, tmp_path: Path) -> None:
    for size in (3, 64):
        arguments = ("-n", 7, "--seed", 2, "--batch-size", size, "--out", tmp_path / str(size))
        assert invoke("sample", tiny_run, *arguments).exit_code == 0
    names = sorted(path.relative_to(tmp_path / "3") for path in (tmp_path / "3").rglob("*.*"))
    assert [str(name) for name in names][:3] == ["command.json", "film.png", "grid.png"] and len(names) == 3 + 7
    for name in names:
        assert (tmp_path / "3" / name).read_bytes() == (tmp_path / "64" / name).read_bytes(), name


def test_the_overview_shows_the_first_samples_only(tiny_run: Path, tmp_path: Path) -> None:
    assert invoke("sample", tiny_run, "-n", 70, "--batch-size", 40, "--out", tmp_path / "a").exit_code == 0
    with Image.open(tmp_path / "a/grid.png") as grid, Image.open(tmp_path / "a/film.png") as film:
        rows = (grid.height - 2) / 8, film.height / 8  # with captions
    assert grid.width == 8 * 66 + 2 and film.width == 4 * 66 + 2 and 66 < rows[0] < 99 and 66 < rows[1] < 99
    assert len(list((tmp_path / "a/single").iterdir())) == 70


def test_an_interrupt_leaves_whole_files(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, out = ImageModality.write_samples, tmp_path / "out"

    def interrupted(self: ImageModality, samples: Any, *rest: Any, **more: Any) -> list[Path]:
        if more["first"] == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return write(self, samples, *rest, **more)

    monkeypatch.setattr(ImageModality, "write_samples", interrupted)
    result = invoke("sample", tiny_run, "-n", 1000, "--batch-size", 4, "--out", out)
    assert result.exit_code == 130 and result.stderr.splitlines()[-1] == f"interrupted: 8 of 1000 samples are in {out}"
    files = sorted(path.name for path in (out / "single").iterdir())
    assert files == [f"{i:06d}.png" for i in range(8)]
    for path in [*out.glob("*.png"), *(out / "single").iterdir()]:
        Image.open(path).load()
    assert {path.name for path in out.iterdir()} == {"single", "grid.png", "film.png", "command.json"}


def test_pictures_say_where_they_came_from(tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "Zürich 你好\nrun"
    shutil.copytree(tiny_run, run, ignore=shutil.ignore_patterns("checkpoints", "samples"))
    result = invoke("sample", run, "-n", 3, "--seed", 9, "label=4", "guidance=1.5")
    assert result.exit_code == 0, result.output
    for i in range(3):
        texts = Image.open(run / f"samples/seed-9/single/{i:06d}.png").text  # type: ignore[attr-defined]
        assert (texts["run"], texts["seed"], texts["sample"]) == ("Zürich 你好\ufffdrun", "9", str(i))
        assert json.loads(texts["conditions"]) == {"label": "4"}
        assert json.loads(texts["sampling"])["guidance"] == 1.5
        assert re.fullmatch(r"nextscale \d+\.\d+.*", texts["software"])
    first = run / "samples/seed-9/single/000000.png"
    out = tmp_path / "edited"
    result = invoke("edit", run, "--sample", first, "--box", "0,0,4,8", "-n", 1, "label=null", "--out", out)
    assert result.exit_code == 0, result.output
    texts = Image.open(out / "single/000000.png").text  # type: ignore[attr-defined]
    assert texts["edited"] == "000000.png" and json.loads(texts["conditions"]) == {"label": None}


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(), seed=st.integers(0, 2**40), first=st.integers(0, 10**6))
def test_any_text_survives_in_a_picture(model: Model, tmp_path: Path, text: str, seed: int, first: int) -> None:
    drawn = Samples(torch.zeros(2, 1, 8, 8), [], {"label": torch.tensor([3, 4])})
    told = provenance(model, tmp_path, drawn, seed, first, source=text)[1]
    assert (told["seed"], told["sample"], told["conditions"]) == (str(seed), str(first + 1), '{"label": "4"}')
    path = write_png(torch.zeros(8, 8, 1).byte().numpy(), tmp_path / "a.png", told)
    assert Image.open(path).text == told  # type: ignore[attr-defined]
    assert len(told["source"]) == len(text)
