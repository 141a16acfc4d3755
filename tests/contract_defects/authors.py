"""Defects that authors of tokenizers made, or nearly: encoding, memory, batch mates, places, and editing by place."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import base
import torch
from base import of
from torch import Tensor

from nextscale.grid import GridTokenizer
from nextscale.tokens.inputs import ScaleInput
from nextscale.tokens.pyramid import TokenPyramid


class RandomEncoding(GridTokenizer):
    def features(self, samples: Tensor) -> Tensor:
        found = super().features(samples)
        return found + torch.randn_like(found)


class DropsOut(GridTokenizer):
    """Dropout that evaluation mode does not turn off."""

    def features(self, samples: Tensor) -> Tensor:
        return torch.nn.functional.dropout(super().features(samples), 0.5)


class AlwaysZero(GridTokenizer):
    def encode(self, samples: Tensor) -> TokenPyramid:
        pyramid = super().encode(samples)
        return TokenPyramid(torch.zeros_like(pyramid.tokens), pyramid.schedule)


class ConstantEncoder(GridTokenizer):
    def features(self, samples: Tensor) -> Tensor:
        return super().features(torch.ones_like(samples))


class ScalesByBatch(GridTokenizer):
    """Normalises by the largest value of the batch."""

    def features(self, samples: Tensor) -> Tensor:
        return super().features(samples / samples.abs().max() * len(samples))


class DecodesByBatch(GridTokenizer):
    def decode(self, state: Any) -> Tensor:
        decoded = super().decode(state)
        return decoded - decoded.mean(0)


class InputByBatch(GridTokenizer):
    def scale_input(self, state: Any, k: int) -> ScaleInput:
        inputs = super().scale_input(state, k)
        return (
            inputs if inputs.features is None else replace(inputs, features=inputs.features - inputs.features.mean(0))
        )


class PeeksAtSamples(GridTokenizer):
    """The input holds what was encoded last."""

    last = 0.0

    def encode(self, samples: Tensor) -> TokenPyramid:
        self.last = float(samples.mean())
        return super().encode(samples)

    def scale_input(self, state: Any, k: int) -> ScaleInput:
        inputs = super().scale_input(state, k)
        return inputs if inputs.features is None else replace(inputs, features=inputs.features + self.last)


class DecodesTheLast(GridTokenizer):
    last = 0.0

    def encode(self, samples: Tensor) -> TokenPyramid:
        self.last = float(samples.std())
        return super().encode(samples)

    def decode(self, state: Any) -> Tensor:
        return super().decode(state) * self.last


class ZeroFeatures(GridTokenizer):
    def scale_input(self, state: Any, k: int) -> ScaleInput:
        inputs = super().scale_input(state, k)
        return inputs if inputs.features is None else replace(inputs, features=torch.zeros_like(inputs.features))


class OneScaleIsBlank(GridTokenizer):
    """The last scale sees nothing."""

    def scale_input(self, state: Any, k: int) -> ScaleInput:
        inputs = super().scale_input(state, k)
        return replace(inputs, features=0 * inputs.features) if k == 2 and inputs.features is not None else inputs


class Turned(GridTokenizer):
    """Features are laid out column by column."""

    def turn(self, grid: Tensor) -> Tensor:
        return grid.mT

    def scale_input(self, state: Any, k: int) -> ScaleInput:
        inputs = super().scale_input(state, k)
        if inputs.features is None:
            return inputs
        grid = inputs.features.mT.unflatten(2, state.schedule.scales[k].shape)
        return replace(inputs, features=self.turn(grid).flatten(2).mT)


class Mirrored(Turned):
    def turn(self, grid: Tensor) -> Tensor:
        return grid.flip(-1)


class UpsideDown(Turned):
    def turn(self, grid: Tensor) -> Tensor:
        return grid.flip(-2)


class Pooled(Turned):
    """Every place sees the mean of all places."""

    def turn(self, grid: Tensor) -> Tensor:
        return grid.mean((2, 3), keepdim=True).expand_as(grid)


class Shifted(GridTokenizer):
    def at(self, places: Tensor) -> Tensor:
        return places - 0.5

    def scale_input(self, state: Any, k: int) -> ScaleInput:
        inputs = super().scale_input(state, k)
        return replace(inputs, coordinates=self.at(inputs.coordinates))


class SwappedAxes(Shifted):
    def at(self, places: Tensor) -> Tensor:
        return places.flip(-1)


class OwnUnits(Shifted):
    """Coordinates from 0 to 1."""

    def at(self, places: Tensor) -> Tensor:
        return places / 3


class OneCoordinate(Shifted):
    def at(self, places: Tensor) -> Tensor:
        return places.mean(0, keepdim=True)


class WrongScale(GridTokenizer):
    def scale_input(self, state: Any, k: int) -> ScaleInput:
        inputs = super().scale_input(state, k)
        return replace(inputs, scale_ids=inputs.scale_ids + 1)


class KeepsMirrored(GridTokenizer):
    def keep_tokens(self, keep: Tensor) -> Tensor:
        return super().keep_tokens(keep.flip(-1))


class KeepsTransposed(GridTokenizer):
    def keep_tokens(self, keep: Tensor) -> Tensor:
        return super().keep_tokens(keep.mT)


class AllOrNothing(GridTokenizer):
    def keep_tokens(self, keep: Tensor) -> Tensor:
        return super().keep_tokens(keep.flatten(1).any(1)[:, None, None].expand_as(keep))


class KeepsTheOpposite(GridTokenizer):
    def keep_tokens(self, keep: Tensor) -> Tensor:
        return ~super().keep_tokens(keep)


class KeepsForAll(GridTokenizer):
    """What one sample keeps, all keep."""

    def keep_tokens(self, keep: Tensor) -> Tensor:
        return super().keep_tokens(keep.any(0, keepdim=True).expand_as(keep))


class SpliceDoesNothing(GridTokenizer):
    def splice(self, state: Any, known: Any, keep: Tensor) -> Any:
        return state


class SpliceTakesAll(GridTokenizer):
    def splice(self, state: Any, known: Any, keep: Tensor) -> Any:
        return known


class SplicesMirrored(GridTokenizer):
    def splice(self, state: Any, known: Any, keep: Tensor) -> Any:
        places = keep[:, state.schedule.span(2)].unflatten(1, (3, 3))[:, None].flip(-1)
        return replace(state, f_hat=torch.where(places, known.f_hat, state.f_hat))


class UnquantizedMirrored(GridTokenizer):
    def unquantized(self, state: Any, samples: Tensor, keep: Tensor) -> Any:
        return super().unquantized(state, samples.flip(-1), keep)


class UnquantizedOfAnother(GridTokenizer):
    def unquantized(self, state: Any, samples: Tensor, keep: Tensor) -> Any:
        return super().unquantized(state, samples.roll(1, 0), keep)


class UnquantizedZero(GridTokenizer):
    def unquantized(self, state: Any, samples: Tensor, keep: Tensor) -> Any:
        return super().unquantized(state, samples * 0, keep)


class UnquantizedOutside(GridTokenizer):
    def unquantized(self, state: Any, samples: Tensor, keep: Tensor) -> Any:
        return super().unquantized(state, samples, ~keep)


class CutsAtTheEnds(GridTokenizer):
    def cuts(self, length: int) -> range:
        return range(0, length + 1, 2)


class CutsBeyond(GridTokenizer):
    def cuts(self, length: int) -> range:
        return range(2, length + 4, 2)


class SoftWithoutPhi(GridTokenizer):
    def update_soft(self, state: Any, k: int, weights: Tensor) -> Any:
        vectors = (weights @ self.pyramid.quantizer.codebook).mT.unflatten(2, state.schedule.scales[k].shape)
        return replace(state, f_hat=state.f_hat + torch.nn.functional.interpolate(vectors, state.f_hat.shape[2:]))


class SoftOfAnother(GridTokenizer):
    def update_soft(self, state: Any, k: int, weights: Tensor) -> Any:
        return super().update_soft(state, k, weights.roll(1, -1))


class CannotMix(GridTokenizer):
    def update_soft(self, state: Any, k: int, weights: Tensor) -> Any:
        raise NotImplementedError("later")


DEFECTS = [
    of(RandomEncoding, base.encoding, "invariant 13 .*encoded again"),
    of(DropsOut, base.encoding, "invariant 13 .*encoded again"),
    of(AlwaysZero, base.information, "invariant 16 .*all have the same tokens"),
    of(ConstantEncoder, base.information, "invariant 16 .*all have the same tokens"),
    of(ScalesByBatch, base.batch_mates, "(?s)invariant 15 .*tokens.*encode gives other tokens in a batch than alone"),
    of(DecodesByBatch, base.batch_mates, "(?s)invariant 15 .*decoded sample.*decode gives another sample in a batch"),
    of(InputByBatch, base.batch_mates, "(?s)invariant 15 .*scale [12], input features.*scale_input gives other inputs"),
    of(PeeksAtSamples, base.memory, "invariant 14 .*scale 1, sample 0, input, after other samples were encoded"),
    of(DecodesTheLast, base.memory, "invariant 14 .*decoded sample, after other samples were encoded"),
    of(ZeroFeatures, base.inputs_matter, "invariant 16 .*scale 0: other tokens change no input"),
    of(OneScaleIsBlank, base.inputs_matter, "invariant 16 .*scale 1: other tokens change no input"),
    of(Turned, base.locality, "(?s)invariant 17 .*scale 2.*swapped with those of another axis"),
    of(Mirrored, base.locality, "(?s)invariant 17 .*scale 2.*mirrored along axis 1"),
    of(UpsideDown, base.locality, "(?s)invariant 17 .*scale 2.*mirrored along axis 0"),
    of(Pooled, base.locality, "(?s)invariant 17 .*scale 2.*mixed over all places"),
    of(Shifted, base.coordinates, r"(?s)invariant 17 .*scale 0, coordinates.*shifted by \[-0.5, -0.5\]"),
    of(SwappedAxes, base.coordinates, "(?s)invariant 17 .*scale 1, coordinates.*axes swapped"),
    of(OwnUnits, base.coordinates, "(?s)invariant 17 .*coordinates"),
    of(OneCoordinate, base.coordinates, "invariant 17 .*scale 1, .*coordinates, 4 tokens"),
    of(WrongScale, base.coordinates, "invariant 17 .*scale 0, scale_ids"),
    of(KeepsMirrored, base.keep_tokens, "(?s)invariant 18 .*axis 1.*mirrored"),
    of(KeepsTransposed, base.keep_tokens, "(?s)invariant 18 .*axis 0.*swapped with another axis"),
    of(AllOrNothing, base.keep_tokens, "(?s)invariant 18 .*axis 0.*all or nothing"),
    of(KeepsTheOpposite, base.keep_tokens, "(?s)invariant 18 .*a larger mask keeps fewer.*opposite"),
    of(KeepsForAll, base.keep_tokens, "(?s)invariant 18 .*kept tokens of sample.*whole batch"),
    of(SpliceDoesNothing, base.splice, "(?s)invariant 18 .*everything kept.*splice does nothing"),
    of(SpliceTakesAll, base.splice, "(?s)invariant 18 .*nothing kept.*takes known where nothing is kept"),
    of(SplicesMirrored, base.splice, "(?s)invariant 18 .*axis 1.*mirrors or swaps"),
    of(
        UnquantizedMirrored,
        base.unquantized,
        "(?s)invariant 18 .*everything kept.*mirrors samples along axis 1",
    ),
    of(UnquantizedOfAnother, base.unquantized, "(?s)invariant 18 .*everything kept.*of the same sample"),
    of(UnquantizedZero, base.unquantized, "invariant 18 .*everything kept"),
    of(UnquantizedOutside, base.unquantized, "(?s)invariant 18 .*nothing kept.*opposite"),
    of(CutsAtTheEnds, base.cuts, r"invariant 18 \(cuts\): a sample of 1 places may be cut at \[0\]"),
    of(CutsBeyond, base.cuts, r"invariant 18 \(cuts\): a sample of 1 places may be cut at \[2, 4\]"),
    of(SoftWithoutPhi, base.soft, "invariant 19 .*scale 0, sample 0, state"),
    of(SoftOfAnother, base.soft, "invariant 19 .*scale 0, sample 0, state"),
    of(CannotMix, base.soft, "invariant 19 .*update_soft .*raises NotImplementedError: later"),
]
