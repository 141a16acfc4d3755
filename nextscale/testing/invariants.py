"""The invariants by name: what breaks in practice without each, and the usual cause when it fails.

Checks are plain functions. ``@holds("causality")`` makes every way in which one fails a ``ContractError`` that names
the invariant and a likely cause, also where the plugin itself raises. A check that knows more about the cause says it
with ``likely``.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")
CORE = Path(__file__).parent.parent


class ContractError(AssertionError):
    """An invariant that does not hold. ``message`` says where, ``likely_cause`` what to look at first."""

    def __init__(self, message: str, likely_cause: str) -> None:
        super().__init__(f"{message}\nlikely cause: {likely_cause}")
        self.message, self.likely_cause = message, likely_cause


@dataclass(frozen=True)
class Invariant:
    """``number`` and ``name`` as messages show them; ``breaks`` and ``cause`` are sentences for a plugin's author."""

    number: int
    name: str
    breaks: str
    cause: str

    def __str__(self) -> str:
        return f"invariant {self.number} ({self.name})"


def _table(*rows: tuple[str, int, str, str, str]) -> dict[str, Invariant]:
    return {key: Invariant(number, name, breaks, cause) for key, number, name, breaks, cause in rows}


INVARIANTS = _table(
    ("schedule", 1, "schedule", "tokens are cut at the wrong places",
     "a schedule of your own: do offsets add up the lengths of the scales?"),
    ("causality", 2, "causality", "training looks perfect and samples are noise: the model saw what it should predict",
     "does teacher_forcing, scale_input or the stem use tokens of this scale or of finer ones?"),
    ("train_equals_sample", 3, "train = sample", "the model meets inputs in sampling that it never saw in training",
     "an own teacher_forcing that is not exactly what scale_input gives, or a stem or tokenizer that remembers"),
    ("purity", 3, "states are never modified", "film strips, editing and redrawn scales show wrong states",
     "an in-place operation (add_, +=, indexing) on the state or on the tokens"),
    ("cached_equals_full", 4, "cached = full", "sampling differs from what was trained",
     "a stem that mixes tokens of different scales, or that behaves differently for one scale than for all"),
    ("telescoping", 5, "telescoping", "stage 1 optimises another reconstruction than the one that is decoded",
     "update must add exactly part_of to the sum; encode and reconstruct must see the same features"),
    ("prefix", 6, "prefix", "film strips and coarse samples fail or contain NaN",
     "decode needs all scales: divide by nothing that is zero before the last scale"),
    ("ragged_equals_single", 7, "ragged = single", "a sample changes with the sizes of the others in its batch",
     "padding is read somewhere: is the mask applied in encode, scale_input, update and the stem?"),
    ("round_trip", 8, "round trip", "cached tokens decode to something else than was encoded",
     "tokens outside the vocabulary, or a tokenizer that remembers the samples it encoded"),
    ("determinism", 10, "determinism", "the same seed gives other samples; results cannot be repeated",
     "random numbers from torch's global generator, or statistics over the batch in scale_input, update or the stem"),
    ("guidance_zero", 11, "guidance 0 = conditional model", "plain sampling is not what was trained",
     "inputs depend on how often or in which order the tokenizer is called"),
    ("edit_known", 11, "edit keeps what is known", "edits change the part that was to stay",
     "scale_input or update changes the tokens it is given"),
    ("edit_places", 11, "edit by place", "edits change the kept part, or redraw nothing",
     "keep_tokens or splice takes the mask for its opposite"),
    ("legality", 12, "legality", "samples contain tokens that stand for nothing",
     "a token space whose draw ignores logits of minus infinity"),
    ("encoding", 13, "encoding", "the token cache, training and editing work on different tokens of the same sample",
     "randomness in encode: dropout that is never off, noise, or sampled codes"),
    ("memory", 14, "no memory", "training sees what sampling cannot: the samples that were encoded last",
     "encode, update or decode stores something on self that another method reads"),
    ("batch_mates", 15, "batch = singles", "a sample changes with the others in its batch",
     "statistics over the batch (batch norm, mean(0), max()) in encode, scale_input or decode"),
    ("information", 16, "information", "the model trains, but samples have nothing to do with the data",
     "a constant where tokens or features should be: zeros that are never filled, or a branch that is never taken"),
    ("reconstruction", 16, "reconstruction", "decoded samples belong to other samples, or are mirrored or transposed",
     "encode and decode disagree about the order of samples, axes or tokens"),
    ("places", 17, "places", "positions tell the transformer something else than where a token is",
     "coordinates that are shifted, scaled or have their axes swapped; use schedule.coordinates(k)"),
    ("locality", 17, "locality", "the transformer sees each place through the features of another",
     "axes swapped or mirrored between tokens and features: flatten and unflatten in the same order"),
    ("keep_tokens", 18, "masks", "edits keep the wrong part",
     "keep_tokens flips, transposes or pools the mask otherwise than encode lays out tokens"),
    ("splice", 18, "splice", "the kept part drifts away while the rest is drawn",
     "splice returns one of its arguments, or takes keep for its opposite"),
    ("unquantized", 18, "unquantized", "the kept part of an edit comes out wrong",
     "unquantized puts features at the wrong places, or those of another sample"),
    ("cuts", 18, "cuts", "continuing a sample fails or repeats a part of it",
     "cuts must be places strictly inside the sample, between tokens"),
    ("soft", 19, "soft = hard", "smooth sampling draws from another model than plain sampling",
     "update_soft forgets something that update does (phi, a carry, a scale factor)"),
    ("attention", 20, "scale attention", "the attention rule of the settings is not what the model was trained with",
     "something passes information between scales beside the attention, or the rule is ignored"),
    ("data", 21, "data", "runs cannot be repeated or loaded without their data",
     "open_data or a source depends on something besides its settings and indices"),
    ("augmentation", 21, "augmentation", "resuming and other batch sizes give other training data",
     "augmentation uses one generator per batch; use one per sample, from its own seed"),
    ("samples_survive", 21, "samples are never modified", "losses are computed against altered samples",
     "an in-place operation in encode"),
    ("build", 22, "building", "nextscale train stops at its check before the first step",
     "build_tokenizer also runs without memory (torch's meta device): no .item(), .tolist(), numpy or if on a tensor"),
    ("objectives", 23, "objectives", "stage 1 trains nothing",
     "the loss is detached from the weights, or the first objective's model is not the tokenizer"),
    ("writers", 24, "writers", "sampling ends without files",
     "writers get a path without a suffix, create its folder and return what they wrote; files count from first"),
    ("parts", 24, "writing by parts", "long predictions cannot be written", "write_parts gets batches of one"),
    ("reader", 24, "reading", "nextscale edit and predict cannot read a file",
     "read_sample must read what write_samples writes, as a batch of one, or override sample_file in the contract"),
    ("evaluation", 25, "evaluation", "nextscale eval fails after hours of training",
     "evaluate_* must work with the defaults of its section and return plain numbers"),
    ("options", 26, "settings", "a mistyped setting is ignored without a word",
     "sections must refuse unknown keys: derive them from nextscale.plugin.Section"),
    ("presets", 26, "presets", "nextscale train stops before it starts",
     "a preset names a setting that no longer exists, or default_preset is no file of the presets folder"),
    ("proposals", 26, "proposals", "nextscale train --minutes stops before it starts, or trains the wrong size",
     "propose returns settings that do not fit the data or each other, or sizes in no order"),
    ("entry", 27, "entry module", "every command, even --help, takes seconds to start",
     "the entry module or the config module imports torch; import it in the implementation"),
    ("device", 28, "one device", "training, sampling or evaluation stops on a GPU, after it worked on the CPU",
     "a tensor made on the CPU: create it with device=... of those it meets, or register it as a buffer; NumPy takes "
     ".cpu(); a generator belongs to the device that draws"),
)  # fmt: skip
"""By the name of the contract's test: ``test_causality`` checks ``INVARIANTS["causality"]``."""


def holds(key: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A check of ``INVARIANTS[key]``: whatever goes wrong in it becomes a ``ContractError`` that names it."""
    invariant = INVARIANTS[key]

    def decorate(check: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(check)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return check(*args, **kwargs)
            except ContractError as error:
                raise ContractError(_named(error.message, invariant), error.likely_cause) from error.__cause__
            except AssertionError as error:
                raise ContractError(_named(str(error), invariant), invariant.cause) from None
            except Exception as error:
                where = _culprit(error)
                raise ContractError(f"{invariant}: {where} raises {_shown(error)}", invariant.cause) from error

        return checked

    return decorate


@contextmanager
def likely(cause: str) -> Iterator[None]:
    """Assertions that fail within the block have this cause."""
    try:
        yield
    except ContractError:
        raise
    except AssertionError as error:
        raise ContractError(str(error), cause) from None


def _named(message: str, invariant: Invariant) -> str:
    return message if message.startswith("invariant ") else f"{invariant}: {message}"


def _shown(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def _culprit(error: Exception) -> str:
    """The plugin's own innermost function: code outside the core, from the folder that the core called first."""
    frames = traceback.extract_tb(error.__traceback__)
    libraries = (str(CORE), str(Path(torch.__file__).parent))
    outside = [frame for frame in frames if not frame.filename.startswith(libraries)]
    own = [frame for frame in outside if Path(frame.filename).parent == Path(outside[0].filename).parent]
    frame = (own or list(frames))[-1]
    return f"{frame.name} ({Path(frame.filename).name}:{frame.lineno})"
