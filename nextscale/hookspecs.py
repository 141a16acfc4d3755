"""The hooks a plugin may implement. Reading this module must stay cheap: no torch, no pydantic.

A distribution registers an entry module (or object) in the entry-point group ``nextscale``::

    [project.entry-points.nextscale]
    audio = "nextscale_audio.plugin"

and decorates functions in it with ``hookimpl``. Hooks return records; they never call back into a registry, so
the core can say which distribution a record came from, and name both where two clash. An entry module must not
import torch: it is read at the start of commands that only print something.

Take the arguments a hook needs, by name and without defaults: pluggy never passes an argument that has one.
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
        name: what the user writes after ``nextscale``; a built-in command's name is refused.
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
        name: what the user writes after ``nextscale import`` and ``nextscale export``.
        summary: one line for ``nextscale plugins ls``.
        importer: dotted path ``package.module:function`` of a function that typer can turn into a command, which
            writes a run folder from such files; imported when the command is used. None where it is not built.
        exporter: the same, for the way back.
    """

    name: str
    summary: str
    importer: str | None = None
    exporter: str | None = None


class RunSettings(Protocol):
    """What a callback may read of a run's configuration (``config.sections.RunConfig``)."""

    modality: str
    seed: int
    data: Any
    tokenizer: Any
    transformer: Any
    training: Any
    sampling: Any


@hookspec
def nextscale_modalities() -> Iterable[ModalitySpec]:  # type: ignore[empty-body]
    """The modalities this plugin brings.

    Called once, when plugins are discovered. Each spec names its classes by dotted path, so nothing heavy is
    imported before a command needs it. Two distributions that offer the same name clash: neither is used.
    """


@hookspec
def nextscale_commands() -> Iterable[CommandSpec]:  # type: ignore[empty-body]
    """Extra commands for the ``nextscale`` command line.

    Called once, when plugins are discovered.
    """


@hookspec
def nextscale_formats() -> Iterable[FormatSpec]:  # type: ignore[empty-body]
    """Formats of trained models for ``nextscale import NAME`` and ``nextscale export NAME``.

    Called once, when plugins are discovered. An importer reads the files (running no code from them) and writes a run
    with ``nextscale.plugin.save_run``. Two distributions that offer the same name clash: neither is used.
    """


@hookspec
def nextscale_callbacks(config: RunSettings, folder: Path) -> Iterable[TrainingCallback]:  # type: ignore[empty-body]
    """Callbacks for one training run, asked for before its first step.

    Args:
        config: the run's resolved configuration; a plugin that does not concern its modality returns nothing.
        folder: the run's folder.
    """
