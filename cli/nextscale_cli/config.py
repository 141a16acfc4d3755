"""``nextscale config``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nextscale_cli.options import DEFAULT_MODALITY, PLAIN, ConfigFile, Modality, Overrides, Preset

app = typer.Typer(**PLAIN, no_args_is_help=True, help="List presets, show and check configurations.")


@app.command("ls")
def ls() -> None:
    """List the presets of every modality."""
    from nextscale.config.run import preset_summary, presets
    from nextscale.plugins import discover
    from nextscale_cli.tables import print_rows

    rows = [
        {
            "modality": name,
            "preset": preset,
            "": "default" if preset == plugin.spec.default_preset else "",
            "summary": preset_summary(path),
        }
        for name, plugin in discover().modalities.items()
        for preset, path in presets(name).items()
    ]
    print_rows(rows)


@app.command("show")
def show(
    overrides: Overrides = None, modality: Modality = None, preset: Preset = None, config: ConfigFile = None
) -> None:
    """Show a resolved configuration as YAML, with a description of every setting."""
    from nextscale.config.dump import dump_config
    from nextscale.config.run import load_config

    settings = load_config(modality, preset, config, overrides or (), default_modality=DEFAULT_MODALITY)
    typer.echo(dump_config(settings, comments=True), nl=False)


@app.command("validate")
def validate(file: Annotated[Path, typer.Argument(help="A YAML file of settings.")]) -> None:
    """Check a configuration file. If it is wrong, print one line and exit with code 2."""
    from nextscale.config.run import load_config

    load_config(file=file, default_modality=DEFAULT_MODALITY)
    typer.echo("ok")
