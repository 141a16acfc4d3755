"""The contract suite on the graph plugin: small graphs of every kind, with and without types."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from graph_samples import random_graph
from hypothesis import strategies as st

from nextscale.config.sections import TransformerConfig
from nextscale.testing import ModalityContract, strategies
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale_graph.config import GraphDataConfig, GraphTokenizerConfig, StemConfig
from nextscale_graph.graphs import GraphBatch, from_networkx
from nextscale_graph.modality import GraphModality
from nextscale_graph.writers import write_npz


class GraphContract(ModalityContract):
    typed = False
    max_samples = 2
    examples, few_examples = 10, 5
    source: str

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def graphs(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        rng = np.random.default_rng(0)
        batch = from_networkx([random_graph(rng, 6, cls.typed) for _ in range(24)])
        cls.source = str(write_npz(batch, tmp_path_factory.mktemp("graphs") / "graphs.npz"))

    def build_modality(self) -> GraphModality:
        return GraphModality()

    def data_config(self) -> GraphDataConfig:
        return GraphDataConfig(source=self.source)

    def tokenizer_config(self) -> GraphTokenizerConfig:
        return GraphTokenizerConfig.model_validate({"max_nodes": 6, "ratio": 0.3, "stem": {"layers": 1}})

    def tokenizer_configs(self) -> list[GraphTokenizerConfig]:
        return [self.tokenizer_config().model_copy(update={"coarsening": name}) for name in ("cheapest", "random")]

    def transformer_configs(self, num_scales: int, in_scale_steps: bool | None) -> st.SearchStrategy[TransformerConfig]:
        """Only what an adaptive tokenizer allows, including a transformer without blocks."""
        drawn = strategies.transformer_configs(num_scales, in_scale_steps)

        def fit(config: TransformerConfig, depth: int) -> TransformerConfig:
            rule = config.attention if isinstance(config.attention, str) else "full"
            changes = {"positions": "rotary", "scale_embedding": False, "attention": rule, "depth": depth}
            return config.model_copy(update=changes)

        return st.builds(fit, drawn, st.integers(0, 1))

    def ragged(self, tokenizer: MultiscaleTokenizer, seed: int) -> tuple[list[Any], Any]:
        joined = self.samples(tokenizer, 3, seed % 100)
        return [joined[[i]] for i in range(len(joined))], joined

    def samples(self, tokenizer: MultiscaleTokenizer, num_samples: int, seed: int) -> GraphBatch:
        return super().samples(tokenizer, num_samples, seed % 100)

    def check_samples(self, samples: GraphBatch, num_samples: int) -> None:
        assert len(samples) == len(samples.edge_counts) == num_samples
        assert samples.edges.shape == (2, int(samples.edge_counts.sum()))
        of = torch.repeat_interleave(samples.sizes, samples.edge_counts)
        assert bool((samples.edges[0] < samples.edges[1]).all() and (samples.edges[1] < of).all())
        assert (samples.node_types is not None) == self.typed


class TestGraphs(GraphContract):
    examples = 50


class TestGraphsRefined(GraphContract):
    """Every transformer without in-scale steps has a refiner."""

    examples = 25

    def tokenizer_configs(self) -> list[GraphTokenizerConfig]:
        return [config.model_copy(update={"split_order": "random"}) for config in super().tokenizer_configs()]

    def transformer_configs(self, num_scales: int, in_scale_steps: bool | None) -> st.SearchStrategy[TransformerConfig]:
        drawn = super().transformer_configs(num_scales, bool(in_scale_steps))
        if in_scale_steps:
            return drawn
        refiners = strategies.refiner_configs(num_scales)
        return st.builds(lambda config, refiner: config.model_copy(update={"refiner": refiner}), drawn, refiners)


class TestTypedGraphsRefined(TestGraphsRefined):
    typed = True
    examples = 10


class TestGraphsWithMasses(GraphContract):
    def tokenizer_config(self) -> GraphTokenizerConfig:
        return super().tokenizer_config().model_copy(update={"masses": True})


class TestGraphsWithPooledMessages(GraphContract):
    def tokenizer_config(self) -> GraphTokenizerConfig:
        return super().tokenizer_config().model_copy(update={"stem": StemConfig(layers=1, pooled=True)})


class TestTypedGraphs(GraphContract):
    typed = True


class TestTypedGraphsWithMasses(TestGraphsWithMasses):
    typed = True
