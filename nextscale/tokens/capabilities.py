"""Optional abilities of a tokenizer, beyond the state machine.

A tokenizer declares an ability by inheriting from its class::

    class AudioTokenizer(MultiscaleTokenizer, EditsPlaces, MixesCodes): ...

The core checks for an ability with ``ability``. The contract suite tests exactly the declared abilities.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from nextscale.errors import NextscaleError
from nextscale.tokens.pyramid import Schedule, TokenPyramid

T = TypeVar("T", bound="Capability")


class Capability(ABC):
    """Base of all abilities. ``missing`` completes the error message for a tokenizer that does not have the ability."""

    missing: ClassVar[str]


def ability(tokenizer: Any, kind: type[T]) -> T:
    """``tokenizer``, typed as one with this ability.

    Raises:
        NextscaleError: the tokenizer does not declare the ability.
    """
    if not isinstance(tokenizer, kind):
        raise NextscaleError(f"{type(tokenizer).__name__} {kind.missing}")
    return tokenizer


class EditsPlaces(Capability):
    """Every token has a place in the sample, so that a mask over samples (a tensor B C *grid) selects kept tokens."""

    missing = "cannot edit by place: its tokens have no place in the sample"

    @abstractmethod
    def keep_tokens(self, keep: Tensor) -> Tensor:
        """B L booleans, on the schedule that ``encode`` gives such samples: the tokens that describe the kept part.

        ``keep`` is B *grid booleans, a mask over each sample.
        """

    @abstractmethod
    def splice(self, state: Any, known: Any, keep: Tensor) -> Any:
        """``state``, with its kept places replaced by those of ``known``, a state of the same scale.

        ``keep`` is B L booleans, as returned by ``keep_tokens``. If everything is kept, the result is ``known``; if
        nothing is kept, it is ``state``.
        """

    @abstractmethod
    def decode_like(self, state: Any, samples: Any) -> Any:
        """Like ``decode``, but to the size of ``samples`` if the schedule does not fix the size (padded samples)."""

    def cuts(self, length: int) -> range:
        """Where a sample of this ``length`` along its first axis may be cut without cutting through a token. By default
        anywhere."""
        return range(1, length)

    def unquantized(self, state: Any, samples: Any, keep: Tensor) -> Any:
        """``state`` of ``samples``, but not quantized at the places inside the mask ``keep`` (as in ``keep_tokens``).

        By default ``state`` itself.
        """
        return state


class Completes(Capability):
    """A sample may be part of a larger one, which sampling completes."""

    missing = "cannot complete a part: its samples have no parts"

    @abstractmethod
    def begin_with(self, samples: Any, conditions: Mapping[str, Tensor] | None = None) -> Any:
        """A state that already holds ``samples``. Sampling from it completes them.

        Raises:
            NextscaleError: these samples cannot be completed, or not under these conditions.
        """


class MixesCodes(Capability):
    """A state can absorb mixtures of codes (smooth Gumbel decoding)."""

    missing = "does not support smooth sampling: its state takes codes, not mixtures of codes"

    @abstractmethod
    def update_soft(self, state: Any, k: int, weights: Tensor) -> Any:
        """Like ``update``, with a mixture of codes: ``weights`` is B L_k V and sums to 1 over V."""


class MeetsRequirements(Capability):
    """Unfinished samples can be checked for properties, so that sampling can redraw those that lose one."""

    missing = "has no requirements to check"

    requirements: tuple[str, ...]
    """Names of the properties."""

    @abstractmethod
    def satisfies(self, requirement: str, state: Any) -> Tensor:
        """B booleans: whether each sample has the property so far. True while that cannot be decided."""


class DecodesPieces(Capability):
    """Long samples can be decoded piece by piece along the first axis, in memory that does not grow with length."""

    missing = "cannot decode piece by piece"

    @abstractmethod
    def decode_pieces(self, state: Any, places: int) -> Iterator[Any]:
        """Pieces of the decoded samples, ``places`` latent places each. Joined, they equal the result of ``decode``."""


class TakesSizes(Capability):
    """Samples may differ in size from the training data; each size has its own schedule."""

    missing = "takes samples of one size only"

    @abstractmethod
    def schedules_nearby(self) -> list[Schedule]:
        """Schedules of samples somewhat smaller, larger or stretched, for tests to choose from."""

    @abstractmethod
    def pyramids(self, schedule: Schedule) -> list[Schedule]:
        """The pyramids that make up a schedule, each of which grows to its own finest grid."""


class AddsParts(Capability):
    """The state is a sum to which each scale adds a part (residual quantization), and stage 1 trains on that sum.

    If ``adds`` is false, each part takes the place of the sum instead: a scale describes the sample anew.
    """

    missing = "does not add up parts: its state is not a sum"

    @property
    def adds(self) -> bool:
        return True

    @abstractmethod
    def part_of(self, tokens: Tensor, k: int, schedule: Schedule) -> Tensor:
        """B C *latent: the part that the tokens B L_k of scale k add to the sum."""

    @abstractmethod
    def sum_of(self, state: Any) -> Tensor:
        """B C *latent: the sum so far."""

    @abstractmethod
    def reconstruct(self, samples: Any) -> tuple[Any, TokenPyramid]:
        """Reconstructions of ``samples``, with gradients, as stage 1 computes them; and their tokens."""


class Requantizes(Capability):
    """Tokens can be chosen anew after wrong ones, so that a transformer learns to correct its own mistakes."""

    missing = "cannot choose tokens anew after wrong ones"

    @abstractmethod
    def encode_after(
        self, samples: Any, replaced: Callable[[Tensor, int], Tensor]
    ) -> tuple[TokenPyramid, TokenPyramid]:
        """Like ``encode``, but the state absorbs tokens of which some are wrong.

        ``replaced(tokens, k)`` returns the tokens (B L_k) that the state absorbs at scale k in place of ``tokens``, the
        ones that were chosen for it.

        Returns:
            the tokens that were chosen at each scale, given what the state had absorbed at coarser ones; and those that
            it absorbed.
        """
