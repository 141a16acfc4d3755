"""Token caches behind URLs: whole or not at all, continued after an interruption, and the same rows as local ones."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor
from training_runs import assert_equal_weights
from typer.testing import CliRunner

from nextscale.errors import CheckpointError, RemoteError
from nextscale.remote.folder import RemoteFolder
from nextscale.storage import tokens as tokenstore
from nextscale.storage.tokens import TokenStore
from nextscale.tokens.pyramid import Schedule, TokenPyramid
from nextscale_cli.main import app

Settings = Callable[..., list[str]]
MEMORY = fsspec.filesystem("memory")
SCHEDULE = Schedule.of([(2,), (4,)])
URL = "memory://bucket/tokens/train"


@pytest.fixture(autouse=True)
def storage(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield
    MEMORY.store.clear()
    MEMORY.pseudo_dirs[:] = [""]


def tokens_of(rows: int, seed: int = 0) -> Tensor:
    return torch.randint(9, (rows, SCHEDULE.length), generator=torch.Generator().manual_seed(seed))


def written(beside: Path, url: str = URL, rows: int = 50, seed: int = 0, until: int | None = None) -> Tensor:
    """Write random tokens, or the shards before ``until`` and then be interrupted; the tokens."""
    tokens = tokens_of(rows, seed)
    store = TokenStore.create(
        beside / "tokens.zarr/train", url=url, schedule=SCHEDULE, vocabulary=9, num_rows=rows, tokenizer_hash="abc",
        shard_rows=8, conditions={"label": ((), "int64")}, attributes={"seed": seed}, resume=True,
    )  # fmt: skip
    with store as writer:
        for shard in writer.unfinished:
            if shard == until:
                raise KeyboardInterrupt
            writer.begin(shard)
            span = writer.rows_of(shard)
            pyramid = TokenPyramid(tokens[span.start : span.stop], SCHEDULE)
            writer.append(pyramid, {"label": torch.arange(span.start, span.stop)})
    return tokens


@hypothesis_settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    indices=st.lists(st.lists(st.integers(0, 49), max_size=30), min_size=1, max_size=4),
    whole=st.booleans(),
    buffer=st.integers(1, 4),
)
def test_any_rows_in_any_order(indices: list[list[int]], whole: bool, buffer: int, tmp_path: Path) -> None:
    tokens = written(tmp_path) if not MEMORY.exists(URL) else tokens_of(50)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenstore, "_KEEP_WHOLE_BYTES", 1 << 29 if whole else 0)
        store = TokenStore.open(URL, "abc", shards_per_buffer=buffer)
    for rows in indices:
        read, conditions, _ = store.rows(np.array(rows, np.int64))
        assert torch.equal(read, tokens[rows]) and conditions["label"].tolist() == rows


def test_an_interrupted_writer_goes_on_and_until_then_there_is_no_cache(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        written(tmp_path, until=3)
    first = {path: MEMORY.created(path) for path in MEMORY.find("/bucket") if "/c/" in path}
    assert len(first) == 2 * 3
    with pytest.raises(CheckpointError, match=r"manifest.json is missing.*run `nextscale tokenize`"):
        TokenStore.open(URL)
    tokens = written(tmp_path)
    assert torch.equal(TokenStore.open(URL, "abc").rows(np.arange(50))[0], tokens)
    assert all(MEMORY.created(path) == when for path, when in first.items()), "shards that are there are kept"
    assert not list(tmp_path.iterdir()), "nothing stays on this machine"


def test_an_interrupted_cache_goes_on_at_another_url(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        written(tmp_path, until=3)
    tokens = written(tmp_path, url="memory://elsewhere/train")
    assert torch.equal(TokenStore.open("memory://elsewhere/train", "abc").rows(np.arange(50))[0], tokens)


def test_shards_are_kept_if_the_manifest_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = RemoteFolder.put

    def put(self: RemoteFolder, file: Path, name: str) -> None:
        if name == "manifest.json":
            raise RemoteError("the network is gone")
        real(self, file, name)

    with monkeypatch.context() as patch, pytest.raises(RemoteError, match="the network is gone"):
        patch.setattr(RemoteFolder, "put", put)
        written(tmp_path)
    first = {path: MEMORY.created(path) for path in MEMORY.find("/bucket") if "/c/" in path}
    tokens = written(tmp_path)
    assert first and all(MEMORY.created(path) == when for path, when in first.items())
    assert torch.equal(TokenStore.open(URL, "abc").rows(np.arange(50))[0], tokens)


def test_a_cache_replaces_another_and_nothing_else(tmp_path: Path) -> None:
    written(tmp_path, rows=50)
    tokens = written(tmp_path, rows=20, seed=1)
    assert torch.equal(TokenStore.open(URL).rows(np.arange(20))[0], tokens)
    assert len([path for path in MEMORY.find("/bucket") if "/tokens/c/" in path]) == 3, "no shard of the old one stays"
    with pytest.raises(KeyboardInterrupt):
        written(tmp_path, seed=2, until=1)
    with pytest.raises(CheckpointError, match=r"manifest\.json is missing"):
        TokenStore.open(URL)  # not the old rows with some new ones
    MEMORY.pipe("/other/train/precious", b"kept")
    with pytest.raises(CheckpointError, match="memory://other/train exists and is not a token cache"):
        written(tmp_path, url="memory://other/train")
    assert MEMORY.cat("/other/train/precious") == b"kept"


@pytest.mark.parametrize(
    "file", ["tokens/c/1/0", "conditions/label/c/0", "tokens/zarr.json", "zarr.json", "manifest.json"]
)
@pytest.mark.parametrize("kind", ["changed", "short", "missing"])
def test_damage_is_one_line(file: str, kind: str, tmp_path: Path) -> None:
    written(tmp_path)
    path = f"/bucket/tokens/train/{file}"
    content = bytearray(MEMORY.cat(path))
    content[len(content) // 2] ^= 1
    MEMORY.rm(path)
    if kind != "missing":
        MEMORY.pipe(path, bytes(content[: len(content) // 2] if kind == "short" else content))
    with pytest.raises(CheckpointError, match=f"the token cache {URL} is damaged") as caught:
        TokenStore.open(URL).rows(np.arange(50))
    assert "\n" not in str(caught.value)


def test_a_storage_that_fails_in_between_can_be_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenstore, "_KEEP_WHOLE_BYTES", 0)
    tokens = written(tmp_path)
    store = TokenStore.open(URL, shards_per_buffer=1)
    store.rows(np.arange(16))
    with monkeypatch.context() as patch:
        patch.setattr(type(MEMORY), "cat_file", lambda *each, **named: (_ for _ in ()).throw(ConnectionError("gone")))
        with pytest.raises(RemoteError, match=r"cannot read memory://.*it cannot be reached"):
            store.rows(np.arange(16, 32))
    for rows in (np.arange(16, 32), np.arange(50), np.arange(49, -1, -1)):
        assert torch.equal(store.rows(rows)[0], tokens[rows])


def test_a_run_with_data_and_tokens_behind_urls_is_the_same_run(
    tiny: Settings, tiny_run: Path, digits_file: Path, tmp_path: Path
) -> None:
    """From the command line, in another process; ``file://`` is a storage that outlives it."""
    place = (tmp_path / "bucket").as_uri()
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket/digits.npz").write_bytes(digits_file.read_bytes())
    cached = {"training.transformer.cache_folder": f"{place}/tokens", "data.source": f"{place}/digits.npz"}
    command = [sys.executable, "-c", "from nextscale_cli.main import main; main()"]
    run = tmp_path / "run"
    done = subprocess.run(
        [*command, "train", "--out", str(run), *tiny(**cached)],
        capture_output=True, text=True, env=os.environ, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"copying 1 file ({digits_file.stat().st_size / 1000:.1f} kB) from {place}/digits.npz" in done.stderr
    assert_equal_weights(run, tiny_run)
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings["data"]["source"] == f"{place}/digits.npz"
    assert settings["training"]["transformer"]["cache_folder"] == f"{place}/tokens"
    assert not (run / "tokens.zarr").exists()

    def invoke(*arguments: str | Path) -> Any:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        return result

    assert invoke("tokenize", run).stdout.split() == [f"{place}/tokens/train", f"{place}/tokens/validation"]
    other = invoke("train", "--out", tmp_path / "other", "--init-from", run, *tiny(**cached), "--stage", "transformer")
    assert "wrote the tokens" not in other.stderr, "another run with the same tokenizer shares the cache"


def test_an_object_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits_file: Path) -> None:
    """A server that speaks S3, on this machine: data, tokens, and what it answers to mistakes."""
    for package in ("moto", "s3fs", "flask"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed (extras: remote, dev)")
    from moto.server import ThreadedMotoServer  # pyright: ignore[reportMissingImports]

    from nextscale.remote.copies import local_copy

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": f"http://{host}:{port}"})
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
            monkeypatch.setenv(name, "us-east-1" if "REGION" in name else "test")
        storage = fsspec.filesystem("s3")
        storage.mkdir("bucket")
        storage.pipe("bucket/data/digits.npz", digits_file.read_bytes())
        storage.pipe("bucket/data/notes/read.me", b"hello")
        folder = local_copy("s3://bucket/data")
        assert (folder / "digits.npz").read_bytes() == digits_file.read_bytes()
        assert (folder / "notes/read.me").read_bytes() == b"hello"
        storage.pipe("bucket/data/notes/read.me", b"HELLO")
        assert (local_copy("s3://bucket/data") / "notes/read.me").read_bytes() == b"HELLO"
        with pytest.raises(KeyboardInterrupt):
            written(tmp_path, "s3://bucket/tokens/train", until=3)
        tokens = written(tmp_path, "s3://bucket/tokens/train")
        assert torch.equal(TokenStore.open("s3://bucket/tokens/train").rows(np.arange(50))[0], tokens)
        for url in ("s3://nowhere/data", "s3://bucket/none"):
            with pytest.raises(RemoteError, match=f"cannot read {url}: there is no such bucket, folder or file"):
                local_copy(url)
        storage.pipe("bucket/data/notes", b"a file too")
        with pytest.raises(RemoteError, match="s3://bucket/data/notes is both a file and a folder"):
            local_copy("s3://bucket/data")
        with pytest.raises(RemoteError, match="s3://bucket/data/notes is both a file and a folder"):
            local_copy("s3://bucket/data/notes")
    finally:
        server.stop()
