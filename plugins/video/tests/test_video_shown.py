"""Decoded frames are what a player shows: turned, in square pixels, within the edit list, at their time."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from video_files import PLACES, begin_at, edit_ticks, levels, numbers, shown, turn, widen, write

from nextscale.errors import DataError, NextscaleWarning
from nextscale_video.config import VideoDataConfig
from nextscale_video.data import open_videos
from nextscale_video.frames import read
from nextscale_video.readers import read_file, read_one
from nextscale_video.readers.geometry import geometry
from nextscale_video.readers.rates import Timed, at_rate

av = pytest.importorskip("av", reason="needs PyAV (extra: video)")


def corners(height: int = 16, width: int = 24) -> np.ndarray:
    """Four quarters, each of a colour of its own."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = (220, 40, 40)
    picture[: height // 2, width // 2 :] = (40, 200, 40)
    picture[height // 2 :, : width // 2] = (40, 40, 220)
    picture[height // 2 :, width // 2 :] = (200, 200, 60)
    return picture


@pytest.mark.parametrize("name", list(PLACES))
def test_frames_are_turned_and_mirrored(tmp_path: Path, name: str):
    path = turn(write(tmp_path / "phone.mp4", [corners()] * 3), PLACES[name])
    found, wanted = read(read_one(path)), shown(corners(), PLACES[name])
    assert found.shape == (3, *wanted.shape)
    assert np.abs(found[1].astype(int) - wanted).mean() < 4, "the corners are where a player shows them"


@given(st.integers(1, 6), st.integers(1, 6), st.sampled_from(list(PLACES.values())))
@settings(max_examples=40, deadline=None)
def test_every_pixel_is_where_the_matrix_says(height: int, width: int, matrix: tuple[int, int, int, int]):
    frame = np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)
    a, b, c, d = (value << 16 for value in matrix)
    how = geometry("a", (height, width), None, np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], np.int32).tobytes())
    wanted = shown(frame, matrix)
    assert np.array_equal(how.shown(frame), wanted) and how.size == wanted.shape[:2]


def test_other_angles_are_refused():
    sine, cosine = round(0.5 * (1 << 16)), round(0.866 * (1 << 16))
    matrix = np.array([cosine, sine, 0, -sine, cosine, 0, 0, 0, 1 << 30], np.int32).tobytes()
    with pytest.raises(DataError, match="no multiple of 90 degrees"):
        geometry("tilted.mp4", (4, 4), None, matrix)
    still = np.array([65536, 300, 0, -300, 65536, 0, 0, 0, 1 << 30], np.int32).tobytes()
    assert not geometry("a", (4, 4), None, still).transposed, "rounded matrices are straight"


def anamorphic(path: Path, across: int, down: int) -> Path:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=10, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = 16, 24, "yuv444p"
        stream.codec_context.sample_aspect_ratio = Fraction(5, 4)
        for _ in range(3):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(corners(), format="rgb24")))
        file.mux(stream.encode())
    return widen(path, across, down)


@pytest.mark.parametrize(("across", "down", "width"), [(2, 1, 48), (4, 3, 32), (1, 2, 12), (1, 1, 24)])
def test_pixels_become_square(tmp_path: Path, across: int, down: int, width: int):
    found = read(read_one(anamorphic(tmp_path / "dvd.mp4", across, down)))[1]
    assert found.shape == (16, width, 3)
    inner = np.abs(found.astype(int) - corners(16, width))[:, np.abs(np.arange(width) - width / 2 + 0.5) > 3]
    assert inner.mean() < 5, "quarters stay quarters"


def test_a_turned_anamorphic_clip(tmp_path: Path):
    """The aspect belongs to coded pixels, before turning."""
    path = turn(anamorphic(tmp_path / "both.mp4", 2, 1), PLACES["a quarter clockwise"])
    found = read(read_one(path))[1]
    assert found.shape == (48, 16, 3)
    assert np.abs(found[:8, -4:].mean((0, 1)) - (220, 40, 40)).max() < 12, "what was top left is top right"


@pytest.mark.parametrize("cut", [1, 4, 6, 9])
@pytest.mark.parametrize("between", ["0", "2"])
def test_frames_before_the_edit_list_are_not_shown(tmp_path: Path, cut: int, between: str):
    """Editors that cut without coding anew keep the frames from the key frame before the cut."""
    path = write(tmp_path / "cut.mp4", levels(12), bf=between)
    with av.open(str(path)) as file:
        base = file.streams.video[0].time_base
    begin_at(path, edit_ticks(path) + round(Fraction(cut, 10) / base))
    assert numbers(list(read_file(path))) == list(range(cut, 12))


def test_a_clip_that_was_copied_from_the_middle(tmp_path: Path):
    """Packets are copied from a key frame on; the muxer writes an edit list for those before the cut."""
    whole, path = write(tmp_path / "whole.mp4", levels(16), gop=8), tmp_path / "part.mp4"
    with av.open(str(whole)) as source, av.open(str(path), "w") as file:
        stream = source.streams.video[0]
        copy, begin = file.add_stream_from_template(stream), round(Fraction(11, 10) / stream.time_base)
        source.seek(begin, stream=stream)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - begin, packet.dts - begin, copy
                file.mux(packet)
    assert numbers(list(read_file(path))) == [11, 12, 13, 14, 15]
    (path.parent / "cut").mkdir()
    path.rename(path.parent / "cut" / "a.mp4")
    write(tmp_path / "cut" / "b.mp4", levels(5))
    assert len(opened(tmp_path / "cut", validation=0.5).train) == 1


# Time.


@given(
    st.lists(st.integers(2, 100), min_size=1, max_size=12),
    st.floats(0.5, 60),
    st.floats(-3, 3),
)
@settings(max_examples=80, deadline=None)
def test_a_resampled_video_shows_the_latest_frame(lasting: list[int], fps: float, begin: float):
    """At each tick, the frame that a player shows at that moment; ticks end with the video."""
    ends = begin + np.cumsum(lasting) / 50
    starts = np.concatenate([[begin], ends[:-1]])
    frames = [Timed(np.array([i]), start, end) for i, (start, end) in enumerate(zip(starts, ends, strict=True))]
    found = [int(frame.pixels[0]) for frame in at_rate(frames, fps)]
    ticks = begin + np.arange(len(found) + 1) / fps
    assert len(found) >= 1 and ticks[-1] >= ends[-1] - 0.002 and (ticks[:-1] < ends[-1]).all()
    for tick, number in zip(ticks, found, strict=False):
        assert starts[number] <= tick + 0.0011 and tick <= ends[number]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_variable_rates(tmp_path: Path, suffix: str):
    starts = [Fraction(t, 10) for t in (0, 1, 2, 5, 9, 10)]
    path = write(tmp_path / f"screen{suffix}", levels(6), starts=starts)
    assert numbers(list(read_file(path))) == [0, 1, 2, 3, 4, 5], "as they come"
    assert numbers(list(read_file(path, 10)))[:11] == [0, 1, 2, 2, 2, 3, 3, 3, 3, 4, 5]
    assert numbers(list(read_file(path, 2)))[:3] == [0, 3, 5]
    assert read_one(path).rate() == pytest.approx(5), "five steps in a second"


def opened(source: Path | str, **settings: Any):
    return open_videos(VideoDataConfig.model_validate({"source": str(source), "frames": 5, **settings}))


def test_the_rate_of_clips(tmp_path: Path):
    for name in "ab":
        write(tmp_path / f"{name}.mp4", levels(24), rate=24)
    assert opened(tmp_path, validation=0.5).description["fps"] == 24
    splits = opened(tmp_path, validation=0.5, fps=6, stride=2, frames=3)
    assert (splits.description["fps"], splits.description["resample"]) == (3, 6)
    clip = splits.train.batch(np.array([0]), None).samples[0]
    assert numbers(list(((clip.permute(1, 2, 3, 0) + 1) * 127.5).numpy())) == [0, 8, 16]
    with pytest.raises(DataError, match=r"has 6 frames at data\.fps=6; a clip of data\.frames=7"):
        opened(tmp_path, fps=6, frames=7)


def test_other_rates_are_told(tmp_path: Path):
    for name, rate in (("a", 10), ("b", 30), ("c", 30)):
        write(tmp_path / f"{name}.mp4", levels(9), rate=rate)
    with pytest.warns(NextscaleWarning, match=r"have 10 to 30 frames per second.*data\.fps=30 brings them"):
        assert opened(tmp_path, validation=0.5).description["fps"] in (10, 30)


def test_what_has_no_time_stamps_is_not_resampled(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.zeros((2, 6, 4, 4), np.uint8))
    for source in (tmp_path / "a.npy", "moving-digits"):
        assert "fps" not in opened(source, validation=0.5).description
        with pytest.raises(DataError, match=r"time stamps.*leave data\.fps unset"):
            opened(source, fps=4)


# Files that are not whole.


@pytest.mark.parametrize(
    ("suffix", "codec", "container"),
    [
        (".mkv", "libx264", {}),
        (".mkv", "libx264", {"live": "1"}),
        (".webm", "libvpx", {}),
        (".gif", "gif", {}),
        (".flv", "libx264", {}),
        (".mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
        (".mp4", "libx264", {"movflags": "faststart"}),
        (".avi", "mpeg4", {}),
        (".wmv", "wmv2", {}),
    ],
)
def test_cut_files_are_refused_and_whole_ones_are_read(
    tmp_path: Path, suffix: str, codec: str, container: dict[str, str]
):
    noise = np.random.default_rng(1).integers(0, 255, (24, 32, 48, 3), np.uint8)
    data = write(
        tmp_path / f"a{suffix}", list(noise), codec=codec, rate=25, container=container, pixels=None
    ).read_bytes()
    assert len(list(read_file(tmp_path / f"a{suffix}"))) == 24
    for share in (0.3, 0.5, 0.77):
        (tmp_path / f"cut{suffix}").write_bytes(data[: int(len(data) * share) // 188 * 188])
        with pytest.raises(DataError, match="cut") as error:
            list(read_file(tmp_path / f"cut{suffix}"))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("suffix", "codec"), [(".ts", "libx264"), (".mpg", "mpeg2video")])
def test_streams_that_say_no_length_are_named(tmp_path: Path, suffix: str, codec: str):
    """Any part of them is a whole. A frame that was cut in two is seen, a cut between frames cannot be."""
    noise = np.random.default_rng(1).integers(0, 255, (24, 32, 48, 3), np.uint8)
    path = write(tmp_path / f"a{suffix}", list(noise), codec=codec, rate=25)
    with pytest.warns(NextscaleWarning, match=rf"a cut end may go unnoticed in .*a\{suffix}"):
        assert len(read(read_one(path))) == 24
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.warns(NextscaleWarning), pytest.raises(DataError, match="damaged or truncated"):
        read(read_one(path))


def test_transparent_and_odd_pixels(tmp_path: Path):
    for pixels in ("gray", "gray16le", "yuv411p", "yuv420p10le", "gbrp12le", "bgra"):
        path = write(tmp_path / f"{pixels}.mkv", levels(3), codec="ffv1", pixels=pixels)
        assert numbers(list(read_file(path))) == [0, 1, 2], pixels
    clear = np.zeros((16, 24, 4), np.uint8)
    with av.open(str(tmp_path / "clear.mov"), "w") as file:
        stream = file.add_stream("png", rate=10)
        stream.height, stream.width, stream.pix_fmt = 16, 24, "rgba"
        for _ in range(2):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(clear, format="rgba")))
        file.mux(stream.encode())
    assert read(read_one(tmp_path / "clear.mov")).min() == 255, "transparent is white, as in pictures"
