"""The image modality's own configuration sections. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import FilePath, NonNegativeInt, PositiveInt

from nextscale.plugin import ConvolutionalConfig, Fraction, LimitsConfig, ModalityConfig, Section


class ImageDataConfig(Section):
    """Where images come from, and how they are made the same size."""

    shorthand = "source"
    added = ("limits",)

    source: str = "digits"
    """digits (built in), an IDX folder (MNIST's layout, .gz or not), an image folder, an .npz file, or hf:NAME."""
    size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    """Height and width after resizing (one number: square); None keeps the original size, which all must share."""
    crop: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    """Height and width of crops: random in training, central in evaluation; None keeps the whole image."""
    flip: bool = False
    """Flip left-right at random in training."""
    channels: Literal[1, 3] | None = None
    """1 for grey, 3 for colour; None follows the data (a mix of both becomes colour)."""
    labels: bool = True
    """Use the class labels, if the data has any."""
    skip_unreadable: bool = False
    """Skip images that cannot be read, instead of stopping at the first."""
    validation: Fraction = 0.1
    """Share of the training split to hold out if the data has no validation split."""
    split_seed: int = 0
    """Seed of the hold-out. It is independent of the run's seed, so that runs are compared on the same split."""
    limits: LimitsConfig = LimitsConfig()
    """How large files may be."""


class ImageTokenizerConfig(ConvolutionalConfig):
    """Multiscale VQ-VAE: a VQGAN-style convolutional encoder and decoder around a residual pyramid."""

    scales: tuple[PositiveInt, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    """Longest side of each scale, relative to the last. The last may be repeated to refine it."""


class ImageEvaluationConfig(Section):
    """How ``nextscale eval`` measures samples."""

    features: Literal["classifier", "efficientnet", "both"] = "classifier"
    """Network whose features distances are computed on; EfficientNet-Lite0 takes about 30 ms per image on a CPU."""
    inception: FilePath | None = None
    """TorchScript file of the standard Inception (uint8 B 3 H W to B 2048): adds FID, and the
    Inception Score if the file also classifies (as inception-2015-12-05.pt of stylegan2-ada's metrics does)."""
    seed: NonNegativeInt = 0
    """Seed for choosing the real images and for training the classifier."""
    train_images: PositiveInt = 60_000
    """Number of training images used to train the classifier and to check samples for memorisation."""
    classifier_epochs: PositiveInt | None = None
    """Epochs of the classifier; None trains on about 420,000 images in total, for at most 20 epochs."""


CONFIG = ModalityConfig(data=ImageDataConfig, tokenizer=ImageTokenizerConfig, evaluation=ImageEvaluationConfig)
