"""The plugin's entry point: names the modality and its file formats without importing torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nextscale.plugin import FormatSpec, ModalitySpec, hookimpl


@hookimpl
def nextscale_modalities() -> Iterable[ModalitySpec]:
    return [
        ModalitySpec(
            name="image",
            summary="2-D images: multiscale VQ-VAE and VAR transformer",
            config="nextscale_image.config:CONFIG",
            implementation="nextscale_image.modality:ImageModality",
            presets=Path(__file__).parent / "presets",
            default_preset="digits",
            samples="images",
        )
    ]


@hookimpl
def nextscale_formats() -> Iterable[FormatSpec]:
    return [
        FormatSpec(
            name="var",
            summary="published VAR's .pth files: tokenizer and transformer",
            importer="nextscale_image.published.command:import_run",
            exporter="nextscale_image.published.command:export_run",
        )
    ]
