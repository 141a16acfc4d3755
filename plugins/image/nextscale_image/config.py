"""The image modality's own configuration sections. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import FilePath, NonNegativeInt, PositiveInt

from nextscale.plugin import ConvolutionalConfig, Fraction, ModalityConfig, Section


class ImageDataConfig(Section):
    """Where images come from, and how they are brought to one size."""

    shorthand = "source"

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


class ImageEvaluationConfig(Section):
    """What ``nextscale eval`` measures samples with."""

    features: Literal["classifier", "efficientnet", "both"] = "classifier"
    """The network whose features distances are measured on; EfficientNet-Lite0 takes about 30 ms an image on a CPU."""
    inception: FilePath | None = None
    """TorchScript file of the standard Inception (uint8 B 3 H W to B 2048): adds a distance that may be called FID."""
    seed: NonNegativeInt = 0
    """Of the real images that are drawn, and of the classifier."""
    train_images: PositiveInt = 60_000
    """Training images that the classifier learns from and that samples are held against for memorisation."""
    classifier_epochs: PositiveInt | None = None
    """None trains on about 420,000 images, and for at most 20 epochs."""


CONFIG = ModalityConfig(data=ImageDataConfig, tokenizer=ImageTokenizerConfig, evaluation=ImageEvaluationConfig)
