"""What large models need: activations that are computed again, and what the dry run says about memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nextscale.config.run import load_config
from nextscale.config.sections import TransformerConfig
from nextscale.errors import ConfigError
from nextscale.training.describe import describe
from nextscale.training.run import train
from nextscale.transformer.attention import AttentionMask
from nextscale.transformer.block import Block

Settings = Callable[..., list[str]]


@pytest.mark.parametrize("variant", [{}, {"mlp": "swiglu", "adaln": "shared", "norm": "rmsnorm"}])
def test_checkpointed_blocks_keep_their_input_alone(variant: dict[str, Any]) -> None:
    torch.manual_seed(0)
    block = Block(TransformerConfig(depth=1, width=32, heads=2, **variant))
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    results, kept = [], []
    for checkpointed in (False, True):
        block.checkpoint_activations = checkpointed
        block.zero_grad()
        x = torch.arange(2 * 9 * 32).reshape(2, 9, 32).sin().requires_grad_()
        cond = torch.arange(2 * 6 * 32).reshape(2, 6, 32).cos() if block.shared else torch.ones(2, 32)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: (sizes.append(t.numel()), t)[1], lambda t: t
        ):
            y = block(x, None, AttentionMask(), cond=cond)
        y.square().sum().backward()
        results.append([y.detach(), x.grad, *(parameter.grad for parameter in block.parameters())])
        kept.append(sum(sizes))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    assert kept[1] < kept[0] / 5


def test_training_with_checkpointed_activations_is_the_same(tiny: Settings, tiny_run: Path, tmp_path: Path) -> None:
    overrides = tiny(**{"training.transformer.checkpoint_activations": True})
    train(load_config("image", overrides=overrides), tmp_path / "run")
    left, right = (load_file(run / "transformer/model.safetensors") for run in (tiny_run, tmp_path / "run"))
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_the_dry_run_says_what_each_device_holds(tiny: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    no_average = {"transformer.width": 512, "training.transformer.ema": 0}

    def told(processes: int, **changes: Any) -> str:
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        config = load_config("image", overrides=tiny(**no_average, **changes))
        row = describe(config)["transformer"]
        gigabytes, rest = row["memory per device, without activations"].split(" ", 1)
        size = 16 * row["parameters"] / 1e9
        parts = int(rest.rsplit(" ", 1)[1]) if "sharded" in rest else 1
        assert float(gigabytes) == pytest.approx(size / parts, abs=0.006)
        return rest

    assert told(1) == "GB on 1 process"
    assert told(4) == "GB on 4 processes"
    assert told(4, **{"training.shard": "full"}) == "GB on 4 processes, sharded over 4"
    assert told(4, **{"training.shard": 2}) == "GB on 4 processes, sharded over 2"
    with pytest.raises(ConfigError, match="does not divide the number of processes, 4"):
        told(4, **{"training.shard": 3})
