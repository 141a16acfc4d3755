"""Invariants 26 and 27 of an installed plugin: its settings, its presets, and what starting a command costs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points

from pydantic import BaseModel, ValidationError

from nextscale.config.run import NO_PRESET, load_config, presets
from nextscale.data import DataSplits
from nextscale.modality import Modality, ModalityConfig, ModalitySpec
from nextscale.plugins.loading import GROUP
from nextscale.testing.invariants import holds, likely
from nextscale.training.check import check_run
from nextscale.training.run import STAGES

UNKNOWN = "no_such_setting"


@holds("options")
def check_options(sections: ModalityConfig) -> None:
    """26. The three sections of settings refuse unknown keys, and evaluation has defaults for all of its options."""
    assert isinstance(sections, ModalityConfig), (
        f"ModalitySpec.config names {sections!r}, not an instance of ModalityConfig"
    )
    for name in ("data", "tokenizer", "evaluation"):
        section: type[BaseModel] = getattr(sections, name)
        assert isinstance(section, type) and issubclass(section, BaseModel), f"{name}: {section!r} is no pydantic model"
        try:
            section.model_validate({UNKNOWN: 1})
        except ValidationError as error:
            refused = any(UNKNOWN in each["loc"] for each in error.errors())
        else:
            refused = False
        assert refused, f"{section.__name__} takes the unknown setting {UNKNOWN!r} without a word"
    with likely("every option of the evaluation section needs a default: nextscale eval sets none"):
        try:
            sections.evaluation()
        except ValidationError as error:
            raise AssertionError(f"{sections.evaluation.__name__} cannot be made from its defaults: {error}") from None


@holds("presets")
def check_presets(spec: ModalitySpec) -> None:
    """26. Every preset is valid, and the default preset is one of them."""
    known = presets(spec.name)
    assert spec.default_preset in known, (
        f"the default preset {spec.default_preset!r} is not in {spec.presets} (presets: {', '.join(known) or 'none'})"
    )
    for preset in known:
        load_config(spec.name, preset)


@holds("proposals")
def check_proposals(modality: Modality, data: DataSplits) -> None:
    """26. What ``propose`` returns for ``train --minutes``: settings that fit the data, in the order of size, without
    the numbers of steps, which the core chooses."""
    number, before = "invariant 26 (proposals)", 0
    for proposal in modality.propose(data):
        config = load_config(modality.name, NO_PRESET, proposal=proposal.settings)
        check_run(config, modality, data, STAGES)
        for stage in STAGES:
            named = set(proposal.settings.get("training", {}).get(stage, {})) & {"steps", "validate_every", "schedule"}
            assert not named, f"{number}: training.{stage} sets {', '.join(sorted(named))}, which follow from the time"
        assert proposal.steps >= before, f"{number}: sizes need {before:,} steps and then {proposal.steps:,}: reorder"
        before = proposal.steps


@holds("entry")
def check_entry(modules: Sequence[str]) -> None:
    """27. Importing these modules, in a fresh Python, does not import torch.

    They are the entry module and the one with ``ModalityConfig``: ``nextscale --help`` imports both.
    """
    for module in modules:
        program = f"import sys; sys.path[:] = {sys.path!r}; import {module}; sys.exit('torch' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert done.returncode == 0 or not done.stderr, f"{module} cannot be imported: {done.stderr.splitlines()[-1]}"
        assert done.returncode == 0, f"importing {module} imports torch"


def entry_modules(spec: ModalitySpec) -> list[str]:
    """The entry module of an installed modality, and the module of its configuration."""
    found = []
    for entry in entry_points(group=GROUP):
        hook = getattr(entry.load(), "nextscale_modalities", None)
        if hook is not None and any(each.name == spec.name for each in hook()):
            found.append(entry.module)
    return [*found, spec.config.partition(":")[0]]
