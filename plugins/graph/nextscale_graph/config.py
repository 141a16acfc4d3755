"""The graph modality's own configuration sections. No torch here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from nextscale.plugin import Fraction, ModalityConfig, Section


class GraphDataConfig(Section):
    """Where graphs come from."""

    shorthand = "source"

    source: str = "planar"
    """planar, tree, sbm, community-small (built-in generators), an .npz file, a folder of edge lists or GraphML, a
    SMILES file (.smi; extra: molecules), or pyg:NAME (a torch-geometric data set)."""
    root: str = "~/.cache/nextscale/pyg"
    """Where torch-geometric keeps its data sets."""
    validation: Fraction = 0.1
    """Share of the graphs held out for validation where the data has no such split."""
    test: Fraction = 0.2
    """Share of the graphs held out for testing where the data has no such split."""
    split_seed: int = 0
    """Seed of the hold-outs; it is not the run's seed, so that runs are compared on the same split."""
    kind: Literal["auto", "planar", "tree", "sbm", "molecule", "none"] = "auto"
    """What makes a sample valid when it is evaluated; auto goes by the name of the source."""


class StemConfig(Section):
    """The network on the graph so far; its width is the transformer's."""

    layers: PositiveInt = 6
    """Layers of messages: over triangles to edges, over edges to nodes."""
    pooled: bool = False
    """Whether in each layer nodes also hear from all nodes of their graph, so that distant parts know of each other."""


class GraphTokenizerConfig(Section):
    """Growth by reverse contraction."""

    coarsening: str = "cheapest"
    """Which edges are contracted first: cheapest (few common neighbours, small degree), interior (two common
    neighbours: for triangulations), communities (inside communities, the lightest nodes), or random."""
    ratio: Annotated[float, Field(gt=0, le=0.5)] = 0.125
    """Share of the nodes that one level contracts, as far as there are independent edges."""
    max_nodes: PositiveInt = 256
    """Most nodes a graph may have, in training and in sampling."""
    node_weight: NonNegativeFloat = 0.3
    """What a token that chooses a node to split counts in the loss; one that chooses edges counts 1."""
    masses: bool = False
    """Whether it is drawn, as a node splits, how many nodes each of its children stands for in the end (its mass), and
    the network told: without, communities differ more in size than the data's do. The law is one of numbers alone: the
    node's mass, and the sizes so far and in the end. Masses are not known of graphs of several components, nor of parts
    of a graph: with them, none are completed."""
    stem: StemConfig = StemConfig()


CONFIG = ModalityConfig(data=GraphDataConfig, tokenizer=GraphTokenizerConfig)
