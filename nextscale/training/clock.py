"""The time budget of a run (``training.minutes``): how much is left, and how many steps of a stage fit into it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from nextscale.config.sections import StageConfig
from nextscale.storage.files import write_json_atomic
from nextscale.training.optim import cooldown_begins

FILE = "clock.json"
RESERVE = 0.02
"""Share of the budget kept for what follows the last step: pictures and the models' files."""
SLACK = 0.03
"""A forecast that misses the budget by less than this share changes nothing."""
SETTLED = 8
"""Steps of a process before its speed is believed; the first ones also allocate memory."""


class RunClock:
    """Seconds used by a run, over all its processes one after another. They are kept in the run's ``clock.json``.

    Args:
        folder: the run's folder.
        minutes: the budget; None has no end.
        began: when this process began to work on the run, by ``time.monotonic``; None is now.
    """

    def __init__(self, folder: Path, minutes: float | None, began: float | None = None) -> None:
        self.path, self.budget = folder / FILE, None if minutes is None else 60 * minutes
        self.began = time.monotonic() if began is None else began
        self.before = _read(self.path)

    @property
    def used(self) -> float:
        return self.before + time.monotonic() - self.began

    def left(self, share: float = 1.0) -> float:
        """Seconds left of a ``share`` of the budget; infinite without a budget."""
        return float("inf") if self.budget is None else self.budget * share - self.used

    def restart(self) -> None:
        """What this process has done so far does not count."""
        self.began = time.monotonic()

    def save(self) -> None:
        if self.budget is not None:
            write_json_atomic(self.path, {"seconds": round(self.used, 1)})


def _read(path: Path) -> float:
    """The seconds that a file tells; 0 if it is missing or damaged, which costs time but no work."""
    try:
        seconds = json.loads(path.read_text())["seconds"]
        return float(seconds) if 0 <= seconds < float("inf") else 0.0
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


class Pace:
    """Fits the steps of one stage to the time that is left for it.

    With the trapezoid schedule, the past does not depend on how many steps follow. So the clock may decide when the
    cool-down begins. With other schedules, a new number of steps bends the curve of the learning rate a little; it
    changes only if the forecast is clearly wrong.

    Args:
        left: seconds left for this stage.
        budget: seconds of the whole run.
    """

    def __init__(self, left: Callable[[], float], budget: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.left, self.budget, self.clock = left, budget, clock
        self.start: tuple[int, float] | None = None
        self.reserve = 0.0
        """Seconds that pictures after the last step will take."""

    def steps(self, step: int, config: StageConfig) -> int:
        """How many steps the stage shall have in all, after ``step`` of them. Call it after every step."""
        if self.start is None:
            self.start = (step, self.clock())
            return config.steps
        done = step - self.start[0]
        if done < SETTLED:
            return config.steps
        rate = (self.clock() - self.start[1]) / done
        fits = step + max(0, int((self.left() - self.reserve) / max(rate, 1e-9)))
        misses = abs(fits - config.steps) * rate > SLACK * self.budget
        if config.schedule != "trapezoid":
            return fits if misses else config.steps
        if step >= cooldown_begins(config):  # the learning rate falls already: only a late end is mended
            return min(fits, config.steps) if misses else config.steps
        ending = ending_at(step, config)
        if fits <= ending:  # cooling down from here on takes all that is left
            return ending
        about_to_cool = step + 1 == cooldown_begins(config)
        return max(fits, config.steps) if about_to_cool and misses else config.steps


def ending_at(step: int, config: StageConfig) -> int:
    """The number of steps with which the cool-down begins after ``step`` steps (other schedules: ends there)."""
    if config.schedule != "trapezoid":
        return step
    steps = max(step + 1, int(step / max(1 - config.cooldown, 0.01)))
    while cooldown_begins(with_steps(config, steps)) < step:
        steps += 1
    return steps


def with_steps(config: StageConfig, steps: int) -> StageConfig:
    """``config`` with another number of steps, and the same number of warm-up steps as before."""
    warmup = min(1.0, round(config.warmup * config.steps) / steps)
    return config.model_copy(update={"steps": steps, "warmup": warmup})
