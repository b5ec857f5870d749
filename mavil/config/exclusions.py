"""Which values of a recipe exclude each other; each mistake is one line with both values, told before anything is made."""

from __future__ import annotations

from mavil.config.model import AudioBranch, BottleneckFusion, JointFusion, VideoBranch
from mavil.config.task import ClassifyTask, Contrast, PretrainTask
from mavil.config.training import Trainer
from mavil.structs import Modality

DEFAULT_WINDOWS: dict[Modality, tuple[int, ...]] = {"audio": (4, 4), "video": (2, 7, 7)}
"""Cells of an attention window where ``decoder.window`` is not set: sound [source Audio-MAE], video [our choice]."""

Branches = dict[Modality, AudioBranch | VideoBranch]
Fusion = JointFusion | BottleneckFusion


def check_pretraining(task: PretrainTask, branches: Branches, fusion: Fusion | None, has_joint_decoder: bool) -> None:
    """What only pre-training looks at: masks, contrast, decoders, where weights come from.

    Raises:
        ValueError: two settings do not go together.
    """
    for modality, branch in branches.items():
        _check_mask(f"{modality}.mask_ratio", branch.mask_ratio, branch)
    if task.contrast is not None:
        _check_contrast(task.contrast, branches, fusion)
    if has_joint_decoder:
        _check_joint_decoder(branches)
    for modality, branch in branches.items():
        _check_windows(modality, branch)
    _check_dropout(task.modality_dropout, list(branches))
    _check_start(task, list(branches))


def check_classification(task: ClassifyTask, fusion: Fusion | None) -> None:
    """What only a classifier looks at: heads, pooling, where weights come from.

    Raises:
        ValueError: two settings do not go together.
    """
    if task.heads == "separate":
        if len(task.modalities) < 2:
            raise ValueError(
                f"task.heads=separate is one head per modality, but task.modalities is {task.modalities[0]} alone: set "
                "task.heads=joint or give both modalities"
            )
        if fusion is not None:
            raise ValueError(
                f"task.heads=separate keeps the modalities apart, but fusion is {fusion.kind}: write 'fusion: null', "
                "or set task.heads=joint"
            )
    if task.pooling == "mean" and fusion is None:
        raise ValueError(
            "task.pooling=mean averages the tokens of the fusion, but fusion is null: set task.pooling=concatenate or a fusion"
        )
    if task.alone == "average" and not (isinstance(fusion, JointFusion) and fusion.alone_norms):
        raise ValueError(
            "task.alone=average averages what passed the fusion with either norms, but fusion.alone_norms is false: set "
            "task.alone=own or fusion.alone_norms=true"
        )
    if task.alone == "average" and len(task.modalities) < 2:
        raise ValueError(
            f"task.alone=average is for a model of both modalities, but task.modalities is {task.modalities[0]} alone: set "
            "task.alone=own"
        )
    _check_dropout(task.modality_dropout, list(task.modalities))
    _check_start(task, list(task.modalities))


def check_training(settings: Trainer, task: PretrainTask | ClassifyTask) -> None:
    """What the loop cannot do together.

    Raises:
        ValueError: two settings do not go together.
    """
    contrast = task.contrast if isinstance(task, PretrainTask) else None
    has_contrast = contrast is not None and contrast.inter_weight + contrast.intra_weight > 0
    if contrast is not None and settings.accumulation > 1 and settings.accumulation_negatives == "refuse":
        raise ValueError(
            f"trainer.accumulation {settings.accumulation} would give each contrastive loss only the candidates of one "
            "micro-step: set trainer.accumulation_negatives=cached to have those of the whole step, for a second forward "
            "pass, or =fewer if that is meant"
        )
    if settings.term_gradients_every is None:
        return
    is_cached = settings.accumulation > 1 and settings.accumulation_negatives == "cached" and has_contrast
    for is_wrong, setting, why in (
        (is_cached, "trainer.accumulation_negatives=cached", "a contrastive term has no gradient in a micro-step"),
        (settings.compile, "trainer.compile=true", "a compiled block can be differentiated only once"),
        (
            settings.activation_checkpointing == "fairscale",
            "trainer.activation_checkpointing=fairscale",
            "its blocks can be differentiated only once (=torch works)",
        ),
    ):
        if is_wrong:
            raise ValueError(
                f"trainer.term_gradients_every={settings.term_gradients_every} does not work with {setting}: {why}; leave one out"
            )


def _check_mask(setting: str, ratio: float, branch: AudioBranch | VideoBranch) -> None:
    try:
        branch.grid().num_visible(ratio)
    except ValueError as error:
        raise ValueError(f"{setting}: {error}") from None


def _check_contrast(contrast: Contrast, branches: Branches, fusion: Fusion | None) -> None:
    if contrast.inter_weight > 0 and len(branches) < 2:
        raise ValueError("task.contrast.inter_weight compares audio with video: set it to 0 or set both modalities")
    if contrast.pooled_from != "encoder" and fusion is None:
        raise ValueError(
            f"task.contrast.pooled_from={contrast.pooled_from} pools tokens of the fusion, but fusion is null: set "
            "task.contrast.pooled_from=encoder or a fusion"
        )
    if contrast.pooling == "cls":
        without = [m for m, branch in branches.items() if not branch.cls_token]
        if without:
            raise ValueError(
                f"task.contrast.pooling=cls pools the CLS token, but {without[0]}.cls_token is false: set "
                f"{without[0]}.cls_token=true or task.contrast.pooling=mean"
            )
    ratios = {"audio": contrast.audio_mask_ratio, "video": contrast.video_mask_ratio}
    given = {m: ratio for m, ratio in ratios.items() if m in branches and ratio is not None}
    if given and len(given) < len(branches):
        (one,) = given
        other = "video" if one == "audio" else "audio"
        raise ValueError(
            f"task.contrast.{one}_mask_ratio is {given[one]}, but task.contrast.{other}_mask_ratio is not set: set both or none"
        )
    for modality, branch in branches.items():
        if (ratio := ratios[modality]) is not None:
            _check_mask(f"task.contrast.{modality}_mask_ratio", ratio, branch)


def _check_joint_decoder(branches: Branches) -> None:
    if len(branches) < 2:
        raise ValueError(
            f"joint_decoder needs both modalities, but only {next(iter(branches))} is set: set it to false"
        )
    audio, video = branches["audio"], branches["video"]
    for name in type(audio.decoder).model_fields:
        own, other = getattr(audio.decoder, name), getattr(video.decoder, name)
        if own != other:
            raise ValueError(
                f"joint_decoder is one decoder for both, but audio.decoder.{name} is {own} and video.decoder.{name} is {other}: "
                "give both the same decoder"
            )
    if audio.decoder.attention == "windowed":
        raise ValueError(
            "joint_decoder looks at the tokens of both modalities, but audio.decoder.attention is windowed: windows lie in one "
            "token grid, so set attention=global or joint_decoder=false"
        )
    if audio.encoder.width != video.encoder.width:
        raise ValueError(
            f"joint_decoder needs encoders of one width, but audio has {audio.encoder.width} and video {video.encoder.width}"
        )


def _check_windows(modality: Modality, branch: AudioBranch | VideoBranch) -> None:
    if branch.decoder.attention != "windowed":
        return
    window, cells = branch.decoder.window or DEFAULT_WINDOWS[modality], branch.grid().cells
    if len(window) != len(cells) or any(count % size for count, size in zip(cells, window, strict=True)):
        origin = "" if branch.decoder.window else " (the default)"
        raise ValueError(
            f"{modality}.decoder.window={list(window)}{origin} does not divide the token grid of {list(cells)} cells: every axis "
            "must be a multiple"
        )


def _check_dropout(probability: float, modalities: list[Modality]) -> None:
    if probability > 0 and len(modalities) < 2:
        raise ValueError(
            f"task.modality_dropout={probability} takes one of two modalities away, but there is only {modalities[0]}: set "
            "it to 0"
        )


def _check_start(task: PretrainTask | ClassifyTask, modalities: list[Modality]) -> None:
    start = task.start
    files = {"audio": start.audio, "video": start.video, "model": start.model}
    given = {name: file for name, file in files.items() if file is not None}
    for name, file in given.items():
        if name != "model" and name not in modalities:
            raise ValueError(f"task.start.{name}={file} has no branch to go to: {name} is not used here; leave it out")
        if task.weights is not None:
            raise ValueError(
                f"task.start.{name}={file} and task.weights={task.weights} both give the weights of the same parts: leave one out"
            )
    if start.model is not None and len(given) > 1:
        name = next(name for name in given if name != "model")
        raise ValueError(
            f"task.start.model={start.model} and task.start.{name}={given[name]} both give the weights of the {name} branch: "
            "leave one out"
        )
