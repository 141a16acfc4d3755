"""Motion statistics of clips, as pure functions of B C T H W in [-1, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

BINS = 32
SLACK = 2.0
"""Pixels per frame by which a generated step may exceed real steps."""


def difference_histogram(clips: Tensor) -> Tensor:
    """Histogram of the absolute differences of successive frames: BINS shares that sum to 1. Bins widen quadratically,
    because most differences are small."""
    edges = torch.linspace(0, 2**0.5, BINS + 1).square()
    edges[-1] += 1e-6
    counts = torch.histogram(clips.float().cpu().clamp(-1, 1).diff(dim=2).abs().flatten(), edges).hist
    return counts / counts.sum().clamp_min(1)


def histogram_distance(one: Tensor, other: Tensor) -> float:
    """Total variation distance of the two sets' difference histograms: 0 if equal, 1 if they do not overlap."""
    return float((difference_histogram(one) - difference_histogram(other)).abs().sum() / 2)


def speed(clips: Tensor) -> float:
    """Mean absolute difference of successive frames."""
    return float(clips.float().diff(dim=2).abs().mean())


def flicker(clips: Tensor) -> float:
    """Mean absolute second difference: 0 for still or evenly changing clips, large if brightness jumps about."""
    return float(clips.float().diff(n=2, dim=2).abs().mean()) if clips.shape[2] > 2 else 0.0


def centres(clips: Tensor) -> Tensor:
    """B T 2: row and column of the centre of mass, weighting pixels by deviation from the clip's median brightness."""
    grey = clips.float().mean(1)
    weight = (grey - grey.flatten(1).median(1).values[:, None, None, None]).abs()
    total = weight.sum((2, 3)).clamp_min(1e-6)
    rows, columns = torch.arange(grey.shape[2]).to(grey), torch.arange(grey.shape[3]).to(grey)
    return torch.stack([(weight.sum(3) * rows).sum(2) / total, (weight.sum(2) * columns).sum(2) / total], -1)


def steps(clips: Tensor) -> Tensor:
    """B T-1: how far the centre moves from frame to frame, in pixels."""
    return centres(clips).diff(dim=1).norm(dim=-1)


def steady(clips: Tensor, real: Tensor) -> float:
    """Share of the steps shorter than the 99th percentile of real steps plus ``SLACK``."""
    limit = torch.quantile(steps(real).flatten(), 0.99) + SLACK
    return float((steps(clips) < limit).float().mean())
