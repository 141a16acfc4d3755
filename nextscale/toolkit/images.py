"""From picture files to uint8 arrays: what every modality that reads pictures, or frames, shares."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

GREY_MODES = frozenset(("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F"))
IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif", ".tga"),
    )
)
ORIENTATION = 0x0112


def is_grey(image: Image.Image) -> bool:
    """Whether the file holds no colour, going by its pixel format."""
    return image.mode in GREY_MODES


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 where there is none. Parsed only where there is EXIF: it takes as long as all the rest."""
    return image.getexif().get(ORIENTATION, 1) if "exif" in image.info else 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width, as the image is to be looked at."""
    width, height = image.size
    return (width, height) if orientation(image) >= 5 else (height, width)


def decode_image(image: Image.Image, channels: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """``channels`` H W of uint8: upright, on white where transparent.

    Args:
        size: height and width to bring it to: the short side is resized (bicubic, antialiased), the rest cropped. None
            keeps the image's own.
    """
    turn = orientation(image)
    if size is not None and image.format == "JPEG":
        # libjpeg decodes large photos at a fraction of their size; twice the target is left to the resize.
        width, height = size[::-1] if turn < 5 else size
        if image.width >= 4 * width and image.height >= 4 * height:
            image.draft(None, (2 * width, 2 * height))  # pyright: ignore[reportArgumentType]
    upright = ImageOps.exif_transpose(image) if turn != 1 else image
    flat = in_mode(upright, "L" if channels == 1 else "RGB")
    if size is not None and flat.size != size[::-1]:
        flat = ImageOps.fit(flat, size[::-1], Image.Resampling.BICUBIC)
    pixels = np.asarray(flat)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """Grey (L) or colour (RGB), transparent parts on white, 16-bit grey by its high byte."""
    if image.mode == "F":
        raise ValueError("32-bit float pixels; convert it to 8 bits")
    if image.mode.startswith("I"):
        high = np.clip(np.asarray(image).astype(np.int64), 0, 0xFFFF) >> 8
        image = Image.fromarray(high.astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode != mode:
        return image.convert(mode)
    image.load()
    return image
