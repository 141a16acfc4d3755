"""An .npz file that grows is the file that numpy would have written of the whole, or none."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from nextscale.errors import TrainingError
from nextscale.toolkit.growing import growing_npz

SHAPES = st.lists(st.integers(0, 3), max_size=2).map(tuple)
DTYPES = st.sampled_from([np.uint8, np.int64, np.float32, np.bool_])


@settings(max_examples=50, deadline=None)
@given(st.data(), SHAPES, DTYPES, st.lists(st.integers(0, 4), min_size=1, max_size=4))
def test_parts_are_joined(tmp_path_factory: pytest.TempPathFactory, data, shape, dtype, lengths: list[int]) -> None:
    path = tmp_path_factory.mktemp("growing") / "new" / "a.npz"
    parts = [data.draw(arrays.arrays(dtype, (length, *shape))) for length in lengths]
    with growing_npz(path) as file:
        for part in parts:
            file.append({"rows": part, "more": part[:1] * 0})
        file.put({"names": np.array(["a", "你好"])})
    with np.load(path) as found:
        assert set(found.files) == {"rows", "more", "names"} and found["names"].tolist() == ["a", "你好"]
        np.testing.assert_array_equal(found["rows"], np.concatenate(parts))
        assert found["rows"].dtype == dtype and len(found["more"]) == sum(map(bool, lengths))
    assert [entry.name for entry in path.parent.iterdir()] == ["a.npz"]


def test_what_fails_leaves_the_file_of_before(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with growing_npz(path) as file:
        file.append({"rows": np.arange(3)})
    before = path.read_bytes()
    with pytest.raises(ValueError, match="rows of float64"), growing_npz(path) as file:
        file.append({"rows": np.arange(3)})
        file.append({"rows": np.arange(3.0)})
    with pytest.raises(KeyboardInterrupt), growing_npz(path) as file:
        file.append({"rows": np.arange(4)})
        raise KeyboardInterrupt
    assert path.read_bytes() == before and [entry.name for entry in tmp_path.iterdir()] == ["a.npz"]
    (tmp_path / "file").write_text(json.dumps("in the way"))
    with pytest.raises(TrainingError, match="was not saved"), growing_npz(tmp_path / "file" / "a.npz"):
        pass


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=9)


@given(st.lists(st.lists(TEXTS, max_size=4), min_size=1))
def test_texts_of_any_length(parts: list[list[str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        with growing_npz(Path(folder) / "a.npz") as file:
            for part in parts:
                file.append({"names": np.array(part, np.str_)})
        with np.load(Path(folder) / "a.npz") as found:
            assert found["names"].tolist() == [text for part in parts for text in part]
