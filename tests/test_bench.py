"""`nextscale bench`: that it measures what it claims to measure, not how fast anything is."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

from nextscale.bench.floor import Convolution, Factor, Floor, MatrixProducts, Product
from nextscale.bench.sampling import _Sampler, bench_sample
from nextscale.bench.training import bench_train
from nextscale.conditioning import ConditionSpec
from nextscale.errors import ConfigError
from nextscale.modality import BenchCase
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
    case = BenchCase("digits", 3, DIGITS, (ConditionSpec(name="label", size=10),))
    lines: list[str] = []
    rows = bench_train("image", [case], repeats=1, overrides=TINY, device="cpu", log=lines.append)
    assert lines == ["digits fp32", "digits bf16"]
    assert [(row["precision"], row["target"]) for row in rows] == [("fp32", 1.3), ("bf16", 1.5)]
    for row in rows:
        assert (row["batch"], row["tokens"], row["threads"]) == (3, 21, torch.get_num_threads())
        assert min(row["cached_ms"], row["on_the_fly_ms"], row["floor_ms"], row["floor_gflops"]) > 0
        assert row["floor_ratio"] == pytest.approx(row["cached_ms"] / row["floor_ms"])
        assert row["on_the_fly_ratio"] == pytest.approx(row["on_the_fly_ms"] / row["cached_ms"])
    assert rows[0]["note"] == ""


def test_steps_are_timed_in_turns_and_only_on_the_fly_steps_tokenize(monkeypatch: pytest.MonkeyPatch) -> None:
    from nextscale.grid import GridTokenizer

    encoded: list[int] = []
    encode = GridTokenizer.encode
    monkeypatch.setattr(GridTokenizer, "encode", lambda self, x: encoded.append(len(x)) or encode(self, x))
    case = BenchCase("digits", 2, DIGITS)
    bench_train("image", [case], ["fp32"], repeats=2, overrides=TINY, device="cpu")
    assert encoded == [2] * 4  # once to fill the cache, then once in each of three rounds


def test_the_data_of_the_preset() -> None:
    (row,) = bench_train("image", ["digits"], ["fp32"], 1, [*TINY, "training.transformer.batch_size=4"])
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
        bench_train(*arguments)


def test_a_linear_layer_is_three_products() -> None:
    layer, x = torch.nn.Linear(5, 7), torch.randn(2, 3, 5, requires_grad=True)
    with MatrixProducts() as products:
        layer(x).sum().backward()
    assert shapes(products.counts) == {((6, 5), (5, 7)): 1, ((6, 7), (7, 5)): 1, ((7, 6), (6, 5)): 1}
    assert Floor(products.counts, itertools.count().__next__).flops == 3 * 2 * 6 * 5 * 7


@pytest.mark.parametrize("masked", [False, True])
def test_fused_attention_counts_as_the_six_products_that_it_stands_for(masked: bool) -> None:
    """Compared with the same attention written out, whose products are recorded one by one."""
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
    # By this clock, two timed calls of each product take 2 s.
    ticks = itertools.count(step=2)
    assert Floor(Counter({square: 3, batched: 2}), lambda: float(next(ticks))).__call__() == 5.0


def test_factors_keep_their_layout() -> None:
    x = torch.randn(3, 4)
    for tensor, transposed in ((x, False), (x.T, True)):
        factor = Factor.of(tensor)
        again = factor.random(torch.bfloat16, CPU)
        assert factor.transposed == transposed
        assert (tuple(again.shape), Factor.of(again), again.dtype) == (tuple(tensor.shape), factor, torch.bfloat16)


def test_products_of_inference_and_convolutions() -> None:
    layer, conv = torch.nn.Linear(5, 7), torch.nn.Conv2d(3, 4, 3, padding=1, stride=2)
    conv = conv.to(memory_format=torch.channels_last)
    x, image = torch.randn(2, 3, 5), torch.randn(2, 3, 8, 6).to(memory_format=torch.channels_last)
    products = MatrixProducts(convolutions=True)
    with products, torch.inference_mode():
        layer(x)
        out = conv(image)
        F.scaled_dot_product_attention(*[torch.randn(1, 2, 4, 8)] * 3)
        products.counting = False
        layer(x)
    (found,) = [product for product in products.counts if isinstance(product, Convolution)]
    assert found.channels_last and found.places == 2 * 4 * 3 and found.flops == 2 * out.numel() * 3 * 9
    assert found.activation_bytes == 4 * (image.numel() + out.numel()) and found.weight_bytes == 4 * 4 * 3 * 9
    assert found.compute(image, conv.weight).shape == out.shape
    assert sum(products.counts.values()) == 4, "the linear layer, the convolution, and the two products of attention"


def test_a_cold_floor_cycles_through_different_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    square, met = Product(Factor((4, 4), False), Factor((4, 4), True), torch.float32, CPU), []
    monkeypatch.setattr(Product, "compute", lambda self, a, b: met.append(b.data_ptr()))
    Floor(Counter({square: 3}), itertools.count().__next__, cold=True)()
    assert len(set(met)) == 3 and len(met) == 4, "one warm-up, then each of the three"
    met.clear()
    monkeypatch.setattr(Floor, "COLD_BYTES", 2 * 64)
    Floor(Counter({square: 3}), itertools.count().__next__, cold=True)()
    assert len(set(met)) == 2


def test_sampling_is_timed_and_its_memory_counted() -> None:
    case = BenchCase("digits", None, DIGITS, (ConditionSpec(name="label", size=10),))
    rows = bench_sample("image", [case], ["fp32", "bf16"], 2, 3, 1, TINY, device="cpu")
    assert [(row["precision"], row["target"]) for row in rows] == [("fp32", 1.2), ("bf16", 1.3)]
    for row in rows:
        assert row["sample_ms"] == pytest.approx(row["transformer_ms"] + row["decoder_ms"])
        assert row["floor_ratio"] == pytest.approx(row["sample_ms"] / row["floor_ms"])
        assert (row["batch"], row["memory_batch"]) == (2, 3)
    # Keys and values: 2 layers, both branches, 21 tokens of width 16 in float32.
    sampler = _Sampler("image", case, "fp32", TINY, CPU)
    assert sampler.cache(3) == 2 * 2 * 3 * 2 * 21 * 16 * 4
    total = sum(p.nbytes for m in (sampler.tokenizer, sampler.transformer) for p in m.state_dict().values())
    assert sampler.weights() == total and rows[1]["paper_mib"] < rows[0]["paper_mib"]


def test_only_the_transformer_and_the_decoder_are_counted() -> None:
    case = BenchCase("digits", None, DIGITS, (ConditionSpec(name="label", size=10),))
    sampler = _Sampler("image", case, "fp32", TINY, CPU)
    counts = sampler.products(1)
    matrices = sum(count for product, count in counts.items() if isinstance(product, Product))
    # At each of three scales: four matrices and attention's two products per block, the stem (except at the first
    # scale) and the head. Once per sample: adaLN of two blocks and of the head.
    assert matrices == 3 * (2 * 6 + 1) + 2 + 3
    convolutions = [product for product in counts if isinstance(product, Convolution)]
    assert convolutions and all(product.shape[0] == 1 for product in convolutions)


def test_bad_arguments_of_bench_sample() -> None:
    for arguments, message in (
        (("image", [BenchCase("digits")]), "no description of the data of preset 'digits'"),
        (("image", [], ["fp23"]), "unknown precision 'fp23'"),
        (("image", [], ["fp32"], 0), "at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            bench_sample(*arguments)


def test_command_line_of_bench_sample() -> None:
    small = ["transformer.depth=1", "transformer.width=16", "tokenizer.width=8", "transformer.heads=2"]
    result = CliRunner().invoke(
        app, ["bench", "sample", "-p", "fashion", "--repeats", "1", "--memory-batch", "1", "--precision", "fp32",
              "--device", "cpu", *small],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "floor_ratio" in result.stdout and "memory_ratio" in result.stdout


def test_command_line() -> None:
    result = CliRunner().invoke(
        app, ["bench", "train", "-p", "digits", "--repeats", "1", "--precision", "fp32", "--device", "cpu", *TINY]
    )
    assert result.exit_code == 0, result.output
    assert "floor ratio" in result.stdout and "on the fly ratio" in result.stdout and "digits" in result.stdout


def test_a_modality_without_bench_presets_asks_for_one() -> None:
    for kind in ("train", "sample"):
        result = CliRunner().invoke(app, ["bench", kind, "-m", "graph"])
        assert result.exit_code == 2 and "name one with --preset" in result.stderr, result.output
