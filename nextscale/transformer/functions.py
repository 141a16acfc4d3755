"""Functions with handwritten backward passes: autograd's own take two to three times as long on CPUs."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function


def _applied(function: type[Function], *args: Any) -> Any:
    """``function.apply``. Without gradients only its forward pass, because autograd's bookkeeping takes as long as a
    product for one token."""
    return function.apply(*args) if torch.is_grad_enabled() else function.forward(_NoBackward(), *args)


class _NoBackward:
    """Stands in for a context whose backward pass never comes."""

    def save_for_backward(self, *tensors: Tensor) -> None:
        pass


def split_heads(qkv_BLHd: Tensor, heads: int, scale_H: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, B H L d each, from one projection B L (3 H d).

    With ``scale_H`` (QK-norm), keys become unit vectors, and queries become vectors of length ``scale_H`` (per head).
    The norm is taken in float32 and rounded once.
    """
    parts = qkv_BLHd.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    if scale_H is None:
        return parts.unbind(0)  # type: ignore[return-value]
    return _applied(_SplitNormalized, parts, torch.stack([scale_H, torch.ones_like(scale_H)])[:, None, :, None, None])


class _SplitNormalized(Function):
    """3 B H L d (a view of B L 3 H d) and scales 2 1 H 1 1 -> scale q / |q|, scale k / |k|, and v; each contiguous."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qk = qkv[:2]
        length = torch.linalg.vector_norm(qk, dim=-1, keepdim=True, dtype=torch.promote_types(qk.dtype, torch.float32))
        # All large products have one dtype: mixed ones would first make wider copies.
        factor = scale / length.clamp_min(1e-12)  # guards against 0, as F.normalize does
        factor = factor.clamp_max(torch.finfo(qk.dtype).max).to(qk.dtype)  # padding is 0, and 0 x inf is NaN in fp16
        unit = torch.mul(qk, factor, out=torch.empty(qk.shape, dtype=qk.dtype, device=qk.device))
        ctx.save_for_backward(unit, factor, scale)
        return unit[0], unit[1], qkv[2].contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        unit, factor, scale = ctx.saved_tensors
        _, batch, heads, length, size = unit.shape
        grad = unit.new_empty(batch, length, 3, heads, size).permute(2, 0, 3, 1, 4)
        along = torch.stack([(g * u).sum(-1) for g, u in zip(grads[:2], unit, strict=True)])[..., None]
        # Remove each gradient's component along its vector, and rescale the rest by ``factor``.
        removed = (-factor * along / scale.square()).to(unit.dtype)
        for i, g in enumerate(grads[:2]):
            torch.mul(g, factor[i], out=grad[i]).addcmul_(unit[i], removed[i])
        grad[2] = grads[2]
        return grad, (along / scale).sum((1, 3), keepdim=True)


def gelu_tanh(x: Tensor) -> Tensor:
    """``F.gelu(x, approximate="tanh")``; on CPUs by way of a sigmoid, which is three times as fast there."""
    if x.device.type == "cpu":
        return _applied(_SigmoidGELU, x)
    return F.gelu(x, approximate="tanh")


# (1 + tanh u) / 2 = sigmoid(2 u), and 2 u = x (_A + _B x^2).
_A = 2 * math.sqrt(2 / math.pi)
_B = 0.044715 * _A


class _SigmoidGELU(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gate = torch.addcmul(x.new_tensor(_A), x, x, value=_B).mul_(x).sigmoid_()
        ctx.save_for_backward(x, gate)
        return x * gate

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        x, gate = ctx.saved_tensors
        slope = torch.addcmul(x.new_tensor(_A), x, x, value=3 * _B).mul_(x)
        # The derivative is gate (1 + (1 - gate) slope).
        return slope.addcmul_(slope, gate, value=-1).add_(1).mul_(gate).mul_(grads[0])


def modulate(x_BLD: Tensor, scale_B1D: Tensor, shift_B1D: Tensor) -> Tensor:
    """``x (1 + scale) + shift``."""
    return _applied(_Affine, x_BLD, scale_B1D + 1, shift_B1D)


def add_gated(x_BLD: Tensor, branch_BLD: Tensor, gamma_B1D: Tensor) -> Tensor:
    """``x + gamma branch``."""
    return _applied(_Affine, branch_BLD, gamma_B1D, x_BLD)


class _Affine(Function):
    """x B L D times scale B 1 D, plus shift (B 1 D or B L D)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.shift = shift.shape, shift.dtype
        return torch.addcmul(shift, x, scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (grad,), (x, scale) = grads, ctx.saved_tensors
        shape, dtype = ctx.shift
        by_shift = grad if shape == grad.shape else grad.sum(1, keepdim=True)
        by_scale = torch.mul(grad, x).sum(1, keepdim=True)
        return (grad * scale).to(x.dtype), by_scale.to(scale.dtype), by_shift.to(dtype)
