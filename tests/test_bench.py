"""`nextscale bench train`: that it measures what it says, not how fast."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

from nextscale import bench
from nextscale.conditioning import ConditionSpec
from nextscale.errors import ConfigError
from nextscale.matmulfloor import Factor, Floor, MatrixProducts, Product
from nextscale_cli.main import app

DIGITS = {"channels": 1, "height": 8, "width": 8, "classes": []}
TINY = ["tokenizer.width=8", "tokenizer.scales=1,2,4", "transformer.depth=2", "transformer.width=16", "seed=3"]
CPU = torch.device("cpu")


def shapes(counts: Counter[Product]) -> Counter[tuple[tuple[int, ...], tuple[int, ...]]]:
    found: Counter[tuple[tuple[int, ...], tuple[int, ...]]] = Counter()
    for product, count in counts.items():
        found[product.a.shape, product.b.shape] += count
    return found


def test_rows_without_data() -> None:
    case = bench.BenchCase("digits", 3, DIGITS, (ConditionSpec(name="label", size=10),))
    lines: list[str] = []
    rows = bench.bench_train("image", [case], repeats=1, overrides=TINY, device="cpu", log=lines.append)
    assert lines == ["digits fp32", "digits bf16"]
    assert [(row["precision"], row["target"]) for row in rows] == [("fp32", 1.3), ("bf16", 1.5)]
    for row in rows:
        assert (row["batch"], row["tokens"], row["threads"]) == (3, 21, torch.get_num_threads())
        assert min(row["cached_ms"], row["on_the_fly_ms"], row["floor_ms"], row["floor_gflops"]) > 0
        assert row["floor_ratio"] == pytest.approx(row["cached_ms"] / row["floor_ms"])
        assert row["on_the_fly_ratio"] == pytest.approx(row["on_the_fly_ms"] / row["cached_ms"])
    assert rows[0]["note"] == ""


def test_the_step_is_timed_in_turns_and_tokenizes_only_on_the_fly(monkeypatch: pytest.MonkeyPatch) -> None:
    from nextscale_image.tokenizer import ImageTokenizer

    encoded: list[int] = []
    encode = ImageTokenizer.encode
    monkeypatch.setattr(ImageTokenizer, "encode", lambda self, x: encoded.append(len(x)) or encode(self, x))
    case = bench.BenchCase("digits", 2, DIGITS)
    bench.bench_train("image", [case], ["fp32"], repeats=2, overrides=TINY, device="cpu")
    assert encoded == [2] * 4  # to fill the cache, then once in each of three turns


def test_the_presets_own_data() -> None:
    (row,) = bench.bench_train("image", ["digits"], ["fp32"], 1, [*TINY, "training.transformer.batch_size=4"])
    assert row["batch"] == 4 and row["floor_ratio"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("image", ["digts"]), "did you mean 'digits'"),
        (("image", ["digits"], ["fp23"]), "unknown precision 'fp23'"),
        (("image", ["digits"], ["fp32"], 0), "at least 1"),
    ],
)
def test_bad_arguments(arguments: tuple, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bench.bench_train(*arguments)


def test_a_linear_layer_is_three_products() -> None:
    layer, x = torch.nn.Linear(5, 7), torch.randn(2, 3, 5, requires_grad=True)
    with MatrixProducts() as products:
        layer(x).sum().backward()
    assert shapes(products.counts) == {((6, 5), (5, 7)): 1, ((6, 7), (7, 5)): 1, ((7, 6), (6, 5)): 1}
    assert Floor(products.counts, itertools.count().__next__).flops == 3 * 2 * 6 * 5 * 7


@pytest.mark.parametrize("masked", [False, True])
def test_fused_attention_counts_as_the_six_products_that_it_stands_for(masked: bool) -> None:
    """Against the same attention written out, whose products are recorded one by one."""
    batch, heads, length, width = 2, 3, 5, 4
    q, k, v = (torch.randn(batch, heads, length, width, requires_grad=True) for _ in range(3))
    mask = torch.ones(length, length, dtype=torch.bool).tril() if masked else None
    with MatrixProducts() as fused:
        F.scaled_dot_product_attention(q, k, v, attn_mask=mask).sum().backward()
    with MatrixProducts() as written:
        logits = q @ k.mT / math.sqrt(width)
        (logits.softmax(-1) @ v).sum().backward()
    assert sum(fused.counts.values()) == 6
    multiply = dict.fromkeys((6,), 2 * batch * heads * length * length * width)
    assert Floor(fused.counts, float).flops == Floor(written.counts, float).flops == 6 * multiply[6]


def test_the_floor_counts_each_product_as_often_as_it_occurs() -> None:
    square = Product(Factor((4, 4), False), Factor((4, 4), True), torch.float32, CPU)
    batched = Product(Factor((2, 3, 4), True), Factor((2, 4, 5), False), torch.float32, CPU)
    assert (square.flops, batched.flops) == (2 * 64, 2 * 2 * 3 * 4 * 5)
    # By this clock, two timed calls of each take 2 s.
    ticks = itertools.count(step=2)
    assert Floor(Counter({square: 3, batched: 2}), lambda: float(next(ticks))).__call__() == 5.0


def test_factors_are_laid_out_as_they_were() -> None:
    x = torch.randn(3, 4)
    for tensor, transposed in ((x, False), (x.T, True)):
        factor = Factor.of(tensor)
        again = factor.random(torch.bfloat16, CPU)
        assert factor.transposed == transposed
        assert (tuple(again.shape), Factor.of(again), again.dtype) == (tuple(tensor.shape), factor, torch.bfloat16)


def test_command_line() -> None:
    result = CliRunner().invoke(
        app, ["bench", "train", "-p", "digits", "--repeats", "1", "--precision", "fp32", "--device", "cpu", *TINY]
    )
    assert result.exit_code == 0, result.output
    assert "floor ratio" in result.stdout and "on the fly ratio" in result.stdout and "digits" in result.stdout
