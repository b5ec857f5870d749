"""Settings of the training loop: optimizer, schedule, batch, precision, what is written when."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mavil.config.base import Duration, Length, Momentum, Settings


class Optimizer(Settings):
    """AdamW."""

    base_lr: float = Field(
        2e-4, gt=0, description="learning rate at global batch 256; applied = base x batch / 256 [recalled]"
    )
    weight_decay: float = Field(1e-5, ge=0, description="not on biases and norms [recalled, weak; rule: source MAE]")
    betas: tuple[Momentum, Momentum] = Field(
        (0.9, 0.95), description="[recalled]; fine-tuning uses (0.9, 0.999) [source Audio-MAE]"
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="learning-rate factor per block from the head down; fine-tuning 0.75"
    )
    clip_norm: float | None = Field(
        None, gt=0, description="largest gradient norm; none: no clipping [source Audio-MAE]"
    )


class Schedule(Settings):
    """Linear warm-up, then half a cosine to ``min_lr``; a pure function of the step."""

    length: Length = Field(Duration(count=20, unit="epochs"), description="[recalled: 20 epochs per stage]")
    warmup: Length = Field(Duration(count=4, unit="epochs"), description="[recalled, weak]")
    min_lr: float = Field(0.0, ge=0, description="learning rate at the end [source Audio-MAE]")


class Trainer(Settings):
    """The loop: batch, precision, what is written when."""

    device_batch: int = Field(8, gt=0, description="clips per rank and micro-step [recalled: 8 on each of 64 GPUs]")
    accumulation: int = Field(1, gt=0, description="micro-steps per optimizer step")
    allow_smaller_negative_set: bool = Field(
        False,
        description="permit accumulation > 1 with a contrastive term, which then sees fewer negatives than the global batch",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where there is one")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on CUDA, fp32 on CPU")
    num_threads: int | None = Field(
        None, gt=0, description="CPU threads of the training process; fixes CPU results bit for bit"
    )
    log_every: int = Field(20, gt=0, description="steps between metric lines")
    checkpoint_every: Length = Field(
        Duration(count=1, unit="epochs"), description="between checkpoints; the last step always has one"
    )
    keep_checkpoints: int = Field(2, gt=0, description="older ones are deleted")
    evaluate_every: Length | None = Field(None, description="between evaluations; none: only after the last step")
