"""The configuration of a run: pydantic models that every default, description and bound lives in. No torch here."""

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
)

Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A section of the configuration: unknown keys are errors, and defaults are checked too."""

    shorthand: ClassVar[str | None] = None
    """The setting that ``SECTION=VALUE`` stands for. Of a data section it says where the data lie (``data=PATH``); a
    token cache does not depend on it, because data may be moved."""

    model_config = ConfigDict(extra="forbid", validate_default=True, use_attribute_docstrings=True)


class TransformerConfig(Section):
    """The scale-wise transformer. Defaults are published VAR's (https://arxiv.org/abs/2404.02905)."""

    depth: NonNegativeInt = 16
    """Number of blocks; 0 leaves all to a modality's own stem."""
    width: PositiveInt | None = None
    """Model width D; None means 64 x depth, as published."""
    heads: PositiveInt | None = None
    """Attention heads H; None means width / 64."""
    mlp_ratio: PositiveFloat = 4.0
    """Hidden width of the MLP over D."""
    mlp: Literal["gelu", "swiglu"] = "gelu"
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    adaln: Literal["block", "shared"] = "block"
    """One adaLN projection a block, or one for all (as VAR's 512 px model)."""
    qk_norm: bool = True
    """L2-normalised queries and keys with a learned scale a head."""
    positions: Literal["absolute", "rotary"] = "absolute"
    """Learned absolute positions tie a model to one schedule; rotary ones are computed from coordinates."""
    scale_embedding: bool = True
    """A learned vector for each scale."""
    attention: Literal["full", "markov"] | tuple[tuple[bool, ...], ...] = "full"
    """Which scales a scale may look at: all coarser ones and itself, itself alone, or a K x K matrix."""
    head: Literal["linear", "codebook"] = "linear"
    """codebook adds to a linear layer's logits how near each code lies to a predicted point: learns in fewer steps."""
    drop_path: Fraction | None = None
    """Stochastic depth of the last block (it grows linearly from 0); None means 0.1 x depth / 24, as published."""
    in_scale_steps: bool = False
    """Train with part of a scale already revealed, so that it can be sampled in several sub-steps a scale."""

    @property
    def model_width(self) -> int:
        return self.width or 64 * self.depth

    @property
    def num_heads(self) -> int:
        return self.heads or max(1, self.model_width // 64)

    @property
    def drop_path_rate(self) -> float:
        return 0.1 * self.depth / 24 if self.drop_path is None else self.drop_path


class StageConfig(Section):
    """How one stage is trained."""

    steps: PositiveInt = 1000
    """Optimizer steps."""
    batch_size: PositiveInt = 64
    """Samples an optimizer step, over all processes and accumulated micro-batches."""
    accumulate: PositiveInt = 1
    """Micro-batches a step."""
    lr: PositiveFloat = 1e-3
    """Peak learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after warm-up."""
    warmup: Fraction = 0.02
    """Share of the steps in which the learning rate rises from near zero."""
    final_lr: Fraction = 0.01
    """Learning rate of the last step over the peak."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    weight_decay: NonNegativeFloat = 0.05
    """AdamW's, on weight matrices only (not on biases, norms, embeddings or scales)."""
    clip: NonNegativeFloat = 2.0
    """Largest norm of the gradient; 0 clips nothing."""
    ema: Fraction = 0.0
    """Decay of the moving average of the weights that is evaluated and sampled; 0 keeps none."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Autocast: auto takes bf16 where the device computes it faster, else fp32."""
    compile: bool = False
    """torch.compile the model."""
    validate_every: PositiveInt = 250
    """Steps between validations; the weights of the lowest validation loss are the stage's result."""
    validation_samples: PositiveInt = 2048
    checkpoint_every: PositiveInt = 500
    keep: PositiveInt = 2
    """Checkpoints kept, beside the best."""
    samples_every: NonNegativeInt = 0
    """Steps between pictures of samples; 0 draws none during training."""
    log_every: PositiveInt = 10


class TokenizerStageConfig(StageConfig):
    """Stage 1. The losses are the modality's, and so is their configuration."""

    ema: Fraction = 0.999
    weight_decay: NonNegativeFloat = 0.0


class TransformerStageConfig(StageConfig):
    """Stage 2."""

    label_smoothing: Fraction = 0.0
    scale_weights: tuple[NonNegativeFloat, ...] | None = None
    """Weight of each scale's mean loss; None weighs every token the same, as published."""
    condition_drop: Fraction = 0.1
    """Share of the samples whose conditions are dropped, for guidance."""
    corrupt: Fraction = 0.0
    """Share of the coarser scales' tokens that are replaced at random in the input, against exposure bias."""
    cache: bool = True
    """Train on cached tokens; False tokenizes every batch."""
    cache_passes: PositiveInt = 1
    """Passes over the data in the cache, each with its own augmentation."""


class TrainingConfig(Section):
    tokenizer: TokenizerStageConfig = TokenizerStageConfig()
    transformer: TransformerStageConfig = TransformerStageConfig()
    init: str | None = None
    """A run whose weights the stages start from (fine-tuning); what embeds conditions is new where they are others."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 ..."""
    tensorboard: bool = False
    """Also write TensorBoard events (extra: track)."""


class SamplingConfig(Section):
    """How samples are drawn. Values given as a list are one a scale, coarsest first. Values given by name are those of
    scales of that name (as ``eval`` lists them); scales that are not named have the default."""

    guidance: NonNegativeFloat = 1.5
    """Classifier-free guidance t: logits are (1 + t) conditional - t unconditional; 0 is the conditional model."""
    guidance_schedule: Literal["linear", "constant"] = "linear"
    """linear: t k / (K - 1) at scale k, as published; constant: t at every scale."""
    temperature: PositiveFloat | tuple[PositiveFloat, ...] | dict[str, PositiveFloat] = 1.0
    top_k: NonNegativeInt | tuple[NonNegativeInt, ...] | dict[str, NonNegativeInt] = 0
    """Draw from the k likeliest tokens only; 0 draws from all."""
    top_p: Fraction | tuple[Fraction, ...] | dict[str, Fraction] = 1.0
    """Draw from the smallest set of tokens with this probability; 1 draws from all."""
    smooth: bool = False
    """Feed the next scale a Gumbel-softmax mixture of codes: smoother samples, slightly off the model's law."""
    steps: PositiveInt | tuple[PositiveInt, ...] = 1
    """Sub-steps in which a scale is revealed (needs transformer.in_scale_steps)."""
    reveal: Literal["random", "confidence", "groups"] = "random"
    """Which tokens a sub-step keeps: any, the likeliest, or one of each group that the tokenizer names (then there are
    as many sub-steps as the largest group has tokens, and ``steps`` is not read)."""
    require: str | None = None
    """A property that every scale must leave samples with, of those that the tokenizer can tell (``requirements``):
    samples without it draw the scale again."""
    tries: PositiveInt = 20
    """How often, at most; then the last draw stands."""


class RunConfig(Section):
    """The configuration of a run. ``config.run.run_config_model`` gives the modality's own version of it."""

    modality: str
    """The modality's name."""
    preset: str | None = None
    """The preset that this configuration started from; none starts from bare defaults."""
    seed: NonNegativeInt = 0
    """Seed of everything random in training."""
    data: Any = None
    """The modality's data section."""
    tokenizer: Any = None
    """The modality's tokenizer section."""
    transformer: TransformerConfig = TransformerConfig()
    training: TrainingConfig = TrainingConfig()
    sampling: SamplingConfig = SamplingConfig()
