"""What a recipe and its clips must agree on before anything is trained: labels, classes and modalities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mavil.commands.assemble import CLASSES_FILE
from mavil.commands.inputs import open_split
from mavil.config import ClassifyTask, Recipe
from mavil.data.labels import NUM_NEAR, Vocabulary, count_field_values, nearest_spelling
from mavil.data.shards.index import ShardIndex
from mavil.data.stream.shard_set import ShardSet
from mavil.recipe import change_recipe
from mavil.structs import Modality, UserError


def fit_modalities(recipe: Recipe, shards: ShardIndex, remarks: list[str]) -> Recipe:
    """A classifier that may see clips with one modality, without the branch that no training clip would ever train.

    What was changed is added to ``remarks``.

    Raises:
        UserError: no training clip has what the recipe needs.
    """
    task = recipe.task
    if not isinstance(task, ClassifyTask):
        return recipe
    counts: dict[Modality, int] = {"audio": shards.num_with_audio, "video": shards.num_with_video}
    absent = [m for m in task.modalities if not counts[m]]
    if not absent:
        return recipe
    left = [m for m in task.modalities if counts[m]]
    if not left or recipe.data.missing_modality == "skip":
        names = " and ".join("sound" if m == "audio" else "a picture" for m in absent)
        others = [m for m in counts if counts[m]]
        raise UserError(
            f"{recipe.data.train}: none of its {shards.num_clips} clips has {names}: set task.modalities=[{', '.join(others)}], "
            "or name other clips"
        )
    remarks.append(
        f"no training clip has {'sound' if absent[0] == 'audio' else 'a picture'}: trained on {left[0]} alone"
    )
    return change_recipe(recipe, f"task.modalities=[{left[0]}]", *_without(absent[0], recipe, task))


def check_evaluation_labels(recipe: Recipe, vocabulary: Vocabulary | None) -> None:
    """Whether the evaluation clips are labelled, and with classes that the model knows.

    Raises:
        UserError: they are not, or more than ``data.max_skip_ratio`` of them have no label.
    """
    task = recipe.task
    if vocabulary is None or recipe.data.evaluation is None or not isinstance(task, ClassifyTask):
        return
    shards = open_split(recipe, "evaluation")
    where, total = recipe.data.evaluation, shards.index.num_clips
    if task.label_field:
        counts = count_field_values(shards.records(), task.label_field)
        unlabelled = total - sum(counts.values())
    else:
        counts, unlabelled = shards.index.label_counts, _num_unlabelled(shards)
    if unlabelled == total or unlabelled > recipe.data.max_skip_ratio * total:
        raise UserError(
            f"{where}: {unlabelled} of {total} evaluation clips have no label, so nothing can be scored on them: label them, "
            "leave them out, or take other clips with data.evaluation"
        )
    strangers = [name for name in counts if counts[name] and name not in vocabulary.classes]
    if strangers:
        raise UserError(
            f"{where}: {len(strangers)} of its {len(counts)} classes are unknown to the {len(vocabulary)} of training "
            f"({_first(strangers)}{_hint(strangers[0], vocabulary)}): correct these labels, leave their clips out, or train "
            "with clips of these classes"
        )


def check_same_classes(run: Path, vocabulary: Vocabulary | None) -> None:
    """Whether a run that goes on still has the classes that its head was made for.

    Raises:
        UserError: the training clips have others now, or the same in another order.
    """
    path = run / CLASSES_FILE
    if vocabulary is None or not path.is_file():
        return
    before = Vocabulary.from_file(path).classes
    now = vocabulary.classes
    if before == now:
        return
    new = [name for name in now if name not in before]
    gone = [name for name in before if name not in now]
    what = [f"{len(names)} {word} ({_first(names)})" for word, names in (("new", new), ("gone", gone)) if names]
    raise UserError(
        f"{run}: its head has {len(before)} classes, the training clips have {len(now)}: "
        f"{', '.join(what) or 'the same in another order'}. Resume it with clips of its own classes, or start a new run from it "
        f"with task.weights={run} and another --out"
    )


def _without(absent: Modality, recipe: Recipe, task: ClassifyTask) -> list[str]:
    """Changes of what belongs to two modalities, or to the one that is gone, where it is set."""
    ratios = ("time_ratio", "mel_ratio") if absent == "audio" else ("video_ratio",)
    changes = [f"task.masking.{name}=0" for name in ratios if getattr(task.masking, name)]
    if task.modality_dropout:
        changes.append("task.modality_dropout=0")
    if task.heads == "separate":
        changes.append("task.heads=joint")
    if task.alone == "average":
        changes.append("task.alone=own")
    factors = recipe.optimizer.lr_factors
    for name in (f"{absent}_encoder", *(["fusion"] if task.pooling == "concatenate" else [])):
        if getattr(factors, name) != 1:
            changes.append(f"optimizer.lr_factors.{name}=1")
    if task.pooling == "concatenate" and recipe.optimizer.fusion_rank != "top":
        changes.append("optimizer.fusion_rank=top")
    if task.pooling == "concatenate" and task.new_fusion_blocks != "copy_last":
        changes.append("task.new_fusion_blocks=copy_last")
    return changes


def _num_unlabelled(shards: ShardSet) -> int:
    return int(np.sum(np.diff(shards.table().label_starts) == 0))


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:NUM_NEAR]) + (", ..." if len(names) > NUM_NEAR else "")


def _hint(name: str, vocabulary: Vocabulary) -> str:
    alike = nearest_spelling(name, vocabulary.classes)
    return f"; training writes {alike!r}" if alike else ""
