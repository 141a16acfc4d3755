"""Defects of modalities, their settings and their entry modules, and the check that must find each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from base import Defect
from pydantic import BaseModel
from torch import Tensor
from toy import Error, Pictures, Toy, plain_tokenizer

from nextscale import plugins
from nextscale.config.sections import NoOptions
from nextscale.data import Batch, DataSplits
from nextscale.grid import GridTokenizer
from nextscale.modality import EvaluationContext, ModalityConfig, ModalitySpec, Proposal
from nextscale.objective import Objective
from nextscale.testing import device_checks, modality_checks, output_checks, plugin_checks
from nextscale.testing.second_device import second_device
from nextscale.testing.tiny import grid_tokenizer
from nextscale.tokens.tokenizer import MultiscaleTokenizer

# One run of each check.


def data(toy: Toy, folder: Path) -> None:
    modality_checks.check_data(toy.open_data(None))


def augmentation(toy: Toy, folder: Path) -> None:
    modality_checks.check_augmentation(toy.open_data(None).train, toy, [0, 3, 3, 5], 0)


def build(toy: Toy, folder: Path) -> None:
    modality_checks.check_build(toy, NoOptions(), toy.open_data(None))


def objectives(toy: Toy, folder: Path) -> None:
    modality_checks.check_objectives(toy, None, toy.open_data(None))


def writers(toy: Toy, folder: Path) -> None:
    steps = [torch.zeros(3, 2, 6, 6), torch.ones(3, 2, 6, 6)]
    output_checks.check_writers(toy, steps, 3, folder, toy.describe())


def parts(toy: Toy, folder: Path) -> None:
    output_checks.check_parts(toy, torch.ones(1, 2, 6, 6), folder / "parts", toy.describe())


def reader(toy: Toy, folder: Path) -> None:
    file = Toy().write_samples(torch.ones(1, 2, 6, 6), folder, {})[0]
    output_checks.check_reader(toy, grid_tokenizer((6, 6)), file, file)


def evaluation(toy: Toy, folder: Path) -> None:
    model: Any = None  # the toy measures nothing that needs one
    output_checks.check_evaluation(toy, grid_tokenizer((6, 6)), model, toy.open_data(None), NoOptions())


def device(toy: Toy, folder: Path) -> None:
    with second_device() as there:
        device_checks.check_device(toy, NoOptions(), toy.open_data(None), NoOptions(), there, folder)


ALL: tuple[Callable[[Toy, Path], None], ...] = (
    *(data, augmentation, build, objectives, writers, parts, reader, evaluation, device),
)


def of(kind: type[Toy], check: Callable[[Toy, Path], None], message: str) -> Defect:
    return Defect(f"{kind.__name__}-{check.__name__}", lambda folder, patch: check(kind(), folder), message)


# Defects.


class DescribesTuples(Toy):
    def describe(self) -> dict[str, Any]:
        return {"shape": (6, 6)}


class DescribesNumpy(Toy):
    def describe(self) -> dict[str, Any]:
        return {"shape": [6, 6], "mean": np.float32(0.5)}


class NoLabels(Toy):
    class source(Pictures):
        def batch(self, indices: np.ndarray, seeds: np.ndarray | None) -> Batch:
            return Batch(super().batch(indices, seeds).samples, {})


class LabelsTooLarge(Toy):
    class source(Pictures):
        def batch(self, indices: np.ndarray, seeds: np.ndarray | None) -> Batch:
            return Batch(super().batch(indices, seeds).samples, {"label": torch.full((len(indices),), 3)})


class AlwaysAugments(Toy):
    class source(Pictures):
        def batch(self, indices: np.ndarray, seeds: np.ndarray | None) -> Batch:
            found = super().batch(indices, seeds)
            return Batch(found.samples + torch.rand(1), found.conditions)


class OneSeedPerBatch(Toy):
    class source(Pictures):
        def noise(self, seeds: np.ndarray) -> Tensor:
            drawn = np.random.default_rng(int(seeds[0])).standard_normal((len(seeds), 2, 6, 6))
            return torch.from_numpy(drawn).float()


class ReadsValues(Toy):
    """``.item()`` while building: fine in memory, not on the meta device."""

    def build_tokenizer(self, config: Any, description: dict[str, Any]) -> MultiscaleTokenizer:
        tokenizer = plain_tokenizer(description["shape"])
        tokenizer.largest = tokenizer.codebook.abs().max().item()
        return tokenizer


class BuildsAnew(Toy):
    """Each tokenizer has one code more."""

    number = 0

    def build_tokenizer(self, config: Any, description: dict[str, Any]) -> MultiscaleTokenizer:
        tokenizer = plain_tokenizer(description["shape"])
        type(self).number += 1
        tokenizer.extra = torch.nn.Parameter(torch.zeros(self.number))
        return tokenizer


class TrainsNothing(Toy):
    def tokenizer_objectives(self, tokenizer: MultiscaleTokenizer, config: Any) -> list[Objective]:
        return []


class DetachedLoss(Toy):
    def tokenizer_objectives(self, tokenizer: MultiscaleTokenizer, config: Any) -> list[Objective]:
        class Detached(Error):
            def forward(self, batch: Batch, step: int, draws: Any) -> tuple[Tensor, dict[str, Tensor]]:
                loss, scalars = super().forward(batch, step, draws)
                return loss.detach(), scalars

        return [Detached(tokenizer)]


class OverwritesOneFile(Toy):
    def write_samples(self, samples: Tensor, folder: Path, *rest: Any, **more: Any) -> list[Path]:
        return [super(OverwritesOneFile, self).write_samples(one[None], folder, {})[0] for one in samples]


class NumbersFromNought(Toy):
    def write_samples(self, samples: Tensor, folder: Path, *rest: Any, **more: Any) -> list[Path]:
        return super().write_samples(samples, folder, {})


class TakesOneBatch(Toy):
    def write_archives(self, batches: Any, folder: Path, description: Mapping[str, Any]) -> list[Path]:
        return self.write_samples(next(batches).samples, folder, description)


class NamesWhatIsNotThere(Toy):
    def write_film(
        self, steps: list[Tensor], path: Path, description: Mapping[str, Any], captions: Sequence[str] | None = None
    ) -> Path:
        return path.with_suffix(".png")


class PartsFail(Toy):
    def write_parts(self, parts: Any, path: Path, description: Mapping[str, Any]) -> Path:
        return self.write_samples(torch.cat(list(parts)), path, description)[2]


class ReaderRaises(Toy):
    def read_sample(self, path: Path, tokenizer: Any, mask: Path | None = None) -> tuple[Tensor, Tensor | None]:
        raise KeyError(path.suffix)


class ReadsNoBatch(Toy):
    def read_sample(self, path: Path, tokenizer: Any, mask: Path | None = None) -> tuple[Tensor, Tensor | None]:
        sample, marked = super().read_sample(path, tokenizer, mask)
        return sample[0], marked


class MaskOfNumbers(Toy):
    def read_sample(self, path: Path, tokenizer: Any, mask: Path | None = None) -> tuple[Tensor, Tensor | None]:
        sample, marked = super().read_sample(path, tokenizer, mask)
        return sample, None if marked is None else marked.float()


class EvaluationRaises(Toy):
    def evaluate_tokenizer(self, tokenizer: Any, data: Any, options: Any, context: Any) -> dict[str, Any]:
        return {"psnr": options.limit}


class ModelEvaluationRaises(Toy):
    def evaluate_model(self, model: Any, data: Any, options: Any, context: Any) -> dict[str, Any]:
        raise ZeroDivisionError("no held-out samples")


class ReturnsTensors(Toy):
    def evaluate_samples(
        self, samples: Any, conditions: Any, data: DataSplits, options: Any, context: EvaluationContext
    ) -> dict[str, Any]:
        return {"mean": samples.mean()}


class StaysOnTheCPU(Toy):
    """A constant that is no buffer."""

    def build_tokenizer(self, config: Any, description: dict[str, Any]) -> MultiscaleTokenizer:
        class Shifted(GridTokenizer):
            mean = torch.zeros(6, 6)

            def encode(self, samples: Tensor) -> Any:
                return super().encode(samples - self.mean)

        tokenizer = super().build_tokenizer(config, description)
        tokenizer.__class__ = Shifted
        return tokenizer


class ForgetsTheDevice(Toy):
    def evaluate_samples(
        self, samples: Any, conditions: Any, data: DataSplits, options: Any, context: EvaluationContext
    ) -> dict[str, Any]:
        return {"mean": float((samples - torch.ones(6, 6, device=context.device)).mean())}


class WritesFromTheDevice(Toy):
    def write_film(self, steps: list[Tensor], path: Path, *rest: Any, **more: Any) -> Path:
        np.save(path.with_suffix(".npy"), torch.cat(steps).numpy())
        return path.with_suffix(".npy")


class Lax(BaseModel):
    """Pydantic's default: unknown keys are ignored."""


class Asks(NoOptions):
    limit: int


def sections(section: str, model: type[BaseModel]) -> Callable[[Path, Any], None]:
    parts: dict[str, Any] = {"data": NoOptions, "tokenizer": NoOptions, "evaluation": NoOptions, section: model}
    return lambda folder, patch: plugin_checks.check_options(ModalityConfig(**parts))


def presets(text: str, default: str = "small") -> Callable[[Path, Any], None]:
    """An installed modality with one preset, small.yaml."""

    def run(folder: Path, patch: Any) -> None:
        (folder / "small.yaml").write_text(text)
        spec = ModalitySpec("toy", "a toy", "modalities:CONFIG", "modalities:Toy", folder, default)
        found = plugins.Plugins({"toy": plugins.ModalityPlugin(spec, "toy", "1")})
        patch.setattr("nextscale.config.run.discover", lambda: found)
        patch.setattr("nextscale.plugins.implementations.discover", lambda: found)
        plugin_checks.check_presets(spec)

    return run


def proposals(*found: Proposal) -> Callable[[Path, Any], None]:
    """A modality like the built-in one for images, that proposes ``found``."""

    def run(folder: Path, patch: Any) -> None:
        modality = plugins.modality("image")
        patch.setattr(type(modality), "propose", lambda self, data: list(found))
        data = modality.open_data(plugins.modality_config("image").data())
        plugin_checks.check_proposals(modality, data)

    return run


FITS = {"tokenizer": {"scales": [1, 2], "multipliers": [1, 2]}}
CONFIG = ModalityConfig(NoOptions, NoOptions, NoOptions)


def entry(text: str) -> Callable[[Path, Any], None]:
    def run(folder: Path, patch: Any) -> None:
        (folder / "toy_entry.py").write_text(text)
        patch.setattr(sys, "path", [str(folder), *sys.path])
        plugin_checks.check_entry(["toy_entry"])

    return run


DEFECTS = [
    of(DescribesTuples, data, "(?s)invariant 21 .*becomes .* in JSON.*tuples become lists"),
    of(DescribesNumpy, data, "invariant 21 .*cannot be stored as JSON.*float32"),
    of(NoLabels, data, r"invariant 21 .*train batches have the conditions \[\], declared are \['label'\]"),
    of(LabelsTooLarge, data, "invariant 21 .*label"),
    of(AlwaysAugments, data, "(?s)invariant 21 .*train samples read again.*although seeds is None"),
    of(OneSeedPerBatch, augmentation, "invariant 21 .*sample 1, samples read together"),
    of(ReadsValues, build, r"(?s)invariant 22 .*build_tokenizer .*raises RuntimeError.*no \.item\(\)"),
    of(BuildsAnew, build, "invariant 22 .*weights differ when built again: extra"),
    of(TrainsNothing, objectives, "invariant 23 .*0 objectives for a tokenizer with weights"),
    of(DetachedLoss, objectives, "invariant 23 .*tokenizer: the loss has no gradient"),
    of(OverwritesOneFile, writers, "invariant 24 .*1 different files for 3 samples"),
    of(NumbersFromNought, writers, "invariant 24 .*written as two batches, files are called .*'0.npy', '0.npy'"),
    of(TakesOneBatch, writers, "invariant 24 .*write_archives does not take all batches"),
    of(NamesWhatIsNotThere, writers, "invariant 24 .*write_film returns .*film.png, but there is no such file"),
    of(PartsFail, parts, "invariant 24 .*write_parts .*raises"),
    of(ReaderRaises, reader, "invariant 24 .*read_sample .*raises KeyError"),
    of(ReadsNoBatch, reader, "invariant 24 "),
    of(MaskOfNumbers, reader, "invariant 24 .*the mask is .*not booleans"),
    of(EvaluationRaises, evaluation, "invariant 25 .*evaluate_tokenizer .*raises AttributeError"),
    of(ModelEvaluationRaises, evaluation, "invariant 25 .*evaluate_model .*raises ZeroDivisionError"),
    of(ReturnsTensors, evaluation, "(?s)invariant 25 .*evaluate_samples returns what eval.json cannot hold.*float"),
    of(StaysOnTheCPU, device, "invariant 28 .*encode .*raises RuntimeError.*same device"),
    of(ForgetsTheDevice, device, "invariant 28 .*evaluate_samples .*raises RuntimeError.*same device"),
    of(WritesFromTheDevice, device, "invariant 28 .*write_film .*raises TypeError.*cpu"),
    *(
        Defect(f"lax {name} section", sections(name, Lax), "invariant 26 .*Lax takes the unknown setting")
        for name in ("data", "tokenizer", "evaluation")
    ),
    Defect("option without a default", sections("evaluation", Asks), "(?s)invariant 26 .*Asks cannot be made"),
    Defect("preset of the past", presets("tokenizer: {codes: 3}"), "invariant 26 .*codes"),
    Defect("no default preset", presets("{}", "tiny"), "invariant 26 .*default preset 'tiny' is not in"),
    Defect("proposal of the past", proposals(Proposal({"tokenizer": {"code": 3}})), "invariant 26 .*tokenizer.code"),
    Defect("proposal too large", proposals(Proposal({"tokenizer": {"scales": [1, 99]}})), "invariant 26 .*too small"),
    Defect(
        "proposal with steps",
        proposals(Proposal({**FITS, "training": {"transformer": {"steps": 3}}})),
        "invariant 26 .*transformer sets steps",
    ),
    Defect("proposals in no order", proposals(Proposal(FITS, 9), Proposal(FITS, 3)), "invariant 26 .*9 .*then 3"),
    Defect("entry imports torch", entry("import torch"), "invariant 27 .*toy_entry imports torch"),
    Defect("entry fails", entry("import no_such_module"), "invariant 27 .*cannot be imported: ModuleNotFoundError"),
]
