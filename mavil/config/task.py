"""Settings of what is learned: pre-training with its losses and teacher, or classification."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from mavil.config.base import Settings, each_once
from mavil.structs import MODALITIES, Modality


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
    modalities: Annotated[tuple[Modality, ...], AfterValidator(each_once)] = Field(
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
