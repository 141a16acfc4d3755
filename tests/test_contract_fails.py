"""The contract suite can fail: each check finds the defects that it exists for, and says which invariant and where.

The defects are in ``contract_defects``.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

# pytest's importlib mode puts no folder on the path.
sys.path.insert(0, str(Path(__file__).parent / "contract_defects"))

import authors
import base
import machines
import modalities
import samplers
from base import Defect, build, samples

from nextscale.grid import GridTokenizer
from nextscale.testing import checks, contract, encoding_checks
from nextscale.testing.contract import TokenizerContract
from nextscale.testing.invariants import INVARIANTS, ContractError
from nextscale.testing.modality_contract import ModalityContract
from nextscale.testing.properties import PropertyTests
from nextscale.tokens.pyramid import Schedule

DEFECTS = [*machines.DEFECTS, *samplers.DEFECTS, *authors.DEFECTS, *modalities.DEFECTS]


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


def test_there_are_many_defects():
    assert len({defect.name for defect in DEFECTS}) == len(DEFECTS) >= 45


@pytest.mark.parametrize("defect", DEFECTS, ids=[defect.name for defect in DEFECTS])
def test_a_defect_is_found(defect: Defect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ContractError, match=defect.message) as caught:
        defect.run(tmp_path, monkeypatch)
    assert caught.value.message.startswith("invariant ") and caught.value.likely_cause


@pytest.mark.parametrize("check", base.ALL, ids=lambda check: check.__name__)
def test_a_sound_tokenizer_passes(check: Callable[[GridTokenizer], None]):
    check(build())


@pytest.mark.parametrize("rule", ["full", "markov", samplers.MATRIX], ids=["full", "markov", "matrix"])
def test_every_attention_rule_passes(rule: Any):
    base.attention(build(), rule)


@pytest.mark.parametrize("check", modalities.ALL, ids=lambda check: check.__name__)
def test_a_sound_modality_passes(check: Callable, tmp_path: Path):
    check(modalities.Toy(), tmp_path)


def test_a_lossy_tokenizer_is_not_lossless(tmp_path: Path):
    base.round_trip(build(), tmp_path)
    with pytest.raises(AssertionError, match=r"lossless: sample 0"):
        checks.check_round_trip(build(), samples(), tmp_path, base.LABELS, lossless=True)


def test_scales_of_sets_may_have_any_shape():
    checks.check_schedule(Schedule.of([(2, 2), (1, 4)]))


# The base class.


def test_every_subclass_has_its_own_properties():
    class One(TokenizerContract):
        examples = 7

    class Two(One):
        examples = 8

    tests = [getattr(kind, "test_causality") for kind in (One, Two)]  # noqa: B009
    assert tests[0] is not tests[1]
    assert [test._hypothesis_internal_use_settings.max_examples for test in tests] == [7, 8]
    assert tests[1].__qualname__.endswith("Two.test_causality")


def test_a_property_that_fails_fails_its_test_and_is_not_shrunk():
    seen = []

    class Failing(PropertyTests):
        few_examples = 3

        def property_nothing_holds(self, data: Any) -> None:
            seen.append(1)
            raise AssertionError("as it should")

    with pytest.raises(AssertionError, match="as it should"):
        Failing().test_nothing_holds()  # type: ignore[attr-defined]
    assert len(seen) <= 3, "a failure is reported as it was found; it is run once more to say what was drawn"


def test_the_contract_asks_for_fifty_examples():
    assert TokenizerContract.examples >= 50
    assert TokenizerContract.thorough == {"schedule", "causality", "train_equals_sample", "cached_equals_full"}


def test_every_check_of_the_contract_names_an_invariant():
    tests = {name.removeprefix("test_") for name in dir(ModalityContract) if name.startswith("test_")}
    assert tests == set(INVARIANTS)


def test_bare_asserts_of_the_contract_say_what_they_compared():
    """pytest rewrites the contract's own modules, if it is there first; without pytest, it is not imported."""
    assert all("@pytest_ar" in vars(module) for module in (checks, contract, encoding_checks))
    program = "import nextscale.testing.contract, nextscale.testing.run, sys; sys.exit('pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
