"""Folder layouts: splits, classes, links, and names in order."""

from __future__ import annotations

import os
import string
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextscale.errors import DataError
from nextscale.toolkit.folders import listing, natural_order, read_folder


def is_note(path: Path) -> bool:
    return path.suffix == ".note" and not path.is_dir()


def make(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def read(root: Path) -> dict[str, tuple[list[str], list[int] | None, tuple[str, ...]]]:
    return {
        name: (
            [path.relative_to(root).as_posix() for path in split.paths],
            None if split.labels is None else split.labels.tolist(),
            split.classes,
        )
        for name, split in read_folder(root, is_note, "notes").items()
    }


def refused(root: Path, match: str) -> None:
    with pytest.raises(DataError, match=match) as error:
        read_folder(root, is_note, "notes")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Training", "dev", "TESTING"), ("train", "valid", "test")]
)
def test_splits(tmp_path, names):
    make(tmp_path, *(f"{name}/{label}/{i}.note" for name in names for label in "ab" for i in range(2)), "README")
    found = read(tmp_path)
    assert sorted(found) == ["test", "train", "validation"]
    assert found["train"][1:] == ([0, 0, 1, 1], ("a", "b"))


def test_names_above_the_folder_decide_nothing(tmp_path):
    root = make(tmp_path / "test" / "train" / "val", "a/1.note", "b/1.note")
    assert read(root) == {"train": (["a/1.note", "b/1.note"], [0, 1], ("a", "b"))}


def test_numbered_classes_keep_their_order_beside_other_files(tmp_path):
    make(tmp_path, *(f"{label}/x.note" for label in (10, 9, 0)), "labels.txt")
    assert read(tmp_path)["train"][2] == ("0", "9", "10")


def test_files_that_are_no_samples_are_kept_by_name(tmp_path):
    make(tmp_path, "a/1.note", "a/deep/thumb.jpg", "b/2.note", "list.txt", ".hidden", "a/Thumbs.db")
    others = read_folder(tmp_path, is_note, "notes")["train"].others
    assert [path.name for path in others] == ["thumb.jpg", "list.txt"]


@settings(deadline=None)
@given(st.sets(st.lists(st.sampled_from(["a", "b", "1", "10", "9"]), min_size=1, max_size=4).map(tuple), min_size=1))
def test_samples_come_in_the_order_of_their_paths(paths):
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), *("top/" + "/".join(path) + "/x.note" for path in paths))
        found = read_folder(Path(folder), is_note, "notes")["train"].paths
    assert [path.relative_to(Path(folder) / "top").parts for path in found] == sorted(
        (*path, "x.note") for path in paths
    )


def test_links_inside_a_class_are_followed(tmp_path):
    make(tmp_path / "elsewhere", "x/1.note", "2.note")
    root = make(tmp_path / "data", "a/0.note", "b/0.note")
    (root / "a" / "more").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "b" / "9.note").symlink_to(tmp_path / "elsewhere" / "2.note")
    (root / "c").symlink_to(tmp_path / "elsewhere")
    names, labels, classes = read(root)["train"]
    assert names == ["a/0.note", "a/more/2.note", "a/more/x/1.note", "b/0.note", "b/9.note", "c/2.note", "c/x/1.note"]
    assert labels == [0, 0, 0, 1, 1, 2, 2] and classes == ("a", "b", "c")


@pytest.mark.parametrize("target", [".", "..", "../..", "../b/loop/.."])
def test_links_back_end(tmp_path, target):
    root = make(tmp_path / "data", "a/0.note", "b/0.note")
    (root / "b" / "loop").mkdir()
    (root / "a" / "back").symlink_to(target, target_is_directory=True)
    (root / "b" / "loop" / "self").symlink_to(".", target_is_directory=True)
    names, labels, _ = read(root)["train"]
    assert names[0] == "a/0.note" and names[-1] == "b/0.note"
    assert len(names) == (3 if "b/" in target else 2) and labels == [0] * (len(names) - 1) + [1]


def test_a_folder_is_entered_once_however_many_links_lead_to_it(tmp_path):
    levels = [tmp_path / "data" / "a", *(tmp_path / f"level{i}" for i in range(40))]
    for level in levels:
        level.mkdir(parents=True)
    for here, there in pairwise(levels):
        (here / "left").symlink_to(there)
        (here / "right").symlink_to(there)
    make(levels[-1], "0.note")
    make(tmp_path / "data", "b/0.note")
    assert len(read(tmp_path / "data")["train"][0]) == 2


def test_folders_may_be_nested_deeper_than_the_stack(tmp_path, monkeypatch):
    monkeypatch.chdir(make(tmp_path, "a/0.note", "b/0.note") / "a")
    for _ in range(1100):
        os.mkdir("d")
        os.chdir("d")
    Path("1.note").touch()
    try:
        assert len(read(tmp_path)["train"][0]) == 3
    finally:  # pytest's own cleaning up is recursive
        Path("1.note").unlink()
        for _ in range(1100):
            os.chdir("..")
            os.rmdir("d")


def test_layouts_that_are_refused(tmp_path):
    refused(tmp_path / "absent", r"cannot read folder .*absent \(no such file or directory\)")
    refused(tmp_path, "no notes in")
    refused(make(tmp_path / "1", "a/0.note", "0.note"), r"holds both notes \(0.note\) and folders of notes \(a\)")
    refused(make(tmp_path / "2", "train/0.note", "training/0.note"), "two train folders: train and training")
    refused(make(tmp_path / "3", "test/0.note", "val/0.note"), "has test, val but no train folder")
    refused(make(tmp_path / "4", "train/0.note", "test/0.note", "0.note"), r"and notes beside them \(0.note\)")
    refused(make(tmp_path / "5", "a/0.note", "b/0.txt"), "class folder .*b holds no notes")
    refused(make(tmp_path / "line\nbreak"), r"line\\nbreak")


def test_listing_is_in_the_order_of_names(tmp_path):
    make(tmp_path, "b", "a", "10", "9", "__main", ".x", "__MACOSX/x", "desktop.ini")
    assert [path.name for path in listing(tmp_path)] == ["10", "9", "__main", "a", "b"]


@given(st.lists(st.integers(0, 10**6), unique=True), st.text(string.ascii_letters))
def test_natural_order_takes_numbers_as_numbers(numbers, before):
    names = [f"{before}{number}.png" for number in numbers]
    assert sorted(names, key=natural_order) == [f"{before}{number}.png" for number in np.sort(numbers).tolist()]
