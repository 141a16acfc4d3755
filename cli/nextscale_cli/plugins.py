"""``nextscale plugins``"""

from __future__ import annotations

from typing import Annotated

import typer

from nextscale_cli.newplugin import new
from nextscale_cli.options import PLAIN

app = typer.Typer(**PLAIN, no_args_is_help=True, help="List, check and write plugins.")
app.command("new")(new)


@app.command("ls")
def ls(as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False) -> None:
    """List modalities, and say what is wrong with broken plugins."""
    import json

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
    if as_json:
        listed = [{**row, "presets": list(presets(row["name"]))} for row in rows]
        commands = [{"name": command.name, "summary": command.summary} for command in plugins.commands()]
        formats = [{"name": spec.name, "summary": spec.summary} for spec in plugins.formats()]
        found = {"modalities": listed, "commands": commands, "formats": formats, "problems": problems()}
        typer.echo(json.dumps(found, indent=2))
        return
    if rows:
        print_rows(rows)
    for command in plugins.commands():
        typer.echo(f"command {command.name}: {command.summary}")
    for spec in plugins.formats():
        typer.echo(f"format {spec.name}: {spec.summary}")
    for problem in problems():
        typer.echo(problem)


@app.command("check")
def check(
    name: Annotated[str, typer.Argument(help="A modality's name.")],
    examples: Annotated[int, typer.Option("--examples", min=1, help="Drawn examples per invariant.")] = 15,
) -> None:
    """Test a plugin against the contract that every modality must keep.

    Exit code 1 where an invariant fails.
    """
    from nextscale.testing.run import check_modality
    from nextscale_cli.tables import print_rows

    results = check_modality(name, examples)
    print_rows(
        [
            {
                "invariant": result.invariant,
                "result": "skipped" if result.skipped else "ok" if result.passed else "FAILS",
                "what breaks in practice": result.what_breaks,
            }
            for result in results
        ]
    )
    failed = [result for result in results if not result.passed]
    for result in failed:
        typer.echo(f"\n{result.message}")
        if result.example:
            typer.echo(f"  example: {result.example}")
        if result.likely_cause:
            typer.echo(f"  likely cause: {result.likely_cause}")
    ran = sum(not result.skipped for result in results)
    typer.echo(f"\n{name}: {ran - len(failed)} of {ran} invariants hold, {len(results) - ran} do not apply")
    if failed:
        raise typer.Exit(1)


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
