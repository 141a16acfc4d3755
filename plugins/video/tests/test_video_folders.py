"""Folders of videos and of frames: splits, classes, what lies beside them, and what identifies them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nextscale.errors import DataError, NextscaleWarning
from nextscale_video.config import VideoDataConfig
from nextscale_video.data import open_videos
from nextscale_video.frames import read
from nextscale_video.readers import read_one, read_source


def opened(source: Path | str, **settings: Any):
    return open_videos(VideoDataConfig.model_validate({"source": str(source), "frames": 3, **settings}))


def frames(folder: Path, level: int = 0, number: int = 4) -> Path:
    folder.mkdir(parents=True)
    for t in range(number):
        Image.fromarray(np.full((12, 16), level + t, np.uint8)).save(folder / f"{t}.png")
    return folder


def first_levels(source: Any) -> list[int]:
    return [int(video[0, 0, 0, 0]) for video in source.videos]


@pytest.mark.parametrize("names", [("train", "val", "test"), ("training", "dev", "Testing")])
def test_split_folders(tmp_path: Path, names: tuple[str, ...]):
    for s, split in enumerate(names):
        for i in range(2):
            frames(tmp_path / "flat" / split / f"clip{i}", 20 * s + 4 * i)
            frames(tmp_path / "classes" / split / "cats" / f"clip{i}", 20 * s + 4 * i)
            frames(tmp_path / "classes" / split / "dogs" / "deep" / f"clip{i}", 80 + 20 * s + 4 * i)
    flat = opened(tmp_path / "flat")
    assert [first_levels(part) for part in (flat.train, flat.validation, flat.test)] == [[0, 4], [20, 24], [40, 44]]
    assert not flat.conditions
    classes = opened(tmp_path / "classes")
    assert classes.conditions[0].names == ("cats", "dogs") and classes.held_out is classes.test
    assert first_levels(classes.validation) == [20, 24, 100, 104]
    labels = classes.validation.batch(np.arange(4), None).conditions["label"]
    assert torch.equal(labels, torch.tensor([0, 0, 1, 1]))


def test_without_a_validation_folder_clips_are_held_out_of_training(tmp_path: Path):
    for i in range(4):
        frames(tmp_path / "train" / f"{i}", 4 * i)
    frames(tmp_path / "test" / "last", 100)
    splits = opened(tmp_path, validation=0.25)
    assert sorted(first_levels(splits.train) + first_levels(splits.validation)) == [0, 4, 8, 12]
    assert len(splits.validation.videos) == 1 and first_levels(splits.test) == [100]  # type: ignore[attr-defined]


def test_classes_of_splits_must_be_those_of_training(tmp_path: Path):
    for split, name, level in (("train", "cats", 0), ("train", "emus", 8), ("val", "emus", 16)):
        frames(tmp_path / split / name / "one", level)
    labels = opened(tmp_path).validation.batch(np.array([0]), None).conditions["label"]
    assert labels.tolist() == [1], "the place of the name in training, not in its own split"
    frames(tmp_path / "val" / "bats" / "one")
    with pytest.raises(DataError, match="train lacks bats, which validation has"):
        opened(tmp_path)
    assert not opened(tmp_path, labels=False).conditions


def test_classes_and_clips_come_by_number(tmp_path: Path):
    for name in ("take10", "take9"):
        for clip in ("a10", "a2"):
            frames(tmp_path / name / clip, int(name[4:]) * 10 + int(clip[1:]))
    raw = read_source(str(tmp_path))["train"]
    assert raw.classes == ("take9", "take10")
    assert [int(next(iter(video.frames(None)))[0, 0, 0]) for video in raw.videos] == [92, 100, 102, 110]
    assert raw.labels is not None and raw.labels.tolist() == [0, 0, 1, 1]


def test_what_lies_beside_the_videos_is_named(tmp_path: Path, recwarn: pytest.WarningsRecorder):
    gif = [Image.fromarray(np.full((8, 8), 20 * t, np.uint8)) for t in range(5)]
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(2):
            gif[0].save(tmp_path / name / f"{i}.gif", save_all=True, append_images=gif[1:])
        gif[0].save(tmp_path / name / "cover.png")
    frames(tmp_path / "a" / ".trash")
    (tmp_path / "b" / ".0.mp4").write_bytes(b"x")
    (tmp_path / "readme.txt").write_text("clips")
    splits = opened(tmp_path)
    assert len(splits.train.videos) + len(splits.validation.videos) == 4  # type: ignore[attr-defined]
    (message,) = [str(each.message) for each in recwarn if issubclass(each.category, NextscaleWarning)]
    assert "because they are no videos: a/cover.png, b/cover.png, readme.txt and 2 more" in message


def test_frames_beside_folders_of_frames(tmp_path: Path):
    frames(tmp_path / "class" / "one")
    frames(tmp_path / "class" / "two")
    Image.new("L", (4, 4)).save(tmp_path / "class" / "thumb.jpg")
    with pytest.warns(NextscaleWarning, match=r"class/thumb\.jpg"):
        assert len(opened(tmp_path, validation=0.5).train.videos) == 1  # type: ignore[attr-defined]
    Image.new("L", (4, 4)).save(tmp_path / "class" / "thumb2.jpg")
    with pytest.raises(DataError, match=r"holds both frames \(thumb.jpg\) and a folder of frames"):
        opened(tmp_path)
    with pytest.raises(DataError, match="holds the frames of a single video: give the folder that it lies in"):
        opened(tmp_path / "class" / "one")


def test_one_frame_is_no_clip(tmp_path: Path):
    frames(tmp_path / "whole")
    frames(tmp_path / "still", number=1)
    with pytest.raises(DataError, match=r"still has 1 frame; a clip of data\.frames=3"):
        opened(tmp_path)
    frames(tmp_path / "other")
    with pytest.warns(NextscaleWarning, match=r"skipped 1 of 3 videos \(first: .*still\)"):
        opened(tmp_path, skip_unreadable=True, validation=0.5)


def test_frames_are_decoded_as_pictures_are(tmp_path: Path):
    (tmp_path / "deep").mkdir()
    ramp = np.tile(np.arange(0, 65536, 4096).astype(np.uint16), (4, 1))
    Image.fromarray(ramp).save(tmp_path / "deep" / "0.png")
    assert read(read_one(tmp_path / "deep"))[0, 0, :, 0].tolist() == list(range(0, 256, 16))
    (tmp_path / "clear").mkdir()
    clear = Image.new("P", (6, 4), 1)
    clear.putpalette([10, 20, 30, 200, 100, 50])
    clear.putpixel((0, 0), 0)
    clear.save(tmp_path / "clear" / "0.png", transparency=0)
    found = read(read_one(tmp_path / "clear"))[0]
    assert found[0, 0].tolist() == [255] * 3 and found[1, 1].tolist() == [200, 100, 50]
    (tmp_path / "turned").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = np.zeros((8, 16, 3), np.uint8)
    picture[:, :8] = 250  # coded on the left, shown on top
    Image.fromarray(picture).save(tmp_path / "turned" / "0.png", exif=exif)
    found = read(read_one(tmp_path / "turned"))[0]
    assert found.shape == (16, 8, 3) and found[:8].min() == 250 and found[8:].max() == 0


# Fingerprints.


def test_a_fingerprint_says_whose_clips_these_are(tmp_path: Path):
    for name in ("cats", "dogs"):
        for i in range(3):
            frames(tmp_path / "in" / name / f"{i}", 10 * i)
    first = opened(tmp_path / "in")
    found = (first.train.fingerprint(), first.validation.fingerprint())
    assert found[0] != found[1] and all(len(each) == 16 for each in found)
    shutil.copytree(tmp_path / "in", tmp_path / "moved" / "elsewhere")
    moved = opened(tmp_path / "moved" / "elsewhere")
    assert (moved.train.fingerprint(), moved.validation.fingerprint()) == found, "neither paths nor times count"
    assert opened(tmp_path / "in", labels=False, split_seed=0).train.fingerprint() != found[0]
    assert opened(tmp_path / "in", frames=2).train.fingerprint() != found[0]
    changed = next(path for path in (tmp_path / "in").rglob("2.png"))
    for path in (tmp_path / "in").rglob(changed.name):
        Image.fromarray(np.full((12, 16), 200, np.uint8)).save(path)
    again = opened(tmp_path / "in")
    assert again.train.fingerprint() != found[0] and again.validation.fingerprint() != found[1]


def test_fingerprints_of_arrays_and_digits(tmp_path: Path):
    videos = np.random.default_rng(0).integers(0, 255, (6, 4, 5, 5), np.uint8)

    def of(videos: np.ndarray, labels: list[int]) -> str:
        np.savez(tmp_path / "a.npz", video=videos, label=labels)
        return opened(tmp_path / "a.npz").train.fingerprint()

    labels = [7, 7, 9, 9, 9, 7]
    whole = of(videos, labels)
    assert of(videos.copy(), labels) == whole != of(videos, [9, 7, 7, 9, 9, 7])
    other = videos.copy()
    other[:, 3, 4, 4] ^= 1
    assert of(other, labels) != whole
    digits = opened("moving-digits").train
    assert digits.fingerprint() == opened("moving-digits").train.fingerprint()
    assert digits.fingerprint() != opened("moving-digits", labels=False).train.fingerprint()
    assert digits.fingerprint() != opened("moving-digits", size=20).train.fingerprint()
