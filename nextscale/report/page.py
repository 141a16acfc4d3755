"""The report of a run: one page of HTML with everything in it, and a policy that forbids it to fetch anything."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from nextscale.config.dump import dump_config
from nextscale.report.contents import STAGES, RunContents, StageLosses, differences, read_run
from nextscale.report.pictures import embedded
from nextscale.report.plot import Curve, line_plot
from nextscale.report.results import flat_rows, show
from nextscale.storage.files import write_text_atomic

NAME = "report.html"
STYLE = Path(__file__).with_name("style.css")
SIDE, SMALL_SIDE = 1600, 640
"""Pixels: the longest side of a picture, and of one of many."""
MOST_DRAWN = 8
"""Pictures of a stage over time, evenly spread."""
PARTS = ("measured", "incomplete")
"""Keys of ``eval.json`` that are no results."""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(run: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of a run, finished or not, to ``out`` (RUN/report.html). Returns its path.

    Raises:
        CheckpointError, ConfigError, PluginError: there is no such run, or one of its files is damaged.
        TrainingError: the disk is full, or the file cannot be written. An older report is then left as it is.
    """
    run = Path(run)
    path = run / NAME if out is None else Path(out)
    # Names of files and classes may hold bytes that are no text.
    write_text_atomic(path, page(read_run(run)).encode("utf-8", "replace").decode())
    return path


def page(run: RunContents) -> str:
    """The whole page. Every text that comes from the run is escaped."""
    name = escape(run.folder.resolve().name)
    body = "".join(
        f"<section><h2>{title}</h2>{content}</section>"
        for title, make in SECTIONS.items()
        if (content := "".join(make(run)))
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}: nextscale report</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{STYLE.read_text(encoding='utf-8')}</style></head>\n"
        f"<body><header><h1>{name}</h1>{''.join(_header(run))}</header>\n{body}</body></html>\n"
    )


def _header(run: RunContents) -> Iterator[str]:
    preset = f", preset {run.config.preset}" if run.config.preset else ""
    now = datetime.datetime.now().astimezone()
    made = f"nextscale {run.environment.get('nextscale', version('nextscale'))}, report of {now:%d %B %Y, %H:%M}"
    yield f'<p class="soft">modality {escape(run.config.modality + preset)} · {escape(made)}</p>'
    missing = [stage for stage, done in run.trained.items() if not done]
    if missing:
        command = f"nextscale train --out {shlex.quote(str(run.folder))} --resume auto"
        what = " and the ".join(missing)
        yield f"<p>The {what} {'are' if len(missing) > 1 else 'is'} not trained yet. To go on: {_code(command)}</p>"


def _samples(run: RunContents) -> Iterator[str]:
    if run.samples is not None:
        yield embedded(run.samples, "Samples of the trained model", SIDE)
    if run.reconstructions is not None:
        yield "<h3>Reconstructions</h3>"
        yield embedded(run.reconstructions, "Held-out samples after each scale, beside the originals", SIDE)


def _losses(run: RunContents) -> Iterator[str]:
    plots = "".join(plot for stage, losses in run.losses.items() for plot in _stage_plots(stage, losses))
    yield f'<div class="plots">{plots}</div>' if plots else "<p>No losses are recorded yet.</p>"


def _stage_plots(stage: str, losses: StageLosses) -> Iterator[str]:
    curves = [Curve("training", losses.train, faint=True), Curve("validation", losses.validation)]
    yield line_plot(f"Loss of the {stage}", curves)
    scales = [Curve(name, points) for name, points in losses.by_scale.items()]
    if scales:
        yield line_plot(f"Validation loss of the {stage} by scale", scales)


def _over_time(run: RunContents) -> Iterator[str]:
    for stage, drawn in run.drawn.items():
        if not drawn:
            continue
        chosen = np.unique(np.linspace(0, len(drawn) - 1, min(MOST_DRAWN, len(drawn))).round().astype(int))
        what = "Reconstructions while the tokenizer" if stage == STAGES[0] else f"Samples while the {stage}"
        pictures = (embedded(drawn[i][1], f"step {drawn[i][0]:,}", SMALL_SIDE, still=True) for i in chosen)
        yield f'<h3>{escape(what)} trained</h3><div class="row">{"".join(pictures)}</div>'


def _results(run: RunContents) -> Iterator[str]:
    if not run.results:
        command = f"nextscale eval {shlex.quote(str(run.folder))}"
        todo = f" To measure reconstruction and samples: {_code(command)}" if run.trained["tokenizer"] else ""
        yield f"<p>Nothing is measured yet.{todo}</p>"
    for name, results in run.results.items():
        if len(run.results) > 1:
            yield f"<h3>{escape(name)}.json</h3>"
        if results.get("incomplete"):
            yield "<p>The evaluation was interrupted: these are the parts that it had measured.</p>"
        told = results.get("measured")
        if isinstance(told, Mapping):
            yield f'<p class="soft">{escape(", ".join(f"{key} {value}" for key, value, _ in flat_rows(told)))}</p>'
        parts = {part: values for part, values in results.items() if part not in PARTS}
        yield f'<div class="tables">{"".join(_part(part, values) for part, values in parts.items())}</div>'


def _part(part: str, values: Any) -> str:
    rows = flat_rows(values) if isinstance(values, Mapping) else [("", show(values), "")]
    return _table(rows, ["", "value", "real against real"], part, numbers=True)


def _data(run: RunContents) -> Iterator[str]:
    if run.data is None:
        return
    values = dict(run.data)
    samples, conditions = values.pop("samples", None), values.pop("conditions", None)
    rows = [(f"{key} samples", value) for key, value, _ in flat_rows(samples)] if isinstance(samples, Mapping) else []
    for spec in conditions if isinstance(conditions, list) else []:
        if isinstance(spec, Mapping):
            names = f": {show(spec['names'])}" if spec.get("names") else ""
            rows.append((f"condition {spec.get('name')}", f"{spec.get('kind')}, {show(spec.get('size'))}{names}"))
    description = values.get("description")
    rows += [(key, value) for key, value, _ in flat_rows(description)] if isinstance(description, Mapping) else []
    yield _table([(key, value if len(value) <= 400 else f"{value[:400]}…") for key, value in rows], ["", ""])


def _settings(run: RunContents) -> Iterator[str]:
    config = run.config
    default = type(config)(modality=config.modality, preset=config.preset)
    changed = [(key, show(value), show(usual)) for key, value, usual in differences(config, default)]
    if changed:
        yield _table(changed, ["setting", "value", "default"])
    yield f"<details><summary>All settings</summary><pre>{escape(dump_config(config))}</pre></details>"


def _environment(run: RunContents) -> Iterator[str]:
    values = dict(run.environment)
    command = values.pop("command", None)
    if isinstance(command, list):
        yield f"<p>Started by: {_code(shlex.join(map(str, command)))}</p>"
    yield _table([row[:2] for row in flat_rows(values)], ["", ""])


SECTIONS: dict[str, Callable[[RunContents], Iterator[str]]] = {
    "Samples": _samples,
    "Losses": _losses,
    "Over time": _over_time,
    "Results": _results,
    "Data": _data,
    "Settings": _settings,
    "Environment": _environment,
}


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def _table(rows: Sequence[Sequence[str]], heads: Sequence[str], caption: str = "", numbers: bool = False) -> str:
    """A table of texts. Columns that are empty throughout are left out."""
    kept = [k for k in range(len(heads)) if any(row[k] for row in rows)]
    if not kept:
        return ""

    def line(texts: Sequence[str], tag: str) -> str:
        aligned = [' class="number"' if numbers and k else "" for k in kept]
        return "".join(f"<{tag}{how}>{escape(texts[k])}</{tag}>" for k, how in zip(kept, aligned, strict=True))

    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    head = f"<tr>{line(heads, 'th')}</tr>" if any(heads) else ""
    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f"<table>{title}{head}{body}</table>"
