"""What names something is never typed: a class by name, then by index; vectors and counts; settings as typed."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nextscale.conditioning import ConditionSpec, resolve_conditions
from nextscale.errors import NextscaleError
from nextscale_cli.sample import split

COUNT = ConditionSpec(name="size", kind="count", size=20)
VECTOR = ConditionSpec(name="v", kind="vector", size=2)


def label(*names: str, size: int | None = None) -> ConditionSpec:
    return ConditionSpec(name="label", size=size or len(names), names=names)


def resolved(spec: ConditionSpec, value: object, number: int = 1) -> list | None:
    found = resolve_conditions([spec], {spec.name: value}, number)
    return found[spec.name].tolist() if found else None


def refused(spec: ConditionSpec, value: object, number: int = 1) -> str:
    with pytest.raises(NextscaleError) as caught:
        resolve_conditions([spec], {spec.name: value}, number)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def typed(spec: ConditionSpec, text: str, number: int = 1) -> list | None:
    """What the command line makes of ``label=text``."""
    return resolved(spec, split([f"{spec.name}={text}"])[1][spec.name], number)


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)


@settings(deadline=None)
@given(st.lists(names | st.integers(0, 30).map(str), min_size=1, max_size=8, unique=True), st.data())
@example(["null", "all", "None", "", " ", "~", "a,b", "a", "[a]"], None)
@example(["0x1", "1e1", "2024-01-01", "off", "&a", "*a", "#1", "'q'", "a=b"], None)
def test_an_exact_class_name_always_wins(classes: list[str], data: st.DataObject | None) -> None:
    spec = label(*classes)
    for name in classes if data is None else [data.draw(st.sampled_from(classes))]:
        assert typed(spec, name) == [classes.index(name)]


def test_an_index_where_no_class_has_this_name() -> None:
    animals = label("cat", "dog", "emu", size=11)
    assert typed(animals, "2") == [2]
    assert typed(animals, "010") == [10], "no octal number"
    assert typed(label("10", "0", "5"), "2") == [2] and typed(label("10", "0", "5"), "0") == [1]
    assert typed(label(size=4), "3") == [3]


@pytest.mark.parametrize("text", ["true", "no", "1.0", "0x1", "1_0", "1e0", "٣", "+-1", "null,1", "9" * 5000, "Cat"])
def test_texts_that_are_neither(text: str) -> None:
    assert "unknown label" in refused(label("cat", "dog", size=11), text, 1 + text.count(","))


def test_indices_out_of_range() -> None:
    assert "label 7 is out of range: this model knows labels 0 to 1" in refused(label("cat", "dog"), "7")
    assert "label -1 is out of range" in refused(label("cat", "dog"), -1)
    assert "unknown label" in refused(label("cat", "dog"), 10**5000)
    assert "size 21 is out of range: it should be between 1 and 20" in refused(COUNT, "21")


def test_lists_are_split_at_commas_unless_the_whole_is_a_name() -> None:
    fruits = label("a", "b", "a,b", "10")
    assert typed(fruits, "a,b") == [2]
    assert typed(fruits, "b,a", 2) == [1, 0] and typed(fruits, " b , 10 ", 2) == [1, 3]
    assert typed(fruits, "[b,a,1]", 3) == [1, 0, 1]
    assert "2 values of label for 3 samples" in refused(fruits, "b,a", 3)
    assert "unknown label ''" in refused(fruits, "a,,b", 3)


def test_every_class_none_and_nothing() -> None:
    spec = label("a", "b")
    assert typed(spec, "all", 5) == [0, 1, 0, 1, 0]
    assert typed(spec, "null") is None and typed(spec, "None") is None and resolved(spec, None) is None
    assert "label is empty" in refused(spec, "")
    assert resolve_conditions([label("x", "all")], {}, 3)["label"].tolist() == [0, 1, 0], "not given: every class"


@pytest.mark.parametrize(
    "value", [2, np.int64(2), 2.0, torch.tensor(2), torch.tensor([2]), [2], (2,), np.array([2]), "5", ["5"]]
)
def test_python_values(value: object) -> None:
    assert resolved(label("2", "0", "5"), value) == [2], "a number is an index, a text a name"


@pytest.mark.parametrize("value", [True, [True], np.True_, torch.tensor([True]), np.array([False]), 1.5, float("nan")])
def test_booleans_and_fractions_are_no_classes(value: object) -> None:
    assert "unknown label" in refused(label("a", "b"), value)


@pytest.mark.parametrize("value", [{"a": 1}, object(), [[0]], float("inf"), torch.zeros(1, 2)])
def test_other_values_are_refused(value: object) -> None:
    refused(label("a", "b"), value)


def test_counts() -> None:
    assert typed(COUNT, "012") == [12] and typed(COUNT, "3,4", 2) == [3, 4] and resolved(COUNT, 5) == [5]
    for value in ("true", "1.5", True, "x"):
        assert "should be a whole number from 1 to 20" in refused(COUNT, value)


def test_vectors() -> None:
    assert typed(VECTOR, "1e1,-.5") == [[10.0, -0.5]] and typed(VECTOR, "[1, 2]", 2) == [[1, 2], [1, 2]]
    assert typed(VECTOR, "[[1,2],[3, 4]]", 2) == [[1, 2], [3, 4]]
    assert resolved(VECTOR, np.array([[1, 2], [3, 4]]), 2) == [[1, 2], [3, 4]]
    assert resolved(ConditionSpec(name="v", kind="vector", size=1), "0.5") == [[0.5]]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("1,x", "'x' is not a number; give 2 numbers separated by commas"),
        ("1,2,3", r"shape \(1, 3\)"),
        ("nan,1", "not finite"),
        ("[[1,2],[3]]", "is not a vector of 2 numbers"),
        ([True, False], "should be numbers, not bool"),
        (["a", "b"], "is not a vector of 2 numbers"),
        ([10**400, 1], "is not a vector of 2 numbers"),
    ],
)
def test_bad_vectors(value: object, message: str) -> None:
    assert re.search(message, refused(VECTOR, value, 1))


def test_the_command_line_leaves_conditions_as_typed() -> None:
    sampling, conditions = split(["guidance=2", "label= 'x' #1", "size=010", "top_k=3,2"])
    assert sampling == {"guidance": 2.0, "top_k": (3, 2)} and conditions == {"label": " 'x' #1", "size": "010"}
