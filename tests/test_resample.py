from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nextscale.grid import resample

TORCH_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@st.composite
def grids(draw: st.DrawFn, min_axes: int = 1, max_axes: int = 3) -> tuple[torch.Tensor, tuple[int, ...]]:
    """A batch of grids, and the shape to resample it to."""
    axes = draw(st.integers(min_axes, max_axes))
    sides = st.lists(st.integers(1, 9), min_size=axes, max_size=axes)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    return torch.randn(2, 3, *draw(sides), generator=generator), tuple(draw(sides))


@given(grids())
@settings(max_examples=80, deadline=None)
def test_area_matches_torch(drawn):
    grid, shape = drawn
    torch.testing.assert_close(resample(grid, shape, "area"), F.interpolate(grid, shape, mode="area"))


@given(grids())
@settings(max_examples=80, deadline=None)
def test_linear_matches_torch(drawn):
    grid, shape = drawn
    expected = F.interpolate(grid, shape, mode=TORCH_LINEAR[len(shape)])
    torch.testing.assert_close(resample(grid, shape, "linear"), expected)


@given(grids(2, 2))
@settings(max_examples=80, deadline=None)
def test_cubic_matches_torch_on_planes(drawn):
    grid, shape = drawn
    expected = F.interpolate(grid, shape, mode="bicubic")
    torch.testing.assert_close(resample(grid, shape, "cubic"), expected, atol=1e-5, rtol=1e-4)


@given(grids())
@settings(max_examples=50, deadline=None)
def test_cubic_goes_axis_by_axis(drawn):
    """torch has no cubic mode on lines and solids, so each axis is resampled as a plane of one row."""
    grid, shape = drawn
    expected = grid
    for axis, size in enumerate(shape, start=2):
        moved = expected.movedim(axis, -1)
        lines = moved.reshape(-1, 1, 1, moved.shape[-1])
        lines = F.interpolate(lines, (1, size), mode="bicubic")
        expected = lines.reshape(*moved.shape[:-1], size).movedim(-1, axis)
    torch.testing.assert_close(resample(grid, shape, "cubic"), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mode", ["area", "linear", "cubic"])
def test_the_same_shape_is_left_alone_and_gradients_flow(mode):
    grid = torch.randn(1, 2, 4, 5, requires_grad=True)
    assert torch.equal(resample(grid, (4, 5), mode), grid)
    resample(grid, (7, 3), mode).sum().backward()
    assert grid.grad is not None and grid.grad.abs().sum() > 0


def test_matrices_made_under_inference_mode_still_train():
    with torch.inference_mode():
        resample(torch.randn(1, 1, 11), (6,), "linear")
    grid = torch.randn(1, 1, 11, requires_grad=True)
    resample(grid, (6,), "linear").sum().backward()


def test_other_numbers_of_axes_are_refused():
    with pytest.raises(ValueError, match="2 axes to shape"):
        resample(torch.zeros(1, 1, 2, 2), (2,), "area")
