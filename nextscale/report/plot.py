"""Line plots as inline SVG, small enough to write by hand: axes with ticks, and a legend that wraps on a phone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 440, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 40
MOST_POINTS = 300
"""A longer curve is drawn by the means of as many equal pieces."""
SMALLEST = 1e-30
"""A smaller value is drawn as 0: no axis could tell them apart."""
LOG_RATIO = 20.0
"""From this ratio of the largest to the smallest value on, the axis is logarithmic."""


@dataclass(frozen=True)
class Curve:
    """A named line through points (x, y); ``faint`` for one that is only the background of another."""

    name: str
    points: Sequence[tuple[float, float]]
    faint: bool = False


def line_plot(title: str, curves: Sequence[Curve], x_label: str = "step") -> str:
    """A figure in HTML. Every text is escaped. Curves without points are left out; without any, it is empty."""
    curves = [Curve(curve.name, _thinned(curve.points), curve.faint) for curve in curves if curve.points]
    if not curves:
        return ""
    xs = [x for curve in curves for x, _ in curve.points]
    ys = [y for curve in curves for _, y in curve.points]
    logarithmic = min(ys) > 0 and max(ys) / min(ys) > LOG_RATIO
    across = _Axis(min(0, *xs), max(xs), LEFT, WIDTH - RIGHT)
    up = _Axis(min(ys), max(ys), HEIGHT - BOTTOM, TOP, logarithmic, margin=0.04)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for y in up.ticks(5):
        parts.append(f'<path class="grid" d="M{LEFT} {up.at(y):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{up.at(y) + 4:.1f}" text-anchor="end">{_number(y)}</text>')
    for x in across.ticks(5):
        parts.append(f'<path class="axis" d="M{across.at(x):.1f} {HEIGHT - BOTTOM}v4"/>')
        parts.append(
            f'<text x="{across.at(x):.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{_number(x)}</text>'
        )
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 5}" text-anchor="middle">{escape(x_label)}</text>')
    colours = [_colour(k, len(curves)) for k in range(len(curves))]
    for curve, colour in zip(curves, colours, strict=True):
        line = " ".join(f"{across.at(x):.1f},{up.at(y):.1f}" for x, y in curve.points)
        weight = "1" if curve.faint else "2"
        parts.append(f'<polyline points="{line}" stroke="{colour}" stroke-width="{weight}"/>')
        x, y = curve.points[-1]
        parts.append(f'<circle cx="{across.at(x):.1f}" cy="{up.at(y):.1f}" r="2.5" fill="{colour}"/>')
    legend = "".join(
        f'<li><i style="background:{colour}"></i>{escape(curve.name)} <b>{_number(curve.points[-1][1])}</b></li>'
        for curve, colour in zip(curves, colours, strict=True)
    )
    scale = " (logarithmic)" if logarithmic else ""
    return f'<figure class="plot"><h3>{escape(title + scale)}</h3>{"".join(parts)}</svg><ul>{legend}</ul></figure>'


class _Axis:
    """Maps values from ``low`` to ``high`` to pixels from ``first`` to ``last``."""

    def __init__(
        self, low: float, high: float, first: float, last: float, logarithmic: bool = False, margin: float = 0.0
    ) -> None:
        self.logarithmic, self.first, self.last = logarithmic, first, last
        low, high = self._scaled(low), self._scaled(high)
        largest = max(abs(low), abs(high))
        same = high - low <= 1e-9 * largest
        space = max(largest * 0.1, 1e-9) if same else (high - low) * margin
        self.low, self.high = low - space, high + space

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value

    def at(self, value: float) -> float:
        share = (self._scaled(value) - self.low) / (self.high - self.low)
        return self.first + share * (self.last - self.first)

    def ticks(self, number: int) -> list[float]:
        """About ``number`` round values within the axis."""
        if self.logarithmic:
            powers = range(math.floor(self.low), math.ceil(self.high) + 1)
            for mantissas in ((1, 2, 5), (1, 3), (1,)):
                found = [m * 10.0**p for p in powers for m in mantissas if self.low <= math.log10(m) + p <= self.high]
                if len(found) <= 2 * number:
                    return found
            return found[:: -(-len(found) // number)]
        rough = (self.high - self.low) / number
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    points = [(x, y if abs(y) > SMALLEST else 0.0) for x, y in points]
    if len(points) <= MOST_POINTS:
        return points
    size = -(-len(points) // MOST_POINTS)
    pieces = [points[i : i + size] for i in range(0, len(points), size)]
    return [(piece[-1][0], sum(y for _, y in piece) / len(piece)) for piece in pieces]


def _colour(k: int, number: int) -> str:
    """Blue to orange by way of green, all legible on white and on black."""
    return f"hsl({215 - 190 * k / max(1, number - 1):.0f} 70% 53%)"


def _number(value: float) -> str:
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3g}"
    return f"{round(value, 4):,.10g}" if abs(value) < 100 else f"{value:,.0f}"
