"""Push and load through huggingface_hub, against a hub on this machine: each command in a process of its own, because
the library reads where the hub is when it is imported."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import forks
import numpy as np
import pytest
from hub_server import CLOSE, Hub, serving
from PIL import Image

from nextscale.hub import MODELS

pytest.importorskip("huggingface_hub", reason="needs the extra hub")

MAIN = "from nextscale_cli.main import main; main()"
LOAD = """
import sys, torch, nextscale
drawn = [nextscale.load(run, device="cpu").generate(4, seed=1).samples for run in sys.argv[1:]]
assert torch.equal(*drawn)
"""


class User:
    """Someone who has this hub, an empty cache, and a folder to work in."""

    def __init__(self, hub: Hub, folder: Path) -> None:
        self.hub, self.cache, self.folder = hub, folder / "cache", folder / "work"
        self.folder.mkdir()
        keep = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        self.environment = {
            **keep,
            "HF_ENDPOINT": hub.address,
            "HF_HOME": str(self.cache),
            "HF_TOKEN": "secret",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
        }

    def does(self, *arguments: str | Path, code: str = MAIN, **environment: str) -> CompletedProcess[str]:
        return forks.run(code, *arguments, cwd=self.folder, environment={**self.environment, **environment})

    def succeeds(self, *arguments: str | Path, code: str = MAIN, **environment: str) -> str:
        done = self.does(*arguments, code=code, **environment)
        assert done.returncode == 0, f"{done.stderr}\n{self.hub.asked}"
        return done.stdout

    def fails(self, message: str, *arguments: str | Path, **environment: str) -> None:
        done = self.does(*arguments, **environment)
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.returncode == 2 and "Traceback" not in done.stderr, f"{done.stderr}\n{self.hub.asked}"
        assert len(errors) == 1 and message in errors[0], done.stderr


@pytest.fixture
def user(tmp_path: Path) -> Iterator[User]:
    with serving() as hub:
        yield User(hub, tmp_path)


def test_round_trip_with_and_without_a_network(user: User, tiny_run: Path) -> None:
    out = user.succeeds("push", tiny_run, "digits", "--private")
    assert out.endswith("nextscale sample hf:me/digits\n")
    there = user.hub.repositories["me/digits"]
    files = there.commits[there.branches["main"]]
    assert there.private and len(there.commits) == 2 and set(files) >= {*MODELS, "README.md", "env.json"}
    for name in MODELS[1:]:
        assert files[name] == (tiny_run / name).read_bytes()
    assert there.branches["main"] in user.succeeds("push", tiny_run, "digits") and len(there.commits) == 2, "no news"
    there.commit("main", {**files, "evil.pkl": b"x"})
    user.succeeds(tiny_run, "hf:me/digits", code=LOAD)
    user.succeeds("sample", tiny_run, "-n", "2", "--out", "local")
    user.succeeds("sample", "hf:me/digits", "-n", "2", HF_HUB_OFFLINE="1")
    for name in ("film.png", "single/000001.png"):
        loaded = Image.open(user.folder / "runs/me--digits/samples/seed-0" / name)
        # Their texts differ: they name the run.
        assert np.array_equal(loaded, Image.open(user.folder / "local" / name))
    assert not any("evil.pkl" in path or "pictures" in path for _, path in user.hub.asked if "/resolve/" in path)


def test_an_upload_that_broke_off_goes_on(user: User, tiny_run: Path) -> None:
    user.hub.fault = lambda method, path: 403 if "/commit/" in path else None
    user.fails("write access", "push", tiny_run, "me/digits")
    there = user.hub.repositories["me/digits"]
    assert len(there.commits) == 1 and len(user.hub.objects) == 2
    user.hub.fault = lambda method, path: CLOSE if "/commit/" in path else None
    user.fails("cannot be reached, or broke off", "push", tiny_run, "me/digits")
    assert len(there.commits) == 1
    user.hub.fault = lambda method, path: 500 if method == "PUT" else None
    user.succeeds("push", tiny_run, "me/digits", "--branch", "v1")
    assert len(there.commits) == 2, "the weights were not uploaded again"
    user.fails("no such revision", "sample", "hf:me/digits@v2")
    user.succeeds("sample", "hf:me/digits@v1", "-n", "1")


def test_a_download_that_broke_off_goes_on(user: User, tiny_run: Path) -> None:
    user.succeeds("push", tiny_run, "me/digits")
    user.hub.fault = lambda method, path: CLOSE if method == "GET" and path.endswith(MODELS[4]) else None
    user.fails("the hub cannot be reached, or broke off", "sample", "hf:me/digits")
    user.fails("only a part of it was downloaded", "sample", "hf:me/digits", HF_HUB_OFFLINE="1")
    user.hub.fault = lambda method, path: None
    user.succeeds("sample", "hf:me/digits", "-n", "1")


def test_no_access(user: User, tiny_run: Path) -> None:
    user.fails("log in with", "push", tiny_run, "me/digits", HF_TOKEN="")
    user.fails("log in with", "push", tiny_run, "me/digits", HF_TOKEN="wrong")
    user.fails("there is no such repository, or it is private", "sample", "hf:me/digits")
    user.fails("it is not in the cache, and HF_HUB_OFFLINE is set", "sample", "hf:me/digits", HF_HUB_OFFLINE="1")
    user.fails("cannot be reached", "sample", "hf:me/digits", HF_ENDPOINT="http://127.0.0.1:9")
    user.hub.fault = lambda method, path: 403 if path == "/api/repos/create" else None
    user.fails("cannot push to me/digits", "push", tiny_run, "me/digits")
    assert not user.hub.repositories
