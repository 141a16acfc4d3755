"""Trained models for use in notebooks: ``nextscale.load(run).generate(16, label=3)``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nextscale import plugins
from nextscale.captions import shown_scales
from nextscale.conditioning import ConditionSpec, resolve_conditions
from nextscale.config.run import load_run_config
from nextscale.config.sections import RunConfig, SamplingConfig
from nextscale.data import Samples
from nextscale.device import pick_device
from nextscale.errors import CheckpointError, ConfigError, NextscaleError, unknown
from nextscale.hub import run_folder
from nextscale.modality import Modality
from nextscale.randomness import sample_seeds
from nextscale.sampling.check import check_sampling
from nextscale.sampling.editing import as_mask, paste_back, with_guess
from nextscale.sampling.generate import Generation, generate
from nextscale.sampling.precision import check_precision, prepare
from nextscale.storage.checkpoint_folder import finished_steps
from nextscale.storage.models import has, load_tokenizer, load_transformer
from nextscale.storage.scorer import load_scorer
from nextscale.storage.unfinished import load_unfinished
from nextscale.tokens.capabilities import Completes, EditsPlaces, ability
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale.transformer import ScaleTransformer, Scorer


@dataclass
class Model:
    """A tokenizer and a transformer that belong together, and the transformer's scorer if it has one."""

    modality: Modality
    tokenizer: MultiscaleTokenizer
    transformer: ScaleTransformer
    config: RunConfig
    scorer: Scorer | None = None

    @property
    def description(self) -> dict[str, Any]:
        """What the tokenizer knows about its data (``DataSplits.description``)."""
        return self.tokenizer.description or {}

    @property
    def conditions(self) -> tuple[ConditionSpec, ...]:
        return self.transformer.conditioner.specs

    def generate(
        self,
        num_samples: int,
        *,
        seed: int = 0,
        sampling: Mapping[str, Any] | SamplingConfig | None = None,
        conditions: Mapping[str, Any] | None = None,
        return_steps: bool = False,
        batch_size: int = 64,
        **named: Any,
    ) -> Samples:
        """Draw samples, and keep them all. ``stream`` yields them as they are drawn.

        Args:
            seed: sample i depends on (seed, i) alone, so neither ``batch_size`` nor ``num_samples`` changes it.
            sampling: fields of ``SamplingConfig`` that differ from the run's.
            conditions: values by name, one for all samples or one per sample. A value is a class's index (a number) or
                name (a text; an index if no class has this name), or a vector; None makes the samples unconditional. A
                class that is not given cycles through all its values. A count (the size of a sample) that is not given
                is drawn from its distribution in the data. See ``conditioning.resolve_conditions``.
            named: fields of ``SamplingConfig`` or conditions: ``generate(16, label=3, guidance=2.0)``.

        Raises:
            ConfigError: an unknown setting.
            NextscaleError: an unknown condition, or a label out of range.
        """
        return join(
            self.modality,
            self.stream(
                num_samples, seed=seed, sampling=sampling, conditions=conditions, return_steps=return_steps,
                batch_size=batch_size, **named,
            ),
        )  # fmt: skip

    def stream(
        self,
        num_samples: int,
        *,
        seed: int = 0,
        sampling: Mapping[str, Any] | SamplingConfig | None = None,
        conditions: Mapping[str, Any] | None = None,
        return_steps: bool | int = False,
        batch_size: int = 64,
        **named: Any,
    ) -> Iterator[Samples]:
        """Draw samples batch by batch, in memory that does not grow with ``num_samples``.

        Args:
            return_steps: True, or for how many of the first samples ``Samples.steps`` is needed: what they
                are after each scale, or after some of very many (``captions.shown_scales``). Batches without any of
                those have no steps.
            seed, sampling, conditions, batch_size, named: as in ``generate``, which returns the same samples.

        Raises:
            ConfigError, NextscaleError: as ``generate``, some of them when the first batch is drawn.
        """
        config, values = self._settings(sampling, conditions, named)
        if num_samples < 1 or batch_size < 1:
            raise NextscaleError(f"cannot draw {num_samples} samples in batches of {batch_size}: ask for at least 1")
        resolved = self.condition_values(values, num_samples)

        def draw(rows: slice, batch: dict[str, Tensor], generators: list[torch.Generator], steps: bool) -> list[Any]:
            drawn = self._generate(batch, config, generators)
            return [self.tokenizer.decode(state) for state in self._shown(drawn, steps)]

        return self._batches(draw, num_samples, seed, resolved, return_steps, batch_size)

    def edit(
        self,
        samples: Any,
        keep: Any,
        *,
        seed: int = 0,
        sampling: Mapping[str, Any] | SamplingConfig | None = None,
        conditions: Mapping[str, Any] | None = None,
        replay: bool = False,
        guess: bool = False,
        paste: bool = False,
        feather: int = 0,
        return_steps: bool = False,
        batch_size: int = 64,
        **named: Any,
    ) -> Samples:
        """Redraw the part of each sample outside the mask ``keep``, given the part inside it (VAR's zero-shot editing,
        https://arxiv.org/abs/2404.02905, section 5.3).

        Args:
            samples: B samples, as ``generate`` returns them.
            keep: booleans on the samples' grid, one mask for all samples or one per sample: True is kept, False is
                redrawn.
            seed, sampling, batch_size, return_steps: as in ``generate``.
            conditions: as in ``generate``, except that a condition that is not given is null, because the kept part
                is information enough.
            replay: only keep tokens, as published. By default the state is also anchored where it is kept
                (``sampling.generate``). The result is then encoded and decoded once more, with the kept part of
                ``samples`` in place and not quantized. The kept part comes out no worse than in a plain reconstruction.
            guess: the part of ``samples`` that is not kept is a guess. It stays wherever the drawn sample agrees with
                it (``editing.with_guess``).
            paste: paste the kept part of ``samples`` over the result.
            feather: with ``paste``, the number of places over which the original fades in, from its border inwards.

        Raises:
            ConfigError, NextscaleError: as ``generate``; also a mask that does not have the samples' size, a
                tokenizer that cannot edit, or a transformer that is tied to another sample size.
        """
        config, values = self._settings(sampling, conditions, named)
        number, device = len(samples), self.tokenizer.device
        if number < 1 or batch_size < 1 or feather < 0:
            raise NextscaleError(
                f"cannot edit {number} samples in batches of {batch_size} with feather {feather}: "
                "give at least 1, 1 and 0"
            )
        tokenizer = ability(self.tokenizer, EditsPlaces)
        mask = as_mask(keep, samples)
        resolved = self.condition_values({spec.name: None for spec in self.conditions} | values, number)

        def draw(rows: slice, batch: dict[str, Tensor], generators: list[torch.Generator], steps: bool) -> list[Any]:
            originals, kept = samples[rows].to(device), mask[rows].to(device)
            known = self.tokenizer.encode(originals)
            tokens = tokenizer.keep_tokens(kept)
            drawn = self._generate(batch, config, generators, known=known, keep=tokens, anchored=not replay)
            guessed, shown = guess and not replay, self._shown(drawn, steps)
            decoded = [tokenizer.decode_like(state, originals) for state in (shown[:-1] if guessed else shown)]
            if guessed:
                own, other = (
                    tokenizer.decode_like(tokenizer.unquantized(state, originals, kept), originals)
                    for state in (drawn.state, self.tokenizer.states(known)[-1])
                )
                decoded.append(with_guess(own, other, originals, kept))
            elif not replay:
                decoded[-1] = self._fit(originals, decoded[-1], kept)
            return [paste_back(originals, each, kept, feather) for each in decoded] if paste else decoded

        return join(self.modality, self._batches(draw, number, seed, resolved, return_steps, batch_size))

    def complete(
        self,
        samples: Any,
        *,
        seed: int = 0,
        sampling: Mapping[str, Any] | SamplingConfig | None = None,
        conditions: Mapping[str, Any] | None = None,
        return_steps: bool = False,
        batch_size: int = 64,
        **named: Any,
    ) -> Samples:
        """Complete ``samples``, each of which is part of a larger sample. The other arguments are as in ``edit``.

        Raises:
            ConfigError, NextscaleError: as ``generate``; also a tokenizer that cannot complete samples, or not these.
        """
        config, values = self._settings(sampling, conditions, named)
        number, device = len(samples), self.tokenizer.device
        if number < 1 or batch_size < 1:
            raise NextscaleError(f"cannot complete {number} samples in batches of {batch_size}: give at least 1")
        tokenizer = ability(self.tokenizer, Completes)
        resolved = self.condition_values({spec.name: None for spec in self.conditions} | values, number)

        def draw(rows: slice, batch: dict[str, Tensor], generators: list[torch.Generator], steps: bool) -> list[Any]:
            start = tokenizer.begin_with(samples[rows].to(device), batch)
            drawn = self._generate(batch, config, generators, start=start)
            return [self.tokenizer.decode(state) for state in self._shown(drawn, steps)]

        return join(self.modality, self._batches(draw, number, seed, resolved, return_steps, batch_size))

    def _generate(
        self, conditions: dict[str, Tensor], config: SamplingConfig, generators: list[torch.Generator], **more: Any
    ) -> Generation:
        """``generate``, with one generator per sample."""
        models = self.tokenizer, self.transformer
        return generate(*models, len(generators), conditions, config, generators, scorer=self.scorer, **more)

    def _fit(self, originals: Tensor, edited: Tensor, kept: Tensor) -> Tensor:
        """Reconstructions of ``edited`` with the kept part of the originals in place.

        Each is decoded from tokens, and again with the kept part not quantized; the one with the smaller error on the
        kept part is returned. A sample of which nothing is kept stays as it is in ``edited``.
        """
        tokenizer, joined = ability(self.tokenizer, EditsPlaces), paste_back(originals, edited, kept)
        state = self.tokenizer.states(self.tokenizer.encode(joined))[-1]
        fitted, error = edited, torch.full((len(edited),), torch.inf, device=edited.device)
        for each in (state, tokenizer.unquantized(state, joined, kept)):
            decoded = tokenizer.decode_like(each, originals)
            lost = ((decoded - originals).square() * kept[:, None]).flatten(1).sum(1)
            better = (lost < error) & kept.flatten(1).any(1)
            fitted = torch.where(better.view(-1, *[1] * (edited.dim() - 1)), decoded, fitted)
            error = torch.where(better, lost, error)
        return fitted

    @torch.inference_mode()
    def _batches(
        self,
        draw: Callable[[slice, dict[str, Tensor], list[torch.Generator], bool], list[Any]],
        number: int,
        seed: int,
        conditions: dict[str, Tensor],
        return_steps: bool | int,
        batch_size: int,
    ) -> Iterator[Samples]:
        """Draw batch by batch.

        ``draw(rows, conditions, generators, steps)`` returns one batch decoded after each scale, or without ``steps``
        after the last one only.
        """
        device, filmed = self.tokenizer.device, number if return_steps is True else return_steps
        for first in range(0, number, batch_size):
            rows = slice(first, min(first + batch_size, number))
            seeds = sample_seeds(seed, np.arange(rows.start, rows.stop)) >> np.uint64(1)
            generators = [torch.Generator(device).manual_seed(int(one)) for one in seeds]
            here = {name: value[rows] for name, value in conditions.items()}
            steps = first < filmed
            decoded = draw(rows, {name: value.to(device) for name, value in here.items()}, generators, steps)
            yield Samples(decoded[-1], decoded if steps else [], here)

    def _settings(
        self,
        sampling: Mapping[str, Any] | SamplingConfig | None,
        conditions: Mapping[str, Any] | None,
        named: Mapping[str, Any],
    ) -> tuple[SamplingConfig, dict[str, Any]]:
        """The sampling settings, and the values of the conditions."""
        overrides = dict(sampling.model_dump() if isinstance(sampling, SamplingConfig) else sampling or {})
        values = dict(conditions or {})
        for name, value in named.items():
            (overrides if name in SamplingConfig.model_fields else values)[name] = value
        return self.sampling(overrides), values

    def sampling(self, overrides: Mapping[str, Any]) -> SamplingConfig:
        """The run's sampling settings with these fields in place of its own.

        Raises:
            ConfigError: an unknown field, or a value that it cannot have.
        """
        for name in overrides:
            if name not in SamplingConfig.model_fields:
                raise ConfigError(unknown("sampling setting", name, SamplingConfig.model_fields))
        from pydantic import ValidationError

        try:
            return SamplingConfig.model_validate({**self.config.sampling.model_dump(), **overrides})
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            raise ConfigError(f"sampling.{name}: {first['msg']} (got {first['input']!r})") from None

    def _shown(self, drawn: Generation, steps: bool) -> list[Any]:
        """The states to decode: after each scale that a film strip shows, or after the last one only."""
        after = drawn.states[1:]
        return [after[k] for k in shown_scales(self.tokenizer, len(after))] if steps else after[-1:]

    def check_settings(self, sampling: Mapping[str, Any] | None = None) -> None:
        """Raise ConfigError if this model cannot sample with these fields of ``SamplingConfig``, the others as in its
        run."""
        scales = len(self.transformer.schedule)
        check_sampling(self.sampling(sampling or {}), self.tokenizer, self.transformer, scales, self.scorer)

    def condition_values(self, values: Mapping[str, Any], number: int) -> dict[str, Tensor]:
        """What ``values`` mean for ``number`` samples (``conditioning.resolve_conditions``).

        Raises:
            NextscaleError: an unknown condition, or a value that it cannot take.
        """
        known = [spec.name for spec in self.conditions]
        for name in values:
            if name not in known:
                raise NextscaleError(
                    unknown("condition or sampling setting", name, [*known, *SamplingConfig.model_fields])
                )
        return resolve_conditions(self.conditions, values, number)


def join(modality: Modality, batches: Iterable[Samples]) -> Samples:
    """All samples of several batches, of which all have steps or none.

    Batches may differ in their number of scales: the shorter ones repeat their last step.
    """
    found = list(batches)
    longest = max(len(each.steps) for each in found)
    padded = [[*each.steps, *each.steps[-1:] * (longest - len(each.steps))] for each in found]
    steps = [modality.concatenate(list(parts)) for parts in zip(*padded, strict=True)]
    samples = steps[-1] if steps else modality.concatenate([each.samples for each in found])
    names = found[0].conditions
    conditions = {name: torch.cat([each.conditions[name] for each in found]) for name in names}
    return Samples(samples, steps, conditions)


def load(
    run: str | Path,
    device: str = "auto",
    precision: str = "fp32",
    checkpoint: str | None = None,
) -> Model:
    """The models of a run, ready to sample.

    Args:
        run: its folder, or ``hf:OWNER/NAME`` or ``hf:OWNER/NAME@REVISION`` on the hub (extra: hub), from where it is
            downloaded once.
        precision: precision of the transformer's and the decoder's weights: ``fp32``, ``bf16``, ``fp16`` or ``auto``
            (see ``nextscale.sampling.precision``).
        checkpoint: ``best`` or ``last`` takes the weights of a training that is not finished
            (``storage.unfinished.load_unfinished``, which opens the run's data); None takes the finished models.

    Raises:
        CheckpointError: the folder or one of its models is missing or damaged.
        ConfigError: an unknown precision or ``checkpoint``, or a wrong name on the hub.
        HubError: the hub has no such run, gives no access to it, or cannot be reached.
        DataError: with ``checkpoint``, the data cannot be opened.
    """
    where = pick_device(device)
    check_precision(precision)
    run, scorer = run_folder(run), None
    if checkpoint is not None:
        tokenizer, transformer = load_unfinished(run, checkpoint, where)
    else:
        if not has(run, "transformer") and finished_steps(run / "checkpoints" / "transformer"):
            raise CheckpointError(
                f"{run} holds no trained transformer: finish its training with --resume auto, or take its best weights "
                "so far with --checkpoint best"
            )
        tokenizer = load_tokenizer(run, where)
        transformer = load_transformer(run, tokenizer, where)
        scorer = load_scorer(run, tokenizer, transformer, where)
    prepare(tokenizer, transformer, precision)
    config = load_run_config(run)
    return Model(plugins.modality(config.modality), tokenizer, transformer, config, scorer)
