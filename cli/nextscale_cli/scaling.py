"""``nextscale scaling``"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from nextscale_cli.options import DEFAULT_MODALITY, PLAIN, ConfigFile, Modality, Overrides, Preset

app = typer.Typer(**PLAIN, no_args_is_help=True, help="Measure scaling laws on your data.")


@app.callback()
def _scaling() -> None:
    """Measure scaling laws on your data."""


class Count(StrEnum):
    blocks = "blocks"
    parameters = "parameters"


@app.command("run")
def run(
    overrides: Overrides = None,
    modality: Modality = None,
    preset: Preset = None,
    config: ConfigFile = None,
    depths: Annotated[
        str | None,
        typer.Option(
            metavar="D,D,...", help="VAR's sizes: D blocks of width 64 D with D heads.", show_default="1,2,3,4,6"
        ),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(metavar="WxD[xH],...", help="Sizes of your own instead: width, number of blocks, and heads."),
    ] = None,
    tokens: Annotated[
        str, typer.Option(metavar="M,M,...", help="Training tokens of each size: multiples of --base-tokens.")
    ] = "0.5,1,2",
    base_tokens: Annotated[
        float | None, typer.Option(min=1, help="One multiple, in tokens.", show_default="what the settings train on")
    ] = None,
    per_parameter: Annotated[
        bool,
        typer.Option("--per-parameter", help="Multiples of the size's own number of parameters in blocks instead."),
    ] = False,
    lr_exponent: Annotated[
        float,
        typer.Option(min=0, max=2, help="The learning rate of a size is lr (width0 / width)^E; lr and width0 are set."),
    ] = 0.5,
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Take this run's tokenizer (and its settings, without a preset)."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The ladder's folder.")] = Path("runs/scaling"),
    processes: Annotated[int, typer.Option(min=1, help="Runs that are trained side by side.")] = 1,
    slurm: Annotated[
        str | None,
        typer.Option(metavar="KEY=VALUE,...", help="Submit runs to Slurm, with these options of submitit."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the ladder and its estimated time, and exit.")
    ] = False,
) -> None:
    """Train a ladder of sizes and numbers of tokens on one tokenizer. The same command again goes on."""
    from nextscale.config.run import load_config
    from nextscale.errors import ConfigError
    from nextscale.scaling.ladder import Tokens, build_ladder, parse_depths, parse_multiples, parse_sizes

    if depths is not None and sizes is not None:
        raise ConfigError("--depths and --sizes are two ways to name sizes: give one of them")
    if per_parameter and base_tokens is not None:
        raise ConfigError("--per-parameter and --base-tokens are two units of --tokens: give one of them")
    if slurm is not None and processes > 1:
        raise ConfigError("--slurm submits every run as a job of its own: leave out --processes")
    chosen = parse_sizes(sizes) if sizes is not None else parse_depths(depths or "1,2,3,4,6")
    multiples = parse_multiples(tokens, "--tokens")
    start = tokenizer if preset is None and config is None else None
    base = load_config(modality, preset, config, overrides or (), default_modality=DEFAULT_MODALITY, start=start)
    if start is not None:
        base = base.model_copy(update={"training": base.training.model_copy(update={"init": None})})
    rungs = build_ladder(base, chosen, Tokens(multiples, base_tokens, per_parameter), lr_exponent)
    if dry_run:
        from nextscale.scaling.estimate import estimate
        from nextscale_cli.tables import print_results, print_rows

        rows, total = estimate(base, rungs, processes, trains_tokenizer=tokenizer is None)
        print_rows(rows)
        print_results(total)
        return
    from nextscale.scaling.run import slurm_executor, train_ladder

    executor = None if slurm is None else slurm_executor(out / "slurm", _options(slurm))
    train_ladder(base, rungs, out, tokenizer, processes, executor, log=_log)
    _log(f"next: nextscale scaling fit {out}")


@app.command("fit")
def fit(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The ladder's folder.")],
    count: Annotated[Count, typer.Option(help="What N is: weights of the blocks, or all.")] = Count.blocks,
    replicates: Annotated[int, typer.Option(min=20, help="Repetitions of the bootstrap.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
) -> None:
    """Fit scaling laws to a ladder; predict its largest size from the others. Writes report.json and plots/."""
    import warnings

    from nextscale.errors import NextscaleError, NextscaleWarning
    from nextscale.scaling.fit import REPORT, fit_ladder
    from nextscale.scaling.plots import draw_plots
    from nextscale_cli.tables import print_rows

    report = fit_ladder(folder, count.value, replicates, seed)
    print_rows(report.rows())
    for note in report.notes:
        _log(f"note: {note}")
    _log(f"report: {folder / REPORT}")
    try:
        for path in draw_plots(report):
            _log(f"plot: {path}")
    except NextscaleError as error:
        warnings.warn(f"{error} (the report is written)", NextscaleWarning, stacklevel=1)


def _options(text: str) -> dict[str, Any]:
    from nextscale.errors import ConfigError

    options: dict[str, Any] = {}
    for part in filter(None, (one.strip() for one in text.split(","))):
        key, equals, value = part.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(f"--slurm: {part!r} is wrong: should be KEY=VALUE, such as timeout_min=120")
        options[key] = int(value) if value.isdecimal() else value
    return options


def _log(line: str) -> None:
    typer.echo(line, err=True)
