"""A run, from configuration to trained models: open the data, train the tokenizer, cache tokens, train the transformer.

A run folder holds::

    config.yaml  env.json  metrics.jsonl  samples/  checkpoints/{tokenizer,transformer}/
    tokenizer/{config.json,model.safetensors}       the result of stage 1
    tokens.zarr/{train,validation}                  the training data's tokens
    transformer/{config.json,model.safetensors}     the result of stage 2
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nextscale import plugins
from nextscale.data import DataSplits
from nextscale.errors import CheckpointError, ConfigError
from nextscale.files import write_json_atomic, write_text_atomic
from nextscale.modality import Modality
from nextscale.runconfig import RunConfig, dump_config, load_run_config
from nextscale.store import load_tokenizer, new_transformer, save_tokenizer, save_transformer
from nextscale.tokenizer import MultiscaleTokenizer
from nextscale.training import distributed
from nextscale.training.cache import open_or_write_tokens
from nextscale.training.checkpoint import check_checkpoint, latest_checkpoint
from nextscale.training.environment import describe_environment, seed_everything
from nextscale.training.log import RunLog
from nextscale.training.loop import Trainer
from nextscale.training.stage import Stage
from nextscale.training.tokenizer_stage import TokenizerStage, draw_reconstructions
from nextscale.training.transformer_stage import TransformerStage

STAGES = ("tokenizer", "transformer")


def train(config: RunConfig, folder: Path, stage: str = "all", resume: str | None = None) -> None:
    """Train one stage, or both, into a run folder.

    Args:
        stage: ``tokenizer``, ``transformer`` or ``all``. The transformer needs a trained tokenizer in the folder.
        resume: None starts a run; ``auto`` goes on from the latest checkpoints (or starts); a path goes on from
            that checkpoint.

    Raises:
        ConfigError: the folder exists and ``resume`` is None, or the configuration does not fit.
        DataError, CheckpointError, TrainingError: see there.
        Interrupted: after SIGINT or SIGTERM, once a checkpoint is saved.
    """
    folder = Path(folder)
    device = distributed.pick_device(config.training.device)
    with distributed.process_group(device):
        run = _Run(config, folder, resume, device)
        if stage in ("all", "tokenizer"):
            run.train_tokenizer()
        if stage in ("all", "transformer"):
            run.train_transformer()


class _Run:
    """The two stages of one run folder."""

    def __init__(self, config: RunConfig, folder: Path, resume: str | None, device: Any) -> None:
        self.config, self.folder, self.device = config, folder, device
        self.resume_auto = resume is not None
        self.resume_from = None if resume in (None, "auto") else Path(resume)
        if self.resume_from is not None:
            check_checkpoint(self.resume_from)
        self._check_folder(resume)
        self.modality: Modality = plugins.modality(config.modality)
        self.data: DataSplits = self.modality.open_data(config.data)
        self._prepare_folder()
        callbacks = plugins.discover().callbacks(config, folder) if distributed.is_main() else []
        self.log = RunLog(folder, callbacks, config.training.tensorboard)

    def train_tokenizer(self) -> None:
        if self._done("tokenizer"):
            return
        seed_everything(self.config.seed)
        tokenizer = self.modality.build_tokenizer(self.config.tokenizer, self.data.description)
        if any(parameter.requires_grad for parameter in tokenizer.parameters()):
            settings = self.config.training.tokenizer
            stage = TokenizerStage(
                self.modality, tokenizer, self.config.tokenizer, self.data, settings, self.config.seed
            )
            self._train(stage)
        if distributed.is_main():
            save_tokenizer(self.folder, tokenizer.eval(), self.config, self.data.description)
            path = self.folder / "samples" / "reconstructions"
            written = draw_reconstructions(self.modality, tokenizer, self.data, path)
            self.log.note(f"held-out samples, decoded after each scale, and themselves: {written}")
        distributed.barrier()

    def train_transformer(self) -> None:
        if self._done("transformer"):
            return
        tokenizer = load_tokenizer(self.folder, self.device)
        self._check_tokenizer(tokenizer)
        seed_everything(self.config.seed + 1)
        settings = self.config.training.transformer
        stores = None
        if settings.cache:
            stores = open_or_write_tokens(
                self.folder, tokenizer, self.data, settings.cache_passes, self.config.seed, self.log
            )
        transformer = new_transformer(self.config.transformer, tokenizer, self.data.conditions)
        stage = TransformerStage(
            self.modality,
            tokenizer,
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
            written = stage.draw_samples(transformer, self.folder / "samples" / "samples")
            self.log.note(f"samples: {written}")
        distributed.barrier()

    def _train(self, stage: Stage) -> None:
        checkpoints = self.folder / "checkpoints" / stage.name
        trainer = Trainer(stage, checkpoints, self.log, self.config.seed, self.device)
        resume = None
        if self.resume_from is not None and self.resume_from.resolve().parent == checkpoints.resolve():
            resume = self.resume_from
        elif self.resume_auto:
            resume = latest_checkpoint(checkpoints)
        trainer.run(resume)

    # The folder.

    def _check_folder(self, resume: str | None) -> None:
        if resume is None and self.folder.exists():
            raise ConfigError(
                f"run folder {self.folder} exists: continue it with --resume auto, or name another with --out"
            )
        if self.resume_from is not None and not self.resume_from.resolve().is_relative_to(
            self.folder.resolve()
        ):
            raise ConfigError(f"checkpoint {self.resume_from} is not one of run folder {self.folder}")

    def _prepare_folder(self) -> None:
        """Only once the configuration and the data have proved good, so that a mistake leaves no folder behind."""
        if not distributed.is_main():
            distributed.barrier()
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "samples").mkdir(exist_ok=True)
        write_text_atomic(self.folder / "config.yaml", dump_config(self.config))
        write_json_atomic(self.folder / "env.json", describe_environment())
        distributed.barrier()

    def _done(self, stage: str) -> bool:
        done = (self.folder / stage / "model.safetensors").exists()
        if done:
            self.log.note(f"{stage}: already trained in {self.folder / stage}")
        return done

    def _check_tokenizer(self, tokenizer: MultiscaleTokenizer) -> None:
        stored: Mapping[str, Any] = tokenizer.description  # type: ignore[assignment]
        if dict(stored) != dict(self.data.description):
            changed = [key for key in self.data.description if stored.get(key) != self.data.description[key]]
            raise CheckpointError(
                f"the tokenizer in {self.folder} was trained on other data: "
                + ", ".join(
                    f"{key} {stored.get(key)} there, {self.data.description[key]} now" for key in changed
                )
            )


def tokenize(run: Path, overrides: Sequence[str] = ()) -> list[Path]:
    """Write the run's token cache anew with its trained tokenizer; the paths written."""
    run = Path(run)
    config = load_run_config(run, overrides)
    device = distributed.pick_device(config.training.device)
    tokenizer = load_tokenizer(run, device)
    splits = plugins.modality(config.modality).open_data(config.data)
    passes = config.training.transformer.cache_passes
    log = RunLog(run)
    stores = open_or_write_tokens(run, tokenizer, splits, passes, config.seed, log, rewrite=True)
    return [store.path for store in stores]
