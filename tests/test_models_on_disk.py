"""Finished models, stored JSON and the cached classifier: what was damaged, edited or exchanged is refused."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import nextscale
from nextscale.config.run import load_config
from nextscale.errors import CheckpointError, NextscaleWarning
from nextscale.evaluation import evaluate
from nextscale.storage.files import parse_json, read_json
from nextscale.storage.models import load_tokenizer, load_transformer, save_run
from nextscale.storage.seal import read_sealed, sealed_tensors, write_sealed
from nextscale.toolkit import classifier
from nextscale.training.run import train

Settings = Callable[..., list[str]]
Edit = Callable[[dict[str, Any]], object]
PARTS = ("tokenizer", "transformer")


def drawn(run: Path) -> torch.Tensor:
    return nextscale.load(run, "cpu").generate(2, seed=3, guidance=0.0).samples


def edit(folder: Path, change: Edit) -> None:
    stored = json.loads((folder / "config.json").read_text())
    change(stored)
    (folder / "config.json").write_text(json.dumps(stored))


def make_old(run: Path) -> None:
    """As versions before format 2 wrote models: without checksums anywhere."""
    for part in PARTS:
        weights = load_file(run / part / "model.safetensors")
        save_file(weights, run / part / "model.safetensors")
        edit(run / part, lambda stored: [stored.pop(key, 0) for key in ("format", "weights", "sha256")])
    edit(run / "transformer", lambda stored: stored.pop("tokenizer_weights"))


def refused(run: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        drawn(run)
    text = str(caught.value)
    assert "\n" not in text and str(run) in text
    for word in words:
        assert word in text, text


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    ignored = shutil.ignore_patterns("checkpoints", "tokens.zarr", "samples")
    return Path(shutil.copytree(tiny_run, tmp_path / "run", ignore=ignored))


@pytest.fixture(scope="module")
def another(tiny: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the same settings, trained from another seed."""
    folder = tmp_path_factory.mktemp("another") / "run"
    train(load_config("image", overrides=tiny(seed=11)), folder)
    return folder


# Checksums


@settings(max_examples=60, deadline=None)
@given(seen=st.data())
def test_any_flipped_bit_is_noticed(tmp_path_factory: pytest.TempPathFactory, seen: st.DataObject) -> None:
    folder, tensors = tmp_path_factory.mktemp("model") / "model", {"w": torch.arange(6.0), "b": torch.zeros(1)}
    body = {"width": 3, "share": 0.5, "names": ["ä", "b"]}
    write_sealed(folder, tensors, body)
    assert read_sealed(folder) == body and torch.equal(sealed_tensors(folder)["w"], tensors["w"])
    file = folder / seen.draw(st.sampled_from(["config.json", "model.safetensors"]))
    data = bytearray(file.read_bytes())
    data[seen.draw(st.integers(0, len(data) - 1))] ^= 1 << seen.draw(st.integers(0, 7))
    file.write_bytes(data)
    try:
        found, weights = read_sealed(folder), sealed_tensors(folder)
    except CheckpointError as error:
        assert "\n" not in str(error) and str(folder) in str(error)
    else:
        assert found == body and file.name == "config.json", "only blanks between values may change"
        assert all(torch.equal(weights[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("tokenizer", lambda stored: stored["tokenizer"]["quantizer"].update(phi_ratio=0.25)),
        ("tokenizer", lambda stored: stored["description"].update(mean=[0.1])),
        ("transformer", lambda stored: stored["transformer"].update(attention="markov")),
        ("transformer", lambda stored: stored["schedule"].reverse()),
        ("transformer", lambda stored: stored["conditions"][0]["names"].reverse()),
        ("transformer", lambda stored: stored.update(note="mine")),
        *((part, lambda stored, key=key: stored.pop(key)) for part in PARTS for key in ("format", "weights", "sha256")),
        *((part, lambda stored: [stored.pop(k) for k in ("format", "weights", "sha256")]) for part in PARTS),
        ("tokenizer", lambda stored: stored.update(format=1)),
    ],
)
def test_an_edited_configuration_is_refused(run: Path, part: str, change: Edit) -> None:
    edit(run / part, change)
    refused(run, f"{run / part / 'config.json'}")


def test_a_changed_weight_is_refused(run: Path) -> None:
    file = run / "transformer/model.safetensors"
    data = bytearray(file.read_bytes())
    data[-2] ^= 0x40  # an exponent
    file.write_bytes(data)
    refused(run, f"{file} is damaged or was edited", "restore config.json and model.safetensors from a copy")
    with pytest.raises(CheckpointError, match="is damaged or was edited"):
        evaluate(run, samples=2, device="cpu")


@pytest.mark.parametrize("name", ["tokenizer/config.json", "transformer/config.json", "transformer/model.safetensors"])
def test_one_file_of_another_run_is_refused(run: Path, another: Path, name: str) -> None:
    shutil.copy(another / name, run / name)
    refused(run, str((run / name).parent))


@pytest.mark.parametrize("part", PARTS)
def test_models_that_do_not_belong_together_are_refused(run: Path, another: Path, part: str) -> None:
    """Both are sound, but the transformer was trained on tokens that the other tokenizer never makes."""
    shutil.rmtree(run / part)
    shutil.copytree(another / part, run / part)
    refused(run, f"{run}/transformer was trained on tokens of another tokenizer than {run}/tokenizer")


def test_a_saved_run_has_checksums(run: Path, tmp_path: Path) -> None:
    """As importing does."""
    model, tokenizer = nextscale.load(run, "cpu"), load_tokenizer(run)
    saved = tmp_path / "saved"
    save_run(saved, model.config, tokenizer.description, tokenizer, load_transformer(run, tokenizer))
    assert torch.equal(drawn(saved), drawn(run))
    edit(saved / "transformer", lambda stored: stored["transformer"].update(attention="markov"))
    refused(saved, "config.json is damaged or was edited")


def test_weights_that_are_gone_are_missed_in_an_evaluation(run: Path) -> None:
    (run / "transformer/model.safetensors").unlink()
    with pytest.warns(NextscaleWarning, match="transformer holds no model.safetensors, so only the tokenizer"):
        assert "samples" not in evaluate(run, samples=2, device="cpu")


# Models from before there were checksums


def test_old_models_load_as_before(run: Path) -> None:
    expected = drawn(run)
    make_old(run)
    assert torch.equal(drawn(run), expected)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("transformer", lambda s: s.update(conditions=3), "conditions: Input should be a valid list"),
        ("transformer", lambda s: s["conditions"].append(s["conditions"][0]), "two conditions have the same name"),
        ("transformer", lambda s: s["conditions"][0]["names"].pop(), "label has 9 names for 10 classes"),
        ("transformer", lambda s: s.pop("schedule"), "schedule: Field required"),
        ("transformer", lambda s: s.update(schedule=[[]]), "a scale needs at least one axis"),
        ("transformer", lambda s: s.update(schedule=[[1, 0]]), "schedule.0.1"),
        ("transformer", lambda s: s.update(token_space=[]), "token_space: Input should be"),
        ("transformer", lambda s: s["transformer"].update(width=10**7), "does not fit"),
        ("transformer", lambda s: s["transformer"].update(depth="two"), "depth"),
        ("transformer", lambda s: s["conditions"][0].update(size=10**12, names=[]), "does not fit"),
        ("tokenizer", lambda s: s.update(modality=["image"]), "modality: Input should be a valid string"),
        ("tokenizer", lambda s: s.pop("description"), "description: Field required"),
        ("tokenizer", lambda s: s["description"].clear(), "no tokenizer can be built from"),
        ("tokenizer", lambda s: s["tokenizer"].update(width=10**6), "does not fit"),
    ],
)
def test_what_old_files_say_is_checked_before_it_takes_memory(run: Path, part: str, change: Edit, message: str) -> None:
    make_old(run)
    edit(run / part, change)
    refused(run, str(run / part), message)


@pytest.mark.parametrize(
    "text", [b"[]", b"3", b"null", b'{"format": NaN}', b"\xff\xfe{}", b"[" * 10**5, b'{"a":1,"a":2}']
)
@pytest.mark.parametrize("part", PARTS)
def test_other_json(run: Path, part: str, text: bytes) -> None:
    (run / part / "config.json").write_bytes(text)
    refused(run, f"{run / part / 'config.json'} is damaged")


# Reading JSON

TEXT = st.text(st.characters(codec="utf-8"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
)


@given(VALUES, st.booleans())
def test_json_is_read_as_it_was_written(value: Any, ascii_only: bool) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60) | st.text(alphabet='[]{}",:-.0123456789eEtrufalsn\\ud8', max_size=40).map(str.encode))
def test_anything_else_is_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "any.json").write_bytes(data)
    try:
        json.dumps(read_json(tmp_path / "any.json"), allow_nan=False, ensure_ascii=False).encode()
    except CheckpointError as error:
        assert "any.json is damaged: " in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xc3\x28", "it is not UTF-8 text"),
        (b'["\\ud800"]', "it is not UTF-8 text"),
        (b"[1, Infinity]", "Infinity is not a finite number"),
        (b"[1e400]", "1e400 is not a finite number"),
        (b"9" * 5000, "is too large a number"),
        (b'{"x": ' * 10**5, "it is nested too deeply"),
        (b'{"x": 1, "y": {"z": 1, "z": 1}}', "a key occurs twice"),
        (b'{"x": 1', "it is not JSON from line 1, column 8 on"),
    ],
)
def test_what_is_wrong_with_it_is_said(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "file.json").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"file\.json is damaged: ") as caught:
        read_json(tmp_path / "file.json")
    assert message in str(caught.value) and len(str(caught.value)) < 300


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    for name, message in [("pipe.json", "is not a file"), (".", "is not a file"), ("none.json", "is missing")]:
        with pytest.raises(CheckpointError, match=message):
            read_json(tmp_path / name)


# The cached classifier


def test_a_damaged_classifier_is_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, labels = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 2

    def cached(samples: torch.Tensor = samples, seed: int = 0) -> dict[str, torch.Tensor]:
        return classifier.cached_classifier(tmp_path, samples, labels, 2, seed, width=4, epochs=1).state_dict()

    sound = cached()
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    cached(seed=1)
    (other,) = set(tmp_path.iterdir()) - {path}
    weight = content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]  # a little different, and as plausible
    without = tmp_path / "without"
    save_file(load_file(path), without)
    for damaged in (weight, content[:-40], other.read_bytes(), without.read_bytes(), b""):
        path.write_bytes(damaged)
        with pytest.warns(NextscaleWarning, match="the classifier is trained again") as caught:
            found = cached()
        assert len(caught) == 1 and str(path) in str(caught[0].message) and "\n" not in str(caught[0].message)
        assert all(torch.equal(found[name], sound[name]) for name in sound)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            cached()  # it is stored anew
    # Other pictures with the same means are not the same pictures.
    assert not torch.equal(cached(samples.flip(-1))["output.weight"], sound["output.weight"])
    # What cannot be cached is used all the same.
    monkeypatch.setattr(classifier, "save_tensors_atomic", _full_disk)
    with pytest.warns(NextscaleWarning, match="the disk is full.* trained again next time"):
        cached(seed=2)


def _full_disk(*_: object) -> None:
    raise classifier.TrainingError("the disk is full: it was not saved")
