"""Odd inputs of every reader: each is one line, and never a foreign exception."""

from __future__ import annotations

import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from video_files import levels, turn, write

from nextscale.errors import DataError, NextscaleError, NextscaleWarning
from nextscale_video.config import VideoDataConfig
from nextscale_video.data import open_videos
from nextscale_video.frames import read
from nextscale_video.readers import read_one

ZEROS = np.zeros((4, 5, 6, 6), np.uint8)


def opened(source: Path | str, **options: Any):
    return open_videos(VideoDataConfig.model_validate({"source": str(source), "frames": 3, **options}))


def refused(source: Path | str, **options: Any) -> str:
    with pytest.raises(NextscaleError) as error, warnings.catch_warnings():
        warnings.simplefilter("ignore", NextscaleWarning)
        opened(source, **options)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700
    return str(error.value)


ARRAYS: dict[str, dict[str, Any]] = {
    "other names": {"frames": ZEROS},
    "no numbers": {"video": np.array("text")},
    "floats": {"video": ZEROS / 2},
    "16 bits": {"video": ZEROS.astype(np.uint16)},
    "objects": {"video": np.array([None, {}], object)},
    "objects beside": {"video": ZEROS, "label": np.array([None] * 4, object)},
    "one video": {"video": ZEROS[0]},
    "two channels": {"video": np.zeros((4, 5, 6, 6, 2), np.uint8)},
    "channels first": {"video": np.zeros((4, 5, 3, 6, 6), np.uint8)},
    "six axes": {"video": np.zeros((1, 4, 5, 6, 6, 3), np.uint8)},
    "no videos": {"video": ZEROS[:0]},
    "no frames": {"video": ZEROS[:, :0]},
    "no rows": {"video": ZEROS[:, :, :0]},
    "no columns": {"video": ZEROS[:, :, :, :0]},
    "no channels": {"video": np.zeros((4, 5, 6, 6, 0), np.uint8)},
    "labels of two axes": {"video": ZEROS, "label": np.zeros((4, 1), int)},
    "labels of floats": {"video": ZEROS, "label": np.zeros(4)},
    "too few labels": {"video": ZEROS, "label": np.zeros(3, int)},
    "no labels": {"video": ZEROS, "label": np.zeros(0, int)},
    "negative with names": {"video": ZEROS, "label": np.full(4, -1), "classes": np.array(["a"])},
    "names of two axes": {"video": ZEROS, "label": np.zeros(4, int), "classes": np.array([["a"]])},
    "no names": {"video": ZEROS, "label": np.zeros(4, int), "classes": np.array([], str)},
    "structured": {"video": np.zeros((4, 5, 6, 6), [("a", np.uint8)])},
    "dates": {"video": np.zeros((4, 5, 6, 6), "datetime64[s]")},
    "one of each class": {"video": ZEROS, "label": np.arange(4), "extra": np.array([{}], object)},
}


@pytest.mark.parametrize("name", list(ARRAYS))
def test_odd_arrays(tmp_path: Path, name: str):
    np.savez(tmp_path / "a.npz", **ARRAYS[name])
    if name == "one of each class":
        assert "too few videos" in refused(tmp_path / "a.npz")
    else:
        assert "a.npz" in refused(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "labels",
    [
        np.array([-3, 5, 5, -3]),
        np.array([10**9, 7, 7, 10**9]),
        np.array([2**63 + 7, 2, 2, 2**63 + 7], np.uint64),
        np.array(["walk", "run", "run", "walk"]),
        np.array([b"walk", b"run", b"run", b"walk"]),
    ],
)
def test_labels_are_the_classes_that_occur(tmp_path: Path, labels: np.ndarray):
    np.savez(tmp_path / "a.npz", video=ZEROS, label=labels)
    names = [each.decode() if isinstance(each, bytes) else str(each) for each in np.unique(labels).tolist()]
    assert opened(tmp_path / "a.npz").conditions[0].names == tuple(names)


def huge_header(path: Path) -> None:
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (99999999, 99999, 99, 99)}"
    header = header.ljust(118) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("video.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)


def member_without_array(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("video.npy", b"not an array")


def half(path: Path) -> None:
    np.savez(path, video=ZEROS)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def pickled(path: Path) -> None:
    np.save(path, np.array([{}], object), allow_pickle=True)


def playlist(path: Path) -> None:
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")


FILES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "a header of petabytes": ("a.npz", huge_header),
    "a member that is no array": ("a.npz", member_without_array),
    "half an archive": ("a.npz", half),
    "a pickle": ("a.npy", pickled),
    "empty array file": ("a.npz", lambda path: path.write_bytes(b"")),
    "an archive of nothing": ("a.npz", lambda path: zipfile.ZipFile(path, "w").close()),
    "empty video": ("a.mp4", lambda path: path.write_bytes(b"")),
    "text": ("a.mp4", lambda path: path.write_text("no video " * 99)),
    "zeros": ("a.avi", lambda path: path.write_bytes(bytes(5000))),
    "noise": ("a.webm", lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000))),
    "a picture": ("a.gif", lambda path: Image.new("L", (5, 5)).save(path, "PNG")),
    "a still": ("a.gif", lambda path: Image.new("L", (5, 5)).save(path)),
    "a playlist": ("a.mp4", playlist),
    "a list of files": ("a.mkv", lambda path: path.write_text("ffconcat version 1.0\nfile /etc/hosts\n")),
    "another suffix": ("a.docx", lambda path: path.write_bytes(b"x")),
    "a pipe": ("a.mp4", os.mkfifo),
    "a pipe of arrays": ("a.npz", os.mkfifo),
    "a broken link": ("a.mp4", lambda path: path.symlink_to("nowhere")),
    "a link to itself": ("a.mp4", lambda path: path.symlink_to(path)),
    "a folder called video": ("a.mp4", Path.mkdir),
    "one file": ("a.mp4", lambda path: write(path, levels(5))),
    "tilted": ("a.mp4", lambda path: turn(write(path, levels(5)), (1, 1, -1, 1))),
    "a header alone": ("a.mkv", lambda path: write(path, levels(5)) and path.write_bytes(path.read_bytes()[:60])),
}


@pytest.mark.parametrize("name", list(FILES))
def test_odd_files(tmp_path: Path, name: str):
    pytest.importorskip("av", reason="needs PyAV (extra: video)")
    file, make = FILES[name]
    (tmp_path / "in").mkdir()
    make(tmp_path / "in" / file)
    assert file[:1] in refused(tmp_path / "in" / file)
    with pytest.raises(DataError) if name not in ("one file", "a still", "a picture") else warnings.catch_warnings():
        read(read_one(tmp_path / "in" / file))
    refused(tmp_path / "in")  # in a folder too


@pytest.mark.parametrize(
    "source", ["", "/dev/null", "/dev/zero", "x" * 5000, "a\0b", "~nobody-of-that-name/x", "/proc/self/mem", "a\nb"]
)
def test_odd_names(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    refused(source)
    with pytest.raises(DataError):
        read_one(Path(source))


def test_a_folder_that_contains_itself(tmp_path: Path):
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "again").symlink_to(tmp_path)
    assert "no videos" in refused(tmp_path)


def vast(path: Path) -> None:
    """A PNG whose header announces 10^10 pixels."""
    Image.new("L", (8, 8)).save(path, "PNG")
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">2I", 10**5, 10**5)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("no picture"),
        os.mkfifo,
        lambda path: path.symlink_to("nowhere"),
        lambda path: Image.new("F", (8, 8)).save(path, "TIFF"),
        lambda path: Image.new("L", (8, 9)).save(path, "PNG"),
        vast,
    ],
)
def test_odd_frames(tmp_path: Path, make: Callable[[Path], Any]):
    for video in "ab":
        (tmp_path / video).mkdir()
        for t in range(3):
            Image.new("L", (8, 8)).save(tmp_path / video / f"{t}.png")
    (tmp_path / "b" / "2.png").unlink()
    make(tmp_path / "b" / "2.png")
    assert "2.png" in refused(tmp_path)


def test_limits_are_settings(tmp_path: Path):
    pytest.importorskip("av", reason="needs PyAV (extra: video)")
    for name in "ab":
        write(tmp_path / "in" / f"{name}.mp4", levels(5))
    np.savez(tmp_path / "a.npz", video=ZEROS, label=[0, 0, 1, 1])
    for source, key, value in (
        ("in", "pixels", 16 * 24 - 1),
        ("in", "memory_bytes", 5 * 16 * 24 * 3 * 2 - 1),
        ("a.npz", "array_bytes", ZEROS.nbytes - 1),
        ("a.npz", "memory_bytes", ZEROS.nbytes - 1),
        ("a.npz", "classes", 1),
    ):
        assert f"data.limits.{key}=" in refused(tmp_path / source, limits={key: value})
        opened(tmp_path / source, limits={key: value + 1}, validation=0.5)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.sampled_from(["mp4", "mkv", "gif"]))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_flipped_bytes(tmp_path: Path, seed: int, number: int, kind: str):
    """Damage is read, where a decoder cannot tell, or refused in one line."""
    pytest.importorskip("av", reason="needs PyAV (extra: video)")
    whole = tmp_path / f"whole.{kind}"
    if not whole.exists():
        write(whole, levels(5), codec="gif" if kind == "gif" else "libx264")
    data, draw = bytearray(whole.read_bytes()), np.random.default_rng(seed)
    for at in draw.integers(0, len(data), number):
        data[at] = draw.integers(256)
    path = tmp_path / f"damaged.{kind}"
    path.write_bytes(data)
    try:
        found = read(read_one(path), size=8, room=1 << 24)
    except NextscaleError as error:
        assert "\n" not in str(error)
    else:
        assert found.shape[1:] == (8, 8, 3)
