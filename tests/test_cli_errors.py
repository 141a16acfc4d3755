"""Bad input gives one clear line on stderr and a non-zero exit code, and leaves nothing half-written."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

import nextscale.storage.files
from nextscale.plugins import discover
from nextscale.storage.checkpoint_folder import check_checkpoint, latest_checkpoint
from nextscale_cli.main import app

Settings = Callable[..., list[str]]


def invoke(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def contents(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*")}


def fails(folder: Path, message: str, *arguments: str | Path, code: int = 2) -> None:
    """The command fails with ``message`` in one line and leaves ``folder`` as it was."""
    before = contents(folder)
    result = invoke(*arguments)
    assert result.exit_code == code, result.output
    *notes, last = result.stderr.splitlines()
    assert last.startswith("error: ") and message in last, result.stderr
    assert all(": already trained in " in note for note in notes), result.stderr
    assert contents(folder) == before


def stops(message: str, *arguments: str | Path) -> str:
    """The command works for a while, then fails with ``message`` in its last line, which is returned."""
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ") and message in last, result.stderr
    return last


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A trained run that the test may write to."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


# The configuration


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training.tokenizer.lr": -1}, "training.tokenizer.lr = -1 is wrong: should be greater than 0"),
        ({"training.transformer.steps": "many"}, "training.transformer.steps = 'many' is wrong"),
        ({"transformer.dpeth": 2}, "unknown key transformer.dpeth; did you mean 'depth'?"),
        ({"training.device": "gpu"}, "unknown device 'gpu'; it should be auto, cpu, cuda"),
        ({"training.tokenizer.accumulate": 3}, "training.tokenizer.batch_size 8 is not a multiple of 1 processes x 3"),
        ({"training.transformer.accumulate": 3}, "training.transformer.batch_size 8 is not a multiple"),
        ({"transformer.heads": 3}, "width 32 must be an even multiple of heads 3"),
        ({"training.transformer.scale_weights": "1,2"}, "scale_weights = [1.0, 2.0] is wrong: should be 4 numbers"),
        ({"transformer.attention": "[[true]]"}, "transformer.attention has 1 rows and columns; there are 4 scales"),
        ({"sampling.top_k": "1,2,3"}, "sampling.top_k has 3 values; this model has 4 scales"),
        ({"sampling.steps": 4}, "needs a transformer trained with transformer.in_scale_steps=true"),
        ({"tokenizer.scales": "1,4,2"}, "tokenizer.scales must not shrink"),
        ({"tokenizer.scales": "1,2,9"}, "samples of 8 x 8 are too small"),
        ({"data.crop": 9}, "data.crop of 9 x 9 is larger than the images"),
    ],
)
def test_settings_that_do_not_fit(tiny: Settings, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    fails(tmp_path, message, "train", "--out", tmp_path / "run", *tiny(**changes))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_an_unavailable_device(tiny: Settings, tiny_run: Path, tmp_path: Path) -> None:
    message = "device 'cuda' is not available on this machine; auto picks one that is"
    fails(tmp_path, message, "train", "--out", tmp_path / "run", *tiny(**{"training.device": "cuda"}))
    fails(tiny_run, message, "sample", tiny_run, "--device", "cuda")


def test_unknown_names(tmp_path: Path) -> None:
    out = tmp_path / "run"
    fails(tmp_path, "unknown modality 'imgae'; did you mean 'image'?", "train", "-m", "imgae", "--out", out)
    fails(tmp_path, "unknown preset 'digtis'; did you mean 'digits'?", "train", "-p", "digtis", "--out", out)


def test_extras_that_are_not_installed(tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nextscale.toolkit import efficientnet

    monkeypatch.setattr(efficientnet, "weight_file", lambda: None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    arguments = ("train", "--out", tmp_path / "run")
    fails(tmp_path, "nextscale[perceptual]", *arguments, *tiny(**{"tokenizer.perceptual.weight": 1}))
    fails(tmp_path, "nextscale[track]", *arguments, *tiny(**{"training.tensorboard": True}))


# The data


def test_missing_data(tiny: Settings, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, message in (("missing", "missing"), ("empty", "no images")):
        source = {"data.source": tmp_path / name}
        fails(tmp_path, message, "train", "--out", tmp_path / "run", *tiny(**source))
        fails(tmp_path, message, "train", "--dry-run", "--out", tmp_path / "run", *tiny(**source))


def test_an_unreadable_image_is_named(tiny: Settings, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(20):
            pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{i}.png")
    broken = tmp_path / "data/dog/7.png"
    broken.write_bytes(broken.read_bytes()[:60])
    changes = {"data.source": tmp_path / "data"}
    fails(tmp_path, "dog/7.png", "train", "--out", tmp_path / "run", *tiny(**changes))
    changes |= {"data.skip_unreadable": True, "training.tokenizer.steps": 1}
    result = invoke("train", "--out", tmp_path / "run", "--stage", "tokenizer", *tiny(**changes))
    assert result.exit_code == 0, result.output


def test_classes_that_differ(tiny: Settings, tmp_path: Path) -> None:
    for split, names in (("train", ("cat", "dog")), ("val", ("cat", "cow"))):
        for name in names:
            (tmp_path / "data" / split / name).mkdir(parents=True)
            Image.new("L", (8, 8)).save(tmp_path / "data" / split / name / "0.png")
    changes = {"data.source": tmp_path / "data"}
    fails(tmp_path, "classes differ between splits", "train", "--out", tmp_path / "run", *tiny(**changes))


# The run's folder


def test_a_run_that_exists(tiny: Settings, tiny_run: Path, tmp_path: Path) -> None:
    message = f"run folder {tiny_run} exists: continue it with --resume auto, or name another with --out"
    fails(tiny_run, message, "train", "--out", tiny_run, *tiny())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    fails(tmp_path, "is not a run folder", "train", "--out", tmp_path / "other", "--resume", "auto", *tiny())
    fails(tmp_path, "is not a run folder", "train", "--out", tmp_path / "other/thesis.tex", "--resume", "auto", *tiny())


def test_no_tokenizer_to_build_on(tiny: Settings, tmp_path: Path) -> None:
    message = "holds no trained tokenizer"
    fails(tmp_path, message, "train", "--stage", "transformer", "--out", tmp_path / "run", *tiny())
    fails(tmp_path, "no run folder at", "sample", tmp_path / "run")
    fails(tmp_path, "no run folder at", "tokenize", tmp_path / "run")


def test_paths_that_are_no_checkpoint_to_resume(tiny_run: Path, tmp_path: Path) -> None:
    for path, message in [
        (tiny_run / "checkpoints/tokenizer", "is not a checkpoint of run"),
        (tmp_path / "checkpoints/tokenizer/step-00000001", "is not a checkpoint of run"),
        (tiny_run / "checkpoints/tokenizer/step-00000099", "there is no checkpoint at"),
        (tiny_run / "checkpoints/tokenizer/step-00000004", f"the tokenizer of {tiny_run} is already trained"),
    ]:
        fails(tiny_run, message, "train", "--out", tiny_run, "--resume", path)


def test_a_truncated_checkpoint_offers_the_one_before(run: Path, tiny_run: Path) -> None:
    (run / "transformer/model.safetensors").unlink()
    checkpoints = run / "checkpoints/transformer"
    file = checkpoints / "step-00000006/optimizer-transformer.safetensors"
    os.truncate(file, file.stat().st_size // 2)
    offer = f"the one before it is intact: --resume {checkpoints / 'step-00000004'}"
    for resume in ("auto", checkpoints / "step-00000006"):
        fails(run, offer, "train", "--out", run, "--resume", resume)
    result = invoke("train", "--resume", checkpoints / "step-00000004")
    assert result.exit_code == 0, result.output
    one, other = (load_file(folder / "transformer/model.safetensors") for folder in (run, tiny_run))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_tokens_of_another_tokenizer(tiny: Settings, run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    arguments = ("train", "--out", other, "--stage", "tokenizer", *tiny(**{"training.tokenizer.steps": 1, "seed": 1}))
    assert invoke(*arguments).exit_code == 0
    shutil.copytree(run / "tokens.zarr", other / "tokens.zarr")
    message = "run `nextscale tokenize` or delete it"
    fails(other, message, "train", "--out", other, "--resume", "auto")
    assert invoke("tokenize", other).exit_code == 0
    assert invoke("train", "--out", other, "--resume", "auto").exit_code == 0


def test_damaged_models(run: Path) -> None:
    file = run / "transformer/model.safetensors"
    os.truncate(file, file.stat().st_size - 100)
    fails(run, f"{file} is damaged", "sample", run)
    (run / "tokenizer/config.json").write_text("{")
    fails(run, "tokenizer/config.json is damaged: it is not JSON", "sample", run)


# While it trains


def test_a_loss_that_is_not_finite(tiny: Settings, tmp_path: Path) -> None:
    """The last saved checkpoint is good, and the error names it."""
    run = tmp_path / "run"
    absurd = {
        "training.tokenizer.lr": 1e20, "training.tokenizer.warmup": 0.7, "training.tokenizer.clip": 0,
        "training.tokenizer.steps": 40, "training.tokenizer.checkpoint_every": 1,
    }  # fmt: skip
    last = stops("training stopped", "train", "--out", run, *tiny(**absurd))
    assert "try a lower training.tokenizer.lr" in last
    good = latest_checkpoint(run / "checkpoints/tokenizer")
    if good is None:
        assert "no checkpoint was saved yet" in last
    else:
        assert f"the last good checkpoint is {good}" in last
        check_checkpoint(good)
        assert all(value.isfinite().all() for value in load_file(good / "tokenizer.safetensors").values())
    assert not (run / "tokenizer").exists()


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_writes_that_fail(tiny: Settings, tmp_path: Path, tiny_run: Path) -> None:
    """Nothing half-written remains, and training continues once there is room."""
    run = tmp_path / "run"
    with largest_file(50_000):
        stops("cannot write: File too large", "train", "--out", run, *tiny())
    assert latest_checkpoint(run / "checkpoints/tokenizer") is None
    assert not [path for path in run.rglob("*") if ".partial" in path.name]
    result = invoke("train", "--out", run, "--resume", "auto")
    assert result.exit_code == 0, result.output
    for stage in ("tokenizer", "transformer"):
        one, other = (load_file(folder / stage / "model.safetensors") for folder in (run, tiny_run))
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_full_disk(tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full from the second checkpoint on. The first one stays, and the error names it."""
    run, real = tmp_path / "run", nextscale.storage.files.save_file

    def full(tensors: Any, path: Path, *rest: Any) -> None:
        if "step-00000004" in str(path):
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(tensors, path, *rest)

    monkeypatch.setattr(nextscale.storage.files, "save_file", full)
    last = stops("error: the disk is full: ", "train", "--out", run, *tiny())
    good = run / "checkpoints/tokenizer/step-00000002"
    assert f"the last good checkpoint is {good}" in last
    assert sorted(path.name for path in good.parent.iterdir()) == ["best", "best-before", good.name]
    check_checkpoint(good)


# Sampling


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["label=10"], "label 10 is out of range: this model knows labels 0 to 9"),
        (["label=1,2"], "2 values of label for 16 samples"),
        (["label=nine"], "unknown label 'nine'"),
        (["colour=3"], "unknown condition or sampling setting 'colour'"),
        (["guidance=-1"], "guidance = -1 is wrong"),
        (["top_k=1,2"], "sampling.top_k has 2 values; this model has 4 scales"),
    ],
)
def test_samples_that_cannot_be_drawn(tiny_run: Path, settings: list[str], message: str) -> None:
    fails(tiny_run, message, "sample", tiny_run, *settings)


# Plugins


def test_a_broken_plugin_breaks_nothing_else(
    tiny: Settings, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "path/broken-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[nextscale]\nbroken = broken_entry\n")
    (tmp_path / "path/broken_entry.py").write_text("import nothing_of_this_name\n")
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    discover.cache_clear()
    try:
        fails(tmp_path, "plugin 'broken' of broken 1.0 is broken", "train", "-m", "broken", "--out", tmp_path / "run")
        assert "broken" in invoke("plugins", "ls").output
        assert invoke("sample", tiny_run, "-n", "1", "--out", tmp_path / "drawn").exit_code == 0
        result = invoke("train", "--stage", "tokenizer", "--out", tmp_path / "run", *tiny())
        assert result.exit_code == 0, result.output
    finally:
        discover.cache_clear()
