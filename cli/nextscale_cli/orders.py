"""``nextscale bench orders``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nextscale_cli.options import DEFAULT_MODALITY, ConfigFile, Modality, Overrides, Preset

OwnKinds = Annotated[
    list[str] | None,
    typer.Option("--kind", metavar="'NAME: KEY=VALUE ...'", help="A kind of your own: settings over the shared ones."),
]
Minutes = Annotated[float | None, typer.Option(help="Time to train each transformer.")]
TokenizerMinutes = Annotated[
    float | None, typer.Option(help="Time to train each tokenizer.", show_default="as --minutes")
]
Steps = Annotated[int | None, typer.Option(help="Instead of --minutes: optimizer steps.")]
TokenizerSteps = Annotated[
    int | None, typer.Option(help="With --steps: those of each tokenizer.", show_default="the preset's")
]
Seeds = Annotated[int, typer.Option(min=1, help="Transformers per kind, each with a seed of its own.")]
Passes = Annotated[int, typer.Option(min=1, help="Codes per place of raster, spiral, morton and random.")]


def orders(
    overrides: Overrides = None,
    modality: Modality = None,
    preset: Preset = None,
    config: ConfigFile = None,
    kinds: Annotated[
        str | None,
        typer.Option(
            metavar="KIND,...",
            help="scales; one-by-one (the same tokens one by one); raster, spiral, morton, random (the tokens of the "
            "finest grid one by one).",
            show_default="scales,raster,one-by-one; scales with --kind",
        ),
    ] = None,
    kind: OwnKinds = None,
    minutes: Minutes = None,
    tokenizer_minutes: TokenizerMinutes = None,
    steps: Steps = None,
    tokenizer_steps: TokenizerSteps = None,
    seeds: Seeds = 1,
    passes: Passes = 2,
    samples: Annotated[int, typer.Option(min=2, help="Number of samples per guidance value.")] = 1000,
    guidance: Annotated[
        str | None, typer.Option(metavar="T,T,...", help="Guidance values.", show_default="0 and the preset's")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="The larger batch whose time per sample is measured.")] = 64,
    out: Annotated[Path, typer.Option(help="Folder of the comparison.")] = Path("runs/orders"),
) -> None:
    """Compare next-scale prediction with next-token prediction, trained for the same time on your data.

    Settings are those of 'nextscale train', and eval.KEY=VALUE. The same command goes on with what is not trained yet;
    with other kinds or more seeds, it adds them.
    """
    from nextscale.bench.compare import RESULTS, Measurement, compare, cost_rows, quality_rows, training_rows
    from nextscale.bench.fair import Base, Comparison, Effort
    from nextscale.bench.kinds import choose_kinds
    from nextscale.bench.plot import plot_comparison
    from nextscale.figures import MISSING, can_draw
    from nextscale_cli.evaluate import parse_guidance
    from nextscale_cli.tables import print_rows

    options = tuple(text for text in overrides or () if text.startswith("eval."))
    shared = tuple(text for text in overrides or () if text not in options)
    effort = Effort(minutes, tokenizer_minutes, steps, tokenizer_steps)
    base = Base(modality, preset, config, shared, DEFAULT_MODALITY)
    names = ("scales" if kind else "scales,raster,one-by-one") if kinds is None else kinds
    chosen = choose_kinds([name for name in names.split(",") if name], kind or (), base.configure(), passes)
    measured = Measurement(samples, None if guidance is None else tuple(parse_guidance(guidance)), batch, options)
    draws = can_draw()
    if not draws:  # said first: training takes long
        _log(f"warning: {MISSING}")
    results = compare(Comparison(out, base, chosen, effort, _log), seeds, measured)
    print_rows(training_rows(results), "Training")
    print_rows(quality_rows(results), "Samples")
    print_rows(cost_rows(results), "Cost of a sample")
    typer.echo(out / RESULTS)
    if draws:
        typer.echo(plot_comparison(results, out / "results.svg"))


def _log(line: str) -> None:
    typer.echo(line, err=True)
