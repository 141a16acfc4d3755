from __future__ import annotations

import pytest
import torch

from nextscale.conditioning import Conditioner, ConditionSpec, resolve_conditions
from nextscale.errors import NextscaleError
from nextscale.randomness import Draws
from nextscale.training.token_stage import dropped_conditions

LABEL = ConditionSpec(name="label", size=3)
SIZE = ConditionSpec(name="size", kind="vector", size=2)
VALUES = {"label": torch.tensor([2, 0]), "size": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}


def conditioner(*specs: ConditionSpec) -> Conditioner:
    made = Conditioner(specs, 4)
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    return made


def test_conditions_add_up():
    made = conditioner(LABEL, SIZE)
    expected = made.embed["label"](VALUES["label"]) + made.embed["size"](VALUES["size"])
    torch.testing.assert_close(made(VALUES, 2), expected)
    torch.testing.assert_close(conditioner(LABEL)({"label": VALUES["label"]}, 2), made.embed["label"](VALUES["label"]))


def test_an_absent_condition_is_null():
    made = conditioner(LABEL, SIZE)
    only = made({"label": VALUES["label"]}, 2)
    torch.testing.assert_close(only, made.embed["label"](VALUES["label"]) + made.null["size"])
    torch.testing.assert_close(made({}, 2), (made.null["label"] + made.null["size"]).expand(2, -1))


def test_conditions_are_dropped_per_sample():
    made = conditioner(LABEL, SIZE)
    drop = {"label": torch.tensor([True, False]), "size": torch.tensor([True, False])}
    dropped = made(VALUES, 2, drop)
    torch.testing.assert_close(dropped[0], made({}, 1)[0])
    torch.testing.assert_close(dropped[1], made(VALUES, 2)[1])


def test_without_conditions_all_samples_start_alike():
    made = conditioner()
    assert torch.equal(made({}, 3), made.null["start"].expand(3, -1))
    made({}, 3).sum().backward()
    assert torch.equal(made.null["start"].grad, torch.full((4,), 3.0))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lable": torch.tensor([0])}, "unknown condition 'lable'; did you mean 'label'"),
        ({"label": torch.tensor([0, 3])}, "label 3 is out of range: this model knows labels 0 to 2"),
        ({"label": torch.tensor([-1])}, "label -1 is out of range"),
        ({"size": torch.zeros(1, 3)}, "size has 3 numbers; this model takes 2"),
    ],
)
def test_bad_conditions_are_refused(values, message):
    with pytest.raises(NextscaleError, match=message) as error:
        conditioner(LABEL, SIZE).check(values)
    assert "\n" not in str(error.value)


def test_good_conditions_are_accepted():
    conditioner(LABEL, SIZE).check(VALUES)
    conditioner(LABEL).check({"label": torch.zeros(0, dtype=torch.long)})


def test_vectors_are_given_in_the_units_of_the_data():
    plain = ConditionSpec(name="energy", kind="vector", size=1)
    units = ConditionSpec(name="energy", kind="vector", size=1, offset=(-300.0,), scale=(20.0,))
    values = torch.tensor([[-300.0], [-280.0], [-340.0]])
    ours, theirs = conditioner(units), conditioner(plain)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    torch.testing.assert_close(ours({"energy": values}, 3), theirs({"energy": (values + 300) / 20}, 3))
    resolved = resolve_conditions([units], {"energy": "-300,-280,-340"}, 3)
    assert torch.equal(resolved["energy"], values)
    for wrong in ({"scale": (0.0,)}, {"offset": (1.0, 2.0)}, {"kind": "class", "offset": (1.0,)}):
        with pytest.raises(ValueError, match=r"energy|greater than 0"):
            ConditionSpec(**{"name": "energy", "kind": "vector", "size": 1, **wrong})


def test_conditions_are_dropped_together_and_also_alone():
    """Guidance needs samples without any; users may give only some."""
    draws = Draws(0, 0, slice(0, 4000), 4000, torch.device("cpu"))
    count = ConditionSpec(name="n", kind="count", size=9)
    drop = dropped_conditions((count, LABEL, SIZE), 0.2, draws)
    label, size = drop["label"], drop["size"]
    assert float((label & size).float().mean()) > 0.2 > float((label & ~size).float().mean()) > 0.1
    alone = dropped_conditions((count, LABEL), 0.2, Draws(0, 0, slice(0, 9), 9, torch.device("cpu")))
    assert torch.equal(alone["label"], alone["n"])  # as release 0.1.0 drew it
