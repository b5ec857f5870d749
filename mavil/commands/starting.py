"""Where a model's first weights come from: a run of ours, files of other projects, or nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from mavil.config import ClassifyTask, PretrainTask, Recipe, VideoBranch
from mavil.engine.checkpoints.reading import load_weights
from mavil.models.weights import Target, load_parts, load_start, start_parts
from mavil.structs import MODALITIES, Modality, TokenGrid, UserError

Grids = dict[Modality, TokenGrid]


def fill(recipe: Recipe, parts: Mapping[str, nn.Module], earlier: Recipe | None) -> list[str]:
    """Give the parts of a fresh model their first weights; return what there is to say about it, line by line.

    Args:
        recipe: its ``task.weights`` and ``task.start`` are followed.
        parts: of the model, by name; those that nothing is known about stay random.
        earlier: the recipe of the run ``task.weights`` names.

    Raises:
        UserError: a run or a file is missing, cannot be read or does not fit.
    """
    lines: list[str] = []
    if recipe.task.weights:
        assert earlier is not None
        wanted = {name: part for name, part in parts.items() if not _begins_anew(name, recipe)}
        held = grids_of(earlier)
        grids = {m: (held[m], grid) for m, grid in grids_of(recipe).items() if m in held}
        has_own = recipe.task.start.positions == "own"
        load_parts(wanted, load_weights(recipe.task.weights), recipe.task.weights, grids, has_own)
        lines.append(f"{', '.join(wanted)}: from {recipe.task.weights}")
    start = recipe.task.start
    if start.audio or start.video or start.model:
        _check_files(recipe)
        video = recipe.video
        is_tiled = isinstance(video, VideoBranch) and video.positions == "tiled_2d"
        tensors, report = start_parts(Target.of(parts, grids_of(recipe), is_tiled), **start.model_dump())
        load_start(parts, tensors)
        lines += report.lines()
    return lines


def grids_of(recipe: Recipe) -> Grids:
    """How a recipe cuts each of its modalities."""
    return {m: branch.grid() for m in MODALITIES if (branch := recipe.branch(m)) is not None}


def _begins_anew(part: str, recipe: Recipe) -> bool:
    """Heads always do, and decoders whose target is another stage's: they predict something else."""
    if isinstance(recipe.task, ClassifyTask):
        return part.endswith(("fc_norm", "head"))
    assert isinstance(recipe.task, PretrainTask)
    return recipe.task.teacher is not None and part.endswith("decoder")


def _check_files(recipe: Recipe) -> None:
    for name in ("audio", "video", "model"):
        path = getattr(recipe.task.start, name)
        if path is not None and not Path(path).is_file():
            raise UserError(f"task.start.{name}: {path}: no such file; give the checkpoint's path, or null")
