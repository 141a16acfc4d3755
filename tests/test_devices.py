"""Commands of every built-in modality on another device than the CPU: one that every machine has, and a GPU if there is
one. The contract does the same for what a plugin computes, by itself."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from typer.testing import CliRunner

from nextscale import plugins
from nextscale.device import pick_device
from nextscale.testing.second_device import Elsewhere, second_device
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale_cli.main import app

STAGE = {
    "steps": 2, "batch_size": 4, "log_every": 1, "validate_every": 1, "validation_samples": 4, "checkpoint_every": 1,
    "precision": "fp32", "ema": 0.9,
}  # fmt: skip
ADAPTIVE = {
    "transformer": {"attention": "markov", "in_scale_steps": True},
    "training": {"transformer": {"cache": False, "samples_every": 0}},
    "sampling": {"reveal": "groups"},
}
CHANGED = {
    "image": [("edit", "--box", "0,0,4,4"), ("edit", "--box", "0,0,4,4", "--paste", "--replay")],
    "video": [("predict", "--frames", "1", "--pieces", "2")],
    "graph": [("edit", "size=6")],
}


@pytest.fixture(params=["second", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    if request.param == "second":
        with second_device() as device:
            yield device
    elif torch.cuda.is_available():
        yield pick_device("cuda")
    else:
        pytest.skip("no GPU on this machine")


def invoke(*arguments: object) -> None:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    assert "no picture" not in result.output  # training goes on without one


@pytest.mark.parametrize(
    "modality", ["image", *(pytest.param(name, marks=pytest.mark.slow) for name in ("video", "graph"))]
)
def test_every_command(modality: str, device: torch.device, tmp_path: Path) -> None:
    run, drawn = tmp_path / "run", tmp_path / "drawn"
    invoke("train", "-p", "none", "--config", settings_file(modality, device, tmp_path), "--out", run)
    shutil.rmtree(run / "transformer")
    invoke("train", "--resume", run / "checkpoints/transformer/step-00000001")
    invoke("sample", run, "-n", 3, "--device", device, "--out", drawn)
    file = min((drawn / "single").glob("000000.*"))
    for number, (command, *arguments) in enumerate(CHANGED[modality]):
        out = tmp_path / f"changed{number}"
        invoke(command, run, "--sample", file, *arguments, "-n", 2, "--device", device, "--out", out)
    invoke("eval", run, "--samples", 8, "--guidance", 0, "--device", device)
    invoke("report", run)


def settings_file(modality: str, device: torch.device, folder: Path) -> Path:
    """The tiny configuration that the modality names for its contract, with a tiny transformer."""
    (folder / "data").mkdir()
    implementation = plugins.modality(modality)
    case = implementation.contract(folder / "data")
    assert case is not None
    settings: dict[str, Any] = {
        "modality": modality,
        "data": case.data.model_dump(mode="json"),
        "tokenizer": case.tokenizer.model_dump(mode="json"),
        "transformer": {"depth": 1, "width": 16, "heads": 1, "positions": "rotary", "scale_embedding": False},
        "training": {"device": str(device), "tokenizer": STAGE, "transformer": {**STAGE, "samples_every": 2}},
    }
    tokenizer = implementation.build_tokenizer(case.tokenizer, implementation.open_data(case.data).description)
    for name, more in ADAPTIVE.items() if tokenizer.adaptive else ():
        settings[name] = _merged(settings.get(name, {}), more)
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return one | {k: _merged(one[k], v) if isinstance(v, dict) else v for k, v in other.items()}


def test_a_tokenizer_without_weights_moves(device: torch.device) -> None:
    class Plain(MultiscaleTokenizer):
        pass

    Plain.__abstractmethods__ = frozenset()
    tokenizer = Plain()  # type: ignore[abstract]
    assert tokenizer.device.type == "cpu"
    assert tokenizer.to(device).device == device and not tokenizer.state_dict()


# The second device itself.


def test_the_second_device_refuses_what_a_gpu_refuses() -> None:
    with second_device() as device:
        there, here = torch.zeros(3, device=device), torch.ones(3)
        for wrong in (
            lambda: there + here,
            lambda: torch.cat([here, there]),
            lambda: here[torch.zeros(2, dtype=torch.long, device=device)],
            lambda: there.index_put((torch.tensor([0, 1]),), torch.ones(2)),
            lambda: torch.rand(3, device=device, generator=torch.Generator()),
            lambda: torch.rand(3, generator=torch.Generator(device)),
            lambda: there.exponential_(generator=torch.Generator()),
            there.numpy,
            lambda: np.asarray(there),
            lambda: nn.Linear(3, 3)(there),
        ):
            with pytest.raises((RuntimeError, TypeError)):
                wrong()


def test_the_second_device_takes_what_a_gpu_takes() -> None:
    with second_device() as device:
        there = torch.arange(3.0, device=device)
        allowed = (
            there + torch.tensor(1.0),
            there[[0, 2]],
            there[torch.tensor([0, 2])],
            there.clone().copy_(torch.ones(3)),
            there.new_tensor([1, 2]),
            torch.rand(3, device=device, generator=torch.Generator(device)),
            nn.Linear(3, 3).to(device)(there),
        )
        assert all(isinstance(found, Elsewhere) and found.device == device for found in allowed)
        assert allowed[0].cpu().tolist() == [1, 2, 3] and allowed[1].tolist() == allowed[2].tolist() == [0, 2]
        there[1:].mul_(5)
        assert there.tolist() == [0, 5, 10]
    assert not isinstance(torch.zeros(3), Elsewhere) and torch.autocast.__name__ == "autocast"
