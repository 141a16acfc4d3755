"""``nextscale eval``"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from nextscale_cli.options import Device, Run
from nextscale_cli.sample import split


def evaluate(
    run: Run,
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Sampling settings (temperature=0.8), and the modality's evaluation options (eval.seed=1); "
            "'nextscale plugins info MODALITY' lists them.",
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=2, help="Number of samples per guidance value.")] = 1000,
    guidance: Annotated[str, typer.Option(metavar="T,T,...", help="Guidance values.")] = "0,2",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the samples.")] = 0,
    repeats: Annotated[
        int, typer.Option(min=1, help="Repeat with this many seeds, from --seed on; report means and spread.")
    ] = 1,
    reconstruction_only: Annotated[
        bool, typer.Option("--reconstruction-only", help="Measure the tokenizer only; draw no samples.")
    ] = False,
    validation: Annotated[
        bool,
        typer.Option(
            "--validation", help="Use the validation split, for choosing settings; writes eval-validation.json."
        ),
    ] = False,
    device: Device = "auto",
) -> None:
    """Measure reconstruction and sample quality of a trained run.

    Prints results as they are measured, and writes them to RUN/eval.json. Every distance comes with its
    real-against-real floor at the same sample count.
    """
    from nextscale.config.sections import SamplingConfig
    from nextscale.errors import ConfigError, unknown

    values = parse_guidance(guidance)
    options = [text for text in settings or [] if text.startswith("eval.")]
    sampling, conditions = split([text for text in settings or [] if text not in options])
    if conditions:
        raise ConfigError(unknown("sampling setting", next(iter(conditions)), SamplingConfig.model_fields))
    from nextscale.evaluation import Report
    from nextscale.evaluation import evaluate as evaluate_run
    from nextscale_cli.tables import print_results

    class Printed(Report):
        def part(self, name: str, values: Mapping[str, Any]) -> None:
            if not values:
                typer.echo(f"{name}: the modality measures nothing on this data")
                return
            for part in reversed(name.split(".", 1)):
                values = {part: values}
            print_results(values)

        def done(self, path: Path) -> None:
            typer.echo(path)

    evaluate_run(
        run,
        samples=samples,
        guidance=values,
        seed=seed,
        device=device,
        options=options,
        reconstruction_only=reconstruction_only,
        repeats=repeats,
        sampling=sampling,
        validation=validation,
        report=Printed(),
    )


def parse_guidance(text: str) -> list[float]:
    """The values of ``--guidance``. Raises ConfigError."""
    from nextscale.errors import ConfigError

    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 <= value < float("inf") for value in values):
        raise ConfigError(f"--guidance {text!r} should be numbers of at least 0, separated by commas, such as 0,2")
    return values
