from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forks
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import nextscale.storage.files as files
from nextscale.errors import CheckpointError, TrainingError
from nextscale.storage.checkpoint import load_checkpoint, save_checkpoint
from nextscale.storage.checkpoint_folder import check_checkpoint, latest_checkpoint, remove_checkpoint
from nextscale.storage.files import load_tensors, save_tensors_atomic, write_json_atomic, write_text_atomic

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]


def small_model(seed: int = 0, width: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, width), nn.Linear(width, 1)
    ).to(memory_format=torch.channels_last)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        inputs = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.param_groups[0]["lr"] = 1e-2 / (1 + step)
        optimizer.step()


def save(folder: Path, step: int, seed: int | None = None, keep: int = 9, name: str | None = None) -> Path:
    model = small_model(step if seed is None else seed)
    return save_checkpoint(folder, step, {"model": model}, {}, {}, {"loss": 0.1 * step}, keep, name)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


# Exactness


@pytest.mark.parametrize(
    "make",
    [
        lambda groups: torch.optim.AdamW(groups, lr=1e-2),
        lambda groups: torch.optim.AdamW(groups, lr=1e-2, fused=True),
        lambda groups: torch.optim.AdamW(groups, lr=1e-2, foreach=True, amsgrad=True),
        lambda groups: torch.optim.SGD(groups, lr=1e-2, momentum=0.9),
        lambda groups: torch.optim.NAdam(groups, lr=1e-2),
        lambda groups: torch.optim.Adafactor(groups, lr=1e-2),
    ],
    ids=["adamw", "fused", "foreach", "sgd", "nadam", "adafactor"],
)
def test_training_continues_exactly(tmp_path: Path, make: Callable[[list], torch.optim.Optimizer]) -> None:
    def build(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = small_model(seed)
        decayed = [p for p in model.parameters() if p.ndim > 1]
        plain = [p for p in model.parameters() if p.ndim <= 1]
        return model, make([{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}])

    model, optimizer = build(0)
    train(model, optimizer, range(3))
    path = save_checkpoint(tmp_path, 3, {"model": model}, {}, {"model": optimizer}, {}, 1)
    resumed, resumed_optimizer = build(1)
    train(resumed, resumed_optimizer, range(50, 52))  # loading must replace all of this state
    load_checkpoint(path, {"model": resumed}, {"model": resumed_optimizer})
    for one, other in zip(
        optimizer.state_dict()["state"].values(), resumed_optimizer.state_dict()["state"].values(), strict=True
    ):
        assert one.keys() == other.keys()
        for key, value in one.items():
            if isinstance(value, Tensor):
                loaded = other[key]
                assert (loaded.dtype, loaded.device, loaded.stride()) == (value.dtype, value.device, value.stride())
                assert torch.equal(loaded, value)
            else:
                assert other[key] == value
    assert [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups] == [
        {k: v for k, v in g.items() if k != "params"} for g in resumed_optimizer.param_groups
    ]
    train(model, optimizer, range(3, 7))
    train(resumed, resumed_optimizer, range(3, 7))
    assert same(model.state_dict(), resumed.state_dict())


def test_an_optimizer_has_no_state_to_save_before_its_first_step(tmp_path: Path) -> None:
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters())
    path = save_checkpoint(tmp_path, 0, {"model": model}, {}, {"model": optimizer}, {}, 1)
    train(model, optimizer, range(2))
    assert load_checkpoint(path, {"model": model}, {"model": optimizer}) == {"step": 0}
    assert not optimizer.state_dict()["state"]


@st.composite
def named_tensors(draw: st.DrawFn) -> dict[str, Tensor]:
    tensors = {}
    for name in draw(st.lists(st.text("ab.1", min_size=1, max_size=4), max_size=4, unique=True)):
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
        value = torch.randint(-5 if "." in name else 0, 6, shape, generator=generator)
        tensors[name] = value.to(draw(st.sampled_from(DTYPES)))
        if draw(st.booleans()):
            tensors[name] = tensors[name].movedim(0, -1) if value.ndim else tensors[name].expand(2)
    for name in draw(st.lists(st.sampled_from(sorted(tensors)), max_size=2)) if tensors else []:
        tensors[name + "'"] = tensors[name]  # shared
    return tensors


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(named_tensors(), st.dictionaries(st.text().filter(lambda key: key != "step"), JSON, max_size=3))
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Tensor], state: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("run")
    path = save_checkpoint(folder, 7, {}, {"average": tensors}, {}, state, 1)
    assert same(load_tensors(path / "average.safetensors"), tensors)
    blank = {name: torch.zeros_like(value).clone() for name, value in tensors.items()}
    assert load_checkpoint(path, {}, tensors={"average": blank}) == state | {"step": 7}
    assert same(blank, tensors)


def test_tied_weights(tmp_path: Path) -> None:
    def build(seed: int) -> nn.Sequential:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        model[1].weight = model[0].weight
        return model

    one, other = build(0), build(1)
    load_checkpoint(save_checkpoint(tmp_path, 1, {"model": one}, {}, {}, {}, 1), {"model": other})
    assert same(one.state_dict(), other.state_dict())
    assert other[1].weight is other[0].weight


# Which checkpoints are kept


def test_the_last_few_and_the_named_ones_are_kept(tmp_path: Path) -> None:
    for step in (1, 20, 300):
        save(tmp_path, step, keep=2)
        save(tmp_path, step, keep=2, name="best")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "step-00000020", "step-00000300"]
    assert latest_checkpoint(tmp_path) == tmp_path / "step-00000300"
    assert check_checkpoint(tmp_path / "best")["step"] == 300


def test_going_back_keeps_what_was_just_written(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save(tmp_path, step)
    save(tmp_path, 15, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000015", "step-00000020", "step-00000030"]
    save(tmp_path, 20, seed=5, keep=1)
    loaded = small_model(1)
    load_checkpoint(tmp_path / "step-00000020", {"model": loaded})
    assert same(loaded.state_dict(), small_model(5).state_dict())


def test_latest_ignores_temporaries(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "absent") is None
    (tmp_path / ".step-00000009.partial").mkdir()
    (tmp_path / "step-x").mkdir()
    (tmp_path / "step-00000008").write_text("no folder")
    assert latest_checkpoint(tmp_path) is None
    save(tmp_path, 100_000_000)
    save(tmp_path, 99_999_999)
    assert latest_checkpoint(tmp_path) == tmp_path / "step-100000000"
    assert not (tmp_path / ".step-00000009.partial").exists()


def test_the_checkpoint_that_is_replaced_can_be_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, {"model": small_model(step)}, {}, {}, {}, 1, "best", former="second")
        assert check_checkpoint(tmp_path / "best")["step"] == step
        if step > 1:
            assert check_checkpoint(tmp_path / "second")["step"] == step - 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "second"]


def test_a_kill_while_a_checkpoint_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    path = save(tmp_path, 3, name="best")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files.shutil, "rmtree", killed)
        remove_checkpoint(path)
    assert not path.exists() and latest_checkpoint(tmp_path) is None
    save(tmp_path, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"]
    remove_checkpoint(path)


@pytest.mark.parametrize("name", [None, "best"])
def test_an_interrupted_replacement_is_undone(tmp_path: Path, name: str | None) -> None:
    path = save(tmp_path, 3, name=name)
    os.rename(path, path.with_name(f".{path.name}.replaced"))
    assert latest_checkpoint(tmp_path) == (path if name is None else None)
    load_checkpoint(path, {"model": small_model()})
    os.rename(path, path.with_name(f".{path.name}.replaced"))
    save(tmp_path, 4)
    assert path.is_dir()


SAVE_FOR_EVER = """
import sys, torch
from nextscale.storage.checkpoint import save_checkpoint

model = torch.nn.Linear(300, 300)
for step in range(10**6):
    torch.nn.init.constant_(model.weight, step)
    save_checkpoint(sys.argv[1], step, {"model": model}, {}, {}, {}, 2)
    save_checkpoint(sys.argv[1], step, {"model": model}, {}, {}, {}, 2, "best")
    print(step, flush=True)
"""


def test_a_kill_at_any_moment_leaves_sound_checkpoints(tmp_path: Path) -> None:
    process = forks.Forked(SAVE_FOR_EVER, tmp_path)
    while (done := process.printed().count("\n")) < 4 and process.running():
        time.sleep(0.005)
    process.kill()
    assert process.finish().returncode == -9
    latest = latest_checkpoint(tmp_path)
    assert latest is not None and int(latest.name[5:]) >= done - 1
    model = nn.Linear(300, 300)
    for path in (tmp_path / "best", *tmp_path.glob("step-*")):
        step = load_checkpoint(path, {"model": model})["step"]
        assert bool((model.weight == step).all())


# Damage


@pytest.mark.parametrize("seed", range(30))
def test_damage_names_the_file_and_offers_the_one_before(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(1, 3):
        train(model, optimizer, range(step))
        path = save_checkpoint(
            tmp_path, step, {"model": model}, {"ema": model.state_dict()}, {"model": optimizer}, {"loss": 0.5}, 9
        )
    victim = sorted(path.iterdir())[rng.integers(4)]
    content = bytearray(victim.read_bytes())
    kind = ("missing", "truncated", "changed")[seed % 3]
    if kind == "missing":
        victim.unlink()
    elif kind == "truncated":
        victim.write_bytes(content[: rng.integers(len(content))])
    else:
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        victim.write_bytes(content)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        load_checkpoint(path, {"model": model}, {"model": optimizer})
    except CheckpointError as error:
        text = str(error)
        assert victim.name in text and "is damaged" in text and "\n" not in text
        assert text.endswith(f"the one before it is intact: --resume {tmp_path / 'step-00000001'}")
        if kind == "truncated" and victim.suffix == ".safetensors":
            assert f"is truncated: {victim.stat().st_size} of {len(content)} bytes" in text
    else:
        assert victim.name == "state.json" and kind == "changed"  # whitespace between two values
    assert same(model.state_dict(), before)


def test_the_offer_is_itself_verified(tmp_path: Path) -> None:
    paths = [save(tmp_path, step) for step in (1, 2, 3, 4)]
    for path in paths[1:3]:
        (path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"missing\); the one before it is intact: --resume .*step-00000001"):
        load_checkpoint(paths[2], {})
    (paths[0] / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"no other one in .* is intact"):
        load_checkpoint(paths[2], {})
    with pytest.raises(CheckpointError, match=r"there is no checkpoint at .*best; another is intact: .*step-00000004"):
        load_checkpoint(tmp_path / "best", {})


def test_another_models_checkpoint_changes_nothing(tmp_path: Path) -> None:
    path = save_checkpoint(
        tmp_path, 1, {"model": small_model()}, {}, {"model": torch.optim.AdamW(small_model().parameters())}, {}, 1
    )
    wide = small_model(3, width=6)
    before = {name: value.clone() for name, value in wide.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"wrong shape: 3.bias is \(5,\), not \(6,\), 3.weight "):
        load_checkpoint(path, {"model": wide})
    with pytest.raises(CheckpointError, match=r"missing: .*; unexpected: 0.bias, 0.weight, 1.bias and \d+ more"):
        load_checkpoint(path, {"model": nn.ModuleDict({"other": nn.Linear(2, 2)})})
    with pytest.raises(CheckpointError, match=r"holds no opponent \(it holds model.safetensors, optimizer-model"):
        load_checkpoint(path, {"opponent": wide})
    fewer = torch.optim.AdamW(list(wide.parameters())[1:])
    with pytest.raises(CheckpointError, match=r"it has groups of \[8\] parameters, but this run's optimizer has \[7\]"):
        load_checkpoint(path, {}, {"model": fewer})
    assert same(wide.state_dict(), before)


# A full disk


@pytest.mark.parametrize("stage", ["first", "later", "state.json"])
def test_a_full_disk_keeps_the_last_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    model = small_model()
    if stage != "first":
        save(tmp_path, 1)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if stage == "state.json":
        monkeypatch.setattr("nextscale.storage.checkpoint.write_json_atomic", full)
    else:
        monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(TrainingError) as caught:
        save_checkpoint(tmp_path, 2, {"model": model}, {}, {}, {}, 1)
    last = "there is no earlier checkpoint"
    if stage != "first":
        last = f"the last good checkpoint is {tmp_path / 'step-00000001'}"
    assert str(caught.value) == f"the disk is full: {tmp_path / 'step-00000002'} was not saved; {last}"
    assert [path.name for path in tmp_path.iterdir()] == ([] if stage == "first" else ["step-00000001"])
    if stage != "first":
        load_checkpoint(tmp_path / "step-00000001", {"model": model})


def test_files_reach_the_disk_before_they_get_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then their names do, too. So a power cut leaves the old file or the new one. (``conftest.py`` spares the suite
    the wait.)"""
    done: list[Any] = []
    replace = os.replace
    monkeypatch.setattr(os, "fsync", lambda file: done.append(os.fstat(file).st_ino))
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("named"), replace(*names)))
    path = tmp_path / "a.txt"
    write_text_atomic(path, "text")
    assert done == [path.stat().st_ino, "named", tmp_path.stat().st_ino]


WRITE_PAST_THE_LIMIT = """
import resource, sys, torch
from pathlib import Path
from nextscale.errors import TrainingError
from nextscale.storage.files import save_tensors_atomic, write_text_atomic
from nextscale.storage.checkpoint import save_checkpoint

folder, model = Path(sys.argv[1]), torch.nn.Linear(300, 300)
save_checkpoint(folder, 1, {"model": model}, {}, {}, {}, 1)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
for write in (
    lambda: save_checkpoint(folder, 2, {"model": model}, {}, {}, {}, 1),
    lambda: save_tensors_atomic(folder / "x.safetensors", model.state_dict()),
    lambda: write_text_atomic(folder / "x.txt", "x" * 60_000),
):
    try:
        write()
    except TrainingError as error:
        print(error)
"""


def test_a_write_that_really_fails(tmp_path: Path) -> None:
    """The operating system refuses in the middle of a file, also in safetensors' own writer."""
    done = forks.run(WRITE_PAST_THE_LIMIT, tmp_path)
    assert done.returncode == 0, done.stderr
    names = ("step-00000002", "x.safetensors", "x.txt")
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    for line, name in zip(lines, names, strict=True):
        assert line.startswith(f"cannot write: File too large: {tmp_path / name} was not saved")
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    check_checkpoint(tmp_path / "step-00000001")


def test_a_state_that_is_not_json_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path, 1, {"model": small_model()}, {}, {}, {"x": object()}, 1)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="two parts of a checkpoint are called model"):
        save_checkpoint(tmp_path, 1, {"model": small_model()}, {"model": {}}, {}, {}, 1)


# The small writers


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "a/b.json"
    write_json_atomic(path, {"é": [1, None]})
    write_json_atomic(path, {"é": [2, None]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"é": [2, None]}
    write_text_atomic(path, "text")
    assert path.read_text() == "text"
    tensors = {"a": torch.arange(3), "b": torch.zeros(2, 3).t()}
    tensors["c"] = tensors["b"]
    save_tensors_atomic(tmp_path / "t.safetensors", tensors, {"made": "by a test"})
    save_tensors_atomic(tmp_path / "t.safetensors", tensors)
    assert same(load_tensors(tmp_path / "t.safetensors"), tensors)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "b.json", "t.safetensors"]


def test_load_tensors_refuses_damage(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    with pytest.raises(CheckpointError, match="is missing"):
        load_tensors(path)
    save_tensors_atomic(path, {"a": torch.arange(3)})
    for content in (path.read_bytes()[:-1], b"", b"\x80\x04pickle"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="is damaged or not a safetensors file"):
            load_tensors(path)


@pytest.mark.parametrize(("saved_named", "named"), [(False, True), (True, False), (True, True)])
def test_optimizer_state_belongs_to_names_and_old_numbers_are_read(
    tmp_path: Path, saved_named: bool, named: bool
) -> None:
    """Release 0.1.0 numbered the parameters; names may come in another order."""

    def optimizer_of(model: nn.Module, with_names: bool, swapped: bool = False) -> torch.optim.AdamW:
        parameters = list(model.named_parameters())
        parameters = parameters[::-1] if swapped else parameters
        return torch.optim.AdamW(parameters if with_names else [value for _, value in parameters])

    model = small_model()
    optimizer = optimizer_of(model, saved_named)
    train(model, optimizer, range(2))
    path = save_checkpoint(tmp_path, 2, {"model": model}, {}, {"model": optimizer}, {}, 1)
    keys = load_tensors(path / "optimizer-model.safetensors")
    assert ("0.weight.exp_avg" in keys) == saved_named and ("0.exp_avg" in keys) != saved_named
    resumed = small_model(1)
    other = optimizer_of(resumed, named, swapped=saved_named and named)
    load_checkpoint(path, {"model": resumed}, {"model": other})
    train(model, optimizer, range(2, 4))
    train(resumed, other, range(2, 4))
    assert same(model.state_dict(), resumed.state_dict())


def test_optimizer_state_of_other_parameters_is_refused(tmp_path: Path) -> None:
    model = small_model()
    optimizer = torch.optim.AdamW(model.named_parameters())
    path = save_checkpoint(tmp_path, 2, {"model": model}, {}, {"model": optimizer}, {}, 1)
    renamed = torch.optim.AdamW([(f"other.{name}", value) for name, value in model.named_parameters()])
    with pytest.raises(CheckpointError, match=r"does not fit: it has other parameters \(0\.bias, 0\.weight, 1\.bias"):
        load_checkpoint(path, {"model": model}, {"model": renamed})
