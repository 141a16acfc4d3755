"""N-dimensional residual pyramids (1-D, 2-D, 3-D): the code shared by all modalities on regular grids."""

from nextscale.grid.build import build_grid_tokenizer
from nextscale.grid.layers import Layout
from nextscale.grid.modality import GridModality
from nextscale.grid.phi import Phi
from nextscale.grid.pyramid import ResidualPyramid
from nextscale.grid.quantizer import VectorQuantizer
from nextscale.grid.resample import resample
from nextscale.grid.segments import SegmentedTokenizer
from nextscale.grid.tokenizer import GridState, GridTokenizer

__all__ = [
    "GridModality",
    "GridState",
    "GridTokenizer",
    "Layout",
    "Phi",
    "ResidualPyramid",
    "SegmentedTokenizer",
    "VectorQuantizer",
    "build_grid_tokenizer",
    "resample",
]
