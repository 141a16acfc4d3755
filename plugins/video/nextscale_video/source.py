"""One split of videos, read as clips. A clip's start and mirroring depend only on the sample's seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from nextscale.plugin import Batch, fingerprint, sample_seeds

AUGMENTATION = 0x71DE0
"""Separates augmentation from everything else drawn from the same seeds."""


class VideoSource:
    """A ``nextscale.data.SampleSource``.

    Args:
        videos: C T H W of uint8 each, with the same C, H and W and at least ``(frames - 1) * stride + 1`` frames.
        labels: one integer per video, or None.
        clips: clips taken from each video in one pass; None: as many as fit one after another.
        identities: what identifies the content of each video (``RawVideo.identity``); None: its pixels.
    """

    def __init__(
        self,
        videos: Sequence[np.ndarray],
        labels: np.ndarray | None,
        frames: int,
        stride: int = 1,
        flip: bool = False,
        clips: int | None = None,
        identities: Sequence[Callable[[], object]] | None = None,
    ) -> None:
        self.videos, self.frames, self.stride, self.flip = videos, frames, stride, flip
        self.identities = identities
        self.span = (frames - 1) * stride + 1
        numbers = [clips or max(1, video.shape[1] // self.span) for video in videos]
        self.video = np.repeat(np.arange(len(videos)), numbers)
        spare = [video.shape[1] - self.span for video in videos]
        self.start = np.concatenate([_spread(left, number) for left, number in zip(spare, numbers, strict=True)])
        self.labels = None if labels is None else labels[self.video]

    def __len__(self) -> int:
        return len(self.video)

    def fingerprint(self) -> str:
        """16 hex digits that change with the videos, their order, their labels, or how clips are cut from them."""
        videos = self.videos if self.identities is None else [identity() for identity in self.identities]
        parts: dict[str, object] = {f"video {row:08d}": video for row, video in enumerate(videos)}
        parts |= {"cut": (self.frames, self.stride), "video": self.video, "start": self.start}
        return fingerprint(parts if self.labels is None else parts | {"labels": self.labels})

    def batch(self, indices: np.ndarray, seeds: np.ndarray | None) -> Batch:
        """``samples`` B C T H W of float32 in [-1, 1]; ``conditions["label"]`` B of int64 if labelled.

        Without seeds, the starts of a video's clips are spread evenly over it.
        """
        starts, mirrored = self.start[indices], np.zeros(len(indices), bool)
        if seeds is not None:
            bits = sample_seeds(AUGMENTATION, seeds)
            spare = np.array([self.videos[row].shape[1] - self.span for row in self.video[indices]], np.uint64)
            starts = ((bits & np.uint64(0xFFFFFFFF)) % (spare + np.uint64(1))).astype(np.int64)
            mirrored = (bits >> np.uint64(63)).astype(bool) & self.flip
        clips = []
        for row, start, mirror in zip(self.video[indices], starts, mirrored, strict=True):
            clip = self.videos[row][:, start : start + self.span : self.stride]
            clips.append(clip[..., ::-1] if mirror else clip)
        samples = torch.from_numpy(np.stack(clips).astype(np.float32) / np.float32(127.5) - np.float32(1))
        if self.labels is None:
            return Batch(samples)
        return Batch(samples, {"label": torch.from_numpy(self.labels[indices])})


def _spread(spare: int, number: int) -> np.ndarray:
    """``number`` evenly spaced starts from 0 to ``spare``; a single start is in the middle."""
    if number == 1:
        return np.array([spare // 2])
    return np.linspace(0, spare, number).round().astype(np.int64)
