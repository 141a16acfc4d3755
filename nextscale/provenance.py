"""What a written sample says about where it came from: short texts that files of any kind can carry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from nextscale.api import Model
from nextscale.conditioning import ConditionSpec
from nextscale.data import Samples

LONGEST_VECTOR = 64
"""Longer vectors are described by their length, because every file of a draw carries the text."""


def provenance(
    model: Model,
    run: Path,
    drawn: Samples,
    seed: int,
    first: int = 0,
    sampling: Mapping[str, Any] | None = None,
    checkpoint: str | None = None,
    **more: str,
) -> list[dict[str, str]]:
    """For each sample of a batch, what it takes to draw it again.

    ``software``, ``run`` (the folder's name), ``seed`` and ``sample`` (its number within the draw) are plain texts.
    ``conditions`` and ``sampling`` are JSON: values by name, classes by their name where they have one, null where a
    condition was left out; and every sampling setting.

    Args:
        first: the number of the batch's first sample.
        sampling: the fields of ``SamplingConfig`` that differ from the run's.
        checkpoint: which weights of a training that is not finished were used (``api.load``).
        more: further texts, the same for all samples.
    """
    settings = model.sampling(sampling or {}).model_dump(mode="json")
    common = {
        "software": f"nextscale {version('nextscale')}",
        "run": run.resolve().name,
        "seed": str(seed),
        "sampling": json.dumps(settings, ensure_ascii=False),
        **({} if checkpoint is None else {"checkpoint": checkpoint}),
        **more,
    }
    common = {name: _printable(text) for name, text in common.items()}
    return [
        {
            **common,
            "sample": str(first + i),
            "conditions": _printable(json.dumps(_values(model, drawn, i), ensure_ascii=False)),
        }
        for i in range(len(drawn.samples))
    ]


def _values(model: Model, drawn: Samples, i: int) -> dict[str, Any]:
    given = drawn.conditions
    return {spec.name: _value(spec, given[spec.name][i]) if spec.name in given else None for spec in model.conditions}


def _value(spec: ConditionSpec, value: Tensor) -> Any:
    if spec.kind == "vector":
        return value.tolist() if len(value) <= LONGEST_VECTOR else f"a vector of {len(value)} numbers"
    number = int(value)
    return spec.names[number] if spec.kind == "class" and number < len(spec.names) else number


def _printable(text: str) -> str:
    """Without what no text format can hold: control characters, and halves of characters in names of folders."""
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in text)
