"""Orders in which the tokens of a grid are drawn one by one."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from nextscale.grid import GridTokenizer
from nextscale.grid.ordered import OrderedTokenizer
from nextscale.grid.orders import ORDERS
from nextscale.testing import TokenizerContract
from nextscale.testing.tiny import grid_tokenizer

SHAPES = st.lists(st.integers(1, 9), min_size=1, max_size=3)


class OrdersContract(TokenizerContract):
    sample_shape: tuple[int, ...]
    on_grid = False  # a schedule of single tokens has no grid; coordinates are tested below
    few_examples = 5
    examples = 10

    def build_tokenizers(self) -> list[OrderedTokenizer]:
        return [
            grid_tokenizer(self.sample_shape, OrderedTokenizer, order=order, sides=sides)
            for order, sides in zip(ORDERS, ((1, 2, 2), (2, 3), (3,), (1, 2, 3)), strict=True)
        ]

    def samples(self, tokenizer: GridTokenizer, num_samples: int, seed: int) -> Tensor:
        return torch.randn(num_samples, 2, *self.sample_shape, generator=torch.Generator().manual_seed(seed))


class TestOrders1D(OrdersContract):
    sample_shape = (7,)


class TestOrders2D(OrdersContract):
    sample_shape = (6, 5)


class TestOrders3D(OrdersContract):
    sample_shape = (6, 4, 3)
