"""Training from Python: the data by name, or samples in memory; a preset, a time budget or a whole configuration."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nextscale import plugins
from nextscale.api import Model, load
from nextscale.config.run import load_config, load_run_config
from nextscale.config.sections import RunConfig
from nextscale.errors import ConfigError, NextscaleError, unknown
from nextscale.training.folder import refuse_existing_run
from nextscale.training.plan import load_planned
from nextscale.training.run import train as train_run


def train(
    config: RunConfig | None = None,
    folder: str | Path | None = None,
    stage: str = "all",
    resume: str | None = None,
    *,
    modality: str | None = None,
    preset: str | None = None,
    minutes: float | None = None,
    settings: Mapping[str, Any] | Sequence[str] = (),
    labels: Any = None,
    **samples: Any,
) -> Model | None:
    """Train a run, and return its model (None unless both stages are trained).

    Name the data by ``settings={"data": PATH}``, or give it from memory under the modality's own word
    (``ModalitySpec.samples``; docs/guide/time-budget.md lists those of the built-in ones). Data from memory is written
    beside the run, so that the run can be resumed. A resumed run keeps its own settings.

    Args:
        config: a whole configuration; it takes the place of ``modality``, ``preset``, ``minutes`` and ``settings``.
        folder: of the run; None is ``runs/NAME``, as on the command line.
        stage, resume: as ``training.run.train``.
        modality: its name; samples from memory tell it.
        preset: its name. Without it, ``minutes`` chooses the sizes of the models, too.
        minutes: the time budget.
        settings: ``{"transformer.depth": 4}`` or ``["transformer.depth=4"]``.
        labels: one per sample, with samples from memory; the model draws samples for them.
        samples: samples from memory, in the form that ``Modality.store_samples`` of their modality takes.

    Raises:
        ConfigError, PluginError, DataError, CheckpointError, TrainingError: as the command line does.
        Interrupted: after SIGINT or SIGTERM, once a checkpoint is saved.
    """
    began = time.monotonic()
    pairs = settings.items() if isinstance(settings, Mapping) else None
    overrides = [str(text) for text in settings] if pairs is None else [f"{key}={value}" for key, value in pairs]
    if config is not None:
        if modality or preset or minutes is not None or overrides or samples or labels is not None:
            raise ConfigError("nextscale.train takes a whole configuration or its parts, not both")
    else:
        modality, given = _given(samples, modality)
        folder = Path(folder) if folder is not None else Path("runs") / str(preset or modality)
        if resume is None:
            refuse_existing_run(folder)
        if given is not None:
            stored = plugins.modality(modality).store_samples(given, labels, folder.parent / f"{folder.name}-data")
            overrides = [*(f"data.{key}={value}" for key, value in stored.items()), *overrides]
        elif labels is not None:
            raise ConfigError("nextscale.train: labels need samples from memory beside them")
        if resume is not None and (folder / "config.yaml").exists():
            budget = [] if minutes is None else [f"training.minutes={minutes:g}"]
            config = load_run_config(folder, [*overrides, *budget])
        elif minutes is not None:
            config = load_planned(minutes, modality, preset, overrides=overrides, began=began).config
        else:
            config = load_config(modality, preset, overrides=overrides)
    if folder is None:
        raise ConfigError("nextscale.train needs the run's folder beside a configuration")
    train_run(config, Path(folder), stage, resume, began)
    return load(folder) if stage == "all" else None


def _given(samples: Mapping[str, Any], modality: str | None) -> tuple[str, Any]:
    """The modality, and its samples from memory (None if there are none)."""
    words = {each.spec.samples: name for name, each in plugins.discover().modalities.items() if each.spec.samples}
    for word in samples:
        if word not in words:
            raise NextscaleError(unknown("argument of nextscale.train", word, words))
    if len(samples) > 1:
        raise ConfigError(f"nextscale.train takes one kind of samples, not {' and '.join(samples)}")
    if not samples:
        if modality is None:
            raise ConfigError("nextscale.train needs a modality, or samples: " + ", ".join(sorted(words)))
        return modality, None
    ((word, given),) = samples.items()
    if modality not in (None, words[word]):
        raise ConfigError(f"nextscale.train: {word} are samples of modality {words[word]}, not {modality}")
    return words[word], given
