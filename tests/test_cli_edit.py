"""``nextscale edit`` from a file to pictures, and its errors for bad input."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from nextscale_cli.main import app


def invoke(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "digit.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)).save(path)
    return path


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image, np.int64)


def test_a_box_is_drawn_anew_and_the_rest_pasted_back(tiny_run: Path, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "edit"
    result = invoke(
        "edit", tiny_run, "--image", picture, "--box", "0,0,4,8", "--label", "3", "--guidance", "2", "-n", "3",
        "--paste", "--out", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [str(out / "grid.png"), f"{out / 'single'} (3 files)"]
    with Image.open(out / "grid.png") as grid:
        assert grid.size == (5 * 66 + 2, 66 + 34 + 2), "the sample, its kept part, and three versions, with captions"
    original = pixels(picture)
    for file in sorted((out / "single").iterdir()):
        assert (pixels(file)[4:] == original[4:]).all()
        assert (pixels(file)[:4] != original[:4]).any()


def test_a_mask_selects_its_white_pixels_and_outpaint_the_rest(tiny_run: Path, picture: Path, tmp_path: Path) -> None:
    white = np.zeros((8, 8), np.uint8)
    white[:4] = 255
    Image.fromarray(white).save(tmp_path / "mask.png")
    common = ("edit", tiny_run, "--image", picture, "-n", "1", "--seed", "7", "label=2")
    for name, arguments in (
        ("mask", ("--mask", tmp_path / "mask.png")),
        ("box", ("--box", "0,0,4,8")),
        ("out", ("--box", "4,0,8,8", "--outpaint")),
    ):
        result = invoke(*common, *arguments, "--out", tmp_path / name)
        assert result.exit_code == 0, result.output
    images = [pixels(tmp_path / name / "single/000000.png") for name in ("mask", "box", "out")]
    assert (images[0] == images[1]).all() and (images[0] == images[2]).all()


def test_bad_input_gives_one_line_and_leaves_nothing(tiny_run: Path, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(tmp_path / "wide.png")
    unfinished = tmp_path / "unfinished"
    shutil.copytree(tiny_run, unfinished, ignore=shutil.ignore_patterns("transformer", "checkpoints"))
    before = sorted(tmp_path.rglob("*"))
    box = ("--box", "0,0,4,8")
    for message, run, *arguments in (
        ("the box 0,0,9,8 is empty or not inside the sample, which is 8 x 8", tiny_run, picture, "--box", "0,0,9,8"),
        ("takes 4 numbers, starts then ends; got 2", tiny_run, picture, "--box", "0,4"),
        ("--box 'a,b' should be whole numbers", tiny_run, picture, "--box", "a,b"),
        ("wide.png is 8 x 9;", tiny_run, picture, "--mask", tmp_path / "wide.png"),
        ("cannot read image", tiny_run, tmp_path / "text.png", *box),
        ("there is no such file", tiny_run, tmp_path / "none.png", *box),
        ("there is no such file", tiny_run, picture, "--mask", tmp_path / "none.png"),
        ("label 10 is out of range: this model knows labels 0 to 9", tiny_run, picture, *box, "--label", "10"),
        ("unknown condition or sampling setting 'lable'", tiny_run, picture, *box, "lable=1"),
        ("holds no trained transformer", unfinished, picture, *box),
        ("either --mask FILE or --box", tiny_run, picture),
        ("either --mask FILE or --box", tiny_run, picture, *box, "--mask", picture),
        ("--feather needs --paste", tiny_run, picture, *box, "--feather", "2"),
        ("leaves nothing to redraw", tiny_run, picture, "--box", "0,0,8,8", "--outpaint"),
        ("guidance = -1", tiny_run, picture, *box, "--guidance", "-1"),
        ("unknown precision 'half'", tiny_run, picture, *box, "--precision", "half"),
    ):
        result = invoke("edit", run, "--image", *arguments, "--out", tmp_path / "out")
        assert result.exit_code == 2, (message, result.output)
        assert result.stderr.startswith("error: ") and message in result.stderr, result.stderr
        assert result.stderr.count("\n") == 1 and result.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before
    result = invoke("edit", tiny_run, *box)
    assert result.exit_code == 2 and "--sample FILE is missing" in result.stderr
