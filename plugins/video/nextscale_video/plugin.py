"""The plugin's entry point: names the modality without importing torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nextscale.plugin import ModalitySpec, hookimpl


@hookimpl
def nextscale_modalities() -> Iterable[ModalitySpec]:
    return [
        ModalitySpec(
            name="video",
            summary="clips: causal 3-D multiscale VQ-VAE, joint or clip-by-clip pyramids",
            config="nextscale_video.config:CONFIG",
            implementation="nextscale_video.modality:VideoModality",
            presets=Path(__file__).parent / "presets",
            default_preset="moving-digits",
            samples="clips",
        )
    ]
