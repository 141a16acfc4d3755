"""Orders in which the tokens of a grid are drawn one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nextscale.config.grid import ConvolutionalConfig
from nextscale.errors import ConfigError, DataError
from nextscale.grid import GridTokenizer, build_grid_tokenizer
from nextscale.grid.ordered import OrderedTokenizer
from nextscale.grid.orders import ORDERS, reading_order
from nextscale.testing import TokenizerContract
from nextscale.testing.helpers import random_pyramid
from nextscale.testing.tiny import grid_tokenizer, transformer_for
from nextscale.tokens.pyramid import Schedule
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale.transformer import KVCache

SHAPES = st.lists(st.integers(1, 9), min_size=1, max_size=3)


class OrdersContract(TokenizerContract):
    sample_shape: tuple[int, ...]
    on_grid = False  # a schedule of single tokens has no grid; coordinates are tested below
    few_examples = 5
    examples = 10

    def build_tokenizers(self) -> list[OrderedTokenizer]:
        fewer = grid_tokenizer(self.sample_shape, OrderedTokenizer, order="raster", sides=(1, 2, 2), codes=(3, 11, 5))
        return [
            fewer,
            *(
                grid_tokenizer(self.sample_shape, OrderedTokenizer, order=order, sides=sides)
                for order, sides in zip(ORDERS, ((1, 2, 2), (2, 3), (3,), (1, 2, 3)), strict=True)
            ),
        ]

    def samples(self, tokenizer: GridTokenizer, num_samples: int, seed: int) -> Tensor:
        return torch.randn(num_samples, 2, *self.sample_shape, generator=torch.Generator().manual_seed(seed))


class TestOrders1D(OrdersContract):
    sample_shape = (7,)


class TestOrders2D(OrdersContract):
    sample_shape = (6, 5)


class TestOrders3D(OrdersContract):
    sample_shape = (6, 4, 3)


@given(SHAPES, st.sampled_from(sorted(ORDERS)))
@settings(deadline=None)
def test_every_order_takes_each_place_once(shape: list[int], order: str):
    assert sorted(ORDERS[order](shape).tolist()) == list(range(np.prod(shape)))


@pytest.mark.parametrize(
    ("order", "shape", "expected"),
    [
        ("raster", (2, 3), [0, 1, 2, 3, 4, 5]),
        ("spiral", (3, 3), [0, 1, 2, 5, 8, 7, 6, 3, 4]),
        ("spiral", (2, 3), [0, 1, 2, 5, 4, 3]),
        ("spiral", (5,), [0, 4, 1, 3, 2]),
        ("spiral", (2, 2, 2), [0, 1, 3, 2, 4, 5, 7, 6]),
        ("morton", (4, 4), [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]),
        ("morton", (2, 3), [0, 1, 3, 4, 2, 5]),
        ("morton", (2, 2, 2), [0, 1, 2, 3, 4, 5, 6, 7]),
        ("random", (2, 3), [5, 2, 1, 3, 0, 4]),  # the same in every process and release
    ],
)
def test_small_grids(order: str, shape: tuple[int, ...], expected: list[int]):
    assert ORDERS[order](shape).tolist() == expected


def test_scales_on_one_grid_are_read_together():
    schedule = Schedule.of([(1, 1), (2, 2), (2, 2)])
    assert reading_order(schedule, "raster").tolist() == [0, 1, 5, 2, 6, 3, 7, 4, 8]
    assert reading_order(schedule, "spiral").tolist() == [0, 1, 5, 2, 6, 4, 8, 3, 7]


VARIANTS = st.tuples(
    st.sampled_from([(7,), (6, 5), (4, 6, 3)]),
    st.sampled_from([(3,), (2, 2), (1, 2, 3, 3)]),
    st.sampled_from([*ORDERS]),
)


@given(VARIANTS, st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_the_same_weights_give_the_same_codes_and_samples(
    variant: tuple[tuple[int, ...], tuple[int, ...], str], seed: int
):
    shape, sides, order = variant
    base = grid_tokenizer(shape, sides=sides)
    ordered = grid_tokenizer(shape, OrderedTokenizer, sides=sides, order=order)
    ordered.load_state_dict(base.state_dict())  # strict: the same names, the same shapes
    samples = torch.randn(3, 2, *shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        ours, theirs = ordered.encode(samples), base.encode(samples)
        places = torch.from_numpy(reading_order(theirs.schedule, order))
        assert torch.equal(ours.tokens, theirs.tokens[:, places])
        assert torch.equal(ordered.decode_tokens(ours), base.decode_tokens(theirs))
        coordinates = torch.cat([theirs.schedule.coordinates(k) for k in range(len(sides))])
        forced = ordered.teacher_forcing(ours)
        assert torch.equal(forced.coordinates, coordinates[places])
        keep = torch.rand(3, *shape, generator=torch.Generator().manual_seed(seed)) < 0.5
        assert torch.equal(ordered.keep_tokens(keep), base.keep_tokens(keep)[:, places])
    names = [f"scale{k}" for k in theirs.schedule.scale_ids()[places].tolist()]
    assert ordered.scale_names(len(places)) == names


@given(VARIANTS)
@settings(deadline=None, max_examples=25)
def test_teacher_forcing_is_the_state_machine(variant: tuple[tuple[int, ...], tuple[int, ...], str]):
    shape, sides, order = variant
    tokenizer = grid_tokenizer(shape, OrderedTokenizer, sides=sides, order=order)
    pyramid = random_pyramid(tokenizer, 2, 0)
    ours, theirs = tokenizer.teacher_forcing(pyramid), MultiscaleTokenizer.teacher_forcing(tokenizer, pyramid)
    for field in ("features", "coordinates", "scale_ids"):
        assert torch.equal(getattr(ours, field), getattr(theirs, field))
    assert ours.num_start == theirs.num_start == 1


def test_losses_multiply_to_the_probability_of_drawing():
    """The sum of a pyramid's losses is minus the logarithm of the probability that sampling draws it."""
    tokenizer = grid_tokenizer((4, 4), OrderedTokenizer, sides=(1, 2, 2), order="raster")
    transformer, pyramid = transformer_for(tokenizer), random_pyramid(tokenizer, 2, 0)
    cond_BD = transformer.conditioner({}, 2)
    with torch.no_grad():
        logits = transformer(tokenizer.teacher_forcing(pyramid), cond_BD)
        nats = transformer.token_space.loss(logits, pyramid.tokens).double().sum(1)
        chance, cache = torch.ones(2, dtype=torch.double), KVCache(pyramid.schedule.length)
        state = tokenizer.initial_state(2)
        for k in range(pyramid.schedule.length):
            shares = transformer(tokenizer.scale_input(state, k), cond_BD, cache).double().softmax(-1)[:, 0]
            chance = chance * shares.gather(1, pyramid.scale(k))[:, 0]
            state = tokenizer.update(state, k, pyramid.scale(k))
    torch.testing.assert_close(-chance.log(), nats, rtol=1e-5, atol=1e-4)


def test_samples_of_another_size_are_refused():
    tokenizer = grid_tokenizer((6, 5), OrderedTokenizer, order="morton")
    with pytest.raises(DataError, match=r"tokenizer\.order=morton takes samples of one size, 6 x 5, .* 8 x 5"):
        tokenizer.encode(torch.zeros(1, 2, 8, 5))
    with pytest.raises(DataError, match="draws samples of one size"):
        tokenizer.initial_state(1, schedule=Schedule.of([(1, 1)]))


def test_segments_are_refused():
    config = ConvolutionalConfig(width=4, channels=4, multipliers=(1,), blocks=1, order="raster")
    with pytest.raises(ConfigError, match=r"tokenizer\.order=raster .* use one pyramid, or tokenizer\.order=scales"):
        build_grid_tokenizer(config, channels=1, shape=(4, 4), scales=[(1, 1), (1, 4)], segments=(1, 3))
