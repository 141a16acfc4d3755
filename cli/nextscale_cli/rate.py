"""``nextscale bench rate``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nextscale_cli.options import DEFAULT_MODALITY, ConfigFile, Modality, Overrides, Preset
from nextscale_cli.orders import Minutes, OwnKinds, Passes, Seeds, Steps, TokenizerMinutes, TokenizerSteps


def rate(
    overrides: Overrides = None,
    modality: Modality = None,
    preset: Preset = None,
    config: ConfigFile = None,
    kinds: Annotated[
        str,
        typer.Option(metavar="KIND,...", help="scales (the shared settings), or others that 'bench orders' knows."),
    ] = "scales",
    kind: OwnKinds = None,
    one_by_one: Annotated[
        bool, typer.Option("--one-by-one", help="Draw the tokens of every kind one by one as well.")
    ] = False,
    minutes: Minutes = None,
    tokenizer_minutes: TokenizerMinutes = None,
    steps: Steps = None,
    tokenizer_steps: TokenizerSteps = None,
    seeds: Seeds = 1,
    passes: Passes = 2,
    samples: Annotated[
        int, typer.Option(min=2, help="Held-out samples that are decoded and compared with real ones.")
    ] = 1000,
    out: Annotated[Path, typer.Option(help="Folder of the comparison.")] = Path("runs/rate"),
) -> None:
    """Choose a tokenizer: what its tokens cost a transformer, in nats, and how much they distort.

    Every kind's tokenizer and transformer train for the same time. Settings are those of 'nextscale train', and
    eval.KEY=VALUE. The same command goes on with what is not trained yet; with other kinds or more seeds, it adds them.
    """
    from nextscale.bench.compare import RESULTS
    from nextscale.bench.fair import Base, Comparison, Effort
    from nextscale.bench.kinds import choose_kinds
    from nextscale.bench.rate import both_orders, rate_rows
    from nextscale.bench.rate import rate as measure
    from nextscale.bench.rateplot import plot_rate
    from nextscale.figures import MISSING, can_draw
    from nextscale_cli.tables import print_rows

    def log(line: str) -> None:
        typer.echo(line, err=True)

    options = tuple(text for text in overrides or () if text.startswith("eval."))
    shared = tuple(text for text in overrides or () if text not in options)
    effort = Effort(minutes, tokenizer_minutes, steps, tokenizer_steps)
    base = Base(modality, preset, config, shared, DEFAULT_MODALITY)
    chosen = choose_kinds([name for name in kinds.split(",") if name], kind or (), base.configure(), passes)
    if one_by_one:
        chosen = both_orders(chosen, base)
    draws = can_draw()
    if not draws:  # said first: training takes long
        log(f"warning: {MISSING}")
    results = measure(Comparison(out, base, chosen, effort, log), seeds, samples, options)
    print_rows(rate_rows(results), "Rate and distortion")
    typer.echo(out / RESULTS)
    if draws:
        typer.echo(plot_rate(results, out / "results.svg"))
