"""Odd inputs: each is read rightly or refused in one line, with little memory."""

from __future__ import annotations

import gzip
import io
import os
import re
import resource
import struct
import sys
import tracemalloc
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from image_files import fill, opened, picture, pixels_of
from PIL import Image

from nextscale.errors import NextscaleError
from nextscale_image.files import read_image

MEMORY = 500e6


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def array_header(shape: str, dtype: str = "|u1", version: int = 1) -> bytes:
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY" + bytes((version, 0)) + struct.pack("<H" if version == 1 else "<I", len(text)) + text


def zipped(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "."), content)
    return file.getvalue()


def idx(*shape: int, data: bytes = b"", kind: int = 8) -> bytes:
    return bytes((0, 0, kind, len(shape))) + struct.pack(f">{len(shape)}I", *shape) + data


PHOTO = saved(picture(0, 24, 24), "JPEG")
PIXELS = io.BytesIO()
np.save(PIXELS, np.zeros((6, 4, 4, 3), np.uint8))
ZEROS = bytes(2**24)

FILES: dict[str, tuple[str, bytes]] = {
    "text": ("a.png", b"hello, I am no picture"),
    "empty": ("a.jpg", b""),
    "half a JPEG": ("a.jpg", PHOTO[: len(PHOTO) // 2]),
    "a JPEG's start": ("a.jpg", PHOTO[:4]),
    "PostScript": ("a.tif", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{} loop\n"),
    "a zip called png": ("a.png", zipped(a=b"x")),
    "a pickle called bmp": ("a.bmp", b"\x80\x04cos\nsystem\n."),
    "half a PNG": ("a.png", saved(picture(0), "PNG")[:200]),
    "half a GIF": ("a.gif", saved(picture(0), "GIF")[:300]),
    "half a BMP": ("a.bmp", saved(picture(0), "BMP")[:200]),
    "half a TIFF": ("a.tif", saved(picture(0), "TIFF")[:200]),
    "half a WebP": ("a.webp", saved(picture(0, 64, 64), "WEBP")[:200]),
    "half a PPM": ("a.ppm", saved(picture(0), "PPM")[:200]),
    "half a TGA": ("a.tga", saved(picture(0), "TGA")[:200]),
    "a PNG with a wrong checksum": ("a.png", saved(picture(0), "PNG")[:40] + b"\0" + saved(picture(0), "PNG")[41:]),
    "a PNG without pixels": ("a.png", png(0, 4, 8, 0, b"")),
    "a PNG of 10^10 pixels": ("a.png", png(10**5, 10**5, 1, 0, b"")),
    "a PNG of 2^62 pixels": ("a.png", png(2**31 - 1, 2**31 - 1, 16, 6, b"")),
    "a PNG bomb of text": ("a.png", png(4, 4, 8, 0, bytes(20), chunk(b"zTXt", b"a\0\0" + zlib.compress(ZEROS * 8)))),
    "a PNG bomb of colour": ("a.png", png(4, 4, 8, 0, bytes(20), chunk(b"iCCP", b"a\0\0" + zlib.compress(ZEROS * 8)))),
    "a PNG of 68 million black pixels": ("a.png", png(2**14, 2**12 + 1, 1, 0, bytes((2**11 + 1) * (2**12 + 1)))),
    "a BMP of 10^12 pixels": (
        "a.bmp",
        b"BM" + bytes(12) + struct.pack("<IiiHHI", 40, 10**6, 10**6, 1, 24, 0) + bytes(20),
    ),
    "a GIF of 65535 a side": ("a.gif", b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\x02D\x01\0;"),
    "a PPM of 10^18 pixels": ("a.ppm", b"P6 1000000000 1000000000 255\n"),
    "a PPM without sides": ("a.ppm", b"P6 0 0 255\n"),
    "a PPM of letters": ("a.pgm", b"P5 a b c\n"),
    "a TIFF of floats": ("a.tif", saved(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF")),
    "a TIFF below 0": ("a.tif", saved(Image.fromarray(np.full((4, 4), -9, np.int32)), "TIFF")),
    "a TIFF beyond 16 bits": ("a.tif", saved(Image.fromarray(np.full((4, 4), 10**8, np.int32)), "TIFF")),
    "a name with a line break": ("a\nb.png", b"nothing"),
    "a name that is not UTF-8": (os.fsdecode(b"\xff\xfe.png"), b"nothing"),
    "a long name": ("n" * 250 + ".png", b"nothing"),
    "only text files": ("a.txt", b"nothing"),
    "no .npz": ("a.npz", b"PK nothing"),
    ".npz without arrays": ("a.npz", zipped()),
    ".npz of a text": ("a.npz", zipped(x=b"text")),
    ".npz member that is no array": ("a.npz", zipped(x__npy=b"no array at all")),
    ".npz of a pickle": ("a.npz", zipped(x__npy=array_header("(3,)", "|O") + b"\x80\x04cos\nsystem\n.")),
    ".npz of 10 PB": ("a.npz", zipped(x__npy=array_header(f"({10**16 // 12}, 2, 2, 3)"))),
    ".npz of 2^64 sides": ("a.npz", zipped(x__npy=array_header(f"({2**64}, {2**64}, 2, 3)"))),
    ".npz below 0": ("a.npz", zipped(x__npy=array_header("(-4, 2, 2, 3)"))),
    ".npz of items of 2 GB": ("a.npz", zipped(x__npy=array_header("(4, 2, 2)", "|S2000000000"))),
    ".npz header that calls": ("a.npz", zipped(x__npy=array_header("__import__('os').system('x')"))),
    ".npz header that nests": ("a.npz", zipped(x__npy=array_header("(" * 50 + ")" * 50))),
    ".npz version 9": ("a.npz", zipped(x__npy=array_header("(3, 2, 2)", version=9))),
    ".npz that is cut": ("a.npz", zipped(x__npy=PIXELS.getvalue())[:-30]),
    ".npz array that is cut": ("a.npz", zipped(x__npy=PIXELS.getvalue()[:-30])),
    ".npz bomb": ("a.npz", zipped(x__npy=array_header("(300, 1024, 1024)") + ZEROS * 19)),
    ".npz of one number": ("a.npz", zipped(x__npy=array_header("()") + b"x")),
    ".npz of sides 0": ("a.npz", zipped(x__npy=array_header("(6, 0, 5, 3)"))),
    ".npz of channels 0": ("a.npz", zipped(x__npy=array_header("(6, 5, 5, 0)"))),
    ".npz of no images": ("a.npz", zipped(x__npy=array_header("(0, 5, 5, 3)"))),
    ".npz of truth": ("a.npz", zipped(x__npy=array_header("(4, 1, 1)", "|b1") + b"\1\0\1\0")),
    ".npz of dates": ("a.npz", zipped(x__npy=array_header("(2, 1, 1)", "<M8[s]") + bytes(16))),
    ".npz of records": ("a.npz", zipped(x__npy=array_header("(2, 1, 1)", "<c8") + bytes(16))),
    ".npy": ("a.npy", PIXELS.getvalue()),
    "IDX of 10^19 bytes": ("train-images-idx3-ubyte", idx(2**32 - 1, 2**16, 2**16)),
    "IDX of sides 0": ("train-images-idx3-ubyte", idx(9, 0, 0)),
    "IDX of floats": ("train-images-idx3-ubyte", idx(1, 1, 1, data=b"1234", kind=13)),
    "IDX of labels": ("train-images-idx3-ubyte", idx(4, data=b"1234")),
    "IDX that is cut": ("train-images-idx3-ubyte", idx(4, 4, 4, data=b"1234")),
    "gz that is none": ("train-images-idx3-ubyte.gz", b"nothing"),
    "gz that is cut": ("train-images-idx3-ubyte.gz", gzip.compress(idx(4, 4, 4, data=bytes(64)))[:-9]),
    "gz bomb without a header": ("train-images-idx3-ubyte.gz", gzip.compress(ZEROS * 20, 1)),
    "gz bomb behind a header": ("train-images-idx3-ubyte.gz", gzip.compress(idx(4, 4, 4, data=ZEROS * 20), 1)),
    "gz bomb of a header": ("train-images-idx3-ubyte.gz", gzip.compress(idx(300, 1024, 1024, data=ZEROS * 19), 6)),
    "half a saved data set": ("state.json", b"{"),
}
"""By name: the file that lies alone in a folder, which is not readable as images."""


def source_of(folder: Path, name: str) -> Path:
    """What a user would name: the folder, or the file with all images in it."""
    file, content = FILES[name]
    (folder / file).write_bytes(content)
    return folder / file if file.startswith("a.np") else folder


def refusal(read: Callable[[], object]) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's and numpy's own
        with pytest.raises(NextscaleError) as error:
            read()
    message = str(error.value)
    assert "\n" not in message and 20 < len(message) < 700 and message.isprintable()
    return message


@pytest.mark.parametrize("name", FILES)
def test_odd_files_are_refused_in_one_line(tmp_path, name):
    source = source_of(tmp_path, name)
    message = refusal(lambda: opened(source, size=8, validation=0.5))
    assert str(tmp_path)[:60] in message


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_odd_files_take_little_memory(tmp_path, name):
    source = source_of(tmp_path, name)
    refusal(lambda: opened(tmp_path / "absent"))  # imports what is needed
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    try:
        refusal(lambda: opened(source, size=8, validation=0.5))
        _, highest = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)  # Pillow's memory is not traced
    assert max(highest, grown) < MEMORY


def test_odd_images_among_sound_ones_are_skipped_by_name(tmp_path, caplog):
    fill(tmp_path, 6)
    names = [name for name, (file, _) in FILES.items() if Path(file).suffix in (".png", ".jpg", ".tif", ".gif", ".bmp")]
    for number, name in enumerate(names):
        file, content = FILES[name]
        (tmp_path / f"odd{number}{Path(file).suffix}").write_bytes(content)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        splits = opened(tmp_path, size=8, skip_unreadable=True, validation=0.5)
    assert len(splits.train) + len(splits.validation) == 6
    assert f"skipped {len(names) + 2} of {len(names) + 8} images as unreadable" in caplog.text


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("/dev/null", "/dev/null is a device, not a file"),
        ("x" * 5000, "no file or folder has that name"),
        ("x/" * 2500 + "a.npz", "does not exist"),
        ("a\0b.npz", r"data source a\\x00b.npz does not exist"),
        ("~nobody-has-this-name/x", "does not exist"),
        ("", "unknown data source ''"),
        ("hf:", "needs the data set's name"),
        ("hf:../secret", "needs the data set's name"),
        ("hf:a/b/c", "needs the data set's name"),
        ("hf:a b", "needs the data set's name"),
        ("hf:a:b:c", "needs the data set's name"),
        (f"hf:{'y' * 5000}/", "needs the data set's name"),
    ],
)
def test_odd_sources(source, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", ModuleType("datasets"))
    message = refusal(lambda: opened(source))
    assert re.search(match, message), message


def test_named_pipes_are_never_opened(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    assert "a.png is a named pipe, not a file" in refusal(lambda: opened(tmp_path))
    assert "a.png is a named pipe, not a file" in refusal(lambda: read_image(tmp_path / "a.png", 3, (8, 8)))
    os.mkfifo(tmp_path / "b.npz")
    assert "b.npz is a named pipe, not a file" in refusal(lambda: opened(tmp_path / "b.npz"))
    picture(0).save(tmp_path / "c.png")
    assert "is a device, not a file" in refusal(lambda: read_image(tmp_path / "c.png", 3, (8, 8), Path("/dev/zero")))


def test_limits_are_settings(tmp_path):
    fill(tmp_path / "png", 2, height=20, width=20)
    message = refusal(lambda: opened(tmp_path / "png", limits={"pixels": 399}))
    assert "0.png (its 20 x 20 = 400 pixels are more than data.limits.pixels=399)" in message
    assert opened(tmp_path / "png", limits={"pixels": 400}, validation=0.5).description["height"] == 20
    np.savez(tmp_path / "a.npz", x=np.zeros((6, 4, 4), np.uint8), y=np.arange(6))
    assert "data.limits.array_bytes=95" in refusal(lambda: opened(tmp_path / "a.npz", limits={"array_bytes": 95}))
    assert "data.limits.classes=5" in refusal(lambda: opened(tmp_path / "a.npz", limits={"classes": 5}))
    np.savez(tmp_path / "a.npz", x=np.zeros((6, 4, 4), np.uint8), y=np.arange(6) % 3)
    assert len(opened(tmp_path / "a.npz", limits={"classes": 3, "array_bytes": 96}).train) == 5
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(4, 4, 4, data=bytes(64)))
    path = tmp_path / "train-images-idx3-ubyte"
    assert "data.limits.array_bytes=63" in refusal(lambda: opened(path, limits={"array_bytes": 63}))


def test_a_large_photo_is_read_where_it_can_be_shrunk(tmp_path):
    for i in range(2):
        picture(i, 40, 50).resize((500, 400)).save(tmp_path / f"{i}.jpg")
    limits = {"pixels": 110_000}
    assert pixels_of(opened(tmp_path, size=16, limits=limits, validation=0.5).train).shape == (1, 3, 16, 16)
    assert "400 x 500 = 200,000 pixels" in refusal(lambda: opened(tmp_path, size=300, limits=limits))
