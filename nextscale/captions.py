"""What is written beside samples in pictures: the scale after which they were decoded, and the class they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from nextscale.conditioning import ConditionSpec
from nextscale.tokens.tokenizer import MultiscaleTokenizer

SEPARATOR = " · "
"""Between the parts of a caption, where a line may break."""
ORIGINAL = "original"
MANY, FEW = 32, 16
"""A film strip shows every scale up to ``MANY``; of more, only ``FEW``."""
LONGEST = 40
"""Characters of a class name that a caption shows."""


def shown_scales(tokenizer: MultiscaleTokenizer, number: int) -> list[int]:
    """After which of ``number`` scales a film strip shows samples: all of them or, where it could not be read, ``FEW``
    that are spread evenly and end with the last."""
    if tokenizer.adaptive or number <= MANY:
        return list(range(number))
    return [(i + 1) * number // FEW - 1 for i in range(FEW)]


def scale_captions(tokenizer: MultiscaleTokenizer, number: int) -> list[str]:
    """A caption for each of ``number`` samples decoded after the ``shown_scales``: the scale's number, its grid if it
    has more than one axis, and how many tokens it has; or how many tokens are known, if they are drawn one by one.
    Where scales differ between samples, the number only."""
    schedule = tokenizer.schedule()
    shown = shown_scales(tokenizer, len(schedule))
    if tokenizer.adaptive or len(shown) != number:
        return [f"scale {k}" for k in range(number)]
    if len(schedule) > 1 and len(schedule) == schedule.length:
        return [f"{k + 1:,} token{'s' if k else ''}" for k in shown]
    captions = []
    for k in shown:
        scale = schedule.scales[k]
        grid = ["x".join(map(str, scale.shape))] if len(scale.shape) > 1 else []
        tokens = f"{scale.length:,} token{'s' if scale.length > 1 else ''}"
        captions.append(SEPARATOR.join([f"scale {k}", *grid, tokens]))
    return captions


def class_captions(specs: Sequence[ConditionSpec], conditions: Mapping[str, Tensor]) -> list[str] | None:
    """The class names of each sample; None where no class was asked for."""
    named = [spec for spec in specs if spec.kind == "class" and spec.name in conditions]
    if not named:
        return None
    columns = [[_class_name(spec, index) for index in conditions[spec.name].tolist()] for spec in named]
    return [SEPARATOR.join(parts) for parts in zip(*columns, strict=True)]


def _class_name(spec: ConditionSpec, index: int) -> str:
    name = drawable(spec.names[index]) if index < len(spec.names) else f"{spec.name} {index}"
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def drawable(text: str) -> str:
    """``text`` as one line that a font can draw. Names of folders may hold line breaks, and bytes that are no text."""
    return " ".join(text.encode("utf-8", "replace").decode().split())
