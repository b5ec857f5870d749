"""Every setting there is: typed, frozen, each with its unit, its default and where the default comes from.

:mod:`mavil.recipe` reads them from YAML files and the command line.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    model_validator,
)

from mavil.structs import MODALITIES, Modality, TokenGrid


class Settings(BaseModel):
    """A frozen group of settings that accepts no unknown key."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_not_truth_values(cls, values: Any) -> Any:
        """YAML reads ``on`` as true, and Python counts with it; nobody who wrote ``seed: on`` meant 1."""
        for name, value in values.items() if isinstance(values, dict) else ():
            if (
                isinstance(value, bool)
                and name in cls.model_fields
                and cls.model_fields[name].annotation in (int, float)
            ):
                raise ValueError(f"{name} is {str(value).lower()}, but must be a number")
        return values


def _increasing(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"the first of {list(pair)} is larger than the second: give the smallest, then the largest")
    return pair


def _each_once(modalities: tuple[Modality, ...]) -> tuple[Modality, ...]:
    if len(set(modalities)) < len(modalities):
        raise ValueError(f"{list(modalities)} names one modality twice")
    return modalities


Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Momentum = Annotated[float, Field(ge=0, lt=1)]


class Duration(Settings):
    """A length of training: ``20 epochs``, ``300 steps`` or ``0 steps``. One place turns it into optimizer steps."""

    count: float = Field(ge=0)
    unit: Literal["steps", "epochs"]

    def steps(self, samples_per_epoch: int, global_batch: int) -> int:
        """Optimizer steps, rounded down; an epoch is ``samples_per_epoch`` samples."""
        if self.unit == "steps":
            return int(self.count)
        return int(self.count * samples_per_epoch / global_batch + 1e-9)  # 0.29 x 100 is 28.999...

    def __str__(self) -> str:
        count = int(self.count) if self.count == int(self.count) else self.count
        return f"{count} {self.unit}"


def _parse_duration(value: object) -> object:
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:e[+-]?\d+)?)\s*(steps?|epochs?)\s*", value)
        if match:
            return {"count": float(match[1]), "unit": match[2].rstrip("s") + "s"}
        raise ValueError(f"{value!r} is not a length of training: write e.g. '20 epochs' or '300 steps'")
    if isinstance(value, (int, float)):
        raise ValueError(f"{value!r} needs a unit: write '{value} steps' or '{value} epochs'")
    return value


Length = Annotated[Duration, BeforeValidator(_parse_duration), PlainSerializer(str)]


class Tower(Settings):
    """A stack of transformer blocks."""

    width: int = Field(768, gt=0, description="channels per token [paper: ViT-B]")
    depth: int = Field(12, gt=0, description="blocks [paper: ViT-B]")
    num_heads: int = Field(12, gt=0, description="attention heads [paper: ViT-B]")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Tower:
        if self.width % self.num_heads or self.width % 16:
            raise ValueError(f"width {self.width} must be a multiple of num_heads {self.num_heads} and of 16")
        return self


class AudioAugment(Settings):
    """What training does to a waveform. Drawn per clip from (seed, epoch, key)."""

    roll: bool = Field(True, description="circular shift by a random offset [Audio-MAE's intent; its code never rolls]")
    gain: bool = Field(True, description="times Beta(10, 10) + 0.5 [source Audio-MAE]")


class AudioBranch(Settings):
    """The audio side: waveform to spectrogram to tokens, encoder and decoder."""

    seconds: float = Field(10.0, gt=0, description="length of waveform taken from a clip, s [paper]")
    num_steps: int = Field(1024, gt=0, description="spectrogram steps of 10 ms, zero-padded or cut at the end [paper]")
    num_mel_bins: int = Field(128, gt=0, description="mel bins, 20 Hz to 8 kHz [paper]")
    mean: float = Field(-4.2677393, description="log-mel mean of the training set [source Audio-MAE, AudioSet]")
    std: float = Field(
        4.5689974, gt=0, description="log-mel deviation; values become (x - mean) / (2 std) [source Audio-MAE]"
    )
    patch: tuple[int, int] = Field((16, 16), description="patch: steps, mel bins [paper]")
    mask_ratio: float = Field(0.8, gt=0, lt=1, description="share of tokens hidden in pre-training [recalled]")
    augment: AudioAugment = AudioAugment()
    encoder: Tower = Tower()
    decoder: Tower = Tower(width=512, depth=8, num_heads=16)

    def grid(self) -> TokenGrid:
        """Tokens of the whole spectrogram."""
        return TokenGrid.of((self.num_steps, self.num_mel_bins), self.patch, channels=1)


class VideoAugment(Settings):
    """What training does to frames. Drawn per clip from (seed, epoch, key); one crop for all frames of a clip."""

    crop_scale: Annotated[tuple[Share, Share], AfterValidator(_increasing)] = Field(
        (0.5, 1.0), description="area of the random crop as a share of the frame [recalled]"
    )
    flip: float = Field(0.5, ge=0, le=1, description="probability of a left-right mirror [recalled]")


class VideoBranch(Settings):
    """The video side: frames to tubelet tokens, encoder and decoder."""

    num_frames: int = Field(8, gt=0, description="frames given to the model [source AV-SUPERB copy]")
    frames_per_second: float = Field(2.0, gt=0, description="sampling rate of those frames, Hz [source AV-SUPERB copy]")
    size: int = Field(224, gt=0, description="frame side after cropping, pixels [source AV-SUPERB copy]")
    decode_short_side: int = Field(
        256, gt=0, description="workers shrink larger frames to this short side, pixels [our choice]"
    )
    mean: tuple[float, float, float] = Field((0.485, 0.456, 0.406), description="ImageNet [source AV-SUPERB copy]")
    std: tuple[Positive, Positive, Positive] = Field(
        (0.229, 0.224, 0.225), description="ImageNet [source AV-SUPERB copy]"
    )
    patch: tuple[int, int, int] = Field(
        (2, 16, 16), description="tubelet: frames, rows, columns [source AV-SUPERB copy]"
    )
    positions: Literal["sincos_3d", "tiled_2d"] = Field(
        "sincos_3d",
        description="separable 3-D table, or the image MAE's 2-D table repeated over time [source, both exist]",
    )
    mask_ratio: float = Field(0.8, gt=0, lt=1, description="share of tokens hidden in pre-training [recalled]")
    augment: VideoAugment = VideoAugment()
    encoder: Tower = Tower()
    decoder: Tower = Tower(width=512, depth=8, num_heads=16)

    @property
    def seconds(self) -> float:
        """Length of the window the frames are taken from, s."""
        return self.num_frames / self.frames_per_second

    def grid(self) -> TokenGrid:
        """Tokens of the whole window."""
        return TokenGrid.of((self.num_frames, self.size, self.size), self.patch, channels=3)


class JointFusion(Settings):
    """Self-attention over the concatenated audio and video tokens ("vanilla" in the paper)."""

    kind: Literal["joint"] = "joint"
    depth: int = Field(2, gt=0, description="blocks [paper]")


class BottleneckFusion(Settings):
    """The modalities meet only in a few bottleneck tokens (MBT)."""

    kind: Literal["bottleneck"] = "bottleneck"
    depth: int = Field(2, gt=0, description="blocks [paper]")
    num_tokens: int = Field(4, gt=0, description="bottleneck tokens [recalled, weak: as in MBT]")


class Reconstruction(Settings):
    """Prediction of what was masked, one decoder per modality."""

    audio_weight: float = Field(1.0, ge=0, description="factor of the audio term [recalled]")
    video_weight: float = Field(1.0, ge=0, description="factor of the video term [source Audio-MAE's flag]")
    normalise_patches: bool = Field(
        True, description="raw targets get zero mean and unit variance per patch [source Audio-MAE]"
    )


class Contrast(Settings):
    """Masked contrast on pooled encoder outputs; zero weight switches a term off."""

    inter_weight: float = Field(0.1, ge=0, description="alpha, audio against video of the same clip [recalled]")
    intra_weight: float = Field(0.01, ge=0, description="beta, two masked views of one modality [recalled]")
    inter_temperature: float = Field(0.1, gt=0, description="divisor of the cosine similarity [recalled, weak]")
    intra_temperature: float = Field(1.0, gt=0, description="divisor of the cosine similarity [recalled, weak]")
    negatives: Literal["global", "local"] = Field(
        "global", description="candidates from all ranks, with gradient, or from the own rank [unknown; our choice]"
    )


class Teacher(Settings):
    """The frozen model of the previous stage that sees the unmasked pair (stage 2 and later)."""

    run: str = Field(description="run folder of the previous stage")
    last_layers: int = Field(1, gt=0, description="average the outputs of this many last fusion blocks [unknown; 1]")
    normalise: Literal["layer_norm", "none"] = Field(
        "layer_norm", description="targets through a LayerNorm without parameters, or as they are [unknown; our choice]"
    )


class PretrainTask(Settings):
    """Masked reconstruction and masked contrast (stage 1), or prediction of a teacher's tokens and contrast (stage 2)."""

    kind: Literal["pretrain"] = "pretrain"
    reconstruction: Reconstruction = Reconstruction()
    contrast: Contrast | None = Contrast()
    teacher: Teacher | None = None
    weights: str | None = Field(
        None, description="run folder to start from; none: random start [recalled: stage 2 starts anew]"
    )


class ClassifyTask(Settings):
    """Labels from audio, video or both: fine-tuning, or a linear probe when the encoders are frozen."""

    kind: Literal["classify"] = "classify"
    modalities: Annotated[tuple[Modality, ...], AfterValidator(_each_once)] = Field(
        MODALITIES, min_length=1, description="what the classifier sees"
    )
    weights: str | None = Field(None, description="pre-training run folder to start from; none: random start")
    frozen: bool = Field(False, description="train only the head on frozen features (linear probe)")
    loss: Literal["cross_entropy", "binary_cross_entropy"] = Field(
        "cross_entropy", description="one label per clip, or several (AudioSet) [source Audio-MAE: BCE on AudioSet]"
    )
    label_field: str | None = Field(
        None, description="take the class from this metadata field instead of the clip's labels"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="cross-entropy only")
    drop_path: float = Field(
        0.1, ge=0, lt=1, description="stochastic depth at the last block, linear from 0 [source Audio-MAE]"
    )


class Data(Settings):
    """Where clips come from and how they are read."""

    train: str | None = Field(None, description="folder of shards to train on")
    evaluation: str | None = Field(None, description="folder of shards to evaluate on")
    backend: Literal["pyav", "torchcodec", "decord"] = Field(
        "pyav", description="media decoder; PyAV brings its own FFmpeg"
    )
    num_workers: int = Field(4, ge=0, description="loader processes per rank; 0 decodes in the training process")
    shuffle_buffer: int = Field(512, gt=0, description="clips among which each worker shuffles")
    cache_gib: float = Field(
        0.0, ge=0, description="memory per worker to keep decoded clips in, GiB; 0: decode every time"
    )
    max_skip_ratio: float = Field(
        0.05, ge=0, le=1, description="stop when more than this share of clips cannot be used"
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


class Recipe(Settings):
    """One system, completely described."""

    name: str = Field(description="also the default run folder, runs/<name>")
    seed: int = Field(0, ge=0, description="of weights, order, masks and crops")
    audio: AudioBranch | None = AudioBranch()
    video: VideoBranch | None = VideoBranch()
    fusion: Annotated[JointFusion | BottleneckFusion, Field(discriminator="kind")] | None = JointFusion()
    task: Annotated[PretrainTask | ClassifyTask, Field(discriminator="kind")] = PretrainTask()
    data: Data = Data()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    trainer: Trainer = Trainer()

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What a batch of this recipe must hold."""
        if isinstance(self.task, ClassifyTask):
            return self.task.modalities
        return tuple(m for m in MODALITIES if self.branch(m) is not None)

    def branch(self, modality: Modality) -> AudioBranch | VideoBranch | None:
        """The settings of one modality."""
        return self.audio if modality == "audio" else self.video

    @model_validator(mode="after")
    def _parts_fit(self) -> Recipe:
        present = [m for m in MODALITIES if self.branch(m) is not None]
        for modality in present:
            branch = self.branch(modality)
            assert branch is not None
            branch.grid()
        if not present:
            raise ValueError("audio and video are both null: a recipe needs at least one")
        missing = [m for m in self.modalities if m not in present]
        if missing:
            raise ValueError(f"task.modalities asks for {missing[0]}, but {missing[0]} is null")
        if self.fusion is not None and len(present) < 2:
            raise ValueError(f"fusion needs both modalities, but only {present[0]} is set: write 'fusion: null'")
        if (
            self.fusion is not None
            and self.audio
            and self.video
            and self.audio.encoder.width != self.video.encoder.width
        ):
            raise ValueError(
                f"fusion needs encoders of one width, but audio has {self.audio.encoder.width} "
                f"and video {self.video.encoder.width}"
            )
        if isinstance(self.task, PretrainTask):
            self._check_pretraining(self.task, len(present))
        return self

    def _check_pretraining(self, task: PretrainTask, num_modalities: int) -> None:
        contrast = task.contrast
        if contrast and contrast.inter_weight > 0 and num_modalities < 2:
            raise ValueError("task.contrast.inter_weight compares audio with video: set it to 0 or set both modalities")
        if contrast and self.trainer.accumulation > 1 and not self.trainer.allow_smaller_negative_set:
            raise ValueError(
                f"trainer.accumulation {self.trainer.accumulation} gives each contrastive loss only device_batch x ranks "
                "candidates: set trainer.allow_smaller_negative_set=true if that is meant"
            )
        if task.teacher and self.fusion is None and num_modalities == 2:
            raise ValueError("task.teacher needs a fusion when both modalities are set: its targets are fused tokens")
