"""The parts of a convolutional multiscale VQ-VAE, from its configuration."""

from __future__ import annotations

from collections.abc import Sequence

from nextscale.grid.layers import Layout
from nextscale.grid.networks import Decoder, Encoder, set_norm_groups
from nextscale.grid.phi import Phi
from nextscale.grid.pyramid import ResidualPyramid
from nextscale.grid.quantizer import VectorQuantizer
from nextscale.gridconfig import ConvolutionalConfig


def residual_pyramid(config: ConvolutionalConfig, axes: int, num_scales: int) -> ResidualPyramid:
    """A fresh codebook and phi for grids of ``axes`` axes, described in ``num_scales`` scales."""
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
    return ResidualPyramid(quantizer, phi, config.quantizer.upsample, config.quantizer.commitment)


def networks(
    config: ConvolutionalConfig, layout: Layout, channels: int, strides: Sequence[Sequence[int]]
) -> tuple[Encoder, Decoder]:
    """A fresh encoder and decoder of samples of ``channels`` channels; for ``strides`` see ``Encoder``.

    Raises:
        ConfigError: channels that ``norm_groups`` does not divide.
    """
    encoder, decoder = (kind(config, layout, channels, strides) for kind in (Encoder, Decoder))
    if config.norm_groups is not None:
        for network in (encoder, decoder):
            set_norm_groups(network, config.norm_groups)
    return encoder, decoder  # type: ignore[return-value]
