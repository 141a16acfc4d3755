"""Bits per pixel, orientation, transparency: what image files say of themselves."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import fill, opened, picture, pixels_of, refused
from PIL import Image

from nextscale.errors import DataError, NextscaleWarning
from nextscale_image.files import read_image


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff_of_12_bits(values: np.ndarray) -> bytes:
    """Grey, uncompressed: two values in three bytes."""
    height, width = values.shape
    pairs = values.reshape(-1, 2).astype(np.uint32)
    packed = (pairs[:, 0] << 12) | pairs[:, 1]
    data = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], 1).astype(np.uint8).tobytes()
    tags = (
        (256, width),
        (257, height),
        (258, 12),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, height),
        (279, len(data)),
    )
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def read_back(folder: Path, name: str, content: bytes | Image.Image, **options) -> np.ndarray:
    """The pixels of two files of the same content."""
    folder.mkdir(exist_ok=True)
    for i in range(2):
        path = folder / f"{i}{name}"
        path.write_bytes(content) if isinstance(content, bytes) else content.save(path)
    return pixels_of(opened(folder, validation=0.5, **options).train)[0]


def test_12_bits_keep_their_high_8(tmp_path):
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    assert np.array_equal(read_back(tmp_path, ".tif", tiff_of_12_bits(values))[0], values >> 4)


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_16_bits_keep_their_high_8(tmp_path, order):
    values = (np.arange(4096).reshape(64, 64) * 16).astype(order)
    assert np.array_equal(read_back(tmp_path, ".tif", Image.fromarray(values))[0], values >> 8)


def test_pgm_of_10_bits_is_scaled_by_what_it_says(tmp_path):
    values = np.arange(1024, dtype=">u2").reshape(32, 32)
    found = read_back(tmp_path, ".pgm", b"P5 32 32 1023\n" + values.tobytes())[0]
    assert np.abs(found - values / 4).max() <= 1


@pytest.mark.parametrize(("highest", "shift"), [(200, 0), (255, 0), (256, 8), (65535, 8)])
def test_32_bits_are_8_or_16(tmp_path, highest, shift):
    values = np.linspace(0, highest, 64).astype(np.int32).reshape(8, 8)
    assert np.array_equal(read_back(tmp_path, ".tif", Image.fromarray(values))[0], values >> shift)


def test_32_bit_files_on_two_scales_are_refused(tmp_path):
    for i, highest in enumerate((40_000, 200, 50_000)):
        Image.fromarray(np.full((8, 8), highest, np.int32)).save(tmp_path / f"{i}.tif")
    refused("1.tif has values up to 255, .*0.tif higher ones", tmp_path)


def test_16_bit_files_that_are_all_dark_are_named(tmp_path, caplog):
    for i in range(3):
        Image.fromarray(np.full((8, 8), 1000 * i, np.uint16)).save(tmp_path / f"{i}.png")
    opened(tmp_path)
    assert "the 3 images of 16 bits are nearly black, because their values go up to 2000 of 65535" in caplog.text
    caplog.clear()
    Image.fromarray(np.full((8, 8), 60_000, np.uint16)).save(tmp_path / "bright.png")
    opened(tmp_path)
    assert not caplog.text


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("where", ["before", "behind", "webp", "tiff", "jpeg"])
def test_every_orientation(tmp_path, turn, where):
    picture_HW = np.zeros((8, 16), np.uint8)
    picture_HW[:4, :4] = 255
    upright, exif = Image.fromarray(picture_HW).convert("RGB"), Image.Exif()
    exif[0x0112] = turn
    # How the camera holds it: turned the other way round.
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright if turn == 1 else upright.transpose(Image.Transpose(undo[turn]))
    file = io.BytesIO()
    kind = {"before": "PNG", "behind": "PNG"}.get(where, where.upper())
    stored.save(
        file, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {})
    )
    content = file.getvalue()
    if where == "behind":
        moved = chunk(b"eXIf", exif.tobytes()[6:])
        assert moved in content
        content = content.replace(moved, b"").replace(chunk(b"IEND", b""), moved + chunk(b"IEND", b""))
    for options in ({}, {"size": (4, 8)}):
        found = read_back(tmp_path, f".{kind.lower()}", content, **options)
        height, width = found.shape[1:]
        assert (height, width) == options.get("size", (8, 16))
        assert found[:, : height // 4, : width // 8].min() > 200 and found[:, -height // 3 :].max() < 60


def test_a_transparent_colour_of_16_bits_is_white(tmp_path):
    rows = b"".join(b"\0" + struct.pack(">4H", 0x1234, 0, 0x1234, 0x4000) for _ in range(4))
    header = struct.pack(">IIBBBBB", 4, 4, 16, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"tRNS", struct.pack(">H", 0x1234))
    found = read_back(tmp_path, ".png", png + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    assert found[0, 0].tolist() == [255, 0, 255, 0x40]


def test_the_first_picture_of_an_animation_is_read(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for name in ("gif", "webp", "png"):
        folder = tmp_path / name
        folder.mkdir()
        for i in range(2):
            frames[0].save(folder / f"{i}.{name}", save_all=True, append_images=frames[1:], lossless=True)
        red, _, blue = pixels_of(opened(folder, validation=0.5).train)[0, :, 4, 4]
        assert red > 250 and blue < 5


# The file to edit, and its mask.


def masked(tmp_path: Path, mask: Image.Image, size: tuple[int, int] = (8, 8)) -> torch.Tensor:
    picture(0, 16, 16).save(tmp_path / "photo.png")
    mask.save(tmp_path / "mask.png")
    marked = read_image(tmp_path / "photo.png", 3, size, tmp_path / "mask.png")[1]
    assert marked is not None
    return marked[0]


def strokes(mode: str, background: tuple[int, ...], stroke: tuple[int, ...]) -> Image.Image:
    """The upper left quarter is painted."""
    image = Image.new(mode, (16, 16), background)
    image.paste(stroke, (0, 0, 8, 8))
    return image


@pytest.mark.parametrize(
    "mask",
    [
        strokes("RGBA", (0, 0, 0, 0), (255, 255, 255, 255)),
        strokes("RGBA", (255, 255, 255, 0), (255, 255, 255, 255)),
        strokes("RGBA", (0, 0, 0, 255), (250, 250, 250, 255)),
        strokes("LA", (0, 0), (255, 255)),
        strokes("LA", (255, 0), (230, 200)),
        strokes("RGBA", (0, 0, 0, 0), (255, 255, 255, 255)).quantize(4),
        strokes("L", (0,), (255,)),
        strokes("1", (0,), (1,)),
        Image.fromarray(np.asarray(strokes("L", (0,), (255,))).astype(np.uint16) * 257),
    ],
    ids=lambda mask: mask.mode,
)
def test_what_is_white_is_marked_and_what_is_transparent_is_not(tmp_path, mask):
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[:4, :4] = True
    assert torch.equal(masked(tmp_path, mask), expected)


@pytest.mark.parametrize("stroke", [(0, 0, 0, 255), (255, 0, 0, 255), (128, 128, 128, 255)])
def test_strokes_of_another_colour_on_a_transparent_layer_are_refused(tmp_path, stroke):
    with pytest.raises(DataError, match=r"mask\.png has transparent parts, and strokes that are not white"):
        masked(tmp_path, strokes("RGBA", (0, 0, 0, 0), stroke))


def test_a_photo_with_a_hole_is_no_mask(tmp_path):
    photo = picture(3, 16, 16, mode="RGBA")
    photo.putalpha(strokes("L", (255,), (0,)))
    with pytest.raises(DataError, match="strokes that are not white"):
        masked(tmp_path, photo)


@pytest.mark.parametrize(
    ("colour", "what"), [(255, "white everywhere: it marks all"), (1, "white nowhere: it marks nothing")]
)
def test_a_mask_that_is_the_same_everywhere_warns(tmp_path, colour, what):
    with pytest.warns(NextscaleWarning, match=what):
        masked(tmp_path, Image.new("L", (16, 16), colour))
    with pytest.warns(NextscaleWarning, match="white nowhere"):
        masked(tmp_path, Image.new("RGBA", (16, 16), (0, 0, 0, 0)))


@pytest.mark.parametrize(("height", "width"), [(200, 300), (301, 200)])
def test_a_mask_is_compared_with_the_photo_as_it_is_looked_at(tmp_path, height, width):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(0, height, width).save(tmp_path / "photo.jpg", exif=exif)
    strokes("L", (0,), (255,)).resize((height, width)).save(tmp_path / "mask.png")
    sample, marked = read_image(tmp_path / "photo.jpg", 3, (8, 8), tmp_path / "mask.png")
    assert sample.shape == (1, 3, 8, 8) and marked is not None
    with pytest.raises(DataError, match=f"mask.png is {width} x {height}; .*photo.png is {height} x {width}"):
        picture(0, height, width).save(tmp_path / "photo.png")
        read_image(tmp_path / "photo.png", 3, (8, 8), tmp_path / "mask.png")


# What tells one split from another.


def test_a_fingerprint_stays_with_data_that_moves_and_changes_with_the_data(tmp_path):
    def told(name: str, **options) -> tuple[str, str]:
        splits = opened(tmp_path / name, validation=0.5, **options)
        return splits.train.fingerprint(), splits.validation.fingerprint()

    for name in ("one", "two"):
        for label in "ab":
            fill(tmp_path / name / label, 6, height=60, width=60)
    one = told("one")
    assert one == told("two") and one[0] != one[1]
    assert told("one", labels=False)[0] != one[0] != told("one", split_seed=1)[0]
    (tmp_path / "two").rename(tmp_path / "three")
    assert told("three") == one

    for i in range(6):
        path = tmp_path / "three" / "b" / f"{i}.png"
        path.write_bytes(path.read_bytes() + b"x")
    assert all(new != old for new, old in zip(told("three"), one, strict=True))
    for path in sorted((tmp_path / "one" / "a").iterdir()):
        path.rename(path.with_name(f"renamed-{path.name}"))
    assert told("one") != one


def test_the_fingerprint_of_arrays_is_that_of_their_content(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)

    def told(x: np.ndarray, y: np.ndarray, name: str = "a.npz") -> str:
        np.savez_compressed(tmp_path / name, x=x, y=y)
        return opened(tmp_path / name).train.fingerprint()

    first = told(images, np.arange(12) % 2)
    assert first == told(images, np.arange(12) % 2, "b.npz")
    assert first != told(images, (np.arange(12) + 1) % 2)
    changed = images.copy()
    changed[:, 3, 2, 1] ^= 1
    assert first != told(changed, np.arange(12) % 2)
