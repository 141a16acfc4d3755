"""Compares an import of published VAR with outputs of the published implementation.

    python examples/var_parity.py FILE

FILE (for ``torch.load(weights_only=True)``) holds the state dicts ``vae_state`` and ``var_state`` of a small model and,
under other keys, inputs and outputs. The two state dicts are written to .pth files, imported as ``nextscale import
var`` does, loaded with ``nextscale.load`` and exported again. Prints one line per check: whether it passes, and its
error. The exit status is 0 only if all pass. Takes seconds.

``tokens`` is the number of tokens that differ. ``relative`` is the largest difference divided by the largest value; it
must be at most 1e-4. Published in-painting returns the drawn tokens before kept tokens replace them, so kept tokens are
not compared.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import nextscale
from nextscale.config.sections import SamplingConfig, TransformerStageConfig
from nextscale.data import Batch
from nextscale.randomness import Draws
from nextscale.sampling.generate import Generation, generate
from nextscale.tokens.pyramid import TokenPyramid
from nextscale.training.transformer_stage import TransformerObjective
from nextscale_image.published.convert import import_var
from nextscale_image.published.export import export_var
from nextscale_image.published.names import publish_transformer

TOLERANCE = 1e-4
SAMPLES = re.compile(r"(inpaint_)?(?:greedy|seed(?P<seed>\d+))_cfg(?P<t>[\d.]+)(?:_topk(?P<k>\d+)_topp(?P<p>[\d.]+))?")


@dataclass(frozen=True)
class Check:
    key: str
    error: float
    unit: str
    """``relative``, or ``tokens`` or ``tensors``: the number of those that differ but should be equal."""

    @property
    def holds(self) -> bool:
        return self.error <= (TOLERANCE if self.unit == "relative" else 0)


def relative(ours: Tensor, theirs: Any) -> float:
    theirs = torch.as_tensor(theirs).to(torch.float64)
    if ours.shape != theirs.shape:
        return float("inf")
    difference = float((ours.detach() - theirs).abs().max())
    return difference if difference == 0 else difference / float(theirs.abs().max().clamp_min(1e-12))


def tokens(ours: Tensor, theirs: Tensor) -> float:
    return float("inf") if ours.shape != theirs.shape else float((ours != theirs).sum())


class Parity:
    """The imported models of one file, and their checks."""

    def __init__(self, file: Path, folder: Path) -> None:
        self.golden: dict[str, Any] = torch.load(file, weights_only=True)
        self.folder = folder
        torch.save(self.golden["vae_state"], folder / "vae.pth")
        torch.save(self.golden["var_state"], folder / "var.pth")
        # The published outputs were computed without stochastic depth.
        settings = ["transformer.drop_path=0"]
        import_var(folder / "vae.pth", folder / "var.pth", overrides=settings).save(folder / "run")
        model = nextscale.load(folder / "run", "cpu")
        self.tokenizer: Any = model.tokenizer
        self.transformer, self.condition = model.transformer, model.conditions[0]

    @cached_property
    def pyramid(self) -> TokenPyramid:
        return TokenPyramid.pack(self.golden["indices"], self.tokenizer.schedule())

    @property
    def labels(self) -> dict[str, Tensor]:
        return {"label": self.golden["labels"]}

    def checks(self) -> Iterator[Check]:
        """One or more checks per key, in the file's order. An unknown key fails."""
        for key in self.golden:
            if key in ("image", "labels"):  # inputs
                continue
            name = "samples" if SAMPLES.fullmatch(key) else key
            check: Callable[[str], Iterator[Check]] | None = getattr(self, f"check_{name}", None)
            if check is None:
                yield Check(f"{key} (unknown)", float("inf"), "tensors")
            else:
                yield from check(key)

    def check_config(self, key: str) -> Iterator[Check]:
        """The settings that the importer derived from names and shapes."""
        theirs, config, phi = self.golden[key], self.tokenizer.pyramid.phi, self.transformer.config
        ours = {
            "V": self.tokenizer.token_space.vocabulary,
            "Cvae": self.tokenizer.feature_dim,
            "ch": self.tokenizer.encoder.conv_in.out_channels,
            "pn": tuple(scale.shape[0] for scale in self.tokenizer.schedule().scales),
            "sqr": 0 if config.sharing == "scale" else len(config.convs),
            "depth": phi.depth,
            "shared_aln": phi.adaln == "shared",
            "l2": phi.qk_norm,
            "ncls": self.condition.size,
            "image_size": self.tokenizer.sample_shape[0],
        }
        wrong = [name for name in theirs if tuple_or(theirs[name]) != ours.get(name)]
        yield Check(key, len(wrong), "tensors")

    def check_vae_state(self, key: str) -> Iterator[Check]:
        yield self._exported(key, tokenizer=self.folder / "vae-again.pth")

    def check_var_state(self, key: str) -> Iterator[Check]:
        yield self._exported(key, transformer=self.folder / "var-again.pth")

    def _exported(self, key: str, **file: Path) -> Check:
        (path,) = export_var(self.folder / "run", **file)
        ours, theirs = torch.load(path, weights_only=True), self.golden[key]
        equal = [name in ours and torch.equal(ours[name].float(), theirs[name].float()) for name in theirs]
        return Check(f"{key} (exported again)", equal.count(False) + len(ours.keys() - theirs.keys()), "tensors")

    @torch.no_grad()
    def check_features(self, key: str) -> Iterator[Check]:
        yield Check(key, relative(self.tokenizer.features(self.golden["image"].float()), self.golden[key]), "relative")

    @torch.no_grad()
    def check_indices(self, key: str) -> Iterator[Check]:
        found = self.tokenizer.encode(self.golden["image"].float())
        yield Check(key, tokens(found.tokens, self.pyramid.tokens), "tokens")

    @torch.no_grad()
    def check_f_hat(self, key: str) -> Iterator[Check]:
        states = self.tokenizer.states(self.pyramid)[1:]
        yield Check(key, max(map(relative, (state.f_hat for state in states), self.golden[key])), "relative")

    @torch.no_grad()
    def check_reconstructions(self, key: str) -> Iterator[Check]:
        decoded = [self.tokenizer.decode(s).clamp(-1, 1) for s in self.tokenizer.states(self.pyramid)[1:]]
        yield Check(key, max(map(relative, decoded, self.golden[key])), "relative")

    @torch.no_grad()
    def check_var_input(self, key: str) -> Iterator[Check]:
        inputs = self.tokenizer.teacher_forcing(self.pyramid)
        yield Check(key, relative(inputs.features[:, inputs.start :], self.golden[key]), "relative")

    @torch.no_grad()
    def check_logits(self, key: str) -> Iterator[Check]:
        cond = self.transformer.conditioner(self.labels, len(self.pyramid))
        logits = self.transformer(self.tokenizer.teacher_forcing(self.pyramid), cond)
        yield Check(key, relative(logits, self.golden[key]), "relative")

    def check_samples(self, key: str) -> Iterator[Check]:
        """Greedy, seeded, and in-painting samples; the key says how they were drawn."""
        theirs, how = self.golden[key], SAMPLES.fullmatch(key)
        assert how is not None
        top = {"top_k": int(how["k"]), "top_p": float(how["p"])} if how["k"] else {"top_k": 1}
        generator = torch.Generator().manual_seed(int(how["seed"] or 0))
        keep = self.kept_tokens(theirs["keep_mask"]) if "keep_mask" in theirs else None
        drawn: Generation = generate(
            self.tokenizer,
            self.transformer,
            len(self.pyramid),
            self.labels,
            SamplingConfig(guidance=float(how["t"]), **top),
            generator,
            known=None if keep is None else self.pyramid,
            keep=keep,
        )
        ours, expected = torch.cat(drawn.tokens, 1), torch.cat(theirs["indices"], 1)
        if keep is not None:
            expected = torch.where(keep, self.pyramid.tokens, expected)
        yield Check(f"{key} indices", tokens(ours, expected), "tokens")
        with torch.inference_mode():
            image = (self.tokenizer.decode(drawn.state).clamp(-1, 1) + 1) / 2
        yield Check(f"{key} image", relative(image, theirs["image"]), "relative")

    def kept_tokens(self, keep_mask: Tensor) -> Tensor:
        """B L: the kept tokens, from a mask on the finest grid (h w), by way of the pixels that it covers."""
        cells = keep_mask.bool().reshape(-1, *keep_mask.shape[-2:])
        pixels = cells.repeat_interleave(self.tokenizer.factor[0], 1).repeat_interleave(self.tokenizer.factor[1], 2)
        return self.tokenizer.keep_tokens(pixels.expand(len(self.pyramid), -1, -1))

    def check_quantizer_training(self, key: str) -> Iterator[Check]:
        theirs, machine = self.golden[key], self.tokenizer.pyramid
        features = theirs["features"].float().clone().requires_grad_()
        quantized = machine.quantize(features, self.tokenizer.schedule())
        loss = quantized.loss + quantized.f_hat.square().mean()
        codebook = machine.quantizer.codebook.requires_grad_()
        by_features, by_codes = torch.autograd.grad(loss, [features, codebook])
        for name, ours in (
            ("f_hat_straight_through", quantized.f_hat),
            ("vq_loss", quantized.loss),
            ("grad_features", by_features),
            ("grad_codebook", by_codes),
        ):
            yield Check(f"{key} {name}", relative(ours, theirs[name]), "relative")

    def check_transformer_training(self, key: str) -> Iterator[Check]:
        theirs, model = self.golden[key], self.transformer
        config = TransformerStageConfig(label_smoothing=theirs["label_smoothing"], condition_drop=0)
        objective = TransformerObjective(model, self.tokenizer, config)
        model.zero_grad()
        number = len(self.pyramid)
        loss, _ = objective(Batch(self.pyramid, self.labels), 0, Draws(0, 0, slice(0, number), number))
        loss.backward()
        yield Check(f"{key} loss", relative(loss, theirs["loss"]), "relative")
        grads = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
        # The published start has a position of its own; its gradient is that of the first positions.
        start = grads["position"][: model.schedule.lengths[0]]
        published = publish_transformer(grads, model.schedule, self.condition, start)
        yield Check(f"{key} grad_norm", worst(published, theirs["grad_norm"]), "relative")


def worst(grads: Mapping[str, Tensor], norms: Mapping[str, Any]) -> float:
    """The largest relative error of a gradient's norm; infinite if a norm belongs to none of ``grads``."""
    if not norms or not norms.keys() <= grads.keys():
        return float("inf")
    return max(relative(grads[name].double().norm(), norm) for name, norm in norms.items())


def tuple_or(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def main(file: Path) -> int:
    with tempfile.TemporaryDirectory() as folder:
        found = list(Parity(file, Path(folder)).checks())
    for check in found:
        print(f"{'ok  ' if check.holds else 'FAIL'} {check.key:<52} {check.error:>9.3g} {check.unit}")
    failed = sum(not check.holds for check in found)
    print(f"{failed} of {len(found)} checks fail" if failed else f"all {len(found)} checks pass")
    return int(failed > 0)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1])))
