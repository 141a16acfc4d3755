"""Invariants 24 and 25 of a modality: files are written and read, and measurements work."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nextscale.data import DataSplits, Samples
from nextscale.errors import DataError
from nextscale.modality import EvaluationContext, Modality, TrainedModel
from nextscale.testing.invariants import holds, likely
from nextscale.tokens.tokenizer import MultiscaleTokenizer


@holds("writers")
def check_writers(
    modality: Modality, steps: list[Any], number: int, folder: Path, description: Mapping[str, Any]
) -> None:
    """24. Samples, coarse or complete, can be written: one file per sample, numbered through where they are written in
    batches; files that hold all of them; an overview and the film strip, these two with captions and without.

    ``steps[k]`` holds the same ``number`` samples decoded after scale k.
    """
    name = "invariant 24 (writers)"
    samples = steps[-1]
    files = modality.write_samples(samples, folder / "samples", description)
    assert len(files) == len(set(files)) == number, (
        f"{name}: write_samples returns {len(set(files))} different files for {number} samples"
    )
    check_written(name, "write_samples", files)
    told = [{"run": "Zürich \u4f60\u597d", "sample": str(i)} for i in range(number)]
    batches = [Samples(samples[:1], [], {}, told[:1]), Samples(samples[1:], [], {}, told[1:])]
    again, first = [], 0
    for batch in batches:
        again += modality.write_samples(batch.samples, folder / "batches", description, first, batch.metadata)
        first += len(batch.metadata)
    expected = [file.name for file in files]
    assert [file.name for file in again] == expected, (
        f"{name}: written as two batches, files are called {[file.name for file in again]}, not {expected}"
    )
    check_written(name, "write_samples", again)
    taken = iter(batches)
    archives = modality.write_archives(taken, folder / "batches", description)
    assert next(taken, None) is None, f"{name}: write_archives does not take all batches"
    assert not set(archives) & set(again), f"{name}: write_archives writes over the files of write_samples"
    check_written(name, "write_archives", archives)
    for captions in (None, [f"sample {i}" for i in range(number)]):
        written = modality.write_grid(steps[-1], folder / "grid", description, captions=captions)
        check_written(name, "write_grid", [written])
    for captions in (None, [f"scale {k}" for k in range(len(steps))]):
        written = modality.write_film(steps, folder / "film", description, captions=captions)
        check_written(name, "write_film", [written])


def check_written(name: str, method: str, files: list[Path]) -> None:
    for file in files:
        assert isinstance(file, Path), f"{name}: {method} returns {type(file).__name__}, not the path of what it wrote"
        assert file.is_file(), f"{name}: {method} returns {file}, but there is no such file"
        assert file.stat().st_size > 0, f"{name}: {method} wrote nothing into {file}"


@holds("parts")
def check_parts(modality: Modality, sample: Tensor, folder: Path, description: Mapping[str, Any]) -> None:
    """24. ``write_parts`` (where a modality has it) writes a sample that arrives in two parts along its first axis."""
    middle = max(1, sample.shape[2] // 2)
    parts = [part for part in (sample[:1, :, :middle], sample[:1, :, middle:]) if part.shape[2]]
    folder.mkdir(parents=True, exist_ok=True)
    written = modality.write_parts(iter(parts), folder / "parts", description)
    check_written("invariant 24 (writing by parts)", "write_parts", [written])


@holds("reader")
@torch.no_grad()
def check_reader(modality: Modality, tokenizer: MultiscaleTokenizer, file: Path, mask: Path | None = None) -> None:
    """24. ``read_sample`` (where a modality has it) reads ``file`` as a batch of one that ``encode`` takes.

    With a ``mask``, it also gives booleans of the sample's grid, or it raises a DataError because no file can be a
    mask of such samples.
    """
    name = "invariant 24 (reading)"
    sample, marked = modality.read_sample(file, tokenizer)
    assert marked is None, f"{name}: {file.name} was read without a mask, but a mask came out"
    with likely("read_sample must return what encode takes: a batch of one, of the tokenizer's size and channels"):
        rows = len(tokenizer.encode(sample))
        assert rows == 1, f"{name}: the sample read from {file.name} is encoded to {rows} rows, not one"
    if mask is not None:
        try:
            sample, marked = modality.read_sample(file, tokenizer, mask)
        except DataError:
            return
        expected = (1, *sample.shape[2:])
        found = None if marked is None else (marked.dtype, tuple(marked.shape))
        assert found == (torch.bool, expected), f"{name}: the mask is {found}, not booleans {expected}"


@holds("evaluation")
def check_evaluation(
    modality: Modality,
    tokenizer: MultiscaleTokenizer,
    model: TrainedModel,
    splits: DataSplits,
    options: Any,
    cache: Path | None = None,
    number: int = 8,
) -> None:
    """25. ``evaluate_tokenizer``, ``evaluate_model`` and ``evaluate_samples`` work with ``options``, the defaults of
    their section, on ``number`` real samples, and return what eval.json can hold."""
    context = EvaluationContext(torch.device("cpu"), cache)
    source = splits.validation
    batch = source.batch(np.arange(number) % len(source), None)
    results = {
        "evaluate_tokenizer": lambda: modality.evaluate_tokenizer(tokenizer, splits, options, context),
        "evaluate_model": lambda: modality.evaluate_model(model, splits, options, context),
        "evaluate_samples": lambda: modality.evaluate_samples(
            batch.samples, batch.conditions, splits, options, context
        ),
    }
    for method, measure in results.items():
        found = measure()
        name = f"invariant 25 (evaluation): {method}"
        assert isinstance(found, dict), f"{name} returns {type(found).__name__}, not a dict"
        with likely("return plain numbers: float(tensor), not tensors or numpy arrays"):
            try:
                json.dumps(found)
            except (TypeError, ValueError) as error:
                raise AssertionError(f"{name} returns what eval.json cannot hold: {error}") from None
