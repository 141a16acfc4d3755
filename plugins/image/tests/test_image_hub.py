"""Hugging Face data sets, by name and on disk."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from image_files import opened, picture, refused

from nextscale_image.source import load_all


class FakeTable:
    """The part of ``datasets.Dataset`` that the reader uses, with rows like the real one's."""

    def __init__(self, features: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        self.features, self.rows = features, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | str) -> Any:
        return [row[key] for row in self.rows] if isinstance(key, str) else self.rows[key]

    def select_columns(self, names: list[str]) -> FakeTable:
        return FakeTable({name: self.features[name] for name in names}, self.rows)

    def cast_column(self, name: str, feature: Any) -> FakeTable:
        assert feature.decode is False
        return FakeTable({**self.features, name: feature}, self.rows)


@pytest.fixture
def fake_datasets(monkeypatch, tmp_path):
    module: Any = ModuleType("datasets")

    class FakeImage:
        def __init__(self, decode: bool = True) -> None:
            self.decode = decode

    class ClassLabel:
        def __init__(self, names: list[str]) -> None:
            self.names = names

    def table(count: int, label: int | None = None, extra: dict[str, Any] | None = None) -> FakeTable:
        rows = []
        for i in range(count):
            path = tmp_path / f"hub{i}.png"
            picture(i).save(path)
            inside = {"bytes": path.read_bytes(), "path": None} if i % 2 else {"bytes": None, "path": str(path)}
            rows.append({"img": inside, "label": i % 2 if label is None else label, "id": i})
        features = {"id": "int64", "img": FakeImage(), "label": ClassLabel(["cat", "dog"]), **(extra or {})}
        return FakeTable(features, rows)

    module.Image, module.ClassLabel, module.table = FakeImage, ClassLabel, table
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


def test_hub_data_set(fake_datasets):
    asked = []

    def load_dataset(name: str, configuration: str | None) -> dict[str, FakeTable]:
        asked.append((name, configuration))
        return {"train": fake_datasets.table(20), "test": fake_datasets.table(4)}

    fake_datasets.load_dataset = load_dataset
    splits = opened("hf:someone/pets:small")
    assert asked == [("someone/pets", "small")]
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (18, 2, 4)
    assert splits.description == {"channels": 3, "height": 12, "width": 12, "classes": ["cat", "dog"]}
    images, labels = load_all(splits.test)
    assert (
        np.array_equal(images[3].numpy(), np.asarray(picture(3)).transpose(2, 0, 1)) and labels.tolist() == [0, 1] * 2
    )


def test_saved_data_set(fake_datasets, tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    fake_datasets.load_from_disk = lambda path: fake_datasets.table(20)
    assert len(opened(tmp_path / "saved").train) == 18


def test_hub_data_sets_that_are_refused(fake_datasets, caplog):
    def given_splits(found: Any) -> None:
        fake_datasets.load_dataset = lambda name, configuration: found

    table = fake_datasets.table(20)
    table.rows[5]["img"] = {"bytes": b"no image", "path": None}
    given_splits({"train": table})
    refused("cannot read image hf:x train row 5", "hf:x")
    given_splits({"a": fake_datasets.table(2), "b": fake_datasets.table(2)})
    refused("has the splits a, b, but no train split", "hf:x")
    given_splits({"train": fake_datasets.table(4, label=-1)})
    refused("train row 0 has label -1", "hf:x")
    given_splits({"train": fake_datasets.table(4, extra={"coarse": 0, "img": "string"})})
    refused("no image column", "hf:x")
    two = {"label": 0, "fine": fake_datasets.ClassLabel(["a"]), "coarse": fake_datasets.ClassLabel(["b"])}
    given_splits({"train": fake_datasets.table(4, extra=two)})
    refused(r"several ClassLabel columns \(fine, coarse\)", "hf:x")
    refused("needs the data set's name", "hf:")
    # A test split with withheld labels is skipped, not refused.
    given_splits({"train": fake_datasets.table(4), "test": fake_datasets.table(4, label=-1)})
    assert opened("hf:x", validation=0.5).test is None
    assert "labels are withheld" in caplog.text

    def offline(name: str, configuration: str | None) -> None:
        raise ConnectionError("no\nnetwork")

    fake_datasets.load_dataset = offline
    refused("cannot load hf:x: ConnectionError: no network", "hf:x")


def test_hub_without_datasets_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused(r"pip install 'nextscale\[huggingface\]'", "hf:ylecun/mnist")


def test_data_set_saved_by_the_real_library(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the huggingface extra is not installed")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"]), "id": datasets.Value("int64")}
    )

    def table(count: int) -> Any:
        columns = {"image": [picture(i) for i in range(count)], "label": [i % 2 for i in range(count)]}
        return datasets.Dataset.from_dict({**columns, "id": list(range(count))}, features=features)

    datasets.DatasetDict({"train": table(20), "test": table(4)}).save_to_disk(str(tmp_path / "both"))
    table(10).save_to_disk(str(tmp_path / "one"))
    images, labels = load_all(opened(tmp_path / "both").test)
    assert (
        np.array_equal(images[3].numpy(), np.asarray(picture(3)).transpose(2, 0, 1)) and labels.tolist() == [0, 1] * 2
    )
    assert len(opened(tmp_path / "one").train) == 9


@pytest.mark.parametrize(
    ("column", "cells", "classes"),
    [
        ("label", [5, 10**9, 5, 7] * 3, ["5", "7", "1000000000"]),
        ("labels", ["no", "yes", "010"] * 4, ["010", "no", "yes"]),
        ("category", [True, False] * 6, ["False", "True"]),
        ("target", [2**64 - 1, 2**63] * 6, [str(2**63), str(2**64 - 1)]),
    ],
)
def test_labels_without_names_are_classes(fake_datasets, column, cells, classes):
    table = fake_datasets.table(12)
    table.rows = [{"img": row["img"], column: cell} for row, cell in zip(table.rows, cells, strict=True)]
    table.features = {"img": table.features["img"], column: "any type"}
    fake_datasets.load_dataset = lambda name, configuration: {"train": table}
    splits = opened("hf:x", validation=0.25)
    assert splits.description["classes"] == classes
    found = np.concatenate([splits.train.labels, splits.validation.labels])
    assert sorted(classes[label] for label in found) == sorted(map(str, cells))


@pytest.mark.parametrize("cells", [[0.5] * 12, [[1]] * 12])
def test_columns_that_are_no_labels_are_named(fake_datasets, caplog, cells):
    table = fake_datasets.table(12)
    table.rows = [{**row, "label": cell} for row, cell in zip(table.rows, cells, strict=True)]
    table.features = {"img": table.features["img"], "id": "int64", "label": "other"}
    fake_datasets.load_dataset = lambda name, configuration: {"train": table}
    assert opened("hf:x").conditions == ()
    assert "hf:x train: no class labels are read from the columns id, label" in caplog.text


def test_missing_labels_are_named_and_a_split_without_any_is_not_used(fake_datasets, caplog):
    def table(cells):
        made = fake_datasets.table(len(cells))
        made.rows = [{**row, "label": cell} for row, cell in zip(made.rows, cells, strict=True)]
        made.features = {"img": made.features["img"], "label": "string"}
        return made

    splits = {"train": table(["a", "b"] * 6), "test": table([None] * 4)}
    fake_datasets.load_dataset = lambda name, configuration: splits
    assert opened("hf:x").test is None
    assert "labels are withheld" in caplog.text
    splits["train"] = table(["a", "b", None] * 4)
    refused(r"hf:x train: row 2 has no label \(data.labels=false", "hf:x")
    assert len(opened("hf:x", labels=False).train) == 11
