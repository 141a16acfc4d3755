"""Configuration that tokenizers on a grid share. No torch here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from nextscale.config.sections import Fraction, Section


class QuantizerConfig(Section):
    codes: PositiveInt = 4096
    """V, the size of the codebook shared by all scales."""
    distance: Literal["euclidean", "cosine"] = "euclidean"
    update: Literal["gradient", "ema"] = "gradient"
    """How codes learn: by the codebook loss (straight-through, as VAR), or by moving averages (VQ-VAE-2)."""
    ema_decay: Fraction = 0.99
    commitment: NonNegativeFloat = 0.25
    """Weight of the commitment loss (beta)."""
    revive_below: NonNegativeFloat = 0.0
    """A code is dead, and re-seeded from the data, when its share of uses falls below this / V; 0 revives none."""
    revive_every: PositiveInt = 100
    """Steps between revivals."""
    scale_dropout: Fraction = 0.0
    """Share of training samples whose finer scales are dropped, so that every prefix decodes well."""
    phi: Literal["none", "shared", "partial", "scale"] = "partial"
    """Convolutions after upsampling: none, one for all scales, a few shared by neighbours, or one a scale."""
    phi_count: PositiveInt = 4
    """Convolutions of phi = partial."""
    phi_ratio: Fraction = 0.5
    """phi(x) = (1 - ratio) x + ratio conv(x)."""
    upsample: Literal["cubic", "linear"] = "cubic"


class PerceptualConfig(Section):
    weight: NonNegativeFloat = 0.0
    """Weight of the perceptual loss on EfficientNet-Lite0 features, of 2-D grids (extra: perceptual)."""


class AdversarialConfig(Section):
    weight: NonNegativeFloat = 0.0
    """Weight of the PatchGAN loss; with ``adaptive``, relative to the reconstruction loss's gradient."""
    adaptive: bool = True
    start: NonNegativeInt = 0
    """Step at which it begins."""
    width: PositiveInt = 64
    layers: PositiveInt = 3
    lr: Annotated[float, Field(gt=0)] = 1e-4


class ConvolutionalConfig(Section):
    """Multiscale VQ-VAE: a convolutional encoder and decoder of VQGAN kind around a residual pyramid.

    A modality's own section adds the scales, and which axes are downsampled where.
    """

    channels: PositiveInt = 32
    """C of the latent."""
    width: PositiveInt = 160
    """Channels of the highest resolution."""
    multipliers: tuple[PositiveInt, ...] = (1, 1, 2, 2, 4)
    """Channels of each resolution over ``width``; each entry but the first halves the resolution."""
    blocks: PositiveInt = 2
    """Residual blocks a resolution (the decoder has one more)."""
    attention: bool = True
    """Self-attention at the lowest resolution."""
    norm_groups: PositiveInt | None = None
    """Groups of every group norm (published VAR: 32); None takes up to 32, each of two channels or more."""
    shortcut: bool = False
    """Add a linear path around the encoder's and decoder's layers: learns in far fewer steps (VAR has none)."""
    quantizer: QuantizerConfig = QuantizerConfig()
    l1: NonNegativeFloat = 0.0
    """Weight of the mean absolute error."""
    l2: NonNegativeFloat = 1.0
    """Weight of the mean squared error."""
    perceptual: PerceptualConfig = PerceptualConfig()
    adversarial: AdversarialConfig = AdversarialConfig()
