"""The video modality's own configuration sections. No torch here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, FilePath, NonNegativeFloat, NonNegativeInt, PositiveInt

from nextscale.plugin import ConvolutionalConfig, Fraction, LimitsConfig, ModalityConfig, Section

Stride = Literal[1, 2]


class VideoLimitsConfig(LimitsConfig):
    """How large videos may be. Whatever exceeds a limit is refused before memory is taken for it."""

    memory_bytes: PositiveInt = 8 * 2**30
    """Bytes of decoded video. All of it is kept in memory; clips are not read from disk one by one."""


class VideoDataConfig(Section):
    """Where videos come from, and how clips are cut from them."""

    shorthand = "source"
    added = ("fps", "limits")

    source: str = "moving-digits"
    """moving-digits (built in), an .npz or .npy file, or a folder of videos (mp4, avi, gif, webm ...) or of folders of
    frames, flat or with one sub-folder per class, with or without train, val and test folders around them. Video files
    need the extra ``video``."""
    frames: PositiveInt = 17
    """Frames per clip."""
    stride: PositiveInt = 1
    """Take one frame out of this many frames of the source."""
    fps: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] | None = None
    """Resample videos to this many frames per second by their time stamps, before ``stride``: each frame is the latest
    that a player would have shown by then. None: frames as they come."""
    size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    """Height and width after resizing (one number: square); None keeps the original size, which all must share. For
    moving digits, the size of the canvas (None: 16)."""
    flip: bool = False
    """Flip left-right at random in training."""
    channels: Literal[1, 3] | None = None
    """1 for grey, 3 for colour; None follows the data."""
    labels: bool = True
    """Use the class labels, if the data has any."""
    skip_unreadable: bool = False
    """Skip videos that cannot be read or are too short, instead of stopping at the first."""
    validation: Fraction = 0.1
    """Share of the videos to hold out if the data has no validation split; at least one per class."""
    split_seed: int = 0
    """Seed of the hold-out. It is independent of the run's seed, so that runs are compared on the same split."""
    clips: PositiveInt | None = None
    """Clips taken from each video in one pass over the data; None: as many as fit one after another."""
    limits: VideoLimitsConfig = VideoLimitsConfig()


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
    ignored: every scale of a clip has the clip's full length."""
    clips: tuple[PositiveInt, ...] | None = None
    """Clip pyramids: the lengths, in latent frames, of consecutive clips, each with its own pyramid. The last length
    repeats in longer videos. [1, 4]: a pyramid for the first frame, then clips of 4. None: one joint pyramid."""
    carry: Literal["none", "input", "state"] = "input"
    """With ``clips``, how each clip uses the last latent frame of the previous clip. none: not at all. input: the
    transformer sees it at the first scale. state: the clip starts as that frame, and its tokens encode the changes."""
    first_alone: bool = True
    """Encode the first frame on its own: clips have 1 + f n frames, where f is the temporal stride. False: f n."""
    time_strides: tuple[Stride, ...] | None = None
    """Temporal downsampling between the resolutions of ``multipliers``, 1 or 2 each; None: 2 for the last two."""
    space_strides: tuple[Stride, ...] | None = None
    """The same for height and width; None: 2 each."""
    temporal: NonNegativeFloat = 0.0
    """Weight of the temporal difference loss: the mean squared error of differences between successive frames."""


class VideoEvaluationConfig(Section):
    """How ``nextscale eval`` measures samples."""

    extractor: FilePath | None = None
    """TorchScript file, B 3 T H W in [-1, 1] to B D: adds the Fréchet distance on its features (FVD if it is I3D)."""
    seed: NonNegativeInt = 0
    """Seed for choosing the real clips and for training the classifier."""
    classifier_epochs: PositiveInt | None = None
    """Epochs of the classifier; None: 10."""


CONFIG = ModalityConfig(data=VideoDataConfig, tokenizer=VideoTokenizerConfig, evaluation=VideoEvaluationConfig)
