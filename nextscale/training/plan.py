"""Fit a run to a time budget (``nextscale train --minutes``): choose the size of the models and the numbers of steps.

The modality proposes sizes for the data, the pilot times them, and the largest that gets enough steps is taken. What is
chosen is written into the run's ``config.yaml`` as plain numbers. While the run trains, ``training.clock`` keeps it to
the budget.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nextscale import plugins
from nextscale.config.run import NO_PRESET, load_config
from nextscale.config.sections import RunConfig, StageConfig
from nextscale.device import cpu_threads, pick_device
from nextscale.errors import ConfigError
from nextscale.modality import Modality, Proposal
from nextscale.training.pilot import Pilot, Timing

OVERHEAD = 0.08
"""Share of a stage's time for validation, pictures and checkpoints, by experience."""
PILOT_SHARE = 0.05
"""No larger size is tried once the pilot has used this share of the budget."""
LEFT = 0.3
"""Share of the budget that must be left for training."""
VALIDATIONS = 25
"""Validations per stage."""
PATIENCE = 6
"""Validations without progress after which a stage ends. Progress came after at most four of them (docs/RESULTS.md)."""

Configure = Callable[[Mapping[str, Any] | None], RunConfig]
"""Makes a configuration from settings that what the user wrote overrides; None leaves the preset as it is."""


@dataclass
class Plan:
    """A configuration for a time budget, and what led to it: rows for people to read."""

    config: RunConfig
    report: dict[str, Any] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """What was tried and chosen, in a few lines."""
        tried = [f"  {size}: {what}" for size, what in self.report["sizes tried"].items()]
        return [
            f"tried for {self.report['the pilot took']}:",
            *tried,
            *(f"{key}: {self.report[key]}" for key in ("chosen", "threads") if key in self.report),
        ]


def plan(
    configure: Configure, minutes: float, *, propose: bool, stage: str = "all", began: float | None = None
) -> Plan:
    """Plan a run of ``minutes``.

    Args:
        configure: makes the run's configuration from the settings chosen here.
        propose: choose the size of the models, too; False keeps what ``configure`` has and plans only steps.
        stage: the stage that is given the minutes, ``tokenizer`` or ``transformer``; ``all`` divides them between both.
        began: the ``time.monotonic()`` from which the minutes count; None is now.

    Raises:
        ConfigError: the settings do not fit, or not even one step would fit into the time.
        DataError: the data cannot be opened.
    """
    began = time.monotonic() if began is None else began
    if not 0 < minutes < float("inf"):
        raise ConfigError(f"--minutes {minutes:g} is wrong: should be a number above 0")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("--minutes plans on one process: plan there with --dry-run, and train with --config")
    base = configure(None)
    modality = plugins.modality(base.modality)
    suited = {"data": modality.suit_data(base.data)} if propose else {}
    data = modality.open_data(configure(suited).data)
    proposals = (modality.propose(data) if propose else []) or [Proposal({})]
    pilot = Pilot(modality, data, pick_device(base.training.device))
    threads = pilot.fewer_threads(configure(_merged(suited, proposals[0].settings)))
    chosen: tuple[dict[str, Any], RunConfig, Timing] | None = None
    table: dict[str, str] = {}
    for number, proposal in enumerate(proposals):
        settings = _merged(suited, proposal.settings)
        config = configure(settings)
        with cpu_threads(threads or config.training.threads):
            timing = _of_stage(pilot.time(config), stage)
        seconds = 60 * minutes - (time.monotonic() - began)
        steps = _steps(config, timing, seconds, len(data.train), scaled=not propose)[1]
        enough = number == 0 or steps >= proposal.steps
        table[_size(config, timing)] = _row(timing, steps, proposal.steps, enough)
        if enough:
            chosen = settings, config, timing
        if not enough or time.monotonic() - began > PILOT_SHARE * 60 * minutes:
            break
    assert chosen is not None
    settings, config, timing = chosen
    took = time.monotonic() - began
    seconds = 60 * minutes - took
    if seconds < LEFT * 60 * minutes:
        raise ConfigError(
            f"--minutes {minutes:g} is too short: opening the data and timing a few steps took {took:.0f} s; give at "
            f"least {took / (1 - LEFT) / 60:.1f}"
        )
    numbers = _numbers(config, timing, seconds, len(data.train), minutes, scaled=not propose)
    numbers["training"] |= {"threads": threads} if threads else {}
    planned = configure(_merged(settings, numbers))
    report = {
        "minutes": minutes,
        "the pilot took": f"{took:.0f} s",
        "sizes tried": table,
        "chosen": _chosen(planned, timing),
        **({"threads": f"{threads}: with more, a step takes longer, because the machine is busy"} if threads else {}),
    }
    return Plan(planned, report)


def load_planned(
    minutes: float,
    modality: str | None = None,
    preset: str | None = None,
    file: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    default_modality: str | None = None,
    start: str | Path | None = None,
    began: float | None = None,
) -> Plan:
    """``config.run.load_config`` for a time budget: without preset, file and run to start from, the size is chosen. A
    modality that proposes no sizes then trains its default preset.

    Raises:
        ConfigError, PluginError, DataError: as ``load_config`` and ``plan``.
    """
    propose = preset is None and file is None and start is None
    if propose:
        named = load_config(modality, NO_PRESET, overrides=overrides, default_modality=default_modality).modality
        propose = type(plugins.modality(named)).propose is not Modality.propose

    def configure(proposal: Mapping[str, Any] | None) -> RunConfig:
        return load_config(
            modality,
            NO_PRESET if propose else preset,
            file,
            overrides,
            default_modality=default_modality,
            start=start,
            proposal=proposal,
        )

    return plan(configure, minutes, propose=propose, began=began)


def _of_stage(timing: Timing, stage: str) -> Timing:
    """``timing`` of a run that trains only this stage. The other takes no time, nor does caching tokens: such a run is
    to leave that out (``train(counts_caching=False)``)."""
    if stage == "tokenizer":
        return replace(timing, transformer=0.0, encode=0.0)
    return replace(timing, tokenizer=0.0, encode=0.0) if stage == "transformer" else timing


def _size(config: RunConfig, timing: Timing) -> str:
    model = config.transformer
    blocks = f"{model.depth} blocks of " if model.depth else ""  # a modality's own stem does all the work
    return f"{blocks}width {model.model_width} ({timing.weights / 1e6:.2f} million weights)"


def _chosen(config: RunConfig, timing: Timing) -> str:
    one, two = config.training.tokenizer.steps, config.training.transformer.steps
    first = f"about {one:,} steps of the tokenizer and " if timing.tokenizer else "about "
    return f"{_size(config, timing)}, {first}{two:,} {'' if timing.tokenizer else 'steps '}of the transformer"


def _row(timing: Timing, steps: int, needed: int, enough: bool) -> str:
    verdict = f"fewer than the {needed:,} it needs" if not enough else "enough"
    return f"{timing.transformer * 1e3:.0f} ms per step; {steps:,} steps fit, {verdict}"


def _steps(
    config: RunConfig, timing: Timing, seconds: float, samples: int, scaled: bool
) -> tuple[int, int, dict[str, Any]]:
    """How many steps of each stage fit into ``seconds``, and how tokens are to be cached."""
    stages, useful = config.training, seconds * (1 - OVERHEAD)
    one, two = stages.tokenizer, stages.transformer
    caching = timing.encode * samples * two.cache_passes if two.cache else 0.0
    if scaled:  # the preset's proportions
        wanted = timing.tokenizer * one.steps + timing.transformer * two.steps
        factor = max(0.0, useful - caching) / wanted if wanted else 1.0
        return max(1, int(one.steps * factor)), max(1, int(two.steps * factor)), {}
    first = useful * stages.tokenizer_share if timing.tokenizer else 0.0
    rest = max(0.0, useful - first)
    cached = max(0.0, rest - caching) / timing.transformer
    # Samples that are seen less than once are better tokenized as they come.
    direct = rest / (timing.transformer + timing.encode * two.batch_size)
    on_the_fly = two.cache and timing.encode > 0 and direct > cached
    cache: dict[str, Any] = {"cache": False} if on_the_fly else {}
    number = max(1, int(direct if on_the_fly else cached))
    return max(1, int(first / timing.tokenizer) if timing.tokenizer else 1), number, cache


def _numbers(
    config: RunConfig, timing: Timing, seconds: float, samples: int, minutes: float, scaled: bool
) -> dict[str, Any]:
    """The settings that follow from the time."""
    first, second, cache = _steps(config, timing, seconds, samples, scaled)
    stages = config.training
    training: dict[str, Any] = {"minutes": minutes}
    if scaled:
        share = timing.tokenizer * first / max(1e-9, timing.tokenizer * first + timing.transformer * second)
        training["tokenizer_share"] = round(share, 3)
        return {"training": {**training, "tokenizer": {"steps": first}, "transformer": {"steps": second}}}
    training["tokenizer"] = _stage(stages.tokenizer, first, 40)
    training["transformer"] = {**_stage(stages.transformer, second, 20), **cache}
    return {"training": training}


def _stage(config: StageConfig, steps: int, averaged: int) -> dict[str, Any]:
    """Settings of a stage of ``steps`` steps, of whose weights about the last 1 / ``averaged`` are averaged."""
    every = max(1, steps // VALIDATIONS)
    ema = min(0.9995, max(0.9, 1 - averaged / steps)) if steps > averaged else 0.0
    # Validation reads a sample three times as fast as training: all of them together take about 5% of the time.
    held_out = max(64, min(2048, round(0.15 * steps * config.batch_size / VALIDATIONS)))
    return {
        "steps": steps,
        "schedule": "trapezoid",
        "warmup": round(min(0.05, max(0.01, 100 / steps)), 4),
        "ema": round(ema, 5),
        "validate_every": every,
        "validation_samples": held_out,
        "patience": PATIENCE,
        "checkpoint_every": max(1, 2 * every),
        "samples_every": max(1, 6 * every),
        "log_every": max(1, min(10, every)),
    }


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings: those of ``one``, overridden by those of ``other``."""
    both = dict(one)
    for key, value in other.items():
        mine = both.get(key)
        both[key] = _merged(mine, value) if isinstance(mine, Mapping) and isinstance(value, Mapping) else value
    return both
