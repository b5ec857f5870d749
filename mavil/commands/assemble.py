"""From a recipe to working parts: the one place that knows both the settings and every room."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mavil.commands.starting import fill, grids_of
from mavil.commands.teachers import refuse_other_inputs
from mavil.config import PretrainTask, Recipe
from mavil.config import Teacher as TeacherSettings
from mavil.config.masking import Masking
from mavil.data.labels import Vocabulary
from mavil.engine.checkpoints.reading import load_weights
from mavil.engine.metrics.tracker import read_metrics
from mavil.models.build import build_classifier, build_masked
from mavil.models.masked import MaskedLearner
from mavil.models.weights import load_parts
from mavil.recipe import load_recipe
from mavil.structs import MODALITIES, Modality, UserError
from mavil.tasks.base import Task
from mavil.tasks.classify import Classification
from mavil.tasks.pretrain import Pretraining
from mavil.tasks.teacher import Teacher
from mavil.tasks.views import ViewPlan

CONFIG_FILE = "config.yaml"
CLASSES_FILE = "classes.txt"
"""Class names of a classifier's run, one per line, in the order of its logits."""


def read_recipe(path: Path, changes: list[str]) -> Recipe:
    """The recipe in a YAML file, or the one a run folder was made with, with changes applied."""
    return load_recipe(path / CONFIG_FILE if path.is_dir() else path, changes)


def task_for(
    recipe: Recipe, vocabulary: Vocabulary | None, device: torch.device, remarks: list[str] | None = None
) -> Task:
    """The task of a recipe with its model on ``device``: random weights, or those of ``task.weights`` and ``task.start``.

    What was taken from where is added to ``remarks``.

    Raises:
        UserError: the run to start from, a file, or the teacher is missing or does not fit.
    """
    remarks = [] if remarks is None else remarks
    if isinstance(recipe.task, PretrainTask):
        return _pretraining(recipe, recipe.task, device, remarks)
    assert vocabulary is not None  # a classifier always has one
    model = build_classifier(recipe, len(vocabulary))
    remarks += fill(recipe, model.parts(), _earlier(recipe))
    multi_label = recipe.task.loss == "binary_cross_entropy"
    return Classification(
        model.to(device),
        multi_label,
        recipe.task.label_smoothing,
        recipe.task.modality_dropout,
        has_gaps=recipe.data.missing_modality == "keep",
        alone=recipe.task.alone,
        masking=recipe.task.masking,
        lr_factors=recipe.optimizer.lr_factors,
        fusion_rank=recipe.optimizer.fusion_rank,
    )


def _earlier(recipe: Recipe) -> Recipe | None:
    """The recipe of the run that ``task.weights`` names."""
    folder = recipe.task.weights
    if folder is None:
        return None
    if not (Path(folder) / CONFIG_FILE).is_file():
        raise UserError(f"task.weights: {folder} is not a run folder (no {CONFIG_FILE}): train that run first")
    return read_recipe(Path(folder), [])


def _pretraining(recipe: Recipe, settings: PretrainTask, device: torch.device, remarks: list[str]) -> Pretraining:
    teacher, target_values = None, None
    if settings.teacher is not None:
        teacher, target_values = _load_teacher(recipe, settings.teacher, device)
    model = build_masked(recipe, target_values)
    remarks += fill(recipe, model.parts(), _earlier(recipe))
    plan = view_plan(recipe)
    assert plan is not None
    return Pretraining(
        model.to(device),
        plan,
        settings.reconstruction,
        settings.contrast,
        teacher,
        settings.modality_dropout,
        has_gaps=recipe.data.missing_modality == "keep",
        discrimination=settings.patch_discrimination,
    )


def view_plan(recipe: Recipe) -> ViewPlan | None:
    """The masked views of a pre-training recipe; ``None`` for any other."""
    task = recipe.task
    if not isinstance(task, PretrainTask):
        return None
    ratios = {m: branch.mask_ratio for m in MODALITIES if (branch := recipe.branch(m)) is not None}
    maskings: dict[Modality, Masking] = {"audio": recipe.audio.masking} if recipe.audio is not None else {}
    num_predicted = 0 if task.reconstruction is None else task.masked_views
    return ViewPlan.of(grids_of(recipe), ratios, task.contrast, num_predicted, maskings)


def _load_teacher(
    recipe: Recipe, settings: TeacherSettings, device: torch.device
) -> tuple[Teacher, dict[Modality, int]]:
    folder = Path(settings.run)
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(
            f"task.teacher.run: {folder} is not a run folder (no {CONFIG_FILE}): train the previous stage first"
        )
    before = read_recipe(folder, [])
    model, _ = load_masked(folder)
    refuse_other_inputs(recipe, before, folder)
    widths: dict[Modality, int] = {m: b.encoder.width for m in MODALITIES if (b := before.branch(m)) is not None}
    normalise = settings.normalise == "layer_norm"
    return Teacher(model.to(device), settings.last_layers, normalise, settings.context), widths


def load_masked(run: Path, which: str = "newest") -> tuple[MaskedLearner, Recipe]:
    """The pre-trained network of a run folder, with the weights of a checkpoint (see :func:`load_weights`), and its recipe.

    Raises:
        UserError: not a pre-training run, or it has no checkpoint.
    """
    recipe = read_recipe(run, [])
    if not isinstance(recipe.task, PretrainTask):
        raise UserError(f"{run} is a {recipe.task.kind} run: name a pre-training run")
    weights = load_weights(run, which)
    target_values: dict[Modality, int] | None = None
    if recipe.task.teacher is not None:
        target_values = {m: _predicted_values(weights, m) for m in recipe.modalities}
    model = build_masked(recipe, target_values)
    load_parts(model.parts(), weights, str(run))
    return model.eval(), recipe


def _predicted_values(weights: Mapping[str, Mapping[str, Tensor]], modality: Modality) -> int:
    """How many numbers per token the decoder of a checkpoint predicts."""
    if "decoder" in weights:
        return len(weights["decoder"][f"preds.{modality}.bias"])
    return len(weights[f"{modality}_decoder"]["pred.bias"])


def curve_of(run: Path) -> list[dict[str, float]]:
    """The training and evaluation metrics of a run, one flat mapping per line, ``step`` among them."""
    return [{"step": line["step"], **line["metrics"]} for line in read_metrics(run)]
