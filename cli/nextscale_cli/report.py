"""``nextscale report``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nextscale_cli.options import Run


def report(
    run: Run,
    out: Annotated[Path | None, typer.Option(help="The file to write.", show_default="RUN/report.html")] = None,
) -> None:
    """Write a run's losses, samples and results as one HTML file.

    Training and 'nextscale eval' write it too. It needs no other file and no network.
    """
    from nextscale.hub import outputs_folder, run_folder
    from nextscale.report.page import NAME, write_report

    folder = run_folder(run)
    typer.echo(write_report(folder, out or outputs_folder(run) / NAME))
