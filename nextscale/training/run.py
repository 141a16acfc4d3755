"""A run, from configuration to trained models: open the data, train the tokenizer, cache tokens, train the transformer.

A run folder holds::

    config.yaml  env.json  data.json  metrics.jsonl  samples/  checkpoints/STAGE/  report.html
    tokenizer/{config.json,model.safetensors}       the result of stage 1
    tokens.zarr/{train,validation}                  the tokens of the data
    transformer/{config.json,model.safetensors}     the result of stage 2
    scorer/{config.json,model.safetensors}          if one was trained on top (--stage scorer)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from nextscale import distributed, plugins
from nextscale.config.sections import RunConfig, StageConfig
from nextscale.data import DataSplits
from nextscale.device import cpu_threads, pick_device
from nextscale.hub import run_folder
from nextscale.modality import Modality
from nextscale.report.page import NAME as REPORT
from nextscale.report.page import write_report
from nextscale.storage.checkpoint_folder import latest_checkpoint, stage_of
from nextscale.storage.lock import RunLock
from nextscale.storage.models import (
    has,
    load_tokenizer,
    load_transformer,
    new_transformer,
    save_tokenizer,
    save_transformer,
    stored_config,
)
from nextscale.storage.scorer import new_scorer, save_scorer
from nextscale.storage.seal import weights_digest
from nextscale.storage.starting import start_from
from nextscale.storage.tokens import TokenStore
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale.training.cache import open_or_write_tokens
from nextscale.training.check import check_run, check_tokenizer, check_transformer, draws_alike
from nextscale.training.clock import RESERVE, Pace, RunClock
from nextscale.training.environment import seed_everything
from nextscale.training.folder import RunFolder
from nextscale.training.log import RunLog, or_warn
from nextscale.training.loop import Trainer
from nextscale.training.optim import as_written
from nextscale.training.scorer_stage import ScorerStage
from nextscale.training.signals import Interrupted, interruptible
from nextscale.training.stage import Stage
from nextscale.training.tokenizer_stage import TokenizerStage, draw_reconstructions
from nextscale.training.transformer_stage import TransformerStage

STAGES = ("tokenizer", "transformer")


def train(
    config: RunConfig,
    folder: Path,
    stage: str = "all",
    resume: str | None = None,
    began: float | None = None,
    tokens: Path | None = None,
    counts_caching: bool = True,
) -> None:
    """Train one stage, or both of a model, into a run folder.

    Args:
        stage: ``tokenizer``, ``transformer`` or ``all`` (both); or ``scorer``, on top of a run that is trained. The
            transformer needs a trained tokenizer: in the folder, or in the run that ``training.init`` names, from which
            it is then copied.
        resume: None starts a new run; ``auto`` continues from the latest checkpoints (or starts); a path continues
            from that checkpoint. A finished stage is left as it is.
        began: the ``time.monotonic()`` from which ``training.minutes`` counts; None is now.
        tokens: the run whose token cache is used, such as that of ``training.init``; None is this run.
        counts_caching: whether ``training.minutes`` of a transformer include writing the token cache, and what comes
            before it. A comparison leaves it out, because it says nothing about the transformer.

    Raises:
        ConfigError: the folder exists and ``resume`` is None, or the configuration does not fit.
        DataError, CheckpointError, TrainingError: as their docstrings say; also another process that trains this run.
        Interrupted: after SIGINT or SIGTERM, once a checkpoint is saved.
    """
    device = pick_device(config.training.device)
    folder = Path(folder)
    threads = cpu_threads(config.training.threads)
    with interruptible(), threads, distributed.process_group(device), RunLock(folder, "trained") as lock:
        run = _Run(
            config, folder, STAGES if stage == "all" else (stage,), resume, device, lock, began, tokens, counts_caching
        )
        try:
            if "tokenizer" in run.to_train:
                run.train_tokenizer()
            if "transformer" in run.to_train:
                run.train_transformer()
            if "scorer" in run.to_train:
                run.train_scorer()
        except Interrupted:
            run.report()  # of what there is
            raise
        run.report()


class _Run:
    """The stages of one run folder. Nothing is written until everything that can be checked has been."""

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        stages: Sequence[str],
        resume: str | None,
        device: torch.device,
        lock: RunLock,
        began: float | None = None,
        tokens: Path | None = None,
        counts_caching: bool = True,
    ) -> None:
        self.config, self.folder, self.device = config, folder, device
        self.place = RunFolder(folder, resume, lock)
        self.cached_in, self.counts_caching = tokens or folder, counts_caching
        # The minutes are for the two stages of the model; those who train a scorer say how many steps.
        self.clock = RunClock(folder, None if "scorer" in stages else config.training.minutes, began)
        self.log = RunLog(folder, self.clock)
        distributed.on_main(lambda: self._check_folder(stages))
        self.to_train = [stage for stage in stages if not self.place.holds(stage)]
        for stage in stages:
            if stage not in self.to_train:
                self.log.note(f"{stage}: already trained in {folder / stage}")
        if not self.to_train:
            return
        self.modality: Modality = plugins.modality(config.modality)
        self.data: DataSplits = self.modality.open_data(config.data)
        check_run(config, self.modality, self.data, self.to_train, self._init("transformer"))
        self.first: Stage | None = None
        if "tokenizer" in self.to_train:
            self.tokenizer, self.first = self._new_tokenizer()
        elif self.place.holds("tokenizer"):
            self.tokenizer = self._trained_tokenizer()
        else:
            self.tokenizer = self._init_tokenizer()
        callbacks = plugins.discover().callbacks(config, folder) if distributed.is_main() else []
        self.log.open(callbacks, config.training.tensorboard)
        distributed.on_main(self._prepare_folder)

    def train_tokenizer(self) -> None:
        if self.first is not None:
            self._train(self.first)
            self.first = None
        if distributed.is_main():
            tokenizer, path = self.tokenizer.eval(), self.folder / "samples" / "reconstructions"
            save_tokenizer(self.folder, tokenizer, self.config, self.data.description)
            with as_written(self.config.training.tokenizer.compile):
                written = or_warn(path, lambda: draw_reconstructions(self.modality, tokenizer, self.data, path))
            if written:
                self.log.note(f"held-out samples decoded after each scale, beside the originals: {written}")
        distributed.barrier()
        self.tokenizer = self._trained_tokenizer()

    def train_transformer(self) -> None:
        settings = self.config.training.transformer
        seed_everything(self.config.seed + 1)
        transformer = new_transformer(self.config.transformer, self.tokenizer, self.data.conditions)
        init = self._init("transformer")
        if init is not None and has(init, "transformer"):
            new = start_from(init, "transformer", transformer)
            self.log.note(f"starting from {init}/transformer; newly initialised: {', '.join(new) or 'nothing'}")
        stores = self._stores()
        if not self.counts_caching:
            self.clock.restart()
        stage = TransformerStage(
            self.modality,
            self.tokenizer,
            transformer,
            self.data,
            stores,
            settings,
            self.config.sampling,
            self.config.seed,
        )
        self._train(stage)
        if distributed.is_main():
            save_transformer(self.folder, transformer)
            path = self.folder / "samples" / "samples"
            with as_written(settings.compile):
                written = or_warn(path, lambda: stage.draw_samples(transformer, path))
            if written:
                self.log.note(f"samples: {written}")
        distributed.barrier()

    def train_scorer(self) -> None:
        """On what the trained transformer draws."""
        seed_everything(self.config.seed + 2)
        transformer = load_transformer(self.folder, self.tokenizer, self.device)
        check_transformer(self.folder, transformer, self.data, self.config)
        scorer = new_scorer(self.config.scorer, self.tokenizer, transformer)
        stage = ScorerStage(
            self.modality,
            self.tokenizer,
            transformer,
            scorer,
            self.data,
            self._stores(),
            self.config.training.scorer,
            self.config.sampling,
            self.config.seed,
        )
        stage.rests_on = {"transformer": weights_digest(self.folder / "transformer")}
        self._train(stage)
        if distributed.is_main():
            save_scorer(self.folder, scorer)
            self.log.note(f"scorer: {self.folder / 'scorer'}; it chooses with sampling.candidates=4, for example")
        distributed.barrier()

    def _stores(self) -> tuple[TokenStore, TokenStore] | None:
        """The cached tokens that the transformer is trained on; None if they are made for every batch."""
        settings = self.config.training.transformer
        if settings.cache and settings.corrupt:
            self.log.note("training.transformer.corrupt chooses tokens anew for every batch: tokens are not cached")
        if not settings.cache or settings.corrupt:
            return None
        return open_or_write_tokens(self.cached_in, self.tokenizer, self.data, self.config, self.log)

    def report(self) -> None:
        """Write the run's report. A failure costs no model: it is a warning."""
        if self.to_train and distributed.is_main():
            path = self.folder / REPORT
            if or_warn(path, lambda: write_report(self.folder), "report", "the run is whole"):
                self.log.note(f"report: {path}")

    def _train(self, stage: Stage) -> None:
        checkpoints = self.folder / "checkpoints" / stage.name
        trainer = Trainer(
            stage,
            checkpoints,
            self.log,
            self.config.seed,
            self.device,
            self._pace(stage),
            partial(self._change, stage),
            self.config.training.shard if stage.name == "transformer" else "none",
            self.config.training.workers,
        )
        path = self.place.resume_from
        chosen = path is not None and stage_of(path) == stage.name
        if chosen:
            trainer.restore(path, going_back=True)
        else:
            trainer.restore(latest_checkpoint(checkpoints) if self.place.resumes else None)
        # A resumed run may have new settings. They are recorded now, because they are known to fit.
        distributed.on_main(self._record)
        trainer.run()
        distributed.on_main(self.clock.save)

    def _pace(self, stage: Stage) -> Pace | None:
        """The time for a stage: the tokenizer's share, or all that is left but for the last pictures."""
        if self.clock.budget is None:
            return None
        share = 1 - RESERVE
        if stage.name == "tokenizer" and "transformer" in self.to_train:
            share = min(share, self.config.training.tokenizer_share)
        return Pace(partial(self.clock.left, share), self.clock.budget)

    def _change(self, stage: Stage, settings: StageConfig) -> None:
        """Record new settings of a stage, so that it resumes with them."""
        training = self.config.training.model_copy(update={stage.name: settings})
        self.config = self.config.model_copy(update={"training": training})
        distributed.on_main(self._record)

    # Models.

    def _new_tokenizer(self) -> tuple[MultiscaleTokenizer, Stage | None]:
        """A fresh tokenizer, and the stage that trains it (None if it has no weights)."""
        seed_everything(self.config.seed)
        tokenizer = self.modality.build_tokenizer(self.config.tokenizer, self.data.description)
        if not any(parameter.requires_grad for parameter in tokenizer.parameters()):
            return tokenizer, None
        init = self._init("tokenizer")
        if init is not None:
            start_from(init, "tokenizer", tokenizer)
            self.log.note(f"starting from {init}/tokenizer")
        settings = self.config.training.tokenizer
        return tokenizer, TokenizerStage(
            self.modality, tokenizer, self.config.tokenizer, self.data, settings, self.config.seed
        )

    def _trained_tokenizer(self) -> MultiscaleTokenizer:
        tokenizer = load_tokenizer(self.folder, self.device)
        check_tokenizer(self.folder, self.data, self.config)
        return tokenizer

    def _init_tokenizer(self) -> MultiscaleTokenizer:
        """The tokenizer of the run in ``training.init``; ``_prepare_folder`` saves a copy of it in this run."""
        init = run_folder(str(self.config.training.init))
        stored = stored_config(init, "tokenizer")
        # Other classes or another size are fine if the weights fit.
        data = replace(self.data, description=stored["description"])
        check_tokenizer(init, data, self.config, weights_only=True)
        tokenizer = self.modality.build_tokenizer(self.config.tokenizer, self.data.description)
        start_from(init, "tokenizer", tokenizer)
        return tokenizer.to(self.device).eval()

    def _init(self, stage: str) -> Path | None:
        """The run whose weights a stage starts from; None once there is a checkpoint, which already builds on them, and
        for a transformer that is to draw tokens in another order."""
        begun = latest_checkpoint(self.folder / "checkpoints" / stage) is not None
        if begun or self.config.training.init is None:
            return None
        init = run_folder(self.config.training.init)
        if stage == "transformer" and has(init, "transformer") and not draws_alike(init, self.config):
            return None
        return init

    # The folder.

    def _check_folder(self, stages: Sequence[str]) -> None:
        for line in self.place.check(self.config, stages):
            self.log.note(line)

    def _prepare_folder(self) -> None:
        self.place.prepare(self.config, self.data)
        if "tokenizer" not in self.to_train and not self.place.holds("tokenizer"):
            save_tokenizer(self.folder, self.tokenizer, self.config, self.data.description)

    def _record(self) -> None:
        self.place.record(self.config, self.data)
