"""The entry module: names the modality without importing torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nextscale.plugin import ModalitySpec, hookimpl


@hookimpl
def nextscale_modalities() -> Iterable[ModalitySpec]:
    return [
        ModalitySpec(
            name="graph",
            summary="graphs of any size: lossless growth by splitting nodes",
            config="nextscale_graph.config:CONFIG",
            implementation="nextscale_graph.modality:GraphModality",
            presets=Path(__file__).parent / "presets",
            samples="graphs",
            default_preset="general",
        )
    ]
