"""Builds the objectives of stage 1 on a grid from a configuration."""

from __future__ import annotations

import torch

from nextscale.config.grid import ConvolutionalConfig
from nextscale.errors import ConfigError
from nextscale.grid.objectives import CriticObjective, TokenizerObjective
from nextscale.grid.tokenizer import GridTokenizer
from nextscale.objective import Objective
from nextscale.toolkit.perceptual import PerceptualLoss


def grid_objectives(
    tokenizer: GridTokenizer,
    config: ConvolutionalConfig,
    channels: int,
    kind: type[TokenizerObjective] = TokenizerObjective,
) -> list[Objective]:
    """The tokenizer's objective, a ``kind``, and its discriminator's if the adversarial loss has a weight.

    Args:
        channels: channels of the samples.

    Raises:
        NextscaleError: the weights of the perceptual loss are not installed (extra ``perceptual``).
        ConfigError: samples too small for the adversarial loss, or of another kind than the losses are for.
    """
    _check_views(kind(tokenizer, config), channels)
    perceptual = PerceptualLoss() if config.perceptual.weight > 0 else None
    if config.adversarial.weight == 0:
        return [kind(tokenizer, config, None, perceptual)]
    critic = CriticObjective(config.adversarial, channels, min(tokenizer.sample_shape[-2:]))
    return [kind(tokenizer, config, critic, perceptual), critic]


def _check_views(objective: TokenizerObjective, channels: int) -> None:
    """The adversarial and the perceptual loss look at pictures, and the latter only at grey or coloured ones."""
    config = objective.config
    views = objective.views(torch.empty(1, channels, *objective.model.sample_shape, device="meta"))
    axes = views.ndim - 2
    for name, weight in (("adversarial", config.adversarial.weight), ("perceptual", config.perceptual.weight)):
        if weight > 0 and axes != 2:
            raise ConfigError(
                f"tokenizer.{name}.weight is {weight:g}, but that loss is for grids of 2 axes, not {axes}: set 0"
            )
    if config.perceptual.weight > 0 and views.shape[1] not in (1, 3):
        raise ConfigError(
            f"tokenizer.perceptual.weight is {config.perceptual.weight:g}, but that loss is for samples of 1 or 3 "
            f"channels, not {views.shape[1]}: set 0"
        )
