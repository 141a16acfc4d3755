"""``nextscale bench``"""

from __future__ import annotations

import typer

from nextscale_cli.options import PLAIN

app = typer.Typer(**PLAIN, no_args_is_help=True, help="Time this installation on this machine.")


@app.callback()
def _bench() -> None:
    """Time this installation on this machine."""


@app.command("train")
def train() -> None:
    """Time a training step: on cached tokens, tokenizing on the fly, and against the floor of its matrix products."""
    from nextscale.bench import bench_train

    from nextscale_cli.tables import print_rows

    print_rows(bench_train())
