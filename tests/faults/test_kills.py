"""30 SIGKILLs at random moments: both stages, the token cache, sampling. The end is that of an undisturbed run, bit for
bit. (tests/test_exactness.py has two kills that run by default.)"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from killing import Attempt, assert_equal_weights, attempt_all, losses, resuming

Settings = Callable[..., list[str]]

STEPS, SEED = 40, 18
LONGEST = 0.06
"""A kill comes up to this many seconds after its moment: a few steps, so that it can hit a validation or a save."""
KILLS = {"": 4, "tokenizer": 9, "caching": 5, "transformer": 9, "sampling": 6}


def sampling(run: Path) -> list[str]:
    return ["sample", str(run), "-n", "48", "--seed", "5", "--device", "cpu", "--out", str(run / "drawn")]


@pytest.mark.slow
def test_thirty_kills(tiny: Settings, tmp_path: Path) -> None:
    every = {"steps": STEPS, "validate_every": 3, "checkpoint_every": 2, "samples_every": 20}
    settings = tiny(**{f"training.{s}.{key}": v for s in ("tokenizer", "transformer") for key, v in every.items()})
    whole, run = tmp_path / "whole", tmp_path / "run"
    (trained, seconds), (drawn, drawing) = attempt_all(
        [(resuming(whole, settings), "never", 0, 0.0), (sampling(whole), "never", 0, 0.0)]
    )
    assert trained == drawn == 0

    chance = np.random.default_rng(SEED)
    attempts: list[Attempt] = []
    for moment, number in KILLS.items():
        # Within a stage, kills lie ever later, so that each run gets further than the one before.
        for i in range(number):
            step, delay = int((STEPS - 8) * (i + chance.uniform()) / number), chance.uniform() * LONGEST
            if moment == "":
                delay = chance.uniform() * seconds / 8
            elif moment == "sampling":
                delay = chance.uniform() * drawing / 4
            command = sampling(run) if moment == "sampling" else resuming(run, settings)
            attempts.append((command, moment, step, float(delay)))
        if moment == "transformer":
            attempts.append((resuming(run, settings), "never", 0, 0.0))
    ends = attempt_all([*attempts, (sampling(run), "never", 0, 0.0)])

    codes = [code for code, _ in ends]
    asked = ["end" if moment == "never" else moment or "start" for _, moment, _, _ in attempts] + ["end"]
    killed = Counter(moment for moment, code in zip(asked, codes, strict=True) if code == -9)
    print(f"{sum(killed.values())} kills: {dict(killed)}")
    assert [code for moment, code in zip(asked, codes, strict=True) if moment == "end"] == [0, 0]
    assert set(codes) <= {0, -9} and sum(killed.values()) >= 30, ends  # some may come too late
    assert killed.keys() == {"start", "tokenizer", "caching", "transformer", "sampling"}
    assert_equal_weights(run, whole)
    assert losses(run) == losses(whole)
    pictures = [path.relative_to(whole / "drawn") for path in (whole / "drawn").rglob("*.png")]
    assert len(pictures) == 48 + 2
    for name in pictures:
        assert (run / "drawn" / name).read_bytes() == (whole / "drawn" / name).read_bytes(), name
    assert not list(run.rglob(".*")), "leftovers of killed processes were cleared away"
