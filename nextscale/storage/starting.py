"""Weights of a trained model as the start of another one, whose conditions may differ."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nextscale.conditioning import ConditionSpec
from nextscale.errors import CheckpointError
from nextscale.storage.models import shape_of, stored_config
from nextscale.storage.seal import sealed_tensors
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale.transformer import ScaleTransformer

OF_THE_TOKENIZER = ("head.codes", "stem.codes")
"""Copies of the tokenizer's codebook, which may be another one than that of the stored model."""
ADDABLE = ("refiner.", "known", "stem.codes")
"""Parts of a transformer that change nothing at first (but for what drawn tokens rule out, with a refiner of a stem's
own), so that a trained one may be given them."""


def start_from(run: Path, part: str, model: MultiscaleTokenizer | ScaleTransformer) -> list[str]:
    """Load the weights of the ``part`` (tokenizer or transformer) in ``run`` into ``model``, a fresh one.

    Only condition embeddings may differ, and a refiner or known tokens by their codes may be added, which change
    nothing at first. A class embedding for other classes is new. It starts from the old classes' vectors in turn, which
    the network can tell apart from the first step, or from the null if there were no classes.
    A model without memory (on the meta device) is only checked.

    Returns:
        the names of the new parameters.

    Raises:
        CheckpointError: ``run`` holds no such model, or its weights do not fit.
    """
    body = stored_config(run, part)
    stored, wanted = sealed_tensors(run / part), model.state_dict()
    known = {spec["name"]: spec for spec in body.get("conditions", ())}
    specs = {spec.name: spec for spec in model.conditioner.specs} if isinstance(model, ScaleTransformer) else {}
    embeddings = [name for name in wanted if name.startswith("conditioner.")]
    embeddings = [name for name in embeddings if not _same_condition(name, known, specs)]
    missing = tuple(prefix for prefix in ADDABLE if not any(name.startswith(prefix) for name in stored))
    added = [name for name in wanted if name.startswith(missing)]
    new = embeddings + added
    rest = [name for name in sorted({*wanted, *stored} - {*added}) if not name.startswith("conditioner.")]
    for name in rest:
        there, here = (shape_of(tensors.get(name)) for tensors in (stored, wanted))
        if there != here:
            raise CheckpointError(
                f"cannot start from {run}/{part}: {name} is {there} there and {here} with these settings "
                "(only condition embeddings may differ; a refiner or transformer.known_tokens=codes may be added)"
            )
    kept = {name: stored[name] for name in wanted if name not in new and name not in OF_THE_TOKENIZER}
    if not any(value.is_meta for value in wanted.values()):
        model.load_state_dict(kept, strict=False)
        for name in embeddings:
            kind, condition = name.split(".")[1:3]
            if kind == "embed" and specs[condition].kind == "class":
                fresh = model.get_parameter(name)
                had_classes = known.get(condition, {}).get("kind") == "class"
                null = model.get_parameter(f"conditioner.null.{condition}").data
                old = stored[name] if had_classes else null[None]
                fresh.data.copy_(old[torch.arange(len(fresh)) % len(old)])
    return new


def _same_condition(name: str, known: Mapping[str, Mapping[str, Any]], specs: Mapping[str, ConditionSpec]) -> bool:
    """Whether a condition's stored embedding (or its null, which does not depend on values) can be reused."""
    kind, condition = name.split(".")[1:3]
    if not specs:
        return not known
    if condition not in known or known[condition]["kind"] != specs[condition].kind:
        return False
    there, here = known[condition], specs[condition]
    names = {tuple(there["names"]), here.names} - {()}
    units = (tuple(there.get("offset", ())), tuple(there.get("scale", ()))) == (here.offset, here.scale)
    return kind == "null" or (there["size"] == here.size and len(names) < 2 and units)
