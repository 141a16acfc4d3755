"""Translate tensor names and shapes between this project ("ours") and published VAR ("theirs"), both ways.

Facts from the released checkpoints and code (https://github.com/FoundationVision/VAR).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from nextscale.plugin import ConditionSpec, Schedule
from nextscale_image.config import ImageTokenizerConfig

State = dict[str, Tensor]
"""Tensors by name, as ``state_dict`` gives them."""


def _renamed(name: str, prefixes: Mapping[str, str]) -> str | None:
    """``name`` with its longest known dotted prefix replaced; None if no prefix is known."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        found = prefixes.get(".".join(parts[:end]))
        if found is not None:
            return ".".join([found, *parts[end:]])
    return None


# The tokenizer: only names differ.


def tokenizer_prefixes(config: ImageTokenizerConfig) -> dict[str, str]:
    """Map our module names to theirs. Theirs are numbered by level, block and kind, ours in the order they run."""
    levels = len(config.multipliers)
    phi = {
        "none": "",
        "shared": "quantize.quant_resi.qresi",
        "partial": "quantize.quant_resi.qresi_ls",
        "scale": "quantize.quant_resi",
    }[config.quantizer.phi]
    names = {
        "encoder.conv_latent": "quant_conv",
        "decoder.conv_latent": "post_quant_conv",
        "pyramid.quantizer.codebook": "quantize.embedding.weight",
        "pyramid.quantizer.usage_KV": "quantize.ema_vocab_hit_SV",
        # A convolution shared by all scales has no number in their names.
        "pyramid.phi.convs" + (".0" if config.quantizer.phi == "shared" else ""): phi,
    }
    for network, theirs, order, blocks, resize in (
        ("encoder", "down", range(levels), config.blocks, "downsample"),
        ("decoder", "up", range(levels - 1, -1, -1), config.blocks + 1, "upsample"),
    ):
        layers: list[str] = []
        for level in order:
            lowest = level == levels - 1
            for block in range(blocks):
                layers.append(f"{theirs}.{level}.block.{block}")
                if lowest and config.attention:
                    layers.append(f"{theirs}.{level}.attn.{block}")
            if not (lowest if theirs == "down" else level == 0):
                layers.append(f"{theirs}.{level}.{resize}")
        middle = ("mid.block_1", "mid.attn_1", "mid.block_2") if config.attention else ("mid.block_1", "mid.block_2")
        names |= {f"{network}.layers.{i}": f"{network}.{layer}" for i, layer in enumerate(layers)}
        names |= {f"{network}.middle.{i}": f"{network}.{layer}" for i, layer in enumerate(middle)}
        names |= {f"{network}.{layer}": f"{network}.{layer}" for layer in ("conv_in", "norm_out", "conv_out")}
    return names


def tokenizer_names(ours: Iterable[str], config: ImageTokenizerConfig) -> dict[str, str]:
    """Map our tensor names to theirs, without those they lack (moving averages of the codebook)."""
    prefixes = tokenizer_prefixes(config)
    leaves = {"shortcut": "nin_shortcut", "proj": "proj_out"}
    names = {name: _renamed(name, prefixes) for name in ours}
    return {
        name: ".".join(leaves.get(part, part) for part in found.split("."))
        for name, found in names.items()
        if found is not None
    }


def publish_tokenizer(state: Mapping[str, Tensor], config: ImageTokenizerConfig) -> State:
    """Our tokenizer's tensors under their names."""
    return {theirs: state[ours] for ours, theirs in tokenizer_names(state, config).items()}


def adopt_tokenizer(published: Mapping[str, Tensor], ours: Iterable[str], config: ImageTokenizerConfig) -> State:
    """Their tensors under our names."""
    return {name: published[theirs] for name, theirs in tokenizer_names(ours, config).items()}


# The transformer. Their layout differs in three ways: the null class is the last row of the class embedding, the start
# token has its own position, which is added to the learned one, and some tensors have leading axes of size 1.

_PREFIXES = {
    "stem": "word_embed",
    "scale_embedding": "lvl_embed",
    "adaln": "shared_ada_lin.1",
    "head_adaln": "head_nm.ada_lin.1",
    "head": "head",
    "position": "pos_1LC",
}
_BLOCK_PREFIXES = {
    "attention": "attn",
    "attention.qkv": "attn.mat_qkv",
    "attention.log_scale": "attn.scale_mul_1H11",
    "mlp": "ffn",
    "adaln": "ada_lin.1",
    "adaln_offset": "ada_gss",
}
_LEADING_ONES = {"position": 1, "log_scale": 1, "adaln_offset": 2}
_CLASSES, _START = "class_emb.weight", "pos_start"


def transformer_names(ours: Iterable[str]) -> dict[str, str]:
    """Map our tensor names to theirs, except those of the conditions."""
    names: dict[str, str] = {}
    for name in ours:
        parts = name.split(".")
        if parts[0] == "blocks":
            found = _renamed(".".join(parts[2:]), _BLOCK_PREFIXES)
            found = None if found is None else f"blocks.{parts[1]}.{found}"
        else:
            found = _renamed(name, _PREFIXES)
        if found is not None:
            names[name] = found
    return names


def _condition_names(condition: ConditionSpec) -> tuple[str, str]:
    return f"conditioner.embed.{condition.name}.weight", f"conditioner.null.{condition.name}"


def publish_transformer(
    state: Mapping[str, Tensor], schedule: Schedule, condition: ConditionSpec, start: Tensor | None = None
) -> State:
    """Our transformer's tensors under their names and in their shapes, without ``constants``.

    Args:
        start: the start tokens' own position, L_0 D, which ``state`` has already added to the learned one; None gives
            zeros. The learned position is written unchanged, because subtracting would round.
    """
    published = {}
    for ours, theirs in transformer_names(state).items():
        ones = _LEADING_ONES.get(ours.split(".")[-1], 0)
        published[theirs] = state[ours].reshape(*[1] * ones, *state[ours].shape)
    embedding, null = _condition_names(condition)
    published[_CLASSES] = torch.cat([state[embedding], state[null][None]])
    start = torch.zeros_like(state["position"][: schedule.lengths[0]]) if start is None else start
    published[_START] = start[None]
    return published


def adopt_transformer(
    published: Mapping[str, Tensor], shapes: Mapping[str, Tensor], schedule: Schedule, condition: ConditionSpec
) -> State:
    """Their tensors under our names, in the shapes of ``shapes``."""
    state = {ours: published[theirs].reshape(shapes[ours].shape) for ours, theirs in transformer_names(shapes).items()}
    embedding, null = _condition_names(condition)
    state[embedding], state[null] = published[_CLASSES][:-1], published[_CLASSES][-1]
    first = schedule.lengths[0]
    state["position"] = torch.cat([state["position"][:first] + published[_START][0], state["position"][first:]])
    return state


def constants(schedule: Schedule, depth: int, width: int, device: torch.device | str = "cpu") -> State:
    """The constants in their checkpoints: each token's scale, the mask between scales, and zero biases of the keys."""
    scales = schedule.scale_ids(device)
    seen = torch.where(scales[:, None] >= scales[None, :], 0.0, -torch.inf)
    zeros = {f"blocks.{i}.attn.zero_k_bias": torch.zeros(width, device=device) for i in range(depth)}
    return {"lvl_1L": scales[None], "attn_bias_for_masking": seen[None, None], **zeros}
