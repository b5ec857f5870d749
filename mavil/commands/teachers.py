"""A teacher's run beside the recipe of its student: what the teacher was trained on must be what it is shown.

Not among :mod:`mavil.commands.checks`, which import :mod:`mavil.commands.assemble`, which asks here.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from mavil.config import AudioBranch, PretrainTask, Recipe, VideoBranch
from mavil.config import Teacher as TeacherSettings
from mavil.structs import MODALITIES, Modality, UserError

SAME_INPUTS: dict[Modality, tuple[str, ...]] = {
    "audio": (
        "seconds",
        "num_steps",
        "num_mel_bins",
        "spectrogram",
        "mean",
        "std",
        "std_factor",
        "batch_statistics",
        "patch",
        "stride",
        "token_order",
    ),
    "video": ("num_frames", "frames_per_second", "size", "mean", "std", "patch"),
}
"""Settings that decide what a clip's tokens are. Augmentation is not among them: both are shown the same augmented clip."""


def refuse_other_inputs(student: Recipe, teacher: Recipe, folder: str | Path) -> None:
    """Compare the inputs of a student with those its teacher was trained on, and the layers it asks for with those there are.

    Both recipes are complete: log-mel statistics that are not known yet are not compared.

    Args:
        student: its task names the teacher.
        teacher: the ``config.yaml`` of the teacher's run.
        folder: that run, for the message.

    Raises:
        UserError: they differ; all differences at once, with both values and what to set.
    """
    problems, changes = [], []
    for modality in MODALITIES:
        own, theirs = student.branch(modality), teacher.branch(modality)
        if own is None or theirs is None:
            if own is not theirs:
                lacking = student.name if own is None else "the teacher"
                problems.append(f"{lacking} has no {modality}")
            continue
        for name in SAME_INPUTS[modality]:
            here, there = getattr(own, name), getattr(theirs, name)
            if not _is_same(here, there) and not _is_open(name, own, theirs):
                problems.append(f"{modality}.{name} was {_written(there)}, is {_written(here)}")
                changes.append(f"{modality}.{name}={_written(there).replace(' ', '')}")
    if problems:
        advice = f"set {' '.join(changes)}" if changes else "give both recipes the same modalities"
        raise UserError(
            f"task.teacher.run: the teacher {folder} was trained on other inputs than {student.name} gives it "
            f"({'; '.join(problems)}): {advice}, or train a teacher on these"
        )
    assert isinstance(student.task, PretrainTask)
    assert student.task.teacher is not None
    _refuse_layers(student.task.teacher, teacher, folder)


def _refuse_layers(settings: TeacherSettings, teacher: Recipe, folder: str | Path) -> None:
    branches = {m: branch for m in MODALITIES if (branch := teacher.branch(m)) is not None}
    if settings.context == "joint" and len(branches) == 2 and teacher.fusion is None:
        raise UserError(
            f"task.teacher.context=joint asks for fused tokens, but the teacher {folder} has fusion null: set "
            "task.teacher.context=separate"
        )
    depths = {f"{m}.encoder.depth": branch.encoder.depth for m, branch in branches.items()}
    if settings.context == "joint" and teacher.fusion is not None:
        depths = {"fusion.depth": teacher.fusion.depth}
    name, depth = min(depths.items(), key=lambda item: item[1])
    if settings.last_layers > depth:
        raise UserError(
            f"task.teacher.last_layers={settings.last_layers} is more than the teacher {folder} has: its {name} is {depth}; set "
            f"task.teacher.last_layers={depth} or lower"
        )


def _is_open(name: str, own: AudioBranch | VideoBranch, theirs: AudioBranch | VideoBranch) -> bool:
    """Whether a setting differs only because one of the two does not give it."""
    here, there = getattr(own, name), getattr(theirs, name)
    if name == "stride":
        return bool((here or own.patch) == (there or theirs.patch))
    return here is None or there is None  # log-mel statistics that are not known yet


def _is_same(one: Any, other: Any) -> bool:
    # Measured statistics pass through YAML: the last digit may go.
    are_lists = isinstance(one, tuple) and isinstance(other, tuple)
    pairs = zip(one, other, strict=False) if are_lists else [(one, other)]
    return all(a == b or (isinstance(a, float) and math.isclose(a, b, rel_tol=1e-6)) for a, b in pairs)


def _written(value: Any) -> str:
    """As it is written after ``key=``, but for the spaces of a list."""
    if value is None:
        return "null"
    return str(list(value)) if isinstance(value, tuple) else str(value)
