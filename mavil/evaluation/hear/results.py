"""The results of all tasks in one table, beside numbers of the benchmark's leaderboard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

ANCHORS: dict[str, dict[str, float]] = {
    "wav2vec2": {
        "tfds_crema_d": 0.656,
        "esc50": 0.561,
        "libricount": 0.692,
        "speech_commands-5h": 0.838,
        "nsynth_pitch-5h": 0.402,
    },
    "OpenL3": {
        "tfds_crema_d": 0.550,
        "esc50": 0.751,
        "libricount": 0.641,
        "speech_commands-5h": 0.680,
        "nsynth_pitch-5h": 0.560,
    },
    "PaSST base": {
        "tfds_crema_d": 0.610,
        "esc50": 0.947,
        "libricount": 0.660,
        "speech_commands-5h": 0.681,
        "nsynth_pitch-5h": 0.256,
    },
    "CED base": {
        "tfds_crema_d": 0.691,
        "esc50": 0.966,
        "libricount": 0.678,
        "speech_commands-5h": 0.869,
        "nsynth_pitch-5h": 0.682,
    },
    "MSM-MAE": {"tfds_crema_d": 0.734, "esc50": 0.856, "libricount": 0.858},
}
"""First metrics of tasks, by task or task-mode [source: the leaderboard's table of hearbenchmark.com; MSM-MAE: its paper's
abstract, ESC-50 by a third party]. PaSST and CED were trained with AudioSet's labels, the others without any [recalled]."""


_ABOUT_ANCHORS = "Scores of other systems: as published, from predictors trained without shuffling."
HEADINGS = ("task", "metric", "score", "± folds", "± seeds", *ANCHORS)
NUM_OWN = len(HEADINGS) - len(ANCHORS)
"""Columns before those of other systems."""


@dataclass(frozen=True)
class Row:
    """One task. ``score`` is the mean over folds and seeds of the first metric, ``None`` where the task failed.

    ``over_folds`` is the standard deviation over folds (of the first seed), ``over_seeds`` over repetitions; ``None`` where
    there is one only. ``anchors``: score by system.
    """

    task: str
    metric: str
    score: float | None
    over_folds: float | None
    over_seeds: float | None
    anchors: dict[str, float]
    error: str | None = None


def row_of(key: str, name: str, mode: str, results: Sequence[Mapping[str, Any]]) -> Row:
    """The row of a task from its results, one per seed."""
    means, deviations = zip(*(_score(result) for result in results), strict=True)
    over_seeds = float(np.std(means, ddof=1)) if len(means) > 1 else None
    return Row(key, str(results[0]["metric"]), float(np.mean(means)), deviations[0], over_seeds, anchors_of(name, mode))


def failed_row(key: str, metric: str, error: str) -> Row:
    """The row of a task that did not come to its end."""
    return Row(key, metric, None, None, None, {}, error)


def anchors_of(name: str, mode: str) -> dict[str, float]:
    """Scores of the systems in ``ANCHORS`` that are known for a task in this mode (5h, 50h, full)."""
    found = {}
    for system, scores in ANCHORS.items():
        score = scores.get(f"{name}-{mode}", scores.get(name))
        if score is not None:
            found[system] = score
    return found


def cells_of(row: Row) -> list[str]:
    """The row as text, in the order of ``HEADINGS``."""
    if row.score is None:
        return [row.task, row.metric, "failed", *("" for _ in HEADINGS[3:])]
    spreads = ["" if value is None else f"{value:.3f}" for value in (row.over_folds, row.over_seeds)]
    anchors = [f"{row.anchors[system]:.3f}" if system in row.anchors else "" for system in ANCHORS]
    return [row.task, row.metric, f"{row.score:.3f}", *spreads, *anchors]


def markdown(rows: Sequence[Row], about: Sequence[str]) -> str:
    """The table as a document; ``about`` are lines on what was evaluated and how."""
    lines = [f"| {' | '.join(HEADINGS)} |", f"|{'---|' * len(HEADINGS)}"]
    lines += [f"| {' | '.join(cells_of(row))} |" for row in rows]
    errors = [f"- {row.task}: {row.error}" for row in rows if row.error]
    text = ["# HEAR", *about, "\n".join(lines), _ABOUT_ANCHORS]
    if errors:
        text += ["Failed:", "\n".join(errors)]
    return "\n\n".join(text) + "\n"


def _score(result: Mapping[str, Any]) -> tuple[float, float | None]:
    total = result.get("aggregated_scores")
    if total is not None:
        return float(total["test_score_mean"]), float(total["test_score_std"])
    return float(
        next(fold["test_score"] for fold in result.values() if isinstance(fold, dict) and "test_score" in fold)
    ), None
