"""The multiscale VQ-VAE of images."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch

from nextscale.errors import ConfigError, DataError
from nextscale.grid import GridTokenizer, Layout
from nextscale.grid.convolutional import networks, residual_pyramid
from nextscale.grid.networks import Decoder
from nextscale_image.config import ImageTokenizerConfig


class ImageTokenizer(GridTokenizer):
    """B channels H W in [-1, 1] to token pyramids and back (VAR, https://arxiv.org/abs/2404.02905).

    Args:
        config: sizes of the networks and of the pyramid.
        description: ``channels``, ``height`` and ``width`` of the data.

    Raises:
        ConfigError: scales that shrink, or channels that ``norm_groups`` does not divide.
        DataError: images too small for the scales.
    """

    decoder: Decoder

    def __init__(self, config: ImageTokenizerConfig, description: dict[str, Any]) -> None:
        self.channels = description["channels"]
        shape = (description["height"], description["width"])
        factor = 2 ** (len(config.multipliers) - 1)
        _check_scales(config, shape, factor)
        strides = [(2, 2)] * (len(config.multipliers) - 1)
        pyramid = residual_pyramid(config, 2, len(config.scales))
        encoder, decoder = networks(config, Layout(2), self.channels, strides)
        super().__init__(encoder, decoder, pyramid, config.scales, shape, (factor, factor))
        # Convolutions on CPUs (and tensor cores) are two to three times faster with channels last.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _check_scales(config: ImageTokenizerConfig, shape: tuple[int, int], factor: int) -> None:
    scales = config.scales
    if any(b < a for a, b in pairwise(scales)):
        raise ConfigError(f"tokenizer.scales must not shrink, got {list(scales)}")
    finest = max(-(-side // factor) for side in shape)
    if finest < scales[-1]:
        raise DataError(
            f"images of {shape[0]} x {shape[1]} are too small: downsampled {factor} times their longest side is "
            f"{finest}, less than the finest scale {scales[-1]}; use images of at least {scales[-1] * factor} "
            "on the longest side (data.size=), fewer tokenizer.multipliers, or smaller tokenizer.scales"
        )
