"""Builds a convolutional multiscale VQ-VAE from its configuration."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from nextscale.config.grid import ConvolutionalConfig
from nextscale.errors import ConfigError, DataError
from nextscale.grid.layers import Layout
from nextscale.grid.networks import Decoder, Encoder, set_norm_groups, total_factor
from nextscale.grid.ordered import OrderedTokenizer
from nextscale.grid.phi import Phi
from nextscale.grid.prior import ScalePrior
from nextscale.grid.pyramid import ResidualPyramid
from nextscale.grid.quantizer import VectorQuantizer
from nextscale.grid.segments import Carry, SegmentedTokenizer
from nextscale.grid.tokenizer import GridTokenizer


def build_grid_tokenizer(
    config: ConvolutionalConfig,
    *,
    channels: int,
    shape: Sequence[int],
    scales: Sequence[int | Sequence[int]],
    strides: Sequence[Sequence[int]] | None = None,
    layout: Layout | None = None,
    segments: Sequence[int] | None = None,
    carry: Carry = "input",
) -> GridTokenizer:
    """An untrained tokenizer for samples B channels *shape with values in [-1, 1].

    Args:
        config: sizes of the networks and of the quantizer.
        shape: the grid of a sample, with one to three axes.
        scales: per scale, the length of its longest side or of all its sides, relative to the last scale.
        strides: downsampling between neighbouring resolutions of ``config.multipliers``, 1 or 2 per axis; None halves
            every axis.
        layout: how the networks treat the grid's axes; None is bidirectional along every axis.
        segments: lengths of the segments of the first axis, in latent places; each segment has a pyramid of its own
            (``SegmentedTokenizer``). None describes the whole sample in one pyramid.
        carry: what a segment knows of the previous one.

    Raises:
        ConfigError: scales that shrink, strides that do not fit, channels that are not divisible by
            ``norm_groups``, blocks that do not fit the scales, or an order of tokens beside segments.
        DataError: samples that are too small for the scales.
    """
    axes = len(shape)
    layout = layout or Layout(axes)
    steps = len(config.multipliers) - 1
    strides = [(2,) * axes] * steps if strides is None else strides
    if len(strides) != steps:
        raise ConfigError(
            f"tokenizer strides have {len(strides)} entries; the {steps + 1} resolutions of "
            f"tokenizer.multipliers need {steps}"
        )
    factor = total_factor(strides, axes)
    _check_scales(scales, shape, factor, layout, segments is not None)
    _check_quantizer(config, scales, axes, segments is not None)
    _check_blocks(config, len(scales))
    pyramid = residual_pyramid(config, axes, len(scales))
    encoder, decoder = networks(config, layout, channels, strides)
    if config.order != "scales":
        if segments is not None:
            raise ConfigError(
                f"tokenizer.order={config.order} draws the tokens of one pyramid one by one, and here every segment "
                "(tokenizer.clips or similar) has its own: use one pyramid, or tokenizer.order=scales"
            )
        tokenizer = OrderedTokenizer(encoder, decoder, pyramid, scales, shape, factor, layout, config.order)
    elif segments is None:
        tokenizer = GridTokenizer(encoder, decoder, pyramid, scales, shape, factor, layout)
    else:
        sides = [scale if isinstance(scale, int) else scale[1:] for scale in scales]
        tokenizer = SegmentedTokenizer(encoder, decoder, pyramid, sides, shape, factor, layout, segments, carry)
    tokenizer.group_side = config.group_side
    if axes == 2:
        # Convolutions on CPUs (and tensor cores) are two to three times faster with channels last.
        tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return tokenizer


def _check_scales(
    scales: Sequence[int | Sequence[int]], shape: Sequence[int], factor: Sequence[int], layout: Layout, segmented: bool
) -> None:
    rows = _rows(scales, len(shape))
    if any(b < a for one, two in pairwise(rows) for a, b in zip(one, two, strict=True)):
        raise ConfigError(
            f"tokenizer.scales must not shrink, got {[s if isinstance(s, int) else list(s) for s in scales]}"
        )
    lead = factor[0] - 1 if layout.alone else 0
    latent = [-(-(side + (lead if axis == 0 else 0)) // factor[axis]) for axis, side in enumerate(shape)]
    finest = [1, *rows[-1][1:]] if segmented else rows[-1]
    # Sides are relative to the longest one. A causal first axis differs in kind from the others: it is checked alone.
    first = 1 if layout.causal else 0
    if latent[:first] < finest[:first] or max(latent[first:], default=1) < max(finest[first:], default=1):
        raise DataError(
            f"samples of {_show(shape)} are too small: downsampled by {_show(factor)} they become {_show(latent)}, "
            f"less than the finest scale {_show(finest)}; use larger samples (data.size or similar), "
            "smaller tokenizer.scales, or fewer tokenizer.multipliers"
        )


def _rows(scales: Sequence[int | Sequence[int]], axes: int) -> list[list[int]]:
    """Of each scale, all sides."""
    return [[scale] * axes if isinstance(scale, int) else list(scale) for scale in scales]


def _check_quantizer(
    config: ConvolutionalConfig, scales: Sequence[int | Sequence[int]], axes: int, segmented: bool
) -> None:
    target = config.quantizer.target
    for name in ("codes", "commitment"):
        value = getattr(config.quantizer, name)
        if isinstance(value, tuple) and len(value) != len(scales):
            raise ConfigError(
                f"tokenizer.quantizer.{name} has {len(value)} numbers for {len(scales)} scales: give one number for "
                "each scale, or one for all"
            )
    if target == "residual":
        return
    what = f"tokenizer.quantizer.target={target} describes a sample anew at every scale"
    if config.order != "scales":
        raise ConfigError(
            f"{what}, so a part of the tokens in tokenizer.order={config.order} would say nothing: use "
            "order=scales, or target=residual"
        )
    if segmented:
        raise ConfigError(
            f"{what}, and segments (tokenizer.clips or similar) add up parts: use one pyramid, or target=residual"
        )
    if any(one == two for one, two in pairwise(_rows(scales, axes))):
        raise ConfigError(f"{what}, so a scale as fine as the one before it would say the same again: leave it out")


def _check_blocks(config: ConvolutionalConfig, num_scales: int) -> None:
    blocks = config.group_side
    if isinstance(blocks, tuple) and len(blocks) != num_scales:
        raise ConfigError(
            f"tokenizer.group_side has {len(blocks)} numbers for {num_scales} scales: give one number for each scale, "
            "or one for all"
        )
    if blocks is not None and config.order != "scales":
        raise ConfigError(
            f"tokenizer.group_side says which tokens are drawn together, and tokenizer.order={config.order} draws all "
            "one by one: use order=scales, or group_side=null"
        )


def _show(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def residual_pyramid(config: ConvolutionalConfig, axes: int, num_scales: int) -> ResidualPyramid:
    """A pyramid with an untrained codebook and phi, for grids of ``axes`` axes and ``num_scales`` scales."""
    quantizer = VectorQuantizer(
        config.quantizer.codes,
        config.channels,
        config.quantizer.distance,
        config.quantizer.update,
        config.quantizer.ema_decay,
        num_scales,
    )
    phi = Phi(
        axes,
        config.channels,
        config.quantizer.phi,
        config.quantizer.phi_count,
        num_scales,
        config.quantizer.phi_ratio,
    )
    settings, prior = config.quantizer, None
    if settings.rate > 0:
        prior = ScalePrior(axes, config.channels, quantizer.num_codes, num_scales, settings.rate)
    return ResidualPyramid(quantizer, phi, settings.upsample, settings.commitment, settings.target, prior)


def networks(
    config: ConvolutionalConfig, layout: Layout, channels: int, strides: Sequence[Sequence[int]]
) -> tuple[Encoder, Decoder]:
    """An untrained encoder and decoder for samples with ``channels`` channels; for ``strides`` see ``Encoder``.

    Raises:
        ConfigError: channels that are not divisible by ``norm_groups``.
    """
    encoder, decoder = (kind(config, layout, channels, strides) for kind in (Encoder, Decoder))
    if config.norm_groups is not None:
        for network in (encoder, decoder):
            set_norm_groups(network, config.norm_groups)
    return encoder, decoder  # type: ignore[return-value]
