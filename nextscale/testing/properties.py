"""Base classes that bring property tests to every subclass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st


class PropertyTests:
    """Turns every method ``property_x(self, data)`` into a hypothesis test ``test_x``, anew for each subclass.

    One ``@given`` shared by two subclasses fails hypothesis's ``differing_executors`` health check. To change or
    leave out a test, override its property.

    A failure is reported as it was found. Shrinking is left out: it takes up to five minutes per test, runs the plugin
    hundreds of times, and gains little, because examples are tiny and the simplest one is tried first.
    """

    examples: ClassVar[int] = 50
    """Number of examples for each of invariants 1 to 4."""
    few_examples: ClassVar[int] = 15
    """Number of examples for each other property."""
    thorough: ClassVar[frozenset[str]] = frozenset(
        {"schedule", "causality", "train_equals_sample", "cached_equals_full"}
    )

    repeatable: ClassVar[bool] = False
    """Whether every run draws the same examples, and remembers none of them on disk."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for attribute in dir(cls):
            name = attribute.removeprefix("property_")
            if name != attribute and f"test_{name}" not in cls.__dict__:
                number = cls.examples if name in cls.thorough else cls.few_examples
                setattr(cls, f"test_{name}", _fresh(getattr(cls, attribute), f"test_{name}", cls, number))


@contextmanager
def one_thread() -> Iterator[None]:
    """Tensors of the contract are tiny: on a busy machine, threads would wait for one another ten times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _fresh(
    body: Callable[[Any, st.DataObject], None], name: str, cls: type[PropertyTests], examples: int
) -> Callable[..., None]:
    def test(self: Any, data: st.DataObject) -> None:
        with torch.no_grad(), one_thread():
            body(self, data)

    test.__doc__ = body.__doc__
    quick = settings(
        max_examples=examples,
        deadline=None,
        **({"derandomize": True, "database": None} if cls.repeatable else {}),
        suppress_health_check=[HealthCheck.too_slow],
        phases=(Phase.explicit, Phase.reuse, Phase.generate),
    )
    fresh = quick(given(data=st.data())(test))
    fresh.__name__, fresh.__qualname__, fresh.__module__ = name, f"{cls.__qualname__}.{name}", cls.__module__
    return fresh
