"""Settings of the audio modality."""

from __future__ import annotations

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from nextscale.plugin import ConvolutionalConfig, Fraction, LimitsConfig, ModalityConfig, Section


class AudioDataConfig(Section):
    """Where sounds come from, and how they become spectrograms."""

    shorthand = "source"

    source: str = "tones"
    """tones (built in), a folder of .wav files (flat, or one folder per class), or an .npz (x N samples, y labels)."""
    pattern: str | None = None
    """A regular expression on file names whose first group is the class: ``([0-9])_.*`` for ``7_ann_3.wav``."""
    rate: PositiveInt = 8000
    """Samples per second; other rates are resampled to it. An .npz is taken to have this rate."""
    seconds: PositiveFloat = 1.024
    """Length of every sound: longer ones are cut, shorter ones end in silence."""
    mels: PositiveInt = 64
    """Frequency bands."""
    shift: NonNegativeInt = 4
    """In training, a sound begins up to this many frames late."""
    labels: bool = True
    """Use the class labels, where the data has any."""
    validation: Fraction = 0.1
    test: Fraction = 0.1
    """Shares held out where the data has no such split."""
    split_seed: int = 0
    limits: LimitsConfig = LimitsConfig()


class AudioTokenizerConfig(ConvolutionalConfig):
    """Multiscale VQ-VAE on spectrograms: a grid of one axis, time, whose channels are frequency bands."""

    scales: tuple[PositiveInt, ...] = (1, 2, 4, 8, 16, 32)
    """Length of each scale, relative to the last; the last may be repeated to refine it."""


class AudioEvaluationConfig(Section):
    """What ``nextscale eval`` measures sounds with."""

    seed: NonNegativeInt = 0
    """Of the real sounds that are drawn, and of the classifier."""
    classifier_epochs: PositiveInt | None = None
    """None: 20."""


CONFIG = ModalityConfig(data=AudioDataConfig, tokenizer=AudioTokenizerConfig, evaluation=AudioEvaluationConfig)
