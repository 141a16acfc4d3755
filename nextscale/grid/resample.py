"""Resampling of grids with any number of axes, with one small matrix per axis.

Area averaging, linear and cubic interpolation are separable. Torch's own 1-D interpolation, applied to the identity,
gives the matrix of each axis. So the arithmetic is torch's (``align_corners=False``), and cubic works in 1-D and 3-D
too. Resampling becomes a matrix product, which is faster than interpolating on the fly.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Mode = Literal["area", "linear", "cubic"]


@lru_cache(maxsize=1024)
def axis_matrix(size_in: int, size_out: int, mode: Mode) -> Tensor:
    """``size_out`` x ``size_in``: the linear map that resamples one axis."""
    with torch.inference_mode(False), torch.no_grad():
        eye = torch.eye(size_in)[None]  # row c is the c-th unit signal
        if mode == "cubic":
            return F.interpolate(eye[:, :, None], (1, size_out), mode="bicubic")[0, :, 0].T.contiguous()
        return F.interpolate(eye, size_out, mode=mode)[0].T.contiguous()


@lru_cache(maxsize=1024)
def _matrix_on(size_in: int, size_out: int, mode: Mode, device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        return axis_matrix(size_in, size_out, mode).to(device, dtype)


def resample(x: Tensor, shape: Sequence[int], mode: Mode) -> Tensor:
    """B C *grid -> B C *shape. Axes whose size does not change are left alone."""
    if len(shape) != x.dim() - 2:
        raise ValueError(f"cannot resample a grid of {x.dim() - 2} axes to shape {tuple(shape)}")
    for axis, size in enumerate(shape, start=2):
        if x.shape[axis] != size:
            matrix = _matrix_on(x.shape[axis], size, mode, x.device, x.dtype)
            x = F.linear(x.movedim(axis, -1), matrix).movedim(-1, axis)
    return x
