"""Build a run from published VAR's tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nextscale.plugin import (
    CheckpointError,
    ConditionSpec,
    ConfigError,
    GridTokenizer,
    RunConfig,
    ScaleTransformer,
    make_config,
    new_transformer,
    save_run,
    without_memory,
)
from nextscale_image.config import ImageTokenizerConfig
from nextscale_image.published import detect
from nextscale_image.published.files import read_state
from nextscale_image.published.names import (
    State,
    adopt_tokenizer,
    adopt_transformer,
    constants,
    publish_tokenizer,
    publish_transformer,
)
from nextscale_image.tokenizer import build_tokenizer

M = TypeVar("M", bound=nn.Module)
PLACEHOLDER = "IMAGE_FOLDER"
"""``data.source`` of an imported run if the user gives none."""
EXTRA = "published"
"""The file of a run that keeps the start tokens' own position and the first rows of the learned position. Our
transformer stores only their sum, which cannot be split again."""


@dataclass
class Imported:
    """The imported models under this project's names, and the configuration that builds them."""

    config: RunConfig
    description: dict[str, Any]
    tokenizer: GridTokenizer
    transformer: ScaleTransformer | None
    extra: dict[str, State]

    def models(self) -> dict[str, nn.Module]:
        both = {"tokenizer": self.tokenizer, "transformer": self.transformer}
        return {name: model for name, model in both.items() if model is not None}

    def save(self, run: Path) -> None:
        """Write the run. Raises as ``nextscale.storage.models.save_run``."""
        save_run(run, self.config, self.description, self.tokenizer, self.transformer, self.extra)


def import_var(
    tokenizer: Path, transformer: Path | None = None, scales: Sequence[int] | None = None, overrides: Sequence[str] = ()
) -> Imported:
    """Read published VAR's files. No code in them is run, and float16 or bfloat16 becomes float32.

    Args:
        tokenizer, transformer: .pth files, or training checkpoints that hold both. The transformer is optional.
        scales: the sides of the scales, if the files do not give them.
        overrides: ``key=value`` settings, which take precedence over those detected from the files.

    Raises:
        CheckpointError: a file is missing, damaged or not from VAR, or the two do not fit together. If names or shapes
            differ from those of the configured models, ``rows`` lists the differences.
        ConfigError: an override is wrong.
    """
    stage1 = read_state(tokenizer, "tokenizer")
    stage2 = None if transformer is None else read_state(transformer, "transformer")
    return assemble(stage1, stage2, scales, overrides)


def assemble(
    stage1: Mapping[str, Tensor],
    stage2: Mapping[str, Tensor] | None = None,
    scales: Sequence[int] | None = None,
    overrides: Sequence[str] = (),
) -> Imported:
    """As ``import_var``, from tensors by published name. Tensors on the meta device give models on the meta device."""
    if stage2 is not None:
        detect.check_pair(stage1, stage2)
    sides = detect.find_scales(stage1, stage2, scales)
    settings: dict[str, Any] = {"tokenizer": detect.tokenizer_settings(stage1, sides)}
    if stage2 is not None:
        settings["transformer"] = detect.transformer_settings(stage2)
    channels = stage1["encoder.conv_in.weight"].shape[1]
    side = sides[-1] * 2 ** (len(settings["tokenizer"]["multipliers"]) - 1)
    settings["data"] = {"source": PLACEHOLDER, "size": [side, side], "channels": channels if channels == 1 else 3}
    config = make_config("image", settings, "the checkpoint", overrides)
    description = {"channels": channels, "height": side, "width": side}
    tokenizer = _tokenizer(stage1, config.tokenizer, description)
    if stage2 is None:
        return Imported(config, description, tokenizer, None, {})
    transformer, extra = _transformer(stage2, config, tokenizer)
    return Imported(config, description, tokenizer, transformer, {EXTRA: extra})


def _tokenizer(state: Mapping[str, Tensor], config: ImageTokenizerConfig, description: dict[str, Any]) -> GridTokenizer:
    with without_memory():
        model = build_tokenizer(config, description)
    expected = publish_tokenizer(model.state_dict(), config)
    # Code usage was counted per scale, so with other scales the counts are reset, as in the published code.
    counts = "quantize.ema_vocab_hit_SV"
    if counts in state and state[counts].shape != expected[counts].shape:
        state = {**state, counts: torch.zeros(expected[counts].shape)}
    _compare("tokenizer", state, expected)
    return _filled(model, adopt_tokenizer(_float(state), model.state_dict(), config))


def _transformer(
    state: Mapping[str, Tensor], config: RunConfig, tokenizer: GridTokenizer
) -> tuple[ScaleTransformer, State]:
    """The model, and the two positions whose sum it stores."""
    condition = ConditionSpec(name="label", size=detect.num_classes(state))
    with without_memory():
        model = new_transformer(config.transformer, tokenizer, [condition])
    ours, schedule = model.state_dict(), model.schedule
    if "position" not in ours:
        raise ConfigError("published VAR has learned absolute positions: leave transformer.positions as it is")
    fixed = constants(schedule, config.transformer.depth, config.transformer.model_width, "meta")
    _compare("transformer", state, publish_transformer(ours, schedule, condition), optional=fixed)
    biases = [state[name] for name in fixed if name.endswith("zero_k_bias") and name in state]
    if any(bool(bias.any()) for bias in biases if not bias.is_meta):
        raise CheckpointError("the transformer's keys have a bias (zero_k_bias is not zero), unlike any published VAR")
    state = _float(state)
    first = schedule.lengths[0]
    extra = {"pos_start": state["pos_start"][0], "pos_1LC": state["pos_1LC"][0, :first]}
    return _filled(model, adopt_transformer(state, ours, schedule, condition)), extra


def _float(state: Mapping[str, Tensor]) -> State:
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}


def _filled(model: M, state: State) -> M:
    model.load_state_dict(state, assign=True)
    return model.eval()


def _compare(
    kind: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor], optional: Mapping[str, Tensor] | None = None
) -> None:
    """Raise CheckpointError with one row per tensor that is missing, unknown or of another shape."""
    optional = optional or {}
    rows = []
    for name in sorted({*found, *expected}):
        want = expected.get(name, optional.get(name))
        have = found.get(name)
        if want is None or (have is None and name in expected) or (have is not None and have.shape != want.shape):
            rows.append({"tensor": name, "in the file": _shape(have), "expected": _shape(want)})
    if rows:
        first = rows[0]
        more = f" (and {len(rows) - 1} more)" if len(rows) > 1 else ""
        raise CheckpointError(
            f"the {kind} does not fit: {first['tensor']} is {first['in the file']} in the file, "
            f"expected {first['expected']}{more}",
            rows=rows[:20],
        )


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else " x ".join(map(str, tensor.shape)) or "one number"
