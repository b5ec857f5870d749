"""Settings of the training loop: optimizer, schedule, batch, precision, what is written when."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mavil.config.base import Duration, Length, Momentum, Settings


class LearningRateFactors(Settings):
    """By what the rate of each part of a classifier is multiplied, beside layer decay [source AV-SUPERB copy].

    The copy has three schemes; which one made the published results is unknown: all 1; video_encoder 0.5; both encoders 0.1.
    """

    audio_encoder: float = Field(1.0, gt=0, description="[1, or 0.1: source AV-SUPERB copy]")
    video_encoder: float = Field(1.0, gt=0, description="[1, 0.5 or 0.1: source AV-SUPERB copy]")
    fusion: float = Field(1.0, gt=0, description="its blocks and norms [1: source AV-SUPERB copy]")
    head: float = Field(
        1.0, gt=0, description="every head with its norm [1: source AV-SUPERB copy; 10 to 100: source CAV-MAE]"
    )


class Optimizer(Settings):
    """AdamW."""

    base_lr: float = Field(
        2e-4, gt=0, description="learning rate at global batch 256; applied = base x batch / 256 [recalled]"
    )
    weight_decay: float = Field(1e-5, ge=0, description="not on biases and norms [recalled, weak; rule: source MAE]")
    betas: tuple[Momentum, Momentum] = Field(
        (0.9, 0.95), description="[recalled]; fine-tuning uses (0.9, 0.999) [source Audio-MAE]"
    )
    eps: float = Field(1e-8, gt=0, description="added to the root of the second moment [torch; 1e-6: source MAE-AST]")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="learning-rate factor per block from the head down; fine-tuning 0.75"
    )
    lr_factors: LearningRateFactors = LearningRateFactors()
    fusion_rank: Literal["top", "first_blocks"] = Field(
        "top",
        description="where fusion blocks stand in layer_decay: on top, beside the head [our choice], or block i as deep as block "
        "i of an encoder, probably by accident of their names [source AV-SUPERB copy]",
    )
    clip_norm: float | None = Field(
        None, gt=0, description="largest gradient norm; none: no clipping [source Audio-MAE]"
    )


class Schedule(Settings):
    """Linear warm-up, then down to ``min_lr``; a pure function of the step."""

    length: Length = Field(Duration(count=20, unit="epochs"), description="[recalled: 20 epochs per stage]")
    warmup: Length = Field(Duration(count=4, unit="epochs"), description="[recalled, weak]")
    decay: Literal["cosine", "linear"] = Field(
        "cosine", description="half a cosine [source MAE, Audio-MAE], or a straight line [source MAE-AST]"
    )
    min_lr: float = Field(0.0, ge=0, description="learning rate at the end [source Audio-MAE]")


class Trainer(Settings):
    """The loop: batch, precision, parallelism, what is written when, what happens when it stands still."""

    device_batch: int = Field(8, gt=0, description="clips per rank and micro-step [recalled: 8 on each of 64 GPUs]")
    global_batch: int | None = Field(
        None,
        gt=0,
        description="clips per step over all ranks; when set, device_batch follows from it, the ranks and accumulation",
    )
    accumulation: int = Field(1, gt=0, description="micro-steps per optimizer step")
    accumulation_negatives: Literal["refuse", "fewer", "cached"] = Field(
        "refuse",
        description="accumulation > 1 with a contrastive term: not allowed, with the candidates of a micro-step only, or "
        "with those of the whole step at the price of a second forward pass [GradCache, Gao et al. 2021]",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where there is one")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="auto: bf16 on CUDA cards that compute in it, else fp32; fp16, for older cards, scales the loss",
    )
    num_threads: int | None = Field(
        None, gt=0, description="CPU threads of the training process; fixes CPU results bit for bit"
    )
    deterministic: bool = Field(
        False, description="also on CUDA only kernels that repeat bit for bit, slower; the CPU always does"
    )
    parallel: Literal["ddp", "fsdp", "fairscale"] = Field(
        "ddp",
        description="every rank a whole model; weights, gradients and optimizer state cut over ranks (torch fully_shard); "
        "gradients and optimizer state cut over ranks (fairscale ShardedDDP)",
    )
    activation_checkpointing: Literal["none", "torch", "fairscale"] = Field(
        "none", description="compute each block again in the backward pass instead of keeping what it computed"
    )
    compile: bool = Field(False, description="torch.compile of each block; needs a C++ compiler or CUDA")
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="moving average of the weights, which is then evaluated and exported; none: without",
    )
    mean_of_last: Length | None = Field(
        None,
        description="the uniform mean of the weights taken in the last so much of training is evaluated and exported; none: "
        "without [source CAV-MAE: of its last epochs' checkpoints]",
    )
    mean_every: Length = Field(
        Duration(count=1, unit="epochs"),
        description="between two weights that mean_of_last takes; the last are those of the last step [source CAV-MAE: 1 epoch]",
    )
    term_gradients_every: Length | None = Field(
        None,
        description="between measurements of each loss term's own gradient norm, a backward pass per term; none: never",
    )
    on_collapse: Literal["warn", "stop"] = Field(
        "warn", description="when embeddings or targets collapse: say so, or also save and end the run"
    )
    log_every: int = Field(20, gt=0, description="steps between metric lines")
    loggers: tuple[Literal["wandb", "trackio"], ...] = Field(
        (), description="where metrics also go, beside console, JSONL and TensorBoard; must be installed"
    )
    checkpoint_every: Length = Field(
        Duration(count=1, unit="epochs"), description="between checkpoints; the last step always has one"
    )
    checkpoint_minutes: float | None = Field(
        30.0, gt=0, description="longest time without a checkpoint, min; none: checkpoint_every alone decides"
    )
    keep_checkpoints: int = Field(2, gt=0, description="older ones are deleted")
    best_metric: str | None = Field(
        None, description="evaluation metric whose best checkpoint is kept as checkpoints/best, e.g. accuracy"
    )
    best_is: Literal["highest", "lowest"] = Field("highest", description="which value of best_metric is the best")
    evaluate_every: Length | None = Field(None, description="between evaluations; none: only after the last step")
    hang_minutes: float | None = Field(
        30.0,
        gt=0,
        description="a rank that makes no progress for so long writes its stacks and ends, min; none: it waits for ever",
    )

    @property
    def has_average(self) -> bool:
        """Whether averaged weights are kept beside those that are trained."""
        return self.ema_decay is not None or self.mean_of_last is not None
