"""Where a model's first weights come from: a run of ours, files of other projects, or nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from mavil.config import ClassifyTask, PretrainTask, Recipe, VideoBranch
from mavil.engine.checkpoints.reading import load_weights
from mavil.models.weights import Target, load_parts, load_start, start_parts
from mavil.models.weights.spreading import further_blocks, told_of_copies
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
        weights = load_weights(recipe.task.weights)
        remark = _deepen_fusion(recipe, wanted, weights)
        load_parts(wanted, weights, recipe.task.weights, grids, has_own)
        lines.append(f"{', '.join(wanted)}: from {recipe.task.weights}")
        lines += remark
    start = recipe.task.start
    if start.audio or start.video or start.model:
        _check_files(recipe)
        video = recipe.video
        is_tiled = isinstance(video, VideoBranch) and video.positions == "tiled_2d"
        target, further = Target.of(parts, grids_of(recipe), is_tiled), _further_blocks(recipe)
        tensors, report = start_parts(target, **start.model_dump(), new_fusion_blocks=further)
        load_start(parts, tensors)
        lines += report.lines()
    return lines


def _further_blocks(recipe: Recipe) -> str:
    """What fusion blocks beyond those of the start begin as; pre-training has no setting for it."""
    return recipe.task.new_fusion_blocks if isinstance(recipe.task, ClassifyTask) else "random"


def _deepen_fusion(recipe: Recipe, parts: Mapping[str, nn.Module], weights: dict[str, dict[str, Tensor]]) -> list[str]:
    """Add the fusion blocks that fine-tuning has beyond those of the earlier run to ``weights``; what there is to say."""
    if not isinstance(recipe.task, ClassifyTask) or "fusion" not in parts or "fusion" not in weights:
        return []
    own, held = parts["fusion"].state_dict(), weights["fusion"]
    copies = further_blocks(held, own)
    if not copies:
        return []
    if recipe.task.frozen:
        raise UserError(
            f"fusion.depth is larger than in {recipe.task.weights}, but task.frozen would never train the further blocks: set "
            "fusion.depth as it is there, or task.frozen=false"
        )
    if recipe.task.new_fusion_blocks == "random":
        weights["fusion"] = held | {name: own[name] for name in copies}
        return ["fusion: the blocks that are not there begin at random"]
    weights["fusion"] = held | {name: held[last] for name, last in copies.items()}
    return [f"fusion: {told_of_copies(copies)}"]


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
