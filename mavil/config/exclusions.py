"""Which values of a recipe exclude each other; each mistake is one line with both values, told before anything is made."""

from __future__ import annotations

from mavil.config.audio import AudioBranch
from mavil.config.branch_exclusions import check_decoder, check_joint_decoder, check_mask, check_positions
from mavil.config.masking import StructuredMasking, visible_rows
from mavil.config.model import BottleneckFusion, JointFusion
from mavil.config.task import ClassifyTask, Contrast, PretrainTask
from mavil.config.training import Optimizer
from mavil.config.video import VideoBranch
from mavil.structs import MODALITIES, Modality

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
        check_positions(modality, branch)
        check_mask(f"{modality}.mask_ratio", branch.mask_ratio, modality, branch)
    if task.contrast is not None:
        _check_contrast(task.contrast, branches, fusion)
    if task.reconstruction is None:
        _check_contrast_alone(task, fusion, has_joint_decoder)
    else:
        if has_joint_decoder:
            check_joint_decoder(branches)
        for modality, branch in branches.items():
            check_decoder(modality, branch, branch.decoder.window or DEFAULT_WINDOWS[modality])
    _check_discrimination(task, has_joint_decoder)
    _check_fusion(branches, fusion)
    _check_dropout(task.modality_dropout, list(branches))
    _check_start(task, list(branches))


def check_classification(task: ClassifyTask, branches: Branches, fusion: Fusion | None) -> None:
    """What only a classifier looks at: heads, pooling, tokens it leaves out, where weights come from.

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
    if task.loss == "binary_cross_entropy" and task.label_smoothing > 0:
        raise ValueError(
            f"task.label_smoothing={task.label_smoothing} spreads the one label of a clip over all classes, but task.loss is "
            "binary_cross_entropy, which takes each class by itself: set task.label_smoothing=0 or task.loss=cross_entropy"
        )
    if task.mixup.probability + task.cutmix.probability > 1:
        raise ValueError(
            f"task.mixup.probability={task.mixup.probability} and task.cutmix.probability={task.cutmix.probability} are shares "
            "of the same clips, and a clip is mixed or cut, never both: make them at most 1 together"
        )
    if task.new_fusion_blocks != "copy_last" and not (task.passes_fusion and fusion is not None):
        raise ValueError(
            f"task.new_fusion_blocks={task.new_fusion_blocks} is about blocks of the fusion, but {_no_fusion(task, fusion)}: "
            "leave it out"
        )
    for modality, branch in branches.items():
        check_positions(modality, branch)
    _check_token_masking(task, branches)
    _check_fusion(branches, fusion)
    _check_dropout(task.modality_dropout, list(task.modalities))
    _check_start(task, list(task.modalities))


def check_optimizer(settings: Optimizer, task: PretrainTask | ClassifyTask, fusion: Fusion | None) -> None:
    """Learning rates of parts that are not there, or that are not trained.

    Raises:
        ValueError: a setting would change nothing.
    """
    factors = {name: getattr(settings.lr_factors, name) for name in type(settings.lr_factors).model_fields}
    changed = {f"optimizer.lr_factors.{name}": value for name, value in factors.items() if value != 1}
    if settings.fusion_rank != "top":
        changed["optimizer.fusion_rank"] = settings.fusion_rank
    if isinstance(task, PretrainTask):
        if settings.layer_decay != 1:
            changed["optimizer.layer_decay"] = settings.layer_decay
        for name, value in changed.items():
            raise ValueError(
                f"{name}={value} is for fine-tuning, but pre-training trains all parts alike: leave it out"
            )
        return
    for name, value in changed.items():
        if name.endswith(".head"):
            continue
        modality = name.rpartition(".")[2].removesuffix("_encoder")
        if task.frozen:
            raise ValueError(f"{name}={value} has nothing to act on: task.frozen trains the head alone; leave it out")
        if modality in MODALITIES and modality not in task.modalities:
            raise ValueError(f"{name}={value}, but task.modalities is {task.modalities[0]} alone: leave it out")
        if modality not in MODALITIES and not (task.passes_fusion and fusion is not None):
            raise ValueError(f"{name}={value} is about the fusion, but {_no_fusion(task, fusion)}: leave it out")


def _no_fusion(task: ClassifyTask, fusion: Fusion | None) -> str:
    """Why the classifier has none."""
    if fusion is None:
        return "fusion is null"
    return f"task.modalities is {task.modalities[0]} alone, which passes no fusion with task.pooling={task.pooling}"


def _check_contrast_alone(task: PretrainTask, fusion: Fusion | None, has_joint_decoder: bool) -> None:
    """Without prediction something must be compared, and nothing may be there that only predictions would train."""
    contrast = task.contrast
    if contrast is None or contrast.inter_weight + contrast.intra_weight == 0:
        raise ValueError(
            "task.reconstruction and task.contrast are both off: nothing would be learned; set one of them"
        )
    for setting, is_wrong in (
        ("task.teacher", task.teacher is not None),
        ("task.patch_discrimination", task.patch_discrimination is not None),
        ("joint_decoder", has_joint_decoder),
        ("fusion", fusion is not None),
    ):
        if is_wrong:
            raise ValueError(
                f"task.reconstruction is null, so there are no decoders, but {setting} is set, which only decoders use: set it "
                f"to {'false' if setting == 'joint_decoder' else 'null'}"
            )
    if task.masked_views != 1:
        raise ValueError(
            f"task.reconstruction is null, but task.masked_views={task.masked_views} are to be predicted: leave it out"
        )


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
        ratio = ratios[modality]
        if ratio is None:
            continue
        setting = f"task.contrast.{modality}_mask_ratio"
        if ratio == 0 and contrast.intra_weight > 0:
            raise ValueError(
                f"{setting} is 0, so that both views of a clip are the whole of it, but task.contrast.intra_weight="
                f"{contrast.intra_weight} tells them apart: set one of them"
            )
        if ratio == 0:
            continue
        if isinstance(branch, AudioBranch) and isinstance(branch.masking, StructuredMasking):
            raise ValueError(
                f"{setting} is {ratio}, but {modality}.masking.kind is structured, whose time_ratio {branch.masking.time_ratio} "
                f"and mel_ratio {branch.masking.mel_ratio} say how much is hidden: leave task.contrast's ratios out"
            )
        check_mask(setting, ratio, modality, branch)


def _check_discrimination(task: PretrainTask, has_joint_decoder: bool) -> None:
    if task.patch_discrimination is None:
        return
    weight = task.patch_discrimination.weight
    if task.teacher is not None:
        raise ValueError(
            f"task.patch_discrimination (weight {weight}) tells raw patches apart, but task.teacher.run={task.teacher.run} gives "
            "other targets: leave one out"
        )
    if has_joint_decoder:
        raise ValueError(
            f"task.patch_discrimination (weight {weight}) needs a decoder per modality, but joint_decoder is true: leave one out"
        )


def _check_fusion(branches: Branches, fusion: Fusion | None) -> None:
    """Fusion blocks are like those of the audio encoder, and such with norms behind have no others."""
    if fusion is None or "audio" not in branches or branches["audio"].encoder.norm != "post":
        return
    for name in ("input_norm", "alone_norms"):
        if getattr(fusion, name, False):
            raise ValueError(
                f"fusion.{name}=true belongs to blocks with norms before attention and MLP, but audio.encoder.norm is post, and "
                f"fusion blocks are like the audio encoder's: set fusion.{name}=false"
            )


def _check_token_masking(task: ClassifyTask, branches: Branches) -> None:
    masking = task.masking
    settings: tuple[tuple[str, Modality], ...] = (
        ("time_ratio", "audio"),
        ("mel_ratio", "audio"),
        ("video_ratio", "video"),
    )
    for name, modality in settings:
        value = getattr(masking, name)
        if value > 0 and modality not in task.modalities:
            raise ValueError(
                f"task.masking.{name}={value} leaves {modality} tokens out, but task.modalities is {task.modalities[0]} alone: "
                "set it to 0"
            )
    try:
        if masking.time_ratio > 0 or masking.mel_ratio > 0:
            visible_rows(branches["audio"].grid(), masking.time_ratio, masking.mel_ratio)
        if masking.video_ratio > 0:
            branches["video"].grid().num_visible(masking.video_ratio)
    except ValueError as error:
        raise ValueError(f"task.masking: {error}") from None


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
