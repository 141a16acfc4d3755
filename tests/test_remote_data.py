"""Data behind URLs: every modality opens it as it opens local files, and whatever is wrong with a URL is one line."""

from __future__ import annotations

import importlib
import sys
import threading
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import networkx as nx
import numpy as np
import pytest
from fsspec import AbstractFileSystem
from fsspec.registry import known_implementations
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from nextscale import plugins
from nextscale.config.run import load_config
from nextscale.errors import ConfigError, DataError, RemoteError
from nextscale.remote import copies, folder
from nextscale.remote.copies import local_copy
from nextscale_cli.main import app

Settings = Callable[..., list[str]]
MEMORY = fsspec.filesystem("memory")


@pytest.fixture(autouse=True)
def storage(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield
    MEMORY.store.clear()
    MEMORY.pseudo_dirs[:] = [""]


def upload(local: Path, root: str) -> None:
    for file in [local] if local.is_file() else local.rglob("*"):
        if file.is_file():
            name = file.name if local.is_file() else f"{local.name}/{file.relative_to(local).as_posix()}"
            MEMORY.pipe(f"/{root}/{name}", file.read_bytes())


def content(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


TREES = st.dictionaries(
    st.lists(st.sampled_from(["cat", "dog", "a b", "ü.png"]), min_size=1, max_size=3).map("/".join),
    st.binary(max_size=20),
    min_size=1,
    max_size=6,
).filter(lambda tree: not any(other.startswith(f"{name}/") for name in tree for other in tree))


@hypothesis_settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=TREES, second=TREES, batch=st.integers(1, 3))
def test_a_copy_is_like_its_original_and_follows_it(
    first: dict[str, bytes], second: dict[str, bytes], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "BATCH_FILES", batch)
    for tree in (first, second):
        MEMORY.store.clear()
        for name, data in tree.items():
            MEMORY.pipe(f"/bucket/data/{name}", data)
        path = local_copy("memory://bucket/data/")
        assert content(path) == tree
        assert {each.relative_to(path).as_posix() for each in path.rglob("*") if each.is_dir()} == {
            name.rsplit("/", depth)[0] for name in tree for depth in range(1, name.count("/") + 1)
        }, "no folder is left without files"


def test_only_what_has_changed_is_copied_again(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    for name in "abc":
        MEMORY.pipe(f"/bucket/d/{name}", name.encode())
    asked: list[str] = []
    get = type(MEMORY).get_file
    monkeypatch.setattr(
        type(MEMORY), "get_file", lambda fs, path, *rest, **named: (asked.append(path), get(fs, path, *rest, **named))
    )
    local_copy("memory://bucket/d")
    assert "copying 3 files (3 bytes) from memory://bucket/d to" in capsys.readouterr().err
    MEMORY.pipe("/bucket/d/b", b"B")
    assert content(local_copy("memory://bucket/d")) == {"a": b"a", "b": b"B", "c": b"c"}
    assert "copying 1 file (1 byte" in capsys.readouterr().err
    local_copy("memory://bucket/d")
    assert capsys.readouterr().err == ""
    assert asked == ["/bucket/d/a", "/bucket/d/b", "/bucket/d/c", "/bucket/d/b"]


def test_an_interrupted_copy_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "BATCH_FILES", 1)
    for name in "abcd":
        MEMORY.pipe(f"/bucket/d/{name}", name.encode())
    asked: list[str] = []
    get = type(MEMORY).get_file

    def interrupted(fs: Any, path: str, *rest: Any, **named: Any) -> None:
        asked.append(path)
        if len(asked) == 3:
            raise KeyboardInterrupt
        get(fs, path, *rest, **named)

    monkeypatch.setattr(type(MEMORY), "get_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        local_copy("memory://bucket/d")
    assert content(local_copy("memory://bucket/d")) == {name: name.encode() for name in "abcd"}
    assert [path[-1] for path in asked] == ["a", "b", "c", "c", "d"]


# Every modality.


def image_folder(path: Path) -> list[str]:
    for number in range(20):
        file = path / ("cat" if number % 2 else "dog") / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (6, 6), np.uint8)).save(file)
    return []


def image_arrays(path: Path) -> list[str]:
    np.savez(path, images=np.random.default_rng(0).integers(0, 255, (20, 6, 6), np.uint8), labels=np.arange(20) % 2)
    return []


def video_folder(path: Path) -> list[str]:
    for number in range(12):
        file = path / str(number // 3) / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (6, 6), np.uint8)).save(file)
    return ["data.frames=2"]


def graph_folder(path: Path) -> list[str]:
    path.mkdir()
    for number in range(12):
        nx.write_edgelist(nx.path_graph(number + 3), path / f"{number}.edgelist", data=False)
    return []


def sounds(path: Path) -> list[str]:
    for number in range(12):
        file = path / ("low" if number % 2 else "high") / f"{number}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        with wave.open(str(file), "wb") as opened:
            opened.setparams((1, 2, 8000, 0, "NONE", ""))
            opened.writeframes(np.random.default_rng(number).integers(-99, 99, 900, np.int16).tobytes())
    return ["data.seconds=0.128"]


def points(path: Path) -> list[str]:
    np.savez(path, x=np.random.default_rng(0).random((12, 8, 3), np.float32), y=np.arange(12) % 2)
    return []


@pytest.mark.parametrize(
    ("modality", "make", "name"),
    [
        ("image", image_folder, "pictures"),
        ("image", image_arrays, "pictures.npz"),
        ("video", video_folder, "clips"),
        ("graph", graph_folder, "graphs"),
        ("audio", sounds, "sounds"),
        ("points", points, "points.npz"),
    ],
)
def test_every_modality_opens_a_url_as_it_opens_the_path(
    modality: str, make: Callable[[Path], list[str]], name: str, tmp_path: Path
) -> None:
    if modality not in plugins.discover().modalities:
        pytest.skip(f"the example plugin nextscale-{modality} is not installed")
    options = make(tmp_path / name)
    upload(tmp_path / name, "bucket/deep")
    url = f"memory://bucket/deep/{name}"
    opened = []
    for source in (str(tmp_path / name), url):
        config = load_config(modality, "none", overrides=[f"data={source}", *options])
        opened.append(plugins.modality(modality).open_data(config.data))
        assert config.data.source == source, "the settings stay as they are given"
    here, there = opened
    assert there.description == here.description and there.conditions == here.conditions
    for split in ("train", "validation"):
        assert len(getattr(there, split)) == len(getattr(here, split))
        assert getattr(there, split).fingerprint() == getattr(here, split).fingerprint()


def test_errors_of_readers_name_the_url(tmp_path: Path) -> None:
    MEMORY.pipe("/bucket/bad.npz", b"PK no archive")
    with pytest.raises(DataError, match=r"memory://bucket/bad\.npz") as caught:
        plugins.modality("image").open_data(load_config("image", overrides=["data=memory://bucket/bad.npz"]).data)
    assert "nextscale/remote" not in str(caught.value)


# What may be wrong with a URL.


class Odd(AbstractFileSystem):
    """A storage that denies, does not answer, or knows no credentials, by the name of the bucket."""

    protocol = "odd"
    cachable = False

    def info(self, path: str, **named: Any) -> dict[str, Any]:
        bucket = path.split("/")[0]
        if bucket == "silent":
            threading.Event().wait(30)
        if bucket == "denied":
            raise PermissionError("Forbidden")
        if bucket == "anonymous":
            raise type("NoCredentialsError", (Exception,), {})("Unable to locate credentials")
        if bucket == "hidden":  # as the HTTP file system does where a server refuses
            raise FileNotFoundError(path) from ConnectionRefusedError("refused")
        if bucket == "strange":
            raise RuntimeError("see odd://user:word@strange/x?token=abc\nfor more")
        raise FileNotFoundError(path)


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("odd", Odd, clobber=True)
    monkeypatch.setattr(folder, "ANSWER_SECONDS", 0.2)


@pytest.mark.usefixtures("odd")
@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("foo://bucket/x", r"foo://bucket/x: unknown protocol foo:// \(such as s3://"),
        ("memory://", "names no bucket or file: it should be memory://BUCKET/FOLDER"),
        ("memory://bucket/none", "cannot read memory://bucket/none: there is no such bucket, folder or file"),
        ("memory://bucket/x/..", "goes up and down folders"),
        ("zip://x::memory://bucket/y", "chains file systems"),
        ("odd://silent/x", "it does not answer in time"),
        ("odd://denied/x", "access is denied: check the credentials"),
        ("odd://anonymous/x", "there are no credentials for it"),
        ("odd://hidden/x", "it cannot be reached"),
        ("odd://gone/x", "there is no such bucket, folder or file"),
        ("odd://strange/x", r"RuntimeError: see odd://\*\*\*@strange/x\?\*\*\* for more"),
    ],
)
def test_a_bad_url_is_one_line_and_leaves_nothing(url: str, message: str, tiny: Settings, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["train", "--out", str(tmp_path / "run"), *tiny(**{"data.source": url})])
    assert result.exit_code == 2 and not (tmp_path / "run").exists()
    (line,) = result.stderr.strip().splitlines()
    with pytest.raises(RemoteError, match=message) as caught:
        local_copy(url)
    assert str(caught.value) in line and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("scheme", "kind", "message"),
    [
        ("s3", "s3fs.S3FileSystem", r"s3:// needs s3fs: pip install 'nextscale\[remote\]'"),
        ("gs", "gcsfs.GCSFileSystem", r"gs:// needs gcsfs: pip install 'nextscale\[remote\]'"),
        ("made", "made_up_package.FileSystem", "made:// needs made_up_package: pip install made_up_package"),
    ],
)
def test_a_missing_package_is_named(scheme: str, kind: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = kind.split(".")[0]
    monkeypatch.setitem(known_implementations, scheme, {"class": kind, "err": "install it"})
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(importlib.import_module("fsspec.registry")._registry, scheme, raising=False)
    with pytest.raises(RemoteError, match=message):
        local_copy(f"{scheme}://bucket/x")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["x", "x/a"], "memory://bucket/x is both a file and a folder"),
        (["x/a", "x/a/b"], "memory://bucket/x/a is both a file and a folder"),
        (["x/../../evil"], "cannot be the name of a file here"),
        (["x/a//b"], "cannot be the name of a file here"),
    ],
)
def test_keys_that_no_folder_could_hold(keys: list[str], message: str, tmp_path: Path) -> None:
    for key in keys:
        MEMORY.pipe("/other", b"1")
        MEMORY.store[f"/bucket/{key}"] = MEMORY.store["/other"]
    with pytest.raises(RemoteError, match=message):
        local_copy("memory://bucket/x")


def test_data_that_do_not_fit_on_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    MEMORY.pipe("/bucket/x", b"12345")
    monkeypatch.setattr(copies.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 4}))
    with pytest.raises(RemoteError, match=r"it takes 5 bytes, and .* has 4 bytes left: set XDG_CACHE_HOME"):
        local_copy("memory://bucket/x")


@pytest.mark.parametrize(
    ("setting", "url"),
    [
        ("data.source", "s3://user:hunter2@bucket/x"),
        ("data.source", "s3://user:hun/hunter2@bucket/x"),
        ("data.source", "https://hunter2@host/x.npz"),
        ("data.source", "https://host/x.npz#token=hunter2"),
        ("data.source", "https://host/x.npz?X-Amz-Signature=hunter2"),
        ("data.source", "https://host/x.npz?name=a&access_token=hunter2"),
        ("training.transformer.cache_folder", "s3://user:hunter2@bucket/x"),
    ],
)
def test_secrets_in_urls_are_refused_and_not_repeated(setting: str, url: str, tiny: Settings, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["train", "--out", str(tmp_path / "run"), *tiny(**{setting: url})])
    assert result.exit_code == 2 and "holds a password or a signature" in result.stderr
    assert "hunter2" not in result.output and not (tmp_path / "run").exists()
    with pytest.raises(ConfigError):
        load_config("image", overrides=tiny(**{setting: url}))
    load_config("image", overrides=tiny(**{setting: "https://key/x.npz?version=3&design=1"}))


def test_the_format_of_a_web_file_is_read_from_its_name_without_the_query() -> None:
    assert copies._name_of("https://host/a/my%20photos.npz?download=1") == "my photos.npz"
    assert copies._name_of("s3://bucket/a/photos?1") == "photos?1"
