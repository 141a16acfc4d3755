"""A tokenizer written from scratch, without weights. REPLACE it with what coarse to fine means for your data.

Here a sample is L numbers. Scale 0 holds the two highest bits of each, scale 1 the next two, and so on. After scale k,
every number is known to within 4^(K - 1 - k).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nextscale.plugin import Codes, MultiscaleTokenizer, ScaleInput, Schedule, TokenPyramid


@dataclass(frozen=True)
class ExampleState:
    """What is known so far: ``values`` B L. Frozen, because no method may change the state that it is given."""

    values: Tensor
    schedule: Schedule


class ExampleTokenizer(MultiscaleTokenizer):
    """A tokenizer with weights would define networks in ``__init__``; stage 1 then trains them.

    Declare what else it can do by inheriting capabilities: ``EditsPlaces``, ``Completes``, ``MixesCodes``, ...
    """

    feature_dim = 1  # width of ScaleInput.features

    def __init__(self, length: int, num_scales: int) -> None:
        super().__init__()
        self.token_space = Codes(4)  # each token is one of four codes
        self._schedule = Schedule.of([(length,)] * num_scales)

    def schedule(self) -> Schedule:
        return self._schedule

    def encode(self, samples: Tensor) -> TokenPyramid:
        """The tokens of all scales. They must be a function of each sample alone, not of its batch."""
        number = len(self._schedule)
        return TokenPyramid.pack([samples // 4 ** (number - 1 - k) % 4 for k in range(number)], self._schedule)

    def initial_state(
        self, num_samples: int, conditions: Mapping[str, Tensor] | None = None, schedule: Schedule | None = None
    ) -> ExampleState:
        """Nothing is known."""
        schedule = schedule or self._schedule
        return ExampleState(
            torch.zeros(num_samples, schedule.lengths[0], dtype=torch.long, device=self.device), schedule
        )

    def scale_input(self, state: ExampleState, k: int) -> ScaleInput:
        """What the transformer sees when it predicts scale k: the state, and nothing that comes later."""
        known, device = state.values / 4.0 ** len(state.schedule), state.values.device
        return ScaleInput(
            num_samples=len(known),
            features=None if k == 0 else known[..., None],
            coordinates=state.schedule.coordinates(k, device),
            scale_ids=torch.full((known.shape[1],), k, device=device),
            known_scales={k: known.shape[1]},
        )

    def update(self, state: ExampleState, k: int, tokens: Tensor) -> ExampleState:
        """Absorb the tokens of scale k."""
        return replace(state, values=state.values + tokens * 4 ** (len(state.schedule) - 1 - k))

    def decode(self, state: ExampleState) -> Tensor:
        """Samples; valid after any scale, coarse ones first."""
        return state.values
