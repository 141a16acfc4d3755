"""The convolutional encoder and decoder, of VQGAN kind (https://arxiv.org/abs/2012.09841)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.errors import ConfigError


def _norm(channels: int) -> nn.GroupNorm:
    groups = next(g for g in (32, 16, 8, 4, 2, 1) if (channels % g == 0 and channels // g >= 2) or g == 1)
    return nn.GroupNorm(groups, channels, eps=1e-6)


def set_norm_groups(network: nn.Module, groups: int) -> None:
    """Let every group norm of ``network`` have this many groups (its weights do not depend on it).

    Raises:
        ConfigError: a norm's channels cannot be split so.
    """
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            if module.num_channels % groups:
                raise ConfigError(f"tokenizer.norm_groups {groups} does not divide {module.num_channels} channels")
            module.num_groups = groups


class ResidualBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(channels_in), _norm(channels_out)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        same = channels_in == channels_out
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.shortcut(x) + h


class SelfAttention(nn.Module):
    """One head of attention over all places of a grid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).mT.chunk(3, dim=-1)
        out = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj(out.mT.unflatten(-1, x.shape[2:]))


class Downsample(nn.Module):
    """Half the resolution, by a strided convolution padded at the far sides."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the resolution, by repeating and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _middle(channels: int, attention: bool) -> nn.Sequential:
    layers: list[nn.Module] = [ResidualBlock(channels, channels)]
    if attention:
        layers.append(SelfAttention(channels))
    return nn.Sequential(*layers, ResidualBlock(channels, channels))


class Encoder(nn.Module):
    """B channels H W -> B latent H/f W/f, with f = 2 ** (len(multipliers) - 1).

    ``shortcut`` adds a linear map of each f x f patch of pixels to its latent: the layers then only learn what a
    linear code leaves over, which takes far fewer steps (after DC-AE, https://arxiv.org/abs/2410.10733, whose
    shortcuts have no weights).
    """

    def __init__(
        self,
        channels: int,
        width: int,
        multipliers: Sequence[int],
        blocks: int,
        attention: bool,
        latent: int,
        shortcut: bool = False,
    ) -> None:
        super().__init__()
        self.factor = 2 ** (len(multipliers) - 1)
        self.shortcut = nn.Conv2d(channels * self.factor**2, latent, 1) if shortcut else None
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)
        layers: list[nn.Module] = []
        current = width
        for level, multiplier in enumerate(multipliers):
            last = level == len(multipliers) - 1
            for _ in range(blocks):
                layers.append(ResidualBlock(current, width * multiplier))
                current = width * multiplier
                if last and attention:
                    layers.append(SelfAttention(current))
            if not last:
                layers.append(Downsample(current))
        self.layers = nn.Sequential(*layers)
        self.middle = _middle(current, attention)
        self.norm_out = _norm(current)
        self.conv_out = nn.Conv2d(current, latent, 3, padding=1)
        self.conv_latent = nn.Conv2d(latent, latent, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.middle(self.layers(self.conv_in(x)))
        latent = self.conv_latent(self.conv_out(F.silu(self.norm_out(h))))
        return latent if self.shortcut is None else latent + self.shortcut(F.pixel_unshuffle(x, self.factor))


class Decoder(nn.Module):
    """B latent h w -> B channels h f w f, one residual block more a resolution than the encoder.

    ``shortcut`` adds a linear map of each 3 x 3 of latents to the f x f pixels in their middle.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        multipliers: Sequence[int],
        blocks: int,
        attention: bool,
        latent: int,
        shortcut: bool = False,
    ) -> None:
        super().__init__()
        self.factor = 2 ** (len(multipliers) - 1)
        self.shortcut = nn.Conv2d(latent, channels * self.factor**2, 3, padding=1) if shortcut else None
        current = width * multipliers[-1]
        self.conv_latent = nn.Conv2d(latent, latent, 3, padding=1)
        self.conv_in = nn.Conv2d(latent, current, 3, padding=1)
        self.middle = _middle(current, attention)
        layers: list[nn.Module] = []
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for _ in range(blocks + 1):
                layers.append(ResidualBlock(current, width * multiplier))
                current = width * multiplier
                if level == len(multipliers) - 1 and attention:
                    layers.append(SelfAttention(current))
            if level > 0:
                layers.append(Upsample(current))
        self.layers = nn.Sequential(*layers)
        self.norm_out = _norm(current)
        self.conv_out = nn.Conv2d(current, channels, 3, padding=1)

    def forward(self, f_hat: Tensor) -> Tensor:
        h = self.middle(self.conv_in(self.conv_latent(f_hat)))
        x = self.conv_out(F.silu(self.norm_out(self.layers(h))))
        return x if self.shortcut is None else x + F.pixel_shuffle(self.shortcut(f_hat), self.factor)

    @property
    def last_layer(self) -> Tensor:
        """The weight that adversarial losses are balanced at."""
        return self.conv_out.weight
