"""``nextscale tokenize``"""

from __future__ import annotations

import typer

from nextscale_cli.options import Overrides, Run


def tokenize(run: Run, overrides: Overrides = None) -> None:
    """Rewrite a run's token cache.

    Uses the run's own settings, then KEY=VALUE: training.transformer.cache_passes=4, data.flip=true ...
    """
    from nextscale.training.tokenize import tokenize as tokenize_run

    for path in tokenize_run(run, overrides or ()):
        typer.echo(path)
