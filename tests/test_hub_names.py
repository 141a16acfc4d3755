"""Runs called hf:OWNER/NAME: what every command makes of them, and one line for whatever goes wrong."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hub_stand_in as hubs
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import nextscale
from nextscale.config.run import load_run_config
from nextscale.errors import ConfigError, HubError
from nextscale.hub import MODELS, RECORDS, outputs_folder, run_folder, split_name
from nextscale_cli.main import app

Settings = Callable[..., list[str]]


def invoke(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeeds(*arguments: str | Path) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def fails(message: str, *arguments: str | Path) -> None:
    """The command ends with code 2 and one line, and leaves nothing where it was started."""
    before = set(Path.cwd().rglob("*"))
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, (
        result.stderr
    )
    assert set(Path.cwd().rglob("*")) == before


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> hubs.Hub:
    """A hub without repositories. Commands run in an empty folder."""
    hub = hubs.Hub(tmp_path / "cache")
    module = hub.module()
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", module.errors)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return hub


@pytest.fixture
def pushed(hub: hubs.Hub, tiny_run: Path) -> hubs.Hub:
    succeeds("push", tiny_run, "me/digits")
    return hub


def cached(hub: hubs.Hub) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in hub.cache.rglob("*") if path.is_file()}


def test_push_and_load_draw_the_same_samples(pushed: hubs.Hub, tiny_run: Path) -> None:
    drawn = [nextscale.load(run, device="cpu").generate(4, seed=1).samples for run in (tiny_run, "hf:me/digits")]
    assert torch.equal(*drawn)
    succeeds("sample", tiny_run, "-n", "3", "--out", "local")
    succeeds("sample", "hf:me/digits", "-n", "3")
    there = Path("runs/me--digits/samples/seed-0")
    for name in ("grid.png", "film.png", "single/000000.png"):
        # Their texts differ: they name the run.
        assert np.array_equal(Image.open(there / name), Image.open(Path("local") / name))


def test_only_files_of_a_run_are_downloaded(pushed: hubs.Hub) -> None:
    there = pushed.repositories["me/digits"]
    there.commit("main", {**there.commits[there.branches["main"]], "evil.pkl": b"x", "tokenizer/code.py": b"x"})
    nextscale.load("hf:me/digits", device="cpu")
    assert set(pushed.downloaded) <= {*MODELS, *RECORDS} and set(pushed.downloaded) >= set(MODELS)


def test_no_command_writes_into_the_cache(pushed: hubs.Hub) -> None:
    run = "hf:me/digits"
    succeeds("sample", run, "-n", "1")
    before = cached(pushed)
    sample = "runs/me--digits/samples/seed-0/single/000000.png"
    succeeds("edit", run, "--image", sample, "--box", "0,0,4,4", "-n", "1")
    assert Path("runs/me--digits/edits/seed-0/grid.png").is_file()
    # A format's command reads the run too: it finds what its format cannot hold.
    fails("hf:me/digits cannot be exported: tokenizer.norm_groups", "export", "var", run, "--tokenizer", "t.pth")
    fails("cannot be changed here", "tokenize", run)
    assert cached(pushed) == before


def test_eval_writes_beside_samples(hub: hubs.Hub, tiny: Settings, tmp_path: Path) -> None:
    """The data is built in, so that anyone can measure the run."""
    run = tmp_path / "run"
    succeeds("train", "-m", "image", *tiny(**{"data.source": "digits"}), "--out", run)
    succeeds("push", run, "digits")
    nextscale.load("hf:me/digits", device="cpu")
    before = cached(hub)
    out = succeeds("eval", "hf:me/digits", "--reconstruction-only")
    assert out.endswith("runs/me--digits/eval.json\n") and Path("runs/me--digits/eval.json").is_file()
    assert cached(hub) == before


def test_fine_tuning_starts_from_a_commit(pushed: hubs.Hub, tiny: Settings) -> None:
    commit = pushed.repositories["me/digits"].branches["main"]
    settings = tiny(**{"training.transformer.steps": 2})
    succeeds("train", "--init-from", "hf:me/digits", *settings)
    config = load_run_config("runs/me--digits-tuned")
    assert config.training.init == f"hf:me/digits@{commit}"
    tokenizers = [run_folder(each) / MODELS[2] for each in ("hf:me/digits", "runs/me--digits-tuned")]
    assert tokenizers[0].read_bytes() == tokenizers[1].read_bytes()
    succeeds("push", "runs/me--digits-tuned", "me/tuned")
    assert load_run_config("hf:me/tuned").training.init == f"hf:me/digits@{commit}", "a name on the hub is no secret"


def test_a_push_is_one_commit_and_replaces_the_one_before(pushed: hubs.Hub, tiny_run: Path) -> None:
    there = pushed.repositories["me/digits"]
    first = there.commits[there.branches["main"]]
    assert len(there.commits) == 2
    there.commit("main", {**first, "eval.json": b"old", "pictures/film.png": b"old", "notes.txt": b"mine"})
    succeeds("push", tiny_run, "hf:me/digits")
    files = there.commits[there.branches["main"]]
    assert set(files) == {*first, "notes.txt"}, "results that this run lacks are gone; what others put there stays"
    assert len(there.commits) == 4


def test_branches_and_revisions(pushed: hubs.Hub, tiny_run: Path) -> None:
    there = pushed.repositories["me/digits"]
    main = there.branches["main"]
    out = succeeds("push", tiny_run, "me/digits", "--branch", "v1", "--message", "hello")
    assert "hello" in out and out.endswith("nextscale sample hf:me/digits@v1\n")
    assert there.branches["main"] == main != there.branches["v1"]
    for revision in ("v1", main):
        assert run_folder(f"hf:me/digits@{revision}").is_dir()
    fails("cannot load hf:me/digits@v2: it has no such revision", "sample", "hf:me/digits@v2")


def test_private_is_never_public(pushed: hubs.Hub, tiny_run: Path) -> None:
    fails("me/digits is public already", "push", tiny_run, "me/digits", "--private")
    succeeds("push", tiny_run, "me/secret", "--private")
    assert pushed.repositories["me/secret"].private


CLOSED = ConnectionError("refused")


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        ("create_repo", hubs.HTTPStatus(401), "does not accept your token: log in"),
        ("create_repo", hubs.HTTPStatus(403), "write access"),
        ("create_repo", CLOSED, "the hub cannot be reached, or broke off (ConnectionError: refused)"),
        ("create_repo", hubs.HTTPStatus(500, "oh\nno"), "the hub answered 500 (HTTPStatus: oh no)"),
        ("create_commit", ConnectionError("HTTP status client error (403 Forbidden), domain: xet"), "no write access"),
        ("create_commit", RuntimeError("Error while uploading"), "Error while uploading"),
        ("create_commit", OSError(errno.ENOSPC, "full"), "the disk is full"),
    ],
)
def test_a_push_that_fails_leaves_no_commit(
    hub: hubs.Hub, tiny_run: Path, where: str, error: Exception, message: str
) -> None:
    hub.failure = (where, error)
    fails("cannot push to me/digits: ", "push", tiny_run, "me/digits")
    fails(message, "push", tiny_run, "me/digits")
    assert all(list(there.commits) == [""] for there in hub.repositories.values())
    hub.failure = None
    succeeds("push", tiny_run, "me/digits")


def test_an_error_is_named_by_its_cause(hub: hubs.Hub, tiny_run: Path) -> None:
    try:
        raise RuntimeError("Error while uploading") from CLOSED
    except RuntimeError as error:
        hub.failure = ("create_commit", error)
    fails("the hub cannot be reached, or broke off (ConnectionError: refused)", "push", tiny_run, "me/digits")


def test_no_token(hub: hubs.Hub, tiny_run: Path) -> None:
    hub.token = None
    fails("cannot push to me/digits: log in with `hf auth login`, or set HF_TOKEN", "push", tiny_run, "me/digits")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (hubs.RepositoryNotFoundError(401), "there is no such repository, or it is private"),
        (hubs.GatedRepoError(403), "its owner has to give you access first"),
        (hubs.OfflineModeIsEnabled("offline"), "it is not in the cache, and HF_HUB_OFFLINE is set"),
        (hubs.LocalEntryNotFoundError("check your connection"), "LocalEntryNotFoundError: check your connection"),
        (hubs.HTTPStatus(403), "your token gives no read access"),
        (CLOSED, "the hub cannot be reached"),
        (OSError(errno.ENOSPC, "full"), "the disk is full"),
    ],
)
@pytest.mark.parametrize("command", [("sample",), ("eval",), ("train", "--init-from")])
def test_a_run_that_cannot_be_loaded(hub: hubs.Hub, error: Exception, message: str, command: tuple[str, ...]) -> None:
    hub.failure = ("snapshot_download", error)
    fails(f"cannot load hf:me/digits: {message}", *command, "hf:me/digits")


def test_a_repository_that_is_no_run(pushed: hubs.Hub) -> None:
    there = pushed.repositories["me/digits"]
    files = there.commits[there.branches["main"]]
    there.commit("main", {name: content for name, content in files.items() if name != MODELS[2]})
    fails(f"holds no nextscale run: it has no {MODELS[2]}", "sample", "hf:me/digits")
    there.commit("main", {**files, MODELS[2]: files[MODELS[2]][:-1]})
    fails("is damaged", "sample", "hf:me/digits")
    there.commit("main", {**files, "config.yaml": files["config.yaml"][:-80]})
    fails("is damaged", "sample", "hf:me/digits")


def test_without_the_library_one_line_names_the_extra(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    for arguments in (("sample", "hf:me/digits"), ("push", tiny_run, "me/digits")):
        fails("needs huggingface_hub: pip install 'nextscale[hub]'", *arguments)
    with pytest.raises(HubError, match=r"nextscale\[hub\]"):
        nextscale.load("hf:me/digits")


@pytest.mark.parametrize("name", ["hf:", "hf:me/", "hf:a/b/c", "hf:me/digits@", "hf:../x", "hf:me/x y", "hf:-x"])
def test_names_that_are_wrong(hub: hubs.Hub, tiny_run: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="should be hf:OWNER/NAME"):
        nextscale.load(name)
    fails("should be OWNER/NAME", "push", tiny_run, f"{name}@v1")


def test_names_and_folders() -> None:
    assert split_name("hf:me/digits@refs/pr/1") == ("me/digits", "refs/pr/1")
    assert outputs_folder("hf:me/digits@refs/pr/1") == Path("runs/me--digits@refs--pr--1")
    assert outputs_folder("runs/x") == run_folder("runs/x") == Path("runs/x")
