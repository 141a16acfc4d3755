"""The published test of stochastic block models, for graphs in .npz files such as those `nextscale sample` writes.

    nextscale sample runs/sbm --num 40
    python3 examples/block_model_test.py runs/sbm/samples/seed-0/single/graphs.npz

It needs graph-tool, which is not on PyPI (Debian: python3-graph-tool; conda-forge: graph-tool). It does not need
nextscale, so any Python that has graph-tool can run it.

The test is that of SPECTRE (https://arxiv.org/abs/2204.01613) and DiGress. It fits the block model of least description
length and refines it by merges and splits. A graph passes if the model has 2 to 5 blocks of 20 to 40 nodes, and if the
mean p-value of Wald tests is over 0.9. They test the probability of an edge within each block (0.3) and between each
pair of blocks (0.005).

Prints the share that passes, one row per split of each file. Takes some ten seconds per graph, nearly all of it
refinement. Without refinement, half the real graphs fail.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from scipy.stats import chi2

try:
    import graph_tool  # type: ignore[import-not-found]
    from graph_tool.inference import contiguous_map, minimize_blockmodel_dl  # type: ignore[import-not-found]
except ImportError as error:
    sys.exit(f"{sys.executable} has no graph-tool (Debian: python3-graph-tool; conda-forge: graph-tool): {error}")

WITHIN, BETWEEN, LEVEL = 0.3, 0.005, 0.9
TINY = 1e-6


def passes(size: int, edges: np.ndarray, sweeps: int) -> bool:
    """Whether a graph of ``size`` nodes with ``edges`` E 2 looks drawn from the benchmark's block model."""
    graph = graph_tool.Graph(directed=True)  # every edge both ways, as published
    graph.add_vertex(size)
    graph.add_edge_list(np.concatenate([edges, edges[:, ::-1]]))
    state = minimize_blockmodel_dl(graph)
    for _ in range(sweeps):
        state.multiflip_mcmc_sweep(beta=np.inf, niter=10)
    block = np.array(contiguous_map(state.get_blocks()).a)  # a copy, because the memory goes with the map
    sizes = np.bincount(block)
    if not 2 <= len(sizes) <= 5 or sizes.min() < 20 or sizes.max() > 40:
        return False
    joined = np.zeros((len(sizes), len(sizes)))
    np.add.at(joined, tuple(block[edges].T), 1)
    joined += joined.T
    pairs = np.outer(sizes, sizes) - np.diag(sizes)
    expected = np.where(np.eye(len(sizes), dtype=bool), WITHIN, BETWEEN)
    found = joined / pairs
    wald = (found - expected) ** 2 / (found * (1 - found) + TINY)
    return bool((1 - chi2.cdf(wald, 1)).mean() > LEVEL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--sweeps", type=int, default=1000, help="number of refinements (published: 1000)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    graph_tool.seed_rng(options.seed)
    np.random.seed(options.seed)  # graph-tool also draws from this generator
    for path in options.files:
        if not path.is_file():
            sys.exit(f"{path} is not a file: give a graphs.npz that sampling wrote, or a benchmark's .npz")
        found: dict[str, list[bool]] = {}
        with np.load(path, allow_pickle=False) as file:
            sizes, edges, offsets = file["num_nodes"], file["edges"], file["edge_offsets"]
            splits = file["split"] if "split" in file else ["samples"] * len(sizes)
            for i, (size, split) in enumerate(zip(sizes.tolist(), splits, strict=True)):
                own = edges[offsets[i] : offsets[i + 1]]
                found.setdefault(str(split), []).append(passes(size, own, options.sweeps))
        for split, results in found.items():
            print(f"{path} {split}: {np.mean(results):.1%} of {len(results)}", flush=True)


if __name__ == "__main__":
    main()
