"""The model card (README.md) of a shared run: what it draws, how to load it, what it was trained on, what it is worth.

The head is YAML as the hub reads it (https://huggingface.co/docs/hub/model-cards).
"""

from __future__ import annotations

import html
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml
from torch import nn

from nextscale import plugins
from nextscale.api import Model
from nextscale.config.sections import RunConfig, StageConfig
from nextscale.errors import NextscaleError
from nextscale.sharing.results import Result, measured

MAX_NAMES = 50
"""Class names that are listed; a data set may have thousands."""


def model_card(
    model: Model,
    name: str,
    config: RunConfig,
    environment: Mapping[str, Any],
    results: Mapping[str, Any] | None,
    pictures: Iterable[str],
    license: str | None = None,
) -> str:
    """The card as Markdown.

    Args:
        name: what others load, such as ``hf:me/digits``.
        config: the settings as they are shared.
        environment: ``env.json``; may be empty.
        results: ``eval.json``, if there is one.
        pictures: names of the pictures that lie beside the card.
        license: an identifier such as ``apache-2.0``.
    """
    title = re.sub(r"@.*", "", name.rsplit("/", 1)[-1].removeprefix("hf:"))
    found = list(measured(results or {}))
    spec = plugins.discover().get(config.modality)
    parts = [
        _head(title, config, found, license),
        f"# {_plain(title)}",
        f"A next-scale model of the modality **{config.modality}** ({_plain(spec.summary)}), trained with nextscale. "
        "It draws a sample from coarse to fine: all tokens of a scale at once, given the coarser scales.",
        *_pictures(list(pictures)),
        "## Use",
        _usage(name, model),
        "## Data",
        _data(model, config),
        "## Model",
        _model(model),
        "## Training",
        _training(model, config, environment),
        "## Results",
        _results(name, found, bool((results or {}).get("incomplete"))),
        "## Limits",
        _limits(found, license),
    ]
    return "\n\n".join(parts) + "\n"


def _head(title: str, config: RunConfig, found: list[Result], license: str | None) -> str:
    values: dict[str, Any] = {"library_name": "nextscale", "tags": ["nextscale", "next-scale-prediction", "var"]}
    values["tags"].append(config.modality)
    if license is not None:
        values["license"] = license
    metrics = [{"type": each.name, "name": each.label, "value": each.value} for each in found if not each.is_floor]
    if metrics:
        data = {"type": "other", "name": str(_source(config) or config.modality)}
        values["model-index"] = [
            {"name": title, "results": [{"task": {"type": "other"}, "dataset": data, "metrics": metrics}]}
        ]
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---"


def _pictures(names: list[str]) -> Iterator[str]:
    """The film strip if there is one, and samples."""
    for stem, caption in (
        ("film", "Samples after each scale, from coarse to fine"),
        ("grid", "Samples"),
        ("samples", "Samples, drawn at the end of training"),
        ("reconstructions", "Held-out samples, decoded after each scale of their own tokens"),
    ):
        found = next((name for name in names if name.rsplit("/", 1)[-1].rsplit(".", 1)[0] == stem), None)
        if found is not None:
            yield f"![{caption}]({found})\n\n*{caption}.*"


def _usage(name: str, model: Model) -> str:
    labels = [spec for spec in model.conditions if spec.kind == "class"]
    condition = f", {labels[0].name}=0" if labels else ""
    install = "pip install 'nextscale[hub]'" if name.startswith("hf:") else "pip install nextscale"
    return (
        f"```bash\n{install}\nnextscale sample {shlex.quote(name)} -n 16\n```\n\n"
        f"```python\nimport nextscale\nmodel = nextscale.load({json.dumps(name)})\n"
        f"samples = model.generate(16{condition}, seed=0).samples\n```"
    )


def _data(model: Model, config: RunConfig) -> str:
    source = _source(config)
    lines = [f"source: {_code(source)}"] if source is not None else []
    lines += [f"{split}: {count:,} samples" for split, count in _counts(model, config).items()]
    for spec in model.conditions:
        names = ", ".join(_code(each) for each in spec.names[:MAX_NAMES])
        more = f" and {len(spec.names) - MAX_NAMES:,} more" if len(spec.names) > MAX_NAMES else ""
        lines.append(f"condition {_code(spec.name)} ({spec.kind}, {spec.size:,}){f': {names}{more}' if names else ''}")
    if not model.conditions:
        lines.append("no conditions")
    listed = [list(spec.names) for spec in model.conditions if spec.names]
    for key, value in model.description.items():
        if value not in (None, [], ()) and not (isinstance(value, list | tuple) and list(value) in listed):
            lines.append(f"{_plain(str(key))}: {_code(_short(value))}")
    return _list(lines)


def _counts(model: Model, config: RunConfig) -> dict[str, int]:
    """Numbers of samples, if the data is at hand."""
    try:
        data = model.modality.open_data(model.config.data)
    except NextscaleError:
        return {}
    splits = {"training": data.train, "validation": data.validation, "test": data.test}
    return {name: len(split) for name, split in splits.items() if split is not None}


def _source(config: RunConfig) -> Any:
    """Where the data comes from, if its section says which setting tells."""
    location = getattr(config.data, "shorthand", None)
    return getattr(config.data, location) if location else None


def _model(model: Model) -> str:
    sizes = {"tokenizer": model.tokenizer, "transformer": model.transformer, "scorer": model.scorer}
    lines = [
        f"{name}: {sum(each.numel() for each in module.parameters()):,} parameters"
        for name, module in sizes.items()
        if module is not None
    ]
    if model.tokenizer.adaptive:
        lines.append("schedule: its scales depend on what is drawn")
    else:
        schedule = model.tokenizer.schedule()
        lines.append(f"schedule: {len(schedule)} scales ({schedule.shapes}), {schedule.length:,} tokens per sample")
    space = ", ".join(f"{key} {_short(value)}" for key, value in model.transformer.token_space.describe().items())
    return _list([*lines, f"tokens: {space}"])


def _training(model: Model, config: RunConfig, environment: Mapping[str, Any]) -> str:
    def stage(name: str, module: nn.Module, settings: StageConfig) -> str:
        if not any(True for _ in module.parameters()):
            return f"{name}: no weights to train"
        return (
            f"{name}: {settings.steps:,} steps of {settings.batch_size:,} samples, learning rate {settings.lr:g}, "
            f"precision {settings.precision}"
        )

    lines = [
        f"preset: {_code(config.preset or 'none')}, seed {config.seed}",
        stage("tokenizer", model.tokenizer, config.training.tokenizer),
        stage("transformer", model.transformer, config.training.transformer),
    ]
    if model.scorer is not None:
        lines.append(stage("scorer", model.scorer, config.training.scorer))
    if config.training.init is not None:
        lines.append(f"started from: {_code(config.training.init)}")
    made = [f"{key} {_plain(str(environment[key]))}" for key in ("nextscale", "torch", "python") if key in environment]
    if made:
        lines.append(f"made with: {', '.join(made)}")
    return _list([*lines, "all settings: `config.yaml`"])


def _results(name: str, found: list[Result], incomplete: bool) -> str:
    if not found:
        command = _code(f"nextscale eval {shlex.quote(name)}")
        return f"This run has not been measured. {command} measures it, where its data is at hand."
    rows = ["| measure | value | real against real |", "|---|---:|---:|"]
    floors = {each.label: each for each in found if each.is_floor}
    for each in found:
        if not each.is_floor:
            floor = floors.get(f"{each.label} floor")
            rows.append(f"| {_plain(each.label)} | {each.shown} | {'' if floor is None else floor.shown} |")
    note = "\n\nThe evaluation was interrupted: some measures are missing." if incomplete else ""
    return (
        "From `nextscale eval` (`eval.json` has all of it). *Real against real* is what real data gets at the same "
        f"number of samples: a model cannot be expected to do better.\n\n{chr(10).join(rows)}{note}"
    )


def _limits(found: list[Result], license: str | None) -> str:
    lines = [
        "It draws what resembles its training data, with the faults and gaps of that data. Nothing else was tested.",
        "A small training set may be memorised: do not take samples for new without a comparison.",
        "Neither the training data nor paths of its author's computer are part of this repository.",
    ]
    if found:
        lines.append("The results hold for the data and settings named here.")
    if license is None:
        lines.append("No license is stated: ask the author before you use it.")
    return _list(lines)


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _plain(text: str) -> str:
    """Text in which nothing is read as Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _code(text: Any) -> str:
    """Text as code; backticks and line breaks would end it."""
    return f"`{' '.join(str(text).replace('`', '’').split()) or ' '}`"
