"""Captions: what they say, and that pictures show them without losing anything else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextscale.captions import LONGEST, class_captions, scale_captions
from nextscale.conditioning import ConditionSpec
from nextscale.tokens.pyramid import Schedule
from nextscale.toolkit.lettering import INK, PAPER, lettered
from nextscale.toolkit.pictures import FILM_COLUMNS, FILM_ROWS, GAP, LEGIBLE_PIXELS, film_strip, tile

TEXTS = st.text(st.characters(), max_size=60)  # with surrogates, as in names of folders that are no text


def tokenizer(*shapes: tuple[int, ...], adaptive: bool = False) -> Any:
    return SimpleNamespace(adaptive=adaptive, schedule=lambda: Schedule.of(shapes))


def test_captions_of_scales() -> None:
    assert scale_captions(tokenizer((1, 1), (2, 3)), 2) == ["scale 0 · 1x1 · 1 token", "scale 1 · 2x3 · 6 tokens"]
    assert scale_captions(tokenizer((2048,)), 1) == ["scale 0 · 2,048 tokens"]
    for other, number in ((tokenizer((1,), adaptive=True), 1), (tokenizer((1,), (2,)), 3)):
        assert scale_captions(other, number) == [f"scale {k}" for k in range(number)]


def test_captions_of_classes() -> None:
    label = ConditionSpec(name="label", size=3, names=("cat", "a\nb \udcff"))
    shade, size = ConditionSpec(name="shade", size=2), ConditionSpec(name="size", kind="count", size=9)
    drawn = {"label": torch.tensor([0, 1, 2]), "size": torch.tensor([5, 6, 7])}
    assert class_captions([label, shade, size], drawn) == ["cat", "a b ?", "label 2"]
    both = class_captions([label, shade], drawn | {"shade": torch.tensor([1, 0, 1])})
    assert both == ["cat · shade 1", "a b ? · shade 0", "label 2 · shade 1"]
    assert class_captions([label, size], {"size": drawn["size"]}) is None
    long = ConditionSpec(name="label", size=1, names=("x" * 99,))
    assert class_captions([long], {"label": torch.tensor([0])}) == ["x" * (LONGEST - 1) + "…"]


@given(st.lists(TEXTS, min_size=1, max_size=4), st.integers(16, 300))
@settings(max_examples=60, deadline=None)
def test_any_text_becomes_strips_of_the_asked_width(texts: list[str], width: int) -> None:
    strips = lettered(texts, width)
    assert strips.shape[0] == len(texts) and strips.shape[2:] == (width, 1) and strips.dtype == np.uint8
    assert (strips[:, 0] == PAPER).all()


def test_letters_are_drawn_and_long_texts_are_wrapped() -> None:
    short, wrapped = lettered(["cat"], 64), lettered(["scale 2 · 4x4 · 16 tokens"], 64)
    assert short.min() < 64 and wrapped.shape[1] > 2 * short.shape[1] - 8
    assert (lettered(["cat", ""], 64)[1] == PAPER).all()
    for column in (0, -1):  # nothing runs over the edge
        assert (wrapped[0, :, column] > INK + 64).all()


@given(st.integers(1, 10), st.integers(1, 20), st.sampled_from([1, 3]), st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_film_strip_is_at_most_a_screen_and_keeps_first_and_last(
    rows: int, number: int, channels: int, captioned: bool
) -> None:
    steps = [np.full((rows, 8, 8, channels), 10 * k, np.uint8) for k in range(number)]
    captions = [f"scale {k}" for k in range(number)]
    strip = film_strip(steps, captions if captioned else None)
    columns, shown, cell = min(number, FILM_COLUMNS), min(rows, FILM_ROWS), LEGIBLE_PIXELS + GAP
    header = lettered(captions, LEGIBLE_PIXELS).shape[1] if captioned else 0
    assert strip.shape == (header + shown * cell + GAP, columns * cell + GAP, channels)
    kept = strip[header + GAP, GAP::cell, 0] // 10
    assert kept[0] == 0 and kept[-1] == number - 1 and (np.diff(kept.astype(int)) > 0).all()
    assert number < 2 or kept[-2] == number - 2, "the result beside the original"
    if captioned:
        np.testing.assert_array_equal(strip[header:], film_strip(steps))
        for column, k in enumerate(kept):
            text = strip[:header, GAP + column * cell :][:, :LEGIBLE_PIXELS]
            np.testing.assert_array_equal(text[..., :1], lettered(captions, LEGIBLE_PIXELS)[k])


def test_captions_below_tiles_leave_the_tiles_alone() -> None:
    images = np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3), np.uint8)
    picture, strip = tile(images, 2, ["a", "b", "c", "d", "e"]), lettered(["a"], 64)
    height = 64 + strip.shape[1] + GAP
    for i, image in enumerate(images):
        top, left = GAP + i // 2 * height, GAP + i % 2 * (64 + GAP)
        np.testing.assert_array_equal(picture[top : top + 64, left : left + 64], image)
    np.testing.assert_array_equal(picture[GAP + 64 :, GAP:][: strip.shape[1], :64, :1], strip[0])


def test_captions_that_do_not_match_are_refused() -> None:
    images = np.zeros((2, 8, 8, 1), np.uint8)
    with pytest.raises(ValueError, match="1 captions for 2 images"):
        tile(images, 2, ["one"])
    with pytest.raises(ValueError, match="1 captions for 2 steps"):
        film_strip([images, images], ["one"])
    with pytest.raises(ValueError, match="same B H W C"):
        film_strip([])
