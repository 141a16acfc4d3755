"""Captions in pictures: text of a given width, wrapped, as an array of pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nextscale.captions import SEPARATOR, drawable

LINES = 3
"""A caption with more lines is cut."""
SMALLEST, LARGEST = 12, 20
"""Pixels: sizes of the font, which grows with the width."""
MARGIN = 2
PAPER, INK = 255, 0


def lettered(captions: Sequence[str], width: int) -> np.ndarray:
    """B H W 1 of uint8: each caption in the middle of a strip of ``width`` pixels, black on white. All strips have the
    height that the caption with most lines needs."""
    font = ImageFont.load_default(size=min(LARGEST, max(SMALLEST, width // 8)))
    line_height = round(font.size * 1.25) if isinstance(font, ImageFont.FreeTypeFont) else SMALLEST + MARGIN
    wrapped = [_wrap(drawable(caption), width - 2, font) for caption in captions]
    height = max(map(len, wrapped), default=0) * line_height + 2 * MARGIN
    strips = []
    for lines in wrapped:
        strip = Image.new("L", (width, height), PAPER)
        draw = ImageDraw.Draw(strip)
        for number, line in enumerate(lines):
            left = max(0, round(width - font.getlength(line)) // 2)  # whole pixels: letters stay sharp
            draw.text((left, MARGIN + number * line_height), line, fill=INK, font=font)
        strips.append(np.asarray(strip))
    return np.stack(strips)[..., None]


def _wrap(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Lines of at most ``width`` pixels, broken at separators, else between words; what is too long ends in "…"."""

    def fits(line: str) -> bool:
        return font.getlength(line) <= width

    def cut(line: str) -> str:
        while line and not fits(f"{line}…"):
            line = line[:-1]
        return f"{line.rstrip()}…"

    def pieces() -> Iterator[tuple[str, str]]:
        """Each piece that must stay on one line, and what joins it to the piece before."""
        for part in text.split(SEPARATOR):
            words = [part] if fits(part) else part.split(" ")
            yield SEPARATOR, words[0]
            yield from ((" ", word) for word in words[1:])

    lines: list[str] = []
    for joint, piece in pieces():
        if lines and fits(f"{lines[-1]}{joint}{piece}"):
            lines[-1] += joint + piece
        else:
            lines.append(piece)
    shown = [line if fits(line) else cut(line) for line in lines[:LINES]]
    if len(lines) > LINES and not shown[-1].endswith("…"):
        shown[-1] = cut(shown[-1])
    return shown
