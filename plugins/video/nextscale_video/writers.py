"""Write samples to files: GIF and mp4 clips, arrays, contact sheets and film strips."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from fractions import Fraction
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from nextscale.plugin import (
    LEGIBLE_PIXELS,
    NextscaleError,
    Samples,
    film_strip,
    fold,
    growing_npz,
    replacing,
    tile,
    to_uint8,
    write_png,
)

RATE = 8.0
"""Frames per second of written clips if their data have no rate. Low, so that motion is visible in short clips."""
SHORTEST = 2
"""Hundredths of a second that a frame of a GIF is shown at least. Viewers show shorter ones for a tenth of a second."""
FILM_SAMPLES, FILM_FRAMES = 2, 4
"""Clips in a film strip, and frames of each, evenly spread."""
SHEET_COLUMNS, SHEET_ROWS = 17, 16
"""Most frames per clip on a contact sheet, evenly spread, and most clips."""


def write_samples(
    samples: Tensor,
    folder: Path,
    fps: float = RATE,
    first: int = 0,
    metadata: Sequence[Mapping[str, str]] | None = None,
) -> list[Path]:
    """Write B C T H W in [-1, 1] as ``000000.gif`` … in ``folder``, one per sample, numbered from ``first`` on; with
    PyAV, also as mp4.

    Args:
        fps: frames per second. GIFs cannot have more than 50.
        metadata: for each sample, texts that its files carry (``write_clip``).
    """
    told = metadata or [None] * len(samples)
    return [
        write_clip([sample[None]], Path(folder) / f"{first + i:06d}.gif", fps, texts)
        for i, (sample, texts) in enumerate(zip(samples, told, strict=True))
    ]


def write_clip(
    pieces: Iterable[Tensor], path: Path, fps: float = RATE, metadata: Mapping[str, str] | None = None
) -> Path:
    """Write one clip from its pieces along time, 1 C T H W each, as they arrive; with PyAV, also as mp4.

    Args:
        metadata: texts by name. Both files carry them as one comment, a JSON object.

    Raises:
        NextscaleError: there are no frames.
        TrainingError: the disk is full, or the folder is not writable.
    """
    frames = (frame for piece in pieces for frame in to_uint8(fold(piece)))
    first = next(frames, None)
    if first is None:
        raise NextscaleError("no frames to write")
    enlarge = max(1, -(-LEGIBLE_PIXELS // min(first.shape[:2])))
    shown = (frame.repeat(enlarge, 0).repeat(enlarge, 1) for frame in chain([first], frames))
    comment = json.dumps(dict(metadata), ensure_ascii=False) if metadata else ""
    with ExitStack() as files:
        if find_spec("av") is not None:
            shown = _mp4(shown, files.enter_context(replacing(path.with_suffix(".mp4"))), fps, comment)
        partial = files.enter_context(replacing(path))
        _save_gif(map(_picture, shown), partial, fps, comment)
    return path


def write_npz(batches: Iterable[Samples], path: Path, fps: float | None = None, classes: Sequence[str] = ()) -> Path:
    """Write all clips of several batches without loss, in memory that does not grow with their number.

    ``data=`` reads ``video`` (N T H W C of uint8), ``fps`` where there is a rate, and ``label`` (N) with ``classes``
    where clips were drawn of classes. ``metadata`` is a JSON object of the texts that all clips have in common.
    """
    with growing_npz(path) as file:
        for batch in batches:
            clips_NCTHW = batch.samples
            frames = to_uint8(clips_NCTHW.transpose(1, 2).flatten(0, 1))
            file.append({"video": frames.reshape(len(clips_NCTHW), -1, *frames.shape[1:])})
            if "label" in batch.conditions:
                file.append({"label": batch.conditions["label"].cpu().numpy()})
                file.put({"classes": np.array(classes)} if classes else {})
            file.note(batch.metadata)
        file.put({} if fps is None else {"fps": np.array(fps)})
    return path


def _picture(frame_HWC: np.ndarray) -> Image.Image:
    return Image.fromarray(frame_HWC[..., 0] if frame_HWC.shape[-1] == 1 else frame_HWC)


def _save_gif(pictures: Iterable[Image.Image], path: Path, fps: float, comment: str = "") -> None:
    """GIFs count in hundredths of a second: rounded frame ends keep the whole in time."""

    def timed() -> Iterator[Image.Image]:
        for number, picture in enumerate(pictures):
            begin, end = round(100 * number / fps), round(100 * (number + 1) / fps)
            picture.info["duration"] = 10 * max(SHORTEST, end - begin)
            yield picture

    rest = timed()
    told = {"comment": comment.encode()} if comment else {}
    next(rest).save(path, "GIF", save_all=True, append_images=rest, loop=0, **told)


def _mp4(frames: Iterable[np.ndarray], path: Path, fps: float, comment: str) -> Iterable[np.ndarray]:
    """Encode frames as they pass through. H.264's chroma needs even sides, so an odd side loses a row or column."""
    import av

    with av.open(str(path), "w", format="mp4") as container:
        if comment:
            container.metadata["comment"] = comment
        stream = None
        for frame in frames:
            height, width = (side - side % 2 for side in frame.shape[:2])
            colour = np.ascontiguousarray(np.broadcast_to(frame[:height, :width], (height, width, 3)))
            if stream is None:
                stream = container.add_stream(
                    "libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": "12"}
                )
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(colour, format="rgb24")))
            yield frame
        if stream is not None:
            container.mux(stream.encode())


def write_grid(
    samples: Tensor,
    path: Path,
    columns: int | None = None,
    fps: float = RATE,
    captions: Sequence[str] | None = None,
) -> Path:
    """Write a contact sheet (PNG) of B C T H W: one row per sample, its frames from left to right, its caption below
    the first. It shows the first ``SHEET_ROWS`` samples: more would not fit on a screen. Also write a GIF of the same
    name that shows all samples at once, ``columns`` per row (about square if None)."""
    number, frames = len(samples), samples.shape[2]
    shown = _spread(frames, SHEET_COLUMNS)
    rest = [""] * (len(shown) - 1)
    first = None if captions is None else [text for caption in captions[:SHEET_ROWS] for text in [caption, *rest]]
    sheet = tile(to_uint8(fold(samples[:SHEET_ROWS, :, shown])), len(shown), first)
    columns = columns or int(np.ceil(np.sqrt(number)))
    pictures = [_picture(tile(to_uint8(samples[:, :, t]), columns, captions)) for t in range(frames)]
    path = Path(path)
    gif = path.with_suffix(".gif")
    write_png(sheet, path)
    with replacing(gif) as partial:
        _save_gif(pictures, partial, fps)
    return path


def write_film(steps: Sequence[Tensor], path: Path, captions: Sequence[str] | None = None) -> Path:
    """Write a film strip of the first samples (``film_strip``). A row is one frame: those of a sample, evenly spread,
    are below each other. ``steps[k]`` is B C T H W."""
    frames = _spread(steps[0].shape[2], FILM_FRAMES) if steps else []
    return write_png(
        film_strip([to_uint8(fold(step[:FILM_SAMPLES, :, frames])) for step in steps], captions), Path(path)
    )


def _spread(frames: int, most: int) -> np.ndarray:
    """Numbers of up to ``most`` evenly spread frames, the first and the last among them."""
    return np.unique(np.linspace(0, frames - 1, min(frames, most)).round().astype(int))
