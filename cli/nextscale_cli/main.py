"""``nextscale``: commands are found by name and imported only when used, so that help is fast."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from nextscale_cli.errors import one_line_errors, open_standard_streams, show_notices_once
from nextscale_cli.options import PLAIN

COMMANDS = {
    "train": ("nextscale_cli.train:train", "Train both stages of a model, or one of them."),
    "tokenize": ("nextscale_cli.tokenize:tokenize", "Rewrite a run's token cache."),
    "sample": ("nextscale_cli.sample:sample", "Draw samples from a trained run."),
    "edit": ("nextscale_cli.edit:edit", "Redraw part of a sample, or its surroundings."),
    "predict": ("nextscale_cli.predict:predict", "Continue a sample from its start."),
    "eval": ("nextscale_cli.evaluate:evaluate", "Measure reconstruction and sample quality of a trained run."),
    "report": (
        "nextscale_cli.report:report",
        "Write a run's losses, samples and results as one HTML file.",
    ),
    "import": ("nextscale_cli.formats:importers", "Import models from other software as a run."),
    "export": ("nextscale_cli.formats:exporters", "Export a run's models for other software."),
    "push": ("nextscale_cli.push:push", "Share a run: on the hub, or as a folder."),
    "bench": ("nextscale_cli.bench:app", "Time this installation on this machine."),
    "scaling": ("nextscale_cli.scaling:app", "Measure scaling laws on your data."),
    "plugins": ("nextscale_cli.plugins:app", "List, check and write plugins."),
    "config": ("nextscale_cli.config:app", "List presets, show and check configurations."),
    "doctor": ("nextscale_cli.doctor:doctor", "Check this installation."),
}


class LazyGroup(TyperGroup):
    """Help shows names and summaries; only the command that is used is imported.

    To find the commands of plugins, every plugin's entry module must be imported. This happens only if a distribution
    other than nextscale's own registers a plugin.
    """

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self._paths: dict[str, str] = {}
        self._listing = False
        for name, (path, summary) in COMMANDS.items():
            self._add(name, path, summary)
        self._plugins_added = False

    def _add(self, name: str, path: str, summary: str) -> None:
        self._paths[name] = path
        self.commands[name] = TyperCommand(name, help=summary)

    def _add_plugins(self) -> None:
        if self._plugins_added:
            return
        self._plugins_added = True
        from nextscale.plugins import discover, third_party

        if third_party():
            for command in discover().commands():
                if command.name not in COMMANDS:  # `doctor` and `plugins ls` report the clash
                    self._add(command.name, command.function, command.summary)

    def list_commands(self, ctx: Any) -> list[str]:
        self._add_plugins()
        return super().list_commands(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self._paths:
            self._add_plugins()
        if self._listing or cmd_name not in self._paths:
            return self.commands.get(cmd_name)
        return build(cmd_name, self._paths[cmd_name])

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self._listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._listing = False

    def invoke(self, ctx: Any) -> Any:
        # Inside typer's own error handling, which would misreport an interrupt or a full disk.
        with one_line_errors():
            return super().invoke(ctx)


def build(name: str, path: str) -> Any:
    """Build the command at ``path``, the dotted path of a function or of a ``typer.Typer``."""
    from nextscale.plugins import load_object

    found = load_object(path)
    if not isinstance(found, typer.Typer):
        single = typer.Typer(**PLAIN)
        single.command(name)(found)
        found = single
    command = typer.main.get_command(found)
    command.name = name
    return command


app = typer.Typer(cls=LazyGroup, no_args_is_help=True, pretty_exceptions_enable=False, **PLAIN)


def _show_version(show: bool) -> None:
    if show:
        import nextscale

        typer.echo(f"nextscale {nextscale.__version__}")
        raise typer.Exit


@app.callback()
def _nextscale(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Next-scale autoregressive modelling: train, sample and evaluate, for any kind of data."""


def main() -> None:
    """The console script."""
    open_standard_streams()
    show_notices_once()
    with one_line_errors():
        try:
            app(prog_name="nextscale")
        finally:
            sys.stdout.flush()  # a closed pipe raises its error here, not while the interpreter exits


if __name__ == "__main__":  # for torchrun -m nextscale_cli.main
    main()
