"""From settings to modules: the only place in this room that sees a recipe."""

from __future__ import annotations

from mavil.config import AudioBranch, BottleneckFusion, ClassifyTask, Recipe, VideoBranch
from mavil.models import fusion as fusions
from mavil.models.classifier import Classifier
from mavil.models.decoder import Decoder
from mavil.models.encoder import Encoder
from mavil.models.masked import Fusion, MaskedLearner
from mavil.structs import MODALITIES, Modality


def build_encoder(branch: AudioBranch | VideoBranch, drop_path: float = 0.0) -> Encoder:
    """The encoder of one branch, with random weights."""
    tower = branch.encoder
    return Encoder(branch.grid(), tower.width, tower.depth, tower.num_heads, _positions(branch), drop_path)


def build_masked(recipe: Recipe, target_values: dict[Modality, int] | None = None) -> MaskedLearner:
    """The pre-training network of a recipe; ``target_values`` are prediction sizes per token where they are not patch sizes."""
    encoders: dict[Modality, Encoder] = {}
    decoders: dict[Modality, Decoder] = {}
    for modality in MODALITIES:
        branch = recipe.branch(modality)
        if branch is None:
            continue
        encoders[modality] = build_encoder(branch)
        grid, tower = branch.grid(), branch.decoder
        values = target_values[modality] if target_values else grid.patch_values
        decoders[modality] = Decoder(
            grid, branch.encoder.width, tower.width, tower.depth, tower.num_heads, _positions(branch), values
        )
    return MaskedLearner(encoders, decoders, _build_fusion(recipe))


def build_classifier(recipe: Recipe, num_classes: int) -> Classifier:
    """The classifier of a recipe whose task is to classify."""
    assert isinstance(recipe.task, ClassifyTask)
    drop_path = recipe.task.drop_path
    encoders: dict[Modality, Encoder] = {}
    for modality in recipe.task.modalities:
        branch = recipe.branch(modality)
        assert branch is not None  # the recipe checked it
        encoders[modality] = build_encoder(branch, drop_path)
    both = len(encoders) == 2
    fusion = _build_fusion(recipe, drop_path) if both else None
    return Classifier({m: encoders[m] for m in MODALITIES if m in encoders}, fusion, num_classes, recipe.task.frozen)


def _build_fusion(recipe: Recipe, drop_path: float = 0.0) -> Fusion | None:
    settings, audio = recipe.fusion, recipe.audio
    if settings is None or audio is None:
        return None
    width, num_heads = audio.encoder.width, audio.encoder.num_heads
    if isinstance(settings, BottleneckFusion):
        return fusions.BottleneckFusion(width, settings.depth, num_heads, settings.num_tokens, drop_path)
    return fusions.JointFusion(width, settings.depth, num_heads, drop_path)


def _positions(branch: AudioBranch | VideoBranch) -> str:
    return branch.positions if isinstance(branch, VideoBranch) else "sincos_2d"
