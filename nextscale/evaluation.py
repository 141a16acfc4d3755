"""Evaluation of a trained run: reconstruction, codebook, validation loss and samples.

Every part is written to RUN/eval.json as soon as it is measured, so that an interrupt loses one part at most.
"""

from __future__ import annotations

import datetime
import math
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from nextscale import plugins
from nextscale.api import Model, load
from nextscale.config.run import load_run_config, parse_options
from nextscale.config.sections import TransformerStageConfig
from nextscale.data import DataSplits
from nextscale.device import pick_device
from nextscale.errors import NextscaleWarning, TrainingError
from nextscale.hub import outputs_folder, run_folder
from nextscale.modality import EvaluationContext
from nextscale.report.page import NAME as REPORT
from nextscale.report.page import write_report
from nextscale.storage.files import write_json_atomic
from nextscale.storage.models import has, load_tokenizer
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale.training.log import or_warn
from nextscale.training.signals import Interrupted, interruptible
from nextscale.training.tokenizer_stage import validation_batches
from nextscale.training.transformer_stage import NATS, TransformerObjective

HELD_OUT = 2048
"""Number of held-out samples used to measure codebook usage and validation loss."""


class Report:
    """Listens to an evaluation; does nothing by default."""

    def part(self, name: str, values: Mapping[str, Any]) -> None:
        """A part of the results is measured: ``reconstruction``, ``samples.2`` (at guidance 2) and so on."""

    def done(self, path: Path) -> None:
        """All results are in the file ``path``."""


def evaluate(
    run: str | Path,
    samples: int = 1000,
    guidance: Sequence[float] = (0.0, 2.0),
    seed: int = 0,
    device: str = "auto",
    options: Sequence[str] = (),
    reconstruction_only: bool = False,
    repeats: int = 1,
    sampling: Mapping[str, Any] | None = None,
    validation: bool = False,
    report: Report | None = None,
    cache: Path | None = None,
) -> dict[str, Any]:
    """Measure a run and write ``eval.json`` into it, part by part (``incomplete`` is true until the last one).

    The file also says how it was ``measured``: date, version, number of samples, seed, settings. Then the run's report
    is written anew.

    If the run cannot be written, a ``NextscaleWarning`` says so, and the results are only returned and reported. The
    results of a run on the hub are written into ``runs/OWNER--NAME``.

    Args:
        samples: number of samples to draw at each ``guidance``, spread evenly over classes.
        guidance: guidance strengths to draw samples at. Without conditions that can guide, samples are drawn at 0 only.
        seed: seed of the samples.
        repeats: number of times to draw, with seeds ``seed``, ``seed`` + 1, ... Each measure is then the mean, and
            ``NAME_std`` its standard deviation.
        sampling: fields of ``SamplingConfig`` that differ from the run's.
        options: options of the modality's own measurements, each ``eval.KEY=VALUE`` (``ModalityConfig.evaluation``).
        reconstruction_only: measure the tokenizer only.
        validation: measure on the validation split even if there is a test split, in order to choose settings. The
            file is then ``eval-validation.json``.
        report: is told what was measured, as it goes.
        cache: a folder for what a modality keeps between evaluations, such as a trained classifier; None is
            ``eval-cache`` in the run. Runs on the same data may share one.

    Returns:
        ``reconstruction`` (measured by the modality), ``codebook`` (usage and perplexity, per scale and in total),
        ``validation`` (loss in nats and accuracy of the transformer, per scale and in total; see ``validation_loss``),
        ``samples`` (by guidance; every distance beside its real-against-real floor) and ``model`` (measured by the
        modality, if it has such measurements). The last three are present only if the run holds a transformer.

    Raises:
        CheckpointError, DataError, ConfigError: the run, its data or the options are missing or wrong.
        HubError: the run is on the hub and cannot be loaded from there.
        Interrupted: after SIGINT or SIGTERM. What was measured is in the file.
    """
    where, console = pick_device(device), Console(stderr=True)
    outputs, run = outputs_folder(run), run_folder(run)
    tokenizer = load_tokenizer(run, where)
    config = load_run_config(run)
    modality = plugins.modality(config.modality)
    chosen = parse_options(config.modality, options)
    # Whatever can be wrong is found before anything is measured.
    with_model = not reconstruction_only and has(run, "transformer")
    if not with_model and not reconstruction_only and (run / "transformer").exists():
        message = f"{run / 'transformer'} holds no model.safetensors, so only the tokenizer is measured"
        warnings.warn(message, NextscaleWarning, stacklevel=2)
    model = load(run, device) if with_model else None
    if model is not None:
        model.check_settings(sampling)
    measured = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "nextscale": version("nextscale"),
        "split": "validation" if validation else "held out",
        "samples": samples,
        "guidance": list(guidance),
        "seed": seed,
        "repeats": repeats,
        "sampling": dict(sampling or {}),
        "options": list(options),
    }
    with suppress(OSError):  # results that cannot be written are shown
        outputs.mkdir(parents=True, exist_ok=True)
    results = _Results(eval_file(outputs, validation), report or Report(), measured)
    context = EvaluationContext(where, (cache or outputs / "eval-cache") if results.writable else None)
    data = modality.open_data(config.data)
    if validation:
        data = replace(data, test=None)

    def measure() -> None:
        with console.status("reconstruction"):
            results.add("reconstruction", modality.evaluate_tokenizer(tokenizer, data, chosen, context))
            results.add("codebook", codebook_usage(tokenizer, data))
        if model is None:
            return
        with console.status("validation loss"):
            results.add("validation", validation_loss(model, data))
        with console.status("predictions"):
            found = modality.evaluate_model(model, data, chosen, context)
        if found:
            results.add("model", found)
        guides = any(spec.embedded for spec in model.conditions)
        for value in guidance if guides else (0.0,):
            rounds = []
            for again in range(repeats):
                with console.status(f"{samples} samples at guidance {value:g}"):
                    drawn = model.generate(samples, seed=seed + again, sampling={**(sampling or {}), "guidance": value})
                # On the CPU, where the data is: a modality that compares the two must not find them on two devices.
                made = drawn.samples.to("cpu")
                with console.status(f"quality of samples at guidance {value:g}"):
                    rounds.append(modality.evaluate_samples(made, drawn.conditions, data, chosen, context))
                so_far = rounds[0] if len(rounds) == 1 else mean_and_spread(rounds)
                results.add(f"{value:g}", so_far, within="samples", tell=again == repeats - 1)

    try:
        with interruptible():
            measure()
    except Interrupted as error:
        raise Interrupted(f"interrupted: {results.describe()}", error.exit_code) from None
    results.finish()
    if results.writable and outputs == run:  # the report of a run on the hub has no place there
        or_warn(run / REPORT, lambda: write_report(run), "report", f"the results are in {results.path}")
    return results.values


class _Results:
    """Results that are written and reported as they come in."""

    def __init__(self, path: Path, report: Report, measured: Mapping[str, Any]) -> None:
        self.path, self.report, self.measured = path, report, measured
        self.values: dict[str, Any] = {}
        self.writable = True
        try:
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            self._only_shown(f"{path.parent} cannot be written ({error.strerror})")

    def add(self, name: str, values: Mapping[str, Any], within: str | None = None, tell: bool = True) -> None:
        values = without_nan(values)
        (self.values if within is None else self.values.setdefault(within, {}))[name] = values
        self._write({"measured": self.measured, "incomplete": True, **self.values})
        if tell:
            self.report.part(name if within is None else f"{within}.{name}", values)

    def finish(self) -> None:
        self._write({"measured": self.measured, **self.values})
        if self.writable:
            self.report.done(self.path)

    def describe(self) -> str:
        """What is left after an interrupt."""
        if not self.values:
            return "nothing was measured yet"
        where = f"is in {self.path}" if self.writable else "was not saved"
        return f"what was measured so far ({', '.join(self.values)}) {where}"

    def _write(self, values: Mapping[str, Any]) -> None:
        if self.writable:
            try:
                write_json_atomic(self.path, values)
            except TrainingError as error:
                self._only_shown(str(error))

    def _only_shown(self, reason: str) -> None:
        self.writable = False
        warnings.warn(f"{reason}: the results are only shown", NextscaleWarning, stacklevel=2)


def without_nan(values: Any) -> Any:
    """A measure that is not defined, for want of samples, is None: JSON has no NaN, and its readers refuse it."""
    if isinstance(values, Mapping):
        return {key: without_nan(value) for key, value in values.items()}
    return None if isinstance(values, float) and math.isnan(values) else values


def eval_file(run: Path, validation: bool = False) -> Path:
    return run / ("eval-validation.json" if validation else "eval.json")


def mean_and_spread(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of every number over ``rounds``, and its standard deviation as ``NAME_std``. Values that are not numbers
    are taken from the first round."""
    results: dict[str, Any] = {}
    for key, first in rounds[0].items():
        values = [each.get(key) for each in rounds]
        if isinstance(first, Mapping):
            results[key] = mean_and_spread(values)  # type: ignore[arg-type]
        elif isinstance(first, int | float) and not isinstance(first, bool):
            numbers = torch.tensor([float(value) for value in values if value is not None], dtype=torch.float64)
            results[key], results[f"{key}_std"] = float(numbers.mean()), float(numbers.std())
        else:
            results[key] = first
    return results


@torch.inference_mode()
def codebook_usage(tokenizer: MultiscaleTokenizer, data: DataSplits) -> dict[str, float]:
    """Share of the vocabulary that held-out samples use, and perplexity exp(entropy), per scale and in total."""
    size = tokenizer.token_space.vocabulary
    counts: dict[str, Tensor] = {}
    source = data.held_out
    for indices in validation_batches(len(source), HELD_OUT):
        pyramid = tokenizer.encode(source.batch(indices, None).to(tokenizer.device).samples)
        names = tokenizer.scale_names(len(pyramid.schedule))
        rows = {name: row for row, name in enumerate(dict.fromkeys(names))}
        # Where many scales have one name, as tokens that are drawn one by one do, they are still counted at once.
        rows_K = torch.tensor([rows[name] for name in names], device=pyramid.tokens.device)
        rows_L = rows_K[pyramid.schedule.scale_ids(rows_K.device)]
        tokens = pyramid.tokens + size * rows_L.view(-1, *[1] * (pyramid.tokens.dim() - 2))
        found = (tokens if pyramid.mask is None else tokens[pyramid.mask]).flatten()
        found_RV = torch.bincount(found, minlength=len(rows) * size).view(-1, size).double().cpu()
        for name, row in rows.items():
            counts[name] = counts[name] + found_RV[row] if name in counts else found_RV[row]
    usage: dict[str, float] = {}
    for name, counts_V in [*counts.items(), ("total", torch.stack(list(counts.values())).sum(0))]:
        shares_V = counts_V / counts_V.sum().clamp_min(1)
        usage[f"used_{name}"] = float((counts_V > 0).float().mean())
        usage[f"perplexity_{name}"] = float(torch.special.entr(shares_V).sum().exp())
    return usage


@torch.inference_mode()
def validation_loss(model: Model, data: DataSplits) -> dict[str, float]:
    """Teacher-forced loss (nats per token) and accuracy on the validation split, in total and per scale; and what all
    tokens of a sample cost (``TransformerObjective.validate``): ``nats_per_sample``, or ``nats_per_sample_bound``.

    Where samples are arrays of one size, ``bits_per_value`` is nats_per_sample / (ln 2 x number of values of a sample):
    the rate at which tokens describe a sample. It is no likelihood of the sample's values, because decoded tokens
    only resemble it. So it compares models of the same tokens, not tokenizers.
    """
    objective = TransformerObjective(model.transformer, model.tokenizer, TransformerStageConfig())
    sums: dict[str, float] = {}
    sizes: set[int | None] = set()
    batches = validation_batches(len(data.validation), HELD_OUT)
    for indices in batches:
        batch = data.validation.batch(indices, None)
        sizes.add(batch.samples[0].numel() if isinstance(batch.samples, Tensor) else None)
        scalars = objective.validate(model.transformer, batch.to(model.tokenizer.device))
        for key, value in scalars.items():
            sums[key] = sums.get(key, 0.0) + float(value) * len(indices)
    number = sum(map(len, batches))
    results = {key: value / number for key, value in sums.items()}
    size = sizes.pop() if len(sizes) == 1 and not hasattr(data.validation, "lengths") else None
    if size and NATS in results:
        results["bits_per_value"] = results[NATS] / math.log(2) / size
    return results
