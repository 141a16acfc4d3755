"""The configuration of a run: pydantic models that hold every default, description and bound. No torch here."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from nextscale.remote.urls import refuse_secrets

Fraction = Annotated[float, Field(ge=0, le=1)]


Shard = Literal["none", "full"] | PositiveInt


class Section(BaseModel):
    """A section of the configuration: unknown keys are errors, and defaults are checked too."""

    shorthand: ClassVar[str | None] = None
    """The setting that ``SECTION=VALUE`` sets. In a data section it is the location of the data (``data=PATH``).
    The modality gets a local copy where that is a URL. Token caches do not depend on it, because data may be moved."""
    added: ClassVar[tuple[str, ...]] = ()
    """Settings that the last release did not have. Only these may be missing in the ``config.yaml`` of a run."""
    unlearned: ClassVar[tuple[str, ...]] = ()
    """Settings that no weights of the tokenizer depend on: a run may start from another with other values
    (``training.init``)."""
    reordering: ClassVar[tuple[str, ...]] = ()
    """Those of ``unlearned`` that change the order of tokens so much that a transformer must begin anew."""

    model_config = ConfigDict(extra="forbid", validate_default=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _holds_no_secret(cls, values: Any) -> Any:
        for name, value in values.items() if isinstance(values, dict) else ():
            refuse_secrets(value, str(name))
        return values


class LimitsConfig(Section):
    """How large data may be. Whatever exceeds a limit is refused before memory is taken for it."""

    array_bytes: PositiveInt = 16 * 2**30
    """Bytes of an array in a file of arrays, once unpacked."""
    unpacked_times: PositiveInt = 250
    """How many times as large as in its file an array of more than 256 MiB may be once unpacked. Sound data grows 1 to
    50 times; files made to fill the memory grow 1,000 times."""
    pixels: PositiveInt = 2**26
    """Pixels of a picture or a frame, as decoded. JPEG files are decoded at a fraction of their size where that is
    enough."""
    text_bytes: PositiveInt = 2**30
    """Bytes of a text file."""
    classes: PositiveInt = 100_000
    """Different class labels."""


class NoOptions(Section):
    """A section without settings."""


class RefinerConfig(Section):
    """A small causal network that lets a token know the tokens before it in its scale (Logit Refiner,
    https://arxiv.org/abs/2609.11804)."""

    depth: NonNegativeInt = 1
    """Number of blocks; 0 looks at the hidden state and the token before it alone."""
    width: PositiveInt | None = None
    """Width of the blocks; None means that of the transformer, but at most 256."""
    heads: PositiveInt | None = None
    """Attention heads; None means width / 64."""
    scales: PositiveInt | Annotated[tuple[NonNegativeInt | str, ...], Field(min_length=1)] | None = None
    """The scales that are refined: those with at most this many tokens, or a list of scales by number (the coarsest is
    0) or by name (as ``eval`` lists them). None refines all. The others draw their tokens independently."""


class TransformerConfig(Section):
    """The scale-wise transformer. The defaults are those of published VAR (https://arxiv.org/abs/2404.02905)."""

    added = ("refiner", "known_tokens")

    depth: NonNegativeInt = 16
    """Number of blocks; 0 leaves everything to the modality's own stem."""
    width: PositiveInt | None = None
    """Model width D; None means 64 x depth, as published."""
    heads: PositiveInt | None = None
    """Attention heads H; None means width / 64."""
    mlp_ratio: PositiveFloat = 4.0
    """Hidden width of the MLP, as a multiple of D."""
    mlp: Literal["gelu", "swiglu"] = "gelu"
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    adaln: Literal["block", "shared"] = "block"
    """One adaLN projection per block, or one for all blocks (as in VAR's 512 px model)."""
    qk_norm: bool = True
    """L2-normalised queries and keys, with a learned scale per head."""
    positions: Literal["absolute", "rotary"] = "absolute"
    """Learned absolute positions tie a model to one schedule; rotary ones are computed from coordinates."""
    scale_embedding: bool = True
    """Add a learned vector per scale."""
    attention: Literal["full", "markov"] | tuple[tuple[bool, ...], ...] = "full"
    """The scales that a scale attends to: itself and all coarser ones, itself only, or those of a K x K matrix."""
    head: Literal["linear", "codebook"] = "linear"
    """codebook adds a term to the logits of a linear layer: how close each code lies to a predicted point. It learns in
    fewer steps."""
    drop_path: Fraction | None = None
    """Stochastic depth of the last block (it grows linearly from 0); None means 0.1 x depth / 24, as published."""
    in_scale_steps: bool = False
    """Train with part of each scale already revealed, so that a scale can be sampled in several sub-steps."""
    known_tokens: Literal["embedding", "codes"] = "embedding"
    """How in-scale steps show the tokens of a scale that are known: by an embedding that is learned for this purpose,
    or by their code vectors, which the layer that embeds the input takes too. Modalities with their own stem have a way
    of their own."""
    refiner: RefinerConfig | None = None
    """Draw the tokens of a scale one after another through a small network, so that they know each other; the blocks
    still run once per scale. None draws them independently, as published VAR."""

    @property
    def model_width(self) -> int:
        return self.width or 64 * self.depth

    @property
    def num_heads(self) -> int:
        return self.heads or max(1, self.model_width // 64)

    @property
    def drop_path_rate(self) -> float:
        return 0.1 * self.depth / 24 if self.drop_path is None else self.drop_path


class ScorerConfig(Section):
    """A small transformer that tells real token maps of a scale from drawn ones, for ``sampling.candidates`` (LSRS,
    https://arxiv.org/abs/2512.03796). Whatever is not named here is as in the ``transformer`` that it scores."""

    depth: PositiveInt = 2
    """Number of blocks."""
    width: PositiveInt | None = None
    """Width of the blocks; None means that of the transformer, but at most 256."""
    heads: PositiveInt | None = None
    """Attention heads; None means width / 64."""


class StageConfig(Section):
    """Training of one stage."""

    added = ("cooldown", "patience")

    steps: PositiveInt = 1000
    """Optimizer steps."""
    batch_size: PositiveInt = 64
    """Samples per optimizer step, over all processes and accumulated micro-batches."""
    accumulate: PositiveInt = 1
    """Micro-batches per step."""
    lr: PositiveFloat = 1e-3
    """Peak learning rate."""
    schedule: Literal["cosine", "linear", "constant", "trapezoid"] = "cosine"
    """How the learning rate falls after warm-up. trapezoid: it stays at its peak until the cool-down, and then falls
    linearly."""
    cooldown: Fraction = 0.25
    """With the trapezoid schedule, the share of the steps in which the learning rate falls."""
    warmup: Fraction = 0.02
    """Share of the steps in which the learning rate rises from near zero."""
    final_lr: Fraction = 0.01
    """Learning rate of the last step, as a fraction of the peak."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    weight_decay: NonNegativeFloat = 0.05
    """AdamW's weight decay, on weight matrices only (not on biases, norms, embeddings or scales)."""
    clip: NonNegativeFloat = 2.0
    """Largest norm of the gradient; 0 turns clipping off."""
    ema: Fraction = 0.0
    """Decay of the moving average of the weights, which is evaluated and sampled; 0 keeps no average."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Autocast: auto takes bf16 if it is faster on the device, else fp32."""
    compile: bool = False
    """torch.compile the training step; validation and pictures run as they are."""
    validate_every: PositiveInt = 250
    """Steps between validations; the weights with the lowest validation loss are the stage's result."""
    patience: NonNegativeInt = 0
    """Validations without a lower loss after which training ends (with the trapezoid schedule: cools down); 0 goes on
    to the last step."""
    validation_samples: PositiveInt = 2048
    checkpoint_every: PositiveInt = 500
    keep: PositiveInt = 2
    """Number of checkpoints kept, besides the best."""
    samples_every: NonNegativeInt = 0
    """Steps between pictures of samples; 0 draws none during training."""
    log_every: PositiveInt = 10


class TokenizerStageConfig(StageConfig):
    """Stage 1. The modality defines the losses and their settings."""

    ema: Fraction = 0.999
    weight_decay: NonNegativeFloat = 0.0


class TransformerStageConfig(StageConfig):
    """Stage 2."""

    added = (*StageConfig.added, "checkpoint_activations", "cache_folder")

    label_smoothing: Fraction = 0.0
    scale_weights: Literal["equal", "root"] | tuple[NonNegativeFloat, ...] | None = None
    """Weight of each scale's mean loss. None weights every token equally, as published; equal weights every scale
    equally; root lies between the two: a token counts as one over the root of the number of tokens of its scale, on
    square grids one over the side. Or one number per scale."""
    condition_drop: Fraction = 0.1
    """Share of samples whose conditions are dropped, for guidance."""
    corrupt: Fraction = 0.0
    """Share of tokens that are replaced at random in the input, so that the model learns to correct its own mistakes:
    finer tokens are chosen anew to make up for them, as in Infinity's self-correction. Tokens are then not cached."""
    cache: bool = True
    """Train on cached tokens; False tokenizes every batch."""
    cache_folder: str | None = None
    """Folder or URL (s3://BUCKET/FOLDER) of the cached tokens; None is in the run's folder. Runs with the same
    tokenizer and data may share one."""
    cache_passes: PositiveInt = 1
    """Number of passes over the data in the cache, each with its own augmentation."""
    checkpoint_activations: bool = False
    """Keep only the input of each block for the backward pass, and compute the rest again: much less memory, a third
    more operations, the same result."""


class ScorerStageConfig(StageConfig):
    """Training of a scorer, on a trained transformer (``--stage scorer``). It sees the tokens that the transformer was
    trained on (``training.transformer.cache``), and tokens that the transformer draws as ``sampling`` says."""

    steps: PositiveInt = 500
    validate_every: PositiveInt = 50
    condition_drop: Fraction = 0.1
    """Share of samples whose conditions are dropped, for sampling without them."""


class TrainingConfig(Section):
    added = ("scorer", "threads", "minutes", "tokenizer_share", "shard", "workers")

    tokenizer: TokenizerStageConfig = TokenizerStageConfig()
    transformer: TransformerStageConfig = TransformerStageConfig()
    scorer: ScorerStageConfig = ScorerStageConfig()
    init: str | None = None
    """A run (a folder, or hf:OWNER/NAME@COMMIT) whose weights the stages start from (fine-tuning). Embeddings of
    conditions that differ are new."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 ..."""
    threads: PositiveInt | None = None
    """CPU threads; None takes torch's default, usually all cores. With other work on the machine, fewer may be many
    times faster. Results with another number differ in their last digits."""
    workers: NonNegativeInt = 0
    """Processes that read samples, decode and augment them for each process that trains, while it computes; 0 does so
    in a thread. Training on cached tokens reads no samples and takes none."""
    minutes: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Time for the whole run. The numbers of steps are then estimates: each stage ends when its time is used up. None
    takes exactly the given numbers of steps."""
    tokenizer_share: Fraction = 0.25
    """Share of ``minutes`` for the tokenizer."""
    shard: Shard = "none"
    """How many processes share one copy of a transformer's weights, gradients and optimizer state (FSDP): none, each
    has its own; full, all of them; or a number, that many (usually those of one machine)."""
    tensorboard: bool = False
    """Also write TensorBoard events (extra: track)."""


class SamplingConfig(Section):
    """How samples are drawn. A list gives one value per scale, coarsest first. A mapping gives values by scale name (as
    ``eval`` lists them); scales that are not named take the default."""

    added = ("group_steps", "candidates")

    guidance: NonNegativeFloat = 1.5
    """Classifier-free guidance t: logits are (1 + t) conditional - t unconditional; 0 is no guidance."""
    guidance_schedule: Literal["linear", "constant"] = "linear"
    """linear: t k / (K - 1) at scale k, as published; constant: t at every scale."""
    temperature: PositiveFloat | tuple[PositiveFloat, ...] | dict[str, PositiveFloat] = 1.0
    top_k: NonNegativeInt | tuple[NonNegativeInt, ...] | dict[str, NonNegativeInt] = 0
    """Draw only from the k likeliest tokens; 0 draws from all."""
    top_p: Fraction | tuple[Fraction, ...] | dict[str, Fraction] = 1.0
    """Draw from the smallest set of tokens with this probability; 1 draws from all."""
    smooth: bool = False
    """Feed the next scale a Gumbel-softmax mixture of codes. Samples are smoother, but no longer follow the model's
    distribution exactly."""
    steps: PositiveInt | tuple[PositiveInt, ...] = 1
    """Number of sub-steps in which a scale is revealed (more than 1 needs transformer.in_scale_steps)."""
    reveal: Literal["random", "confidence", "groups"] = "random"
    """Which tokens a sub-step keeps: random ones, the likeliest, or one of each group that the tokenizer defines.
    Groups take as many sub-steps as the largest group has tokens, and ignore ``steps``."""
    group_steps: PositiveInt | tuple[PositiveInt, ...] | None = None
    """Largest number of sub-steps of a scale with reveal=groups. Larger groups then draw several tokens in a sub-step,
    none of which knows the others. None draws the tokens of a group one at a time."""
    candidates: PositiveInt = 1
    """Number of token maps that are drawn at every scale, of which the run's scorer keeps the likeliest. More than 1
    needs a scorer (``nextscale train --stage scorer``)."""
    require: str | None = None
    """A property that samples must have after every scale, one of those that the tokenizer can check
    (``requirements``). Samples without it redraw the scale."""
    tries: PositiveInt = 20
    """Maximum number of redraws per scale; after that, the last draw stands."""


class RunConfig(Section):
    """The configuration of a run. ``config.run.run_config_model`` returns the version of a particular modality."""

    added = ("scorer",)

    modality: str
    """Name of the modality."""
    preset: str | None = None
    """The preset that this configuration starts from; none means bare defaults."""
    seed: NonNegativeInt = 0
    """Seed of everything random in training."""
    data: Any = None
    """The modality's data section."""
    tokenizer: Any = None
    """The modality's tokenizer section."""
    transformer: TransformerConfig = TransformerConfig()
    scorer: ScorerConfig = ScorerConfig()
    training: TrainingConfig = TrainingConfig()
    sampling: SamplingConfig = SamplingConfig()
