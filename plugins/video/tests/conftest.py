"""Small clips, and video files like those of users."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))  # helpers shared by the tests of this folder


def gliding(frames: int, height: int = 16, width: int = 16, channels: int = 3, seed: int = 0) -> np.ndarray:
    """T H W C of uint8: a smooth random picture that moves by one pixel per frame."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    wide = np.asarray(Image.fromarray(coarse).resize((width + frames, height), Image.Resampling.BICUBIC))
    return np.stack([wide[:, t : t + width, :channels] for t in range(frames)])


@pytest.fixture(scope="session")
def glide() -> Callable[..., np.ndarray]:
    return gliding


@pytest.fixture(scope="session")
def write_video() -> Callable[..., Path]:
    """``write_video(path, frames T H W 3)`` writes a video of the type of the path's suffix, with PyAV."""
    av = pytest.importorskip("av", reason="needs PyAV (extra: video)")

    def write(path: Path, frames: np.ndarray) -> Path:
        codec = {".mp4": "libx264", ".avi": "mpeg4", ".webm": "libvpx", ".gif": "gif"}[path.suffix]
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=10)
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "rgb8" if path.suffix == ".gif" else "yuv420p"
            for frame in frames:
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
                container.mux(stream.encode(picture.reformat(format=stream.pix_fmt)))
            container.mux(stream.encode())
        return path

    return write
