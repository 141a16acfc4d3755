"""``nextscale import NAME`` and ``nextscale export NAME``: the formats of trained models that plugins know."""

from __future__ import annotations

from typing import Any, Literal

import typer
from typer.core import TyperGroup

from nextscale_cli.options import PLAIN


class _FormatGroup(TyperGroup):
    """One command a format, taken from its plugin; it has options of its own."""

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
    **PLAIN, cls=ImporterGroup, no_args_is_help=True, help="Make a run of models that other software trained."
)
exporters = typer.Typer(
    **PLAIN, cls=ExporterGroup, no_args_is_help=True, help="Write a run's models as other software reads them."
)


# Typer makes a group only of what has something in it; the classes above replace what it lists.
@importers.callback()
def _importers() -> None:
    """Make a run of models that other software trained."""


@exporters.callback()
def _exporters() -> None:
    """Write a run's models as other software reads them."""
