"""How far a fitted law may be off: a bootstrap of the residuals of runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nextscale.scaling.laws import Fit, fit, named

LEVEL = 0.9


@dataclass(frozen=True)
class Replicates:
    """Fits to repetitions of the ladder, as they might have come out.

    The sizes of a ladder are chosen, not drawn. So a repetition keeps them, and draws how far each run is off: the
    residual of another run, corrected for the degrees of freedom that the fit took. How large residuals are is itself
    known only from few runs, so each repetition draws that too (the inverse chi-squared distribution, as in Student's
    t).
    """

    base: Fit
    thetas: np.ndarray
    spreads: np.ndarray
    unit: np.ndarray
    """Residuals of the runs, in units of their standard deviation."""

    def parameters(self, level: float = LEVEL) -> dict[str, tuple[float, float]]:
        """The confidence interval of each parameter."""
        rows = [named(self.base.law, theta, self.base.centre) for theta in self.thetas]
        return {name: _interval(np.array([row[name] for row in rows]), level) for name in rows[0]}

    def losses(self, x: np.ndarray, level: float = LEVEL, seed: int = 1) -> list[tuple[float, float]]:
        """The prediction interval of a new run at each row of ``x``: the law may be off, and so is every run."""
        random = np.random.default_rng(seed)
        drawn = self._predicted(x)
        drawn += random.choice(self.unit, drawn.shape) * self.spreads[:, None]
        return [_interval(column, level) for column in np.exp(drawn).T]

    def _predicted(self, x: np.ndarray) -> np.ndarray:
        """Log losses, replicates by rows of ``x``."""
        base = self.base
        each = [Fit(base.law, t, base.centre, 0.0, 0, 0, base.residuals).predict(x) for t in self.thetas]
        return np.stack(each)


def bootstrap(base: Fit, x: np.ndarray, replicates: int, seed: int = 0) -> Replicates:
    """Refit ``base``, which was fitted at ``x``, to ``replicates`` repetitions of its runs."""
    random = np.random.default_rng(seed)
    number, freedom = len(x), len(x) - base.law.num_parameters
    centred = base.residuals - base.residuals.mean()
    size = np.sqrt((centred**2).mean())
    unit = centred / size if size > 0 else centred
    expected, spreads = base.predict(x), base.spread * np.sqrt(freedom / random.chisquare(freedom, replicates))
    thetas = []
    for spread in spreads:
        again = np.exp(expected + spread * random.choice(unit, number))
        thetas.append(fit(base.law, x, again, start=base.theta).theta)
    return Replicates(base, np.stack(thetas), spreads, unit)


def _interval(values: np.ndarray, level: float) -> tuple[float, float]:
    low, high = (
        np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2]) if np.isfinite(values).any() else (np.nan,) * 2
    )
    return float(low), float(high)
