"""The functions with their own backward passes, compared with autograd on the same formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.transformer.functions import _SigmoidGELU, add_gated, gelu_tanh, modulate, split_heads


def reference(qkv: Tensor, heads: int, scale_H: Tensor | None) -> tuple[Tensor, ...]:
    q, k, v = (part.transpose(1, 2) for part in qkv.unflatten(-1, (3, heads, -1)).unbind(2))
    if scale_H is None:
        return q, k, v
    return F.normalize(q, dim=-1) * scale_H[:, None, None], F.normalize(k, dim=-1), v


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("normalized", [True, False])
def test_split_heads(normalized: bool) -> None:
    qkv = torch.randn(2, 5, 3 * 4 * 6, dtype=torch.double, requires_grad=True)
    scale = (torch.rand(4, dtype=torch.double) + 0.5).requires_grad_() if normalized else None
    inputs = [qkv] if scale is None else [qkv, scale]
    found, expected = split_heads(qkv, 4, scale), reference(qkv, 4, scale)
    grads = [torch.randn_like(part) for part in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == (2, 4, 5, 6)
        torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, grads), torch.autograd.grad(expected, inputs, grads), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_split_heads_of_zero_vectors() -> None:
    q, k, v = split_heads(torch.zeros(1, 2, 12), 2, torch.ones(2))
    assert not any(part.isnan().any() or part.any() for part in (q, k, v))


def test_split_heads_in_half_precision_keeps_unit_length() -> None:
    qkv = (torch.randn(4, 8, 3 * 64) * 30).bfloat16().requires_grad_()
    q, k, _ = split_heads(qkv, 2, torch.tensor([1.0, 7.0]))
    assert q.dtype == k.dtype == torch.bfloat16
    # The factor and each product with it are rounded, by at most 2^-8 each.
    torch.testing.assert_close(k.float().norm(dim=-1), torch.ones(4, 2, 8), rtol=2**-7, atol=0)
    torch.testing.assert_close(q.float().norm(dim=-1)[:, 1], torch.full((4, 8), 7.0), rtol=2**-7, atol=0)
    (q.sum() + k.sum()).backward()
    assert qkv.grad is not None and qkv.grad.isfinite().all()


def test_gelu() -> None:
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-1e4, -90.0, 90.0, 1e4])]).requires_grad_()
    y, expected = gelu_tanh(x), F.gelu(x, approximate="tanh")
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)
    (ours,), (theirs,) = torch.autograd.grad(y.sum(), x), torch.autograd.grad(expected.sum(), x)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert torch.autograd.gradcheck(_SigmoidGELU.apply, torch.linspace(-6, 6, 50, dtype=torch.double).requires_grad_())


def test_gelu_in_bfloat16_is_as_near_as_torchs() -> None:
    x = torch.linspace(-6, 6, 4001).bfloat16().requires_grad_()
    exact = x.detach().double().requires_grad_()
    y, expected = gelu_tanh(x), F.gelu(exact, approximate="tanh")
    torch.testing.assert_close(y.double(), expected, rtol=2**-7, atol=2**-8)
    (ours,), (theirs,) = torch.autograd.grad(y.sum(), x), torch.autograd.grad(expected.sum(), exact)
    torch.testing.assert_close(ours.double(), theirs, rtol=2**-6, atol=2**-5)


@pytest.mark.parametrize("dtype", [torch.double, torch.bfloat16])
def test_modulate_and_add_gated(dtype: torch.dtype) -> None:
    x, branch = torch.randn(2, 5, 8, dtype=torch.double), torch.randn(2, 5, 8, dtype=torch.double).to(dtype)
    scale, shift = torch.randn(2, 2, 1, 8, dtype=torch.double).unbind(0)
    for ours, plain in (
        (lambda x, b, a, c: modulate(x, a, c), lambda x, b, a, c: x * (1 + a) + c),
        (lambda x, b, a, c: add_gated(x, b, a), lambda x, b, a, c: x + a * b),
    ):
        inputs = [each.clone().requires_grad_() for each in (x, branch, scale, shift)]
        weight = torch.randn(2, 5, 8, dtype=torch.double)
        found, expected = ours(*inputs), plain(*inputs)
        torch.testing.assert_close(found, expected)
        for one, other in zip(
            torch.autograd.grad(found, inputs, weight, allow_unused=True),
            torch.autograd.grad(expected, inputs, weight, allow_unused=True),
            strict=True,
        ):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_padding_of_zeros_stays_zero(dtype: torch.dtype) -> None:
    qkv = torch.zeros(1, 2, 3 * 4, dtype=dtype, requires_grad=True)
    parts = split_heads(qkv, 1, torch.ones(1))
    sum(part.float().sum() for part in parts).backward()
    assert all(torch.equal(part, torch.zeros_like(part)) for part in parts)
