"""What a tokenizer may be able to do beyond the state machine.

A tokenizer declares an ability by inheriting its class::

    class AudioTokenizer(MultiscaleTokenizer, EditsPlaces, MixesCodes): ...

The core asks with ``ability``, and the contract suite tests what is declared and nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from nextscale.errors import NextscaleError
from nextscale.tokens.pyramid import Schedule, TokenPyramid

T = TypeVar("T", bound="Capability")


class Capability(ABC):
    """Base of all abilities. ``missing`` says, in an error message, what a tokenizer without this ability cannot do."""

    missing: ClassVar[str]


def ability(tokenizer: Any, kind: type[T]) -> T:
    """``tokenizer``, typed as one with this ability.

    Raises:
        NextscaleError: it does not declare the ability.
    """
    if not isinstance(tokenizer, kind):
        raise NextscaleError(f"{type(tokenizer).__name__} {kind.missing}")
    return tokenizer


class EditsPlaces(Capability):
    """Tokens lie somewhere in the sample, so that a mask over a sample (a tensor B C *grid) says which are kept."""

    missing = "cannot edit by place: its tokens have no place in the sample"

    @abstractmethod
    def keep_tokens(self, keep: Tensor) -> Tensor:
        """B L booleans, on the schedule that ``encode`` gives such samples: the tokens that describe what is kept.

        ``keep`` is B *grid booleans, a mask over each sample.
        """

    @abstractmethod
    def splice(self, state: Any, known: Any, keep: Tensor) -> Any:
        """``state`` with what the ``known`` state, of the same scale, says of the places that are kept.

        ``keep`` is B L booleans, as ``keep_tokens`` gives them. With everything kept the result is ``known``, with
        nothing kept it is ``state``.
        """

    @abstractmethod
    def decode_like(self, state: Any, samples: Any) -> Any:
        """``decode``, to the size of ``samples`` where the schedule alone leaves the size open (padded samples)."""

    def cuts(self, length: int) -> range:
        """Where a sample of this ``length`` along its first axis may be cut so that no token belongs to both sides. By
        default anywhere."""
        return range(1, length)

    def unquantized(self, state: Any, samples: Any, keep: Tensor) -> Any:
        """``state`` of ``samples``, but not quantized at the places that ``keep`` keeps (as in ``keep_tokens``).

        By default ``state`` itself.
        """
        return state


class Completes(Capability):
    """A sample may be a part of a larger one, which sampling completes."""

    missing = "cannot complete a part: its samples have no parts"

    @abstractmethod
    def begin_with(self, samples: Any, conditions: Mapping[str, Tensor] | None = None) -> Any:
        """A state that already holds ``samples``, so that what is drawn from it completes them.

        Raises:
            NextscaleError: these parts, or these conditions, cannot be completed.
        """


class MixesCodes(Capability):
    """A state can absorb mixtures of codes (smooth Gumbel decoding)."""

    missing = "has no smooth decoding: its state takes codes, not mixtures of them"

    @abstractmethod
    def update_soft(self, state: Any, k: int, weights: Tensor) -> Any:
        """Like ``update``, with a mixture of codes: ``weights`` is B L_k V and sums to 1 over V."""


class MeetsRequirements(Capability):
    """Properties of a sample so far can be told, and samples that lose one be drawn again."""

    missing = "knows no requirements"

    requirements: tuple[str, ...]
    """Names of the properties."""

    @abstractmethod
    def satisfies(self, requirement: str, state: Any) -> Tensor:
        """B booleans: whether each sample so far has the property. True as long as it cannot be told."""


class DecodesPieces(Capability):
    """Long samples can be decoded piece by piece along the first axis, in memory that does not grow with them."""

    missing = "cannot decode piece by piece"

    @abstractmethod
    def decode_pieces(self, state: Any, places: int) -> Iterator[Any]:
        """Pieces of the decoded samples, ``places`` latent places each; joined they are what ``decode`` gives."""


class TakesSizes(Capability):
    """Samples may differ in size from the training data; each size has a schedule of its own."""

    missing = "takes samples of one size only"

    @abstractmethod
    def schedules_nearby(self) -> list[Schedule]:
        """Schedules of samples somewhat smaller, larger or stretched, for tests to choose from."""

    @abstractmethod
    def pyramids(self, schedule: Schedule) -> list[Schedule]:
        """The pyramids that a schedule consists of, each of which grows to its own finest grid."""


class AddsParts(Capability):
    """The state is a sum, to which each scale adds a part (residual quantization), and stage 1 trains on that sum."""

    missing = "is no sum of parts"

    @abstractmethod
    def part_of(self, tokens: Tensor, k: int, schedule: Schedule) -> Tensor:
        """B C *latent: what the tokens B L_k of scale k add to the sum."""

    @abstractmethod
    def sum_of(self, state: Any) -> Tensor:
        """B C *latent: the sum so far."""

    @abstractmethod
    def reconstruct(self, samples: Any) -> tuple[Any, TokenPyramid]:
        """Reconstructions of ``samples`` as stage 1 computes them, with gradients, and their tokens."""
