"""The hooks a plugin may implement. Importing this module must stay cheap: no torch, no pydantic.

A distribution registers an entry module (or object) in the entry-point group ``nextscale``::

    [project.entry-points.nextscale]
    audio = "nextscale_audio.plugin"

and decorates functions in it with ``hookimpl``. Hooks return records and never call into a registry. The core
therefore knows which distribution each record came from, and can name both distributions when two clash. An entry
module must not import torch, because even commands that only print something import it.

A hook takes the arguments it needs, by name and without defaults: pluggy never passes an argument that has a default.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pluggy

if TYPE_CHECKING:
    from nextscale.callbacks import TrainingCallback
    from nextscale.modality import ModalitySpec

PROJECT = "nextscale"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@dataclass(frozen=True)
class CommandSpec:
    """An extra command of the command line.

    Attributes:
        name: the word the user writes after ``nextscale``; the name of a built-in command is refused.
        summary: one line for ``nextscale --help``.
        function: dotted path ``package.module:function`` of a function that typer can turn into a command (or
            of a ``typer.Typer`` for a group of commands); imported when the command is used.
    """

    name: str
    summary: str
    function: str


@dataclass(frozen=True)
class FormatSpec:
    """A format of trained models that other software writes or reads.

    Attributes:
        name: the word the user writes after ``nextscale import`` and ``nextscale export``.
        summary: one line for ``nextscale plugins ls``.
        importer: dotted path ``package.module:function`` of a function that typer can turn into a command and that
            writes a run folder from files of this format; imported when the command is used. None if there is none.
        exporter: the same, in the opposite direction.
    """

    name: str
    summary: str
    importer: str | None = None
    exporter: str | None = None


class RunSettings(Protocol):
    """The part of a run's configuration (``config.sections.RunConfig``) that a callback may read."""

    modality: str
    seed: int
    data: Any
    tokenizer: Any
    transformer: Any
    training: Any
    sampling: Any


@hookspec
def nextscale_modalities() -> Iterable[ModalitySpec]:  # type: ignore[empty-body]
    """The modalities this plugin adds.

    Called once, when plugins are discovered. Each spec names its classes by dotted path, so that nothing heavy is
    imported before a command needs it. If two distributions offer the same name, they clash and neither is used.
    """


@hookspec
def nextscale_commands() -> Iterable[CommandSpec]:  # type: ignore[empty-body]
    """Extra commands for the ``nextscale`` command line.

    Called once, when plugins are discovered.
    """


@hookspec
def nextscale_formats() -> Iterable[FormatSpec]:  # type: ignore[empty-body]
    """Formats of trained models for ``nextscale import NAME`` and ``nextscale export NAME``.

    Called once, when plugins are discovered. An importer reads the files (without running any code from them) and
    writes a run with ``nextscale.plugin.save_run``. If two distributions offer the same name, they clash and neither is
    used.
    """


@hookspec
def nextscale_callbacks(config: RunSettings, folder: Path) -> Iterable[TrainingCallback]:  # type: ignore[empty-body]
    """Callbacks for one training run; called before its first step.

    Args:
        config: the run's resolved configuration. A plugin that does not handle the run's modality returns no callbacks.
        folder: the run's folder.
    """
