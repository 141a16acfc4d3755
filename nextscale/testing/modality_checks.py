"""Invariants 21 to 23 of a modality: its data, building its tokenizer, and the objectives of stage 1."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from nextscale.conditioning import check_conditions
from nextscale.config.sections import TransformerConfig
from nextscale.data import DataSplits, SampleSource
from nextscale.meta import without_memory
from nextscale.modality import Modality
from nextscale.randomness import Draws, sample_seeds
from nextscale.storage.models import new_transformer
from nextscale.testing.helpers import assert_same, assert_same_tree, leaves
from nextscale.testing.invariants import holds, likely
from nextscale.tokens.tokenizer import MultiscaleTokenizer


@holds("data")
def check_data(splits: DataSplits) -> None:
    """21. Every split can be read, twice with the same result; conditions are within their bounds; the description
    survives JSON."""
    name = "invariant 21 (data)"
    with likely("the description holds something that JSON does not know or changes: tuples become lists, keys text, "
                "numpy numbers and tensors are refused"):  # fmt: skip
        try:
            stored = json.loads(json.dumps(splits.description))
        except (TypeError, ValueError) as error:
            raise AssertionError(f"{name}: the description cannot be stored as JSON: {error}") from None
        assert stored == splits.description, f"{name}: the description {splits.description} becomes {stored} in JSON"
    for split in ("train", "validation", "test"):
        source = getattr(splits, split)
        if source is None:
            continue
        assert len(source) > 0, f"{name}: the {split} split is empty"
        indices = np.unique([0, len(source) // 2, len(source) - 1])
        batch = source.batch(indices, None)
        declared = {spec.name for spec in splits.conditions}
        with likely("DataSplits.conditions must name exactly what each batch brings"):
            assert batch.conditions.keys() == declared, (
                f"{name}: {split} batches have the conditions {sorted(batch.conditions)}, "
                f"declared are {sorted(declared)}"
            )
            check_conditions(splits.conditions, batch.conditions)
            for key, value in batch.conditions.items():
                assert len(value) == len(indices), (
                    f"{name}: {split}, {len(value)} values of {key}, {len(indices)} samples"
                )
        with likely("reading depends on something besides the index: augmentation although seeds is None?"):
            again = source.batch(indices, None)
            assert_same_tree(name, f"{split} samples read again", again.samples, batch.samples)
        assert hasattr(batch.samples, "to"), f"{name}: {split} samples have no method to(device)"


@holds("augmentation")
def check_augmentation(source: SampleSource, modality: Modality, rows: Sequence[int], seed: int) -> None:
    """21. A sample's augmentation is a function of its seed alone."""
    name, seeds = "invariant 21 (augmentation)", sample_seeds(seed, np.arange(len(rows)))
    together = source.batch(np.array(rows), seeds)
    singles = [source.batch(np.array([row]), seeds[i : i + 1]) for i, row in enumerate(rows)]
    joined = modality.concatenate([single.samples for single in singles])
    assert_same_tree(name, "samples read together", together.samples, joined)
    for key, value in together.conditions.items():
        assert_same(name, key, value, torch.cat([single.conditions[key] for single in singles]))


@holds("samples_survive")
def check_samples_survive(tokenizer: MultiscaleTokenizer, samples: Any, copy: Any) -> None:
    """21. Encoding never changes the samples it is given. ``copy`` is the same batch, read again."""
    tokenizer.encode(samples)
    assert any(True for _ in leaves(samples)), "samples are empty"
    assert_same_tree("invariant 21 (samples are never modified)", "samples after encoding", samples, copy)


@holds("build")
def check_build(modality: Modality, config: Any, splits: DataSplits) -> None:
    """22. ``build_tokenizer`` gives the same tokenizer each time, from the stored description too, and without memory.

    Before training, ``nextscale`` builds the tokenizer and the transformer on torch's meta device
    (``nextscale.plugin.without_memory``), where tensors have no values.
    """
    stored = json.loads(json.dumps(splits.description))
    with likely("build_tokenizer depends on something besides its arguments"):
        one, two = (_shapes(modality.build_tokenizer(config, each)) for each in (splits.description, stored))
        differ = sorted(key for key in one.keys() | two.keys() if one.get(key) != two.get(key))
        assert one == two, f"invariant 22 (building): weights differ when built again: {', '.join(differ)}"
    settings = {"positions": "rotary", "scale_embedding": False, "attention": "markov"}
    with without_memory():
        light = modality.build_tokenizer(config, splits.description)
        adaptive = settings if light.adaptive else {}
        new_transformer(TransformerConfig(depth=1, width=16, heads=1, **adaptive), light, splits.conditions)
    real = modality.build_tokenizer(config, splits.description)
    assert _shapes(light) == one, "invariant 22 (building): weights have other shapes on the meta device"
    assert light.schedule() == real.schedule(), "invariant 22 (building): the schedule differs on the meta device"


def _shapes(tokenizer: MultiscaleTokenizer) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in tokenizer.state_dict().items()}


@holds("objectives")
def check_objectives(modality: Modality, config: Any, splits: DataSplits) -> None:
    """23. The first objective trains the tokenizer; every loss is finite and has gradients."""
    name, tokenizer = "invariant 23 (objectives)", modality.build_tokenizer(config, splits.description)
    objectives = modality.tokenizer_objectives(tokenizer, config)
    weights = any(p.requires_grad for p in tokenizer.parameters())
    assert bool(objectives) == weights, (
        f"{name}: {len(objectives)} objectives for a tokenizer {'with' if weights else 'without'} weights"
    )
    assert not objectives or objectives[0].model is tokenizer, f"{name}: the first objective trains something else"
    indices = np.arange(min(2, len(splits.train)))
    batch = splits.train.batch(indices, sample_seeds(0, indices))
    for objective in objectives:
        with torch.enable_grad():
            loss, scalars = objective(batch, 10**9, Draws(0, 0, slice(0, len(indices)), len(indices)))
            where = f"{name}: {objective.name}"
            assert loss.shape == () and bool(loss.isfinite()), f"{where}: the loss is {loss}, not one finite number"
            for key, value in scalars.items():
                assert bool(torch.as_tensor(value).isfinite()), f"{where}: {key} is {value}"
            assert loss.requires_grad, f"{where}: the loss has no gradient"
            loss.backward()
        moved = [p for p in objective.model.parameters() if p.grad is not None and bool(p.grad.any())]
        assert moved, f"{where}: no weight of its model has a gradient"
