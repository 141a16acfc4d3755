"""Files that may be anything, arrays that announce what they hold, labels of any kind, and fingerprints."""

from __future__ import annotations

import io
import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextscale.config.sections import LimitsConfig
from nextscale.errors import CheckpointError, DataError
from nextscale.toolkit.reading import (
    array_names,
    as_classes,
    check_announced,
    check_file,
    content_print,
    exists,
    file_print,
    fingerprint,
    read_arrays,
    read_text,
    reading,
    shown_path,
)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyError("x"), "'x'"),
        (FileNotFoundError(2, "No such file"), "there is no such file"),
        (PermissionError(13, "Permission denied"), "permission denied"),
        (MemoryError(), "it does not fit into memory"),
        (RecursionError("maximum"), "it is nested too deeply"),
        (ValueError(), "ValueError"),
        (ValueError("two\nlines"), "two lines"),
        (ValueError("y" * 5000), "y" * 197 + r"\.\.\."),
    ],
)
def test_whatever_a_reader_raises_is_one_line(error, reason):
    message = rf"^cannot read thing a\\nb \({reason}\): mend it$"
    with pytest.raises(DataError, match=message), reading("a\nb", "thing", ": mend it"):
        raise error


def test_lines_of_our_own_and_interrupts_pass():
    for error in (CheckpointError("known"), KeyboardInterrupt(), SystemExit(1)):
        with pytest.raises(type(error)) as raised, reading("a"):
            raise error
        assert raised.value is error


def test_only_regular_files_are_opened(tmp_path):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "loop").symlink_to("loop")
    assert check_file(tmp_path / "link") == tmp_path / "link"
    for path, what in {
        tmp_path: "is a folder",
        tmp_path / "pipe": "is a named pipe",
        "/dev/null": "is a device",
        tmp_path / "absent": "there is no such file",
        tmp_path / "loop": "cannot read file",
        "x" * 5000: "file name too long",
        "a\0b": "cannot read file a.x00b",
    }.items():
        with pytest.raises(DataError, match=what):
            check_file(path)
    assert exists(tmp_path / "pipe") and not any(map(exists, (tmp_path / "absent", "x" * 5000, "a\0b")))


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-16", exclude_characters="\r"), max_size=50))
def test_text_is_read_whatever_its_byte_order_mark(text):
    with tempfile.TemporaryDirectory() as folder:
        for encoding in ("utf-8-sig", "utf-16"):
            path = Path(folder) / encoding
            path.write_bytes(text.encode(encoding))
            assert read_text(path) == text


def test_text_that_is_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"one\ntwo \xff\n")
    with pytest.raises(DataError, match="line 2, is not UTF-8"):
        read_text(tmp_path / "a")
    with pytest.raises(DataError, match=r"has 10 bytes of text, more than data.limits.text_bytes=9"):
        read_text(tmp_path / "a", LimitsConfig(text_bytes=9))


def test_only_wanted_arrays_are_read(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.arange(3), objects=np.array([{}], dtype=object), label=np.array(["a"]))
    assert read_arrays(path, lambda name: name == "x")["x"].tolist() == [0, 1, 2]
    assert array_names(path) == ["x", "objects", "label"]
    with pytest.raises(DataError, match="objects holds Python objects, which are never unpickled"):
        read_arrays(path)
    np.save(tmp_path / "one.npy", np.arange(4))
    assert read_arrays(tmp_path / "one.npy")[""].tolist() == [0, 1, 2, 3]


@settings(deadline=None)
@given(st.binary(max_size=80), st.integers(0, 127))
def test_damaged_array_files_are_one_line(tmp_path_factory, noise, where):
    file = io.BytesIO()
    np.savez(file, x=np.arange(5))
    content = file.getvalue()
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    path.write_bytes(content[:where] + noise + content[where + len(noise) :])
    try:
        read_arrays(path)
    except DataError as error:
        assert "\n" not in str(error) and "damaged.npz" in str(error)


def test_what_an_array_announces_is_checked_first(tmp_path):
    limits = LimitsConfig(array_bytes=2**40)
    check_announced("x", 2**28, 1, limits)
    check_announced("x", 250 * 2**28, 2**28, limits)
    with pytest.raises(DataError, match=r"x announces 268,435,457 bytes in 1,073,741 of the file"):
        check_announced("x", 2**28 + 1, 1_073_741, limits)
    with pytest.raises(DataError, match=r"more than data.limits.array_bytes=9"):
        check_announced("x", 10, 10, LimitsConfig(array_bytes=9))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**15,)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue())
    with pytest.raises(DataError, match="announces 8,000,000,000,000,000 bytes, more than"):
        read_arrays(tmp_path / "a.npz")
    with pytest.raises(DataError, match=r"x is truncated, .* of the 8,000,000,000,000,000 it announces"):
        read_arrays(tmp_path / "a.npz", limits=LimitsConfig(array_bytes=10**16, unpacked_times=10**16))


LABELS = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1),
    st.lists(st.integers(2**63, 2**64 - 1), min_size=1),
    st.lists(st.booleans(), min_size=1),
    st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1),
)


@settings(deadline=None)
@given(LABELS)
def test_classes_are_the_labels_that_occur(labels):
    positions, names = as_classes(np.array(labels), "labels")
    assert [names[position] for position in positions] == [str(label) for label in labels]
    assert names == tuple(str(label) for label in sorted(set(labels)))


@settings(deadline=None)
@given(st.integers(1, 30))
def test_labels_from_0_on_are_their_own_positions(count):
    labels = np.random.default_rng(count).permutation(np.repeat(np.arange(count), 3)).astype(np.uint8)
    positions, names = as_classes(labels, "labels")
    assert np.array_equal(positions, labels) and names == tuple(map(str, range(count)))
    again, given_names = as_classes(labels, "labels", np.array([f"class {i}".encode() for i in range(count)]))
    assert np.array_equal(again, labels) and given_names == tuple(f"class {i}" for i in range(count))


@pytest.mark.parametrize(
    ("labels", "names", "match"),
    [
        (np.zeros((3, 1), int), None, "where must be N integers or texts, not int64 of shape 3 x 1"),
        (np.array(5), None, "not int64 of shape one number"),
        (np.zeros(3), None, "not float64"),
        (np.array([1, None], object), None, "where: row 1 has no label"),
        (np.array([1, "a"], object), None, "not object"),
        (np.array([0, 2]), ["a", "b"], "has label 2; there are class names for 0 to 1"),
        (np.array([-1, 0]), ["a", "b"], "has label -1"),
        (np.array([2**64 - 1], np.uint64), ["a"], f"has label {2**64 - 1}"),
        (np.array(["a"]), ["a"], "must be integers, positions in the 1 class names"),
        (np.array([0]), [["a"]], "class names must be N texts, not an array of shape 1 x 1"),
        (np.array([0]), ["a", "b", "a"], "two classes are called 'a'"),
    ],
)
def test_labels_that_are_refused(labels, names, match):
    with pytest.raises(DataError, match=match):
        as_classes(labels, "where", None if names is None else np.array(names))


def test_a_label_per_sample_is_no_class():
    with pytest.raises(DataError, match=r"11 different labels, more than data.limits.classes=10: data.labels=false"):
        as_classes(np.arange(11), "where", limits=LimitsConfig(classes=10))


def test_fingerprints_tell_what_differs():
    parts = {"x": np.arange(4), "names": ["a"]}
    first = fingerprint(parts)
    assert first == fingerprint(dict(reversed(parts.items()))) and len(first) == 16
    x = np.arange(4)
    others = [{"x": x.astype(float)}, {"x": x.reshape(2, 2)}, {"x": x[::-1]}, {"names": ["b"]}]
    assert len({first, *(fingerprint({**parts, **other}) for other in others)}) == 5


@settings(deadline=None)
@given(st.integers(0, 40_000), st.data())
def test_a_file_is_told_by_its_size_start_middle_and_end(size, data):
    content = bytearray(np.random.default_rng(size).bytes(size))
    first = content_print(io.BytesIO(content))
    assert content_print(io.BytesIO(bytes(content))) == first
    assert content_print(io.BytesIO(bytes(content) + b"x")) != first
    if size:
        starts = (0, size // 2, size - 4096) if size > 32768 else range(0, size, 4096)
        place = data.draw(st.sampled_from(starts)) + data.draw(st.integers(0, 4095))
        content[min(place, size - 1)] ^= 1
        assert content_print(io.BytesIO(content)) != first


def test_file_print_needs_a_file(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 50_000)
    assert file_print(tmp_path / "a") == content_print(io.BytesIO(b"x" * 50_000))
    with pytest.raises(DataError, match="is a folder"):
        file_print(tmp_path)


def test_paths_in_messages_are_short_and_printable():
    assert shown_path("a/b.png") == "a/b.png" and shown_path("a\n\udcff") == r"a\n\udcff"
    assert len(shown_path("x" * 5000)) < 200
