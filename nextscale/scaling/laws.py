"""Scaling laws and how they are fitted: a sum of powers, by a robust loss on the logarithm, from many starts.

The forms are those of Hoffmann et al. 2022 (https://arxiv.org/abs/2203.15556) and VAR (https://arxiv.org/abs/2404.02905).
Besiroglu et al. 2024 (https://arxiv.org/abs/2404.10102) found that the published fit of the former had stopped early:
the losses were averaged, and thus too small for the optimizer's tolerance. Here they are summed, in units of the Huber
threshold, with tolerances near the machine's precision. Every fit says how many starts agree with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.optimize import minimize

DELTA = 1e-3
"""Residuals of log loss above this count by their size, not their square (Huber)."""
COARSE = 0.03
"""Threshold of the pass before. Its loss has wider bowls, so that it comes near from far away."""
AGAIN = 3
"""Further passes at the last threshold, while they gain anything; none in repetitions of the bootstrap."""
ITERATIONS = 500
STEEPEST = 4.0
"""Largest exponent that is considered."""
AGREES = 1e-4
"""Starts agree whose sums of losses differ by less than this share."""


@dataclass(frozen=True)
class Law:
    """``L = E + sum of A_j x_j^-exponent_j``, with or without ``E``.

    Attributes:
        formula: as people write it.
        variables: what ``x`` holds, by column; one power each.
        floor: whether there is a constant ``E``, which no size undercuts.
    """

    name: str
    formula: str
    variables: tuple[str, ...]
    floor: bool = True

    @property
    def num_parameters(self) -> int:
        return int(self.floor) + 2 * len(self.variables)

    @property
    def fewest(self) -> int:
        """Runs that a fit needs: one more than it has parameters, or nothing would be known about its error."""
        return self.num_parameters + 1


POWER = Law("power", "L = (beta N)^-alpha", ("N",), floor=False)
OFFSET = Law("offset", "L = E + A N^-alpha", ("N",))
JOINT = Law("joint", "L = E + A N^-alpha + B D^-beta", ("N", "D"))
FRONTIER = Law("frontier", "L = (beta C)^-alpha", ("C",), floor=False)


@dataclass(frozen=True)
class Fit:
    """A fitted law. ``theta`` is e, then a_j and exponent_j for each variable, so that each term of the loss is
    ``exp(a_j - exponent_j (log x_j - centre_j))``, and ``exp(e)`` is E.

    Attributes:
        objective: the sum of Huber losses in units of their threshold.
        starts, agree: how many starts there were, and how many ended at this objective.
        residuals: log loss minus prediction, one per run.
    """

    law: Law
    theta: np.ndarray
    centre: np.ndarray
    objective: float
    starts: int
    agree: int
    residuals: np.ndarray

    @property
    def spread(self) -> float:
        """The residuals' standard deviation: in log loss, with the degrees of freedom that the fit has left."""
        return float(np.sqrt((self.residuals**2).sum() / (len(self.residuals) - self.law.num_parameters)))

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Log loss at ``x``, runs by variables."""
        return np.logaddexp.reduce(_terms(self.law, self.theta, np.log(x) - self.centre), axis=1)

    def parameters(self) -> dict[str, float]:
        return named(self.law, self.theta, self.centre)


def named(law: Law, theta: np.ndarray, centre: np.ndarray) -> dict[str, float]:
    """The law's parameters by the names in its formula."""
    (constant, exponent), *more = theta[int(law.floor) :].reshape(-1, 2)
    constant += exponent * centre[0]
    if not law.floor:
        # (beta x)^-alpha; a law that does not fall has no beta.
        beta = np.exp(min(-constant / exponent, 700.0)) if exponent > 0 else np.nan
        return {"alpha": float(exponent), "beta": float(beta)}
    found = {"E": float(np.exp(theta[0])), "A": float(np.exp(constant)), "alpha": float(exponent)}
    for b, beta in more:
        found |= {"B": float(np.exp(b + beta * centre[1])), "beta": float(beta)}
    return found


def fit(law: Law, x: np.ndarray, loss: np.ndarray, start: np.ndarray | None = None) -> Fit:
    """Fit a law.

    Args:
        x: runs by variables, positive.
        loss: one per run, positive.
        start: a ``theta`` to begin from, instead of the grid of starts, as repetitions do: one pass of few iterations.
    """
    logs, y = np.log(x), np.log(loss)
    centre = logs.mean(0)
    logs = logs - centre
    starts = _starts(law, y) if start is None else [start]
    most, again = (ITERATIONS, AGAIN) if start is None else (ITERATIONS // 4, 0)
    found = [_descend(law, logs, y, np.asarray(each), most, again) for each in starts]
    best, theta = min(found, key=lambda one: one[0])
    agree = sum(value - best <= AGREES * best + 1e-9 for value, _ in found)
    residuals = y - np.logaddexp.reduce(_terms(law, theta, logs), axis=1)
    return Fit(law, theta, centre, best, len(starts), agree, residuals)


def _terms(law: Law, theta: np.ndarray, logs: np.ndarray) -> np.ndarray:
    """The logarithms of the law's terms, runs by terms."""
    pairs = theta[int(law.floor) :].reshape(-1, 2)
    powers = pairs[:, 0] - pairs[:, 1] * logs
    return np.concatenate([np.full((len(logs), 1), theta[0]), powers], 1) if law.floor else powers


def _descend(
    law: Law, logs: np.ndarray, y: np.ndarray, theta: np.ndarray, most: int, again: int
) -> tuple[float, np.ndarray]:
    """The objective with the last threshold, and where it is reached."""
    low, high = y.min(), y.max()
    power = [(low - 15, high + 5), (0.0, STEEPEST)]
    # A floor below 1% of the lowest loss is none, and further down the objective is flat.
    bounds = [(low - 5, high)] * law.floor + power * len(law.variables)

    def descend(theta: np.ndarray, delta: float) -> tuple[float, np.ndarray]:
        done = minimize(
            _objective, theta, args=(law, logs, y, delta), jac=True, method="L-BFGS-B", bounds=bounds,
            options={"maxiter": most, "maxfun": 2 * most, "ftol": 1e-15, "gtol": 1e-10, "maxcor": 20},
        )  # fmt: skip
        return float(done.fun), done.x

    theta = descend(theta, COARSE)[1]
    value, theta = descend(theta, DELTA)
    for _ in range(again):
        # A line search may stop at a kink of the loss, between its square and its linear part. The next one goes on.
        lower, there = descend(theta, DELTA)
        if lower > value - AGREES * value - 1e-12:
            break
        value, theta = lower, there
    return value, theta


def _objective(theta: np.ndarray, law: Law, logs: np.ndarray, y: np.ndarray, delta: float) -> tuple[float, np.ndarray]:
    """The sum of the Huber losses of residual / delta, and its gradient."""
    terms = _terms(law, theta, logs)
    total = np.logaddexp.reduce(terms, axis=1)
    residual = (total - y) / delta
    size = np.abs(residual)
    value = np.where(size <= 1, 0.5 * residual**2, size - 0.5).sum()
    share = np.exp(terms - total[:, None]) * (np.clip(residual, -1, 1) / delta)[:, None]
    powers = share[:, int(law.floor) :]
    gradient = np.stack([powers.sum(0), -(powers * logs).sum(0)], 1).ravel()
    if law.floor:
        gradient = np.concatenate([share[:, :1].sum(0), gradient])
    return float(value), gradient


def _starts(law: Law, y: np.ndarray) -> list[np.ndarray]:
    exponents = list(product((0.2, 0.8), repeat=len(law.variables)))
    if not law.floor:
        return [np.array([y.mean(), *each]) for each in exponents]
    starts = []
    for share, powers in product((0.2, 0.6, 0.9, 0.99), exponents):
        e = y.min() + np.log(share)
        rest = np.log((np.exp(y).mean() - np.exp(e)) / len(powers))
        starts.append(np.array([e, *(value for power in powers for value in (rest, power))]))
    return starts
