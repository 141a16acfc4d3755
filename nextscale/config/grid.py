"""Configuration shared by all tokenizers on a grid. No torch here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from nextscale.config.sections import Fraction, Section


class QuantizerConfig(Section):
    added = ("target", "rate", "rate_start")

    codes: PositiveInt | Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = 4096
    """V, the size of the codebook, which all scales share. A list has one number per scale: a scale uses so many of the
    first codes, and V is the largest number."""
    target: Literal["residual", "features"] = "residual"
    """What a scale describes: what the coarser scales left over, as in VAR, or the features themselves, anew at every
    scale, as in FlexVAR."""
    distance: Literal["euclidean", "cosine"] = "euclidean"
    update: Literal["gradient", "ema"] = "gradient"
    """How codes learn: by the codebook loss (straight-through, as in VAR) or by moving averages (VQ-VAE-2)."""
    ema_decay: Fraction = 0.99
    commitment: NonNegativeFloat | Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1)] = 0.25
    """Weight of the commitment loss (beta): how near features stay to their codes. A list has one number per scale."""
    rate: NonNegativeFloat = 0.0
    """Prefer codes that are likely, given the coarser scales: tokens cost a transformer less, and distort more. The
    number is what a nat costs, in mean squared distances between vectors and the nearest codes. A small prior learns
    along with the tokenizer and is stored with it. 0 takes the nearest code, and has no prior."""
    rate_start: NonNegativeInt = 500
    """Step from which nats cost anything. Before it, the codebook spreads over the features and the prior learns; too
    early, few codes are ever used."""
    revive_below: NonNegativeFloat = 0.0
    """A code whose share of uses falls below this / V is dead and is re-seeded from the data; 0 revives no code."""
    revive_every: PositiveInt = 100
    """Steps between revivals."""
    scale_dropout: Fraction = 0.0
    """Share of training samples whose finer scales are dropped, so that every prefix decodes well."""
    phi: Literal["none", "shared", "partial", "scale"] = "partial"
    """Convolutions after upsampling: none, one for all scales, a few shared by neighbours, or one per scale."""
    phi_count: PositiveInt = 4
    """Number of convolutions with phi = partial."""
    phi_ratio: Fraction = 0.5
    """phi(x) = (1 - ratio) x + ratio conv(x)."""
    upsample: Literal["cubic", "linear"] = "cubic"


class PerceptualConfig(Section):
    weight: NonNegativeFloat = 0.0
    """Weight of the perceptual loss on EfficientNet-Lite0 features, for 2-D grids (extra: perceptual)."""


class AdversarialConfig(Section):
    weight: NonNegativeFloat = 0.0
    """Weight of the PatchGAN loss; with ``adaptive``, relative to the gradient of the reconstruction loss."""
    adaptive: bool = True
    start: NonNegativeInt = 0
    """Step at which the PatchGAN loss begins."""
    width: PositiveInt = 64
    layers: PositiveInt = 3
    lr: Annotated[float, Field(gt=0)] = 1e-4


class ConvolutionalConfig(Section):
    """Multiscale VQ-VAE: a convolutional encoder and decoder, as in VQGAN, around a residual pyramid.

    A modality's own section adds the scales, and says which axes are downsampled at which resolution.
    """

    added = ("order", "group_side")
    unlearned = ("order", "group_side")
    reordering = ("order",)

    order: Literal["scales", "raster", "spiral", "morton", "random"] = "scales"
    """How tokens are drawn. scales: all tokens of a scale at once, as in VAR. The others draw the same tokens one by
    one, as a baseline: row by row, from the border inwards, along a Z-curve, or in a fixed random order."""
    group_side: PositiveInt | Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = None
    """Cut every scale into blocks of so many cells along each axis. A block draws one of its cells after another, all
    blocks side by side: 2 takes four sub-steps on images (needs transformer.in_scale_steps=true and
    sampling.reveal=groups). A list has one number per scale, where 1 draws the scale at once. None defines no
    sub-steps."""
    channels: PositiveInt = 32
    """C of the latent."""
    width: PositiveInt = 160
    """Channels of the highest resolution."""
    multipliers: tuple[PositiveInt, ...] = (1, 1, 2, 2, 4)
    """Channels of each resolution, as a multiple of ``width``; each entry but the first halves the resolution."""
    blocks: PositiveInt = 2
    """Residual blocks per resolution (the decoder has one more)."""
    attention: bool = True
    """Self-attention at the lowest resolution."""
    norm_groups: PositiveInt | None = None
    """Groups of every group norm (published VAR: 32); None takes up to 32 groups, each of at least two channels."""
    shortcut: bool = False
    """Add a linear path around the layers of the encoder and decoder: learning takes far fewer steps (not in VAR)."""
    quantizer: QuantizerConfig = QuantizerConfig()
    l1: NonNegativeFloat = 0.0
    """Weight of the mean absolute error."""
    l2: NonNegativeFloat = 1.0
    """Weight of the mean squared error."""
    perceptual: PerceptualConfig = PerceptualConfig()
    adversarial: AdversarialConfig = AdversarialConfig()
