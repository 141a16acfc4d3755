"""Attention by blocks, compared with scaled_dot_product_attention under the same mask."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nextscale.transformer.attention import ScaleAttention
from nextscale.transformer.blockwise import MIN_ROWS, block_attention, row_blocks


@st.composite
def masks(draw: st.DrawFn) -> Tensor:
    """L L booleans from a random schedule and a random scale attention rule."""
    lengths = draw(st.lists(st.integers(1, 60), min_size=1, max_size=5))
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    matrix = [[j == i or (j < i and draw(st.booleans())) for j in range(len(lengths))] for i in range(len(lengths))]
    rule = draw(st.sampled_from(["full", "markov"])) if draw(st.booleans()) else matrix
    return ScaleAttention(rule).allowed(ids, ids)


@settings(max_examples=60, deadline=None)
@given(masks())
def test_blocks_reproduce_the_mask(allowed: Tensor) -> None:
    rebuilt, seen = torch.zeros_like(allowed), 0
    blocks = row_blocks(allowed)
    for block in blocks:
        assert block.rows.start == seen
        seen = block.rows.stop
        rebuilt[block.rows, block.keys] = True if block.mask is None else block.mask
    assert seen == len(allowed)
    assert torch.equal(rebuilt, allowed)
    assert all(block.rows.stop - block.rows.start >= MIN_ROWS for block in blocks[:-1])


@settings(max_examples=60, deadline=None)
@given(masks(), st.sampled_from([1.0, 0.3]), st.integers(0, 2**31))
def test_outputs_and_gradients(allowed: Tensor, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    q, k, v, grad = torch.randn(4, 2, 3, len(allowed), 6, generator=generator, dtype=torch.double)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    found = block_attention(q, k, v, row_blocks(allowed), scale)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, scale=scale)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16(autocast: bool) -> None:
    allowed = ScaleAttention("full").allowed(*2 * [torch.arange(4).repeat_interleave(40)])
    assert allowed is not None
    q, k, v = torch.randn(3, 2, 3, 160, 8).bfloat16()
    inputs = [x.requires_grad_() for x in (q, k, v)]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = block_attention(q, k, v, row_blocks(allowed), 1.0)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = F.scaled_dot_product_attention(*exact, attn_mask=allowed, scale=1.0)
    assert found.dtype == torch.bfloat16
    # Logits are rounded too, as in any attention that is not fused: by 2^-9 of values up to about 10.
    assert (found.double() - expected).norm() < 0.01 * expected.norm()
    grads = torch.autograd.grad(found.square().sum(), inputs), torch.autograd.grad(expected.square().sum(), exact)
    for ours, theirs in zip(*grads, strict=True):
        assert (ours.double() - theirs).norm() < 0.02 * theirs.norm()
