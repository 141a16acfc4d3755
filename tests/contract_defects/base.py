"""One run of each check on the tiny grid tokenizer, or on a tokenizer with a defect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nextscale.grid import GridTokenizer
from nextscale.testing import (
    attention_checks,
    checks,
    edit_checks,
    encoding_checks,
    model_checks,
    place_checks,
    sampling_checks,
)
from nextscale.testing.helpers import random_pyramid
from nextscale.testing.tiny import grid_tokenizer, transformer_for
from nextscale.transformer import ScaleTransformer

LABELS = {"label": torch.tensor([0, 1, 2])}
SIZE, BATCH = (6, 6), 5


class Defect(NamedTuple):
    """``run`` gets an empty folder and pytest's monkeypatch; the check that it runs must fail with ``message``."""

    name: str
    run: Callable[[Path, Any], None]
    message: str


def build(kind: type[GridTokenizer] = GridTokenizer) -> Any:
    return grid_tokenizer(SIZE, kind)


def samples(seed: int = 0, number: int = 3) -> Tensor:
    return torch.randn(number, 2, *SIZE, generator=torch.Generator().manual_seed(seed))


def of(kind: type[GridTokenizer], check: Callable[[Any], None], message: str) -> Defect:
    """A check run on a broken tokenizer."""
    return Defect(f"{kind.__name__}-{check.__name__}", lambda folder, patch: check(build(kind)), message)


def causality(tokenizer: GridTokenizer, transformer: ScaleTransformer | None = None, changed: int = 1) -> None:
    pyramid = random_pyramid(tokenizer, 3, 0)
    other = random_pyramid(tokenizer, 3, 1, like=pyramid, changed=changed)
    model_checks.check_causality(tokenizer, transformer or transformer_for(tokenizer), pyramid, other, changed, LABELS)


def train_equals_sample(tokenizer: GridTokenizer, transformer: ScaleTransformer | None = None) -> None:
    pyramid = random_pyramid(tokenizer, 3, 0)
    model_checks.check_train_equals_sample(tokenizer, transformer or transformer_for(tokenizer), pyramid, LABELS)


def cached_equals_full(tokenizer: GridTokenizer, transformer: ScaleTransformer | None = None) -> None:
    pyramid = random_pyramid(tokenizer, 3, 0)
    model_checks.check_cached_equals_full(tokenizer, transformer or transformer_for(tokenizer), pyramid, LABELS)


def purity(tokenizer: GridTokenizer) -> None:
    checks.check_purity(tokenizer, random_pyramid(tokenizer, 3, 0))


def telescoping(tokenizer: GridTokenizer) -> None:
    checks.check_telescoping(tokenizer, random_pyramid(tokenizer, 3, 0))


def stage_one(tokenizer: GridTokenizer) -> None:
    checks.check_stage_one(tokenizer, samples())


def prefix(tokenizer: GridTokenizer) -> None:
    checks.check_prefix(tokenizer, random_pyramid(tokenizer, 3, 0))


def ragged(tokenizer: GridTokenizer) -> None:
    images = samples()
    model_checks.check_ragged_equals_single(tokenizer, transformer_for(tokenizer), images.split(1), images, LABELS)


def determinism(tokenizer: GridTokenizer, transformer: ScaleTransformer | None = None) -> None:
    sampling_checks.check_determinism(tokenizer, transformer or transformer_for(tokenizer), 3, 0, LABELS)


def guidance_zero(tokenizer: GridTokenizer) -> None:
    sampling_checks.check_guidance_zero(tokenizer, transformer_for(tokenizer), 3, 0, LABELS)


def edit_known(tokenizer: GridTokenizer) -> None:
    pyramid = random_pyramid(tokenizer, 3, 0)
    keep = torch.rand(pyramid.tokens.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    sampling_checks.check_edit_known(tokenizer, transformer_for(tokenizer), pyramid, keep, 0, LABELS)


def legality(tokenizer: GridTokenizer) -> None:
    sampling_checks.check_legality(tokenizer, transformer_for(tokenizer), 3, 0, LABELS)


def round_trip(tokenizer: GridTokenizer, folder: Path) -> None:
    checks.check_round_trip(tokenizer, samples(), folder, LABELS, others=samples(1))


def edit_places(tokenizer: GridTokenizer) -> None:
    keep = torch.ones(3, *SIZE, dtype=torch.bool)
    sampling_checks.check_edit_places(tokenizer, transformer_for(tokenizer), samples(), keep, 0, LABELS)


def encoding(tokenizer: GridTokenizer) -> None:
    encoding_checks.check_encoding(tokenizer, samples())


def memory(tokenizer: GridTokenizer) -> None:
    encoding_checks.check_memory(tokenizer, samples(), samples(1), LABELS)


def batch_mates(tokenizer: GridTokenizer) -> None:
    batch = samples()
    encoding_checks.check_batch_mates(tokenizer, batch, batch.split(1), LABELS)


def information(tokenizer: GridTokenizer) -> None:
    batch = samples()
    encoding_checks.check_information(tokenizer, batch, batch.split(1))


def inputs_matter(tokenizer: GridTokenizer) -> None:
    pyramid = random_pyramid(tokenizer, 3, 0)
    for j in range(2):
        changed = random_pyramid(tokenizer, 3, 1, like=pyramid, changed=j)
        encoding_checks.check_inputs_matter(tokenizer, pyramid, changed, j)


def coordinates(tokenizer: GridTokenizer) -> None:
    place_checks.check_coordinates(tokenizer, random_pyramid(tokenizer, 3, 0), place_checks.on_grid(tokenizer))


def locality(tokenizer: GridTokenizer) -> None:
    place_checks.check_locality(tokenizer, tokenizer.schedule(), 0)


def attention(tokenizer: GridTokenizer, rule: Any = "full") -> None:
    pyramid = random_pyramid(tokenizer, 3, 0)
    transformer = transformer_for(tokenizer, attention=rule)
    for j in range(3):
        attention_checks.check_attention(tokenizer, transformer, pyramid, j, 0, LABELS)


def keep_tokens(tokenizer: GridTokenizer) -> None:
    generator = torch.Generator().manual_seed(0)
    smaller, larger = (torch.rand(3, *SIZE, generator=generator) < share for share in (0.4, 0.6))
    edit_checks.check_keep_tokens(tokenizer, samples(), smaller, larger)


def splice(tokenizer: GridTokenizer) -> None:
    one, two = (random_pyramid(tokenizer, BATCH, seed) for seed in (0, 1))
    edit_checks.check_splice(tokenizer, samples(0, BATCH), one, two)


def unquantized(tokenizer: GridTokenizer) -> None:
    edit_checks.check_unquantized(tokenizer, samples(0, BATCH))


def cuts(tokenizer: GridTokenizer) -> None:
    edit_checks.check_cuts(tokenizer, range(1, 13))


def soft(tokenizer: GridTokenizer) -> None:
    edit_checks.check_soft(tokenizer, random_pyramid(tokenizer, 3, 0))


ALL: tuple[Callable[[Any], None], ...] = (
    *(causality, train_equals_sample, cached_equals_full, purity, telescoping, stage_one, prefix, ragged, determinism),
    *(guidance_zero, edit_known, edit_places, legality, encoding, memory, batch_mates, information, inputs_matter),
    *(coordinates, locality, attention, keep_tokens, splice, unquantized, cuts, soft),
)
