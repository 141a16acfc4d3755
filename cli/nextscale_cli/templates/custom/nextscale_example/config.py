"""Settings of the example modality: defaults, bounds and descriptions stand here and nowhere else. No torch."""

from __future__ import annotations

from pydantic import PositiveInt

from nextscale.plugin import Fraction, LimitsConfig, ModalityConfig, NoOptions, Section


class ExampleDataConfig(Section):
    """Where samples come from."""

    shorthand = "source"  # `data=PATH` means `data.source=PATH`

    source: str = "placeholder"
    """placeholder (generated), or an .npz: x N L, whole numbers from 0 to 63."""
    validation: Fraction = 0.1
    """Share of the samples that is held out."""
    split_seed: int = 0
    limits: LimitsConfig = LimitsConfig()


class ExampleTokenizerConfig(Section):
    """How numbers are described."""

    scales: PositiveInt = 3
    """Scales of two bits each, the highest bits first; three describe numbers below 64."""


CONFIG = ModalityConfig(data=ExampleDataConfig, tokenizer=ExampleTokenizerConfig, evaluation=NoOptions)
