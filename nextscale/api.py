"""Trained models for people in notebooks: ``nextscale.load(run).generate(16, label=3)``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nextscale import plugins
from nextscale.conditioning import ConditionSpec, resolve_conditions
from nextscale.config.run import load_run_config
from nextscale.config.sections import RunConfig, SamplingConfig
from nextscale.data import Samples
from nextscale.device import pick_device
from nextscale.errors import ConfigError, NextscaleError, unknown
from nextscale.modality import Modality
from nextscale.randomness import sample_seeds
from nextscale.sampling.editing import as_mask, paste_back, with_guess
from nextscale.sampling.generate import Generation, generate
from nextscale.sampling.precision import check_precision, prepare
from nextscale.storage.models import load_tokenizer, load_transformer
from nextscale.tokens.capabilities import Completes, EditsPlaces, ability
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale.transformer import ScaleTransformer


@dataclass
class Model:
    """A tokenizer and a transformer that belong together."""

    modality: Modality
    tokenizer: MultiscaleTokenizer
    transformer: ScaleTransformer
    config: RunConfig

    @property
    def description(self) -> dict[str, Any]:
        """What the tokenizer was told of its data (``DataSplits.description``)."""
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
        """Draw samples.

        Args:
            seed: sample i is a function of (seed, i) alone, so neither ``batch_size`` nor ``num_samples`` changes it.
            sampling: fields of ``SamplingConfig`` that differ from the run's.
            conditions: by name, one value or one a sample: a class's number or name, or a vector. A class that is
                not mentioned goes through all its values in turn; None leaves it unconditional. A count (how large a
                sample is to be) that is not mentioned is drawn as the data has it.
            named: fields of ``SamplingConfig`` or conditions: ``generate(16, label=3, guidance=2.0)``.

        Raises:
            ConfigError: an unknown setting. NextscaleError: an unknown condition, or a label out of range.
        """
        config, values = self._settings(sampling, conditions, named)
        if num_samples < 1 or batch_size < 1:
            raise NextscaleError(f"cannot draw {num_samples} samples, {batch_size} at a time: ask for at least 1")
        resolved = self._conditions(values, num_samples)

        def draw(rows: slice, batch: dict[str, Tensor], generators: list[torch.Generator]) -> list[Any]:
            drawn = generate(self.tokenizer, self.transformer, len(generators), batch, config, generators)
            return [self.tokenizer.decode(state) for state in _shown(drawn, return_steps)]

        return self._in_batches(draw, num_samples, seed, resolved, return_steps, batch_size)

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
        """Draw anew what ``keep`` does not keep of samples, given all that it keeps (VAR's zero-shot editing,
        https://arxiv.org/abs/2404.02905, section 5.3).

        Args:
            samples: B samples, as ``generate`` returns them.
            keep: booleans on the samples' grid, one mask for all or one each: True is kept, False drawn anew.
            seed, sampling, batch_size, return_steps: as in ``generate``.
            conditions: as in ``generate``, but one that is not mentioned is null: what is kept says enough.
            replay: keep tokens and do no more, as published. By default the state is anchored where it is kept
                (``sampling.generate``), and the result is encoded and decoded once more with the kept part of
                ``samples`` in place and not quantized, so that what is kept comes out no worse than a plain
                reconstruction of it.
            guess: what is not kept of ``samples`` is a guess, to stay where what is drawn agrees with it
                (``editing.with_guess``).
            paste: put the kept part of ``samples`` itself over the result,
            feather: fading in over so many places from its border inwards.

        Raises:
            ConfigError, NextscaleError: as ``generate``; a mask of another size than the samples; a tokenizer that
                cannot edit, or a transformer that is tied to samples of another size.
        """
        config, values = self._settings(sampling, conditions, named)
        number, device = len(samples), self.tokenizer.device
        if number < 1 or batch_size < 1 or feather < 0:
            raise NextscaleError(f"cannot edit {number} samples, {batch_size} at a time, feathered by {feather}")
        tokenizer = ability(self.tokenizer, EditsPlaces)
        mask = as_mask(keep, samples)
        resolved = self._conditions({spec.name: None for spec in self.conditions} | values, number)

        def draw(rows: slice, batch: dict[str, Tensor], generators: list[torch.Generator]) -> list[Any]:
            originals, kept = samples[rows].to(device), mask[rows].to(device)
            known = self.tokenizer.encode(originals)
            tokens = tokenizer.keep_tokens(kept)
            drawn = generate(
                self.tokenizer, self.transformer, len(generators), batch, config, generators,
                known=known, keep=tokens, anchored=not replay,
            )  # fmt: skip
            guessed, shown = guess and not replay, _shown(drawn, return_steps)
            steps = shown[:-1] if guessed else shown
            decoded = [tokenizer.decode_like(state, originals) for state in steps]
            if guessed:
                own, other = (
                    tokenizer.decode_like(tokenizer.unquantized(state, originals, kept), originals)
                    for state in (drawn.state, self.tokenizer.states(known)[-1])
                )
                decoded.append(with_guess(own, other, originals, kept))
            elif not replay:
                decoded[-1] = self._fit(originals, decoded[-1], kept)
            return [paste_back(originals, each, kept, feather) for each in decoded] if paste else decoded

        return self._in_batches(draw, number, seed, resolved, return_steps, batch_size)

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
        """Draw whole samples, each of which keeps one of the parts ``samples``; arguments as in ``edit``.

        Raises:
            ConfigError, NextscaleError: as ``generate``; a tokenizer that cannot complete, or not these parts.
        """
        config, values = self._settings(sampling, conditions, named)
        number, device = len(samples), self.tokenizer.device
        if number < 1 or batch_size < 1:
            raise NextscaleError(f"cannot complete {number} samples, {batch_size} at a time")
        tokenizer = ability(self.tokenizer, Completes)
        resolved = self._conditions({spec.name: None for spec in self.conditions} | values, number)

        def draw(rows: slice, batch: dict[str, Tensor], generators: list[torch.Generator]) -> list[Any]:
            start = tokenizer.begin_with(samples[rows].to(device), batch)
            drawn = generate(self.tokenizer, self.transformer, len(generators), batch, config, generators, start=start)
            return [self.tokenizer.decode(state) for state in _shown(drawn, return_steps)]

        return self._in_batches(draw, number, seed, resolved, return_steps, batch_size)

    def _fit(self, originals: Tensor, edited: Tensor, kept: Tensor) -> Tensor:
        """Reconstructions of ``edited`` with the originals where they are kept: from tokens, or with what is kept not
        quantized, whichever keeps a sample better. Where nothing is kept, ``edited`` itself."""
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
    def _in_batches(
        self,
        draw: Callable[[slice, dict[str, Tensor], list[torch.Generator]], list[Any]],
        number: int,
        seed: int,
        conditions: dict[str, Tensor],
        return_steps: bool,
        batch_size: int,
    ) -> Samples:
        """``draw(rows, conditions, generators)`` gives a batch as it is after each scale, or after the last only."""
        device, batches = self.tokenizer.device, []
        for first in range(0, number, batch_size):
            rows = slice(first, min(first + batch_size, number))
            seeds = sample_seeds(seed, np.arange(rows.start, rows.stop)) >> np.uint64(1)
            generators = [torch.Generator(device).manual_seed(int(one)) for one in seeds]
            batches.append(draw(rows, {name: value[rows].to(device) for name, value in conditions.items()}, generators))
        # Where the number of scales differs, what is complete stays as it is.
        longest = max(map(len, batches))
        batches = [[*parts, *parts[-1:] * (longest - len(parts))] for parts in batches]
        steps = [self.modality.concatenate(list(parts)) for parts in zip(*batches, strict=True)]
        return Samples(steps[-1], steps if return_steps else [], conditions)

    def _settings(
        self,
        sampling: Mapping[str, Any] | SamplingConfig | None,
        conditions: Mapping[str, Any] | None,
        named: Mapping[str, Any],
    ) -> tuple[SamplingConfig, dict[str, Any]]:
        """Settings of sampling, and the values of conditions."""
        overrides = dict(sampling.model_dump() if isinstance(sampling, SamplingConfig) else sampling or {})
        values = dict(conditions or {})
        for name, value in named.items():
            (overrides if name in SamplingConfig.model_fields else values)[name] = value
        return self._sampling(overrides), values

    def _sampling(self, overrides: Mapping[str, Any]) -> SamplingConfig:
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

    def _conditions(self, values: Mapping[str, Any], number: int) -> dict[str, Tensor]:
        known = [spec.name for spec in self.conditions]
        for name in values:
            if name not in known:
                raise NextscaleError(
                    unknown("condition or sampling setting", name, [*known, *SamplingConfig.model_fields])
                )
        return resolve_conditions(self.conditions, values, number)


def _shown(drawn: Generation, steps: bool) -> list[Any]:
    """The states to decode: after each scale, or after the last."""
    return drawn.states[1:] if steps else drawn.states[-1:]


def load(run: str | Path, device: str = "auto", precision: str = "fp32", compile: bool = False) -> Model:
    """The models of a run folder, ready to sample.

    Args:
        precision: of the transformer's and the decoder's weights: ``fp32``, ``bf16``, ``fp16``, or ``auto``; see
            ``nextscale.sampling.precision``.
        compile: torch.compile the transformer's MLPs and the decoder; the first sample then takes minutes.

    Raises:
        CheckpointError: the folder, or one of its models, is missing or damaged. ConfigError: an unknown precision.
    """
    run = Path(run)
    where = pick_device(device)
    check_precision(precision)
    tokenizer = load_tokenizer(run, where)
    transformer = load_transformer(run, tokenizer, where)
    prepare(tokenizer, transformer, precision, compile)
    config = load_run_config(run)
    return Model(plugins.modality(config.modality), tokenizer, transformer, config)
