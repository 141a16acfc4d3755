"""Continuing a sample from its start, on grids of any number of axes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextscale.api import Model
from nextscale.config.run import load_config
from nextscale.errors import NextscaleError
from nextscale.grid import Layout
from nextscale.sampling.continuation import go_on, held, predict
from nextscale.testing.tiny import grid_tokenizer, transformer_for
from nextscale_image.modality import ImageModality


def model_of(shape: tuple[int, ...]) -> Model:
    tokenizer = grid_tokenizer(shape)
    return Model(ImageModality(), tokenizer, transformer_for(tokenizer), load_config("image"))


@given(st.integers(2, 6), st.data())
@settings(max_examples=50, deadline=None)
def test_the_last_known_place_is_held(total: int, data: st.DataObject):
    places = data.draw(st.integers(1, total - 1))
    samples = torch.randn(2, 1, total, 3)
    start = held(samples, places)
    assert torch.equal(start[:, :, :places], samples[:, :, :places])
    assert torch.equal(start[:, :, places:], samples[:, :, places - 1 : places].expand(-1, -1, total - places, -1))
    for wrong in (0, total):
        with pytest.raises(NextscaleError, match=f"give 1 to {total - 1}"):
            held(samples, wrong)


@given(st.integers(2, 13), st.integers(2, 4), st.booleans(), st.booleans())
@settings(max_examples=50, deadline=None)
def test_a_start_ends_between_cells(length: int, factor: int, causal: bool, alone: bool):
    tokenizer = grid_tokenizer((length, 4))
    tokenizer.factor = (factor, 2)
    tokenizer.layout = Layout(2, causal=causal or alone, alone=alone)
    for places in range(1, length):
        keep = torch.zeros(1, length, 4, dtype=torch.bool)
        keep[:, :places] = True
        cells = tokenizer._cells(keep)
        assert (places in tokenizer.cuts(length)) == bool(((cells == 0) | (cells == 1)).all())


def test_a_start_within_a_cell_is_refused():
    model, samples = model_of((8,)), torch.randn(1, 2, 8)
    with pytest.raises(NextscaleError, match=r"a start of 3 places ends inside .*: give 2 or 4"):
        predict(model, samples, 3)


@pytest.mark.parametrize("shape", [(8,), (6, 4), (6, 4, 4)])
def test_parts_follow_one_another(shape: tuple[int, ...]):
    model, samples = model_of(shape), torch.randn(2, 2, *shape)
    parts = list(go_on(model, samples, 2, 3, seed=1, temperature=100.0))
    assert [part.shape[2] for part in parts] == [shape[0], shape[0] - 2, shape[0] - 2]
    other = samples.clone()
    other[:, :, 2:] = 0
    again = list(go_on(model, other, 2, 2, seed=1, temperature=100.0))
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=False)), "places after the start are not read"
    assert not torch.equal(parts[0], predict(model, samples, 2, seed=2, temperature=100.0).samples)
