"""The video modality's own configuration sections. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import FilePath, NonNegativeFloat, NonNegativeInt, PositiveInt

from nextscale.plugin import ConvolutionalConfig, Fraction, ModalityConfig, Section

Stride = Literal[1, 2]


class VideoDataConfig(Section):
    """Where videos come from, and how clips are cut from them."""

    shorthand = "source"

    source: str = "moving-digits"
    """moving-digits (built in), an .npz or .npy file, or a folder: of videos (mp4, avi, gif, webm ...) or of folders of
    frames; a class is a sub-folder. Video files need the extra ``video``."""
    frames: PositiveInt = 17
    """Frames of a clip."""
    stride: PositiveInt = 1
    """Every how many frames of the source one is taken."""
    size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    """Height and width after resizing (one number: square); None keeps the videos' own, which must then agree. Of
    moving digits, the canvas (None: 16)."""
    flip: bool = False
    """Flip left-right at random in training."""
    channels: Literal[1, 3] | None = None
    """1 grey, 3 colour; None takes what the data has."""
    labels: bool = True
    """Use the class labels, where the data has any."""
    skip_unreadable: bool = False
    """Leave out videos that cannot be read or are too short, instead of stopping at the first."""
    validation: Fraction = 0.1
    """Share of the videos that is held out where the data has no validation split; at least one a class."""
    split_seed: int = 0
    """Seed of that hold-out; it is not the run's seed, so that runs are compared on the same split."""
    clips: PositiveInt | None = None
    """Clips that a pass over the data takes from each video; None: as many as fit one after another."""


class VideoTokenizerConfig(ConvolutionalConfig):
    """Multiscale VQ-VAE with a causal 3-D convolutional encoder and decoder around a residual pyramid."""

    scales: tuple[tuple[PositiveInt, PositiveInt, PositiveInt], ...] = (
        (1, 1, 1),
        (1, 2, 2),
        (2, 3, 3),
        (2, 4, 4),
        (3, 5, 5),
        (4, 6, 6),
        (4, 8, 8),
    )
    """Time, height and width of each scale, relative to the last, which is the whole latent. With ``clips``, time is
    not used: every scale of a clip has the clip's full length."""
    clips: tuple[PositiveInt, ...] | None = None
    """Clip pyramids: lengths, in latent frames, of the pyramids that follow one another in time, each beginning anew;
    the last repeats on longer videos. [1, 4]: a first-frame pyramid, then clips. None: one joint pyramid."""
    carry: Literal["none", "input", "state"] = "input"
    """With ``clips``, what each knows of the last latent frame of the one before: nothing; input: the transformer sees
    it at the first scale; state: the clip begins as that frame, and its tokens say what has changed."""
    first_alone: bool = True
    """The first frame stands alone in time: clips of 1 + f n frames. False: f n frames. (f: the temporal stride.)"""
    time_strides: tuple[Stride, ...] | None = None
    """Downsampling in time between the resolutions of ``multipliers``, 1 or 2 each; None: 2 for the last two."""
    space_strides: tuple[Stride, ...] | None = None
    """The same in height and width; None: 2 each."""
    temporal: NonNegativeFloat = 0.0
    """Weight of the temporal difference loss: the mean squared error of differences between successive frames."""


class VideoEvaluationConfig(Section):
    """What ``nextscale eval`` measures samples with."""

    extractor: FilePath | None = None
    """TorchScript file, B 3 T H W in [-1, 1] to B D: adds the Fréchet distance on its features (FVD if it is I3D)."""
    seed: NonNegativeInt = 0
    """Of the real clips that are drawn, and of the classifier."""
    classifier_epochs: PositiveInt | None = None
    """None: 10."""


CONFIG = ModalityConfig(data=VideoDataConfig, tokenizer=VideoTokenizerConfig, evaluation=VideoEvaluationConfig)
