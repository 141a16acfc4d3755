"""Reading videos: every kind of source, and a one-line error for every bad one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nextscale.errors import DataError, NextscaleError
from nextscale.randomness import sample_seeds
from nextscale_video.config import VideoDataConfig
from nextscale_video.data import load, open_videos
from nextscale_video.frames import read
from nextscale_video.moving import CANVAS, bounced
from nextscale_video.readers import RawSplit, RawVideo, read_file, read_frames, read_source
from nextscale_video.source import VideoSource

Glide = Callable[..., np.ndarray]
Write = Callable[..., Path]


def opened(source: Path | str, **settings: object):
    return open_videos(VideoDataConfig.model_validate({"source": str(source), "frames": 5, **settings}))


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# Moving digits.


def test_moving_digits_glide_within_the_canvas():
    splits = opened("moving-digits", frames=9)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [1455, 162, 180]  # type: ignore[arg-type]
    batch = splits.train.batch(np.arange(4), np.arange(4).astype(np.uint64))
    assert batch.samples.shape == (4, 1, 9, CANVAS, CANVAS) and batch.samples.dtype == torch.float32
    assert batch.samples.min() >= -1 and batch.samples.max() <= 1
    ink = (batch.samples + 1).sum((1, 3, 4))
    torch.testing.assert_close(ink, ink[:, :1].expand_as(ink), rtol=1e-3, atol=1e-2)  # nothing leaves the canvas
    again = splits.train.batch(np.arange(4), np.arange(4, 8).astype(np.uint64))
    assert not torch.equal(batch.samples, again.samples) and torch.equal(
        *(b.conditions["label"] for b in (batch, again))
    )


@given(st.floats(-100, 100), st.floats(0.1, 20))
@settings(max_examples=50, deadline=None)
def test_a_bounce_stays_inside_and_keeps_the_speed(position: float, room: float):
    inside = bounced(np.array([position, position + 0.01]), np.array([room, room]))
    assert (inside >= 0).all() and (inside <= room).all()
    assert abs(inside[1] - inside[0]) <= 0.01 + 1e-9


# Clips.


@given(
    st.lists(st.integers(9, 30), min_size=1, max_size=3),
    st.integers(1, 4),
    st.integers(1, 2),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=50, deadline=None)
def test_clips_are_consecutive_frames_of_one_video(lengths: list[int], frames: int, stride: int, seed: int):
    """Each frame's brightness identifies it: frame number plus 40 times the video number."""
    videos = [
        (40 * i + np.arange(length, dtype=np.uint8))[None, :, None, None] * np.ones((1, 1, 2, 2), np.uint8)
        for i, length in enumerate(lengths)
    ]
    source = VideoSource(videos, np.arange(len(videos)), frames, stride)
    indices = np.arange(len(source))
    for seeds in (None, sample_seeds(seed, indices)):
        batch = source.batch(indices, seeds)
        values = ((batch.samples[:, 0, :, 0, 0] + 1) * 127.5).round().long()
        assert torch.equal(values.diff(dim=1), torch.full_like(values[:, 1:], stride))
        assert torch.equal(values // 40, batch.conditions["label"][:, None].expand_as(values))
    starts = source.batch(indices[source.video == 0], None).samples[:, 0, 0, 0, 0]
    assert (starts.diff() > 0).all(), "without seeds, a video's clips are spread over it"


# Sources.


def test_array_layouts(tmp_path: Path, glide: Glide):
    videos = np.stack([glide(7, seed=i) for i in range(6)])
    np.savez(tmp_path / "a.npz", x=videos, y=np.arange(6) % 2, classes=np.array(["left", "right"]), extra=[1])
    splits = opened(tmp_path / "a.npz")
    assert splits.conditions[0].names == ("left", "right")
    assert splits.description == {
        "channels": 3,
        "frames": 5,
        "stride": 1,
        "height": 16,
        "width": 16,
        "classes": ["left", "right"],
    }
    np.save(tmp_path / "b.npy", videos[..., 0])
    assert opened(tmp_path / "b.npy").description["channels"] == 1
    sizes = opened(tmp_path / "a.npz", size=(8, 12), channels=1, labels=False).description
    assert (sizes["channels"], sizes["height"], sizes["width"], sizes["classes"]) == (1, 8, 12, [])


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".webm", ".gif"])
def test_video_files_by_class(tmp_path: Path, glide: Glide, write_video: Write, suffix: str):
    frames = glide(6, 32, 48)
    for i in range(4):
        write_video(tmp_path / "in" / "ab"[i % 2] / f"{i}{suffix}", frames)
    splits = opened(tmp_path / "in")
    assert splits.conditions[0].names == ("a", "b")
    clip = splits.train.batch(np.array([0]), None).samples[0]
    assert clip.shape == (3, 5, 32, 48)
    wanted = torch.from_numpy(frames[:5]).permute(3, 0, 1, 2) / 127.5 - 1
    assert (clip - wanted).abs().mean() < 0.25, "the decoded frames match the written ones"


def test_folders_of_frames(tmp_path: Path, glide: Glide):
    for name in ("one", "two"):
        (tmp_path / "flat" / name).mkdir(parents=True)
        for t, frame in enumerate(glide(6)):
            Image.fromarray(frame).save(tmp_path / "flat" / name / f"{t:03d}.png")
    splits = opened(tmp_path / "flat", validation=0.5)
    assert not splits.conditions and len(splits.train) == len(splits.validation) == 1
    (tmp_path / "classes").mkdir()
    (tmp_path / "flat").rename(tmp_path / "classes" / "only")
    assert opened(tmp_path / "classes").conditions[0].names == ("only",)


def test_numbers_in_names_sort_as_numbers(tmp_path: Path, glide: Glide):
    frames = glide(12)
    for name in ("2", "10", "9"):
        for video in ("one", "two"):
            (tmp_path / name / video).mkdir(parents=True)
            for t, frame in enumerate(frames):
                Image.fromarray(frame).save(tmp_path / name / video / f"frame{t}.png")
    assert opened(tmp_path, validation=0.5).conditions[0].names == ("2", "9", "10")
    assert np.array_equal(np.stack(list(read_frames(tmp_path / "10" / "one"))), frames)


def test_reading_stops_after_the_frames_needed(glide: Glide):
    """Frames are resized as they are read, and a video that is too large is refused before all of it is in memory."""
    frames, seen = glide(12, 64, 64), []

    def long(fps: float | None):
        for t in range(10**6):
            seen.append(t)
            yield frames[t % 12]

    video = RawVideo("long", long)
    assert np.array_equal(read(video, stride=3, most=3), frames[:7:3]) and len(seen) == 7
    assert read(video, size=(8, 16), most=2).shape == (2, 8, 16, 3)
    seen.clear()
    config = VideoDataConfig.model_validate({"size": 8, "limits": {"memory_bytes": 40 * 8 * 8 * 3}})
    with pytest.raises(DataError, match=r"too large to keep decoded in memory .data\.limits\.memory_bytes=7,680 "):
        load({"train": RawSplit([video])}, (), config)
    assert len(seen) == 41


# Bad input.


def test_a_truncated_file(tmp_path: Path, glide: Glide, write_video: Write):
    whole = write_video(tmp_path / "in" / "whole.mp4", glide(30, 64, 64)).read_bytes()
    (tmp_path / "in" / "half.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"half\.mp4") as error:
        opened(tmp_path / "in")
    assert "skip_unreadable" in one_line(error)
    (tmp_path / "in" / "other.mp4").write_bytes(whole)
    assert len(opened(tmp_path / "in", skip_unreadable=True, validation=0.5).train) == 6


def test_a_file_that_ends_before_its_last_frames(tmp_path: Path, glide: Glide):
    """The index at the start of the file promises frames that are missing."""
    av = pytest.importorskip("av")
    path = tmp_path / "fast.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "1", "g": "1"})
        stream.width = stream.height = 64
        for frame in glide(30, 64, 64):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(DataError, match=r"fast\.mp4") as error:
        list(read_file(path))
    one_line(error)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frames": 9}, r"has 7 frames; a clip of data\.frames=9 at data\.stride=1 needs 9"),
        ({"frames": 5, "stride": 2}, r"at data\.stride=2 needs 9"),
        ({"frames": 5, "validation": 0.0}, "too few videos"),
    ],
)
def test_clips_that_cannot_be_cut(tmp_path: Path, glide: Glide, settings: dict[str, object], message: str):
    np.save(tmp_path / "a.npy", np.stack([glide(7)] * 3))
    with pytest.raises(DataError, match=message) as error:
        opened(tmp_path / "a.npy", **settings)
    one_line(error)


def test_mixed_resolutions(tmp_path: Path, glide: Glide, write_video: Write):
    write_video(tmp_path / "in" / "a.mp4", glide(6, 32, 32))
    write_video(tmp_path / "in" / "b.mp4", glide(6, 16, 32))
    with pytest.raises(DataError, match=r"b\.mp4 is 16 x 32, .*a\.mp4 is 32 x 32 .*data\.size=16"):
        opened(tmp_path / "in", validation=0.5)
    assert opened(tmp_path / "in", validation=0.5, size=16).description["height"] == 16


def test_no_videos_and_no_frames(tmp_path: Path, glide: Glide):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no videos in"):
        opened(tmp_path / "empty")
    (tmp_path / "empty" / "class").mkdir()
    np.save(tmp_path / "none.npy", glide(6)[None, :0])
    with pytest.raises(DataError, match=r"none\.npy: the array of 1 x 0 x 16 x 16 x 3 holds no frames"):
        opened(tmp_path / "none.npy")
    with pytest.raises(DataError, match="does not exist"):
        opened(tmp_path / "absent")
    (tmp_path / "text.txt").write_text("x")
    with pytest.raises(DataError, match="is not a video source"):
        opened(tmp_path / "text.txt")


def test_sound_without_pictures(tmp_path: Path):
    av = pytest.importorskip("av")
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(DataError, match=r"sound\.mp4 has no video stream"):
        list(read_file(path))


def test_without_pyav_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.mp4").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(NextscaleError, match=r"pip install 'nextscale\[video\]'") as error:
        read(read_source(str(tmp_path))["train"].videos[0])
    one_line(error)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"other": np.zeros(3)}, "holds no videos"),
        ({"video": np.zeros((2, 5, 4, 4), np.float32)}, "must be uint8"),
        (
            {"video": np.zeros((2, 5, 4, 4), np.uint8), "label": np.array([0])},
            "must be 2 integers or texts, one per video",
        ),
        (
            {"video": np.zeros((2, 5, 4, 4), np.uint8), "label": np.array([0, 3]), "classes": np.array(["a"])},
            "has label 3; there are class names for 0 to 0",
        ),
    ],
)
def test_bad_arrays(tmp_path: Path, arrays: dict[str, np.ndarray], message: str):
    np.savez(tmp_path / "bad.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message) as error:
        opened(tmp_path / "bad.npz")
    one_line(error)


def test_the_robot_clips():
    path = Path(__file__).parents[4] / "shared/data/video/metaworld_30clips_64px.npz"
    if not path.exists():
        pytest.skip("needs ../shared/data/video/metaworld_30clips_64px.npz")
    splits = opened(path, frames=17)
    assert (len(splits.train), len(splits.validation)) == (24 * 5, 6 * 5)
    labels = splits.validation.batch(np.arange(30), None).conditions["label"]
    assert torch.bincount(labels).tolist() == [5] * 6, "one video of each class is held out"
