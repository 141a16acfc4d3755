"""Detect the settings of a run from the tensor names and shapes of a published checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nextscale.plugin import CheckpointError

SCHEDULES = (
    (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
    (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64),
)
"""The sides of the published models' scales, at 256, 512 and 1024 px."""
HEAD_DIM = 64
NORM_GROUPS = 32
State = Mapping[str, Tensor]


def tokenizer_settings(state: State, scales: Sequence[int]) -> dict[str, Any]:
    """The ``tokenizer`` section of a run's configuration.

    Raises:
        CheckpointError: a tensor that determines a setting is missing, or its shape fits no VAR.
    """
    width, channels = _shape(state, "encoder.conv_in.weight", 4)[0], _shape(state, "quantize.embedding.weight", 2)[1]
    levels = _count(state, "encoder.down")
    outputs = [_shape(state, f"encoder.down.{level}.block.0.conv1.weight", 4)[0] for level in range(levels)]
    if levels == 0 or any(size % width for size in outputs):
        raise CheckpointError(f"the tokenizer's levels have {outputs} channels: all must be multiples of {width}")
    return {
        "scales": list(scales),
        "channels": channels,
        "width": width,
        "multipliers": [size // width for size in outputs],
        "blocks": _count(state, "encoder.down.0.block"),
        "attention": any(name.startswith("encoder.mid.attn_1.") for name in state),
        "norm_groups": NORM_GROUPS,
        "quantizer": {"codes": _shape(state, "quantize.embedding.weight", 2)[0], **phi_settings(state)},
    }


def phi_settings(state: State) -> dict[str, Any]:
    """Which convolutions follow upsampling: one for all scales, a few, one per scale, or none."""
    if "quantize.quant_resi.qresi.weight" in state:
        return {"phi": "shared"}
    partial = _count(state, "quantize.quant_resi.qresi_ls")
    if partial:
        return {"phi": "partial", "phi_count": partial}
    return {"phi": "scale"} if phi_per_scale(state) else {"phi": "none"}


def phi_per_scale(state: State) -> int:
    """Number of convolutions in phi if each scale has its own; else 0."""
    return _count(state, "quantize.quant_resi")


def transformer_settings(state: State) -> dict[str, Any]:
    """The ``transformer`` section of a run's configuration. Raises as ``tokenizer_settings``."""
    width = _shape(state, "word_embed.weight", 2)[0]
    qk_norm = "blocks.0.attn.scale_mul_1H11" in state
    # Without QK-norm, no tensor gives the number of heads; published models have 64 channels per head.
    heads = _shape(state, "blocks.0.attn.scale_mul_1H11", 4)[1] if qk_norm else max(1, width // HEAD_DIM)
    return {
        "depth": _count(state, "blocks"),
        "width": width,
        "heads": heads,
        "mlp_ratio": _shape(state, "blocks.0.ffn.fc1.weight", 2)[0] / width,
        "adaln": "shared" if "shared_ada_lin.1.weight" in state else "block",
        "qk_norm": qk_norm,
    }


def num_classes(state: State) -> int:
    """Number of classes, without the null class (the last row)."""
    return _shape(state, "class_emb.weight", 2)[0] - 1


def find_scales(tokenizer: State, transformer: State | None, given: Sequence[int] | None) -> tuple[int, ...]:
    """The side of each scale: ``given`` if it fits, else from the transformer's table of scales, else the published
    schedule with the same number of scales and tokens.

    A tokenizer alone gives only the number of scales (it works with any sides), so the first published schedule with
    that number is used.

    Raises:
        CheckpointError: the files do not fit each other or ``given``, or the scales cannot be determined.
    """
    rows = _shape(tokenizer, "quantize.ema_vocab_hit_SV", 2)[0]
    count, length = rows, None
    if transformer is not None:
        count, length = _shape(transformer, "lvl_embed.weight", 2)[0], _shape(transformer, "pos_1LC", 3)[1]
        own = phi_per_scale(tokenizer)
        if own and own != count:
            raise CheckpointError(
                f"tokenizer and transformer do not fit together: the tokenizer has a convolution for each of {own} "
                f"scales, the transformer has {count} scales"
            )
        if rows != count and given is None:
            raise CheckpointError(
                f"tokenizer and transformer do not fit together: the tokenizer was trained with {rows} scales, the "
                f"transformer has {count}; if this is intended, give them with --scales"
            )
    known = _table_of_scales(transformer)
    if given is not None:
        tokens = sum(side**2 for side in given)
        if len(given) != count or (length is not None and tokens != length) or known not in (None, tuple(given)):
            holds = f"the transformer has {_shown(known)}" if known else f"the files have {count} scales"
            holds += f" of {length} tokens" if length and not known else ""
            raise CheckpointError(f"--scales {_shown(given)} ({len(given)} scales of {tokens} tokens): {holds}")
        return tuple(given)
    if known is not None:
        return known
    for scales in SCHEDULES:
        if len(scales) == count and (length is None or sum(side**2 for side in scales) == length):
            return scales
    tokens = f" of {length} tokens" if length is not None else ""
    raise CheckpointError(f"no published VAR has {count} scales{tokens}: give their sides with --scales 1,2,3,...")


def _table_of_scales(transformer: State | None) -> tuple[int, ...] | None:
    """Sides of the scales from ``lvl_1L`` (each token's scale); None if it is missing or the scales are not square."""
    table = None if transformer is None else transformer.get("lvl_1L")
    if table is None or table.is_meta or table.is_floating_point():
        return None
    scales, lengths = torch.unique_consecutive(table.flatten(), return_counts=True)
    sides = [round(length**0.5) for length in lengths.tolist()]
    in_order = scales.tolist() == list(range(len(sides)))
    return tuple(sides) if in_order and [side**2 for side in sides] == lengths.tolist() else None


def check_pair(tokenizer: State, transformer: State) -> None:
    """Raise CheckpointError if the two were not made for each other."""
    codes, channels = _shape(tokenizer, "quantize.embedding.weight", 2)
    for what, verb, theirs, own in (
        ("codes", "predicts", _shape(transformer, "head.weight", 2)[0], codes),
        ("latent channels", "takes", _shape(transformer, "word_embed.weight", 2)[1], channels),
    ):
        if theirs != own:
            raise CheckpointError(
                f"tokenizer and transformer do not fit together: the transformer {verb} {theirs} {what}, the "
                f"tokenizer has {own}"
            )


def _shown(scales: Iterable[int]) -> str:
    return ",".join(map(str, scales))


def _shape(state: State, name: str, axes: int) -> tuple[int, ...]:
    if name not in state:
        raise CheckpointError(f"this is not a complete VAR checkpoint: {name} is missing")
    shape = tuple(state[name].shape)
    if len(shape) != axes or 0 in shape:
        raise CheckpointError(f"{name} has shape {shape}, but VAR's has {axes} non-empty axes")
    return shape


def _count(state: State, prefix: str) -> int:
    """How many parts there are of ``PREFIX.NUMBER.``, numbered from 0.

    Raises:
        CheckpointError: a number is left out. So a name alone cannot claim that a model has two billion blocks.
    """
    pattern = re.compile(re.escape(prefix) + r"\.([0-9]+)\.")
    numbers = {found[1] for name in state if (found := pattern.match(name))}
    wrong = sorted(numbers - {str(number) for number in range(len(numbers))})
    if wrong:
        raise CheckpointError(
            f"the numbers after {prefix} must be 0 to {len(numbers) - 1}, because the file has {len(numbers)} of them; "
            f"it has {wrong[0][:20]}"
        )
    return len(numbers)
