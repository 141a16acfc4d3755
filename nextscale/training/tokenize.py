"""A run's token cache, written anew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nextscale import distributed, plugins
from nextscale.config.run import load_run_config
from nextscale.device import pick_device
from nextscale.errors import ConfigError
from nextscale.hub import is_on_hub
from nextscale.storage.lock import RunLock
from nextscale.storage.models import load_tokenizer, stored_config
from nextscale.training.cache import open_or_write_tokens
from nextscale.training.check import check_tokenizer
from nextscale.training.log import RunLog
from nextscale.training.signals import interruptible


def tokenize(run: Path, overrides: Sequence[str] = ()) -> list[Path | str]:
    """Rewrite the run's token cache with its trained tokenizer; returns the paths or URLs written."""
    if is_on_hub(run):
        raise ConfigError(f"{run} cannot be changed here: name a run's folder")
    run = Path(run)
    stored_config(run, "tokenizer")  # raises if there is no run, or no tokenizer yet
    config = load_run_config(run, overrides)
    device = pick_device(config.training.device)
    with interruptible(), distributed.process_group(device), RunLock(run, "tokenized") as lock:
        distributed.on_main(lock.acquire)
        tokenizer = load_tokenizer(run, device)
        splits = plugins.modality(config.modality).open_data(config.data)
        check_tokenizer(run, splits, config)
        stores = open_or_write_tokens(run, tokenizer, splits, config, RunLog(run), rewrite=True)
        return [store.path for store in stores] if distributed.is_main() else []
