"""Waveforms to log-mel spectrograms in [-1, 1], and back by the Griffin-Lim algorithm."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

HOP, WINDOW = 64, 256
"""Samples between frames, and of a frame: 8 and 32 ms at 8 kHz."""
QUIET, LOUD = -6.0, 4.0
"""Natural logarithms of band magnitudes that become -1 and 1; quieter is silence."""


@lru_cache
def mel_filters(rate: int, mels: int) -> Tensor:
    """mels x (WINDOW / 2 + 1): triangles, evenly spaced on the mel scale (O'Shaughnessy 1987)."""
    top = 2595 * torch.log10(torch.tensor(1 + rate / 2 / 700))
    edges = 700 * (10 ** (torch.linspace(0, float(top), mels + 2) / 2595) - 1)
    bins = torch.linspace(0, rate / 2, WINDOW // 2 + 1)
    rise = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    # Where bands are narrower than a bin, a band takes the bin nearest to it.
    nearest = torch.nn.functional.one_hot((bins - edges[1:-1, None]).abs().argmin(1), len(bins)).float()
    return torch.maximum(torch.minimum(rise, fall).clamp_min(0), nearest)


def to_mel(waves: Tensor, rate: int, mels: int) -> Tensor:
    """B mels T in [-1, 1] of waveforms B N, with T = N / HOP."""
    window = torch.hann_window(WINDOW)
    spectrum = torch.stft(waves, WINDOW, HOP, window=window, return_complex=True)[..., : waves.shape[-1] // HOP].abs()
    logs = (mel_filters(rate, mels) @ spectrum).clamp_min(1e-9).log()
    return ((logs - QUIET) / (LOUD - QUIET) * 2 - 1).clamp(-1, 1)


def to_waves(mel: Tensor, rate: int, rounds: int = 60) -> Tensor:
    """B N: waveforms whose spectrograms are near B mels T, with phases found by fast Griffin-Lim
    (https://doi.org/10.1109/WASPAA.2013.6701851)."""
    bands = ((mel.float().clamp(-1, 1) + 1) / 2 * (LOUD - QUIET) + QUIET).exp() * (mel > -0.99)
    magnitude = (torch.linalg.pinv(mel_filters(rate, mel.shape[1])) @ bands).clamp_min(0)
    window, length = torch.hann_window(WINDOW), mel.shape[2] * HOP
    magnitude = torch.nn.functional.pad(magnitude, (0, 1))
    phase = torch.rand(magnitude.shape, generator=torch.Generator().manual_seed(0)) * 2 * torch.pi
    estimate, before = torch.polar(magnitude, phase), torch.zeros_like(magnitude, dtype=torch.complex64)
    for _ in range(rounds):
        waves = torch.istft(estimate, WINDOW, HOP, window=window, length=length)
        found = torch.stft(waves, WINDOW, HOP, window=window, return_complex=True)
        faster, before = found + 0.99 * (found - before), found
        estimate = torch.polar(magnitude, faster.angle())
    return torch.istft(estimate, WINDOW, HOP, window=window, length=length)
