"""A public checkpoint of a model of sound as a model of this project: its recipe, its weights, and what there is to say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from mavil.commands.conversion.foreign_settings import families, settings_of
from mavil.config import ClassifyTask, Recipe
from mavil.models.build import build_classifier, build_masked
from mavil.models.classifier import Classifier
from mavil.models.masked import MaskedLearner
from mavil.models.weights import LAYOUTS, Converted, convert, geometry_of, load_parts, read_file, told_by
from mavil.models.weights.offers import fitted_kernel
from mavil.models.weights.parts import Grids
from mavil.models.weights.report import by_reason
from mavil.recipe import change_recipe, recipe_from_tree
from mavil.structs import TokenGrid, UserError

_KERNEL = "patch_embed.proj.weight"


@dataclass
class Imported:
    """A model with a public checkpoint's weights.

    Attributes:
        recipe: with numbers for ``audio.mean`` and ``audio.std``; training settings are the defaults, the file's are unknown.
        model: on the CPU, in evaluation mode.
        remarks: for people, line by line: what is recognised, where settings come from, what of the file is not used.
        num_classes: of a classifier's head.
    """

    recipe: Recipe
    model: MaskedLearner | Classifier
    remarks: list[str] = field(default_factory=list)
    num_classes: int | None = None


def imported(
    path: str | Path, changes: Sequence[str] = (), allow_pickle: bool = False
) -> tuple[Recipe, dict[str, dict[str, Tensor]], list[str]]:
    """Recipe, ``{part: {tensor name: tensor}}`` and remarks of a public checkpoint; errors as :func:`import_model`."""
    found = import_model(path, changes, allow_pickle)
    parts = {name: dict(part.state_dict()) for name, part in found.model.parts().items()}
    return found.recipe, parts, found.remarks


def import_model(path: str | Path, changes: Sequence[str] = (), allow_pickle: bool = False) -> Imported:
    """The model of a public checkpoint of Audio-MAE (also timm's), MSM-MAE, M2D's MSM-MAE or MAE-AST.

    Args:
        path: the file.
        changes: ``key.path=value`` for the recipe: what the file does not tell (numbers of heads, statistics), or another
            length of the input, to which position tables are then cut (:func:`mavil.models.weights.resize_positions`).
        allow_pickle: as in :func:`mavil.models.weights.read_file`.

    Raises:
        UserError: the file cannot be read, is another project's, or does not make a model with these changes.
    """
    source = str(path)
    file = read_file(path, allow_pickle)
    told = told_by(file.settings, path)
    converted = convert(file.tensors, source, told.patch)
    if converted.layout not in families():
        raise UserError(
            f"{source} is of {LAYOUTS[converted.layout]}: only models of sound alone become a run; start one with its weights by "
            "task.start.audio, task.start.video or task.start.model"
        )
    found = settings_of(converted, told, changes, source)
    before = recipe_from_tree(found.tree, source)
    recipe = change_recipe(before, *changes) if changes else before
    head = geometry_of(converted).get("head")
    model = _build(recipe, head.classes if head is not None else None)
    remarks = [f"{source}: {LAYOUTS[converted.layout]}", *found.remarks]
    remarks += _fill(model.parts(), converted, _grids(before, recipe, converted, source), source)
    return Imported(recipe, model.eval(), remarks, head.classes if head is not None else None)


def _build(recipe: Recipe, num_classes: int | None) -> MaskedLearner | Classifier:
    """With random weights, the same each time: a file without a decoder leaves one of these."""
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        if isinstance(recipe.task, ClassifyTask):
            return build_classifier(recipe, num_classes or 1)
        return build_masked(recipe)


def _grids(before: Recipe, recipe: Recipe, converted: Converted, source: str) -> Grids:
    """How the file's tokens were cut, and how the recipe's are; empty where the file has no table.

    Raises:
        UserError: the file's table is one for neither.
    """
    num_tokens = (geometry_of(converted)["audio_encoder"].num_tokens or {}).get("audio")
    if num_tokens is None:
        return {}
    held, wanted = _grid_of(before), _grid_of(recipe)
    if num_tokens not in (held.num_tokens, wanted.num_tokens):
        raise UserError(
            f"{source}: it has positions of {num_tokens} tokens, but {held.size[0]} x {held.size[1]} in patches of "
            f"{list(held.patch)} are {held.num_tokens}: add audio.num_steps, audio.num_mel_bins or audio.stride"
        )
    return {"audio": (held if num_tokens == held.num_tokens else wanted, wanted)}


def _grid_of(recipe: Recipe) -> TokenGrid:
    if recipe.audio is None:
        raise UserError("audio is null: a checkpoint of sound needs the audio branch")
    return recipe.audio.grid()


def _fill(parts: Mapping[str, nn.Module], converted: Converted, grids: Grids, source: str) -> list[str]:
    """Load every part; what the file lacks and may lack stays as it was made."""
    remarks: list[str] = []
    for name, part in parts.items():
        own, held = part.state_dict(), dict(converted.parts.get(name, {}))
        if _KERNEL in held:
            held[_KERNEL] = fitted_kernel(held[_KERNEL], tuple(own[_KERNEL].shape), "copy")
        absent = [key for key in own if key not in held]
        if not held:
            remarks.append(f"{name}: not in the file, random")
        elif absent:
            _check_absent(name, absent, parts, converted, source)
            remarks.append(f"{name}: as made here: {', '.join(absent)}")
        is_cut = "pos_embed" in converted.parts.get(name, {})
        load_parts({name: part}, {name: {**own, **held}}, source, grids if is_cut else None)
    unused = dict(converted.unused)
    for name, tensors in converted.parts.items():
        if name not in parts:
            unused |= {s: f"the model has no {name}" for key in tensors for s in converted.origin[f"{name}.{key}"]}
    return [*remarks, *(f"not used: {text}" for text in by_reason(unused))]


def _check_absent(
    name: str, absent: Iterable[str], parts: Mapping[str, nn.Module], converted: Converted, source: str
) -> None:
    """Positions that a project computes, and a norm that a classifier does not use, may be absent; nothing else.

    Raises:
        UserError: something else is.
    """
    for key in absent:
        is_computed = key == "pos_embed" and converted.layout == "mae_ast"
        is_idle = "head" in parts and name == "audio_encoder" and key.startswith("norm.")
        if not is_computed and not is_idle:
            raise UserError(
                f"{source}: {name} lacks {key}: the file is not complete, or of a model that nothing here computes"
            )
