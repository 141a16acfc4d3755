"""The entry module. It is read at every start of the command line, so it imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nextscale.plugin import ModalitySpec, hookimpl


@hookimpl
def nextscale_modalities() -> Iterable[ModalitySpec]:
    return [
        ModalitySpec(
            name="audio",
            summary="short sounds: log-mel spectrograms on a 1-D grid",
            config="nextscale_audio.config:CONFIG",
            implementation="nextscale_audio.modality:AudioModality",
            presets=Path(__file__).parent / "presets",
            default_preset="tones",
        )
    ]
