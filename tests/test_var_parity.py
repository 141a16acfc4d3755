"""Parity with published VAR (https://arxiv.org/abs/2404.02905): its outputs at a small size with random weights."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nextscale.conditioning import ConditionSpec
from nextscale.config import SamplingConfig, TransformerConfig, TransformerStageConfig
from nextscale.data import Batch
from nextscale.pyramid import TokenPyramid
from nextscale.sampling import Generation, generate
from nextscale.training.randomness import Draws
from nextscale.training.transformer_stage import TransformerObjective
from nextscale.transformer import ScaleTransformer
from nextscale_image.config import ImageTokenizerConfig
from nextscale_image.tokenizer import ImageTokenizer

GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "var_tiny.pt"
pytestmark = pytest.mark.skipif(not GOLDEN.is_file(), reason="../shared/golden/var_tiny.pt is absent")


@cache
def golden() -> dict[str, Any]:
    return torch.load(GOLDEN, weights_only=True)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def close_images(ours: Tensor, theirs: Tensor) -> None:
    """Against a decoder in float64, float32 is off by up to 2e-5, theirs by 1e-5: that is rounding, no more."""
    torch.testing.assert_close(ours, theirs, atol=4e-5, rtol=0)


# Published names to ours.


def vae_names(multipliers: int, blocks: int) -> dict[str, str]:
    """Published prefixes of the tokenizer's modules, and ours."""
    names = {"quant_conv": "encoder.conv_latent", "post_quant_conv": "decoder.conv_latent"}
    for ours, theirs, order, count in (
        ("encoder", "down", range(multipliers), blocks),
        ("decoder", "up", reversed(range(multipliers)), blocks + 1),
    ):
        layers = []
        for level in order:
            for block in range(count):
                layers.append(f"{theirs}.{level}.block.{block}")
                if level == multipliers - 1:
                    layers.append(f"{theirs}.{level}.attn.{block}")
            if theirs == "down" and level < multipliers - 1:
                layers.append(f"down.{level}.downsample")
            if theirs == "up" and level > 0:
                layers.append(f"up.{level}.upsample")
        names |= {f"{ours}.{layer}": f"{ours}.layers.{i}" for i, layer in enumerate(layers)}
        names |= {f"{ours}.mid.{name}": f"{ours}.middle.{i}" for i, name in enumerate(("block_1", "attn_1", "block_2"))}
    names["quantize.embedding.weight"] = "pyramid.quantizer.codebook"
    names["quantize.ema_vocab_hit_SV"] = "pyramid.quantizer.usage_KV"
    return names | {"quantize.quant_resi.qresi_ls": "pyramid.phi.convs"}


VAR_NAMES = {
    "word_embed": "stem",
    "lvl_embed": "scale_embedding",
    "head_nm.ada_lin.1": "head_adaln",
    "ada_lin.1": "adaln",
    "attn.scale_mul_1H11": "attention.log_scale",
    "attn.mat_qkv": "attention.qkv",
    "attn": "attention",
    "ffn": "mlp",
}


def rename(name: str, names: dict[str, str]) -> str:
    """Replace the longest known run of dotted parts."""
    for theirs, ours in sorted(names.items(), key=lambda item: -len(item[0])):
        if f".{theirs}." in f".{name}.":
            return f".{name}.".replace(f".{theirs}.", f".{ours}.", 1).strip(".")
    return name


@cache
def tokenizer() -> ImageTokenizer:
    config = golden()["config"]
    ours = ImageTokenizer(
        ImageTokenizerConfig.model_validate(
            {
                "scales": config["pn"],
                "channels": config["Cvae"],
                "width": config["ch"],
                "quantizer": {"codes": config["V"], "phi_count": config["sqr"]},
            }
        ),
        {"channels": 3, "height": config["image_size"], "width": config["image_size"]},
    )
    names = vae_names(5, 2)
    state = {}
    for name, value in golden()["vae_state"].items():
        renamed = rename(name, names).replace("nin_shortcut", "shortcut").replace("proj_out", "proj")
        state[renamed] = value.float()
    ours.load_state_dict(state)
    for module in ours.modules():
        # Published norms always have 32 groups; ours fewer where a group would be a single channel (width 32 here).
        if isinstance(module, nn.GroupNorm):
            module.num_groups = 32
    return ours.eval()


@cache
def transformer() -> ScaleTransformer:
    config, state = golden()["config"], {}
    ours = ScaleTransformer(
        TransformerConfig(depth=config["depth"], drop_path=0.0),  # their outputs were taken without stochastic depth
        tokenizer().token_space,
        config["Cvae"],
        tokenizer().schedule(),
        [ConditionSpec(name="label", size=config["ncls"])],
    )
    theirs = {name: value.float() for name, value in golden()["var_state"].items() if value.is_floating_point()}
    classes = theirs.pop("class_emb.weight")
    state["conditioner.embed.label.weight"], state["conditioner.null.label"] = classes[:-1], classes[-1]
    state["position"] = theirs.pop("pos_1LC")[0]
    state["position"][0] += theirs.pop("pos_start")[0, 0]
    for name, value in theirs.items():
        if "zero_k_bias" not in name and name != "attn_bias_for_masking":
            state[rename(name, VAR_NAMES)] = value[0] if "scale_mul" in name else value
    ours.load_state_dict(state)
    return ours.eval()


def pyramid() -> TokenPyramid:
    return TokenPyramid.pack(golden()["indices"], tokenizer().schedule())


def labels() -> dict[str, Tensor]:
    return {"label": golden()["labels"]}


@torch.no_grad()
def test_encoder():
    close(tokenizer().features(golden()["image"]), golden()["features"])


@torch.no_grad()
def test_quantizer():
    tokens = tokenizer().pyramid.tokens(golden()["features"], tokenizer().schedule())
    states = tokenizer().states(tokens)
    for k, (indices, f_hat) in enumerate(zip(golden()["indices"], golden()["f_hat"], strict=True)):
        assert torch.equal(tokens.scale(k), indices), f"scale {k}"
        close(states[k + 1].f_hat, f_hat)


@torch.no_grad()
def test_tokens_of_an_image():
    assert torch.equal(tokenizer().encode(golden()["image"]).tokens, pyramid().tokens)


@torch.no_grad()
def test_decoder_after_each_scale():
    for k, theirs in enumerate(golden()["reconstructions"]):
        close_images(tokenizer().decode_tokens(pyramid(), k + 1).clamp(-1, 1), theirs)


@torch.no_grad()
def test_teacher_forcing():
    inputs = tokenizer().teacher_forcing(pyramid())
    assert inputs.start == 1
    close(inputs.features[:, 1:], golden()["var_input"])


@torch.no_grad()
def test_logits():
    inputs = tokenizer().teacher_forcing(pyramid())
    close(transformer()(inputs, transformer().conditioner(labels(), 2)), golden()["logits"])


def draw(config: SamplingConfig, **editing: Any) -> Generation:
    generator = torch.Generator().manual_seed(123)
    return generate(tokenizer(), transformer(), 2, labels(), config, generator, **editing)


@torch.inference_mode()
def decode(drawn: Generation) -> Tensor:
    return tokenizer().decode(drawn.state).clamp(-1, 1)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("greedy_cfg0", {"guidance": 0.0, "top_k": 1}),
        ("greedy_cfg1.5", {"guidance": 1.5, "top_k": 1}),
        ("seed123_cfg4_topk20_topp0.9", {"guidance": 4.0, "top_k": 20, "top_p": 0.9}),
    ],
)
def test_sampling(name: str, settings: dict[str, Any]):
    drawn = draw(SamplingConfig(**settings))
    for k, indices in enumerate(golden()[name]["indices"]):
        assert torch.equal(drawn.tokens[k], indices), f"scale {k}"
    close_images((decode(drawn) + 1) / 2, golden()[name]["image"])


def test_editing():
    theirs = golden()["inpaint_greedy_cfg1.5"]
    known = pyramid()
    # The mask on the finest grid is what it makes of the image's pixels.
    places = theirs["keep_mask"].repeat_interleave(16, 0).repeat_interleave(16, 1).bool()
    keep = tokenizer().keep_tokens(places.expand(2, -1, -1))
    drawn = draw(SamplingConfig(guidance=1.5, top_k=1), known=known, keep=keep)
    for k, indices in enumerate(theirs["indices"]):
        # Published indices are those drawn, before kept tokens replace them.
        kept = keep[:, known.schedule.span(k)]
        assert torch.equal(drawn.tokens[k], torch.where(kept, known.scale(k), indices)), f"scale {k}"
    assert 0 < keep[:, known.schedule.span(3)].float().mean() < 1
    close_images((decode(drawn) + 1) / 2, theirs["image"])


def test_quantizer_training():
    theirs, machine = golden()["quantizer_training"], tokenizer().pyramid
    features = theirs["features"].clone().requires_grad_()
    quantized = machine.quantize(features, tokenizer().schedule())
    close(quantized.f_hat, theirs["f_hat_straight_through"])
    close(quantized.loss, theirs["vq_loss"])
    objective = quantized.loss + quantized.f_hat.square().mean()
    assert isinstance(machine.quantizer.codebook, nn.Parameter)
    by_features, by_codes = torch.autograd.grad(objective, [features, machine.quantizer.codebook])
    close(by_features, theirs["grad_features"])
    close(by_codes, theirs["grad_codebook"])


def test_transformer_training():
    theirs, ours = golden()["transformer_training"], transformer()
    config = TransformerStageConfig(label_smoothing=theirs["label_smoothing"], condition_drop=0)
    objective = TransformerObjective(ours, tokenizer(), config)
    ours.zero_grad()
    loss, _ = objective(Batch(pyramid(), labels()), 0, Draws(0, 0, slice(0, 2), 2))
    loss.backward()
    close(loss, theirs["loss"])
    norms = {name: p.grad.norm() for name, p in ours.named_parameters() if p.grad is not None}
    expected = dict(theirs["grad_norm"])
    assert ours.position.grad is not None
    close(ours.position.grad[0].norm(), as_tensor(expected.pop("pos_start")))
    renamed = {"pos_1LC": "position", "class_emb.weight": "conditioner.embed.label.weight"}
    for name, norm in expected.items():
        close(norms.pop(renamed.get(name) or rename(name, VAR_NAMES)), as_tensor(norm))
    assert all(name.startswith("conditioner.null") and norm == 0 for name, norm in norms.items()), norms


def as_tensor(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float32)
