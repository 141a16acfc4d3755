"""``nextscale plugins``"""

from __future__ import annotations

from typing import Annotated

import typer

from nextscale_cli.options import PLAIN

app = typer.Typer(**PLAIN, no_args_is_help=True, help="List the installed modalities.")


@app.command("ls")
def ls() -> None:
    """List modalities, and say what is wrong with broken plugins."""
    from nextscale.config.run import presets
    from nextscale.plugins import discover
    from nextscale_cli.tables import print_rows

    plugins = discover()
    rows = [
        {
            "name": name,
            "summary": plugin.spec.summary,
            "distribution": plugin.distribution,
            "version": plugin.version,
            "presets": " ".join(presets(name)),
        }
        for name, plugin in plugins.modalities.items()
    ]
    if rows:
        print_rows(rows)
    for command in plugins.commands():
        typer.echo(f"command {command.name}: {command.summary}")
    for spec in plugins.formats():
        typer.echo(f"format {spec.name}: {spec.summary}")
    for problem in problems():
        typer.echo(problem)


@app.command("info")
def info(name: Annotated[str, typer.Argument(help="A modality's name.")]) -> None:
    """Show where a modality comes from, its presets and its settings."""
    from nextscale.config.run import preset_summary, presets
    from nextscale.plugins import discover, modality_config

    plugins = discover()
    spec = plugins.get(name)
    sections = modality_config(name)
    plugin = plugins.modalities[name]
    typer.echo(f"{spec.name}: {spec.summary}")
    typer.echo(f"distribution    {plugin.distribution} {plugin.version} (plugin interface {spec.api_version})")
    typer.echo(f"implementation  {spec.implementation}")
    typer.echo(f"data settings   {' '.join(sections.data.model_fields)}")
    typer.echo(f"tokenizer       {' '.join(sections.tokenizer.model_fields)}")
    for option, field in sections.evaluation.model_fields.items():
        typer.echo(
            f"evaluation      eval.{option}={field.default}  {' '.join((field.description or '').split())}".rstrip()
        )
    for preset, path in presets(name).items():
        default = " (default)" if preset == spec.default_preset else ""
        typer.echo(f"preset          {preset}{default}  {preset_summary(path)}".rstrip())


def problems() -> list[str]:
    """Everything that is wrong with the installed plugins, one line per problem."""
    from nextscale.plugins import discover
    from nextscale_cli.main import COMMANDS

    plugins = discover()
    taken = [command.name for command in plugins.commands() if command.name in COMMANDS]
    return [
        *map(str, plugins.broken),
        *map(str, plugins.clashes),
        *(f"command {name!r} of a plugin is not used: nextscale has a command with this name" for name in taken),
    ]
