"""Builds the objectives of stage 1 on a grid from a configuration."""

from __future__ import annotations

from nextscale.config.grid import ConvolutionalConfig
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
        ConfigError: samples too small for the adversarial loss.
    """
    perceptual = PerceptualLoss() if config.perceptual.weight > 0 else None
    if config.adversarial.weight == 0:
        return [kind(tokenizer, config, None, perceptual)]
    critic = CriticObjective(config.adversarial, channels, min(tokenizer.sample_shape[-2:]))
    return [kind(tokenizer, config, critic, perceptual), critic]
