"""Hypothesis strategies: schedules, token pyramids, and settings of the transformer and of sampling."""

from __future__ import annotations

from typing import Any, Literal

import torch
from hypothesis import strategies as st
from torch import Tensor

from nextscale.config.sections import RefinerConfig, SamplingConfig, TransformerConfig
from nextscale.testing.helpers import random_pyramid
from nextscale.tokens.capabilities import TakesSizes
from nextscale.tokens.pyramid import Schedule, TokenPyramid
from nextscale.tokens.tokenizer import MultiscaleTokenizer


def seeds() -> st.SearchStrategy[int]:
    return st.integers(0, 2**32 - 1)


@st.composite
def grid_schedules(draw: st.DrawFn, axes: int | None = None, max_side: int = 9) -> Schedule:
    """Grids of 1 to 3 axes, grown by ``Schedule.grid``."""
    axes = draw(st.integers(1, 3)) if axes is None else axes
    finest = draw(st.lists(st.integers(1, max_side), min_size=axes, max_size=axes))
    sides = draw(st.lists(st.integers(1, max(finest)), min_size=1, max_size=5, unique=True))
    return Schedule.grid(finest, sorted(sides))


def set_schedules(max_scales: int = 5, max_length: int = 6) -> st.SearchStrategy[Schedule]:
    """Scales of any lengths, as for sets."""
    lengths = st.lists(st.integers(1, max_length), min_size=1, max_size=max_scales)
    return lengths.map(lambda drawn: Schedule.of([(length,) for length in drawn]))


def schedules_for(tokenizer: MultiscaleTokenizer) -> st.SearchStrategy[Schedule | None]:
    """None (the tokenizer's default); also those of smaller or stretched samples if it takes several sizes."""
    if not isinstance(tokenizer, TakesSizes):
        return st.none()
    return st.none() | st.sampled_from(tokenizer.schedules_nearby())


def pyramids(tokenizer: MultiscaleTokenizer, max_samples: int = 3) -> st.SearchStrategy[TokenPyramid]:
    """Random legal tokens, on the tokenizer's own or another schedule."""
    numbers = st.integers(1, max_samples)
    return st.builds(
        lambda number, seed, schedule: random_pyramid(tokenizer, number, seed, schedule=schedule),
        numbers,
        seeds(),
        schedules_for(tokenizer),
    )


@st.composite
def attention_matrices(draw: st.DrawFn, num_scales: int) -> tuple[tuple[bool, ...], ...]:
    """Which scales each scale attends to: itself, any coarser ones, never a finer one."""
    rows = [[*draw(st.lists(st.booleans(), min_size=k, max_size=k)), True] for k in range(num_scales)]
    return tuple(tuple(row + [False] * (num_scales - len(row))) for row in rows)


@st.composite
def transformer_configs(draw: st.DrawFn, num_scales: int, in_scale_steps: bool | None = None) -> TransformerConfig:
    """Tiny transformers in every variant. Those without in-scale steps may have a refiner."""
    rule: Any = draw(st.sampled_from(["full", "markov", "matrix"]))
    steps = draw(st.booleans()) if in_scale_steps is None else in_scale_steps
    refiner = None if steps else draw(st.none() | refiner_configs(num_scales))
    return TransformerConfig(
        depth=2,
        width=16,
        heads=draw(st.sampled_from([1, 2])),
        mlp_ratio=2.0,
        mlp=draw(st.sampled_from(["gelu", "swiglu"])),
        norm=draw(st.sampled_from(["layernorm", "rmsnorm"])),
        adaln=draw(st.sampled_from(["block", "shared"])),
        qk_norm=draw(st.booleans()),
        positions=draw(st.sampled_from(["absolute", "rotary"])),
        scale_embedding=draw(st.booleans()),
        attention=draw(attention_matrices(num_scales)) if rule == "matrix" else rule,
        drop_path=0.0,
        in_scale_steps=steps,
        known_tokens=draw(st.sampled_from(["embedding", "codes"])) if steps else "embedding",
        refiner=refiner,
    )


def refiner_configs(num_scales: int) -> st.SearchStrategy[RefinerConfig]:
    """Tiny refiners of all scales or of some."""
    some = st.lists(st.integers(0, num_scales - 1), min_size=1, unique=True).map(tuple)
    return st.builds(
        RefinerConfig,
        depth=st.integers(0, 2),
        width=st.sampled_from([8, 12]),
        heads=st.sampled_from([1, 2]),
        scales=st.none() | some,
    )


@st.composite
def sampling_configs(
    draw: st.DrawFn,
    num_scales: int | None,
    in_scale_steps: bool = False,
    extreme: bool = False,
    group_order: Literal["random", "fixed"] | None = None,
) -> SamplingConfig:
    """Sampling settings, each one value or one per scale (``num_scales`` None: one value only).

    ``extreme`` settings suit checks that hold for any draw. ``group_order`` is the tokenizer's.
    """

    def setting(values: st.SearchStrategy[Any]) -> Any:
        if num_scales is None:
            return draw(values)
        return draw(values | st.tuples(*[values] * num_scales))

    warm = st.floats(0.5, 2.0)
    policies: list[Any] = [] if in_scale_steps and group_order == "fixed" else ["random", "confidence"]
    policies += ["groups"] if in_scale_steps and group_order is not None else []
    reveal = draw(st.sampled_from(policies))
    limited = reveal == "groups" and draw(st.booleans())
    return SamplingConfig(
        guidance=draw(st.floats(0, 20 if extreme else 2)),
        guidance_schedule=draw(st.sampled_from(["linear", "constant"])),
        temperature=setting(st.sampled_from([1e-4, 1.0, 1e4]) if extreme else warm),
        top_k=setting(st.sampled_from([0, 1, 2, 5, 10**6])),
        top_p=setting(st.sampled_from([0.0, 1e-6, 0.5, 1.0]) if extreme else st.floats(0.3, 1)),
        steps=setting(st.integers(1, 4)) if in_scale_steps else 1,
        reveal=reveal,
        group_steps=setting(st.integers(1, 4)) if limited else None,
    )


def keep_masks(pyramid: TokenPyramid) -> st.SearchStrategy[Tensor]:
    """B L booleans: the tokens that an edit keeps, from none to all."""

    def mask(seed: int, share: float) -> Tensor:
        chance = torch.rand(pyramid.tokens.shape[:2], generator=torch.Generator().manual_seed(seed))
        return chance < share

    return st.builds(mask, seeds(), st.floats(0, 1.01))


def place_masks(samples: Tensor) -> st.SearchStrategy[Tensor]:
    """B *grid booleans over samples B C *grid: a box in each sample, or everything outside it."""
    shape = samples.shape[2:]

    def mask(seed: int, outside: bool) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        inside = torch.ones(len(samples), *shape, dtype=torch.bool)
        for axis, size in enumerate(shape, start=1):
            ends = torch.randint(0, size + 1, (2, len(samples)), generator=generator).sort(0).values
            places = torch.arange(size)
            within = (places >= ends[0][:, None]) & (places < ends[1][:, None])
            inside &= within.view(len(samples), *[size if i == axis else 1 for i in range(1, len(shape) + 1)])
        return ~inside if outside else inside

    return st.builds(mask, seeds(), st.booleans())
