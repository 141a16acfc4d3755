"""What ``nextscale eval`` measures on video: reconstruction, prediction, and the quality of samples.

Every distance has a floor beside it, under ``KEY_floor``: what held-out real clips score at the same number of samples.
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
RECONSTRUCTED, PREDICTED = 200, 32
"""Most held-out clips that are reconstructed, and predicted."""
DRAWN = 8
"""Predictions of each clip whose mean is measured."""
TAUGHT = 4096
"""Most training clips that the classifier learns from, over all its passes."""


@torch.inference_mode()
def evaluate_reconstruction(
    tokenizer: MultiscaleTokenizer, data: DataSplits, device: torch.device | str = "cpu", limit: int = RECONSTRUCTED
) -> dict[str, float]:
    """PSNR (dB) and SSIM, frame by frame, of held-out clips through tokens and back; ``psnr_first`` of first frames."""
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
    """Frames that a prediction starts from: the first clip pyramid's, or of a joint one the first two latents'."""
    latents = tokenizer.lengths[0] if isinstance(tokenizer, SegmentedTokenizer) else 2
    frames = latents * tokenizer.factor[0] - (tokenizer.factor[0] - 1 if tokenizer.layout.alone else 0)
    return min(frames, tokenizer.sample_shape[0] - 1)


@torch.inference_mode()
def evaluate_prediction(
    model: TrainedModel, data: DataSplits, limit: int = PREDICTED, known: int | None = None
) -> dict[str, float]:
    """The rest of held-out clips, predicted from their first ``known`` frames, beside copying the last of these.

    A prediction is the mean of DRAWN (PSNR rewards the mean, not variety), at temperature 1 without guidance. In dB:
    ``prediction_psnr`` and ``copy_psnr``, means over all frames that were not known; with ``_total``, of the mean
    squared error over all of them, to which frames that stand still add little; ``next_psnr`` and ``copy_next_psnr``,
    over the first of them. ``predicted_better``: share of frames that are nearer than the copy.
    """
    tokenizer = model.tokenizer
    if not isinstance(tokenizer, GridTokenizer) or tokenizer.sample_shape[0] < 2:
        return {}
    known = known or known_frames(tokenizer)
    source = data.held_out
    indices = some_rows(len(source), limit, 0)
    errors: list[tuple[Tensor, Tensor]] = []
    for first in range(0, len(indices), BATCH):
        batch = source.batch(indices[first : first + BATCH], None)
        clips, settings = batch.samples, {"conditions": batch.conditions, "temperature": 1.0, "guidance": 0.0}
        drawn = [predict(model, clips, known, seed=seed, **settings).samples.cpu() for seed in range(DRAWN)]
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
        samples: B C T H W in [-1, 1], of the data's size.
        conditions: what they were drawn for; ``label`` where the model knows classes.
        options: see ``VideoEvaluationConfig``.
        context: the device, and the folder that keeps the trained classifier.

    Returns:
        ``classifier_accuracy``: share that an independent 3-D classifier puts into the class asked for (its floor: the
        same of held-out clips); ``frechet_small_3d`` on its features and ``frechet_extractor`` on the given ones, both
        left out where there is a single clip to compare with;
        ``motion_histogram`` (``motion.histogram_distance``) to training clips, ``speed`` and ``flicker`` (beside those
        of held-out clips, ``_real``), ``steady`` (``motion.steady``); ``compared_clips``.

    Raises:
        DataError: samples of another size than the data's.
    """
    options, device = options or VideoEvaluationConfig(), context.device
    samples = samples.float().cpu().clamp(-1, 1)
    held_source = data.held_out
    count = min(len(samples), len(data.train), len(held_source))
    train, _ = _read(data.train, count, options.seed)
    held, held_labels = _read(held_source, count, options.seed)
    if samples.shape[1:] != train.shape[1:]:
        raise DataError(
            f"samples are {' x '.join(map(str, samples.shape[1:]))}, the data's clips "
            f"{' x '.join(map(str, train.shape[1:]))} (channels x frames x height x width): both must agree"
        )
    compared = samples[torch.from_numpy(some_rows(len(samples), count, options.seed))]
    results = {"compared_clips": float(count)}
    if held_labels is not None:
        classes = next(spec.size for spec in data.conditions if spec.name == "label")
        network = cached_classifier(
            context.cache, *_lesson(data.train, options.seed), classes, options.seed,
            width=16, epochs=options.classifier_epochs or 10, device=device,
        )  # fmt: skip
        if "label" in conditions:
            results["classifier_accuracy"] = _agreement(classify(network, samples, BATCH)[1], conditions["label"].cpu())
            results["classifier_accuracy_floor"] = _agreement(classify(network, held, BATCH)[1], held_labels)
        if count > 1:
            features = [classify(network, clips, BATCH)[0] for clips in (train, held, compared)]
            results |= _frechet("frechet_small_3d", *features)
    if options.extractor is not None and count > 1:
        features = [_extracted(options.extractor, clips, device) for clips in (train, held, compared)]
        results |= _frechet("frechet_extractor", *features)
    results["motion_histogram"] = histogram_distance(compared, train)
    results["motion_histogram_floor"] = histogram_distance(held, train)
    for name, measure in (("speed", speed), ("flicker", flicker)):
        results[name], results[f"{name}_real"] = measure(samples), measure(held)
    results["steady"], results["steady_real"] = steady(samples, train), steady(held, train)
    return results


def _frechet(name: str, train_ND: Tensor, held_ND: Tensor, compared_ND: Tensor) -> dict[str, float]:
    return {name: frechet_distance(compared_ND, train_ND), f"{name}_floor": frechet_distance(held_ND, train_ND)}


def _agreement(predicted: Tensor, labels: Tensor) -> float:
    return float((predicted == labels).double().mean())


def _lesson(source: SampleSource, seed: int) -> tuple[Tensor, Tensor]:
    """Training clips and their labels: as many passes, each with its own augmentation, as make up TAUGHT clips."""
    passes = max(1, min(8, TAUGHT // len(source)))
    indices = np.tile(some_rows(len(source), min(len(source), TAUGHT), seed), passes)
    batch = source.batch(indices, sample_seeds(seed, np.arange(len(indices))))
    return batch.samples, batch.conditions["label"]


def _extracted(path: Path, clips: Tensor, device: torch.device) -> Tensor:
    """N D: features of a TorchScript network; I3D's common export takes the settings tried first."""
    try:
        network = torch.jit.load(str(path), map_location=device).eval()
    except Exception as error:  # missing, truncated, or not TorchScript: torch raises several kinds
        raise NextscaleError(f"cannot read the extractor {path}: a TorchScript file is expected") from error
    found = []
    with torch.inference_mode():
        for part in clips.expand(-1, 3, -1, -1, -1).split(BATCH):
            try:
                features = network(part.to(device), rescale=False, resize=True, return_features=True)
            except (RuntimeError, TypeError):
                features = network(part.to(device))
            if not isinstance(features, Tensor) or features.dim() != 2 or len(features) != len(part):
                raise NextscaleError(f"the extractor {path} should return N D features of clips N 3 T H W")
            found.append(features.float().cpu())
    return torch.cat(found)


def _read(source: SampleSource, count: int, seed: int) -> tuple[Tensor, Tensor | None]:
    batch = source.batch(some_rows(len(source), count, seed), None)
    return batch.samples, batch.conditions.get("label")
