"""``nextscale import var`` and ``export var`` on the command line: the files they write and the input they refuse."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import nextscale
from nextscale_cli.main import app
from nextscale_image.published.export import publish

State = dict[str, torch.Tensor]


class Code:
    """An object whose pickle runs code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("owned",)


def invoke(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def fails(folder: Path, message: str, *arguments: str | Path) -> str:
    """Check that the command ends with ``message`` and leaves ``folder`` unchanged; return all of stderr."""
    before = sorted(folder.rglob("*"))
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    *_, last = result.stderr.splitlines()
    assert last.startswith("error: ") and message in last, result.stderr
    assert sorted(folder.rglob("*")) == before and not Path("owned").exists()
    return result.stderr


@pytest.fixture(scope="module")
def states(make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[State, State]:
    first, second = publish(make_run(tmp_path_factory.mktemp("published") / "run"))
    assert second is not None
    return first, second


@pytest.fixture
def files(states: tuple[State, State], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    monkeypatch.chdir(tmp_path)
    for name, state in zip(("vae", "var"), states, strict=True):
        torch.save(state, tmp_path / f"{name}.pth")
    return tmp_path / "vae.pth", tmp_path / "var.pth"


def importing(files: tuple[Path, Path], *more: str | Path) -> list[str | Path]:
    return ["import", "var", "--tokenizer", files[0], "--transformer", files[1], *more]


def test_import_then_use_then_export(files: tuple[Path, Path], states: tuple[State, State], tmp_path: Path) -> None:
    dry = invoke(*importing(files, "--dry-run"))
    assert dry.exit_code == 0 and not Path("runs").exists()
    shown = dict(line.split(maxsplit=1) for line in dry.stdout.splitlines() if len(line.split()) > 1)
    assert (shown["scales"], shown["transformer.depth"], shown["transformer.classes"]) == ("1 2 4", "2", "5")

    done = invoke(*importing(files, "data=digits", "sampling.guidance=3"))
    assert done.exit_code == 0, done.output
    run = Path("runs/var")
    assert {path.name for path in run.iterdir()} == {
        "config.yaml", "tokenizer", "transformer", "published.safetensors"
    }  # fmt: skip
    assert invoke("sample", run, "-n", "2", "--no-film", "label=3").exit_code == 0
    assert nextscale.load(run, "cpu").config.sampling.guidance == 3
    fails(tmp_path, "run folder runs/var exists: name another with --out", *importing(files))

    out = invoke("export", "var", run, "--tokenizer", "a/vae.pth", "--transformer", "a/var.pth")
    assert out.stdout.split() == ["a/vae.pth", "a/var.pth"], out.output
    for path, state in zip(out.stdout.split(), states, strict=True):
        again = torch.load(path, weights_only=True)
        assert again.keys() == state.keys() and all(torch.equal(again[name], state[name]) for name in state)
    fails(tmp_path, "a/var.pth exists", "export", "var", run, "--tokenizer", "b.pth", "--transformer", "a/var.pth")
    fails(tmp_path, "nothing to write", "export", "var", run)
    fails(tmp_path, "no run folder at", "export", "var", "runs/nothing", "--tokenizer", "b.pth")


def test_imported_models_can_be_trained(files: tuple[Path, Path], states: tuple[State, State]) -> None:
    """A run is fine-tuned to other classes, and a transformer is trained for an imported tokenizer."""
    rng = np.random.default_rng(0)
    images = {f"x_{split}": rng.integers(0, 256, (8, 8, 8, 3), np.uint8) for split in ("train", "val")}
    np.savez("two.npz", **images, **{f"y_{split}": np.arange(8) % 2 for split in ("train", "val")})
    steps = ["training.transformer.steps=1", "training.transformer.batch_size=4", "training.transformer.lr=1e-30"]
    assert invoke(*importing(files, *steps)).exit_code == 0
    tuned = invoke("train", "--init-from", "runs/var", "--out", "tuned", "data=two.npz")
    assert tuned.exit_code == 0, tuned.output
    model = nextscale.load("tuned", "cpu")
    assert model.conditions[0].size == 2
    assert torch.equal(model.transformer.head.weight, states[1]["head.weight"])
    assert torch.equal(model.tokenizer.pyramid.quantizer.codebook, states[0]["quantize.embedding.weight"])

    small = ["transformer.depth=1", "transformer.width=32", "transformer.heads=1", "data=two.npz", *steps]
    alone = ["import", "var", "--tokenizer", files[0], "--scales", "1,2,4", "--out", "alone"]
    assert invoke(*alone, *small).exit_code == 0
    new = invoke("train", "--out", "alone", "--stage", "transformer", "--resume", "auto")
    assert new.exit_code == 0, new.output
    assert nextscale.load("alone", "cpu").transformer.config.width == 32


def test_files_that_are_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    whole = files[0].read_bytes()
    torch.save({"a": Code()}, tmp_path / "code.pth")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps(Code()))
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "other.pth")
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    (tmp_path / "half.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.pth").touch()
    (tmp_path / "text.pth").write_text("weights")
    torch.save(torch.load(files[0], weights_only=True), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "old.pth").write_bytes((tmp_path / "old.pth").read_bytes()[:-1000])
    for name, message in {
        "code.pth": "is refused: it holds more than tensors, and loading it would run posix.mkdir",
        "module.pth": "and loading it would run torch.nn.modules.linear.Linear",
        "pickle.pth": "is refused: it",
        "other.pth": "holds no VAR {}: it has no tensor {}",
        "list.pth": "holds no VAR {}",
        "half.pth": "is damaged, or torch.save did not write it",
        "empty.pth": "is damaged, or torch.save did not write it",
        "text.pth": "is damaged, or torch.save did not write it",
        "old.pth": "is damaged, or torch.save did not write it",
        "missing.pth": "there is no file",
    }.items():
        first = message.format("tokenizer", "quantize.embedding.weight")
        fails(tmp_path, first, "import", "var", "--tokenizer", tmp_path / name, "--out", tmp_path / "run")
        second = message.format("transformer", "word_embed.weight")
        fails(tmp_path, second, *importing((files[0], tmp_path / name), "--out", tmp_path / "run"))
    fails(tmp_path, "it holds VAR's transformer: pass it as --transformer", *importing((files[1], files[1])))
    fails(tmp_path, "it holds VAR's tokenizer: pass it as --tokenizer", *importing((files[0], files[0])))


def test_a_tokenizer_and_a_transformer_that_do_not_fit(
    files: tuple[Path, Path], states: tuple[State, State], tmp_path: Path
) -> None:
    first, second = states
    length, width = 1 + 4 + 9 + 16, 64
    longer = {
        "lvl_embed.weight": torch.zeros(4, width),
        "pos_1LC": torch.zeros(1, length, width),
        "lvl_1L": torch.repeat_interleave(torch.arange(4), torch.tensor([1, 4, 9, 16]))[None],
        "attn_bias_for_masking": torch.zeros(1, 1, length, length),
    }
    together = "tokenizer and transformer do not fit together: the"
    for changes, message in (
        ({"head.weight": torch.zeros(64, width)}, f"{together} transformer predicts 64 codes, the tokenizer has 32"),
        ({"word_embed.weight": torch.zeros(width, 8)}, f"{together} transformer takes 8 latent channels, the"),
        (longer, f"{together} tokenizer was trained with 3 scales, the transformer has 4"),
    ):
        torch.save({**second, **changes}, files[1])
        fails(tmp_path, message, *importing(files))

    # With --scales, other scales than the tokenizer was trained with are accepted, as in the published code.
    done = invoke(*importing(files, "--scales", "1,2,3,4"))
    assert done.exit_code == 0, done.output
    torch.save({f"quantize.quant_resi.{i}.weight": torch.zeros(4, 4, 3, 3) for i in range(3)} | first, files[0])
    fails(tmp_path, f"{together} tokenizer has a convolution for each of 3 scales", *importing(files, "--out", "b"))


def test_scales_that_do_not_fit(files: tuple[Path, Path], states: tuple[State, State], tmp_path: Path) -> None:
    message = "--scales 1,2,3 (3 scales of 14 tokens): the transformer has 1,2,4"
    fails(tmp_path, message, *importing(files, "--scales", "1,2,3"))
    fails(tmp_path, "--scales '1,x' must be increasing whole numbers", *importing(files, "--scales", "1,x"))
    torch.save({name: value for name, value in states[1].items() if name != "lvl_1L"}, files[1])
    fails(tmp_path, "no published VAR has 3 scales of 21 tokens: give their sides with --scales", *importing(files))
    fails(tmp_path, "the files have 3 scales of 21 tokens", *importing(files, "--scales", "1,2,3"))
    assert invoke(*importing(files, "--scales", "1,2,4")).exit_code == 0


def test_tensors_that_differ_are_listed(files: tuple[Path, Path], states: tuple[State, State], tmp_path: Path) -> None:
    other = {name: value for name, value in states[1].items() if name != "blocks.1.ffn.fc2.bias"}
    other["blocks.0.attn.proj.weight"] = torch.zeros(3, 64)
    other["rope.freqs"] = torch.zeros(7)
    torch.save(other, files[1])
    message = (
        "the transformer does not fit: blocks.0.attn.proj.weight is 3 x 64 in the file, expected 64 x 64 (and 2 more)"
    )
    lines = [line.split() for line in fails(tmp_path, message, *importing(files)).splitlines()]
    assert lines[0] == ["tensor", "in", "the", "file", "expected"]
    assert lines[2] == ["blocks.1.ffn.fc2.bias", "missing", "64"]
    assert lines[3] == ["rope.freqs", "7", "missing"]
    fails(tmp_path, "the transformer does not fit", *importing(files, "transformer.depth=3"))
    fails(tmp_path, "unknown key transformer.dept", *importing(files, "transformer.dept=3"))


@pytest.mark.parametrize(
    "name",
    ["blocks.1999999999.attn.proj.weight", "blocks.3.x", "blocks.00.x", f"blocks.{'9' * 5000}.x", "blocks.٢.x"],
)
def test_names_that_claim_more_blocks_than_there_are(
    files: tuple[Path, Path], states: tuple[State, State], tmp_path: Path, name: str
) -> None:
    torch.save({**states[1], name: torch.zeros(1)}, files[1])
    expected = (
        "does not fit" if "٢" in name else "the numbers after blocks must be 0 to 2, because the file has 3 of them"
    )
    fails(tmp_path, expected, *importing(files))


@pytest.mark.parametrize(
    "name", ["encoder.down.7.x", "encoder.down.0.block.40000000.x", "quantize.quant_resi.qresi_ls.9.x"]
)
def test_names_that_claim_a_larger_tokenizer(
    files: tuple[Path, Path], states: tuple[State, State], tmp_path: Path, name: str
) -> None:
    torch.save({**states[0], name: torch.zeros(1)}, files[0])
    fails(tmp_path, "the numbers after", *importing(files))


def test_shapes_that_claim_more_numbers_than_there_are(
    files: tuple[Path, Path], states: tuple[State, State], tmp_path: Path
) -> None:
    torch.save({**states[1], "class_emb.weight": torch.zeros(1).expand(10**12, 64)}, files[1])
    fails(tmp_path, "class_emb.weight has the shape 1000000000000 x 64, but not as many numbers", *importing(files))
    torch.save({**states[1], "head.weight": torch.zeros(8, 8).to_sparse()}, files[1])
    fails(tmp_path, "head.weight has the shape 8 x 8, but not as many numbers", *importing(files))
