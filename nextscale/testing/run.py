"""The contract of an installed modality without pytest, on the tiny configuration that it names itself.

``Modality.contract`` gives the configuration. Needs hypothesis (extra: ``test``), which draws the examples.
"""

from __future__ import annotations

import inspect
import traceback
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from unittest import SkipTest

from nextscale import plugins
from nextscale.errors import NextscaleError
from nextscale.modality import ContractCase, Modality
from nextscale.testing.invariants import INVARIANTS, ContractError

if TYPE_CHECKING:
    from nextscale.testing.modality_contract import ModalityContract


@dataclass(frozen=True)
class Result:
    """One invariant of one modality.

    Attributes:
        invariant: as messages name it: ``invariant 2 (causality)``.
        what_breaks: what goes wrong in practice where it does not hold.
        passed: whether it holds. True where it is skipped.
        message: what was found, or why it was skipped; empty if it holds.
        likely_cause: what to look at first; empty if it holds.
        example: the drawn example that fails; empty if none was drawn.
        skipped: whether the modality declares nothing that this could check.
    """

    invariant: str
    what_breaks: str
    passed: bool
    message: str = ""
    likely_cause: str = ""
    example: str = ""
    skipped: bool = False


def check_modality(name: str, examples: int = 15) -> list[Result]:
    """Run every check of the contract, each on ``examples`` drawn examples; a failure does not stop the others.

    Raises:
        PluginError: no such modality, or its plugin is broken.
        NextscaleError: it names no tiny configuration, or hypothesis is missing.
    """
    if find_spec("hypothesis") is None:
        raise NextscaleError("the contract needs hypothesis: pip install 'nextscale[test]'")
    modality = plugins.modality(name)
    with TemporaryDirectory(prefix="nextscale-contract-") as folder:
        data = Path(folder) / "data"
        data.mkdir()
        case = modality.contract(data)
        if case is None:
            raise NextscaleError(
                f"modality {name} names no tiny configuration: let {type(modality).__name__}.contract return a "
                "ContractCase (nextscale.plugin) of its data and tokenizer sections"
            )
        kind = _contract(modality, case, examples)
        results = []
        for number, key in enumerate(key for key in INVARIANTS if hasattr(kind, f"test_{key}")):
            place = Path(folder) / str(number)
            place.mkdir()
            results.append(_run(kind(), key, place))
        return results


def _contract(modality: Modality, case: ContractCase, number: int) -> type[ModalityContract]:
    import torch

    from nextscale.testing.helpers import randomize
    from nextscale.testing.modality_contract import ModalityContract
    from nextscale.tokens.tokenizer import MultiscaleTokenizer

    class Contract(ModalityContract):
        examples = few_examples = number
        repeatable = True  # and nothing is written beside the user's files
        lossless = case.lossless

        def build_modality(self) -> Modality:
            return modality

        def data_config(self) -> Any:
            return case.data

        def tokenizer_config(self) -> Any:
            return case.tokenizer

        def evaluation_options(self) -> Any:
            return super().evaluation_options() if case.evaluation is None else case.evaluation

        def build_tokenizers(self) -> list[MultiscaleTokenizer]:
            """With weights under which everything matters; fresh ones are nearly zero in places."""
            built = super().build_tokenizers()
            for tokenizer in built:
                randomize(tokenizer, 0)
                if tokenizer.codebook is not None:  # a buffer where moving averages train it
                    generator = torch.Generator().manual_seed(0)
                    tokenizer.codebook.detach().normal_(generator=generator)
            return built

    return Contract


def _run(contract: ModalityContract, key: str, folder: Path) -> Result:
    invariant = INVARIANTS[key]
    test = getattr(contract, f"test_{key}")
    arguments = {"tmp_path": folder} if "tmp_path" in inspect.signature(test).parameters else {}
    told = (str(invariant), invariant.breaks)
    try:
        test(**arguments)
    except SkipTest as skip:
        return Result(*told, passed=True, message=str(skip), skipped=True)
    except ContractError as error:
        return Result(*told, False, error.message, error.likely_cause, _example(error))
    except Exception as error:
        # Outside a check: while data are opened or the tokenizer is built.
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{frame.name} ({Path(frame.filename).name}:{frame.lineno})"
        message = f"{invariant}: {where} raises {type(error).__name__}: {error}"
        return Result(*told, False, message, invariant.cause, _example(error))
    return Result(*told, passed=True)


def _example(error: BaseException) -> str:
    """What hypothesis notes about the example that fails."""
    return "\n".join(getattr(error, "__notes__", []))
