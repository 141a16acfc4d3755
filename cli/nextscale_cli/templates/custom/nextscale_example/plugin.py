"""The entry module. It is read at every start of the command line, so it imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nextscale.plugin import ModalitySpec, hookimpl


@hookimpl
def nextscale_modalities() -> Iterable[ModalitySpec]:
    return [
        ModalitySpec(
            name="example",
            summary="example data",  # REPLACE: one line for `nextscale plugins ls`
            config="nextscale_example.config:CONFIG",
            implementation="nextscale_example.modality:ExampleModality",
            presets=Path(__file__).parent / "presets",
            default_preset="tiny",
        )
    ]
