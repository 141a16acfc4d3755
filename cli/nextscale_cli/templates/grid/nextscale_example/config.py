"""Settings of the example modality: defaults, bounds and descriptions stand here and nowhere else. No torch."""

from __future__ import annotations

from pydantic import NonNegativeInt, PositiveInt

from nextscale.plugin import ConvolutionalConfig, Fraction, LimitsConfig, ModalityConfig, Section


class ExampleDataConfig(Section):
    """Where samples come from."""

    shorthand = "source"  # `data=PATH` means `data.source=PATH`

    source: str = "placeholder"
    """placeholder (generated), or an .npz: x N *grid or N C *grid, y N labels where there are any."""
    labels: bool = True
    """Use the labels, where the data has any."""
    validation: Fraction = 0.1
    """Share of the samples that is held out."""
    split_seed: int = 0
    limits: LimitsConfig = LimitsConfig()


class ExampleTokenizerConfig(ConvolutionalConfig):
    """Multiscale VQ-VAE; the sizes of its networks and of its quantizer are inherited."""

    scales: tuple[PositiveInt, ...] = (1, 2, 4, 8)
    """Length of the longest side of each scale, relative to the last; the last may be repeated to refine it."""


class ExampleEvaluationConfig(Section):
    """Options of `nextscale eval`, written eval.KEY=VALUE."""

    seed: NonNegativeInt = 0
    """Of the real samples that are drawn, and of the classifier."""
    classifier_epochs: PositiveInt | None = None


CONFIG = ModalityConfig(data=ExampleDataConfig, tokenizer=ExampleTokenizerConfig, evaluation=ExampleEvaluationConfig)
