"""Editing by a mask over the sample: masks, pasting, and ``Model.edit``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import nextscale
from nextscale.api import Model
from nextscale.errors import ConfigError, NextscaleError
from nextscale.sampling.editing import as_mask, box_mask, paste_back, with_guess
from nextscale.testing.tiny import grid_tokenizer, transformer_for
from nextscale.toolkit.metrics import psnr_where


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> Model:
    return nextscale.load(tiny_run, "cpu")


def digits(model: Model, number: int = 3) -> Tensor:
    import numpy as np

    return model.modality.open_data(model.config.data).validation.batch(np.arange(number), None).samples


# Masks.


def test_a_box_is_starts_then_ends():
    mask = box_mask((1, 0, 3, 2), (4, 5))
    assert mask.sum() == 4 and mask[1:3, 0:2].all()
    assert box_mask((2, 5), (7,)).tolist() == [False, False, True, True, True, False, False]


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((0, 0, 5, 5), "the box 0,0,5,5 is empty or not inside the sample, which is 4 x 5"),
        ((2, 2, 2, 3), "empty"),
        ((-1, 0, 2, 2), "not inside"),
        ((0, 2), "takes 4 numbers, starts then ends; got 2: 0,2"),
    ],
)
def test_boxes_that_do_not_fit(box: tuple[int, ...], message: str):
    with pytest.raises(NextscaleError, match=message):
        box_mask(box, (4, 5))


def test_masks_for_all_samples_or_each():
    samples, mask = torch.zeros(3, 2, 4, 5), torch.rand(4, 5) < 0.5
    for one in (mask, mask[None], mask.expand(3, 4, 5), mask.expand(3, 1, 4, 5), mask.numpy()):
        assert torch.equal(as_mask(one, samples), mask.expand(3, 4, 5))
    with pytest.raises(NextscaleError, match="the mask is 5 x 4; the samples are 4 x 5"):
        as_mask(mask.T, samples)
    with pytest.raises(NextscaleError, match="only samples on a grid"):
        as_mask(mask, ["a graph"])


@pytest.mark.parametrize("shape", [(8,), (8, 8), (5, 6, 7), (7, 5)])
def test_padded_and_oblong_masks(shape: tuple[int, ...]):
    """The latent grid covers the padded sample. If a sample is kept up to its border, the padding is kept, too."""
    tokenizer = grid_tokenizer(shape)
    keep = torch.ones(2, *shape, dtype=torch.bool)
    keep[1, : shape[0] // 2] = False
    tokens, schedule = tokenizer.keep_tokens(keep), tokenizer.schedule_for(shape)
    assert tokens.shape == (2, schedule.length) and tokens[0].all()
    finest = tokens[1, schedule.span(2)].view(schedule.scales[-1].shape)
    assert not finest[0].any() and finest[-1].all()
    assert tokens[1, 0], "scales of three tokens or fewer are kept whole"


def test_pasting_fades_in_from_the_border_inwards():
    keep = torch.ones(1, 9, dtype=torch.bool)
    keep[:, :3] = False
    one, other = torch.ones(1, 1, 9), torch.zeros(1, 1, 9)
    assert paste_back(one, other, keep)[0, 0].tolist() == [0.0] * 3 + [1.0] * 6
    torch.testing.assert_close(paste_back(one, other, keep, 3)[0, 0], torch.tensor([0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1]))
    assert torch.equal(paste_back(one, other, torch.ones_like(keep), 4), one)


def test_psnr_is_over_the_places_asked_for():
    one, other = torch.zeros(1, 2, 4), torch.full((1, 2, 4), 0.2)
    other[..., :2] = 0
    assert psnr_where(one, other, torch.tensor([[False, False, True, True]])) == pytest.approx(20)
    assert psnr_where(one, other, torch.tensor([[True, True, False, False]])) == 100


# Models.


def test_everything_kept_is_the_reconstruction_or_better(model: Model):
    samples, keep = digits(model), torch.ones(8, 8, dtype=torch.bool)
    plain = model.tokenizer.decode_tokens(model.tokenizer.encode(samples)).detach()
    replayed = model.edit(samples, keep, replay=True)
    torch.testing.assert_close(replayed.samples, plain, atol=1e-5, rtol=0)
    edited = model.edit(samples, keep)
    error, most = ((each - samples).square().flatten(1).sum(1) for each in (edited.samples, plain))
    assert (error <= most + 1e-5).all()
    assert edited.conditions == {}, "an edit is unconditional unless a class is given"
    pasted = model.edit(samples, torch.ones(8, 8, dtype=torch.bool), paste=True)
    assert torch.equal(pasted.samples, samples)


def test_nothing_kept_is_a_sample(model: Model):
    samples, keep = digits(model), torch.zeros(8, 8, dtype=torch.bool)
    drawn = model.generate(3, seed=5, label=[1, 2, 3], guidance=2.0)
    for replay in (False, True):
        edited = model.edit(samples, keep, seed=5, label=[1, 2, 3], guidance=2.0, replay=replay)
        torch.testing.assert_close(edited.samples, drawn.samples)


def test_batches_do_not_change_an_edit_and_steps_end_in_it(model: Model):
    samples, keep = digits(model), box_mask((0, 0, 8, 4), (8, 8))
    whole = model.edit(samples, keep, label=3, return_steps=True)
    parts = model.edit(samples, keep, label=3, batch_size=2)
    torch.testing.assert_close(whole.samples, parts.samples, atol=1e-5, rtol=0)
    assert len(whole.steps) == 4 and torch.equal(whole.steps[-1], whole.samples)


def test_odd_samples_come_back_in_their_own_size():
    tokenizer = grid_tokenizer((6, 6))
    rotary = transformer_for(tokenizer, positions="rotary")
    from nextscale.config.run import load_config
    from nextscale_image.modality import ImageModality

    model = Model(ImageModality(), tokenizer, rotary, load_config("image"))
    samples = torch.randn(2, 2, 7, 5)
    assert model.edit(samples, box_mask((0, 0, 3, 5), (7, 5))).samples.shape == samples.shape
    tied = Model(ImageModality(), tokenizer, transformer_for(tokenizer), load_config("image"))
    with pytest.raises(ConfigError, match="tied to the schedule"):
        tied.edit(torch.randn(2, 2, 8, 5), box_mask((0, 0, 3, 5), (8, 5)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep": torch.ones(7, 8)}, "the mask is 7 x 8; the samples are 8 x 8"),
        ({"label": 10}, "label 10 is out of range"),
        ({"lable": 1}, "did you mean 'label'"),
        ({"feather": -1}, "feather -1"),
    ],
)
def test_impossible_edits(model: Model, changes: dict[str, Any], message: str):
    arguments = {"samples": digits(model), "keep": torch.ones(8, 8), **changes}
    with pytest.raises(NextscaleError, match=message):
        model.edit(**arguments)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("native", [False, True])
def test_half_precision_is_half_the_weights_and_nearly_the_same_sample(
    tiny_run: Path, model: Model, precision: str, native: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("nextscale.sampling.precision.multiplies", lambda dtype, device: native)
    half = nextscale.load(tiny_run, "cpu", precision=precision)
    stored = [value for name, value in half.transformer.state_dict().items() if "qkv" in name and value.dim() == 2]
    assert stored and all(value.element_size() == 2 for value in stored)
    ours = half.generate(2, seed=1, label=3, top_k=1, guidance=0.0).samples
    theirs = model.generate(2, seed=1, label=3, top_k=1, guidance=0.0).samples
    assert ours.dtype == torch.float32
    assert (ours - theirs).abs().mean() < 0.1
    assert torch.equal(half.tokenizer.encode(digits(model)).tokens, model.tokenizer.encode(digits(model)).tokens)


def test_an_unknown_precision(tiny_run: Path):
    with pytest.raises(ConfigError, match="unknown precision 'bf61'; did you mean 'bf16'"):
        nextscale.load(tiny_run, "cpu", precision="bf61")


def test_decoding_in_chunks_changes_nothing(model: Model, monkeypatch: pytest.MonkeyPatch):
    state = model.tokenizer.states(model.tokenizer.encode(digits(model, 5)))[-1]
    with torch.no_grad():
        whole = model.tokenizer.decode(state)
        monkeypatch.setattr("nextscale.grid.tokenizer.DECODE_CHUNK", 2 * 64)
        torch.testing.assert_close(model.tokenizer.decode(state), whole)


@given(st.integers(1, 3), st.integers(0, 2**16))
@settings(max_examples=50, deadline=None)
def test_a_guess_stays_where_it_was_drawn(axes: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    shape = torch.randint(1, 8, (axes,), generator=generator).tolist()
    guess, coded = (torch.randn(2, 3, *shape, generator=generator) for _ in range(2))
    keep = torch.rand(2, *shape, generator=generator) < 0.5
    keep.flatten(1)[:, 0] = True
    assert torch.equal(with_guess(coded, coded, guess, keep), guess), "drawn like the coded guess: the guess"
    far = coded + 1e4
    assert torch.allclose(with_guess(far, coded, guess, keep), far, rtol=1e-4), "drawn differently: kept as drawn"
    assert torch.equal(with_guess(far, coded, coded, keep).round(), far.round()), "coding lost nothing: kept as drawn"
