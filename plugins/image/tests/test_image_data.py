"""Every data source of the image plugin, what it refuses, and augmentation by seed."""

from __future__ import annotations

import gzip
import importlib.util
import logging
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nextscale.errors import DataError
from nextscale.holdout import hold_out
from nextscale.training.randomness import sample_seeds
from nextscale_image import data as image_data
from nextscale_image.config import ImageDataConfig
from nextscale_image.data import open_images
from nextscale_image.readers import arrays, idx
from nextscale_image.source import ImageSource, augment, load_all

SHARED_IMAGES = Path(__file__).parents[4] / "shared" / "data" / "images"


def opened(source: Path | str, **options: Any):
    return open_images(ImageDataConfig(source=str(source), **options))


def refused(match: str, source: Path | str, **options: Any) -> None:
    with pytest.raises(DataError, match=match) as error:
        opened(source, **options)
    assert "\n" not in str(error.value)


def picture(seed: int, height: int = 12, width: int = 12, mode: str = "RGB") -> Image.Image:
    shape = (height, width) if mode == "L" else (height, width, len(mode))
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), mode)


def fill(folder: Path, count: int = 10, **options: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        picture(i, **options).save(folder / f"{i}.png")
    return folder


def pixels_of(source: Any) -> np.ndarray:
    return load_all(source)[0].numpy()


# digits


def test_digits_are_scikit_learns_in_three_disjoint_stratified_splits():
    from sklearn.datasets import load_digits

    splits = opened("digits")
    assert splits.test is not None
    parts = [pixels_of(part) for part in (splits.train, splits.validation, splits.test)]
    assert [len(part) for part in parts] == [1455, 162, 180]
    original = np.round(load_digits().images * 255 / 16).astype(np.uint8).reshape(-1, 64)
    assert sorted(map(bytes, np.concatenate(parts).reshape(-1, 64))) == sorted(map(bytes, original))
    for part in (splits.validation, splits.test):
        counts = np.bincount(part.batch(np.arange(len(part)), None).conditions["label"].numpy())
        assert counts.max() - counts.min() <= 2
    assert splits.description == {"channels": 1, "height": 8, "width": 8, "classes": [str(d) for d in range(10)]}
    (condition,) = splits.conditions
    assert (condition.name, condition.kind, condition.size, condition.names[3]) == ("label", "class", 10, "3")


def test_digits_test_split_does_not_move_with_the_split_seed():
    one, other = opened("digits"), opened("digits", split_seed=1, validation=0.3)
    assert np.array_equal(pixels_of(one.test), pixels_of(other.test))
    assert not np.array_equal(pixels_of(one.validation)[:50], pixels_of(other.validation)[:50])
    assert len(other.validation) == round(0.3 * 1617)


def test_digits_are_the_same_where_scikit_learns_file_is_elsewhere(monkeypatch):
    table = arrays.digits_table()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert np.array_equal(table, arrays.digits_table())


def test_a_batch_is_float_in_minus_one_to_one_with_labels():
    splits = opened("digits")
    batch = splits.train.batch(np.arange(7), None)
    assert batch.samples.shape == (7, 1, 8, 8) and batch.samples.dtype == torch.float32
    assert (batch.samples.min(), batch.samples.max()) == (-1, 1)
    assert batch.conditions["label"].dtype == torch.int64
    raw = splits.train.images_uint8(np.arange(7))
    assert torch.equal(((batch.samples + 1) * 127.5).round().to(torch.uint8), raw)


def test_labels_false_gives_no_condition_and_the_same_split():
    labelled, bare = opened("digits"), opened("digits", labels=False)
    assert bare.conditions == () and bare.description["classes"] == []
    assert bare.train.batch(np.arange(2), None).conditions == {}
    assert np.array_equal(pixels_of(labelled.validation), pixels_of(bare.validation))


# IDX


def write_idx(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def idx_folder(folder: Path, suffix: str = "", labels: int = 20) -> Path:
    rng = np.random.default_rng(0)
    for name, count, label_count in (("train", 20, labels), ("t10k", 6, 6)):
        write_idx(folder / f"{name}-images-idx3-ubyte{suffix}", rng.integers(0, 256, (count, 5, 7), dtype=np.uint8))
        write_idx(folder / f"{name}-labels-idx1-ubyte{suffix}", np.arange(label_count, dtype=np.uint8) % 2)
    return folder


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_folder(tmp_path, suffix):
    splits = opened(idx_folder(tmp_path, suffix))
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (18, 2, 6)
    assert splits.description == {"channels": 1, "height": 5, "width": 7, "classes": ["0", "1"]}
    expected = idx.read_idx(tmp_path / f"t10k-images-idx3-ubyte{suffix}", 3)
    assert np.array_equal(pixels_of(splits.test)[:, 0], expected)


def test_one_idx_file_finds_its_labels(tmp_path):
    idx_folder(tmp_path, ".gz")
    splits = opened(tmp_path / "train-images-idx3-ubyte.gz")
    assert splits.test is None and splits.description["classes"] == ["0", "1"]
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    assert opened(tmp_path / "train-images-idx3-ubyte.gz").conditions == ()


def test_idx_files_that_are_refused(tmp_path):
    path = idx_folder(tmp_path) / "train-images-idx3-ubyte"
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    refused("truncated: 699 bytes follow its header, which announces 20 x 5 x 7 = 700", tmp_path)
    path.write_bytes(good[:9])
    refused("truncated: its header has 9 of 16 bytes", tmp_path)
    path.write_bytes(good + b"x")
    refused("is too long", tmp_path)
    path.write_bytes(bytes((0, 0, 13, 3)) + good[4:])
    refused("begins with 00 00 0d 03, where 00 00 08 03 is expected", tmp_path)
    path.write_bytes(b"")
    refused("begins with nothing", tmp_path)
    path.unlink()
    packed = path.with_name(path.name + ".gz")
    packed.write_bytes(gzip.compress(good)[:-20])
    refused(f"cannot read {packed}", tmp_path)
    packed.write_bytes(b"not gzip")
    refused(f"cannot read {packed}", tmp_path)
    packed.unlink()
    refused("t10k-images-idx3-ubyte, where train-images-idx3-ubyte", tmp_path)


def test_idx_counts_that_differ(tmp_path):
    refused("train-labels-idx1-ubyte has 19 labels for the 20 images", idx_folder(tmp_path, labels=19))


def test_a_label_that_training_lacks(tmp_path):
    write_idx(idx_folder(tmp_path) / "t10k-labels-idx1-ubyte", np.array([0, 1, 0, 1, 0, 7], np.uint8))
    refused("train lacks 7, which test has", tmp_path)
    assert opened(tmp_path, labels=False).conditions == ()


@pytest.mark.skipif(not idx.FASHION_MNIST.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist():
    splits = opened("fashion-mnist")
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (54000, 6000, 10000)
    assert splits.description["classes"][9] == "Ankle boot"
    assert (splits.description["height"], splits.description["channels"]) == (28, 1)
    images, labels = load_all(splits.train, limit=500)
    assert images.shape == (500, 1, 28, 28) and len(labels.unique()) == 10


def test_fashion_mnist_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setattr(idx, "FASHION_MNIST", tmp_path / "absent")
    refused("apt install dataset-fashion-mnist", "fashion-mnist")


# Folders


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


def test_a_folder_holds_what_its_files_hold(tmp_path):
    fill(tmp_path, 40)
    splits = opened(tmp_path)
    assert splits.conditions == () and splits.description["classes"] == []
    images = [np.asarray(picture(i)).transpose(2, 0, 1) for i in range(40)]
    found = np.concatenate([pixels_of(splits.train), pixels_of(splits.validation)])
    assert sorted(map(bytes, found)) == sorted(bytes(np.ascontiguousarray(image)) for image in images)


def test_numbered_classes_are_in_the_order_of_their_numbers(tmp_path):
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


def test_validation_is_held_out_of_train_beside_an_explicit_test(tmp_path):
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


def test_a_flat_test_of_a_labelled_train(tmp_path):
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
    refused("images in extra beside them", tmp_path)
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
    assert f"left out 1 of 20 images as unreadable, first {bad}" in caplog.text
    assert len(pixels_of(splits.train)) == len(splits.train)


def test_a_truncated_image_is_found(tmp_path, monkeypatch):
    bad = fill(tmp_path, 20) / "7.png"
    bad.write_bytes(bad.read_bytes()[:-60])
    refused(f"cannot read image {bad} ", tmp_path)
    assert len(opened(tmp_path, skip_unreadable=True).train) == 17
    # Data that is decoded batch by batch: found on reading, or at once where it is to be skipped.
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


# Sizes and colours


def test_decoding_lazily_gives_the_same(tmp_path, monkeypatch):
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
    wide[:, 12:28] = 255  # a little beyond the central square, as bicubic looks beyond it
    for i in range(3):
        Image.fromarray(wide).save(tmp_path / f"{i}.png")
    assert (pixels_of(opened(tmp_path, size=5).train) == 255).all()


def test_exif_orientation_is_applied(tmp_path):
    image, exif = Image.new("RGB", (16, 8)), Image.Exif()
    image.paste((255, 255, 255), (0, 0, 8, 8))
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
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


# .npz


def npz(path: Path, **named: Any) -> Path:
    np.savez(path / "data.npz", **named)
    return path / "data.npz"


IMAGES = np.random.default_rng(0).integers(0, 256, (20, 6, 5, 3), dtype=np.uint8)
LABELS = np.arange(20) % 3


@pytest.mark.parametrize(("image_key", "label_key"), [("x", "y"), ("images", "labels"), ("arr_0", "y")])
def test_npz(tmp_path, image_key, label_key):
    splits = opened(npz(tmp_path, **{image_key: IMAGES, label_key: LABELS}, classes=np.array(["a", "b", "c"])))
    assert splits.description == {"channels": 3, "height": 6, "width": 5, "classes": ["a", "b", "c"]}
    assert splits.test is None and len(splits.train) == 18
    where = [bytes(image) for image in IMAGES.transpose(0, 3, 1, 2).copy()]
    images, labels = load_all(splits.train)
    for image, label in zip(images.numpy(), labels.tolist(), strict=True):
        assert LABELS[where.index(bytes(image))] == label


def test_npz_with_splits(tmp_path):
    splits = opened(npz(tmp_path, x_train=IMAGES, y_train=LABELS, x_test=IMAGES[:4], y_test=LABELS[:4]))
    assert np.array_equal(pixels_of(splits.test), IMAGES[:4].transpose(0, 3, 1, 2))
    assert splits.description["classes"] == ["0", "1", "2"]
    splits = opened(npz(tmp_path, x_train=IMAGES, x_val=IMAGES[:5]))
    assert (len(splits.train), len(splits.validation), splits.test) == (20, 5, None)


def test_npz_floats_alpha_and_grey(tmp_path):
    floats = np.linspace(0, 1, 256, dtype=np.float32).reshape(1, 16, 16).repeat(2, 0)
    grey = opened(npz(tmp_path, x=floats), validation=0.5)
    assert np.array_equal(pixels_of(grey.train)[0].ravel(), np.arange(256))
    rgba = np.zeros((2, 2, 2, 4), np.uint8)
    rgba[:, 0, :, 3], rgba[:, 1, 0, 3] = 255, 51
    clear = pixels_of(opened(npz(tmp_path, x=rgba), validation=0.5).train)[0]
    assert clear[:, 0].max() == 0 and (clear[:, 1, 0] == 204).all() and (clear[:, 1, 1] == 255).all()


def test_npz_files_that_are_refused(tmp_path):
    bad = IMAGES / 255.0
    bad[0, 0, 0, 0] = np.nan
    for match, named in (
        ("holds z, but no x", {"z": IMAGES}),
        ("no images in", {"x": IMAGES[:0]}),
        ("floats from 0 to 255; floats must lie in 0 to 1", {"x": IMAGES.astype(np.float32)}),
        ("floats must lie in 0 to 1", {"x": bad}),
        ("is int64; images must be uint8", {"x": IMAGES.astype(np.int64)}),
        ("must be N H W, or N H W C .* not 20 x 3 x 6 x 5", {"x": IMAGES.transpose(0, 3, 1, 2)}),
        ("y has 19 labels for the 20 images", {"x": IMAGES, "y": LABELS[1:]}),
        ("y must be N integers", {"x": IMAGES, "y": LABELS * 0.5}),
        ("y must be N integers", {"x": IMAGES, "y": LABELS - 1}),
        ("classes has 2 names, but y goes up to 2", {"x": IMAGES, "y": LABELS, "classes": np.array(["a", "b"])}),
        ("cannot read .*pickle", {"x": np.array([{}], dtype=object)}),
        ("image 0 is 3 x 5, .* is 6 x 5", {"x_train": IMAGES, "x_test": IMAGES[:, :3]}),
    ):
        refused(match, npz(tmp_path, **named))
    path = npz(tmp_path, x=IMAGES)
    path.write_bytes(path.read_bytes()[:500])
    refused("cannot read .*data.npz as an .npz file", path)
    with path.open("wb") as file:
        np.save(file, IMAGES)
    refused("single array", path)


def test_other_arrays_of_an_npz_are_not_read(tmp_path):
    assert len(opened(npz(tmp_path, x=IMAGES, captions=np.array([{}], dtype=object))).train) == 18


@pytest.mark.skipif(not SHARED_IMAGES.is_dir(), reason="../shared/data is absent")
def test_emoji():
    splits = opened(SHARED_IMAGES / "emoji_noto_64px_rgba.npz")
    assert len(splits.train) + len(splits.validation) == 1911
    assert splits.description["channels"] == 3 and len(splits.description["classes"]) == 10
    corner = splits.train.images_uint8(np.arange(100))[:, :, 0, 0]
    assert (corner == 255).float().mean() > 0.9  # transparent corners are white


# Hugging Face


class FakeTable:
    """As much of ``datasets.Dataset`` as the reader uses, with the real one's rows."""

    def __init__(self, features: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        self.features, self.rows = features, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | str) -> Any:
        return [row[key] for row in self.rows] if isinstance(key, str) else self.rows[key]

    def select_columns(self, names: list[str]) -> FakeTable:
        return FakeTable({name: self.features[name] for name in names}, self.rows)

    def cast_column(self, name: str, feature: Any) -> FakeTable:
        assert feature.decode is False
        return FakeTable({**self.features, name: feature}, self.rows)


@pytest.fixture
def fake_datasets(monkeypatch, tmp_path):
    module: Any = ModuleType("datasets")

    class FakeImage:
        def __init__(self, decode: bool = True) -> None:
            self.decode = decode

    class ClassLabel:
        def __init__(self, names: list[str]) -> None:
            self.names = names

    def table(count: int, label: int | None = None, extra: dict[str, Any] | None = None) -> FakeTable:
        rows = []
        for i in range(count):
            path = tmp_path / f"hub{i}.png"
            picture(i).save(path)
            inside = {"bytes": path.read_bytes(), "path": None} if i % 2 else {"bytes": None, "path": str(path)}
            rows.append({"img": inside, "label": i % 2 if label is None else label, "id": i})
        features = {"id": "int64", "img": FakeImage(), "label": ClassLabel(["cat", "dog"]), **(extra or {})}
        return FakeTable(features, rows)

    module.Image, module.ClassLabel, module.table = FakeImage, ClassLabel, table
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


def test_hub_data_set(fake_datasets):
    asked = []

    def load_dataset(name: str, configuration: str | None) -> dict[str, FakeTable]:
        asked.append((name, configuration))
        return {"train": fake_datasets.table(20), "test": fake_datasets.table(4)}

    fake_datasets.load_dataset = load_dataset
    splits = opened("hf:someone/pets:small")
    assert asked == [("someone/pets", "small")]
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (18, 2, 4)
    assert splits.description == {"channels": 3, "height": 12, "width": 12, "classes": ["cat", "dog"]}
    images, labels = load_all(splits.test)
    assert (
        np.array_equal(images[3].numpy(), np.asarray(picture(3)).transpose(2, 0, 1)) and labels.tolist() == [0, 1] * 2
    )


def test_saved_data_set(fake_datasets, tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    fake_datasets.load_from_disk = lambda path: fake_datasets.table(20)
    assert len(opened(tmp_path / "saved").train) == 18


def test_hub_data_sets_that_are_refused(fake_datasets, caplog):
    def given_splits(found: Any) -> None:
        fake_datasets.load_dataset = lambda name, configuration: found

    table = fake_datasets.table(20)
    table.rows[5]["img"] = {"bytes": b"no image", "path": None}
    given_splits({"train": table})
    refused("cannot read image hf:x train row 5", "hf:x")
    given_splits({"a": fake_datasets.table(2), "b": fake_datasets.table(2)})
    refused("has the splits a, b, but no train split", "hf:x")
    given_splits({"train": fake_datasets.table(4, label=-1)})
    refused("train row 0 has label -1", "hf:x")
    given_splits({"train": fake_datasets.table(4, extra={"coarse": 0, "img": "string"})})
    refused("no image column", "hf:x")
    two = {"label": 0, "fine": fake_datasets.ClassLabel(["a"]), "coarse": fake_datasets.ClassLabel(["b"])}
    given_splits({"train": fake_datasets.table(4, extra=two)})
    refused(r"several ClassLabel columns \(fine, coarse\)", "hf:x")
    refused("needs the data set's name", "hf:")
    # A test split whose labels are withheld is left out, not refused.
    given_splits({"train": fake_datasets.table(4), "test": fake_datasets.table(4, label=-1)})
    assert opened("hf:x", validation=0.5).test is None
    assert "labels are withheld" in caplog.text

    def offline(name: str, configuration: str | None) -> None:
        raise ConnectionError("no\nnetwork")

    fake_datasets.load_dataset = offline
    refused("cannot load hf:x: ConnectionError: no network", "hf:x")


def test_hub_without_datasets_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused(r"pip install 'nextscale\[huggingface\]'", "hf:ylecun/mnist")


def test_data_set_saved_by_the_real_library(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the huggingface extra is not installed")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"]), "id": datasets.Value("int64")}
    )

    def table(count: int) -> Any:
        columns = {"image": [picture(i) for i in range(count)], "label": [i % 2 for i in range(count)]}
        return datasets.Dataset.from_dict({**columns, "id": list(range(count))}, features=features)

    datasets.DatasetDict({"train": table(20), "test": table(4)}).save_to_disk(str(tmp_path / "both"))
    table(10).save_to_disk(str(tmp_path / "one"))
    images, labels = load_all(opened(tmp_path / "both").test)
    assert (
        np.array_equal(images[3].numpy(), np.asarray(picture(3)).transpose(2, 0, 1)) and labels.tolist() == [0, 1] * 2
    )
    assert len(opened(tmp_path / "one").train) == 9


# The hold-out


@given(st.lists(st.integers(0, 5), min_size=1, max_size=80), st.floats(0.01, 0.99), st.integers(0, 2**32))
@settings(max_examples=80, deadline=None)
def test_hold_out_is_a_stratified_partition(labels, share, seed):
    labels_N = np.array(labels)
    kept, held = hold_out(labels_N, len(labels_N), share, seed)
    assert sorted([*kept, *held]) == list(range(len(labels_N)))
    sizes, taken = np.bincount(labels_N), np.bincount(labels_N[held], minlength=labels_N.max() + 1)
    assert (taken <= np.maximum(sizes - 1, 0)).all()
    wanted = max(1, round(share * len(labels_N)))
    exact = sizes * wanted / len(labels_N)
    assert (np.abs(taken - exact) < 1.0001).all()
    at_limit = (taken == np.maximum(sizes - 1, 0)).any()
    assert taken.sum() <= wanted if at_limit else taken.sum() == wanted
    again = hold_out(labels_N, len(labels_N), share, seed)
    assert np.array_equal(held, again[1])


def test_hold_out_takes_another_share_by_another_seed():
    held = [tuple(hold_out(None, 1000, 0.1, seed)[1]) for seed in range(4)]
    assert len(set(held)) == 4 and {len(rows) for rows in held} == {100}


# Augmentation


def source_of(count: int = 9, crop: tuple[int, int] = (5, 6), flip: bool = True) -> ImageSource:
    images = np.random.default_rng(1).integers(0, 256, (count, 3, 8, 10), dtype=np.uint8)
    return ImageSource(images, np.arange(count), np.arange(count), crop, flip)


SEEDS = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 2**64 - 1)), min_size=1, max_size=12)


@given(SEEDS, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_augmentation_depends_on_the_seed_alone_not_on_the_batch(rows, random):
    source = source_of()

    def samples(rows):
        indices, seeds = zip(*rows, strict=True)
        return source.batch(np.array(indices), np.array(seeds, np.uint64)).samples

    together = samples(rows)
    order = list(range(len(rows)))
    random.shuffle(order)
    assert torch.equal(samples([rows[i] for i in order]), together[order])
    assert torch.equal(torch.cat([samples([row]) for row in rows]), together)


@given(st.integers(0, 2**64 - 1))
@settings(max_examples=60, deadline=None)
def test_an_augmented_sample_is_a_window_of_the_image_or_its_mirror(seed):
    source = source_of()
    whole = torch.from_numpy(source.pixels[np.array([4])])[0]
    sample = source.batch(np.array([4]), np.array([seed], np.uint64)).samples[0]
    raw = ((sample + 1) * 127.5).round().to(torch.uint8)
    windows = [whole[:, y : y + 5, x : x + 6] for y in range(4) for x in range(5)]
    assert any(torch.equal(raw, window) or torch.equal(raw, window.flip(-1)) for window in windows)


def test_every_offset_and_both_mirrors_occur_equally_often():
    grid = np.arange(80, dtype=np.uint8).reshape(1, 1, 8, 10).repeat(8000, 0)
    cut = augment(grid, sample_seeds(3, np.arange(8000)), (5, 6), flip=True)
    mirrored = cut[:, 0, 0, 0] > cut[:, 0, 0, 1]
    corner = np.where(mirrored, cut[:, 0, 0, -1], cut[:, 0, 0, 0])
    values, counts = np.unique(corner * 2 + mirrored, return_counts=True)
    assert len(values) == 4 * 5 * 2
    assert ((counts - 200) ** 2 / 200).sum() < 80  # chi-squared with 39 degrees of freedom: p < 0.0002


def test_without_seeds_the_crop_is_central_and_nothing_is_mirrored():
    source = source_of()
    expected = torch.from_numpy(source.pixels[np.arange(3)][:, :, 1:6, 2:8])
    assert torch.equal(source.images_uint8(np.arange(3)), expected)
    assert torch.equal(source.batch(np.arange(3), None).samples, expected / 127.5 - 1)


def test_reading_never_changes_the_data():
    source = source_of(crop=(8, 10))
    before = source.pixels[np.arange(9)]
    source.batch(np.arange(9), sample_seeds(0, np.arange(9))).samples.zero_()
    source.images_uint8(np.arange(9)).zero_()
    assert np.array_equal(source.pixels[np.arange(9)], before)


def test_load_all_with_a_limit_draws_from_everywhere():
    source = source_of(9)
    images, labels = load_all(source, limit=4)
    assert images.shape == (4, 3, 5, 6) and images.dtype == torch.uint8
    assert torch.equal(images, source.images_uint8(labels.numpy())) and labels.tolist() != [0, 1, 2, 3]
    assert len(load_all(source, limit=50)[0]) == 9


def test_opening_twice_gives_the_same(tmp_path):
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        fill(Path(folder), 30)
        one, other = opened(folder), opened(folder)
    assert np.array_equal(pixels_of(one.validation), pixels_of(other.validation))
