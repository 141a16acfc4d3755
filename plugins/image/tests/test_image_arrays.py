"""Built-in digits, IDX files and .npz files, and bad input in them."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import SHARED_IMAGES, opened, pixels_of, refused

from nextscale_image.readers import arrays, idx
from nextscale_image.source import load_all


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


def test_digits_are_the_same_without_scikit_learns_file(monkeypatch):
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


def test_without_labels_there_is_no_condition_and_the_split_is_the_same():
    labelled, bare = opened("digits"), opened("digits", labels=False)
    assert bare.conditions == () and bare.description["classes"] == []
    assert bare.train.batch(np.arange(2), None).conditions == {}
    assert np.array_equal(pixels_of(labelled.validation), pixels_of(bare.validation))


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
    refused("truncated: 699 bytes follow its header, which declares 20 x 5 x 7 = 700", tmp_path)
    path.write_bytes(good[:9])
    refused("truncated: its header has 9 of 16 bytes", tmp_path)
    path.write_bytes(good + b"x")
    refused("is too long", tmp_path)
    path.write_bytes(bytes((0, 0, 13, 3)) + good[4:])
    refused("begins with 00 00 0d 03, expected 00 00 08 03", tmp_path)
    path.write_bytes(b"")
    refused("begins with nothing", tmp_path)
    path.unlink()
    packed = path.with_name(path.name + ".gz")
    packed.write_bytes(gzip.compress(good)[:-20])
    refused(f"cannot read file {packed}", tmp_path)
    packed.write_bytes(b"not gzip")
    refused("begins with 6e 6f 74 20, expected", tmp_path)
    packed.unlink()
    refused("t10k-images-idx3-ubyte, but train-images-idx3-ubyte", tmp_path)


def test_idx_image_and_label_counts_that_differ(tmp_path):
    refused("train-labels-idx1-ubyte has 19 labels for the 20 images", idx_folder(tmp_path, labels=19))


def test_a_label_missing_from_the_training_split(tmp_path):
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
        (
            "y has label 2; there are class names for 0 to 1",
            {"x": IMAGES, "y": LABELS, "classes": np.array(["a", "b"])},
        ),
        ("two classes are called 'a'", {"x": IMAGES, "y": LABELS, "classes": np.array(["a", "b", "a"])}),
        ("x holds Python objects, which are never unpickled", {"x": np.array([{}], dtype=object)}),
        ("image 0 is 3 x 5, .* is 6 x 5", {"x_train": IMAGES, "x_test": IMAGES[:, :3]}),
    ):
        refused(match, npz(tmp_path, **named))
    path = npz(tmp_path, x=IMAGES)
    path.write_bytes(path.read_bytes()[:500])
    refused("cannot read .npz file .*data.npz", path)
    with path.open("wb") as file:
        np.save(file, IMAGES)
    refused("single array", path)


def test_other_arrays_in_an_npz_are_not_read(tmp_path):
    assert len(opened(npz(tmp_path, x=IMAGES, captions=np.array([{}], dtype=object))).train) == 18


@pytest.mark.skipif(not SHARED_IMAGES.is_dir(), reason="../shared/data is absent")
def test_emoji():
    splits = opened(SHARED_IMAGES / "emoji_noto_64px_rgba.npz")
    assert len(splits.train) + len(splits.validation) == 1911
    assert splits.description["channels"] == 3 and len(splits.description["classes"]) == 10
    corner = splits.train.images_uint8(np.arange(100))[:, :, 0, 0]
    assert (corner == 255).float().mean() > 0.9  # transparent corners are white
