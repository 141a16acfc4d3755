"""The multiscale VQ-VAE of images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nextscale.plugin import GridTokenizer, build_grid_tokenizer
from nextscale_image.config import ImageTokenizerConfig


def build_tokenizer(config: ImageTokenizerConfig, description: Mapping[str, Any]) -> GridTokenizer:
    """Build an untrained tokenizer for images B C H W in [-1, 1] (VAR, https://arxiv.org/abs/2404.02905).

    Args:
        config: sizes of the networks and the pyramid.
        description: ``channels``, ``height`` and ``width`` of the data.

    Raises:
        ConfigError: scales that shrink, or channels that ``norm_groups`` does not divide.
        DataError: images too small for the scales.
    """
    shape = (description["height"], description["width"])
    return build_grid_tokenizer(config, channels=description["channels"], shape=shape, scales=config.scales)
