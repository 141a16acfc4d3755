"""Sampling never waits for the device: within the loop over scales, the host reads no tensor and sends none. Nor does
editing, but for the mask, before the first scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nextscale import plugins
from nextscale.api import Model
from nextscale.conditioning import ConditionSpec
from nextscale.config.run import load_config
from nextscale.config.sections import RunConfig, SamplingConfig
from nextscale.errors import NextscaleError
from nextscale.grid.layers import Layout
from nextscale.grid.segments import Carry, SegmentedTokenizer
from nextscale.sampling.generate import Generation, generate
from nextscale.sampling.predictor import Predictor
from nextscale.storage.models import new_transformer
from nextscale.testing.helpers import random_pyramid
from nextscale.testing.second_device import second_device, waits
from nextscale.testing.tiny import grid_tokenizer, scorer_for, transformer_for

SMALL = ("tokenizer.width=8", "transformer.depth=2", "transformer.width=32", "transformer.heads=2")
FILTERS = {"guidance": 1.5, "top_k": 5, "top_p": 0.9}
VARIANTS = {
    "next scale": (),
    "next token": ("tokenizer.order=raster",),
    "refined": ("transformer.refiner.depth=1",),
    "refined in part": ("transformer.refiner.scales=[1, 2]",),
    "markov": ("transformer.attention=markov",),
    "absolute": ("transformer.positions=absolute", "transformer.scale_embedding=true"),
    "some scales": ("transformer.attention=[[1,0,0,0],[1,1,0,0],[0,1,1,0],[1,0,1,1]]",),
    "in steps": ("transformer.in_scale_steps=true",),
    "in groups": ("transformer.in_scale_steps=true", "transformer.known_tokens=codes", "tokenizer.group_side=2"),
}


def models(*settings: str) -> tuple[Any, Any]:
    """The reference model for images, untrained and small."""
    config = load_config("image", "digits", None, [*SMALL, *settings])
    torch.manual_seed(0)
    description = {"channels": 1, "height": 8, "width": 8}
    tokenizer = plugins.modality("image").build_tokenizer(config.tokenizer, description).eval()
    return tokenizer, new_transformer(config.transformer, tokenizer, (ConditionSpec(name="label", size=10),)).eval()


def draw(
    tokenizer: Any, transformer: Any, number: int = 3, scorer: Any = None, known: Any = None, keep: Any = None,
    **sampling: Any,
) -> Generation:  # fmt: skip
    labels = torch.arange(number, device=tokenizer.device) % 3
    onto_meta = tokenizer.device.type == "meta"  # has no generators, but takes its own default one for each sample
    generators = [None if onto_meta else torch.Generator().manual_seed(i) for i in range(number)]
    config = SamplingConfig(**FILTERS | sampling)
    given = {"known": known, "keep": keep, "scorer": scorer}
    return generate(tokenizer, transformer, number, {"label": labels}, config, generators, **given)


class HostTensors(TorchDispatchMode):
    """Records the operations that take or give tensors of the host."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [part for part in tree_leaves((args, kwargs, result)) if isinstance(part, Tensor)]
        if any(part.device.type == "cpu" for part in tensors):
            self.seen.append(str(func))
        return result


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the one check after the last scale, and that of labels before the first."""
    monkeypatch.setattr(Predictor, "check", lambda self: None)
    monkeypatch.setattr("nextscale.conditioning.check_conditions", lambda specs, conditions: None)


def assert_never_waits(tokenizer: Any, transformer: Any, **sampling: Any) -> None:
    """On torch's meta device, where tensors hold no values: whoever reads one gets an error."""
    tokenizer, transformer = tokenizer.to("meta"), transformer.to("meta")
    draw(tokenizer, transformer, **sampling)  # sends what is kept on the device from then on
    with HostTensors() as host:
        draw(tokenizer, transformer, **sampling)
    assert host.seen == []


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())
def test_images(settings: tuple[str, ...], unchecked: None) -> None:
    steps = [{"steps": 3, "reveal": reveal} for reveal in ("random", "confidence")]
    if "tokenizer.group_side=2" in settings:
        steps = [{"reveal": "groups", "group_steps": most} for most in (None, 3)]
    for sampling in steps if "transformer.in_scale_steps=true" in settings else [{}]:
        assert_never_waits(*models(*settings), **sampling)


@pytest.mark.parametrize("name", ["next scale", "refined", "absolute", "in steps"])
def test_candidates(name: str, unchecked: None) -> None:
    tokenizer, transformer = models(*VARIANTS[name])
    scorer = scorer_for(tokenizer, transformer)
    assert scorer is not None
    assert_never_waits(tokenizer, transformer, scorer=scorer.to("meta"), candidates=3)


@pytest.mark.parametrize("carry", ["none", "input", "state"])
def test_segments(carry: Carry, unchecked: None) -> None:
    plain = grid_tokenizer((8, 6))
    parts = plain.encoder, plain.decoder, plain.pyramid
    tokenizer = SegmentedTokenizer(*parts, (1, 2, 3), (8, 6), (2, 2), Layout(2), (1, 2), carry).eval()
    assert_never_waits(tokenizer, transformer_for(tokenizer))


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())
def test_scalars_read_on_a_cpu(settings: tuple[str, ...]) -> None:
    """Whatever the number of scales and samples, one scalar is read, by the check after the last scale."""
    tokenizer, transformer = models(*settings)
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        draw(tokenizer, transformer, 5)
    assert [event.name for event in recorded.events()].count("aten::_local_scalar_dense") == 1


@pytest.mark.parametrize("how", [{"paste": True}, {"guess": True}, {"replay": True}])
@pytest.mark.parametrize(("name", "candidates"), [*((name, 1) for name in VARIANTS), ("next scale", 3), ("refined", 3)])
def test_an_edit_waits_twice(name: str, candidates: int, how: dict[str, Any]) -> None:
    """Whatever the number of scales, sub-steps and candidates: for the tokens that are kept, and for the check."""
    tokenizer, transformer = models(*VARIANTS[name])
    scorer = scorer_for(tokenizer, transformer) if candidates > 1 else None
    samples, keep = torch.randn(3, 1, 8, 8), torch.zeros(3, 8, 8, dtype=torch.bool)
    keep[0, :4], keep[1] = True, True
    sampling = FILTERS | {"candidates": candidates} | ({"steps": 3} if name == "in steps" else {})
    sampling |= {"reveal": "groups"} if name == "in groups" else {}
    with second_device() as device:
        config = RunConfig.model_construct(sampling=SamplingConfig(**sampling))
        parts = tokenizer.to(device), transformer.to(device), config
        model = Model(plugins.modality("image"), *parts, scorer=None if scorer is None else scorer.to(device))
        model.edit(samples, keep, **how)  # makes what is kept on the device from then on
        with waits() as waited:
            model.edit(samples, keep, **how)
    assert waited == ["aten.to.dtype_layout", "aten.is_nonzero.default"]


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())
def test_scalars_read_by_an_edit_on_a_cpu(settings: tuple[str, ...]) -> None:
    tokenizer, transformer = models(*settings)
    known = random_pyramid(tokenizer, 4, 0)
    keep = torch.rand(known.tokens.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    keep[1], keep[2] = True, False
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        draw(tokenizer, transformer, 4, known=known, keep=keep)
    assert [event.name for event in recorded.events()].count("aten::_local_scalar_dense") == 1


@pytest.mark.parametrize("settings", [(), ("transformer.refiner.depth=1",)])
def test_logits_that_are_not_finite_are_still_noticed(settings: tuple[str, ...]) -> None:
    tokenizer, transformer = models(*settings)
    with torch.no_grad():
        transformer.head.bias[3] = torch.nan
    with pytest.raises(NextscaleError, match="logits are not finite"):
        draw(tokenizer, transformer)
