"""Quality of reconstructions and samples on any grid, by measures that need no knowledge of the modality."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nextscale.data import DataSplits, SampleSource
from nextscale.modality import EvaluationContext
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale.toolkit.classifier import Classifier, cached_classifier, classify
from nextscale.toolkit.manifolds import compare_manifolds
from nextscale.toolkit.metrics import frechet_distance, psnr
from nextscale.toolkit.splits import some_rows

BATCH = 64


def reconstruction_quality(
    tokenizer: MultiscaleTokenizer, data: DataSplits, context: EvaluationContext, limit: int = 1000
) -> dict[str, float]:
    """``psnr`` (dB) of held-out samples through tokens and back. Where samples have labels, also
    ``classifier_accuracy``: how many the independent classifier still puts into their class (its floor: of the
    held-out samples themselves)."""
    held, labels = read_samples(data.held_out, limit, 0)
    with torch.inference_mode():
        parts = [tokenizer.decode_tokens(tokenizer.encode(x.to(context.device))) for x in held.split(BATCH)]
        back = torch.cat([part.float().cpu() for part in parts])
    results = {"psnr": psnr(back, held), "reconstructions": float(len(held))}
    if labels is None:
        return results
    network = data_classifier(data, context)
    for name, samples in (("classifier_accuracy", back), ("classifier_accuracy_floor", held)):
        results[name] = float((classify(network, samples)[1] == labels).double().mean())
    return results


def sample_quality(
    samples: Tensor,
    conditions: dict[str, Tensor],
    data: DataSplits,
    context: EvaluationContext,
    seed: int = 0,
    epochs: int | None = None,
) -> dict[str, float]:
    """How samples B C *grid compare with real ones, by a classifier that has seen real training samples alone.

    Returns:
        ``classifier_accuracy``, the share put into the class that was asked for; on the classifier's features,
        ``frechet_classifier``, the Fréchet distance to training samples, and ``precision_classifier`` and
        ``recall_classifier`` (see ``precision_recall``); each with a ``_floor`` of held-out samples; ``compared``, the
        number of samples that distances compare. Empty where the data has no labels.
    """
    count = min(len(samples), len(data.train), len(data.held_out))
    train, _ = read_samples(data.train, count, seed)
    held, held_labels = read_samples(data.held_out, count, seed)
    if held_labels is None or count < 2:
        return {}
    network, samples = data_classifier(data, context, seed, epochs), samples.float().cpu().clamp(-1, 1)
    (features, classes), (held_features, held_classes) = classify(network, samples), classify(network, held)
    real = classify(network, train)[0]
    compared = features[torch.from_numpy(some_rows(len(samples), count, seed))]
    results = {
        "frechet_classifier": frechet_distance(compared, real),
        "frechet_classifier_floor": frechet_distance(held_features, real),
        "classifier_accuracy_floor": float((held_classes == held_labels).double().mean()),
        "compared": float(count),
    } | compare_manifolds("classifier", compared, held_features, real)
    if "label" in conditions:
        results["classifier_accuracy"] = float((classes == conditions["label"].cpu()).double().mean())
    return results


def data_classifier(
    data: DataSplits, context: EvaluationContext, seed: int = 0, epochs: int | None = None
) -> Classifier:
    """The independent classifier of a labelled data set, kept in ``context.cache``."""
    samples, labels = read_samples(data.train, len(data.train), seed)
    assert labels is not None
    size = next(spec.size for spec in data.conditions if spec.name == "label")
    return cached_classifier(context.cache, samples, labels, size, seed, epochs=epochs, device=context.device)


def read_samples(source: SampleSource, count: int, seed: int) -> tuple[Tensor, Tensor | None]:
    """``count`` samples of a split, drawn with a seed, and their labels; none augmented."""
    batch = source.batch(some_rows(len(source), min(count, len(source)), seed).astype(np.int64), None)
    return batch.samples, batch.conditions.get("label")
