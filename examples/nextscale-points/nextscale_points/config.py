"""Settings of the points modality."""

from __future__ import annotations

from pydantic import NonNegativeInt, PositiveInt

from nextscale.plugin import Fraction, LimitsConfig, ModalityConfig, Section


class PointsDataConfig(Section):
    """Where point sets come from."""

    shorthand = "source"

    source: str = "shapes"
    """shapes (built-in circles, squares and crosses), or an .npz: x N P 2 or N P 3, y N labels where there are any."""
    points: PositiveInt = 64
    """Per set of the built-in shapes."""
    validation: Fraction = 0.1
    split_seed: int = 0
    limits: LimitsConfig = LimitsConfig()


class PointsTokenizerConfig(Section):
    """How fine points are described."""

    levels: PositiveInt = 7
    """Times that every cell is halved along every axis: 7 tell 128 places per axis apart."""


class PointsEvaluationConfig(Section):
    """What ``nextscale eval`` measures point sets with."""

    seed: NonNegativeInt = 0
    """Of the real sets that are drawn."""


CONFIG = ModalityConfig(data=PointsDataConfig, tokenizer=PointsTokenizerConfig, evaluation=PointsEvaluationConfig)
