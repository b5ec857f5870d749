"""What a file asks SLURM for: the stages of a pipeline or of an ablation, with resources that a profile has.

The files are read by :mod:`mavil.pipelines`, which starts the same ones on this machine: ``mavil pipeline``, ``mavil ablate``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mavil.pipelines.ablation import is_ablation, load_ablation
from mavil.pipelines.pipeline import is_pipeline, load_pipeline
from mavil.pipelines.stages import Stage
from slurm.profiles import checked


def holds_several(path: Path) -> bool:
    """Whether a YAML file is a pipeline or an ablation, and not a recipe."""
    return is_pipeline(path) or is_ablation(path)


def load_stages(path: Path, out: Path | None = None) -> list[Stage]:
    """The stages of a pipeline; of an ablation an array for each variant and, after all of them, the table.

    Args:
        path: the YAML file.
        out: where the run folders lie instead of where the file says.

    Raises:
        PlanError: a mistake in the file, or in its resources.
    """
    stages = load_pipeline(path, out) if is_pipeline(path) else load_ablation(path, out).with_table()
    return [replace(one, resources=checked(one.resources, f"{path}: stage {one.name}: resources")) for one in stages]
