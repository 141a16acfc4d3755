"""Causal networks: they ignore later places, and work piece by piece as at once. Shuffles work on any grid."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nextscale.config.grid import ConvolutionalConfig
from nextscale.grid import GridState, GridTokenizer, Layout, Phi, ResidualPyramid, VectorQuantizer, build
from nextscale.grid.layers import from_channels, streaming, to_channels
from nextscale.grid.networks import Decoder, Encoder
from nextscale.testing.helpers import randomize

STRIDES = {1: [(2,), (2,)], 3: [(2, 2, 1), (2, 1, 2)]}
REST = {1: (), 3: (4, 4)}
LATENT = {1: (), 3: (2, 2)}


@cache
def networks(axes: int, alone: bool, dtype: torch.dtype = torch.float64) -> tuple[Encoder, Decoder]:
    """Three resolutions, a factor of 4 along the first axis, attention and shortcuts.

    They are in double precision, in which results that differ only in the order of summation agree to 1e-10: norms of
    random weights can magnify rounding a hundredfold.
    """
    layout = Layout(axes, causal=True, alone=alone)
    config = ConvolutionalConfig(channels=3, width=4, multipliers=(1, 2, 2), blocks=1, shortcut=True)
    encoder, decoder = build.networks(config, layout, 2, STRIDES[axes])
    for network in (encoder, decoder):
        randomize(network, 0).eval().to(dtype)
    return encoder, decoder


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


variants = st.tuples(st.sampled_from([1, 3]), st.booleans())
seeds = st.integers(0, 2**32 - 1)


@given(variants, seeds, st.integers(1, 4), st.integers(1, 3))
@settings(max_examples=50, deadline=None)
@torch.no_grad()
def test_latents_do_not_depend_on_later_places(variant: tuple[int, bool], seed: int, known: int, later: int):
    axes, alone = variant
    encoder, _ = networks(axes, alone)
    lead = 3 if alone else 0
    x = noise(seed, 1, 2, 4 * (known + later) - lead, *REST[axes])
    other = x.clone()
    places = 4 * known - lead
    other[:, :, places:] = noise(seed + 1, *other[:, :, places:].shape)
    one, two = encoder(x), encoder(other)
    assert one.shape[2:] == (known + later, *LATENT[axes])
    assert torch.equal(one[:, :, :known], two[:, :, :known])
    assert not torch.equal(one[:, :, known:], two[:, :, known:]), "later latents do see the change"


@given(variants, seeds, st.lists(st.integers(1, 3), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
@torch.no_grad()
def test_decoding_piece_by_piece_is_decoding_at_once(variant: tuple[int, bool], seed: int, pieces: list[int]):
    axes, alone = variant
    _, decoder = networks(axes, alone)
    f_hat = noise(seed, 2, 3, sum(pieces), *LATENT[axes])
    whole = decoder(f_hat)
    assert whole.shape[2:] == (4 * sum(pieces) - (3 if alone else 0), *REST[axes])
    with streaming(decoder):
        parts = torch.cat([decoder(part) for part in f_hat.split(pieces, 2)], 2)
    torch.testing.assert_close(parts, whole, atol=1e-10, rtol=0)
    torch.testing.assert_close(decoder(f_hat), whole, atol=0, rtol=0)


@given(variants, seeds, st.lists(st.integers(1, 3), min_size=1, max_size=3))
@settings(max_examples=50, deadline=None)
@torch.no_grad()
def test_encoding_piece_by_piece_is_encoding_at_once(variant: tuple[int, bool], seed: int, pieces: list[int]):
    axes, alone = variant
    encoder, _ = networks(axes, alone)
    sizes = [4 * piece for piece in pieces]
    sizes[0] -= 3 if alone else 0
    x = noise(seed, 1, 2, sum(sizes), *REST[axes])
    with streaming(encoder):
        parts = torch.cat([encoder(part) for part in x.split(sizes, 2)], 2)
    torch.testing.assert_close(parts, encoder(x), atol=1e-10, rtol=0)


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=3), seeds)
@settings(max_examples=50, deadline=None)
def test_shuffles_undo_each_other(axes: list[tuple[int, int]], seed: int):
    factor = [size for size, _ in axes]
    x = noise(seed, 2, 3, *(size * places for size, places in axes))
    packed = to_channels(x, factor)
    assert packed.shape[2:] == tuple(places for _, places in axes)
    assert torch.equal(from_channels(packed, factor), x)


def test_shuffles_of_two_axes_match_torch():
    x = noise(0, 2, 3, 4, 6)
    assert torch.equal(to_channels(x, (2, 2)), F.pixel_unshuffle(x, 2))
    assert torch.equal(from_channels(noise(0, 2, 12, 4, 6), (2, 2)), F.pixel_shuffle(noise(0, 2, 12, 4, 6), 2))


@pytest.mark.parametrize("alone", [True, False])
def test_a_long_sample_is_decoded_in_bounded_pieces(alone: bool, monkeypatch: pytest.MonkeyPatch):
    encoder, decoder = networks(3, alone, torch.float32)
    quantizer, phi = VectorQuantizer(7, 3, num_scales=1), Phi(3, 3, "none")
    length = 12
    shape = (4 * length - (3 if alone else 0), 4, 4)
    pyramid = ResidualPyramid(quantizer, phi)
    tokenizer = GridTokenizer(encoder, decoder, pyramid, [1], shape, (4, 2, 2), Layout(3, True, alone)).eval()
    state = GridState(noise(0, 1, 3, length, 2, 2).float(), tokenizer.schedule(), shape)
    with torch.no_grad():
        whole = tokenizer.decode(state)
        assert tuple(whole.shape[2:]) == shape
        seen: list[int] = []
        decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[2]))
        pieces = list(tokenizer.decode_pieces(state, 2))
        torch.testing.assert_close(torch.cat(pieces, 2), whole, atol=1e-5, rtol=0)
        monkeypatch.setattr("nextscale.grid.tokenizer.DECODE_CHUNK", 3 * 4 * 16)
        torch.testing.assert_close(tokenizer.decode(state), whole, atol=1e-5, rtol=0)
    assert max(seen) <= 3, "never more latent places at once than asked for"
