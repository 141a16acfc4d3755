"""The image modality's own configuration sections. No torch here."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import PositiveInt

from nextscale.config import Fraction, Section
from nextscale.gridconfig import ConvolutionalConfig
from nextscale.modality import ModalityConfig


class ImageDataConfig(Section):
    """Where images come from, and how they are brought to one size."""

    shorthand: ClassVar[str] = "source"
    """``data=X`` means ``data.source=X``."""

    source: str = "digits"
    """digits (built in), an IDX folder (MNIST's layout, .gz or not), an image folder, an .npz file, or hf:NAME."""
    size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    """Height and width after resizing (one number: square); None keeps the images' own, which must then agree."""
    crop: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    """Height and width of crops: random in training, central in evaluation; None keeps the whole image."""
    flip: bool = False
    """Flip left-right at random in training."""
    channels: Literal[1, 3] | None = None
    """1 grey, 3 colour; None takes what the data has (mixed data become colour)."""
    labels: bool = True
    """Use the class labels, where the data has any."""
    skip_unreadable: bool = False
    """Leave out images that cannot be read, instead of stopping at the first."""
    validation: Fraction = 0.1
    """Share of the training split that is held out where the data has no validation split."""
    split_seed: int = 0
    """Seed of that hold-out; it is not the run's seed, so that runs are compared on the same split."""


class ImageTokenizerConfig(ConvolutionalConfig):
    """Multiscale VQ-VAE: a convolutional encoder and decoder of VQGAN kind around a residual pyramid."""

    scales: tuple[PositiveInt, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    """Length of the longest side of each scale, relative to the last; the last may be repeated to refine it."""


CONFIG = ModalityConfig(data=ImageDataConfig, tokenizer=ImageTokenizerConfig)
