"""Power laws through measured points, and how long a larger grid would take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nextscale.errors import NextscaleError

FEWEST = 3
"""Through two points there is always a power law, so a fit needs three to say anything."""


@dataclass(frozen=True)
class Fit:
    """``value = factor * side ** exponent``; the exponent lies between ``low`` and ``high`` with the confidence asked
    for, if the deviations of log(value) from the line are independent and normal."""

    exponent: float
    low: float
    high: float
    factor: float
    sides: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def fit_power_law(sides: Sequence[int], values: Sequence[float], confidence: float = 0.95) -> Fit:
    """Least squares in log(value) against log(side); the interval is that of Student's t.

    The interval covers scatter around one power law. If the local exponent moves with the side, as costs of several
    terms do, the deviations are not independent: compare it with the fit of the larger sides.

    Raises:
        NextscaleError: fewer than three different sides, or values that have no logarithm.
    """
    from scipy.stats import t

    if len(set(sides)) < FEWEST:
        raise NextscaleError(f"a power law needs at least {FEWEST} different sides, got {len(set(sides))}")
    if not (np.isfinite(values).all() and min(values) > 0 and min(sides) > 0):
        raise NextscaleError("a power law needs sides and values above 0")
    (slope, intercept), covariance = np.polyfit(np.log(sides), np.log(values), 1, cov=True)
    margin = t.ppf((1 + confidence) / 2, len(sides) - 2) * np.sqrt(covariance[0, 0])
    return Fit(float(slope), float(slope - margin), float(slope + margin), float(np.exp(intercept)), tuple(sides))


def larger_half(sides: Sequence[int]) -> list[int]:
    """The larger half of the sides, but at least the three that a fit needs."""
    ordered = sorted(sides)
    return ordered[-max(FEWEST, -(-len(ordered) // 2)) :]


def predict_seconds(measured: Sequence[tuple[int, float, float]], passes: int, flops: float) -> float:
    """How long a draw of ``passes`` forward passes and ``flops`` operations would take.

    ``measured`` lists (passes, flops, seconds) of draws of the same kind. The time is taken to be the sum of a part per
    pass and a part per operation, neither negative, fitted to relative errors. A single draw says nothing about the
    parts: its time is multiplied by the ratio of operations.
    """
    from scipy.optimize import nnls

    if len(measured) == 1:
        return measured[0][2] * flops / measured[0][1]
    rows = np.array([[p / seconds, f / seconds] for p, f, seconds in measured])
    unit = np.linalg.norm(rows, axis=0)  # passes and operations differ by orders of magnitude
    parts, _ = nnls(rows / unit, np.ones(len(measured)))
    return float(np.array([passes, flops]) / unit @ parts)
