"""The graph modality: the core's interface for graphs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import networkx as nx
from torch import Tensor

from nextscale.plugin import (
    ContractCase,
    DataSplits,
    EvaluationContext,
    Modality,
    MultiscaleTokenizer,
    NoOptions,
    Objective,
    Proposal,
    Samples,
    check_file,
)
from nextscale_graph import writers
from nextscale_graph.archives import write_archives
from nextscale_graph.config import GraphDataConfig, GraphTokenizerConfig
from nextscale_graph.data import open_graphs
from nextscale_graph.graphs import GraphBatch, concatenate, from_networkx
from nextscale_graph.proposals import propose_graphs
from nextscale_graph.readers.arrays import read_npz
from nextscale_graph.readers.folder import read_graph
from nextscale_graph.readers.memory import write_npz as write_memory
from nextscale_graph.readers.rules import Rules
from nextscale_graph.tokenizer import GraphTokenizer


class GraphModality(Modality):
    name = "graph"

    def open_data(self, config: GraphDataConfig) -> DataSplits:
        return open_graphs(config)

    def store_samples(self, samples: Any, labels: Any, path: Path) -> dict[str, Any]:
        """Graphs of networkx, torch-geometric (``Data``) or a ``GraphBatch``, with all attributes; ``labels``, one per
        graph or a mapping of several, are their properties."""
        path.parent.mkdir(parents=True, exist_ok=True)
        file = write_memory(samples, path.parent / f"{path.name}.npz", labels)
        names = ",".join(labels if isinstance(labels, Mapping) else ["label"])
        return {"source": file, **({} if labels is None else {"property": names})}

    def propose(self, data: DataSplits) -> list[Proposal]:
        return propose_graphs(data)

    def build_tokenizer(self, config: GraphTokenizerConfig, description: dict[str, Any]) -> GraphTokenizer:
        return GraphTokenizer(config, description)

    def tokenizer_objectives(self, tokenizer: MultiscaleTokenizer, config: GraphTokenizerConfig) -> list[Objective]:
        return []

    def concatenate(self, batches: list[GraphBatch]) -> GraphBatch:
        return batches[0] if len(batches) == 1 else concatenate(batches)

    def write_samples(
        self,
        samples: GraphBatch,
        folder: Path,
        description: Mapping[str, Any],
        first: int = 0,
        metadata: Sequence[Mapping[str, str]] | None = None,
    ) -> list[Path]:
        return writers.write_samples(samples, folder, description, first, metadata)

    def write_archives(self, batches: Iterable[Samples], folder: Path, description: Mapping[str, Any]) -> list[Path]:
        """All graphs in one file of arrays; molecules also as SMILES and SDF."""
        return write_archives(batches, folder, description)

    def write_grid(
        self,
        samples: GraphBatch,
        path: Path,
        description: Mapping[str, Any],
        columns: int | None = None,
        captions: Sequence[str] | None = None,
    ) -> Path:
        return writers.write_grid(samples, path.with_suffix(".png"), columns, captions, description)

    def write_film(
        self, steps: list[GraphBatch], path: Path, description: Mapping[str, Any], captions: Sequence[str] | None = None
    ) -> Path:
        return writers.write_film(steps, path.with_suffix(".png"), captions)

    def read_sample(
        self, path: Path, tokenizer: MultiscaleTokenizer, mask: Path | None = None
    ) -> tuple[GraphBatch, Tensor | None]:
        """Read a graph from a file of any kind that folders of data may hold, or the first graph of an .npz file, whose
        nodes are called by their numbers."""
        check_file(path)
        assert isinstance(tokenizer, GraphTokenizer)
        rules = Rules(attributes=tokenizer.codes.names, properties=())
        if path.suffix.lower() != ".npz":
            return read_graph(path, rules=rules), None
        graph = read_npz(path, rules=rules).graphs[0]
        return replace(graph, given=tuple(map(str, range(int(graph.sizes[0]))))), None

    def contract(self, folder: Path) -> ContractCase:
        """A few random trees and cycles of 3 to 6 nodes."""
        graphs = [nx.path_graph(3 + i % 4) if i % 2 else nx.cycle_graph(3 + i % 4) for i in range(24)]
        source = writers.write_npz(from_networkx(graphs), folder / "graphs.npz")
        settings = {"max_nodes": 6, "ratio": 0.3, "stem": {"layers": 1}}
        return ContractCase(GraphDataConfig(source=str(source)), GraphTokenizerConfig.model_validate(settings))

    def evaluate_tokenizer(
        self, tokenizer: MultiscaleTokenizer, data: DataSplits, options: NoOptions, context: EvaluationContext
    ) -> dict[str, Any]:
        from nextscale_graph.evaluate import evaluate_tokenizer

        return evaluate_tokenizer(tokenizer, data)

    def evaluate_samples(
        self,
        samples: GraphBatch,
        conditions: dict[str, Tensor],
        data: DataSplits,
        options: NoOptions,
        context: EvaluationContext,
    ) -> dict[str, Any]:
        from nextscale_graph.evaluate import evaluate_samples

        return evaluate_samples(samples, data)
