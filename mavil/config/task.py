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
    tokens: Literal["masked", "all"] = Field(
        "masked",
        description="tokens whose prediction counts, of patches and of a teacher's targets alike [source Audio-MAE; stage 2: "
        "recalled, weak]",
    )


class PatchDiscrimination(Settings):
    """Which hidden patch belongs to a prediction, among all hidden ones of its clip (InfoNCE) [source SSAST, MAE-AST]."""

    weight: float = Field(1.0, gt=0, description="factor of the term [source MAE-AST; reconstruction: 10]")
    softmax_over: Literal["targets", "predictions"] = Field(
        "targets",
        description="for each prediction over the clip's patches [source MAE-AST], or the reverse [source SSAST]",
    )


class Projection(Settings):
    """A small network between what is pooled and what is compared: Linear, GELU, Linear."""

    hidden_width: int = Field(2048, gt=0, description="channels between the two layers [our choice]")
    width: int = Field(256, gt=0, description="channels that are compared [our choice]")


class Contrast(Settings):
    """Masked contrast on pooled tokens; zero weight switches a term off."""

    inter_weight: float = Field(0.1, ge=0, description="alpha, audio against video of the same clip [recalled]")
    intra_weight: float = Field(0.01, ge=0, description="beta, two masked views of one modality [recalled]")
    inter_temperature: float = Field(0.1, gt=0, description="divisor of the cosine similarity [recalled, weak]")
    intra_temperature: float = Field(1.0, gt=0, description="divisor of the cosine similarity [recalled, weak]")
    negatives: Literal["global", "local"] = Field(
        "global", description="candidates from all ranks, with gradient, or from the own rank [unknown; our choice]"
    )
    directions: Literal["both", "audio_for_video"] = Field(
        "both",
        description="inter-modal: mean of both directions [recalled], or only the sound for a video [source CAV-MAE]",
    )
    pooled_from: Literal["encoder", "fusion", "fusion_alone"] = Field(
        "encoder",
        description="tokens that are pooled: of the encoders [recalled], of the fusion of both (each then has seen the other), "
        "or of the fusion passed by one modality at a time [source CAV-MAE]",
    )
    pooling: Literal["mean", "cls"] = Field(
        "mean", description="mean of patch tokens without CLS [recalled; source AV-SUPERB copy], or the CLS token"
    )
    projection: Projection | None = Field(None, description="network before the comparison; none [recalled, weak]")
    audio_mask_ratio: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="of views for the contrast alone, 0 for whole inputs; none: it compares what is predicted [TG-DP]",
    )
    video_mask_ratio: float | None = Field(None, ge=0, lt=1, description="likewise; set both or none [TG-DP: 0.5]")


class Teacher(Settings):
    """The frozen model of the previous stage that sees the unmasked pair (stage 2 and later)."""

    run: str = Field(description="run folder of the previous stage, or of any earlier one")
    context: Literal["joint", "separate"] = Field(
        "joint", description="fused tokens of both modalities [paper], or those of each encoder by itself"
    )
    last_layers: int = Field(1, gt=0, description="average the outputs of this many last blocks [unknown; 1]")
    normalise: Literal["layer_norm", "none"] = Field(
        "layer_norm", description="targets through a LayerNorm without parameters, or as they are [unknown; our choice]"
    )


class Start(Settings):
    """Weights of other projects to start from; their layout is recognised by the names of their tensors."""

    audio: str | None = Field(
        None, description="checkpoint file for the audio branch: Audio-MAE, MSM-MAE, MAE-AST or image MAE"
    )
    video: str | None = Field(None, description="checkpoint file for the video branch: image MAE, MAE-ST or VideoMAE")
    model: str | None = Field(
        None, description="checkpoint file for everything: MAViL, CAV-MAE, or an image MAE by CAV-MAE's rule"
    )
    kernel_inflation: Literal["copy", "halve"] = Field(
        "copy",
        description="an image kernel for several frames: the same for each [source AV-SUPERB copy], or divided by their number",
    )
    decoders: bool = Field(True, description="also decoders, where the file has them [source AV-SUPERB copy]")
    fusion: Literal["last_block", "random"] = Field(
        "last_block",
        description="every fusion block a copy of the last encoder block of the video start, else of the audio start "
        "[source AV-SUPERB copy]",
    )
    positions: Literal["known", "own"] = Field(
        "known",
        description="tables for an input of another size, also those of task.weights: cut so that a token keeps its code [our "
        "choice], or computed for that size [source Audio-MAE on shorter sound, where audio.positions is transposed_2d]",
    )
    allow_pickle: bool = Field(
        False,
        description="also files with objects beside tensors (fairseq's): read with placeholders, nothing of them runs",
    )


class PretrainTask(Settings):
    """Masked reconstruction and masked contrast (stage 1), or prediction of a teacher's tokens and contrast (stage 2)."""

    kind: Literal["pretrain"] = "pretrain"
    reconstruction: Reconstruction | None = Field(
        Reconstruction(),
        description="of what was masked; none: clips are only compared, and there are no decoders (fine-tuning for retrieval)",
    )
    contrast: Contrast | None = Contrast()
    patch_discrimination: PatchDiscrimination | None = Field(
        None, description="of raw patches; none [paper; with it: SSAST, MAE-AST]"
    )
    teacher: Teacher | None = None
    masked_views: int = Field(
        1,
        gt=0,
        description="masked views of a clip that are predicted; the teacher sees the clip once for all of them [1: recalled; "
        "more: data2vec 2.0, EAT]. With 2 the second view of the contrast is predicted too",
    )
    modality_dropout: float = Field(
        0.0,
        ge=0,
        le=1,
        description="probability that a training clip is treated as having only one modality [AV-HuBERT]",
    )
    weights: str | None = Field(
        None, description="run folder to start from; none: random start [recalled: stage 2 starts anew]"
    )
    start: Start = Start()


class TokenMasking(Settings):
    """Tokens that fine-tuning leaves out in training [source Audio-MAE]."""

    time_ratio: float = Field(
        0.0, ge=0, lt=1, description="share of the audio grid's time steps [0.2: source Audio-MAE]"
    )
    mel_ratio: float = Field(0.0, ge=0, lt=1, description="share of the audio grid's mel bands [0.2: source Audio-MAE]")
    video_ratio: float = Field(0.0, ge=0, lt=1, description="share of the video tokens, each by itself")


class Mixup(Settings):
    """Clips of a batch are mixed with each other, before the spectrogram, and so are their labels [source AST, Audio-MAE]."""

    probability: float = Field(0.0, ge=0, le=1, description="share of training clips that are mixed [0.5: Audio-MAE]")
    beta: float = Field(10.0, gt=0, description="the first clip's share is Beta(beta, beta) distributed [source AST]")


class CutMix(Settings):
    """A piece of another clip replaces a piece of a clip: steps of the spectrogram, a box of all frames, labels in that share
    [source CutMix, Yun et al. 2019, on pictures]; never of a clip that is mixed."""

    probability: float = Field(0.0, ge=0, le=1, description="share of training clips that are cut [1: source CutMix]")
    beta: float = Field(
        1.0, gt=0, description="what a clip keeps is Beta(beta, beta) distributed, before rounding [source CutMix]"
    )


class ClassifyTask(Settings):
    """Labels from audio, video or both: fine-tuning, or a linear probe when the encoders are frozen."""

    kind: Literal["classify"] = "classify"
    modalities: Annotated[tuple[Modality, ...], AfterValidator(each_once)] = Field(
        MODALITIES, min_length=1, description="what the classifier sees"
    )
    weights: str | None = Field(None, description="pre-training run folder to start from; none: random start")
    start: Start = Start()
    heads: Literal["joint", "separate"] = Field(
        "joint",
        description="one head on both modalities, or one per modality in one model without fusion [source AV-SUPERB copy]",
    )
    pooling: Literal["concatenate", "mean"] = Field(
        "concatenate",
        description="means of both modalities side by side [source AV-SUPERB copy], or the mean over all normalised tokens of "
        "the fusion [source CAV-MAE]",
    )
    alone: Literal["own", "average"] = Field(
        "own",
        description="what stands for a clip with one modality where the fusion has alone_norms: what passed with its own norms, "
        "or the average of that and of what passed with the joint ones [source CAV-MAE, fine-tuned on both: average]",
    )
    modality_dropout: float = Field(
        0.0,
        ge=0,
        le=1,
        description="probability that a training clip is treated as having only one modality [AV-HuBERT]",
    )
    frozen: bool = Field(False, description="train only the head on frozen features (linear probe)")
    loss: Literal["cross_entropy", "binary_cross_entropy"] = Field(
        "cross_entropy", description="one label per clip, or several (AudioSet) [source Audio-MAE: BCE on AudioSet]"
    )
    label_field: str | None = Field(
        None, description="take the class from this metadata field instead of the clip's labels"
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of each target that goes to all classes alike; cross_entropy only [0.1 on ESC-50: source Audio-MAE]",
    )
    drop_path: float = Field(
        0.1, ge=0, lt=1, description="stochastic depth at the last block, linear from 0 [source Audio-MAE]"
    )
    new_fusion_blocks: Literal["copy_last", "random"] = Field(
        "copy_last",
        description="where fusion.depth is larger than in task.weights or task.start.model: the first blocks are theirs, each "
        "further one begins as a copy of their last [our choice; MAViL has a third block in fine-tuning, its start is unknown] "
        "or at random",
    )
    masking: TokenMasking = TokenMasking()
    mixup: Mixup = Mixup()
    cutmix: CutMix = CutMix()

    @property
    def passes_fusion(self) -> bool:
        """Whether the classifier has a fusion, where the recipe has one.

        A modality by itself passes it only where its tokens are what is pooled [source CAV-MAE; MAViL not].
        """
        return self.pooling == "mean" or (self.heads == "joint" and len(self.modalities) == 2)
