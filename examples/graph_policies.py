"""Costs and benefits of reveal policies for a trained graph run: validity, forward passes and seconds per graph.

    python examples/graph_policies.py runs/planar

Takes a minute. Prints one row per policy: one token of each group at a time (the default), each scale all at once, or
each scale in S sub-steps, in random order or by confidence. The columns are V.U.N. (valid, unique and novel), passes
through the network per batch, and seconds per graph in batches of up to 40.

For trees, all policies give 100%, and all at once takes the fewest passes. For planar graphs, groups and one token at a
time give about 90%, the latter in twice the passes; all at once gives none.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import nextscale
from nextscale_graph.validity import VALID, unique_and_novel

POLICIES: list[dict[str, Any]] = [
    {"reveal": "groups"},
    {"reveal": "random", "steps": 1},
    {"reveal": "random", "steps": 4},
    {"reveal": "random", "steps": 16},
    {"reveal": "random", "steps": 1000},
    {"reveal": "confidence", "steps": 16},
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    model = nextscale.load(options.run)
    data = model.modality.open_data(model.config.data)
    training = [data.train.graphs[i].to_networkx()[0] for i in range(len(data.train))]  # type: ignore[attr-defined]
    check = VALID[data.description["kind"]]
    passes: list[int] = []
    model.transformer.register_forward_hook(lambda *_: passes.append(1))
    print(f"{'policy':<24}{'V.U.N.':>8}{'passes':>8}{'s/graph':>10}")
    for policy in POLICIES:
        passes.clear()
        start = time.perf_counter()
        settings = {**policy, "temperature": options.temperature}
        drawn = model.generate(options.samples, seed=options.seed, sampling=settings, batch_size=40)
        seconds = (time.perf_counter() - start) / options.samples
        graphs = drawn.samples.to_networkx()
        unique, novel = unique_and_novel(graphs, training)
        share = sum(check(g) and u and n for g, u, n in zip(graphs, unique, novel, strict=True)) / len(graphs)
        batches = -(-options.samples // 40)
        name = " ".join(map(str, policy.values()))
        print(f"{name:<24}{share:>8.1%}{len(passes) / batches:>8.0f}{seconds:>10.3f}", flush=True)


if __name__ == "__main__":
    main()
