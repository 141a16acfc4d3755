"""Small graphs, and the folder of benchmark files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# pytest's importlib mode puts no folder on the path, so shared helpers would not be found.
sys.path.insert(0, str(Path(__file__).parent))

from graph_samples import random_batch

from nextscale_graph.writers import write_npz

SHARED = Path(__file__).parents[3] / "../shared/data"


@pytest.fixture(scope="session")
def benchmarks() -> Path:
    """The folder of benchmark files; skips the test if it is absent."""
    if (SHARED / "graphs").is_dir():
        return SHARED / "graphs"
    pytest.skip("the benchmark graphs of ../shared/data are not on this machine")


@pytest.fixture(scope="session")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 graphs of up to 7 nodes."""
    return write_npz(random_batch(0, 30, 7), tmp_path_factory.mktemp("graphs") / "small.npz")
