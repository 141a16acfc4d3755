"""The graph modality's own configuration sections. No torch here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, field_validator

from nextscale.plugin import Fraction, LimitsConfig, ModalityConfig, NoOptions, Section, unknown

CLEANING = ("loops", "duplicates", "direction", "components")
"""What ``data.clean`` can mend."""


def listed(text: str | None) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(dict.fromkeys(part.strip() for part in (text or "").split(",") if part.strip()))


class GraphLimitsConfig(LimitsConfig):
    """How large graphs may be. Whatever exceeds a limit is refused before memory is taken for it."""

    text_bytes: PositiveInt = 2**27
    """Bytes of a text file: a graph, or the molecules of a SMILES file."""
    nodes: PositiveInt = 100_000
    """Nodes of one graph."""
    edges: PositiveInt = 1_000_000
    """Edges of one graph."""
    graphs: PositiveInt = 5_000_000
    """Graphs in an .npz file."""


class GraphDataConfig(Section):
    """Where graphs come from."""

    shorthand = "source"
    added = ("attributes", "bins", "clean", "limits", "property")

    source: str = "planar"
    """A built-in generator (planar, tree, sbm, community-small), an .npz file, a folder with one graph per file (edge
    lists, adjacency lists, GraphML, GML, Matrix Market, DIMACS, Pajek), a SMILES file (.smi; extra: molecules), or
    pyg:NAME (a torch-geometric data set). A folder may hold the folders train, val and test; all other sub-folders are
    read together. They are no classes: ``property`` names those."""
    root: str = "~/.cache/nextscale/pyg"
    """Folder in which torch-geometric keeps its data sets."""
    validation: Fraction = 0.1
    """Share of the graphs held out for validation if the data has no such split."""
    test: Fraction = 0.2
    """Share of the graphs held out for testing if the data has no such split."""
    split_seed: int = 0
    """Seed of the held-out splits. It is separate from the run's seed, so that all runs are compared on the same
    splits."""
    attributes: str = "all"
    """Attributes of nodes and edges that are read and drawn: all, none, or names separated by commas. An attribute is a
    category (text, bool) or a number. Of all, texts that are names (different in every place) are left out."""
    bins: Annotated[int, Field(ge=2, le=4096)] = 16
    """Number of bins of an attribute that is a number: quantiles of the training data. A number that is drawn is the
    median of its bin. With no more different values than this, each value is a bin of its own."""
    clean: str = "none"
    """What is mended instead of refused: none, all, or some of loops (dropped), duplicates (the first of repeated edges
    counts), direction (forgotten) and components (the largest is kept), separated by commas."""
    property: str | None = None
    """Names, separated by commas, of the properties of graphs that samples can be drawn for: attributes of the graph in
    GraphML, GML and .npz files (arrays graph:NAME), y of torch-geometric, or columns of properties.csv. Texts, and
    integers of no more different values than ``bins``, become classes. Other numbers become numbers."""
    kind: Literal["auto", "planar", "tree", "sbm", "molecule", "none"] = "auto"
    """The validity test for samples in evaluation; auto picks it by the name of the source."""
    limits: GraphLimitsConfig = GraphLimitsConfig()

    @field_validator("clean")
    @classmethod
    def _clean_is_known(cls, text: str) -> str:
        for step in listed(text):
            if step not in (*CLEANING, "all", "none"):
                raise ValueError(unknown("step", step, [*CLEANING, "all", "none"]))
        if len(listed(text)) > 1 and {"all", "none"} & set(listed(text)):
            raise ValueError("all and none stand alone")
        return text


class StemConfig(Section):
    """The network that reads the graph so far. Its width is the transformer's."""

    layers: PositiveInt = 6
    """Number of message-passing layers. Each passes messages over triangles to edges, then over edges to nodes."""
    pooled: bool = False
    """Whether nodes also receive messages from all nodes of their graph in each layer, so that distant parts know of
    each other."""


class GraphTokenizerConfig(Section):
    """Graphs grow by reversing edge contractions."""

    added = ("split_order",)
    unlearned = ("split_order",)

    coarsening: str = "cheapest"
    """Which edges are contracted first: cheapest (few common neighbours, small degree), interior (two common
    neighbours; for triangulations), communities (edges inside communities, lightest nodes first), or random."""
    ratio: Annotated[float, Field(gt=0, le=0.5)] = 0.125
    """Share of the nodes that one level contracts; less if there are too few independent edges."""
    max_nodes: PositiveInt | None = None
    """Largest number of nodes of a graph, in training and in sampling; null means 256, or as many as the largest graph
    of the data has."""
    node_weight: NonNegativeFloat = 0.3
    """Loss weight of tokens that choose a node to split. Tokens that choose edges have weight 1."""
    masses: bool = False
    """Whether each split also draws the masses of the two children: how many nodes of the final graph each stands for.
    The network sees the masses. Without them, communities differ more in size than the data's do. The distribution
    depends on numbers only: the node's mass, the current size and the final size. Masses are unknown for graphs of
    several components and for parts of a graph, so a model with masses cannot complete graphs."""
    split_order: Literal["number", "random"] = "number"
    """The order of the tokens that choose nodes to split: ascending numbers, or a random order. In-scale steps reveal
    them in any order. A refiner draws them in the order that it has learned, which must be random, because the numbers
    of nodes mean nothing."""
    stem: StemConfig = StemConfig()


CONFIG = ModalityConfig(data=GraphDataConfig, tokenizer=GraphTokenizerConfig, evaluation=NoOptions)
