"""The ladder: every size of transformer, each with every number of training tokens, as configurations of runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nextscale import plugins
from nextscale.config.run import run_config_model
from nextscale.config.sections import RunConfig
from nextscale.data import DataSplits
from nextscale.errors import ConfigError
from nextscale.meta import without_memory
from nextscale.modality import Modality
from nextscale.storage.models import new_transformer
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale.training.describe import transformer_flops
from nextscale.transformer import ScaleTransformer

CHECKPOINTS = 8
"""Checkpoints of a run: what a killed run loses at most is an eighth of it."""


@dataclass(frozen=True)
class Size:
    width: int
    depth: int
    heads: int

    def __str__(self) -> str:
        return f"w{self.width}-d{self.depth}-h{self.heads}"


@dataclass(frozen=True)
class Tokens:
    """How many training tokens a run gets: ``multiples`` of a number of tokens.

    This number is ``base``, or what the base configuration itself trains on (None). With ``per_parameter``, it is the
    size's own N (``Rung.blocks``), so that larger models train longer.
    """

    multiples: tuple[float, ...] = (1.0,)
    base: float | None = None
    per_parameter: bool = False


@dataclass(frozen=True)
class Rung:
    """One run of the ladder.

    Attributes:
        parameters: all weights of the transformer.
        blocks: those of its blocks, without embeddings, positions, conditions and head: N. VAR's 73,728 d^3 is this
            number without biases (width 64 d). A modality's own stem counts, because it works on every token.
        tokens: training tokens D: steps x batch size x tokens per sample.
        flops: operations of training: three times those of a forward pass, counted layer by layer, with attention.
    """

    size: Size
    multiple: float
    config: RunConfig
    parameters: int
    blocks: int
    tokens: int
    flops: float

    @property
    def name(self) -> str:
        return f"{self.size}-t{self.multiple:g}"

    @property
    def steps(self) -> int:
        return self.config.training.transformer.steps

    def record(self) -> dict[str, Any]:
        """What a fit must know of the run beside its losses."""
        return {
            "width": self.size.width, "depth": self.size.depth, "heads": self.size.heads, "multiple": self.multiple,
            "parameters": self.parameters, "blocks": self.blocks, "tokens": self.tokens, "flops": self.flops,
        }  # fmt: skip


def parse_depths(text: str) -> list[Size]:
    """VAR's sizes, ``1,2,4``: d blocks of width 64 d with d heads.

    Raises:
        ConfigError: no such list, or a depth twice.
    """
    depths = [_integer(part, "--depths", "depths such as 1,2,4") for part in _parts(text, "--depths")]
    return _distinct([Size(64 * depth, depth, depth) for depth in depths], "--depths")


def parse_sizes(text: str) -> list[Size]:
    """Sizes ``WIDTHxDEPTH`` or ``WIDTHxDEPTHxHEADS``. Without heads, each is 64 wide, or there is one.

    Raises:
        ConfigError: no such list, a size twice, or a width that does not split into heads of even width.
    """
    sizes = []
    for part in _parts(text, "--sizes"):
        numbers = [_integer(each, "--sizes", "sizes such as 64x2 or 96x3x2") for each in part.split("x")]
        if len(numbers) not in (2, 3):
            raise ConfigError(f"--sizes: {part!r} is no size: write WIDTHxDEPTH or WIDTHxDEPTHxHEADS, such as 96x3x2")
        width, depth, heads = numbers if len(numbers) == 3 else (*numbers, max(1, numbers[0] // 64))
        if width % (2 * heads):
            raise ConfigError(f"--sizes: {part!r}: width {width} must be an even multiple of its {heads} heads")
        sizes.append(Size(width, depth, heads))
    return _distinct(sizes, "--sizes")


def parse_multiples(text: str, option: str) -> tuple[float, ...]:
    """Positive numbers, ``0.5,1,2``.

    Raises:
        ConfigError: anything else, or a number twice.
    """
    found = []
    for part in _parts(text, option):
        if not re.fullmatch(r"\d+(\.\d+)?(e[+-]?\d{1,2})?", part) or not 0 < float(part) < 1e15:
            raise ConfigError(f"{option}: {part!r} is wrong: should be numbers above 0, such as 0.5,1,2")
        found.append(float(part))
    return tuple(sorted(_distinct(found, option)))


def build_ladder(base: RunConfig, sizes: Sequence[Size], tokens: Tokens, lr_exponent: float) -> list[Rung]:
    """Every size with every number of tokens, from small to large.

    Each run has a whole schedule of its own: warm-up, then a cosine that reaches its end at the last step. A point in
    the middle of a longer schedule still has a high learning rate, so its loss is higher than that of a run that was to
    end there (Hoffmann et al. 2022, https://arxiv.org/abs/2203.15556).

    Args:
        base: all other settings. Its width and learning rate set the rule ``lr (width0 / width)^lr_exponent``.

    Raises:
        ConfigError, DataError, PluginError: settings do not fit together, or the data cannot be opened.
    """
    modality = plugins.modality(base.modality)
    data = modality.open_data(base.data)
    stage = base.training.transformer
    rungs = []
    for size in sizes:
        config = with_size(base, size, stage.lr * (base.transformer.model_width / size.width) ** lr_exponent)
        model, flops = _measure(modality, data, config)
        per_step = stage.batch_size * model.schedule.length
        blocks, parameters = count_blocks(model), sum(value.numel() for value in model.parameters())
        unit = blocks if tokens.per_parameter else tokens.base or stage.steps * per_step
        for multiple in tokens.multiples:
            steps = max(1, round(multiple * unit / per_step))
            counted = 3 * flops * steps * stage.batch_size
            rungs.append(Rung(size, multiple, with_steps(config, steps), parameters, blocks, steps * per_step, counted))
    return sorted(rungs, key=lambda rung: rung.flops)


def with_size(base: RunConfig, size: Size, lr: float) -> RunConfig:
    """``base`` with another size and peak learning rate, and a schedule that ends with the run."""
    return _changed(
        base,
        transformer={"width": size.width, "depth": size.depth, "heads": size.heads},
        stage={
            "lr": float(f"{lr:.4g}"),
            "schedule": "cosine",
            "patience": 0,
            "ema": 0.0,
            "samples_every": 0,
            "keep": 1,
        },
    )


def with_steps(config: RunConfig, steps: int) -> RunConfig:
    """``config`` with another number of steps, measured once, at the end."""
    every = -(-steps // CHECKPOINTS)
    return _changed(config, stage={"steps": steps, "validate_every": steps, "checkpoint_every": every})


def count_blocks(model: ScaleTransformer) -> int:
    """N: the weights that work on every token (``Rung.blocks``)."""
    parts = ("blocks.", "adaln.", "stem.") if model.stem.complete else ("blocks.", "adaln.")
    return sum(value.numel() for name, value in model.named_parameters() if name.startswith(parts))


def _measure(modality: Modality, data: DataSplits, config: RunConfig) -> tuple[ScaleTransformer, float]:
    """The transformer, without memory, and the operations of one sample's forward pass."""

    def build() -> MultiscaleTokenizer:
        return modality.build_tokenizer(config.tokenizer, data.description)

    with without_memory():
        tokenizer = build()
        model = new_transformer(config.transformer, tokenizer, data.conditions)
    return model, transformer_flops(model, build, data)


def _changed(config: RunConfig, stage: dict[str, Any], transformer: dict[str, Any] | None = None) -> RunConfig:
    values = config.model_dump(mode="json")
    values["transformer"] |= transformer or {}
    values["training"]["transformer"] |= stage
    return run_config_model(config.modality).model_validate(values)


def _parts(text: str, option: str) -> list[str]:
    parts = [part.strip().lower() for part in text.split(",") if part.strip()]
    if not parts:
        raise ConfigError(f"{option} names nothing: give a list, separated by commas")
    return parts


def _integer(text: str, option: str, right: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,5}", text):
        raise ConfigError(f"{option}: {text!r} is wrong: should be {right}, of whole numbers above 0")
    return int(text)


def _distinct(values: list, option: str) -> list:
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise ConfigError(f"{option} names {twice} twice: name each once")
    return values
