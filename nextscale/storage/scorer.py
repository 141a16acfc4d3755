"""A run's scorer on disk, in the format of ``storage.models``."""

from __future__ import annotations

from pathlib import Path

import torch

from nextscale.config.sections import ScorerConfig
from nextscale.errors import CheckpointError, ConfigError
from nextscale.hub import SCORER, run_folder
from nextscale.storage.files import stored_settings
from nextscale.storage.models import has, load_part, stored_config
from nextscale.storage.seal import weights_digest, write_sealed
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale.transformer import ScaleTransformer, Scorer


def new_scorer(config: ScorerConfig, tokenizer: MultiscaleTokenizer, transformer: ScaleTransformer) -> Scorer:
    """A fresh scorer of what a transformer draws.

    Raises:
        ConfigError: this tokenizer or transformer cannot have one, or the settings do not fit each other.
    """
    if tokenizer.adaptive:
        raise ConfigError(
            f"a scorer needs the same scales in all samples, and those of {type(tokenizer).__name__} depend on what is "
            "drawn: it draws with sampling.candidates=1"
        )
    if max(transformer.schedule.lengths) == 1:
        raise ConfigError(
            "a scorer compares the tokens that are drawn together, and here every scale is a single token: draw with "
            "sampling.candidates=1"
        )
    return Scorer(config, transformer, tokenizer.feature_dim)


def save_scorer(run: Path, scorer: Scorer) -> None:
    body = {
        "scorer": scorer.config.model_dump(mode="json"),
        "transformer_weights": weights_digest(run / "transformer"),
    }
    write_sealed(run / "scorer", scorer.state_dict(), body)


def load_scorer(
    run: Path, tokenizer: MultiscaleTokenizer, transformer: ScaleTransformer, device: torch.device | str = "cpu"
) -> Scorer | None:
    """The scorer of a run, in evaluation mode; None if it has none.

    Args:
        transformer: the run's, as ``load_transformer`` returns it.

    Raises:
        CheckpointError: it is damaged, or scores the draws of another transformer.
        HubError: as ``load_tokenizer``.
    """
    run = run_folder(run)
    if not has(run, "scorer"):
        return None
    body = stored_config(run, "scorer")
    if body["transformer_weights"] != weights_digest(run / "transformer"):
        raise CheckpointError(
            f"{run}/scorer was trained on what another transformer draws than {run}/transformer: remove {run}/scorer "
            f"and {run}/checkpoints/scorer, and train it anew with --stage scorer"
        )
    config = stored_settings(ScorerConfig, body["scorer"], run / SCORER[0])
    return load_part(run, "scorer", lambda: new_scorer(config, tokenizer, transformer)).to(device).eval()
