"""A convolutional encoder and decoder as in VQGAN (https://arxiv.org/abs/2012.09841), for any number of axes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.config.grid import ConvolutionalConfig
from nextscale.errors import ConfigError
from nextscale.grid.layers import Downsample, Layout, Lead, SelfAttention, Trim, Upsample, from_channels, to_channels


def set_norm_groups(network: nn.Module, groups: int) -> None:
    """Set the number of groups of every group norm in ``network`` (its weights do not depend on it).

    Raises:
        ConfigError: a norm's channels are not divisible by ``groups``.
    """
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            if module.num_channels % groups:
                raise ConfigError(f"tokenizer.norm_groups {groups} does not divide {module.num_channels} channels")
            module.num_groups = groups


def _active(normed: Tensor) -> Tensor:
    """SiLU of a norm's output; in place where no gradient is needed, because fine grids are large."""
    return F.silu(normed, inplace=not torch.is_grad_enabled())


class ResidualBlock(nn.Module):
    def __init__(self, layout: Layout, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = layout.norm(channels_in), layout.norm(channels_out)
        self.conv1 = layout.convolution(channels_in, channels_out)
        self.conv2 = layout.convolution(channels_out, channels_out)
        same = channels_in == channels_out
        self.shortcut = nn.Identity() if same else layout.convolution(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(_active(self.norm1(x)))
        h = self.conv2(_active(self.norm2(h)))
        return self.shortcut(x) + h


def _middle(layout: Layout, channels: int, attention: bool) -> nn.Sequential:
    layers: list[nn.Module] = [ResidualBlock(layout, channels, channels)]
    if attention:
        layers.append(SelfAttention(layout, channels))
    return nn.Sequential(*layers, ResidualBlock(layout, channels, channels))


def total_factor(strides: Sequence[Sequence[int]], axes: int) -> tuple[int, ...]:
    """How much smaller the latent is along each axis, after downsampling by ``strides`` (one entry per step)."""
    return tuple(math.prod(step[axis] for step in strides) for axis in range(axes))


class Encoder(nn.Module):
    """B channels *grid -> B C *(grid / f), where f is the product of ``strides``.

    ``strides`` has one entry between two resolutions, with 1 or 2 per axis. ``config.shortcut`` adds a linear map of
    each patch of f places to its latent. The layers then learn only what a linear code leaves over, which takes far
    fewer steps (after DC-AE, https://arxiv.org/abs/2410.10733, whose shortcuts have no weights).
    """

    def __init__(
        self, config: ConvolutionalConfig, layout: Layout, channels: int, strides: Sequence[Sequence[int]]
    ) -> None:
        super().__init__()
        width, multipliers, blocks = config.width, config.multipliers, config.blocks
        self.channels, self.factor = channels, total_factor(strides, layout.axes)
        patch = channels * math.prod(self.factor)
        self.shortcut = layout.convolution(patch, config.channels, 1) if config.shortcut else None
        self.lead = Lead(self.factor[0] - 1 if layout.alone else 0)
        self.conv_in = layout.convolution(channels, width)
        layers: list[nn.Module] = []
        current = width
        for level, multiplier in enumerate(multipliers):
            last = level == len(multipliers) - 1
            for _ in range(blocks):
                layers.append(ResidualBlock(layout, current, width * multiplier))
                current = width * multiplier
                if last and config.attention:
                    layers.append(SelfAttention(layout, current))
            if not last:
                layers.append(Downsample(layout, current, strides[level]))
        self.layers = nn.Sequential(*layers)
        self.middle = _middle(layout, current, config.attention)
        self.norm_out = layout.norm(current)
        self.conv_out = layout.convolution(current, config.channels)
        self.conv_latent = layout.convolution(config.channels, config.channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.middle(self.layers(self.conv_in(x)))
        latent = self.conv_latent(self.conv_out(_active(self.norm_out(h))))
        return latent if self.shortcut is None else latent + self.shortcut(to_channels(self.lead(x), self.factor))


class Decoder(nn.Module):
    """The mirror image of the encoder, with one more residual block per resolution.

    ``config.shortcut`` adds a linear map of each latent and its neighbours to a patch of f places.
    """

    def __init__(
        self, config: ConvolutionalConfig, layout: Layout, channels: int, strides: Sequence[Sequence[int]]
    ) -> None:
        super().__init__()
        width, multipliers, blocks = config.width, config.multipliers, config.blocks
        self.channels, self.factor = channels, total_factor(strides, layout.axes)
        patch = channels * math.prod(self.factor)
        self.shortcut = layout.convolution(config.channels, patch) if config.shortcut else None
        self.trim = Trim(self.factor[0] - 1 if layout.alone else 0)
        current = width * multipliers[-1]
        self.conv_latent = layout.convolution(config.channels, config.channels)
        self.conv_in = layout.convolution(config.channels, current)
        self.middle = _middle(layout, current, config.attention)
        layers: list[nn.Module] = []
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for _ in range(blocks + 1):
                layers.append(ResidualBlock(layout, current, width * multiplier))
                current = width * multiplier
                if level == len(multipliers) - 1 and config.attention:
                    layers.append(SelfAttention(layout, current))
            if level > 0:
                layers.append(Upsample(layout, current, strides[level - 1]))
        self.layers = nn.Sequential(*layers)
        self.norm_out = layout.norm(current)
        self.conv_out = layout.convolution(current, channels)

    def forward(self, f_hat: Tensor) -> Tensor:
        h = self.middle(self.conv_in(self.conv_latent(f_hat)))
        x = self.conv_out(_active(self.norm_out(self.layers(h))))
        return x if self.shortcut is None else x + self.trim(from_channels(self.shortcut(f_hat), self.factor))

    @property
    def last_layer(self) -> Tensor:
        """The weight with respect to which the adversarial and reconstruction gradients are balanced."""
        return self.conv_out.get_parameter("weight")
