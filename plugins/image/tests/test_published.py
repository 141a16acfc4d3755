"""Published VAR's checkpoints: every layout is detected from names and shapes, and survives a round trip."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

import nextscale
from nextscale.config.sections import TransformerConfig
from nextscale.errors import CheckpointError, ConfigError
from nextscale_image.config import ImageTokenizerConfig
from nextscale_image.published.convert import assemble, import_var
from nextscale_image.published.detect import SCHEDULES
from nextscale_image.published.export import export_var, publish

MakeRun = Callable[..., Path]
LAYOUT = Path(__file__).parents[4] / "shared" / "golden" / "var_official_layout.json"
NAMES = {"partial": "quantize.quant_resi.qresi_ls.0.weight", "shared": "quantize.quant_resi.qresi.weight",
         "scale": "quantize.quant_resi.0.weight"}  # fmt: skip


LAYOUTS = {
    "partial": ({}, {}),
    "four": ({"scales": [1, 2, 3, 4], "quantizer": {"phi_count": 4}}, {}),
    "shared phi": ({"quantizer": {"phi": "shared"}}, {}),
    "phi per scale": ({"quantizer": {"phi": "scale"}}, {}),
    "no phi": ({"quantizer": {"phi": "none"}}, {}),
    "shared adaLN": ({}, {"adaln": "shared"}),
    "no QK-norm": ({}, {"qk_norm": False}),
    "both": ({"quantizer": {"phi": "scale"}}, {"adaln": "shared", "qk_norm": False}),
    "other sizes": ({"multipliers": [1, 1, 3], "blocks": 2, "scales": [1, 2]}, {"width": 128, "heads": 4, "depth": 3}),
    "other MLP": ({"attention": False}, {"mlp_ratio": 2.5}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_round_trip(layout: str, make_run: MakeRun, tmp_path: Path) -> None:
    tokenizer, transformer = LAYOUTS[layout]
    run = make_run(tmp_path / "run", tokenizer, **transformer)
    files = [tmp_path / "vae.pth", tmp_path / "var.pth"]
    assert export_var(run, *files) == files
    import_var(*files).save(tmp_path / "again")

    before, after = nextscale.load(run, "cpu"), nextscale.load(tmp_path / "again", "cpu")
    for part in ("tokenizer", "transformer"):
        ours, theirs = getattr(before, part).state_dict(), getattr(after, part).state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    named = before.config.tokenizer.quantizer.phi
    loaded = torch.load(files[0], weights_only=True)
    assert named == "none" or NAMES[named] in loaded
    shared = torch.load(files[1], weights_only=True)
    if before.transformer.config.adaln == "shared":
        assert shared["shared_ada_lin.1.weight"].shape[0] == 6 * before.transformer.config.model_width
        assert shared["blocks.0.ada_gss"].shape == (1, 1, 6, before.transformer.config.model_width)
    one, other = (model.generate(2, seed=3, label=4).samples for model in (before, after))
    assert torch.equal(one, other)


def test_start_and_learned_position_are_exported_separately(make_run: MakeRun, tmp_path: Path) -> None:
    """Our model stores only their sum."""
    first, second = publish(make_run(tmp_path / "run"))
    assert second is not None
    second["pos_start"] = torch.randn_like(second["pos_start"])
    assemble(first, second).save(tmp_path / "again")
    _, again = publish(tmp_path / "again")
    assert again is not None and again.keys() == second.keys()
    assert all(torch.equal(again[name], second[name]) for name in second)


def test_half_precision_becomes_float32(make_run: MakeRun, tmp_path: Path) -> None:
    first, second = publish(make_run(tmp_path / "run"))
    assert second is not None
    half = [{name: v.half() if v.is_floating_point() else v for name, v in state.items()} for state in (first, second)]
    assemble(*half).save(tmp_path / "half")
    model = nextscale.load(tmp_path / "half", "cpu")
    assert {p.dtype for p in (*model.tokenizer.parameters(), *model.transformer.parameters())} == {torch.float32}
    assert torch.equal(model.transformer.head.weight, second["head.weight"].half().float())


def test_models_are_found_inside_training_checkpoints(make_run: MakeRun, tmp_path: Path) -> None:
    """Nested among other content, as published training writes them, or behind a wrapper's prefix."""
    first, second = publish(make_run(tmp_path / "run"))
    assert second is not None
    trainer = {"config": {"patch_nums": (1, 2, 4)}, "var_wo_ddp": second, "vae_local": first, "var_opt": {"state": {}}}
    torch.save({"epoch": 3, "trainer": trainer, "args": {"depth": 2}}, tmp_path / "ar-ckpt-last.pth")
    found = import_var(tmp_path / "ar-ckpt-last.pth", tmp_path / "ar-ckpt-last.pth")
    assert torch.equal(found.tokenizer.pyramid.quantizer.codebook, first["quantize.embedding.weight"])
    wrapped = {f"module._orig_mod.{name}": value for name, value in second.items()}
    torch.save({"state_dict": wrapped}, tmp_path / "wrapped.pth")
    torch.save(first, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    again = import_var(tmp_path / "old.pth", tmp_path / "wrapped.pth").transformer
    assert again is not None and torch.equal(again.head.weight, second["head.weight"])


def test_a_tokenizer_alone(make_run: MakeRun, tmp_path: Path) -> None:
    first, _ = publish(make_run(tmp_path / "run"))
    with pytest.raises(CheckpointError, match="no published VAR has 3 scales: give their sides with --scales"):
        assemble(first)
    assemble(first, scales=(1, 2, 4), overrides=["data=somewhere", "sampling.top_k=3"]).save(tmp_path / "alone")
    assert not (tmp_path / "alone" / "transformer").exists()
    config = nextscale.config.run.load_run_config(tmp_path / "alone")
    assert config.data.source == "somewhere" and config.sampling.top_k == 3


def test_runs_that_cannot_be_exported(make_run: MakeRun, tmp_path: Path) -> None:
    for number, (tokenizer, transformer, message) in enumerate([
        ({}, {"positions": "rotary"}, "transformer.positions is rotary, not absolute"),
        ({}, {"mlp": "swiglu"}, "transformer.mlp is swiglu, not gelu"),
        ({}, {"head": "codebook"}, "transformer.head is codebook, not linear"),
        ({"norm_groups": 16}, {}, r"tokenizer.norm_groups is \[16\], but published VAR has \[32\]"),
        ({"quantizer": {"distance": "cosine"}}, {}, "tokenizer.quantizer.distance is cosine"),
    ]):  # fmt: skip
        run = make_run(tmp_path / str(number), tokenizer, **transformer)
        with pytest.raises(ConfigError, match=message):
            export_var(run, tmp_path / "vae.pth", tmp_path / "var.pth")
    assert not list(tmp_path.glob("*.pth"))


# Official sizes, on the meta device, which needs no memory.


def official() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The published tokenizer, and the transformer of depth 16."""
    layout = json.loads(LAYOUT.read_text())
    states = []
    for names in (layout["vae_ch160v4096z32"], layout["var_d16"]):
        state = {}
        for name, (shape, dtype) in names.items():
            state[name] = torch.empty(shape, dtype=getattr(torch, dtype.removeprefix("torch.")), device="meta")
        states.append(state)
    return states[0], states[1]


def resized(state: Mapping[str, Tensor], depth: int, scales: tuple[int, ...], shared: bool) -> dict[str, Tensor]:
    """Resize depth 16 at 256 px: every width is a multiple of 64 x depth, and the number of heads is the depth."""
    length, width = sum(side**2 for side in scales), 64 * depth
    blocks = {name: value for name, value in state.items() if name.startswith("blocks.0.")}
    whole = {name: value for name, value in state.items() if not name.startswith("blocks.")}
    whole |= {name.replace("blocks.0.", f"blocks.{i}."): v for name, v in blocks.items() for i in range(depth)}

    def size(axis: int) -> int:
        if axis in (16, 680):
            return depth if axis == 16 else length
        return axis // 1024 * width if axis % 1024 == 0 and axis != 4096 else axis

    out = {}
    for name, value in whole.items():
        if "ada_lin" in name and name.startswith("blocks.") and shared:
            out[name.split(".ada_lin")[0] + ".ada_gss"] = torch.empty(1, 1, 6, width, device="meta")
            continue
        shape = [size(axis) for axis in value.shape]
        if "ffn" in name:
            shape = [4 * width if axis == 4096 else axis for axis in shape]
        out[name] = torch.empty(shape, dtype=value.dtype, device="meta")
    if shared:
        out["shared_ada_lin.1.weight"] = torch.empty(6 * width, width, device="meta")
        out["shared_ada_lin.1.bias"] = torch.empty(6 * width, device="meta")
    return out


@pytest.mark.skipif(not LAYOUT.is_file(), reason="../shared/golden/var_official_layout.json is absent")
@pytest.mark.parametrize(
    ("depth", "scales", "shared", "millions"),
    [(16, SCHEDULES[0], False, 310), (20, SCHEDULES[0], False, 600), (24, SCHEDULES[0], False, 1033),
     (30, SCHEDULES[0], False, 2010), (36, SCHEDULES[1], True, 2300)],
)  # fmt: skip
def test_official_sizes(depth: int, scales: tuple[int, ...], shared: bool, millions: int) -> None:
    tokenizer, d16 = official()
    found = assemble(tokenizer, resized(d16, depth, scales, shared))  # compares names and shapes
    assert found.transformer is not None
    assert found.config.tokenizer == ImageTokenizerConfig(scales=scales, norm_groups=32)
    settings = {"width": 64 * depth, "heads": depth, "adaln": "shared" if shared else "block"}
    assert found.config.transformer == TransformerConfig(depth=depth, **settings)
    assert found.transformer.conditioner.specs[0].size == 1000
    assert found.description == {"channels": 3, "height": 16 * scales[-1], "width": 16 * scales[-1]}
    assert sum(p.numel() for p in found.tokenizer.parameters()) == pytest.approx(109e6, rel=0.01)
    # The papers' round figures.
    assert sum(p.numel() for p in found.transformer.parameters()) / 1e6 == pytest.approx(millions, rel=0.03)
