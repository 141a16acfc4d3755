"""Pictures of a run inside its report: as data, so that the report needs no other file."""

from __future__ import annotations

import base64
import io
import warnings
from html import escape
from pathlib import Path

from PIL import Image

FORMATS = ("PNG", "GIF", "JPEG", "WEBP")
SUFFIXES = (".gif", ".png", ".jpg", ".jpeg", ".webp")
"""What a browser shows, best first: where a modality writes both, moving pictures say more than their sheet."""
MOST_BYTES = 3 << 20
"""A larger file is embedded in a smaller form."""


def find_picture(folder: Path, stem: str) -> Path | None:
    """The best picture of this name, without its suffix."""
    return next((path for suffix in SUFFIXES if (path := folder / f"{stem}{suffix}").is_file()), None)


def embedded(path: Path, caption: str, side: int, still: bool = False) -> str:
    """A figure in HTML: the picture, no side longer than ``side`` pixels, and its caption. ``still`` takes the first
    frame of a moving picture. A file that cannot be shown is named instead."""
    try:
        data, kind, (width, height) = _read(path, side, still)
    except Exception as error:  # whatever a damaged file makes Pillow raise
        reason = f"{path.name} cannot be shown ({type(error).__name__})"
        return f"<figure><p>{escape(reason)}</p><figcaption>{escape(caption)}</figcaption></figure>"
    source = f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode()}"
    return (
        f'<figure><img src="{source}" width="{width}" height="{height}" alt="{escape(f"{caption}: {path.name}")}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _read(path: Path, side: int, still: bool) -> tuple[bytes, str, tuple[int, int]]:
    """The bytes of a picture, their format, and its size."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=FORMATS) as picture:
            moving = getattr(picture, "is_animated", False)
            picture.load()
            fits = max(picture.size) <= side or (moving and not still)
            if fits and not (moving and still) and path.stat().st_size <= MOST_BYTES:
                return path.read_bytes(), str(picture.format), picture.size
            grey = picture.mode in ("1", "L", "LA", "I", "I;16")
            frame = picture.convert("L" if grey else "RGB")
    small = max(frame.size) <= side
    frame.thumbnail((side, side), Image.Resampling.LANCZOS)
    file, kind = io.BytesIO(), "PNG" if small or max(frame.size) <= 640 else "JPEG"
    frame.save(file, kind, optimize=True, **({"quality": 88} if kind == "JPEG" else {}))
    return file.getvalue(), kind, frame.size
