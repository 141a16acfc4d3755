from __future__ import annotations

import errno
import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import forks
import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec

import nextscale.storage.tokens as tokenstore
from nextscale import plugins
from nextscale.config.run import load_run_config
from nextscale.errors import CheckpointError, TrainingError
from nextscale.storage.files import digest, json_digest
from nextscale.storage.models import load_tokenizer
from nextscale.storage.tokens import TokenStore, hash_module
from nextscale.tokens.pyramid import Schedule, TokenPyramid
from nextscale.training.cache import open_or_write_tokens
from nextscale.training.log import RunLog
from nextscale.training.order import StreamOrder

SCHEDULE = Schedule.of([(1, 1), (2, 2), (3, 3)])


def written(path: Path, num_rows: int = 50, vocabulary: int = 300, **options: Any) -> torch.Tensor:
    """Write a store with a label and a vector as conditions, and return its tokens."""
    settings = {"schedule": SCHEDULE, "tokenizer_hash": "abc123", "shard_rows": 16} | options
    shape = (num_rows, SCHEDULE.length, *settings.get("token_shape", ()))
    tokens = torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(num_rows))
    conditions = {"label": ((), torch.int64), "text": ((3,), torch.float32)}
    with TokenStore.create(path, vocabulary=vocabulary, num_rows=num_rows, conditions=conditions, **settings) as store:
        for rows in torch.arange(num_rows).split(7):
            mask = torch.arange(SCHEDULE.length) < rows[:, None] % 5 + 1 if settings.get("ragged") else None
            store.append(
                TokenPyramid(tokens[rows], SCHEDULE, mask),
                {"label": rows, "text": rows[:, None] / 1.5 + torch.arange(3)},
            )
    return tokens


@settings(max_examples=25, deadline=None)
@given(
    num_rows=st.integers(1, 60),
    vocabulary=st.sampled_from([1, 2, 256, 257, 65536, 65537]),
    token_shape=st.sampled_from([(), (4,), (2, 3)]),
    ragged=st.booleans(),
    shard_rows=st.none() | st.integers(8, 40),
    keep_whole=st.booleans(),
    data=st.data(),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    num_rows: int,
    vocabulary: int,
    token_shape: tuple[int, ...],
    ragged: bool,
    shard_rows: int | None,
    keep_whole: bool,
    data: st.DataObject,
) -> None:
    path = tmp_path_factory.mktemp("store") / "tokens.zarr"
    tokens = written(
        path, num_rows, vocabulary, token_shape=token_shape, ragged=ragged, shard_rows=shard_rows,
        attributes={"note": [1, None]},
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenstore, "_KEEP_WHOLE_BYTES", 1 << 29 if keep_whole else 0)
        store = TokenStore.open(path, "abc123", shards_per_buffer=2)
    assert (store.num_rows, store.num_samples, store.passes) == (num_rows, num_rows, 1)
    assert store.schedule == SCHEDULE
    assert (store.token_vocabulary, store.token_shape) == (vocabulary, token_shape)
    assert store.attributes == {"note": [1, None]}
    indices = np.array(data.draw(st.lists(st.integers(0, num_rows - 1), max_size=40)), np.int64)
    read, conditions, mask = store.rows(indices)
    assert read.dtype == torch.int64
    assert torch.equal(read, tokens[indices])
    assert torch.equal(conditions["label"], torch.from_numpy(indices))
    assert conditions["text"].dtype == torch.float32
    assert torch.equal(conditions["text"], torch.from_numpy(indices)[:, None] / 1.5 + torch.arange(3))
    if ragged:
        assert mask is not None
        assert mask.sum(1).tolist() == (indices % 5 + 1).tolist()
    else:
        assert mask is None


@pytest.mark.parametrize(("vocabulary", "dtype"), [(2, "uint8"), (256, "uint8"), (257, "uint16"), (65537, "uint32")])
def test_tokens_take_the_smallest_integers(tmp_path: Path, vocabulary: int, dtype: str) -> None:
    written(tmp_path / "t", vocabulary=vocabulary)
    assert json.loads((tmp_path / "t/tokens/zarr.json").read_text())["data_type"] == dtype


def test_a_stream_reads_each_shard_once_per_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenstore, "_KEEP_WHOLE_BYTES", 0)
    tokens = written(tmp_path / "t", num_rows=200, shard_rows=8)
    store = TokenStore.open(tmp_path / "t", shards_per_buffer=4)
    read, opened = [], store._shards.read
    monkeypatch.setattr(store._shards, "read", lambda shard, into: (read.append(shard), opened(shard, into)))
    order = StreamOrder(store.num_rows, 0, store.shard_rows, 4)
    for epoch in range(2):
        for start in range(0, 200, 10):
            rows = order.rows(epoch * 200 + np.arange(start, start + 10))
            assert torch.equal(store.rows(rows)[0], tokens[rows])
    assert len(read) <= 2 * 25 and set(read) == set(range(25))
    assert len(store._kept["tokens"]) == 5 * 8, "no more is held than the shards of a buffer, and one"


@pytest.mark.parametrize(("length", "rows"), [(30, 69908), (680, 1544), (5000, 1024)])
def test_default_shards_take_two_megabytes(tmp_path: Path, length: int, rows: int) -> None:
    options = {"vocabulary": 200 if length == 30 else 4096, "tokenizer_hash": "x"}
    store = TokenStore.create(tmp_path / "t", schedule=Schedule.of([(length,)]), num_rows=10**6, **options)
    assert store.shard_rows == rows


# What is refused


def test_refuses_tokens_of_another_tokenizer(tmp_path: Path) -> None:
    written(tmp_path / "t")
    message = "was written by tokenizer abc123, but this run's is def456: run"
    with pytest.raises(CheckpointError, match=message) as caught:
        TokenStore.open(tmp_path / "t", "def456")
    assert "\n" not in str(caught.value)
    TokenStore.open(tmp_path / "t")


def test_refuses_paths_that_are_no_store(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no token cache at"):
        TokenStore.open(tmp_path / "absent")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/precious").write_text("kept")
    (tmp_path / "file").write_text("kept")
    for name in ("other", "file"):
        with pytest.raises(CheckpointError, match="is not a token cache"):
            TokenStore.open(tmp_path / name)
        with pytest.raises(CheckpointError, match="exists and is not a token cache"):
            written(tmp_path / name)
    assert (tmp_path / "other/precious").read_text() == "kept"


@pytest.mark.parametrize("seed", range(24))
def test_damage_is_noticed(tmp_path: Path, seed: int) -> None:
    """Any file is missing, cut short, or has one bit changed. Reading gives a one-line error or, if the bit was in
    spare space of a JSON file, the right rows."""
    path, rng = tmp_path / "t", np.random.default_rng(seed)
    tokens = written(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    victim = files[rng.integers(len(files))]
    content = bytearray(victim.read_bytes())
    kind = ("missing", "short", "changed")[seed % 3]
    if kind == "missing":
        victim.unlink()
    elif kind == "short":
        victim.write_bytes(content[: rng.integers(len(content))])
    else:
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        victim.write_bytes(content)
    try:
        read, conditions, _ = TokenStore.open(path, "abc123").rows(np.arange(50))
    except CheckpointError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        written(path)  # a damaged store may be replaced
        assert torch.equal(TokenStore.open(path).rows(np.arange(50))[0], tokens)
    else:
        assert kind == "changed"
        assert torch.equal(read, tokens) and torch.equal(conditions["label"], torch.arange(50))


def swap(one: Path, other: Path) -> None:
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


@pytest.mark.parametrize("keep_whole", [True, False])
def test_shards_of_another_store_or_place_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep_whole: bool
) -> None:
    """Each is intact, and may even have the right length: only the manifest knows whose it is."""
    monkeypatch.setattr(tokenstore, "_KEEP_WHOLE_BYTES", 1 << 29 if keep_whole else 0)
    stores = [tmp_path / "a", tmp_path / "b"]
    for path, first in zip(stores, (0, 1), strict=True):
        tokens = (torch.arange(64)[:, None] + first + torch.arange(SCHEDULE.length)) % 100
        with TokenStore.create(
            path, schedule=SCHEDULE, vocabulary=100, num_rows=64, tokenizer_hash="x", shard_rows=16
        ) as store:
            store.append(TokenPyramid(tokens, SCHEDULE))
    files = [path / f"tokens/c/{shard}/0" for path in stores for shard in range(4)]
    lengths = [file.stat().st_size for file in files]
    pairs = [(a, b) for a in files[:4] for b in files if a != b and a.stat().st_size == b.stat().st_size]
    assert pairs, lengths
    for one, other in pairs:
        swap(one, other)
        store = TokenStore.open(stores[0])
        for _ in range(2):  # it is not believed the second time either
            with pytest.raises(CheckpointError, match=r"tokens/c/\d/0 does not match its checksum"):
                store.rows(np.arange(64))
        swap(one, other)
    assert torch.equal(TokenStore.open(stores[0]).rows(np.arange(3))[0][:, 0], torch.arange(3))


def rewrite(path: Path, name: str, change: Any) -> None:
    """Change a JSON file of a store, and the checksums that vouch for it."""
    content = json.loads((path / name).read_text())
    change(content)
    (path / name).write_text(json.dumps(content))
    manifest = json.loads((path / "manifest.json").read_text())
    if name != "manifest.json":
        manifest["files"][name] = {"bytes": (path / name).stat().st_size, "sha256": digest(path / name)}
    if manifest.pop("sha256", None):
        manifest["sha256"] = json_digest(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda stored: stored.update(num_rows=10**15), "has the shape"),
        (lambda stored: stored.update(shard_rows=10**15), "a shard of tokens announces more than 4 GiB"),
        (lambda stored: stored.update(shard_rows=32), "has shards of"),
        (lambda stored: stored.update(schedule=[[10**9]]), "has the shape"),
        (lambda stored: stored.update(schedule=[[2, -1]]), "schedule.0.1"),
        (lambda stored: stored.update(schedule=3), "schedule: Input should be a valid list"),
        (lambda stored: stored.update(conditions={"label": 1}), "conditions: Input should be a valid list"),
        (
            lambda stored: stored.update(conditions=["label", "../tokens"]),
            "cannot be opened|has the shape|not an array",
        ),
        (lambda stored: stored.update(ragged=True), "cannot be opened"),
        (lambda stored: stored.update(vocabulary=5), "tokens outside the vocabulary of 5"),
        (lambda stored: stored.pop("tokenizer_hash"), "tokenizer_hash: Field required"),
        (lambda stored: stored.update(format="nextscale-tokens-1"), "are of different formats"),
    ],
)
def test_attributes_are_checked_before_they_are_used(tmp_path: Path, change: Any, message: str) -> None:
    written(tmp_path / "t")
    rewrite(tmp_path / "t", "zarr.json", lambda content: change(content["attributes"]))
    with pytest.raises(CheckpointError, match=message) as caught:
        TokenStore.open(tmp_path / "t").rows(np.arange(50))
    assert str(tmp_path / "t") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [[10**13, 14], [50, 10**12], [50]])
def test_arrays_that_announce_too_much(tmp_path: Path, shape: list[int]) -> None:
    written(tmp_path / "t")
    rewrite(tmp_path / "t", "tokens/zarr.json", lambda content: content.update(shape=shape))
    with pytest.raises(CheckpointError, match="is damaged"):
        TokenStore.open(tmp_path / "t").rows(np.arange(50))


@pytest.mark.parametrize("change", [
    lambda manifest: manifest.pop("sha256"),
    lambda manifest: manifest["files"].pop("tokens/c/0/0"),
    lambda manifest: manifest["files"]["tokens/c/0/0"].update(sha256=None),
    lambda manifest: manifest.update(format="nextscale-tokens-1"),
    lambda manifest: manifest.update(files=[]),
    lambda manifest: manifest.clear(),
])  # fmt: skip
def test_an_edited_manifest_is_refused(tmp_path: Path, change: Any) -> None:
    written(tmp_path / "t")
    path = tmp_path / "t/manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="is damaged"):
        TokenStore.open(tmp_path / "t")


def test_a_store_of_the_first_format_still_opens(tmp_path: Path) -> None:
    tokens = written(tmp_path / "t")
    rewrite(tmp_path / "t", "zarr.json", lambda content: content["attributes"].update(format="nextscale-tokens-1"))
    manifest = json.loads((tmp_path / "t/manifest.json").read_text())
    del manifest["sha256"]
    manifest["format"] = "nextscale-tokens-1"
    for name, entry in manifest["files"].items():
        entry["sha256"] = entry["sha256"] if name.endswith(".json") else None
    (tmp_path / "t/manifest.json").write_text(json.dumps(manifest))
    assert torch.equal(TokenStore.open(tmp_path / "t", "abc123").rows(np.arange(50))[0], tokens)
    (tmp_path / "t/manifest.json").write_text(json.dumps(manifest | {"format": "nextscale-tokens-9"}))
    with pytest.raises(CheckpointError, match="has the format 'nextscale-tokens-9', but this version reads"):
        TokenStore.open(tmp_path / "t")


LAYOUTS: dict[str, tuple[dict[str, Any], bool]] = {
    "as written": ({}, True),
    "another level": ({"compressors": [ZstdCodec(level=9), Crc32cCodec()]}, True),
    "chunks in a shard": ({"chunks": 4}, False),
    "big-endian": ({"serializer": BytesCodec(endian="big")}, False),
    "no checksum": ({"compressors": [ZstdCodec(level=1)]}, False),
    "uncompressed": ({"compressors": None}, False),
    "checksum first": ({"compressors": [Crc32cCodec(), ZstdCodec(level=1)]}, False),
}


@pytest.mark.parametrize(("layout", "plain"), LAYOUTS.values(), ids=LAYOUTS)
def test_shards_of_every_layout_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: dict[str, Any], plain: bool
) -> None:
    """Those that this version writes are decoded at once, without zarr, and those of any other layout by zarr."""
    create = zarr.Group.create_array

    def with_layout(group: zarr.Group, name: str, *, chunks: tuple[int, ...], **options: Any) -> zarr.Array:
        changed = layout if name == "tokens" else {}
        chunks = (changed.get("chunks", chunks[0]), *chunks[1:])
        return create(
            group, name, chunks=chunks, **options | {key: value for key, value in changed.items() if key != "chunks"}
        )

    monkeypatch.setattr(zarr.Group, "create_array", with_layout)
    tokens = written(tmp_path / "t", vocabulary=300)
    store, decoded = TokenStore.open(tmp_path / "t"), []
    by_zarr = zarr.Array.__getitem__
    monkeypatch.setattr(
        zarr.Array, "__getitem__", lambda array, rows: (decoded.append(array.name), by_zarr(array, rows))[1]
    )
    assert torch.equal(store.rows(np.arange(50))[0], tokens)
    assert set(decoded) == (set() if plain else {"/tokens"})


def test_wrong_rows_are_refused(tmp_path: Path) -> None:
    good = TokenPyramid(torch.zeros(2, SCHEDULE.length, dtype=torch.int64), SCHEDULE)
    label = {"label": torch.zeros(2, dtype=torch.int64)}
    other = Schedule.of([(14,)])
    wrong = {
        "schedule": (TokenPyramid(good.tokens, other), label),
        "outside the vocabulary": (TokenPyramid(good.tokens + 9, SCHEDULE), label),
        "holds the conditions": (good, {}),
        "created for 3": (
            TokenPyramid(good.tokens.repeat(2, 1), SCHEDULE),
            {"label": label["label"].repeat(2)},
        ),
        "a mask needs": (TokenPyramid(good.tokens, SCHEDULE, good.tokens == 0), label),
        "label is float32": (good, {"label": torch.zeros(2)}),
        "has the shape": (good, {"label": torch.zeros(3, dtype=torch.int64)}),
    }
    for message, rows in wrong.items():
        with (
            pytest.raises(ValueError, match=message),
            TokenStore.create(
                tmp_path / "t", schedule=SCHEDULE, vocabulary=9, num_rows=3, tokenizer_hash="x",
                conditions={"label": ((), "int64")},
            ) as store,
        ):  # fmt: skip
            store.append(*rows)
        assert not list(tmp_path.iterdir())


def test_rows_outside_are_refused(tmp_path: Path) -> None:
    written(tmp_path / "t")
    for index in (-1, 50):
        with pytest.raises(IndexError, match="are outside the store's 50"):
            TokenStore.open(tmp_path / "t").rows(np.array([index]))


# Nothing half-written


def test_too_few_rows_leave_the_earlier_store(tmp_path: Path) -> None:
    tokens = written(tmp_path / "t")
    with (
        pytest.raises(CheckpointError, match="0 of 9 rows were appended"),
        TokenStore.create(tmp_path / "t", schedule=SCHEDULE, vocabulary=9, num_rows=9, tokenizer_hash="x"),
    ):
        pass
    assert torch.equal(TokenStore.open(tmp_path / "t", "abc123").rows(np.arange(50))[0], tokens)
    assert [file.name for file in tmp_path.iterdir()] == ["t"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    calls = []

    def fail(*_: object, **__: object) -> None:
        calls.append(1)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("zarr.storage._local._put", fail)
    with pytest.raises(TrainingError, match="disk is full" if number == errno.ENOSPC else "Permission denied"):
        written(tmp_path / "t")
    assert calls
    assert not list(tmp_path.iterdir())


WRITE_UNTIL_KILLED = """
import sys, torch
from nextscale.tokens.pyramid import Schedule, TokenPyramid
from nextscale.storage.tokens import TokenStore

schedule = Schedule.of([(14,)])
zeros = TokenPyramid(torch.ones(16, 14, dtype=torch.int64), schedule)
options = dict(schedule=schedule, vocabulary=9, num_rows=10**7, tokenizer_hash="x", shard_rows=16)
with TokenStore.create(sys.argv[1], **options) as store:
    while True:
        store.append(zeros)
"""


def test_a_killed_writer_leaves_no_store_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    path = tmp_path / "t"
    process = forks.Forked(WRITE_UNTIL_KILLED, path)
    deadline = time.monotonic() + 300
    while process.running() and not list(tmp_path.glob(".t.partial/tokens/c/*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.finish()
    assert list(tmp_path.glob(".t.partial/tokens/c/*")) and not path.exists()
    written(path)
    assert [file.name for file in tmp_path.iterdir()] == ["t"]


def test_an_interrupted_replacement_is_undone(tmp_path: Path) -> None:
    tokens = written(tmp_path / "t")
    os.rename(tmp_path / "t", tmp_path / ".t.replaced")
    assert torch.equal(TokenStore.open(tmp_path / "t").rows(np.arange(50))[0], tokens)


# The hash


def test_hash_module_sees_weights_buffers_and_configuration() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).to(torch.bfloat16)
    base = hash_module(module, {"b": 1, "a": (1, 2)})
    assert base == hash_module(module, {"a": [1, 2], "b": 1})
    assert len(base) == 16 and int(base, 16) >= 0
    assert hash_module(module, {"a": [1, 2], "b": 2}) != base
    with torch.no_grad():
        for value in module.state_dict().values():
            before = value.clone()
            value.view(-1)[-1] += 1
            assert hash_module(module, {"b": 1, "a": (1, 2)}) != base
            value.copy_(before)
    assert hash_module(module, {"b": 1, "a": (1, 2)}) == base


# Whose tokens


class Named:
    """A source that says which samples it holds."""

    def __init__(self, source: Any, name: str) -> None:
        self.source, self.name = source, name

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, indices: np.ndarray, seeds: np.ndarray | None) -> Any:
        return self.source.batch(indices, seeds)

    def fingerprint(self) -> str:
        return self.name


class Unnamed(Named):
    fingerprint = None  # type: ignore[assignment]


def test_tokens_of_other_data_are_refused(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """As many samples, of the same classes; but not the same."""
    config = load_run_config(tiny_run)
    splits, tokenizer = plugins.modality("image").open_data(config.data), load_tokenizer(tiny_run)
    log = RunLog(tmp_path)

    def cached(train: str | None, validation: str | None, into: Path = tmp_path) -> tuple[TokenStore, TokenStore]:
        sources = [
            Unnamed(source, "") if name is None else Named(source, name)
            for source, name in ((splits.train, train), (splits.validation, validation))
        ]
        return open_or_write_tokens(
            into, tokenizer, replace(splits, train=sources[0], validation=sources[1]), config, log
        )

    first = cached("a", "b")
    assert [store.attributes["fingerprint"] for store in first] == ["a", "b"]
    cached("a", "b")
    cached(None, "b")  # a source that says nothing is compared by number, as before
    for names, split in ((("c", "b"), "train"), (("a", "c"), "validation"), (("b", "a"), "train")):
        with pytest.raises(CheckpointError, match=f"tokens.zarr/{split} holds tokens of other data") as caught:
            cached(*names)
        assert "run `nextscale tokenize` or delete it" in str(caught.value) and "\n" not in str(caught.value)

    # A cache from before fingerprints opens, with one note.
    shutil.rmtree(tmp_path / "tokens.zarr")
    cached(None, None)
    capsys.readouterr()
    cached("a", "b")
    assert capsys.readouterr().err.count("was written before") == 1
