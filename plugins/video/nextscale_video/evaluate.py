"""Measurements of ``nextscale eval`` on video: reconstruction, prediction and sample quality.

Every distance comes with a floor, ``KEY_floor``: the score of the same number of held-out real clips.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nextscale.plugin import (
    DataError,
    DataSplits,
    EvaluationContext,
    GridTokenizer,
    MultiscaleTokenizer,
    NextscaleError,
    SampleSource,
    SegmentedTokenizer,
    TrainedModel,
    cached_classifier,
    classify,
    compare_manifolds,
    decibels,
    fold,
    frechet_distance,
    predict,
    psnr,
    sample_seeds,
    some_rows,
    ssim,
)
from nextscale_video.config import VideoEvaluationConfig
from nextscale_video.motion import flicker, histogram_distance, speed, steady

CPU = EvaluationContext(torch.device("cpu"))
BATCH = 16
RECONSTRUCTED_CLIPS, PREDICTED_CLIPS = 200, 32
"""Most held-out clips to reconstruct, and to predict."""
DRAWS_PER_CLIP = 8
"""Predictions drawn per clip; their mean is measured."""
CLASSIFIER_CLIPS = 4096
"""Most training clips for the classifier, over all passes over the data."""


@torch.inference_mode()
def evaluate_reconstruction(
    tokenizer: MultiscaleTokenizer,
    data: DataSplits,
    device: torch.device | str = "cpu",
    limit: int = RECONSTRUCTED_CLIPS,
) -> dict[str, float]:
    """PSNR (dB) and SSIM per frame of held-out clips after encoding and decoding; ``psnr_first``: of first frames."""
    source = data.held_out
    indices = some_rows(len(source), limit, 0)
    sums = np.zeros(3)
    for first in range(0, len(indices), BATCH):
        clips = source.batch(indices[first : first + BATCH], None).samples.to(device)
        back = tokenizer.decode_tokens(tokenizer.encode(clips)).float()
        found = psnr(fold(back), fold(clips)), ssim(fold(back), fold(clips)), psnr(back[:, :, 0], clips[:, :, 0])
        sums += len(clips) * np.array(found)
    means = sums / len(indices)
    return {"psnr": means[0], "ssim": means[1], "psnr_first": means[2], "reconstruction_clips": float(len(indices))}


def known_frames(tokenizer: GridTokenizer) -> int:
    """Number of frames a prediction starts from: the first clip's, or in a joint pyramid the first two latents'; fewer
    if a clip is too short. 0 if it cannot be cut at all."""
    latents = tokenizer.lengths[0] if isinstance(tokenizer, SegmentedTokenizer) else 2
    frames = latents * tokenizer.factor[0] - (tokenizer.factor[0] - 1 if tokenizer.layout.alone else 0)
    return max((cut for cut in tokenizer.cuts(tokenizer.sample_shape[0]) if cut <= frames), default=0)


@torch.inference_mode()
def evaluate_prediction(
    model: TrainedModel, data: DataSplits, limit: int = PREDICTED_CLIPS, known: int | None = None
) -> dict[str, float]:
    """Predict the rest of held-out clips from their first ``known`` frames, and compare with copying the last of these.

    A prediction is the mean of DRAWS_PER_CLIP draws (PSNR rewards the mean, not variety) at temperature 1 without
    guidance. All PSNR in dB, for predictions and for copies (``copy_``):

    - ``prediction_psnr`` and ``copy_psnr``: the mean PSNR over all predicted frames;
    - the same with ``_total``: PSNR of the mean squared error over all of them, to which still frames add little;
    - ``next_psnr`` and ``copy_next_psnr``: the mean PSNR of the first predicted frame.

    ``predicted_better``: share of frames where the prediction is closer than the copy.
    """
    tokenizer = model.tokenizer
    if not isinstance(tokenizer, GridTokenizer) or tokenizer.sample_shape[0] < 2:
        return {}
    known = known or known_frames(tokenizer)
    if not known:
        return {}
    source = data.held_out
    indices = some_rows(len(source), limit, 0)
    errors: list[tuple[Tensor, Tensor]] = []
    for first in range(0, len(indices), BATCH):
        batch = source.batch(indices[first : first + BATCH], None)
        clips, settings = batch.samples, {"conditions": batch.conditions, "temperature": 1.0, "guidance": 0.0}
        drawn = [predict(model, clips, known, seed=seed, **settings).samples.cpu() for seed in range(DRAWS_PER_CLIP)]
        copied = clips[:, :, known - 1 : known].expand_as(clips)
        mean = torch.stack(drawn).mean(0).clamp(-1, 1)
        made, copy = ((each - clips).square().mean((1, 3, 4))[:, known:] for each in (mean, copied))
        errors.append((made, copy))
    made_NT, copy_NT = (torch.cat(parts).double() for parts in zip(*errors, strict=True))
    results = {"predicted_better": float((made_NT < copy_NT).double().mean())}
    for name, error_NT in (("prediction", made_NT), ("copy", copy_NT)):
        results[f"{name}_psnr"] = float(decibels(error_NT).mean())
        results[f"{name}_psnr_total"] = float(decibels(error_NT.mean()))
    results["next_psnr"], results["copy_next_psnr"] = (float(decibels(e[:, 0]).mean()) for e in (made_NT, copy_NT))
    return results | {"known_frames": float(known), "predicted_clips": float(len(indices))}


def evaluate_samples(
    samples: Tensor,
    conditions: Mapping[str, Tensor],
    data: DataSplits,
    options: VideoEvaluationConfig | None = None,
    context: EvaluationContext = CPU,
) -> dict[str, float]:
    """Sample quality against real clips.

    Args:
        samples: B C T H W in [-1, 1], as large as the data's clips.
        conditions: the conditions they were drawn with; ``label`` if the model has classes.
        options: see ``VideoEvaluationConfig``.
        context: the device, and the folder where the trained classifier is kept.

    Returns:
        ``classifier_accuracy``: share of samples that an independent 3-D classifier assigns to the requested class (its
        floor is the accuracy on held-out clips); ``frechet_small_3d`` on the classifier's features and
        ``frechet_extractor`` on the extractor's, both missing if there is only one clip to compare;
        ``precision_X`` and ``recall_X`` on the same features (see ``manifolds.precision_recall``);
        ``motion_histogram`` (``motion.histogram_distance``) to training clips; ``speed``, ``flicker`` and ``steady``
        (see ``motion``), with the values of held-out clips under ``_real``; ``compared_clips``.

    Raises:
        DataError: the samples differ in size from the data's clips.
    """
    options, device = options or VideoEvaluationConfig(), context.device
    samples = samples.float().cpu().clamp(-1, 1)
    held_source = data.held_out
    count = min(len(samples), len(data.train), len(held_source))
    train, _ = _read(data.train, count, options.seed)
    held, held_labels = _read(held_source, count, options.seed)
    if samples.shape[1:] != train.shape[1:]:
        raise DataError(
            f"samples are {' x '.join(map(str, samples.shape[1:]))}, but the data's clips are "
            f"{' x '.join(map(str, train.shape[1:]))} (channels x frames x height x width): they must agree"
        )
    compared = samples[torch.from_numpy(some_rows(len(samples), count, options.seed))]
    results = {"compared_clips": float(count)}
    if held_labels is not None:
        classes = next(spec.size for spec in data.conditions if spec.name == "label")
        network = cached_classifier(
            context.cache, *_classifier_clips(data.train, options.seed), classes, options.seed,
            width=16, epochs=options.classifier_epochs or 10, device=device,
        )  # fmt: skip
        if "label" in conditions:
            results["classifier_accuracy"] = _agreement(classify(network, samples, BATCH)[1], conditions["label"].cpu())
            results["classifier_accuracy_floor"] = _agreement(classify(network, held, BATCH)[1], held_labels)
        if count > 1:
            features = [classify(network, clips, BATCH)[0] for clips in (train, held, compared)]
            results |= _distances("small_3d", *features)
    if options.extractor is not None and count > 1:
        features = [_extracted(options.extractor, clips, device) for clips in (train, held, compared)]
        results |= _distances("extractor", *features)
    results["motion_histogram"] = histogram_distance(compared, train)
    results["motion_histogram_floor"] = histogram_distance(held, train)
    for name, measure in (("speed", speed), ("flicker", flicker)):
        results[name], results[f"{name}_real"] = measure(samples), measure(held)
    results["steady"], results["steady_real"] = steady(samples, train), steady(held, train)
    return results


def _distances(space: str, train_ND: Tensor, held_ND: Tensor, compared_ND: Tensor) -> dict[str, float]:
    name = f"frechet_{space}"
    results = {name: frechet_distance(compared_ND, train_ND), f"{name}_floor": frechet_distance(held_ND, train_ND)}
    return results | compare_manifolds(space, compared_ND, held_ND, train_ND)


def _agreement(predicted: Tensor, labels: Tensor) -> float:
    return float((predicted == labels).double().mean())


def _classifier_clips(source: SampleSource, seed: int) -> tuple[Tensor, Tensor]:
    """Training clips and their labels: up to 8 passes, augmented anew, at most CLASSIFIER_CLIPS in total."""
    passes = max(1, min(8, CLASSIFIER_CLIPS // len(source)))
    indices = np.tile(some_rows(len(source), min(len(source), CLASSIFIER_CLIPS), seed), passes)
    batch = source.batch(indices, sample_seeds(seed, np.arange(len(indices))))
    return batch.samples, batch.conditions["label"]


def _extracted(path: Path, clips: Tensor, device: torch.device) -> Tensor:
    """N D: features of a TorchScript network. The settings tried first are those of I3D's common export."""
    try:
        network = torch.jit.load(str(path), map_location=device).eval()
    except Exception as error:  # missing, truncated or not TorchScript: torch raises several types
        raise NextscaleError(f"cannot read the extractor {path}: a TorchScript file is expected") from error
    found = []
    with torch.inference_mode():
        for part in clips.expand(-1, 3, -1, -1, -1).split(BATCH):
            try:
                features = network(part.to(device), rescale=False, resize=True, return_features=True)
            except (RuntimeError, TypeError):
                features = network(part.to(device))
            if not isinstance(features, Tensor) or features.dim() != 2 or len(features) != len(part):
                raise NextscaleError(f"the extractor {path} must return features N D for clips N 3 T H W")
            found.append(features.float().cpu())
    return torch.cat(found)


def _read(source: SampleSource, count: int, seed: int) -> tuple[Tensor, Tensor | None]:
    batch = source.batch(some_rows(len(source), count, seed), None)
    return batch.samples, batch.conditions.get("label")
