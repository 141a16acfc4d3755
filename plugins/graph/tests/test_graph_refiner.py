"""Graphs with a refiner: the order of tokens, what the refiner is blind to, how often the network runs, and the command
line."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_graph_cli import TINY, invoke
from test_stem import permuted, states_of

from nextscale.config.sections import SamplingConfig
from nextscale.sampling.generate import generate
from nextscale.testing.tiny import transformer_for
from nextscale.transformer import ScaleTransformer
from nextscale_graph.config import GraphTokenizerConfig
from nextscale_graph.graphs import from_networkx
from nextscale_graph.source import describe
from nextscale_graph.tokenizer import GraphTokenizer
from nextscale_graph.walk import sharing_ends, walk

REFINED = ("tokenizer.split_order=random", "transformer.in_scale_steps=false", "transformer.refiner.depth=1")
WITHOUT_GROUPS = (*REFINED, "sampling.reveal=random")


def build(graphs: Sequence[nx.Graph]) -> tuple[GraphTokenizer, ScaleTransformer]:
    description = describe([from_networkx([graph]) for graph in graphs], [], []) | {"largest": 16}
    settings = {"coarsening": "interior", "split_order": "random", "stem": {"layers": 2}}
    tokenizer = GraphTokenizer(GraphTokenizerConfig.model_validate(settings), description)
    model: dict[str, Any] = {"depth": 0, "attention": "markov", "positions": "rotary", "scale_embedding": False}
    refiner = {"depth": 1, "width": 8, "heads": 1}
    return tokenizer, transformer_for(tokenizer, (), stem=tokenizer.build_stem(16), refiner=refiner, **model)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.booleans(), st.integers(0, 99))
def test_a_walk_follows_rings_and_chains(sizes: list[int], closed: bool, seed: int) -> None:
    """Tokens of several groups, numbered at random; in each, they form a ring or a chain."""
    order = torch.randperm(sum(sizes), generator=torch.Generator().manual_seed(seed))
    groups, pairs, begin = torch.zeros_like(order), [], 0
    for group, size in enumerate(sizes):
        own = order[begin : begin + size].tolist()
        groups[own] = group
        pairs += list(pairwise(own))
        pairs += [(own[-1], own[0])] if closed and size > 2 else []
        begin += size
    both = torch.tensor([*pairs, *[pair[::-1] for pair in pairs]], dtype=torch.long).view(-1, 2).T
    place = walk(groups, both)
    touching = {*map(tuple, both.T.tolist())}
    for group, size in enumerate(sizes):
        own = (groups == group).nonzero()[:, 0]
        walked = own[place[own].argsort()].tolist()
        assert sorted(place[own].tolist()) == list(range(size))
        assert all(pair in touching for pair in pairwise(walked))


@given(st.integers(0, 8), st.floats(0, 1), st.integers(0, 99))
def test_edges_that_share_an_end(size: int, share: float, seed: int) -> None:
    graph = nx.gnp_random_graph(size, share, seed=seed)
    ends = sorted(graph.edges)
    pairs = sharing_ends(torch.tensor(ends, dtype=torch.long).view(-1, 2).T).T.tolist()
    expected = {frozenset(pair) for pair in nx.line_graph(graph).edges}
    assert len(pairs) == 2 * len(expected) == len({*map(tuple, pairs)})
    assert {frozenset((ends[one], ends[other])) for one, other in pairs} == expected


@given(st.integers(0, 30))
def test_numbers_of_nodes_mean_nothing(seed: int) -> None:
    tokenizer, transformer = build([nx.path_graph(7), nx.wheel_graph(9)])
    found = states_of(tokenizer, seed, "node")
    assert found is not None
    state, tokens = found
    order = torch.randperm(len(state.splits), generator=torch.Generator().manual_seed(seed))
    cond_BD = transformer.conditioner({}, 1)
    with torch.no_grad():
        plain = transformer(tokenizer.scale_input(state, 0), cond_BD, tokens=tokens)
        renamed = transformer(tokenizer.scale_input(permuted(state, order), 0), cond_BD, tokens=order[tokens])
    assert isinstance(plain, torch.Tensor) and isinstance(renamed, torch.Tensor)
    torch.testing.assert_close(renamed[..., order], plain[..., : len(order)], atol=1e-4, rtol=0)


def test_the_network_runs_once_per_scale_and_chooses_free_nodes() -> None:
    tokenizer, transformer = build([nx.path_graph(16)])
    runs = []
    transformer.stem.register_forward_pre_hook(lambda *_: runs.append(1))
    drawn = generate(tokenizer, transformer, 1, {}, SamplingConfig(guidance=0), torch.Generator().manual_seed(0))
    assert len(runs) == len(drawn.tokens)
    several = 0
    for k, tokens in enumerate(drawn.tokens):
        if tokenizer.scales.kind(k) == "node":
            graph = tokenizer.decode(drawn.states[k]).to_networkx()[0]
            taken: set[int] = set()
            for node in tokens[0].tolist():
                assert node not in taken or len(taken) == len(graph)
                several += bool(taken)
                taken |= {node, *graph[node]}
    assert several


@pytest.fixture(scope="module")
def refined(small_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "refined"
    result = invoke("train", "-m", "graph", f"data={small_file}", *TINY, *WITHOUT_GROUPS, "--out", folder)
    assert result.exit_code == 0, result.output
    return folder


def test_commands(refined: Path, tmp_path: Path) -> None:
    result = invoke("eval", refined, "--samples", 6)
    assert result.exit_code == 0, result.output
    report = (refined / "eval.json").read_text()
    assert '"nats_per_sample"' in report and "nats_per_sample_bound" not in report
    for name, more in (("plain", ()), ("planar", ("require=planar",))):
        result = invoke("sample", refined, "--num", 4, "--size", 7, *more, "--out", tmp_path / name)
        assert result.exit_code == 0, result.output
        graphs = [nx.read_graphml(path) for path in sorted((tmp_path / name / "single").glob("*.graphml"))]
        assert [len(graph) for graph in graphs] == [7] * 4
    assert all(nx.check_planarity(graph)[0] for graph in graphs)
    part = tmp_path / "part.edgelist"
    part.write_text("a b\nb c\nc a\n")
    result = invoke("edit", refined, "--sample", part, "size=8", "-n", 2, "--out", tmp_path / "complete")
    assert result.exit_code == 0, result.output
    whole = nx.read_graphml(sorted((tmp_path / "complete" / "single").glob("*.graphml"))[0])
    given = {data["given"]: node for node, data in whole.nodes(data=True) if data.get("given")}
    assert len(whole) == 8 and all(whole.has_edge(given[a], given[b]) for a, b in ("ab", "bc", "ca"))


@pytest.mark.parametrize("more", [("--dry-run",), ("training.transformer.precision=fp16",)], ids=["dry", "fp16"])
def test_training_otherwise(small_file: Path, tmp_path: Path, more: Sequence[str]) -> None:
    heads = "transformer.refiner.heads=2"
    result = invoke(
        "train", "-m", "graph", f"data={small_file}", *TINY, *WITHOUT_GROUPS, heads, *more, "--out", tmp_path / "r"
    )
    assert result.exit_code == 0, result.output
    assert (tmp_path / "r").exists() == ("--dry-run" not in more)


def test_scales_chosen_by_name_have_no_end() -> None:
    """A star takes a level per node."""
    tokenizer, _ = build([nx.star_graph(15)])
    stem, refiner = tokenizer.build_stem(16), {"depth": 0, "scales": ["edge"]}
    model: dict[str, Any] = {"depth": 0, "attention": "markov", "positions": "rotary", "scale_embedding": False}
    transformer = transformer_for(tokenizer, (), stem=stem, refiner=refiner, **model)
    assert transformer.refiner is not None
    for k, name in enumerate(tokenizer.scale_names(3 * 1000)):
        assert transformer.refiner.covers(k, 1) == (name == "edge")


def test_a_run_with_in_scale_steps_is_given_a_refiner(small_file: Path, tmp_path: Path) -> None:
    for name, more in (("plain", ()), ("refined", (*WITHOUT_GROUPS, "--init-from", tmp_path / "plain"))):
        result = invoke("train", "-m", "graph", f"data={small_file}", *TINY, *more, "--out", tmp_path / name)
        assert result.exit_code == 0, result.output
    assert "refiner.before.node.weight" in result.output


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("transformer.refiner.depth=1", *REFINED[1:2]), "set tokenizer.split_order=random"),
        (("transformer.refiner.depth=1",), "set transformer.in_scale_steps=false or transformer.refiner=null"),
        (REFINED, "with a refiner, set sampling.steps=1 and sampling.reveal=random"),
        ((*WITHOUT_GROUPS, "transformer.refiner.scales=4"), "transformer.refiner.scales=null"),
    ],
)
def test_settings_that_do_not_fit(small_file: Path, tmp_path: Path, settings: Sequence[str], message: str) -> None:
    result = invoke("train", "-m", "graph", f"data={small_file}", *TINY, *settings, "--out", tmp_path / "run")
    assert result.exit_code == 2 and not (tmp_path / "run").exists()
    assert message in " ".join(result.output.split())
