"""Damaged copies of a run: whatever happened to one of its files, using the run gives one line or the right result.

Each case copies a small run, damages one file in one way, and does one thing that reads the file. Then there are
three good ends: a ``NextscaleError``; the result of the sound run; or another result, if a note or a warning names the
file or its folder. The file of settings may hold other settings, which are people's own, but must never be read in
part. Files that are only informative never stop anything.

``pytest -s -m slow tests/faults/test_damage.py`` prints what became of 500 copies.
"""

from __future__ import annotations

import contextlib
import io
import math
import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

import nextscale
from nextscale.config.run import load_config, load_run_config
from nextscale.errors import NextscaleError
from nextscale.evaluation import evaluate
from nextscale.training.run import train

Settings = Callable[..., list[str]]

DAMAGES = ("truncated", "one bit", "zeros", "empty", "deleted", "random", "swapped")
INFORMATIVE = "env.json, data.json, metrics.jsonl, eval.json, report.html, samples"
"""Nothing reads these but the report."""
USES: dict[str, tuple[str, ...]] = {
    "config.yaml": ("sample", "eval", "resume transformer", "resume tokenizer", "retrain"),
    "tokenizer": ("sample", "eval", "resume transformer", "retrain"),
    "transformer": ("sample", "eval"),
    "tokens.zarr": ("retrain",),
    "checkpoints/tokenizer": ("resume tokenizer",),
    "checkpoints/transformer": ("resume transformer", "step back", "sample best", "sample last"),
    "eval-cache": ("eval",),
    INFORMATIVE: ("sample", "eval", "resume transformer", "resume tokenizer"),
}
"""What reads the files below some paths of the run."""


# What is done with a run; each returns its result in a form that can be compared.


def sample(run: Path) -> Any:
    return nextscale.load(run, "cpu").generate(3, seed=5, guidance=0.0).samples.numpy().tobytes()


def sample_checkpoint(run: Path, which: str) -> Any:
    shutil.rmtree(run / "transformer", ignore_errors=True)
    model = nextscale.load(run, "cpu", checkpoint=which)
    return model.generate(3, seed=5, guidance=0.0).samples.numpy().tobytes()


def evaluated(run: Path) -> Any:
    return evaluate(run, samples=6, guidance=(0.0,), device="cpu", options=["eval.classifier_epochs=1"])


def resumed(run: Path, stage: str) -> Any:
    train(load_run_config(run), run, resume="auto")
    return {part: weights(run, part) for part in ("tokenizer", "transformer") if part >= stage}


def resume_tokenizer(run: Path) -> Any:
    """As if the process had been killed after the last step of stage 1."""
    for name in ("tokenizer", "transformer", "tokens.zarr", "checkpoints/transformer"):
        shutil.rmtree(run / name, ignore_errors=True)
    return resumed(run, "tokenizer")


def resume_transformer(run: Path) -> Any:
    shutil.rmtree(run / "transformer", ignore_errors=True)
    return resumed(run, "transformer")


def step_back(run: Path) -> Any:
    """As if it had been killed at step 5, two steps of work after the checkpoint that it continues from."""
    shutil.rmtree(run / "checkpoints/transformer/step-00000006", ignore_errors=True)
    return resume_transformer(run)


def retrain(run: Path) -> Any:
    """Train the transformer anew from the cached tokens."""
    shutil.rmtree(run / "checkpoints/transformer", ignore_errors=True)
    return resume_transformer(run)


DO: dict[str, Callable[[Path], Any]] = {
    "sample": sample,
    "sample best": lambda run: sample_checkpoint(run, "best"),
    "sample last": lambda run: sample_checkpoint(run, "last"),
    "eval": evaluated,
    "resume tokenizer": resume_tokenizer,
    "resume transformer": resume_transformer,
    "step back": step_back,
    "retrain": retrain,
}


def weights(run: Path, part: str) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in load_file(run / part / "model.safetensors").items()}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    return one == other


# Damage.


def damage(file: Path, kind: str, others: list[Path], rng: np.random.Generator) -> None:
    data = bytearray(file.read_bytes())
    size = len(data)
    if kind == "deleted":
        file.unlink()
        return
    if kind == "truncated":
        data = data[: rng.integers(max(size, 1))]
    elif kind == "one bit" and size:
        # Half of them near the start, where headers are.
        data[rng.integers(min(size, 400) if rng.random() < 0.5 else size)] ^= 1 << int(rng.integers(8))
    elif kind == "zeros" and size:
        first = int(rng.integers(size))
        length = min(size - first, int(rng.integers(1, 400)))
        data[first : first + length] = bytes(length)
    elif kind == "empty":
        data = bytearray()
    elif kind == "random":
        data = bytearray(rng.bytes(size))
    elif kind == "swapped":
        data = bytearray(others[rng.integers(len(others))].read_bytes())
    file.write_bytes(data)


@dataclass
class World:
    """A trained run that was sampled and evaluated, another one, and what comes out of the sound one."""

    run: Path
    other: Path
    folder: Path
    sound: dict[str, Any]

    def expected(self, use: str) -> Any:
        if use not in self.sound:
            copy = Path(shutil.copytree(self.run, self.folder / f"sound {use}"))
            self.sound[use] = attempt(use, copy)[0]
            again = Path(shutil.copytree(self.run, self.folder / f"again {use}"))
            assert same(self.sound[use], attempt(use, again)[0]), f"{use} is not deterministic, so nothing can be told"
        return self.sound[use]

    def files(self) -> dict[str, list[Path]]:
        """The files of the run below each path of ``USES``. All files are in one of them."""
        everything = [file.relative_to(self.run) for file in sorted(self.run.rglob("*")) if file.is_file()]
        everything = [file for file in everything if not file.name.startswith(".")]
        groups = {
            key: [file for file in everything if any(file.is_relative_to(path) for path in key.split(", "))]
            for key in USES
        }
        assert sum(map(len, groups.values())) == len(everything), "a kind of file that this test does not know"
        return groups

    def case(self, number: int, seed: int) -> tuple[str, str]:
        """Damage a copy and use it: (what was done, what came of it); the latter begins with WRONG if it is wrong."""
        rng = np.random.default_rng([seed, number])
        groups = self.files()
        group = sorted(groups)[number % len(groups)]
        name = groups[group][rng.integers(len(groups[group]))]
        kind, use = str(rng.choice(DAMAGES)), str(rng.choice(USES[group]))
        copy = Path(shutil.copytree(self.run, self.folder / f"case-{number}"))
        pool = [*self.run.rglob(f"*{name.suffix}"), *self.other.rglob(f"*{name.suffix}")]
        before = (copy / name).read_bytes()
        others = [file for file in pool if file.is_file() and file.read_bytes() != before]
        damage(copy / name, kind if others or kind != "swapped" else "random", others, rng)
        outcome = self.judge(group, name, use, copy)
        shutil.rmtree(copy)
        return f"{number}: {name} {kind}, {use}", outcome

    def judge(self, group: str, name: Path, use: str, copy: Path) -> str:
        expected = self.expected(use)
        try:
            found, said = attempt(use, copy)
        except NextscaleError as error:
            if "\n" in str(error) or len(str(error)) > 2000:
                return f"WRONG: not one line: {error}"
            return f"WRONG: stopped by an informative file: {error}" if group == INFORMATIVE else "one line"
        except Exception as error:
            return f"WRONG: {type(error).__module__}.{type(error).__name__}: {error}"
        if same(found, expected):
            return "the sound result"
        if group == "config.yaml":
            return "other settings"
        named = str(copy / name) in said or str((copy / name).parent) in said
        return "another result, with a notice" if named else "WRONG: another result without a word"


def attempt(use: str, copy: Path) -> tuple[Any, str]:
    """The result of one use, and all that it said."""
    err = io.StringIO()
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stderr(err):
        warnings.simplefilter("always")
        result = DO[use](copy)
    return result, " ".join([err.getvalue().replace("\n", " "), *(str(one.message) for one in caught)])


@pytest.fixture(scope="module")
def world(tiny: Settings, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("damage")
    run = Path(shutil.copytree(tiny_run, folder / "run"))
    train(load_config("image", overrides=tiny(seed=1)), folder / "other")
    for one in (run, folder / "other"):
        evaluated(one)
    return World(run, folder / "other", folder, {})


def run_cases(world: World, numbers: range, seed: int) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    wrong = []
    for number in numbers:
        what, outcome = world.case(number, seed)
        outcomes[outcome.split(":")[0]] += 1
        if outcome.startswith("WRONG"):
            wrong.append(f"{what}: {outcome}")
    print(f"\n{len(numbers)} damaged copies: {dict(outcomes)}")
    assert not wrong, "\n".join(wrong)
    return outcomes


def test_damaged_copies(world: World) -> None:
    outcomes = run_cases(world, range(16), seed=1)
    assert outcomes["one line"] and outcomes["the sound result"]


@pytest.mark.slow
def test_five_hundred_damaged_copies(world: World) -> None:
    run_cases(world, range(500), seed=2)
