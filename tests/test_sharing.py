"""A run that was shared draws the same samples, and tells nothing that is private."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

import nextscale
from nextscale.config.run import load_config, load_run_config
from nextscale.errors import CheckpointError
from nextscale.hub import MODELS, RECORDS
from nextscale.sharing.package import REPORT, may_be_ours
from nextscale.sharing.private import NOT_SHARED, Paths, is_local_path
from nextscale.sharing.push import push_to_folder
from nextscale.sharing.results import measured
from nextscale.storage.models import load_tokenizer, load_transformer, save_tokenizer, save_transformer
from nextscale.training.run import train
from nextscale_cli.main import app

Settings = Callable[..., list[str]]


def invoke(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def head_of(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the tiny run, with the results and the pictures that a user may have made."""
    folder = tmp_path / "private" / "run"
    shutil.copytree(tiny_run, folder)
    environment = json.loads((folder / "env.json").read_text())
    environment["command"] = ["nextscale", "train", f"--out={folder}", "--config", str(tmp_path / "secret.yaml")]
    (folder / "env.json").write_text(json.dumps(environment))
    result = invoke("sample", folder, "-n", "2")
    assert result.exit_code == 0, result.output
    return folder


def test_a_shared_run_draws_the_same_samples(run: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    result = invoke("push", run, shared)
    assert result.exit_code == 0 and result.stdout == f"{shared}\n", result.output
    drawn = [nextscale.load(each, device="cpu").generate(5, seed=3).samples for each in (run, shared)]
    assert torch.equal(*drawn)
    for each in (run, shared):
        assert invoke("sample", each, "-n", "3", "--out", tmp_path / f"drawn-{each.name}").exit_code == 0
    single = sorted((tmp_path / "drawn-run" / "single").iterdir())
    assert len(single) == 3
    for file in (*single, tmp_path / "drawn-run" / "film.png"):
        other = tmp_path / "drawn-shared" / file.relative_to(tmp_path / "drawn-run")
        assert np.array_equal(Image.open(other), Image.open(file)), "their texts differ: they name the run"


def test_only_what_is_needed_is_shared(run: Path, tmp_path: Path) -> None:
    (run / REPORT).write_text(f"<p>{run}</p>")
    (run / "eval.json").write_text(json.dumps({"samples": {"1": {"distance": 2.0}}, "settings": {"run": str(run)}}))
    shared = push_to_folder(run, tmp_path / "shared")
    pictures = {f"pictures/{name}.png" for name in ("film", "grid", "samples", "reconstructions")}
    files = {str(path.relative_to(shared)) for path in shared.rglob("*") if path.is_file()}
    assert files == {*MODELS, *RECORDS, REPORT, *pictures}
    assert all(map(may_be_ours, files))
    for name in MODELS[1:]:
        assert (shared / name).read_bytes() == (run / name).read_bytes()


def test_no_path_is_shared(run: Path, digits_file: Path, tmp_path: Path) -> None:
    """Neither of the data, nor of the run, nor of a file on its command line."""
    (run / REPORT).write_text(f"<p title='{run}'>{digits_file} {json.dumps(str(tmp_path))}</p>")
    (run / "eval.json").write_text(json.dumps({"settings": {"run": str(run)}, "results": {"a": {"b": 1.0}}}))
    shared = push_to_folder(run, tmp_path / "shared")
    for path in shared.rglob("*"):
        if path.suffix in (".json", ".yaml", ".md", ".html"):
            text = path.read_text()
            assert str(digits_file) not in text and str(run) not in text and "secret.yaml" not in text, path
    config = load_run_config(shared)
    assert config.data.source == NOT_SHARED
    assert config == load_run_config(run, [f"data.source={NOT_SHARED}"])
    result = invoke("eval", shared, "--samples", "2")
    assert result.exit_code == 2 and NOT_SHARED in result.stderr, "data that is not there is one line"


def test_a_path_in_a_model_is_refused(run: Path, tmp_path: Path) -> None:
    """Its configuration is sealed with the weights, so the path cannot be taken out."""
    tokenizer = load_tokenizer(run)
    transformer = load_transformer(run, tokenizer)
    save_tokenizer(run, tokenizer, load_run_config(run), {**(tokenizer.description or {}), "from": str(run)})
    save_transformer(run, transformer)
    result = invoke("push", run, tmp_path / "shared")
    assert result.exit_code == 2 and f"config.json names the path {run}" in result.stderr
    assert not (tmp_path / "shared").exists()


def test_a_run_that_was_fine_tuned_does_not_say_from_where(tiny: Settings, tiny_run: Path, tmp_path: Path) -> None:
    tuned = tmp_path / "tuned"
    train(load_config(overrides=tiny(), start=tiny_run), tuned, "transformer")
    assert load_run_config(tuned).training.init == str(tiny_run.resolve())
    assert load_run_config(push_to_folder(tuned, tmp_path / "shared")).training.init == NOT_SHARED


def test_a_card_without_results_says_so(run: Path, tmp_path: Path) -> None:
    card = (push_to_folder(run, tmp_path / "shared") / "README.md").read_text()
    assert "This run has not been measured. `nextscale eval ./shared` measures it" in card
    assert "model-index" not in card and "license" not in head_of(card)
    assert head_of(card)["library_name"] == "nextscale"
    for told in (
        "training: 96 samples",
        "condition `label` (class, 10): `0`, `1`",
        "4 scales (1x1 2x2",
        "6 steps of 8",
    ):
        assert told in card, told
    for picture in ("film", "grid", "samples", "reconstructions"):
        assert f"](pictures/{picture}.png)" in card


def test_a_card_shows_results_beside_their_floors(run: Path, tmp_path: Path) -> None:
    results = {
        "reconstruction": {"psnr": 20.5},
        "codebook": {"used_scale0": 0.1, "used_total": 0.75},
        "validation": {"loss": 2.5, "loss/scale0": 3.5},
        "samples": {"2": {"distance": 12.0, "distance_floor": 1.5}},
    }
    (run / "eval.json").write_text(json.dumps({"date": "today", "results": results}))
    card = (push_to_folder(run, tmp_path / "shared", license="mit") / "README.md").read_text()
    assert "| samples guidance 2 distance | 12 | 1.5 |" in card
    assert "scale0" not in card and "has not been measured" not in card
    head = head_of(card)
    metrics = head["model-index"][0]["results"][0]["metrics"]
    assert [(each["type"], each["value"]) for each in metrics] == [
        ("psnr", 20.5), ("used_total", 0.75), ("loss", 2.5), ("distance", 12.0)
    ]  # fmt: skip
    assert head["license"] == "mit"
    assert list(measured(results)) == list(measured({"results": results}))


@pytest.mark.parametrize("damage", ["cut", "unfinished", "results"])
def test_what_does_not_load_is_not_shared(run: Path, tmp_path: Path, damage: str) -> None:
    if damage == "unfinished":
        shutil.rmtree(run / "transformer")
    else:
        path = run / ("eval.json" if damage == "results" else "tokenizer/model.safetensors")
        path.write_bytes(b"{" if damage == "results" else path.read_bytes()[:-1])
    before = set(tmp_path.iterdir())
    with pytest.raises(CheckpointError):
        push_to_folder(run, tmp_path / "shared")
    assert set(tmp_path.iterdir()) == before
    result = invoke("push", run, tmp_path / "shared")
    assert result.exit_code == 2 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


def test_a_folder_that_exists_is_left_alone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    result = invoke("push", run, tmp_path / "shared")
    assert result.exit_code == 2 and "exists: name another folder" in result.stderr
    assert not list((tmp_path / "shared").iterdir())
    result = invoke("push", run, tmp_path / "other", "--private")
    assert result.exit_code == 2 and "are for the hub" in result.stderr


def test_an_interrupted_push_leaves_no_folder(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfile", interrupt)
    with pytest.raises(KeyboardInterrupt):
        push_to_folder(run, tmp_path / "shared")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["private"]


@pytest.mark.parametrize(
    ("value", "local"),
    [
        ("/home/me/data", True), ("~/data", True), ("data/cats.npz", True), ("../cats", True), ("..", True),
        (Path("cats"), True), ("digits", False), ("hf:me/digits@v1", False), ("pyg:QM9", False),
        ("https://a.b/c", False), ("folder:/home/me", True), ("file:///x", True), ("file:~/x", True),
        (3, False), (None, False),
    ],
)  # fmt: skip
def test_paths_are_told_from_names(value: Any, local: bool) -> None:
    assert is_local_path(value) == local


NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=3, max_size=12)


@given(st.lists(NAMES, min_size=2, max_size=4), st.text(max_size=20), st.booleans())
def test_a_path_is_removed_wherever_it_is(parts: list[str], around: str, as_json: bool) -> None:
    path = "/" + "/".join(parts)
    paths = Paths([path])
    text = json.dumps({"x": f"{around}{path}{around}"}) if as_json else f"{around}{path}{around}"
    cleaned = paths.removed(text)
    assert paths.first_in(cleaned) is None
    if as_json:
        assert path not in json.loads(cleaned)["x"]
