"""Invariants of sampling: 10 determinism, 11 guidance 0 and editing, 12 legality."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from nextscale.config.sections import SamplingConfig
from nextscale.sampling.generate import Generation, generate
from nextscale.sampling.kept import where_chosen
from nextscale.sampling.scale import at_scale
from nextscale.testing.checks import Conditions
from nextscale.testing.helpers import assert_same, assert_same_tree
from nextscale.testing.invariants import holds
from nextscale.tokens.capabilities import EditsPlaces, ability
from nextscale.tokens.inputs import ScaleInput
from nextscale.tokens.pyramid import Schedule, TokenPyramid
from nextscale.tokens.tokenizer import MultiscaleTokenizer
from nextscale.transformer import KVCache, ScaleTransformer, Scorer
from nextscale.transformer.group_refiner import GroupRefiner


@holds("determinism")
def check_determinism(
    tokenizer: MultiscaleTokenizer,
    transformer: ScaleTransformer,
    num_samples: int,
    seed: int,
    conditions: Conditions = None,
    config: SamplingConfig | None = None,
    schedule: Schedule | None = None,
    scorer: Scorer | None = None,
) -> None:
    """10. The same seed gives the same tokens, with one generator for the batch or one per sample.

    With one per sample, sample i does not depend on the others: drawn alone, it comes out the same.
    """
    name = "invariant 10 (determinism)"

    def tokens(rows: list[int], per_sample: bool) -> Generation:
        own = {key: value[rows] for key, value in (conditions or {}).items()}
        seeds = [torch.Generator().manual_seed(seed + i) for i in rows]
        generator = seeds if per_sample else seeds[0]
        return generate(tokenizer, transformer, len(rows), own, config, generator, schedule, scorer=scorer)

    def real(drawn: Generation, k: int, i: int) -> Tensor:
        """The tokens of sample i without padding; none at scales that only other samples have."""
        if k >= len(drawn.tokens):
            return drawn.tokens[0][i][:0]
        mask = drawn.masks[k]
        return drawn.tokens[k][i] if mask is None else drawn.tokens[k][i][mask[i]]

    every = list(range(num_samples))
    for per_sample in (False, True):
        first = tokens(every, per_sample)
        torch.rand(1)  # no draw may depend on torch's global generator
        again = tokens(every, per_sample)
        for k, drawn in enumerate(first.tokens):
            assert_same(name, "tokens drawn again", again.tokens[k], drawn, scale=k)
    first = tokens(every, True)
    for i in every:
        alone = tokens([i], True)
        for k in range(len(first.tokens)):
            ours, theirs = real(alone, k, 0), real(first, k, i)
            assert_same(f"{name}, sample {i}", "tokens drawn alone", ours, theirs, scale=k, batched=False)


@holds("guidance_zero")
@torch.no_grad()
def check_guidance_zero(
    tokenizer: MultiscaleTokenizer,
    transformer: ScaleTransformer,
    num_samples: int,
    seed: int,
    conditions: Conditions = None,
    config: SamplingConfig | None = None,
    schedule: Schedule | None = None,
) -> None:
    """11. Guidance 0 draws from the conditional model: the same tokens as a bare loop over it.

    With a refiner, the bare loop computes the whole scale anew for every token. ``config`` and ``transformer`` must not
    use in-scale steps.
    """
    name = "invariant 11 (guidance 0 = conditional model)"
    config = (config or SamplingConfig()).model_copy(update={"guidance": 0.0})
    drawn = generate(
        tokenizer, transformer, num_samples, conditions, config, torch.Generator().manual_seed(seed), schedule
    )
    generator = torch.Generator().manual_seed(seed)
    cond_BD = transformer.conditioner(conditions or {}, num_samples)
    cache = KVCache(transformer.schedule.length)
    state, k = tokenizer.initial_state(num_samples, conditions, schedule), 0
    while k < tokenizer.num_scales(state):
        inputs = tokenizer.scale_input(state, k)
        settings = [at_scale(getattr(config, each), k, each) for each in ("temperature", "top_k", "top_p")]
        refined = transformer.refiner is not None and transformer.refiner.refines(inputs)
        shape = (num_samples, inputs.length, *transformer.token_space.token_shape)
        tokens = torch.zeros(shape, dtype=torch.long)
        for place, chosen in _steps(transformer, inputs) if refined else [(slice(None), torch.ones(1, 1).bool())]:
            logits = transformer(inputs, cond_BD, cache, tokens=tokens)
            if inputs.legal is not None:
                logits = logits.masked_fill(~inputs.legal, -torch.inf)
            next_tokens = transformer.token_space.draw(logits[:, place], generator, *settings)
            tokens[:, place] = where_chosen(chosen.expand(next_tokens.shape[:2]), next_tokens, tokens[:, place])
        assert_same(name, "tokens", drawn.tokens[k], tokens, scale=k)
        state, k = tokenizer.update(state, k, tokens), k + 1
    assert k == len(drawn.tokens), f"{name}: {len(drawn.tokens)} scales were drawn, not {k}"


def _steps(transformer: ScaleTransformer, inputs: ScaleInput) -> list[tuple[slice, Tensor]]:
    """For each step of a refiner, the places along L whose logits are drawn from, and which of these tokens count."""
    refiner = transformer.refiner
    if not isinstance(refiner, GroupRefiner):
        return [(slice(i, i + 1), torch.ones(1, 1).bool()) for i in range(inputs.length)]
    sequences = refiner.sequences(inputs)
    places = sequences.of_tokens(sequences.place)
    return [(slice(None), places == step) for step in range(int(places.max()) + 1)]


@holds("edit_known")
def check_edit_known(
    tokenizer: MultiscaleTokenizer,
    transformer: ScaleTransformer,
    pyramid: TokenPyramid,
    keep: Tensor,
    seed: int,
    conditions: Conditions = None,
    config: SamplingConfig | None = None,
    scorer: Scorer | None = None,
) -> None:
    """11. An edit returns the input's tokens wherever ``keep`` (B L booleans) is true. Also tried with all true."""
    name = "invariant 11 (edit keeps what is known)"
    for what, kept in (("all tokens known", torch.ones_like(keep)), ("some tokens known", keep)):
        generator = torch.Generator().manual_seed(seed)
        drawn = generate(
            tokenizer, transformer, len(pyramid), conditions, config, generator,
            known=pyramid, keep=kept, scorer=scorer,
        )  # fmt: skip
        for k, tokens in enumerate(drawn.tokens[: len(pyramid.schedule)]):
            valid = kept[:, pyramid.schedule.span(k)]
            if pyramid.mask is not None:
                valid = valid & pyramid.mask[:, pyramid.schedule.span(k)]
            assert_same(name, f"tokens ({what})", tokens, pyramid.scale(k), scale=k, valid=valid)


@holds("edit_places")
def check_edit_places(
    tokenizer: MultiscaleTokenizer,
    transformer: ScaleTransformer,
    samples: Tensor,
    keep: Tensor,
    seed: int,
    conditions: Conditions = None,
    config: SamplingConfig | None = None,
) -> None:
    """11. (``EditsPlaces``.) Edits with a mask over the sample, ``keep`` (B *grid booleans).

    Keeping everything returns the tokens and the state; keeping nothing gives the same tokens as plain sampling. Kept
    tokens never change. All this holds with and without anchoring.
    """
    name, known = "invariant 11 (edit by place)", tokenizer.encode(samples)
    editor = ability(tokenizer, EditsPlaces)
    masks = {what: editor.keep_tokens(mask) for what, mask in
             (("nothing", torch.zeros_like(keep)), ("some", keep), ("everything", torch.ones_like(keep)))}  # fmt: skip
    assert not bool(masks["nothing"].any()), f"{name}: a token is kept although no place is"
    assert bool(masks["everything"].all()), f"{name}: a token is not kept although every place is"
    for what, kept in masks.items():
        assert kept.shape == known.tokens.shape[:2], f"{name}: the mask over tokens is {tuple(kept.shape)}"
        for anchored in (False, True):
            generator = torch.Generator().manual_seed(seed)
            drawn = generate(
                tokenizer, transformer, len(known), conditions, config, generator,
                known=known, keep=kept, anchored=anchored,
            )  # fmt: skip
            for k, tokens in enumerate(drawn.tokens):
                valid = kept[:, known.schedule.span(k)]
                assert_same(name, f"tokens ({what} kept)", tokens, known.scale(k), scale=k, valid=valid)
            if what == "nothing":
                generator = torch.Generator().manual_seed(seed)
                plain = generate(tokenizer, transformer, len(known), conditions, config, generator, known.schedule)
                for k, tokens in enumerate(plain.tokens):
                    assert_same(name, "tokens (nothing kept)", drawn.tokens[k], tokens, scale=k)
            if what == "everything" and not (config and config.smooth):
                assert_same_tree(name, "state (everything kept)", drawn.state, tokenizer.states(known)[-1])


@holds("legality")
def check_legality(
    tokenizer: MultiscaleTokenizer,
    transformer: ScaleTransformer,
    num_samples: int,
    seed: int,
    conditions: Conditions = None,
    config: SamplingConfig | None = None,
    schedule: Schedule | None = None,
    share: float = 0.3,
    scorer: Scorer | None = None,
) -> None:
    """12. (Codes.) No illegal token is ever drawn, whatever the settings.

    A random mask leaves about ``share`` of the tokenizer's own legal tokens, and at least one per position.
    """
    generator = torch.Generator().manual_seed(seed)
    with _restricted(tokenizer, num_samples, generator, share) as masks:
        draws = torch.Generator().manual_seed(seed)
        drawn = generate(tokenizer, transformer, num_samples, conditions, config, draws, schedule, scorer=scorer)
    assert masks.keys() == set(range(len(drawn.tokens))), f"masks of scales {sorted(masks)}, {len(drawn.tokens)} drawn"
    for k, tokens in enumerate(drawn.tokens):
        allowed = masks[k].gather(-1, tokens[..., None])[..., 0]
        every = torch.ones_like(allowed)
        # Padding is never drawn: it holds token 0, whatever this check's own masks say.
        assert_same("invariant 12 (legality)", "legality of tokens", allowed, every, scale=k, valid=drawn.masks[k])


@contextmanager
def _restricted(
    tokenizer: MultiscaleTokenizer, num_samples: int, generator: torch.Generator, share: float
) -> Iterator[dict[int, Tensor]]:
    """Within the block, ``scale_input`` allows only a random set of tokens; yields the masks (B L_k V) by scale."""
    own_input, masks = tokenizer.scale_input, {}

    def scale_input(state: object, k: int) -> ScaleInput:
        inputs = own_input(state, k)
        shape = (num_samples, inputs.length, tokenizer.token_space.vocabulary)
        own = torch.ones(shape, dtype=torch.bool) if inputs.legal is None else inputs.legal
        chance = torch.rand(shape, generator=generator).masked_fill(~own, 2.0)
        masks[k] = own & ((chance < share) | (chance == chance.amin(-1, keepdim=True)))
        return replace(inputs, legal=masks[k])

    tokenizer.scale_input = scale_input
    try:
        yield masks
    finally:
        del tokenizer.scale_input
