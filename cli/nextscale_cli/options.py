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
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 ...")]
Precision = Annotated[
    str, typer.Option("--precision", help="Of the weights: fp32, or bf16 or fp16 (half the memory).", metavar="P")
]
Compile = Annotated[bool, typer.Option("--compile", help="torch.compile the model first (needs a C++ compiler).")]
