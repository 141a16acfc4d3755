"""The entry module. It is read at every start of the command line, so it imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nextscale.plugin import ModalitySpec, hookimpl


@hookimpl
def nextscale_modalities() -> Iterable[ModalitySpec]:
    return [
        ModalitySpec(
            name="points",
            summary="sets of points in the plane or in space, by halving cells",
            config="nextscale_points.config:CONFIG",
            implementation="nextscale_points.modality:PointsModality",
            presets=Path(__file__).parent / "presets",
            default_preset="shapes",
        )
    ]
