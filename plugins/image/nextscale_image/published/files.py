"""Read .pth files without running code from them, and find VAR's tensors in their content."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextscale.plugin import CheckpointError, load_tensors, one_line
from nextscale_image.published.names import State

MARKERS = {"tokenizer": "quantize.embedding.weight", "transformer": "word_embed.weight"}
"""For each of the two models, a tensor name that nothing else has."""


def read_state(path: Path, kind: str) -> State:
    """Read the tensors of VAR's ``tokenizer`` or ``transformer`` from a file, under published names, as stored.

    They may be nested (a training checkpoint keeps them under ``trainer`` and ``vae_local`` or ``var_wo_ddp``), and
    their names may share a prefix (``module.``). They are memory-mapped if the file's format allows it.

    Raises:
        CheckpointError: the file is missing, damaged, refused because it contains code, or has no such model.
    """
    content = _load(path)
    found = {name: _find(content, marker) for name, marker in MARKERS.items()}
    state = found[kind]
    if state is not None:
        _check_storage(state, path)
        return state
    other = next((name for name in MARKERS if found[name] is not None), None)
    hint = f"; it holds VAR's {other}: pass it as --{other}" if other else ""
    raise CheckpointError(f"{path} holds no VAR {kind}: it has no tensor {MARKERS[kind]}{hint}")


def _check_storage(state: State, path: Path) -> None:
    """Refuse tensors that are larger than what the file holds of them: shapes decide how large the models become."""
    for name, tensor in state.items():
        stored = tensor.layout == torch.strided and not tensor.is_meta
        if not stored or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            shape = " x ".join(map(str, tensor.shape))
            raise CheckpointError(f"{path} is refused: {name} has the shape {shape}, but not as many numbers")


def _load(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    if path.suffix == ".safetensors":
        return load_tensors(path)
    damaged = f"{path} is damaged, or torch.save did not write it"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols: failures are reported below
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                if "mmap can only be used" not in str(error):  # the format before torch 1.6
                    raise
                return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL ([\w.]+)|[Uu]nsupported (?:global|class)[: ]+(?:GLOBAL )?([\w.]+)", str(error))
        if code:
            raise CheckpointError(
                f"{path} is refused: it holds more than tensors, and loading it would run {code[1] or code[2]}"
            ) from None
        with path.open("rb") as file:
            if file.read(1) == pickle.PROTO:
                damaged = f"{path} is refused: it is a pickle, which may run code when it is loaded, or it is damaged"
        raise CheckpointError(damaged) from None
    except RuntimeError as error:
        raise CheckpointError(f"{damaged} ({one_line(error).split('. ')[0]})") from None
    except (EOFError, OSError, ValueError, LookupError, AttributeError, TypeError):  # not a pickle at all
        raise CheckpointError(damaged) from None


def _find(content: Any, marker: str) -> State | None:
    """The first mapping that has ``marker`` among its names. A prefix before ``marker`` is removed from all names."""
    for mapping in _mappings(content, depth=4):
        for name, value in mapping.items():
            if isinstance(value, Tensor) and isinstance(name, str) and f".{name}".endswith(f".{marker}"):
                prefix = name[: -len(marker)]
                return {
                    key[len(prefix) :]: tensor
                    for key, tensor in mapping.items()
                    if isinstance(key, str) and key.startswith(prefix) and isinstance(tensor, Tensor)
                }
    return None


def _mappings(content: Any, depth: int) -> Iterator[Mapping]:
    """``content`` and the mappings nested in it, outermost first."""
    level = [content]
    for _ in range(depth):
        level = [value for value in level if isinstance(value, Mapping)]
        yield from level
        level = [value for mapping in level for value in mapping.values()]
