"""The multiscale VQ-VAE of video: causal in time, 3-D."""

from __future__ import annotations

from typing import Any

from nextscale.plugin import ConfigError, DataError, GridTokenizer, Layout, build_grid_tokenizer, total_factor
from nextscale_video.config import VideoTokenizerConfig


def build_tokenizer(config: VideoTokenizerConfig, description: dict[str, Any]) -> GridTokenizer:
    """Build an untrained tokenizer for clips B C T H W in [-1, 1]: one joint pyramid, or ``config.clips`` pyramids.

    The latents of the first frames do not depend on later ones (MAGVIT-v2, https://arxiv.org/abs/2310.05737).

    Args:
        description: ``channels``, ``frames``, ``height`` and ``width`` of the data.

    Raises:
        ConfigError: scales that shrink, strides that do not fit, or channels that ``norm_groups`` does not divide.
        DataError: clips too short or too small for the scales.
    """
    shape = (description["frames"], description["height"], description["width"])
    strides = _strides(config)
    _check_frames(config, shape[0], total_factor(strides, 3)[0])
    tokenizer = build_grid_tokenizer(
        config,
        channels=description["channels"],
        shape=shape,
        scales=config.scales,
        strides=strides,
        layout=Layout(3, causal=True, alone=config.first_alone),
        segments=config.clips,
        carry=config.carry,
    )
    # In a prediction, the frames to draw hold only a guess at first. A kept token that describes the whole clip would
    # keep that guess.
    tokenizer.keep_whole_up_to = 0
    return tokenizer


def _strides(config: VideoTokenizerConfig) -> list[tuple[int, int, int]]:
    """Downsampling in time, height and width between successive resolutions."""
    number = len(config.multipliers) - 1
    time = config.time_strides or (1,) * max(0, number - 2) + (2,) * min(2, number)
    space = config.space_strides or (2,) * number
    for name, given in (("time_strides", time), ("space_strides", space)):
        if len(given) != number:
            raise ConfigError(
                f"tokenizer.{name} has {len(given)} entries, but the {number + 1} resolutions of "
                f"tokenizer.multipliers need {number}"
            )
    return [(t, s, s) for t, s in zip(time, space, strict=True)]


def _check_frames(config: VideoTokenizerConfig, frames: int, factor: int) -> None:
    fits = (frames - 1) % factor == 0 if config.first_alone else frames % factor == 0
    if not fits:
        form = f"1 + {factor} n" if config.first_alone else f"{factor} n"
        raise DataError(
            f"clips of {frames} frames do not fit the tokenizer, which takes {form} frames (tokenizer.first_alone="
            f"{str(config.first_alone).lower()}, temporal stride {factor}): change data.frames"
        )
