"""An untrained run that can be exported to published VAR."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from nextscale.conditioning import ConditionSpec
from nextscale.config.run import make_config
from nextscale.storage.models import new_transformer, save_run
from nextscale_image.tokenizer import build_tokenizer

# pytest's importlib mode adds no folder to the path, so test files would not find their shared helpers.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Path]:
    """``make_run(folder, {tokenizer settings}, transformer setting=...)``; settings override those of a tiny model."""
    return run_of


def run_of(folder: Path, tokenizer: Mapping[str, Any] | None = None, **transformer: Any) -> Path:
    """An untrained run with published VAR's options."""
    torch.manual_seed(0)
    settings = {
        "data": {"source": "x", "size": [8, 8]},
        "tokenizer": {
            "scales": [1, 2, 4], "channels": 4, "width": 32, "multipliers": [1, 2], "blocks": 1, "norm_groups": 32,
            **(tokenizer or {}), "quantizer": {"codes": 32, "phi_count": 2, **(tokenizer or {}).get("quantizer", {})},
        },
        "transformer": {"depth": 2, "width": 64, "heads": 1, **transformer},
    }  # fmt: skip
    config = make_config("image", settings, "test")
    description = {"channels": 3, "height": 8, "width": 8}
    tokens = build_tokenizer(config.tokenizer, description)
    model = new_transformer(config.transformer, tokens, [ConditionSpec(name="label", size=5)])
    with torch.no_grad():  # parameters that all start at one value would hide a mix-up
        for parameter in (*tokens.parameters(), *model.parameters()):
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
        tokens.pyramid.quantizer.usage_KV.uniform_()
    save_run(folder, config, description, tokens, model)
    return folder
