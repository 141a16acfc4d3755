"""``nextscale bench growth``"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from nextscale_cli.options import DEFAULT_MODALITY, Device, Modality, Overrides, Preset


def growth(
    overrides: Overrides = None,
    modality: Modality = None,
    preset: Preset = None,
    sides: Annotated[
        str, typer.Option(metavar="N,N,...", help="Places along each axis of the latent grid, increasing.")
    ] = "4,8,16,32,64",
    kinds: Annotated[str, typer.Option(metavar="KIND,...", help="What to compare.")] = (
        "next-scale,next-scale-uncached,next-token,next-token-uncached"
    ),
    repeats: Annotated[int, typer.Option(min=1, help="Timed draws, after one that is dropped.")] = 3,
    batch: Annotated[int, typer.Option(min=1, help="Samples drawn at once.")] = 1,
    limit: Annotated[float, typer.Option(help="Skip draws that would probably take more seconds.")] = 60.0,
    out: Annotated[Path, typer.Option(help="Folder for growth.json and growth.svg.")] = Path("runs/growth"),
    device: Device = "auto",
) -> None:
    """Measure how time, operations and memory of a sample grow with the side of the latent grid.

    Compares next-scale with next-token prediction, each with and without a cache of keys and values, with untrained
    models, and fits the exponents. growth.json is written row by row, so Ctrl-C leaves what was measured.
    """
    from nextscale import plugins
    from nextscale.bench.growth.plot import MISSING, plot_growth
    from nextscale.bench.growth.run import RESULT, bench_growth
    from nextscale.modality import BenchCase
    from nextscale_cli.tables import print_rows

    name = modality or DEFAULT_MODALITY
    implementation = plugins.modality(name)
    wanted = preset or plugins.discover().get(name).default_preset
    cases = {case.preset: case for case in [*implementation.bench_cases(), *implementation.sample_bench_cases()]}
    draws = find_spec("matplotlib") is not None
    if not draws:  # said first: the measurement takes minutes
        typer.echo(f"warning: {MISSING}", err=True)
    result = bench_growth(
        name, cases.get(wanted, BenchCase(wanted)), _sides(sides), kinds.split(","), out, repeats, batch, limit,
        overrides or (), device=device, log=lambda line: typer.echo(line, err=True),
    )  # fmt: skip
    print_rows([_shown(row) for row in result["rows"]], "A draw, by side")
    print_rows(_fits(result), "Exponents of the side n: cost ~ n^exponent")
    print_rows(_ratios(result), "How many times longer than next-scale a draw takes")
    print(out / RESULT)
    if draws:
        print(plot_growth(result, out / "growth.svg"))


def _sides(text: str) -> list[int]:
    from nextscale.errors import ConfigError

    try:
        return [int(side) for side in text.split(",")]
    except ValueError:
        raise ConfigError(f"--sides = {text} is wrong: should be whole numbers, such as 4,8,16") from None


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    columns = ("kind", "side", "tokens", "passes", "seconds", "flops", "peak_mib", "paper_mib", "note")
    return {key: row.get(key, "" if key == "note" else None) for key in columns}


def _fits(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for fit in result["fits"]:
        theory = fit["theory"]
        expected = {
            "time": f"between n^{theory['passes']} (passes) and n^{theory['attention']}",
            "operations": f"n^{theory['linear']} (linear layers) + n^{theory['attention']} (attention)",
            "memory": "",
        }
        rows.append({
            "kind": fit["kind"],
            "quantity": fit["quantity"],
            "fitted to": f"{fit['which']} ({', '.join(map(str, fit['sides']))})",
            "exponent": f"{fit['exponent']:.2f}",
            "95% interval": f"{fit['low']:.2f} to {fit['high']:.2f}",
            "theory": expected[fit["quantity"]],
        })  # fmt: skip
    measured = {fit["kind"] for fit in result["fits"]}
    for kind in dict.fromkeys(row["kind"] for row in result["rows"]):
        if kind not in measured:
            rows.append({"kind": kind, "quantity": "no fit: it needs three measured sides"})
    return rows


def _ratios(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    by_side: dict[int, dict[str, Any]] = {}
    for ratio in result["ratios"]:
        row = by_side.setdefault(ratio["side"], {"side": ratio["side"]})
        row[ratio["kind"]] = f"{ratio['times_next_scale']:.2f}"
    return list(by_side.values())
