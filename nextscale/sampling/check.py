"""Whether a model can sample as it is told."""

from __future__ import annotations

from nextscale.config.sections import SamplingConfig
from nextscale.errors import ConfigError, unknown
from nextscale.sampling.candidates import check_candidates
from nextscale.tokens.capabilities import MeetsRequirements, MixesCodes
from nextscale.tokens.space import Codes
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale.transformer import ScaleTransformer, Scorer


def check_sampling(
    config: SamplingConfig,
    tokenizer: MultiscaleTokenizer,
    transformer: ScaleTransformer,
    num_scales: int,
    scorer: Scorer | None = None,
) -> None:
    """Raise ConfigError if per-scale settings do not match the scales, or this model does not support a setting."""
    check_candidates(config, scorer)
    names = tokenizer.every_scale_name(num_scales)
    for name in ("temperature", "top_k", "top_p", "steps", "group_steps"):
        value = getattr(config, name)
        for key in value if isinstance(value, dict) else ():
            if key not in names:
                raise ConfigError(f"sampling.{name}: {unknown('scale', key, set(names))}")
        if isinstance(value, tuple) and tokenizer.adaptive:
            raise ConfigError(f"sampling.{name} has {len(value)} values; here scales differ between samples: give one")
        if isinstance(value, tuple) and len(value) != num_scales:
            raise ConfigError(f"sampling.{name} has {len(value)} values; this model has {num_scales} scales")
    steps = config.steps if isinstance(config.steps, tuple) else (config.steps,)
    if (max(steps) > 1 or config.reveal == "groups") and not transformer.config.in_scale_steps:
        what = "steps > 1" if max(steps) > 1 else "reveal=groups"
        instead = (
            "" if transformer.refiner is None else ": with a refiner, set sampling.steps=1 and sampling.reveal=random"
        )
        raise ConfigError(f"sampling.{what} needs a transformer trained with transformer.in_scale_steps=true{instead}")
    if max(steps) > 1 and config.reveal != "groups" and tokenizer.group_order == "fixed":
        raise ConfigError(
            f"sampling.reveal={config.reveal} with steps > 1 draws tokens in any order, but this model has learned the "
            "order of its tokenizer's groups: set sampling.reveal=groups (group_steps limits its sub-steps)"
        )
    if config.reveal == "groups" and tokenizer.group_order is None:
        raise ConfigError(
            f"sampling.reveal=groups: {type(tokenizer).__name__} forms no groups: set sampling.reveal=random"
        )
    if config.group_steps is not None and config.reveal != "groups":
        raise ConfigError(f"sampling.group_steps has no effect with reveal={config.reveal}: set sampling.reveal=groups")
    if transformer.refiner is not None and config.smooth:
        raise ConfigError(
            "sampling.smooth mixes codes, but this model's refiner looks at the tokens drawn before: set smooth=false"
        )
    known = tokenizer.requirements if isinstance(tokenizer, MeetsRequirements) else ()
    if config.require is not None and config.require not in known:
        raise ConfigError(f"sampling.require: {unknown('requirement', config.require, known)}")
    if config.require is not None and config.smooth:
        raise ConfigError("sampling.require redraws tokens, and smooth sampling has none: set smooth=false")
    if config.smooth and not (isinstance(transformer.token_space, Codes) and isinstance(tokenizer, MixesCodes)):
        raise ConfigError("sampling.smooth mixes codes, which this model's tokenizer cannot do: set smooth=false")
