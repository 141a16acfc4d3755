"""From picture files to uint8 arrays: what every modality that reads pictures, or frames, shares.

Of an animated file (GIF, WebP, APNG) and of a file with several pages (TIFF, MPO), the first picture is read.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from nextscale.config.sections import LimitsConfig
from nextscale.toolkit.reading import check_file

GREY_MODES = frozenset(("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F"))
IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif", ".tga"),
    )
)
FORMATS = (
    *("JPEG", "PNG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF", "TGA"),
    *("ICO", "PCX", "SGI"),
)
"""Formats that are read. Pillow knows more; some run other programs (EPS), some take any text for a picture (XBM)."""
ORIENTATION, BITS_PER_SAMPLE = 0x0112, 0x0102
EXIF_PLACES = frozenset(("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"))
OPENING = threading.Lock()


def open_image(source: Path | str | IO[bytes]) -> Image.Image:
    """Open a picture and read its header; ``decode_image`` reads the pixels, within limits.

    Raises:
        DataError: ``source`` is a path, and no regular file.
        Exception: whatever Pillow raises where the file is damaged (use ``reading``).
    """
    if isinstance(source, str | Path):
        source = check_file(source)
    try:
        # Pillow's limit of pixels belongs to the process and has no setting here; decode_image has one of its own.
        with OPENING:
            theirs, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                return Image.open(source, formats=FORMATS)
            finally:
                Image.MAX_IMAGE_PIXELS = theirs
    except UnidentifiedImageError:
        raise ValueError("it is damaged, or no picture in a known format") from None


def is_grey(image: Image.Image) -> bool:
    """Whether the file holds no colour, going by its pixel format."""
    return image.mode in GREY_MODES


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 where there is none.

    Parsed only where there is EXIF: it takes as long as all the rest. In PNG files EXIF may follow the pixels, so they
    are decoded first. Pillow itself turns TIFF files.
    """
    if image.format == "TIFF":
        return 1
    if image.format == "PNG" and "exif" not in image.info:
        image.load()
    if EXIF_PLACES.isdisjoint(image.info):
        return 1
    try:
        turn = image.getexif().get(ORIENTATION, 1)
    except Exception:  # the picture can be looked at all the same
        return 1
    return turn if turn in range(1, 9) else 1


def upright_size(image: Image.Image, limits: LimitsConfig | None = None) -> tuple[int, int]:
    """Height and width, as the image is to be looked at. Read it before ``decode_image``, which may reduce the image.

    Raises:
        ValueError: more pixels than ``limits``.
        Exception: whatever Pillow raises where the file is damaged (use ``reading``).
    """
    check_pixels(image, limits or LimitsConfig(), may_shrink=True)
    width, height = image.size
    # Squares are the same either way, and reading the orientation may mean to decode.
    return (width, height) if width != height and orientation(image) >= 5 else (height, width)


def decode_image(
    image: Image.Image,
    channels: int,
    size: tuple[int, int] | None = None,
    limits: LimitsConfig | None = None,
    background: str = "white",
) -> np.ndarray:
    """``channels`` H W of uint8: upright, on a background where transparent; 8 bits as in ``in_mode``.

    ``image`` may be smaller afterwards: a JPEG file is decoded at a fraction of its size where that suffices.

    Args:
        size: height and width to bring it to: the short side is resized (bicubic, antialiased), the rest cropped. None
            keeps the image's own.
        background: the colour behind transparent parts.

    Raises:
        ValueError: more pixels than ``limits``.
        Exception: whatever Pillow raises where the file is damaged (use ``reading``).
    """
    limits = limits or LimitsConfig()
    check_pixels(image, limits, may_shrink=size is not None)
    turn = orientation(image)
    if size is not None and image.format == "JPEG":
        # libjpeg decodes large photos at a fraction of their size; twice the target is left to the resize.
        width, height = size[::-1] if turn < 5 else size
        if image.width >= 4 * width and image.height >= 4 * height:
            image.draft(None, (2 * width, 2 * height))  # pyright: ignore[reportArgumentType]
    check_pixels(image, limits)
    upright = ImageOps.exif_transpose(image) if turn != 1 else image
    flat = in_mode(upright, "L" if channels == 1 else "RGB", background)
    if size is not None and flat.size != size[::-1]:
        flat = ImageOps.fit(flat, (size[1], size[0]), Image.Resampling.BICUBIC)
    pixels = np.asarray(flat)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def check_pixels(image: Image.Image, limits: LimitsConfig, may_shrink: bool = False) -> None:
    """Refuse a picture with too many pixels before memory is taken for them.

    Args:
        may_shrink: a JPEG file may have twice as many, because it may be decoded at a fraction of its size.

    Raises:
        ValueError: too many.
    """
    most = limits.pixels * (2 if may_shrink and image.format == "JPEG" else 1)
    if image.width * image.height > most:
        raise ValueError(
            f"its {image.height} x {image.width} = {image.width * image.height:,} pixels are more than "
            f"data.limits.pixels={limits.pixels:,}"
        )


def in_mode(image: Image.Image, mode: str, background: str = "white") -> Image.Image:
    """Grey (L) or colour (RGB) of 8 bits, transparent parts on the background.

    Deeper grey keeps the highest 8 of the bits that the file says it has (``grey_bits``).

    Raises:
        ValueError: floats, or integers without a scale.
    """
    clear = image.info.get("transparency")
    if image.mode == "F":
        raise ValueError("32-bit float pixels; convert it to 8 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        grey = (values >> (grey_bits(image) - 8)).astype(np.uint8)
        if isinstance(clear, int):
            grey[values == clear] = 255 if background == "white" else 0
        image = Image.fromarray(grey)
    elif image.has_transparency_data:
        if isinstance(clear, tuple) and max(clear) > 0xFF:  # of 16 bits, of which Pillow keeps the pixels' high bytes
            image.info["transparency"] = tuple(value >> 8 for value in clear)
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    if image.mode != mode:
        return image.convert(mode)
    image.load()
    return image


def grey_bits(image: Image.Image) -> int:
    """On how many bits the values of integer grey (modes I and I;16) lie: white is 2^bits - 1.

    16-bit files have 16, TIFF files what they say (12, say). Pillow brings PGM files to 16. Files of 32 bits do not say
    how many of them they use: 8 if all values fit in 8, else 16.

    Raises:
        ValueError: values below 0, or beyond 16 bits.
    """
    if image.mode != "I":
        said = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (16,))[0]
        return said if 8 < said <= 16 else 16
    if image.format in ("PNG", "PPM"):
        return 16
    lowest, highest = image.getextrema()
    if not 0 <= lowest <= highest <= 0xFFFF:  # pyright: ignore[reportOperatorIssue]
        raise ValueError(
            f"32-bit integers from {lowest:,} to {highest:,}, of which 0 to 65,535 fit; convert it to 8 bits"
        )
    return 8 if highest <= 0xFF else 16  # pyright: ignore[reportOperatorIssue]
