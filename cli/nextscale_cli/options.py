"""Options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

DEFAULT_MODALITY = "image"
# Help is plain: typer's rich rendering costs 0.1 s of imports, half of what help may take.
PLAIN: dict[str, Any] = {"rich_markup_mode": None, "add_completion": False}

Modality = Annotated[
    str | None, typer.Option("--modality", "-m", help="The kind of data.", show_default=DEFAULT_MODALITY)
]
Preset = Annotated[
    str | None,
    typer.Option("--preset", "-p", help="Settings to start from ('none': bare defaults); see 'config ls'."),
]
ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="YAML file of settings, over the preset.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Single settings, such as training.transformer.lr=1e-3."),
]


def _possible_run(run: Path) -> Path:
    """Refuse what is no folder and cannot become one. Whether the run is there is seen once settings are checked."""
    import os

    from nextscale.errors import CheckpointError

    try:
        os.stat(run)
    except FileNotFoundError:
        return run
    except OSError as error:
        raise CheckpointError(f"no run folder at {run}: {error.strerror}") from None
    if not os.path.isdir(run):
        raise CheckpointError(f"{run} is not a folder: name a run's folder")
    return run


Run = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run's folder, or hf:OWNER/NAME on the hub.", callback=_possible_run)
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 ...")]
Checkpoint = Annotated[
    str | None,
    typer.Option(
        "--checkpoint", metavar="best|last", help="Use a training that is not finished: its best or its latest weights."
    ),
]
Precision = Annotated[
    str, typer.Option("--precision", help="Of the weights: fp32, or bf16 or fp16 (half the memory).", metavar="P")
]
