"""The contract of an installed modality without pytest, and the modality's own tiny configuration."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from nextscale import plugins
from nextscale.errors import NextscaleError, PluginError
from nextscale.modality import ContractCase, Modality
from nextscale.testing.invariants import INVARIANTS
from nextscale.testing.run import Result, check_modality

# pytest's importlib mode puts no folder on the path.
sys.path.insert(0, str(Path(__file__).parent / "contract_defects"))

from modalities import ReaderRaises, ReadsValues
from toy import Toy


class NamesNoCase(Toy):
    def contract(self, folder: Path) -> ContractCase | None:
        return None


def run(kind: type[Modality], patch: pytest.MonkeyPatch, examples: int = 1) -> list[Result]:
    patch.setattr(plugins, "modality", lambda name: kind())
    return check_modality("toy", examples)


def test_a_sound_modality_passes_every_check(monkeypatch: pytest.MonkeyPatch):
    results = run(Toy, monkeypatch, 2)
    assert [result.message for result in results if not result.passed] == []
    assert [result.invariant for result in results] == [str(each) for each in INVARIANTS.values()]
    assert all(result.what_breaks for result in results)
    # No ragged batches, random weights; and a toy is not installed.
    skipped = {result.invariant for result in results if result.skipped}
    left_out = ("ragged_equals_single", "reconstruction", "options", "presets", "proposals", "entry")
    assert skipped == {str(INVARIANTS[key]) for key in left_out}


@pytest.mark.parametrize(("broken", "key"), [(ReadsValues, "build"), (ReaderRaises, "reader")])
def test_a_broken_modality_fails_one_check_and_the_others_go_on(
    broken: type[Toy], key: str, monkeypatch: pytest.MonkeyPatch
):
    results = run(broken, monkeypatch)
    (failed,) = [result for result in results if not result.passed]
    assert failed.invariant == str(INVARIANTS[key]) and failed.message.startswith(failed.invariant)
    assert failed.likely_cause == INVARIANTS[key].cause
    assert len(results) == len(INVARIANTS)


def test_what_was_drawn_is_told(monkeypatch: pytest.MonkeyPatch):
    class Noisy(Toy):
        def build_tokenizer(self, config: Any, description: dict[str, Any]) -> Any:
            from authors import RandomEncoding

            tokenizer = super().build_tokenizer(config, description)
            tokenizer.__class__ = RandomEncoding
            return tokenizer

    failed = {result.invariant: result for result in run(Noisy, monkeypatch) if not result.passed}
    assert "seed" in failed[str(INVARIANTS["encoding"])].example


def test_a_modality_without_a_tiny_configuration_is_told_how_to_name_one(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(NextscaleError, match=r"NamesNoCase\.contract return a ContractCase"):
        run(NamesNoCase, monkeypatch)
    monkeypatch.undo()
    with pytest.raises(PluginError, match="nothing_like_it"):
        check_modality("nothing_like_it")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["graph", "image", "video"])
def test_built_in_modalities_pass_on_their_own_tiny_configuration(name: str):
    results = check_modality(name, 3)
    assert [result.message for result in results if not result.passed] == []
