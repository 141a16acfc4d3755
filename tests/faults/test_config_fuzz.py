"""Random settings, seeded: every override and every YAML file is accepted or refused in one line, quickly."""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path

import pytest

from nextscale.config.dump import dump_config
from nextscale.config.run import load_config, load_run_config, parse_options, run_config_model
from nextscale.config.tree import section_of
from nextscale.errors import NextscaleError

MODALITIES = ("image", "video", "graph")
SCALARS = [
    "", " ", "0", "1", "-1", "7", "010", "0x_", "0x1f", "0b", "1_0", "1e3", "1e-3", "1e400", ".inf", "-.inf", ".nan",
    "nan",
    "no", "yes", "on", "true", "None", "null", "~", "=", "<<", "12:30", "190:20:30.15", "2024-13-45", "2024-02-30",
    "2001-12-14t21:59:43.10-05:00", "'", '"', "'q'", '"\\x"', "#", "#1", "my #1 pics", " lead", "@home", "%p", "`x",
    "!x",
    "!!int x", "!!int 09", "!!bool x", "!!float 1:x", "!!timestamp x", "!!binary ==", "!!set {a}", "!!omap [a]",
    "!!null 3",
    "!!python/object/apply:os.system [id]", "!<tag:yaml.org,2002:int> x", "&a", "*a", "&a *a", "&a [*a]",
    "&a {b: *a}",
    "{<<: 3}", "{<<: [1]}", "&a {<<: *a}", "{? [a] : b}", "{[a]: b}", "{{}: b}", "{1: 2}", "{null: 1}",
    "{a: 1, a: 2}",
    "[", "]", "{", "}", "[]", "{}", "[[]]", "[1,", "1,", ",", ",,", "1,2,3", "1,x", "[1,[2,[3]]]", "{a", "a: b",
    "a: b: c",
    "- a", "-", "--", "---", "...", "--- a\n--- b", "? a", "|", ">", "|\n x", "\t", "\n", "\0", "\x07", "\x85",
    "\u2028",
    "\ufeff", "\ud800", "é", "٣", "🙂", "full", "auto", "digits", "gelu", "image", "9" * 30, "9" * 5000,
    "-" + "9" * 5000,
    "0x" + "f" * 6000, "0b" + "1" * 30000, "1" * 900 + ".5", "1:" * 3000 + "1", "[" * 1000, "[" * 100_000,
    "{a: " * 3000,
    "- " * 3000, "? " * 3000, "x" * 100_000, "1, " * 30_000, "[" + "1, " * 60_000 + "]", "a" * 300_000, "../" * 2000,
]  # fmt: skip
SOUND = ["1", "2", "0.5", "true", "null", "1,2", "[1, 2, 4]", "auto", "none", "full", "a b"]


class Maker:
    """Random settings around the real ones: right and wrong keys, values, types and syntax."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.keys = {modality: list(_keys(run_config_model(modality))) for modality in MODALITIES}
        self.whole = {modality: dump_config(load_config(modality, "none")) for modality in MODALITIES}

    def scalar(self) -> str:
        if self.random.random() < 0.1:
            return "".join(
                chr(self.random.choice([*range(32, 127), *range(32, 127), 9, 10, 0x2028])) for _ in range(12)
            )
        text = self.random.choice(SCALARS)
        if len(text) > 2000 and self.random.random() < 0.8:  # those that take long are rarer
            text = text[:1000]
        return text

    def value(self, depth: int = 0) -> str:
        kind = self.random.random()
        if kind < 0.75 or depth > 3:
            return self.scalar()
        parts = [self.value(depth + 1) for _ in range(self.random.randint(0, 3))]
        if kind < 0.87:
            return f"[{', '.join(parts)}]"
        anchor = self.random.choice(["", "", "&a ", "&b "])
        return anchor + "{" + ", ".join(f"{self.random.choice(['codes', 'a', '*a', '<<'])}: {p}" for p in parts) + "}"

    def key(self, modality: str) -> str:
        key = self.random.choice(self.keys[modality])
        change = self.random.random()
        if change < 0.7:
            return key
        if change < 0.8:
            return f"{key}.{self.random.choice(['a', 'codes', '', ' ', '0', 'a.' * 2000])}"
        if change < 0.9:
            place = self.random.randrange(len(key))
            return key[:place] + self.random.choice(["", "x", ".", " ", "=", "\n", "é"]) + key[place + 1 :]
        return self.random.choice(
            ["modality", "preset", "data", "tokenizer", "", ".", "x", "eval.seed", "eval.x", "1", "None"]
        )

    def override(self, modality: str) -> str:
        if self.random.random() < 0.3:
            return f"{self.random.choice(self.keys[modality])}={self.random.choice(SOUND)}"
        return f"{self.key(modality)}{self.random.choice(['='] * 30 + ['', ' = '])}{self.value()}"

    def file(self, modality: str) -> bytes:
        kind = self.random.random()
        if kind < 0.3:  # what a run wrote, damaged
            data = bytearray(self.whole[modality].encode())
            for _ in range(self.random.randint(1, 6)):
                place, change = self.random.randrange(max(1, len(data) - 200)), self.random.random()
                if change < 0.4:
                    data[place] = self.random.randrange(256)
                elif change < 0.6:
                    del data[place : place + self.random.randint(1, 200)]
                elif change < 0.8:
                    data[place:place] = self.scalar().encode(errors="surrogatepass")
                else:
                    data = data[: max(place, 300)]
            return bytes(data)
        lines = []
        for _ in range(self.random.randint(1, 3)):
            path = self.key(modality).split(".")[:40]
            indent = "".join(f"{'  ' * level}{part}:\n" for level, part in enumerate(path[:-1]))
            value = self.random.choice(SOUND) if self.random.random() < 0.5 else self.value()
            lines.append(f"{indent}{'  ' * (len(path) - 1)}{path[-1]}: {value}\n")
        if kind < 0.4:
            lines.append(self.bomb())
        return "".join(lines).encode(errors="surrogatepass")

    def bomb(self) -> str:
        """Aliases of aliases, exponential or circular."""
        width, depth = self.random.randint(1, 12), self.random.randint(1, 12)
        lines = ["a0: &a0 [x, x]"]
        for level in range(1, depth):
            lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * width)}]")
        lines.append(f"{self.random.choice(['seed', 'data', 'tokenizer'])}: *a{self.random.randint(0, depth)}")
        return "\n".join(lines) + "\n"


def _keys(model: type, path: tuple[str, ...] = ()) -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        found.append(".".join((*path, name)))
        found += [] if section is None else _keys(section, (*path, name))
    return found


def run(overrides: int, files: int, seed: int, folder: Path) -> tuple[Counter, float]:
    """How many were accepted and refused, and the longest time (CPU). Only a one-line NextscaleError is a refusal."""
    maker, counts, longest = Maker(seed), Counter(), 0.0
    for number in range(overrides + files):
        modality = maker.random.choice(MODALITIES)
        what = "override" if number < overrides else "file"
        given: str | bytes = maker.override(modality) if what == "override" else maker.file(modality)
        file = folder / "config.yaml"
        if isinstance(given, bytes):
            file.write_bytes(given)
        started = time.process_time()
        try:
            if isinstance(given, bytes):
                of_a_run = maker.random.random() < 0.3
                load_run_config(file) if of_a_run else load_config(modality, "none", file)
            elif given.startswith("eval."):
                parse_options(modality, [given])
            else:
                dump_config(load_config(modality, "none", None, [given]))
            counts[f"{what}s accepted"] += 1
        except NextscaleError as error:
            assert "\n" not in str(error), (given[:200], str(error))
            assert len(str(error)) < 3000, (given[:200], str(error)[:300])
            counts[f"{what}s refused"] += 1
        except BaseException as error:
            raise AssertionError(f"{what} {number}: {given[:300]!r} raised {type(error).__name__}: {error}") from error
        longest = max(longest, time.process_time() - started)
    return counts, longest


def test_random_settings(tmp_path: Path) -> None:
    counts, _ = run(500, 200, 1, tmp_path)
    assert counts["overrides accepted"] > 20 and counts["overrides refused"] > 100
    assert counts["files accepted"] > 2 and counts["files refused"] > 20


@pytest.mark.slow
def test_many_random_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts, longest = run(10_000, 2_000, 2, tmp_path)
    with capsys.disabled():
        print(f"\n{dict(sorted(counts.items()))}, longest {longest:.2f} s of CPU")
    assert sum(counts.values()) == 12_000
