"""How time and memory grow with the size of graphs: road-like planar graphs of 100 to 2,000 nodes, one at a time.

    OMP_NUM_THREADS=1 python examples/graph_growth.py

Takes some minutes. The columns are processor time for encoding and for a training step (forward and backward), the most
memory that this step takes, and time to draw a graph, with 16 sub-steps per scale and with one token at a time. The
last row holds the exponents fitted to the number of edges: 1 is linear. The model is not trained, so the drawn graphs
have fewer edges than the data's. Memory is read from /proc, so this needs Linux.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import networkx as nx
import numpy as np
import torch
from scipy.spatial import Delaunay

from nextscale.conditioning import ConditionSpec
from nextscale.config.sections import SamplingConfig, TransformerConfig, TransformerStageConfig
from nextscale.data import Batch
from nextscale.randomness import Draws
from nextscale.sampling.generate import generate
from nextscale.storage.models import new_transformer
from nextscale.training.transformer_stage import TransformerObjective
from nextscale_graph.config import GraphTokenizerConfig
from nextscale_graph.graphs import from_networkx
from nextscale_graph.source import describe
from nextscale_graph.tokenizer import GraphTokenizer

STEM = {"depth": 0, "width": 64, "heads": 1, "positions": "rotary", "scale_embedding": False, "in_scale_steps": True}


def road(size: int, rng: np.random.Generator) -> nx.Graph:
    """The shortest spanning tree of random points, and the 0.3 N shortest other edges of their triangulation."""
    points, graph = rng.random((size, 2)), nx.empty_graph(size)
    for a, b, c in Delaunay(points).simplices.tolist():
        for one, other in ((a, b), (b, c), (a, c)):
            graph.add_edge(one, other, weight=float(np.hypot(*(points[one] - points[other]))))
    found = nx.minimum_spanning_tree(graph)
    rest = sorted(
        (edge for edge in graph.edges if not found.has_edge(*edge)), key=lambda edge: graph.edges[edge]["weight"]
    )
    found.add_edges_from(rest[: round(0.3 * size)])
    return nx.Graph(found.edges)


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def memory(field: str) -> float:
    """Megabytes: VmRSS, what the process has now, or VmHWM, the most it has had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def measure(size: int, stepwise: bool) -> list[float]:
    batch = from_networkx([road(size, np.random.default_rng(0))])
    tokenizer = GraphTokenizer(
        GraphTokenizerConfig.model_validate({"max_nodes": size, "stem": {"layers": 4}}),
        describe([batch], [], []) | {"largest": size},
    )
    sizes = {"size": batch.sizes}
    torch.manual_seed(0)
    spec = ConditionSpec(name="size", kind="count", size=size)
    model = new_transformer(TransformerConfig.model_validate(STEM), tokenizer, (spec,))
    objective = TransformerObjective(model, tokenizer, TransformerStageConfig(batch_size=1))

    def step() -> None:
        objective(Batch(batch, sizes), 0, Draws(0, 0, slice(0, 1), 1, torch.device("cpu")))[0].backward()

    def draw(**settings: int) -> None:
        generator = torch.Generator().manual_seed(0)
        generate(tokenizer, model, 1, sizes, SamplingConfig(reveal="groups", guidance=0, **settings), [generator])

    found = [float(batch.edge_counts), 1e3 * seconds(lambda: tokenizer.encode(batch))]
    Path("/proc/self/clear_refs").write_text("5")  # forgets the most so far
    before = memory("VmRSS")
    found += [1e3 * seconds(step), memory("VmHWM") - before, seconds(lambda: draw(group_steps=16))]
    return [*found, seconds(draw)] if stepwise else found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 250, 500, 1000, 2000])
    parser.add_argument("--stepwise", action="store_true", help="also draw one token at a time, which takes long")
    options = parser.parse_args()
    torch.set_num_threads(1)
    measure(100, False)  # warm up
    rows = []
    print("| nodes | edges | encode, ms | training step, ms | its memory, MB | draw, s | one by one, s |")
    for size in options.sizes:
        rows.append(measure(size, options.stepwise))
        print(
            f"| {size:,} | {rows[-1][0]:,.0f} | " + " | ".join(f"{one:,.1f}" for one in rows[-1][1:]), "|", flush=True
        )
    edges, *columns = np.log(np.array(rows)).T
    print("| exponent | |", " | ".join(f"{np.polyfit(edges, column, 1)[0]:.2f}" for column in columns), "|")


if __name__ == "__main__":
    main()
