"""Parity with published VAR (https://arxiv.org/abs/2404.02905): its outputs at a small size with random weights."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT.parent / "shared" / "golden" / "var_tiny.pt"
pytestmark = pytest.mark.skipif(not GOLDEN.is_file(), reason="../shared/golden/var_tiny.pt is absent")


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("var_parity", ROOT / "examples" / "var_parity.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_everything_holds(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert example.main(GOLDEN) == 0, capsys.readouterr().out
    lines = capsys.readouterr().out.splitlines()
    keys = set(torch.load(GOLDEN, weights_only=True)) - {"image", "labels"}
    assert {line.split()[1] for line in lines[:-1]} == keys, "at least one line per key"


def test_differences_are_found(example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    golden = torch.load(GOLDEN, weights_only=True)
    golden["logits"][0, 3, 5] += 0.01 * golden["logits"].abs().max()
    golden["greedy_cfg0"]["indices"][2][1, 0] += 1
    golden["transformer_training"]["grad_norm"]["pos_start"] *= 1.001
    golden["something"] = 3
    torch.save(golden, tmp_path / "other.pt")
    assert example.main(tmp_path / "other.pt") == 1
    failed = [line.split()[1:3] for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert [key for key, _ in failed] == ["logits", "greedy_cfg0", "transformer_training", "something"]
    assert failed[1][1] == "indices" and failed[2][1] == "grad_norm"
