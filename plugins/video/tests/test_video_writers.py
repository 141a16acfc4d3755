"""Writers of samples as clips, sheets and films, and measures of motion."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nextscale.data import Samples
from nextscale.errors import DataError, NextscaleError
from nextscale_video import writers
from nextscale_video.modality import VideoModality
from nextscale_video.motion import centres, flicker, histogram_distance, speed, steady
from nextscale_video.moving import MovingDigits
from nextscale_video.readers import read_file, read_one, read_source


def clips(number: int = 3, frames: int = 5, channels: int = 3) -> torch.Tensor:
    coarse = torch.rand(number, channels, frames, 3, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (frames, 16, 18))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_gif_and_an_mp4_hold_every_frame(tmp_path: Path, channels: int):
    pytest.importorskip("av")
    samples = clips(2, channels=channels)
    paths = writers.write_samples(samples, tmp_path)
    assert [path.name for path in paths] == ["000000.gif", "000001.gif"]
    with Image.open(paths[0]) as gif:
        assert gif.n_frames == 5 and gif.size == (72, 64)  # type: ignore[attr-defined]
    frames = np.stack(list(read_file(tmp_path / "000001.mp4")))
    assert frames.shape == (5, 64, 72, 3)
    wanted = ((samples[1].permute(1, 2, 3, 0).expand(-1, -1, -1, 3) + 1) * 127.5).numpy()
    assert np.abs(frames[:, ::4, ::4] - wanted).mean() < 20
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".gif", ".gif", ".mp4", ".mp4"]


def test_without_pyav_only_gifs_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writers, "find_spec", lambda name: None)
    writers.write_samples(clips(1), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["000000.gif"]


def test_pieces_are_written_as_they_arrive(tmp_path: Path):
    whole = clips(1, 7)
    seen = []

    def parts():
        for part in whole.split([3, 3, 1], 2):
            seen.append(part.shape[2])
            yield part

    path = writers.write_clip(parts(), tmp_path / "long.gif")
    assert seen == [3, 3, 1]
    with Image.open(path) as gif:
        assert gif.n_frames == 7  # type: ignore[attr-defined]
    with pytest.raises(NextscaleError, match="no frames"):
        writers.write_clip([], tmp_path / "none.gif")


@pytest.mark.parametrize("fps", [4.0, 12.5, 24.0, 29.97, 50.0])
def test_clips_are_written_at_the_rate_of_their_data(tmp_path: Path, fps: float):
    """GIFs count in hundredths of a second, so that single frames are off, but not the whole."""
    pytest.importorskip("av")
    (path,) = writers.write_samples(clips(1, 13), tmp_path, fps)
    assert sum(durations(path)) == pytest.approx(13000 / fps, abs=10)
    assert read_one(path.with_suffix(".mp4")).rate() == pytest.approx(fps, rel=1e-3)


def durations(path: Path) -> list[int]:
    """Milliseconds of each frame of a GIF."""
    with Image.open(path) as gif:
        return [gif.seek(t) or gif.info["duration"] for t in range(gif.n_frames)]  # type: ignore[attr-defined]


def test_descriptions_without_a_rate_mean_eight(tmp_path: Path):
    """Data without time stamps, and runs from before rates were read."""
    modality = VideoModality()
    for description, wanted in (({}, 125), ({"fps": 25.0}, 40)):
        folder = tmp_path / str(wanted)
        folder.mkdir()
        modality.write_samples(clips(1), folder, description)
        modality.write_grid(clips(2), folder / "grid.png", description)
        modality.write_parts(iter([clips(1)]), folder / "parts.gif", description)
        for name in ("000000.gif", "grid.gif", "parts.gif"):
            assert sum(durations(folder / name)) == pytest.approx(5 * wanted, abs=10)


def test_both_files_of_a_clip_say_where_it_came_from(tmp_path: Path):
    av = pytest.importorskip("av")
    told = [{"run": "Zürich 你好", "sample": str(i)} for i in (7, 8)]
    paths = writers.write_samples(clips(2), tmp_path, first=7, metadata=told)
    assert [path.name for path in paths] == ["000007.gif", "000008.gif"]
    for path, texts in zip(paths, told, strict=True):
        with Image.open(path) as gif, av.open(str(path.with_suffix(".mp4"))) as container:
            assert json.loads(gif.info["comment"]) == json.loads(container.metadata["comment"]) == texts


@settings(max_examples=20, deadline=None)
@given(
    channels=st.sampled_from([1, 3]),
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    fps=st.none() | st.sampled_from([0.5, 8.0, 29.97]),
    classes=st.sampled_from([[], ["left", "你好", "right"]]),
)
def test_arrays_are_read_back_without_loss(
    tmp_path_factory: pytest.TempPathFactory, channels: int, sizes: list[int], fps: float | None, classes: list[str]
):
    folder = tmp_path_factory.mktemp("arrays")
    whole = clips(sum(sizes), 3, channels).float()
    labels = torch.arange(len(whole)) % 3
    told = [{"run": "a", "sample": str(i)} for i in range(len(whole))]
    starts = np.cumsum([0, *sizes])
    batches = [Samples(whole[a:b], [], {"label": labels[a:b]}, told[a:b]) for a, b in pairwise(starts)]
    description = {"classes": classes} | ({} if fps is None else {"fps": fps})
    (path,) = VideoModality().write_archives(batches, folder, description)
    found = read_source(str(path))["train"]
    wanted = ((whole + 1) * 127.5).round().permute(0, 2, 3, 4, 1).numpy()
    np.testing.assert_array_equal([list(video.frames(None)) for video in found.videos], wanted)
    assert {video.rate() for video in found.videos} == {fps}
    assert found.labels is not None and found.labels.tolist() == labels.tolist()
    assert not classes or list(found.classes) == classes
    with np.load(path) as arrays:
        assert json.loads(str(arrays["metadata"])) == (told[0] if len(told) == 1 else {"run": "a"})


@pytest.mark.parametrize("fps", [[8.0, 8.0], 0.0, -1.0, np.nan, np.inf, "fast", 1e9])
def test_an_impossible_rate_of_arrays_is_refused(tmp_path: Path, fps: object):
    np.savez(tmp_path / "a.npz", video=np.zeros((2, 3, 4, 4), np.uint8), fps=np.array(fps))
    with pytest.raises(DataError, match=r"a\.npz: fps should be one number of frames per second, from 0\.01 to 1000"):
        read_source(str(tmp_path / "a.npz"))


def test_arrays_with_a_rate_are_resampled(tmp_path: Path):
    frames = np.arange(12, dtype=np.uint8)[None, :, None, None].repeat(4, 2).repeat(4, 3)
    np.savez(tmp_path / "a.npz", video=frames, fps=12)
    (video,) = read_source(str(tmp_path / "a.npz"))["train"].videos
    assert [int(frame[0, 0, 0]) for frame in video.frames(4)] == [0, 3, 6, 9]


def test_sheets_and_films(tmp_path: Path):
    sheet = writers.write_grid(clips(3), tmp_path / "grid.png", 2)
    with Image.open(sheet) as image, Image.open(tmp_path / "grid.gif") as gif:
        assert image.size == (5 * 74 + 2, 3 * 66 + 2), "one row per sample, one column per frame"
        assert gif.n_frames == 5  # type: ignore[attr-defined]
    long = writers.write_grid(clips(17), tmp_path / "long.png", captions=[str(i) for i in range(17)])
    with Image.open(long) as image:
        assert image.size[1] < 16 * (66 + 40), "the first 16 samples"
    film = writers.write_film([clips(2), clips(2)], tmp_path / "film.png")
    with Image.open(film) as image:
        assert image.size == (2 * 74 + 2, 8 * 66 + 2), "a column per scale, four frames of each clip below each other"


def test_motion_measures():
    digits = np.zeros((4, 8, 8), np.float32)
    digits[:, 2:6, 2:6] = 1
    source = MovingDigits(digits, None, (16, 16), 9, 1)
    real = source.batch(np.arange(4), None).samples
    path = centres(real)
    assert path.shape == (4, 9, 2) and (path > 2).all() and (path < 13).all()
    jumping = real[:, :, torch.randperm(9, generator=torch.Generator().manual_seed(1))]
    assert steady(real, real) > 0.98 > steady(jumping, real)
    assert flicker(jumping) > flicker(real) > 0 and speed(jumping) > speed(real)
    assert histogram_distance(real, real) == 0 < histogram_distance(jumping, real) <= 1
