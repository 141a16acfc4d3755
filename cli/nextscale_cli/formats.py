"""``nextscale import NAME`` and ``nextscale export NAME``: the model formats that plugins support."""

from __future__ import annotations

from typing import Any, Literal

import typer
from typer.core import TyperGroup

from nextscale_cli.options import PLAIN


class _FormatGroup(TyperGroup):
    """One command per format, taken from its plugin and with its own options."""

    direction: Literal["importer", "exporter"]

    def _paths(self) -> dict[str, str]:
        from nextscale.plugins import discover

        paths = {spec.name: getattr(spec, self.direction) for spec in discover().formats()}
        return {name: path for name, path in paths.items() if path is not None}

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self._paths())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        from nextscale_cli.main import build

        path = self._paths().get(cmd_name)
        return None if path is None else build(cmd_name, path)


class ImporterGroup(_FormatGroup):
    direction = "importer"


class ExporterGroup(_FormatGroup):
    direction = "exporter"


importers = typer.Typer(
    **PLAIN, cls=ImporterGroup, no_args_is_help=True, help="Import models from other software as a run."
)
exporters = typer.Typer(
    **PLAIN, cls=ExporterGroup, no_args_is_help=True, help="Export a run's models for other software."
)


# Typer makes a group only of an app with a command or callback; the classes above replace its list of commands.
@importers.callback()
def _importers() -> None:
    """Import models from other software as a run."""


@exporters.callback()
def _exporters() -> None:
    """Export a run's models for other software."""
