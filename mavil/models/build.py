"""From settings to modules: the only place in this room that sees a recipe."""

from __future__ import annotations

from dataclasses import replace

from mavil.config import AudioBranch, BottleneckFusion, ClassifyTask, PretrainTask, Recipe, Tower, VideoBranch
from mavil.config.exclusions import DEFAULT_WINDOWS
from mavil.models import fusion as fusions
from mavil.models.classifier import Classifier
from mavil.models.decoder import Decoder, JointDecoder
from mavil.models.encoder import Encoder
from mavil.models.fusion import Fusion
from mavil.models.layers import Stack
from mavil.models.masked import MaskedLearner, Projection
from mavil.structs import MODALITIES, Modality


def build_encoder(branch: AudioBranch | VideoBranch, drop_path: float = 0.0) -> Encoder:
    """The encoder of one branch, with random weights."""
    return Encoder(
        branch.grid(),
        build_stack(branch.encoder, drop_path),
        branch.positions,
        branch.cls_token,
        branch.modality_embedding,
        branch.trained_positions,
    )


def build_stack(tower: Tower, drop_path: float = 0.0) -> Stack:
    """The size of a tower's blocks as plain values."""
    return Stack(
        tower.width,
        tower.depth,
        tower.num_heads,
        tower.mlp_ratio,
        tower.layer_norm_eps,
        drop_path,
        post_norm=tower.norm == "post",
        key_bias=tower.key_bias,
        dropout=tower.dropout,
        layer_drop=tower.layer_drop,
    )


def build_masked(recipe: Recipe, target_values: dict[Modality, int] | None = None) -> MaskedLearner:
    """The pre-training network of a recipe; ``target_values`` are prediction sizes per token where they are not patch sizes."""
    branches = _branches(recipe)
    values = target_values or {m: branch.grid().patch_values for m, branch in branches.items()}
    discriminates = isinstance(recipe.task, PretrainTask) and recipe.task.patch_discrimination is not None
    predicts = not isinstance(recipe.task, PretrainTask) or recipe.task.reconstruction is not None
    encoders: dict[Modality, Encoder] = {}
    each: dict[Modality, Decoder] = {}
    for modality, branch in branches.items():
        encoders[modality] = build_encoder(branch)
        if predicts and not recipe.joint_decoder:
            each[modality] = _build_decoder(branch, values[modality], discriminates)
    decoders = _build_joint_decoder(branches, values) if recipe.joint_decoder else each
    fusion = build_fusion(recipe)
    contrast = recipe.task.contrast if isinstance(recipe.task, PretrainTask) else None
    if contrast is None:
        return MaskedLearner(encoders, decoders, fusion)
    projections = {
        m: Projection(branch.encoder.width, contrast.projection.hidden_width, contrast.projection.width)
        for m, branch in branches.items()
        if contrast.projection is not None
    }
    return MaskedLearner(encoders, decoders, fusion, contrast.pooled_from, contrast.pooling, projections)


def _build_decoder(branch: AudioBranch | VideoBranch, values: int, discriminates: bool) -> Decoder:
    settings, window = branch.decoder, None
    if settings.attention == "windowed":
        window = settings.window or DEFAULT_WINDOWS["video" if isinstance(branch, VideoBranch) else "audio"]
    return Decoder(
        branch.grid(),
        branch.encoder.width,
        build_stack(settings),
        settings.positions or branch.positions,
        values,
        branch.cls_token,
        window,
        settings.shift,
        settings.global_blocks,
        settings.projection,
        discriminates,
    )


def _build_joint_decoder(
    branches: dict[Modality, AudioBranch | VideoBranch], values: dict[Modality, int]
) -> JointDecoder:
    audio = branches["audio"]
    return JointDecoder(
        {m: branch.grid() for m, branch in branches.items()},
        audio.encoder.width,
        build_stack(audio.decoder),
        {m: branch.decoder.positions or branch.positions for m, branch in branches.items()},
        values,
        {m: int(branch.cls_token) for m, branch in branches.items()},
    )


def build_classifier(recipe: Recipe, num_classes: int) -> Classifier:
    """The classifier of a recipe whose task is to classify."""
    task = recipe.task
    assert isinstance(task, ClassifyTask)
    modalities = [m for m in MODALITIES if m in task.modalities]
    encoders = {m: build_encoder(branch, task.drop_path) for m, branch in _branches(recipe).items() if m in modalities}
    return Classifier(
        encoders,
        build_fusion(recipe, task.drop_path) if task.passes_fusion else None,
        num_classes,
        heads=task.heads,
        pooling=task.pooling,
        frozen=task.frozen,
        has_gaps=task.modality_dropout > 0 or recipe.data.missing_modality == "keep",
    )


def build_fusion(recipe: Recipe, drop_path: float = 0.0) -> Fusion | None:
    """The fusion of a recipe, with random weights; blocks are like those of the audio encoder."""
    settings, audio = recipe.fusion, recipe.audio
    if settings is None or audio is None:
        return None
    stack = replace(build_stack(audio.encoder, drop_path), depth=settings.depth)
    if isinstance(settings, BottleneckFusion):
        return fusions.BottleneckFusion(stack, settings.num_tokens, settings.input_norm)
    return fusions.JointFusion(stack, settings.input_norm, settings.alone_norms)


def _branches(recipe: Recipe) -> dict[Modality, AudioBranch | VideoBranch]:
    return {m: branch for m in MODALITIES if (branch := recipe.branch(m)) is not None}
