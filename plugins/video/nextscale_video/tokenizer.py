"""The multiscale VQ-VAE of video: causal in time, 3-D."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from nextscale.errors import ConfigError, DataError
from nextscale.grid import GridTokenizer, Layout, SegmentedTokenizer
from nextscale.grid.convolutional import networks, residual_pyramid
from nextscale.grid.networks import total_factor
from nextscale_video.config import VideoTokenizerConfig


def build_tokenizer(config: VideoTokenizerConfig, description: dict[str, Any]) -> GridTokenizer:
    """A fresh tokenizer of B channels T H W in [-1, 1]: joint pyramids, or with ``config.clips`` clip pyramids.

    The latents of the first frames do not depend on later ones (MAGVIT-v2, https://arxiv.org/abs/2310.05737).

    Args:
        description: ``channels``, ``frames``, ``height`` and ``width`` of the data.

    Raises:
        ConfigError: scales that shrink, strides that do not fit, or channels that ``norm_groups`` does not divide.
        DataError: clips too short or too small for the scales.
    """
    shape = (description["frames"], description["height"], description["width"])
    strides = _strides(config)
    factor = total_factor(strides, 3)
    layout = Layout(3, causal=True, alone=config.first_alone)
    _check(config, shape, factor)
    pyramid = residual_pyramid(config, 3, len(config.scales))
    encoder, decoder = networks(config, layout, description["channels"], strides)
    if config.clips is None:
        tokenizer = GridTokenizer(encoder, decoder, pyramid, config.scales, shape, factor, layout)
    else:
        sides = [scale[1:] for scale in config.scales]
        tokenizer = SegmentedTokenizer(
            encoder, decoder, pyramid, sides, shape, factor, layout, config.clips, config.carry
        )
    # Where what follows is to be drawn, what is known of it is a guess: a token that says what the whole clip is would
    # keep the guess.
    tokenizer.whole = 0
    return tokenizer


def _strides(config: VideoTokenizerConfig) -> list[tuple[int, int, int]]:
    """Downsampling in time, height and width between the resolutions."""
    number = len(config.multipliers) - 1
    time = config.time_strides or (1,) * max(0, number - 2) + (2,) * min(2, number)
    space = config.space_strides or (2,) * number
    for name, given in (("time_strides", time), ("space_strides", space)):
        if len(given) != number:
            raise ConfigError(
                f"tokenizer.{name} has {len(given)} entries; between the {number + 1} resolutions of "
                f"tokenizer.multipliers there are {number}"
            )
    return [(t, s, s) for t, s in zip(time, space, strict=True)]


def _check(config: VideoTokenizerConfig, shape: tuple[int, ...], factor: tuple[int, ...]) -> None:
    scales = config.scales
    if any(b < a for one, two in pairwise(scales) for a, b in zip(one, two, strict=True)):
        raise ConfigError(f"tokenizer.scales must not shrink, got {[list(scale) for scale in scales]}")
    frames, *sides = shape
    fits = (frames - 1) % factor[0] == 0 if config.first_alone else frames % factor[0] == 0
    if not fits:
        form = f"1 + {factor[0]} n" if config.first_alone else f"{factor[0]} n"
        raise DataError(
            f"clips of {frames} frames do not fit the tokenizer, which takes {form} (tokenizer.first_alone="
            f"{str(config.first_alone).lower()}, temporal stride {factor[0]}): set data.frames"
        )
    latent = [1 + (frames - 1) // factor[0] if config.first_alone else frames // factor[0]]
    latent += [-(-side // f) for side, f in zip(sides, factor[1:], strict=True)]
    finest = scales[-1] if config.clips is None else (1, *scales[-1][1:])
    if latent[0] < finest[0] or max(latent[1:]) < max(finest[1:]):
        raise DataError(
            f"clips of {frames} frames of {sides[0]} x {sides[1]} are too small: downsampled by "
            f"{' x '.join(map(str, factor))} they are {' x '.join(map(str, latent))}, less than the finest scale "
            f"{' x '.join(map(str, finest))}; use larger clips (data.frames, data.size), smaller tokenizer.scales, or "
            "fewer tokenizer.multipliers"
        )
