"""The hold-out split, and augmentation by seed."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import fill, opened, pixels_of

from nextscale.randomness import sample_seeds
from nextscale.toolkit.splits import hold_out
from nextscale_image.source import ImageSource, augment, load_all


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


def test_hold_out_differs_between_seeds():
    held = [tuple(hold_out(None, 1000, 0.1, seed)[1]) for seed in range(4)]
    assert len(set(held)) == 4 and {len(rows) for rows in held} == {100}


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


def test_opening_twice_gives_the_same_split(tmp_path):
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        fill(Path(folder), 30)
        one, other = opened(folder), opened(folder)
    assert np.array_equal(pixels_of(one.validation), pixels_of(other.validation))
