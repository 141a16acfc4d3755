"""`nextscale bench growth`: what it counts, fits and writes; not how fast anything is."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from nextscale.bench.floor import MatrixProducts
from nextscale.bench.growth import run as growth
from nextscale.bench.growth.cost import PassCost
from nextscale.bench.growth.fits import fit_power_law, larger_half, predict_seconds
from nextscale.bench.growth.kinds import KINDS, build_tokenizer, build_transformer, doubling_sides
from nextscale.bench.growth.measure import Sampler, Task, on_paper, own_process
from nextscale.config.run import load_config
from nextscale.config.sections import TransformerConfig
from nextscale.errors import ConfigError, NextscaleError
from nextscale.modality import BenchCase
from nextscale.sampling.generate import generate
from nextscale_cli.main import app

CASE = BenchCase("digits", None, {"channels": 1, "height": 8, "width": 8, "classes": []})
TINY = ["transformer.depth=2", "transformer.width=16", "transformer.heads=2", "tokenizer.quantizer.codes=12"]
CODES, CHANNELS = 12, 16


def task(kind: str, side: int, axes: int = 2, batch: int = 1, overrides: tuple[str, ...] = ()) -> Task:
    config = load_config("image", "digits", None, [*TINY, *overrides])
    return Task.of(config, KINDS[kind], side, axes, batch, 1, 60.0, "cpu")


# Fits


@settings(deadline=None)
@given(
    st.floats(-3, 8),
    st.floats(1e-6, 1e6),
    st.lists(st.integers(1, 1000), min_size=3, max_size=8, unique=True),
)
def test_an_exact_power_law_is_recovered(exponent: float, factor: float, sides: list[int]) -> None:
    fit = fit_power_law(sides, [factor * side**exponent for side in sides])
    assert fit.exponent == pytest.approx(exponent, abs=1e-6)
    assert fit.factor == pytest.approx(factor, rel=1e-4)
    assert fit.low <= fit.exponent <= fit.high and fit.high - fit.low < 1e-5


def test_the_interval_covers_the_exponent_as_often_as_it_says() -> None:
    random, sides = np.random.default_rng(0), np.array([4, 8, 16, 32, 64])
    covered = 0
    for _ in range(400):
        fit = fit_power_law(sides.tolist(), (sides**2.5 * np.exp(random.normal(0, 0.3, 5))).tolist())
        covered += fit.low <= 2.5 <= fit.high
    assert 0.92 < covered / 400 < 0.98


@pytest.mark.parametrize(
    ("sides", "values", "message"),
    [
        ([4, 8], [1, 2], "at least 3 different sides, got 2"),
        ([4, 8, 8], [1, 2, 2], "at least 3 different sides, got 2"),
        ([2, 4, 8], [1, 0, 2], "above 0"),
    ],
)
def test_what_no_power_law_goes_through(sides: list[int], values: list[float], message: str) -> None:
    with pytest.raises(NextscaleError, match=message):
        fit_power_law(sides, values)


@given(st.lists(st.integers(2, 100), min_size=3, unique=True))
def test_the_larger_half_can_be_fitted(sides: list[int]) -> None:
    half = larger_half(sides)
    assert len(half) == max(3, -(-len(sides) // 2)) and half == sorted(sides)[-len(half) :]


@settings(deadline=None)
@given(st.floats(1e-6, 1), st.floats(1e-13, 1e-9), st.integers(2, 4))
def test_forecasts_know_a_part_per_pass_and_a_part_per_operation(per_pass: float, per_op: float, number: int) -> None:
    draws = [(4**k, 1e6 * 13**k) for k in range(1, number + 2)]
    times = [(p, f, per_pass * p + per_op * f) for p, f in draws]
    assert predict_seconds(times[:-1], *draws[-1]) == pytest.approx(times[-1][2], rel=1e-6)
    assert predict_seconds(times[:1], draws[1][0], draws[1][1]) == pytest.approx(13 * times[0][2])


# What is drawn and counted


@given(st.integers(1, 300))
def test_scales_of_half_the_side(side: int) -> None:
    sides = doubling_sides(side)
    assert sides[0] == 1 and sides[-1] == side and len(sides) == (side - 1).bit_length() + 1
    assert all(a < b <= 2 * a for a, b in itertools.pairwise(sides))


def by_hand(config: TransformerConfig, kind: str, side: int, axes: int) -> int:
    """The operations of a draw, from the sizes of the weights and the sums over passes."""
    width, depth, hidden = config.model_width, config.depth, round(config.model_width * config.mlp_ratio)
    if config.mlp == "swiglu":
        hidden = -(-2 * hidden // 3 // 8) * 8
    mlp = (3 if config.mlp == "swiglu" else 2) * width * hidden
    token, pair, stem = 2 * depth * (4 * width**2 + mlp), 4 * depth * width, 2 * CHANNELS * width
    head = 2 * width * CODES
    if config.head == "codebook":
        head = 2 * width * (CHANNELS + 1) + 2 * CODES * (width + CHANNELS + 1)
    once = 2 * width * 6 * width * (depth if config.adaln == "block" else 1) + 2 * width * 2 * width
    if kind.startswith("next-token"):
        length = side**axes
        rising, squares = length * (length + 1) // 2, length * (length + 1) * (2 * length + 1) // 6
        if kind == "next-token":
            return once + length * (token + head) + (length - 1) * stem + rising * pair
        return once + rising * token + length * head + (rising - length) * stem + squares * pair
    lengths = [s**axes for s in doubling_sides(side)]
    ends = list(itertools.accumulate(lengths))
    tokens = lengths if kind == "next-scale" else ends
    pairs = sum(queries * keys for queries, keys in zip(tokens, ends, strict=True))
    embedded = ends[-1] - 1 if kind == "next-scale" else sum(end - 1 for end in ends)
    return once + sum(tokens) * token + ends[-1] * head + embedded * stem + pairs * pair


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(sorted(KINDS)), st.integers(1, 9), st.integers(1, 3), st.integers(0, 2), st.booleans(),
    st.booleans(), st.booleans(), st.sampled_from(["absolute", "rotary"]),
)  # fmt: skip
def test_operations_are_those_of_the_closed_form(
    kind: str, side: int, axes: int, depth: int, gated: bool, shared: bool, codebook: bool, positions: str
) -> None:
    config = TransformerConfig(
        depth=depth, width=16, heads=2, mlp="swiglu" if gated else "gelu", adaln="shared" if shared else "block",
        head="codebook" if codebook else "linear", positions=positions,
    )  # fmt: skip
    one = task(kind, side)
    tokenizer = build_tokenizer(one.kind, one.tokenizer, axes, side)
    cost = PassCost.counted(one.kind, config, tokenizer)
    assert cost.flops(one.kind, tokenizer.schedule()) == by_hand(config, kind, side, axes)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_operations_are_those_of_a_real_draw(kind: str) -> None:
    one = task(kind, 4, batch=2)
    sampler = Sampler(one)
    products, counted = MatrixProducts(), sampler.transformer
    products.counting = False  # the tokenizer's own products are not those of the transformer
    counted.register_forward_pre_hook(lambda *_: setattr(products, "counting", True))
    counted.register_forward_hook(lambda *_: setattr(products, "counting", False))
    with products:
        sampler.draw()
    cost = PassCost.counted(one.kind, one.transformer, sampler.tokenizer)
    drawn = sum(product.flops * count for product, count in products.counts.items())
    # Drawing computes the vectors of adaLN, for the whole batch, before it calls the transformer.
    assert (
        drawn + 2 * cost.once == on_paper(one, cost)["flops"] == 2 * cost.flops(one.kind, sampler.tokenizer.schedule())
    )


@pytest.mark.parametrize("name", ["next-scale", "next-token"])
@pytest.mark.parametrize("positions", ["absolute", "rotary"])
def test_without_a_cache_the_same_tokens_are_drawn(name: str, positions: str) -> None:
    drawn = []
    for kind in (KINDS[name], KINDS[f"{name}-uncached"]):
        one = task(name, 5, overrides=(f"transformer.positions={positions}",))
        torch.manual_seed(0)
        tokenizer = build_tokenizer(kind, one.tokenizer, 2, 5).eval()
        transformer = build_transformer(kind, one.transformer, tokenizer).eval()
        for parameter in transformer.parameters():  # freshly initialised models hardly look at their input
            torch.nn.init.normal_(parameter, std=0.5)
        generators = [torch.Generator().manual_seed(i) for i in range(2)]
        for _ in range(2):  # a second draw must begin anew
            result = generate(tokenizer, transformer, 2, None, None, generators)
        drawn.append(result.pyramid(tokenizer.schedule()).tokens)
    assert torch.equal(*drawn) and len(drawn[0].unique()) > 3


def test_next_token_draws_one_place_per_pass() -> None:
    for kind in ("next-token", "next-token-uncached"):
        one = task(kind, 4)
        schedule = build_tokenizer(one.kind, one.tokenizer, 2, 4).schedule()
        assert schedule.lengths == (1,) * 16


# Runs


@contextmanager
def same_process() -> Iterator[Any]:
    yield lambda function, given: function(given)


def grow(tmp_path: Path, **options: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {"sides": [2, 3, 4], "kinds": ["next-scale"], "repeats": 1, "overrides": TINY}
    return growth.bench_growth("image", CASE, out=tmp_path, device="cpu", **(defaults | options))


def test_rows_beyond_the_limit_are_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "own_process", same_process)
    result = grow(tmp_path, limit=1e-9)
    first, *rest = result["rows"]
    assert first["seconds"] > 0 and len(first["times"]) == 1, "the smallest side is always drawn, here only once"
    assert all("not tried: about" in row["note"] and "seconds" not in row for row in rest)
    assert rest[0]["predicted_seconds"] == pytest.approx(first["seconds"] * rest[0]["flops"] / first["flops"])
    assert result["fits"] == [] and json.loads((tmp_path / "growth.json").read_text()) == result


def test_only_operations_are_fitted_beyond_what_was_drawn() -> None:
    sides = [2, 4, 8, 16, 32, 64, 128]
    rows: list[dict[str, Any]] = [{"kind": "next-scale", "side": n, "flops": n**4, "peak_mib": None} for n in sides]
    for row in rows[:5]:
        row["seconds"] = row["side"] ** 2
    fits = growth.summary(rows, [KINDS["next-scale"]], 2)["fits"]
    assert [(fit["quantity"], fit["which"], fit["sides"], round(fit["exponent"], 6)) for fit in fits] == [
        ("time", "all sides", (2, 4, 8, 16, 32), 2),
        ("time", "larger half", (8, 16, 32), 2),
        ("operations", "all sides", (2, 4, 8, 16, 32), 4),
        ("operations", "larger half", (8, 16, 32), 4),
        ("operations", "larger half, on paper", (16, 32, 64, 128), 4),
    ]
    del rows[2]["seconds"], rows[3]["seconds"], rows[4]["seconds"]
    assert growth.summary(rows, [KINDS["next-scale"]], 2)["fits"] == []


def test_rows_that_do_not_fit_into_memory_are_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "own_process", same_process)
    monkeypatch.setattr(growth, "free_memory", lambda device: 1)
    assert all("1 MiB" not in row["note"] and "needs about" in row["note"] for row in grow(tmp_path)["rows"])


def test_a_killed_process_ends_its_kind_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(given: Task) -> dict[str, Any]:
        if given.kind.name == "next-scale" and given.side == 3:
            raise BrokenProcessPool
        return {"seconds": 1.0, "times": [1.0], "peak_mib": None}

    monkeypatch.setattr(growth, "own_process", same_process)
    monkeypatch.setattr(growth, "measure", measured)
    rows = grow(tmp_path, kinds=["next-scale", "next-token"])["rows"]
    assert [row.get("seconds") for row in rows] == [1.0, None, None, 1.0, 1.0, 1.0]
    assert rows[1]["note"] == "not measured: out of memory" and "note" in rows[2]


def test_ctrl_c_leaves_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(given: Task) -> dict[str, Any]:
        if given.side == 4:
            raise KeyboardInterrupt
        return {"seconds": 1.0, "times": [1.0], "peak_mib": None}

    monkeypatch.setattr(growth, "own_process", same_process)
    monkeypatch.setattr(growth, "measure", measured)
    with pytest.raises(KeyboardInterrupt):
        grow(tmp_path)
    assert [row["side"] for row in json.loads((tmp_path / "growth.json").read_text())["rows"]] == [2, 3]


def test_the_process_beside_this_one() -> None:
    with own_process() as call:
        assert call(abs, -3) == 3  # type: ignore[arg-type]
        with pytest.raises(BrokenProcessPool):
            call(os._exit, 1)  # type: ignore[arg-type]


def test_command_line(forked_pools: None, tmp_path: Path) -> None:
    arguments = ["bench", "growth", "-p", "digits", "--sides", "2,3,4,6", "--kinds", "next-scale,next-token"]
    result = CliRunner().invoke(app, [*arguments, "--repeats", "1", "--device", "cpu", "--out", str(tmp_path), *TINY])
    assert result.exit_code == 0, result.output
    assert "next-token 6" in result.stderr
    assert "95% interval" in result.stdout and "larger half (3, 4, 6)" in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["growth.json", "growth.svg"]
    assert (tmp_path / "growth.svg").read_text().startswith("<?xml")
    saved = json.loads((tmp_path / "growth.json").read_text())
    assert [(row["kind"], row["side"]) for row in saved["rows"]] == [
        (kind, side) for kind in ("next-scale", "next-token") for side in (2, 3, 4, 6)
    ]
    assert [row["passes"] for row in saved["rows"]] == [2, 3, 3, 4, 4, 9, 16, 36]
    assert all(row["cpu_seconds"] > 0 and len(row["times"]) == 1 for row in saved["rows"])
    seconds = {(row["kind"], row["side"]): row["seconds"] for row in saved["rows"]}
    assert [ratio["seconds_ratio"] for ratio in saved["ratios"]] == pytest.approx(
        [seconds["next-token", side] / seconds["next-scale", side] for side in (2, 3, 4, 6)]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sides", "4,8"], "--sides = 4,8 is wrong: an exponent needs at least 3 sides"),
        (["--sides", "4,16,8"], "--sides = 4,16,8 is wrong: should increase"),
        (["--sides", "1,2,4"], "from 2 on"),
        (["--sides", "4,x,16"], "--sides = 4,x,16 is wrong: should be whole numbers"),
        (["--kinds", "next-scal"], "unknown kind 'next-scal'; did you mean 'next-scale'"),
        (["--kinds", "next-scale,next-scale"], "should name each kind once"),
        (["--limit", "0"], "the limit above 0"),
        (["-m", "graph"], "bench growth needs a tokenizer on a grid; modality graph has none"),
        (["tokenizer.order=raster"], "tokenizer.order has no effect here"),
        (["tokenizer.scales=[1,2]"], "tokenizer.scales has no effect here"),
        (["transformer.attention=[[1,0],[1,1]]"], "set transformer.attention=full"),
        (["sampling.top_k=[3,2]"], "sampling.top_k has 2 values; this model has 3 scales"),
    ],
)
def test_bad_input(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bench", "growth", "--device", "cpu", "--out", str(tmp_path), *arguments])
    assert result.exit_code == 2 and message in result.stderr, result.output
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nextscale.bench.growth.plot import plot_growth

    monkeypatch.setattr(growth, "own_process", same_process)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    arguments = ["bench", "growth", "-p", "digits", "--sides", "2,3,4", "--kinds", "next-scale", "--repeats", "1"]
    result = CliRunner().invoke(app, [*arguments, "--device", "cpu", "--out", str(tmp_path), *TINY])
    assert result.exit_code == 0 and "pip install 'nextscale[plot]'" in result.stderr, result.output
    assert [path.name for path in tmp_path.iterdir()] == ["growth.json"]
    with pytest.raises(NextscaleError, match="needs matplotlib"):
        plot_growth(json.loads((tmp_path / "growth.json").read_text()), tmp_path / "growth.svg")


def test_numbers_that_make_no_sense(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        grow(tmp_path, repeats=0)
