"""Every command and snippet of README and Quickstart runs, with fewer steps and samples, and narrower networks, than a
reader's."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import forks
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(
    r"(?:<!-- run: (?P<run>yes|no)(?P<reason>[^>]*?) *-->\n)?"  # what a reader does not see
    r"```(?P<kind>bash|python)\n(?P<text>.*?)```",
    re.DOTALL,
)
QUICK = (
    "training.tokenizer.steps=4 training.transformer.steps=4 training.device=cpu tokenizer.width=8 "
    "tokenizer.channels=8 tokenizer.quantizer.codes=32 transformer.depth=1 transformer.width=32 transformer.heads=2"
)


def photos(folder: Path) -> None:
    """Two classes of twenty pictures each."""
    draw = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(20):
            Image.fromarray(draw.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / name / f"{i}.png")


@pytest.mark.parametrize("page", ["README.md", "docs/guide/quickstart.md"])
def test_commands_and_snippets_run(page: str, tmp_path: Path) -> None:
    photos(tmp_path / "photos")
    blocks = list(BLOCK.finditer((ROOT / page).read_text(encoding="utf-8")))
    assert any(block["run"] == "yes" for block in blocks)
    for block in blocks:
        assert block["run"], f"{page}: say above this block whether a test runs it: {block['text']}"
        assert block["run"] == "yes" or block["reason"].strip(" ()"), f"{page}: say why no test runs {block['text']}"
        if block["run"] == "no":
            continue
        commands = [block["text"]] if block["kind"] == "python" else block["text"].strip().splitlines()
        for command in commands:
            code, arguments = command, []
            if block["kind"] == "bash":
                name, *arguments = shlex.split(less(command), comments=True)
                assert name == "nextscale", f"{page}: this test knows no command {name}"
                code = "from nextscale_cli.main import main; main()"
            done = forks.run(code, *arguments, cwd=tmp_path)
            assert done.returncode == 0, f"{page}: {command}\n{done.stderr[-2000:]}"


def less(command: str) -> str:
    """The same command with fewer steps and samples."""
    command = re.sub(r"training\.\w+\.steps=\d+", "", command)
    command = re.sub(r"--samples \d+", "--samples 8", command)
    return command.replace("nextscale train ", f"nextscale train {QUICK} ")


def test_pages_name_files_that_exist() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "guide").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text(encoding="utf-8")):
            generated = "generated/" in target
            assert generated or (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"
