"""What leaves a run: the parts that embed a clip, and its recipe without what exists on one machine only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor

from mavil.config import PretrainTask, Recipe
from mavil.recipe import recipe_from_tree
from mavil.structs import UserError


@dataclass(frozen=True)
class Exported:
    """The encoders of a run, and what is known of them.

    Attributes:
        recipe: complete, with log-mel statistics and without local paths (:func:`portable_recipe`).
        parts: tensors by part and name, as ``load_parts`` takes them.
        about: anything ready for JSON: run, step, versions, data, metrics, licence, ...
    """

    recipe: Recipe
    parts: dict[str, dict[str, Tensor]]
    about: dict[str, Any] = field(default_factory=dict)


def portable_recipe(recipe: Recipe) -> Recipe:
    """The same system without what exists on one machine only: data, caches; of files and runs only the names are kept."""
    tree = recipe.model_dump(mode="json")
    tree["data"] |= {"train": None, "evaluation": None}
    tree["data"]["remote"] |= {"cache": None, "allow_shell": False}
    task = tree["task"]
    groups = [(task, "weights"), *((task["start"], name) for name in ("audio", "video", "model"))]
    if task.get("teacher"):
        groups.append((task["teacher"], "run"))
    for group, name in groups:
        if group[name] is not None:
            group[name] = PurePath(group[name]).name or "run"
    return recipe_from_tree(tree, recipe.name)


def wanted_parts(recipe: Recipe) -> list[str]:
    """Names of the parts an export of this recipe has: what embeds a clip, no decoder and no head."""
    task = recipe.task
    parts = [f"{modality}_encoder" for modality in recipe.modalities]
    if recipe.fusion is not None and (isinstance(task, PretrainTask) or task.passes_fusion):
        parts.append("fusion")
    if isinstance(task, PretrainTask) and task.contrast is not None and task.contrast.projection is not None:
        parts += [f"{modality}_projection" for modality in recipe.modalities]
    return parts


def encoders_of(
    recipe: Recipe, weights: Mapping[str, Mapping[str, Tensor]], source: str
) -> dict[str, dict[str, Tensor]]:
    """Of a checkpoint's weights, the parts that embed a clip, in memory of their own.

    Raises:
        UserError: one is not there.
    """
    if missing := [part for part in wanted_parts(recipe) if part not in weights]:
        raise UserError(
            f"{source} holds no {missing[0]} (it holds {', '.join(sorted(weights))}): name the run it is of"
        )
    return {
        part: {name: tensor.detach().clone().contiguous() for name, tensor in weights[part].items()}
        for part in wanted_parts(recipe)
    }


def check_finite(parts: Mapping[str, Mapping[str, Tensor]], source: str) -> None:
    """Refuse weights that are not numbers.

    Raises:
        UserError: naming the first such tensor.
    """
    for part, tensors in parts.items():
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise UserError(
                    f"{source}: {part}.{name} has values that are not finite: nothing good comes of it; take another checkpoint"
                )


def num_bytes(exported: Exported) -> int:
    """Of all tensors together."""
    return sum(t.numel() * t.element_size() for names in exported.parts.values() for t in names.values())
