"""``nextscale bench``"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from typing import Annotated

import typer

from nextscale_cli.growth import growth
from nextscale_cli.options import DEFAULT_MODALITY, PLAIN, Device, Modality, Overrides
from nextscale_cli.orders import orders
from nextscale_cli.rate import rate

app = typer.Typer(**PLAIN, no_args_is_help=True, help="Time this installation on this machine.")


app.command("growth")(growth)


@app.callback()
def _bench() -> None:
    """Time this installation on this machine."""


app.command("orders")(orders)
app.command("rate")(rate)

Presets = Annotated[
    list[str] | None, typer.Option("--preset", "-p", help="Presets to time.", show_default="the modality's own")
]
Precisions = Annotated[str, typer.Option(metavar="P,P,...", help="fp32, bf16, fp16.")]


@app.command("train")
def train(
    overrides: Overrides = None,
    modality: Modality = None,
    presets: Presets = None,
    precision: Precisions = "fp32,bf16",
    repeats: Annotated[int, typer.Option(min=1, help="Timed repetitions, after one that is dropped.")] = 5,
    device: Device = "auto",
) -> None:
    """Time a training step (cached tokens; tokenizing on the fly) and the floor set by its matrix products."""
    from nextscale import plugins
    from nextscale.bench.training import bench_train
    from nextscale_cli.tables import print_rows

    name = modality or DEFAULT_MODALITY
    cases = plugins.modality(name).bench_cases()
    if presets:
        known = {case.preset: case for case in cases}
        cases = [known.get(preset, preset) for preset in presets]
    _check_cases(name, cases)
    print_rows(bench_train(name, cases, precision.split(","), repeats, overrides or (), device=device, log=_log))


@app.command("sample")
def sample(
    overrides: Overrides = None,
    modality: Modality = None,
    presets: Presets = None,
    precision: Precisions = "fp32,bf16",
    batch: Annotated[int, typer.Option(min=1, help="Samples drawn at once.")] = 1,
    memory_batch: Annotated[int, typer.Option(min=0, help="Samples drawn at once to measure memory; 0: skip.")] = 8,
    repeats: Annotated[int, typer.Option(min=1, help="Timed repetitions, after one that is dropped.")] = 3,
    device: Device = "auto",
) -> None:
    """Time sampling and the floor set by its matrix products, and compare measured with calculated memory."""
    from nextscale import plugins
    from nextscale.bench.sampling import bench_sample
    from nextscale.bench.training import BenchCase
    from nextscale.sampling.precision import check_precision
    from nextscale_cli.tables import print_results

    name = modality or DEFAULT_MODALITY
    implementation = plugins.modality(name)
    cases = implementation.sample_bench_cases()
    if presets:
        known = {case.preset: case for case in [*implementation.bench_cases(), *cases]}
        cases = [known.get(preset, BenchCase(preset)) for preset in presets]
    _check_cases(name, cases)
    precisions = precision.split(",")
    for each in precisions:
        check_precision(each)
    # Each row has a process of its own: heap fragmentation from one precision would count towards the next.
    spawn = multiprocessing.get_context("spawn")
    for case, each in product(cases, precisions):
        with ProcessPoolExecutor(1, spawn) as process:
            row = process.submit(
                bench_sample, name, [case], [each], batch, memory_batch, repeats, overrides or (),
                device=device, log=_log,
            )  # fmt: skip
            print_results(row.result()[0])


def _check_cases(modality: str, cases: Sequence[object]) -> None:
    from nextscale.errors import ConfigError

    if not cases:
        raise ConfigError(f"modality {modality} has no presets to time by default: name one with --preset")


def _log(line: str) -> None:
    typer.echo(line, err=True)
