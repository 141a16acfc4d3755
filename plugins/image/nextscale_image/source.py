"""One split of images, read in batches. Augmentation depends only on each sample's seed."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from nextscale.plugin import Batch, fingerprint, sample_seeds
from nextscale_image.decoding import parallel
from nextscale_image.readers.raw import ImageSet

AUGMENTATION = 0x1A6E
"""Separates augmentation from everything else drawn from the same seeds."""
OFFSET_BITS = 0x1FFFFF


class Pixels(Protocol):
    """N C H W of uint8: an array, or ``decoding.LazyImages``."""

    def __getitem__(self, rows: np.ndarray, /) -> np.ndarray: ...


class ImageSource:
    """A ``nextscale.data.SampleSource``.

    Args:
        pixels: N C H W of uint8; several sources may share them.
        rows: the rows of ``pixels`` in this split.
        labels: N integers, one per row of ``pixels``, or None.
        crop: height and width of the samples in a batch.
        flip: mirror left-right at random if seeds are given.
        images: what ``pixels`` were decoded from, for ``fingerprint``.
    """

    def __init__(
        self,
        pixels: Pixels,
        rows: np.ndarray,
        labels: np.ndarray | None,
        crop: tuple[int, int],
        flip: bool = False,
        images: ImageSet | None = None,
    ) -> None:
        self.images = images
        self.pixels, self.rows, self.crop, self.flip = pixels, rows, crop, flip
        self.labels: np.ndarray | None = None if labels is None else labels[rows]
        """N int64, indexed like the split."""

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: np.ndarray, seeds: np.ndarray | None) -> Batch:
        """``samples`` B C H W of float32 in [-1, 1]; ``conditions["label"]`` B of int64 if labelled."""
        images = augment(self.pixels[self.rows[indices]], seeds, self.crop, self.flip)
        # In numpy, because it starts no threads: batches are read while torch's threads are busy.
        scaled = images.astype(np.float32)
        scaled /= np.float32(127.5)
        scaled -= 1
        samples = torch.from_numpy(scaled)
        if self.labels is None:
            return Batch(samples)
        return Batch(samples, {"label": torch.from_numpy(self.labels[indices])})

    def fingerprint(self) -> str:
        """16 hex digits that tell this split from others: its images in their order, and their labels.

        Of files, names relative to the source count, sizes, and parts of the content (``nextscale.plugin.file_print``);
        absolute paths and times do not, so data may be moved or copied. Of arrays, the content counts.

        Raises:
            DataError: an image is gone since the data was opened.
        """
        images, rows = self.images, self.rows.tolist()
        if images is None:
            identities: list[object] = [fingerprint({"pixels": self.pixels[self.rows[[i]]]}) for i in range(len(rows))]
        else:
            identities = parallel(lambda i: images.identity(rows[i]), len(rows))
        return fingerprint({"images": identities, "labels": self.labels})

    def images_uint8(self, indices: np.ndarray) -> Tensor:
        """B C H W of uint8: the real images, centrally cropped."""
        return torch.from_numpy(augment(self.pixels[self.rows[indices]], None, self.crop, False))


def augment(images: np.ndarray, seeds: np.ndarray | None, crop: tuple[int, int], flip: bool) -> np.ndarray:
    """Crop and mirror B C H W at random by B seeds, giving B C h w; without seeds, take the central crop."""
    (height, width), (crop_height, crop_width) = images.shape[2:], crop
    spare_y, spare_x = height - crop_height, width - crop_width
    if seeds is None:
        top, left = spare_y // 2, spare_x // 2
        return np.ascontiguousarray(images[:, :, top : top + crop_height, left : left + crop_width])
    # Each decision uses different bits of one well-mixed number.
    bits = sample_seeds(AUGMENTATION, seeds)
    if spare_y or spare_x:
        top = (bits & np.uint64(OFFSET_BITS)) % np.uint64(spare_y + 1)
        left = ((bits >> np.uint64(21)) & np.uint64(OFFSET_BITS)) % np.uint64(spare_x + 1)
        windows = np.lib.stride_tricks.sliding_window_view(images, crop, axis=(2, 3))
        images = windows[np.arange(len(images)), :, top.astype(np.intp), left.astype(np.intp)]
    if flip:
        mirrored = (bits >> np.uint64(63)).astype(bool)
        images[mirrored] = images[mirrored][..., ::-1]
    return np.ascontiguousarray(images)


def load_all(source: ImageSource, limit: int | None = None) -> tuple[Tensor, Tensor | None]:
    """The real images of a split, N C H W of uint8, and their labels (N int64, or None).

    With ``limit``, at most that many, drawn at random (the same ones in every call): files are sorted by class, so
    the first ones would all belong to one class.
    """
    indices = np.arange(len(source))
    if limit is not None and limit < len(source):
        indices = np.sort(np.argsort(sample_seeds(0, indices))[:limit])
    labels = None if source.labels is None else torch.from_numpy(source.labels[indices])
    return source.images_uint8(indices), labels
