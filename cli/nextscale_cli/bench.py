"""``nextscale bench``"""

from __future__ import annotations

from typing import Annotated

import typer

from nextscale_cli.options import DEFAULT_MODALITY, PLAIN, Device, Modality, Overrides

app = typer.Typer(**PLAIN, no_args_is_help=True, help="Time this installation on this machine.")


@app.callback()
def _bench() -> None:
    """Time this installation on this machine."""


@app.command("train")
def train(
    overrides: Overrides = None,
    modality: Modality = None,
    presets: Annotated[
        list[str] | None, typer.Option("--preset", "-p", help="Presets to time.", show_default="the modality's own")
    ] = None,
    precision: Annotated[str, typer.Option(metavar="P,P,...", help="fp32, bf16, fp16.")] = "fp32,bf16",
    repeats: Annotated[int, typer.Option(min=1, help="Turns that are timed, after one that is dropped.")] = 5,
    device: Device = "auto",
) -> None:
    """Time a training step: on cached tokens, tokenizing on the fly, and against the floor of its matrix products."""
    from nextscale import plugins
    from nextscale.bench import bench_train
    from nextscale_cli.tables import print_rows

    name = modality or DEFAULT_MODALITY
    cases = plugins.modality(name).bench_cases()
    if presets:
        known = {case.preset: case for case in cases}
        cases = [known.get(preset, preset) for preset in presets]

    def log(line: str) -> None:
        typer.echo(line, err=True)

    print_rows(bench_train(name, cases, precision.split(","), repeats, overrides or (), device=device, log=log))
