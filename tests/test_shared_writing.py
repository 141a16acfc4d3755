"""The token cache, written by several processes and by processes that are killed: always the same files."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import forks
import numpy as np
import pytest
import torch

from nextscale.errors import CheckpointError
from nextscale.storage.tokens import TokenStore, TokenStoreWriter
from nextscale.tokens.pyramid import Schedule, TokenPyramid

SCHEDULE = Schedule.of([(1, 1), (2, 2)])

# Tokenizes a run's data in a number of processes, in small shards. With ``pause``, each shard takes this long.
DRIVER = """
import json, os, signal, sys, time
from pathlib import Path
from nextscale.storage import token_format
from nextscale.training import cache
from nextscale.training.tokenize import tokenize

run, processes, pause, failing = json.loads(sys.argv[1])
token_format._SHARD_BYTES, token_format._MIN_SHARD_ROWS, cache.BATCH = 1, 8, 5
from nextscale.storage.token_writer import TokenStoreWriter
append = TokenStoreWriter.append
def slow(self, *rows):
    time.sleep(pause)
    if failing and int(os.environ.get("RANK", 0)) == processes - 1 and self._shard >= 4:
        raise OSError(28, "no space")
    append(self, *rows)
TokenStoreWriter.append = slow
children = []
for rank in range(processes):
    child = os.fork()
    if child == 0:
        os.environ.update(RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1")
        code = 0
        try:
            tokenize(Path(run), ["training.transformer.cache_passes=2", "data.flip=true"])
        except SystemExit as error:
            code = error.code
        except BaseException as error:
            print(type(error).__name__, error, file=sys.stderr)
            code = 3
        sys.stderr.flush()
        os._exit(code)
    children.append(child)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]))
"""


def start(run: Path, processes: int, pause: float = 0.0, failing: bool = False) -> forks.Forked:
    environment = {**os.environ, "MASTER_PORT": forks.free_port()}
    plan = json.dumps([str(run), processes, pause, failing])
    return forks.Forked(DRIVER, plan, environment=environment, session=True)


def finish(process: forks.Forked) -> tuple[list[int], str]:
    done = process.finish()
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def contents(run: Path) -> dict[str, bytes]:
    store = run / "tokens.zarr"
    files = [file for file in sorted(store.glob("[!.]*/**/*")) if file.is_file()]
    return {str(file.relative_to(store)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained tokenizer, without a token cache."""
    folder = tmp_path_factory.mktemp("shared") / "run"
    folder.mkdir()
    for name in ("config.yaml", "tokenizer"):
        os.symlink(tiny_run / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def alone(run: Path) -> dict[str, bytes]:
    codes, err = finish(start(run, 1))
    assert codes == [0], err
    found = contents(run)
    assert sum(name.startswith("train/tokens/c") for name in found) == 192 // 8
    return found


def test_two_processes_write_what_one_writes(run: Path, alone: dict[str, bytes]) -> None:
    codes, err = finish(start(run, 2))
    assert codes == [0, 0], err
    assert contents(run) == alone


def test_more_processes_than_shards(run: Path, alone: dict[str, bytes]) -> None:
    codes, err = finish(start(run, 5))  # the validation split has four shards
    assert codes == [0] * 5, err
    assert contents(run) == alone


def test_a_failure_in_one_process_is_told_once(run: Path, alone: dict[str, bytes]) -> None:
    codes, err = finish(start(run, 2, failing=True))
    assert sorted(codes) == [1, 3]
    assert err.count("OSError") == 1
    assert contents(run) == alone, "the store that was there stays"
    codes, err = finish(start(run, 2))
    assert codes == [0, 0] and "5 of 24 shards are already written" in err
    assert contents(run) == alone and not list(run.rglob("*.partial"))


def written(run: Path) -> int:
    return len(list((run / "tokens.zarr").glob(".train.partial/done/[0-9]*.json")))


def signal_after(process: forks.Forked, number: int, run: Path, records: int) -> None:
    """Send a signal to all processes once so many shards are written."""
    deadline = time.monotonic() + 120
    while written(run) < records and process.running() and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, number)


def kill_after(run: Path, processes: int, records: int) -> int:
    """Begin to tokenize, and kill all processes once so many shards are written. Returns how many were."""
    process = start(run, processes, pause=0.02)
    signal_after(process, signal.SIGKILL, run, records)
    process.finish()
    return written(run)


@pytest.mark.parametrize("processes", [1, 2])
def test_an_interrupted_writing_is_continued(run: Path, alone: dict[str, bytes], processes: int) -> None:
    process = start(run, processes, pause=0.05)
    signal_after(process, signal.SIGTERM, run, 3)
    codes, err = finish(process)
    assert codes == [3, *[143] * (processes - 1)] and err.count("Interrupted interrupted") == 1, err
    before = written(run)
    assert 3 <= before < 24
    codes, err = finish(start(run, 2))
    assert codes == [0, 0] and f"{before} of 24 shards are already written" in err
    assert contents(run) == alone


def test_a_killed_writing_is_continued(run: Path, alone: dict[str, bytes]) -> None:
    before = kill_after(run, 2, 7)
    assert before >= 7
    codes, err = finish(start(run, 1))
    assert codes == [0] and f"{before} of 24 shards are already written" in err, err
    assert contents(run) == alone


@pytest.mark.slow
def test_five_kills_at_different_moments(run: Path, alone: dict[str, bytes]) -> None:
    counts = [kill_after(run, 1 + i % 2, 1 + 4 * i) for i in range(5)]
    assert counts == sorted(counts) and counts[-1] < 24
    codes, err = finish(start(run, 2))
    assert codes == [0, 0], err
    assert contents(run) == alone


def writer(path: Path, hash_: str = "a") -> TokenStoreWriter:
    options = {"schedule": SCHEDULE, "vocabulary": 9, "num_rows": 10, "shard_rows": 4, "resume": True}
    return TokenStore.create(path, tokenizer_hash=hash_, **options)


def rows(numbers: range, value: int) -> TokenPyramid:
    return TokenPyramid(torch.full((len(numbers), SCHEDULE.length), value), SCHEDULE)


def interrupt(path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), writer(path) as store:
        store.begin(2)
        store.append(rows(store.rows_of(2), 3))
        raise KeyboardInterrupt


def test_only_the_same_rows_are_continued(tmp_path: Path) -> None:
    interrupt(tmp_path / "t")
    with pytest.raises(CheckpointError, match="0 of 10 rows"), writer(tmp_path / "t", "b") as store:
        assert store.unfinished == [0, 1, 2]
    interrupt(tmp_path / "t")
    with writer(tmp_path / "t") as store:
        assert store.unfinished == [0, 1]
        store.append(rows(range(8), 5))
    tokens = TokenStore.open(tmp_path / "t").rows(np.arange(10))[0]
    assert tokens[:, 0].tolist() == [5] * 8 + [3] * 2
    assert [file.name for file in tmp_path.iterdir()] == ["t"]


@pytest.mark.parametrize("damage", ["tokens/c/2/0", "done/2.json"])
def test_a_shard_that_is_not_whole_is_written_again(tmp_path: Path, damage: str) -> None:
    interrupt(tmp_path / "t")
    (tmp_path / ".t.partial" / damage).write_bytes(b"half")
    with writer(tmp_path / "t") as store:
        assert store.unfinished == [0, 1, 2]
        store.append(rows(range(10), 5))
    assert (TokenStore.open(tmp_path / "t").rows(np.arange(10))[0] == 5).all()
