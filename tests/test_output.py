"""Where samples go: never among the files of another command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nextscale.errors import ConfigError
from nextscale_cli.main import app
from nextscale_cli.output import Output


def options(**changes: Any) -> dict[str, Any]:
    return {
        "run": Path("run"),
        "settings": ["label=3"],
        "number": 4,
        "seed": 0,
        "out": None,
        "device": "cpu",
        **changes,
    }


def test_by_default_another_command_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    def folder(**changes: Any) -> str:
        return Output("sample", options(**changes), tmp_path / "seed-0").open().name

    assert folder() == "seed-0" and folder(device="cuda") == "seed-0"
    assert folder(number=5) == "seed-0-2" and folder(settings=None) == "seed-0-3"
    assert folder() == "seed-0" and folder(number=5) == "seed-0-2", "the same command overwrites its own"
    assert Output("edit", options(), tmp_path / "seed-0").open().name == "seed-0-4"
    assert json.loads((tmp_path / "seed-0-2/command.json").read_text())["number"] == 5


@pytest.mark.parametrize(
    "content",
    [None, b"", b"{", b"[]", b"\xff\xfe", b'{"command": "sample"}', b"[" * 100_000],
    ids=["old", "empty", "cut", "list", "binary", "other", "deep"],
)
def test_files_of_unknown_origin_are_others(tmp_path: Path, content: bytes | None) -> None:
    theirs = tmp_path / "seed-0"
    theirs.mkdir()
    (theirs / "grid.png").write_bytes(b"theirs")
    if content is not None:
        (theirs / "command.json").write_bytes(content)
    assert Output("sample", options(), theirs).open().name == "seed-0-2"
    with pytest.raises(ConfigError, match=r"seed-0 holds files of another command: name another folder with --out$"):
        Output("sample", options(out=theirs), tmp_path / "unused")
    assert (theirs / "grid.png").read_bytes() == b"theirs"


def test_a_named_folder(tmp_path: Path) -> None:
    out = tmp_path / "new" / "deep"
    assert Output("sample", options(out=out), tmp_path).open() == out
    assert Output("sample", options(out=out), tmp_path).open() == out
    with pytest.raises(ConfigError, match="holds files of another command"):
        Output("sample", options(out=out, seed=1), tmp_path)
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden/.DS_Store").touch()
    assert Output("sample", options(out=tmp_path / "hidden"), tmp_path).open() == tmp_path / "hidden"
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file is not a folder"):
        Output("sample", options(out=tmp_path / "file"), tmp_path)


def test_a_folder_that_fills_while_samples_are_drawn(tmp_path: Path) -> None:
    out = tmp_path / "out"
    ours = Output("sample", options(out=out), tmp_path)
    Output("sample", options(out=out, seed=7), tmp_path).open()
    with pytest.raises(ConfigError, match="holds files of another command"):
        ours.open()


def test_commands(tiny_run: Path, tmp_path: Path) -> None:
    def sample(*arguments: str) -> Any:
        command = ["sample", str(tiny_run), "--device", "cpu", "--no-film", "--no-files", *arguments]
        return CliRunner().invoke(app, [*command, "--out", str(tmp_path / "out")])

    assert sample("-n", "3").exit_code == 0 and sample("-n", "3").exit_code == 0
    before = (tmp_path / "out/grid.png").read_bytes()
    refused = sample("-n", "2")
    assert refused.exit_code != 0 and (tmp_path / "out/grid.png").read_bytes() == before
