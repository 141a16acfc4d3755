"""Image folders: splits, classes, sizes, colours and bad input."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from image_files import fill, opened, picture, pixels_of, refused
from PIL import Image

from nextscale.errors import DataError
from nextscale_image import data as image_data


def test_class_folders(tmp_path):
    fill(tmp_path / "cat", 10)
    fill(tmp_path / "dog" / "deeper", 20)
    (tmp_path / "notes.txt").write_text("no image")
    fill(tmp_path / ".hidden", 1)
    splits = opened(tmp_path)
    assert splits.description == {"channels": 3, "height": 12, "width": 12, "classes": ["cat", "dog"]}
    assert (len(splits.train), len(splits.validation), splits.test) == (27, 3, None)
    held = splits.validation.batch(np.arange(3), None).conditions["label"]
    assert held.tolist() == [0, 1, 1]


def test_a_flat_folder_has_the_pixels_of_its_files(tmp_path):
    fill(tmp_path, 40)
    splits = opened(tmp_path)
    assert splits.conditions == () and splits.description["classes"] == []
    images = [np.asarray(picture(i)).transpose(2, 0, 1) for i in range(40)]
    found = np.concatenate([pixels_of(splits.train), pixels_of(splits.validation)])
    assert sorted(map(bytes, found)) == sorted(bytes(np.ascontiguousarray(image)) for image in images)


def test_numbered_classes_are_sorted_by_number(tmp_path):
    for name in ("0", "2", "10"):
        fill(tmp_path / name, 2)
    assert opened(tmp_path).description["classes"] == ["0", "2", "10"]


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
@pytest.mark.parametrize("classes", [("",), ("a", "b")])
def test_split_folders(tmp_path, name, classes):
    for split, count in (("train", 9), (name, 3), ("test", 4)):
        for label in classes:
            fill(tmp_path / split / label, count)
    splits = opened(tmp_path)
    sizes = (len(splits.train), len(splits.validation), len(splits.test))
    assert sizes == tuple(n * len(classes) for n in (9, 3, 4))
    assert splits.description["classes"] == [name for name in classes if name]


def test_validation_is_held_out_of_train_if_there_is_only_a_test_split(tmp_path):
    fill(tmp_path / "train", 20)
    fill(tmp_path / "test", 4)
    splits = opened(tmp_path, validation=0.25)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (15, 5, 4)


def test_train_among_other_names_is_a_class(tmp_path):
    for name in ("bus", "car", "train"):
        fill(tmp_path / name, 4)
    assert opened(tmp_path).description["classes"] == ["bus", "car", "train"]


def test_classes_that_differ(tmp_path):
    for split, names in (("train", "abc"), ("test", "abd")):
        for name in names:
            fill(tmp_path / split / name, 3)
    refused("test lacks c, which train has", tmp_path)
    fill(tmp_path / "test" / "c", 3)
    refused("train lacks d, which test has", tmp_path)
    assert len(opened(tmp_path, labels=False).test) == 12
    fill(tmp_path / "train" / "d", 3)
    assert len(opened(tmp_path).test) == 12


def test_numbered_class_folders_that_differ(tmp_path):
    for split, names in (("train", "012"), ("test", "02")):
        for name in names:
            fill(tmp_path / split / name, 3)
    refused("test lacks 1, which train has", tmp_path)


def test_a_test_split_without_the_classes_of_train(tmp_path):
    fill(tmp_path / "train" / "a", 3)
    fill(tmp_path / "test", 3)
    refused("train has classes, test has none", tmp_path)


def test_folders_that_are_refused(tmp_path):
    refused("no images in", tmp_path)
    (tmp_path / "notes.txt").write_text("no image")
    refused("no images in", tmp_path)
    (fill(tmp_path / "a", 3).parent / "b").mkdir()
    refused("class folder .*b holds no images", tmp_path)
    fill(tmp_path / "b", 2)
    picture(0).save(tmp_path / "stray.png")
    refused(r"both images \(stray.png\) and", tmp_path)


def test_split_folders_that_are_refused(tmp_path):
    fill(tmp_path / "test", 3)
    refused("has test but no train folder", tmp_path)
    fill(tmp_path / "train", 3)
    fill(tmp_path / "extra", 3)
    refused("images beside them \\(extra\\)", tmp_path)
    fill(tmp_path / "val", 3)
    fill(tmp_path / "valid", 3)
    refused("two validation folders: val", tmp_path)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("position", [0, 5])
def test_an_unreadable_image_is_named_and_skipped_on_request(tmp_path, monkeypatch, caplog, lazy, position):
    if lazy:
        monkeypatch.setattr(image_data, "MEMORY_LIMIT", 0)
    bad = fill(tmp_path, 20) / f"{position}.png"
    bad.write_bytes(b"not an image")
    refused(f"cannot read image {bad} .*data.skip_unreadable=true", tmp_path)
    with caplog.at_level(logging.WARNING):
        splits = opened(tmp_path, skip_unreadable=True)
    assert len(splits.train) + len(splits.validation) == 19
    assert f"skipped 1 of 20 images as unreadable (first: {bad})" in caplog.text
    assert len(pixels_of(splits.train)) == len(splits.train)


def test_a_truncated_image_is_found(tmp_path, monkeypatch):
    bad = fill(tmp_path, 20) / "7.png"
    bad.write_bytes(bad.read_bytes()[:-60])
    refused(f"cannot read image {bad} ", tmp_path)
    assert len(opened(tmp_path, skip_unreadable=True).train) == 17
    # If data is decoded batch by batch, the image is found on reading, or on opening if it is to be skipped.
    monkeypatch.setattr(image_data, "MEMORY_LIMIT", 0)
    splits = opened(tmp_path)
    with pytest.raises(DataError, match=f"cannot read image {bad} "):
        pixels_of(splits.train), pixels_of(splits.validation)
    splits = opened(tmp_path, skip_unreadable=True)
    assert len(pixels_of(splits.train)) + len(pixels_of(splits.validation)) == 19


def test_no_readable_image_at_all(tmp_path):
    (tmp_path / "a.png").write_bytes(b"not an image")
    refused("no readable image in", tmp_path, skip_unreadable=True)
    refused("no readable image in", tmp_path, skip_unreadable=True, size=4)


def test_too_few_images(tmp_path):
    fill(tmp_path, 1)
    refused("leaves 1 to train on and 0 to validate with", tmp_path)
    fill(tmp_path, 20)
    refused("data.validation=0.0 .* leaves 20 to train on and 0", tmp_path, validation=0.0)


@pytest.mark.parametrize("lazy", [False, True])
def test_sizes_that_differ(tmp_path, monkeypatch, lazy):
    if lazy:
        monkeypatch.setattr(image_data, "MEMORY_LIMIT", 0)
    fill(tmp_path, 20)
    picture(0, 8, 12).save(tmp_path / "5.png")
    refused("5.png is 8 x 12, .*0.png is 12 x 12 .*data.size=8", tmp_path)
    refused("5.png is 8 x 12", tmp_path, skip_unreadable=True)
    assert opened(tmp_path, size=8).description["height"] == 8


def test_a_missing_source(tmp_path):
    refused("does not exist", tmp_path / "absent")
    refused("unknown data source 'digts'; did you mean 'digits'", "digts")
    path = tmp_path / "archive.tar"
    path.write_bytes(b"something")
    refused("not an IDX file", path)


def test_lazy_decoding_gives_the_same_samples(tmp_path, monkeypatch):
    for i, (mode, size) in enumerate([("L", (20, 30)), ("RGB", (31, 17)), ("RGBA", (16, 16))] * 4):
        picture(i, *size, mode=mode).save(tmp_path / f"{i}.png")
    options = {"size": (10, 14), "crop": (8, 9), "flip": True}
    now = opened(tmp_path, **options)
    monkeypatch.setattr(image_data, "MEMORY_LIMIT", 0)
    later = opened(tmp_path, **options)
    assert now.description == later.description == {"channels": 3, "height": 8, "width": 9, "classes": []}
    indices, seeds = np.array([3, 0, 3]), np.array([5, 6, 7], np.uint64)
    assert torch.equal(now.train.batch(indices, seeds).samples, later.train.batch(indices, seeds).samples)


@pytest.mark.parametrize("lazy", [False, True])
def test_channels(tmp_path, monkeypatch, lazy):
    if lazy:
        monkeypatch.setattr(image_data, "MEMORY_LIMIT", 0)
    fill(tmp_path / "grey", 4, mode="L")
    assert opened(tmp_path / "grey").description["channels"] == 1
    assert np.array_equal(pixels_of(opened(tmp_path / "grey").train)[0, 0], np.asarray(picture(0, mode="L")))
    assert opened(tmp_path / "grey", channels=3).description["channels"] == 3
    picture(9).save(tmp_path / "grey" / "colour.png")
    assert pixels_of(opened(tmp_path / "grey").train).shape[1] == 3
    assert pixels_of(opened(tmp_path / "grey", channels=1).train).shape[1] == 1


def test_array_and_file_conversions_agree(tmp_path):
    images = np.stack([np.asarray(picture(i)) for i in range(6)])
    np.savez(tmp_path / "a.npz", x=images)
    fill(tmp_path / "files", 6)
    for options in ({"channels": 1}, {"size": 7}, {"channels": 1, "size": (5, 9)}):
        assert np.array_equal(
            pixels_of(opened(tmp_path / "a.npz", **options).train),
            pixels_of(opened(tmp_path / "files", **options).train),
        )


def test_resize_keeps_the_middle_of_the_long_side(tmp_path):
    wide = np.zeros((10, 40, 3), np.uint8)
    wide[:, 12:28] = 255  # a little beyond the central square, because bicubic looks beyond it
    for i in range(3):
        Image.fromarray(wide).save(tmp_path / f"{i}.png")
    assert (pixels_of(opened(tmp_path, size=5).train) == 255).all()


def test_exif_orientation_is_applied(tmp_path):
    image, exif = Image.new("RGB", (16, 8)), Image.Exif()
    image.paste((255, 255, 255), (0, 0, 8, 8))
    exif[0x0112] = 6  # to be rotated by 90 degrees clockwise
    for i in range(3):
        image.save(tmp_path / f"{i}.jpg", exif=exif, quality=95)
    splits = opened(tmp_path)
    assert (splits.description["height"], splits.description["width"]) == (16, 8)
    upright = pixels_of(splits.train)[0]
    assert upright[:, :6].min() > 200 and upright[:, 10:].max() < 50


def test_a_large_photo_is_decoded_like_pillows_resize(tmp_path):
    blocks = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8).repeat(40, 0).repeat(40, 1)
    for i in range(2):
        Image.fromarray(blocks).save(tmp_path / f"{i}.jpg", quality=95)
    found = pixels_of(opened(tmp_path, size=(8, 12), validation=0.5).train)[0].astype(int)
    expected = np.asarray(Image.open(tmp_path / "0.jpg").resize((12, 8), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.abs(found - expected).mean() < 3


def test_16_bit_grey_keeps_its_high_byte(tmp_path):
    values = np.arange(256, dtype=np.uint16).reshape(16, 16)
    for i in range(2):
        Image.fromarray(values * 256 + 77).save(tmp_path / f"{i}.png")
    assert np.array_equal(pixels_of(opened(tmp_path, validation=0.5).train)[0, 0], values)


def test_a_crop_larger_than_the_image():
    refused("data.crop of 9 x 9 is larger than the images of digits, 8 x 8", "digits", crop=9)
    refused("data.crop of 8 x 17", "digits", size=16, crop=(8, 17))
