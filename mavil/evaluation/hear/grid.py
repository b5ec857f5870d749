"""The predictor's settings that the benchmark searches, and in which order it draws them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mavil.structs import UserError

GRID: dict[str, Sequence[Any]] = {
    "check_val_every_n_epoch": (3,),
    "hidden_layers": (1, 2),
    "initialization": ("xavier_uniform", "xavier_normal"),
    "lr": (3.2e-3, 1e-3, 3.2e-4, 1e-4),
    "max_epochs": (500,),
}
"""The benchmark's own grid of sixteen points, under its names [source heareval]. What it leaves fixed are constants of
:mod:`mavil.evaluation.hear.predictor`."""
GRIDS: dict[str, dict[str, Sequence[Any]]] = {
    "default": GRID,
    "fast": GRID | {"check_val_every_n_epoch": (3, 10), "max_epochs": (10, 50)},
}
TASK_GRIDS: dict[str, dict[str, Sequence[Any]]] = {"dcase2016_task2": {"check_val_every_n_epoch": (10,)}}
"""Changes for single tasks, by the name in their metadata [source heareval]."""
NUM_POINTS = 8
"""Grid points that are tried, of those there are [source heareval]."""
POSTPROCESSING: dict[str, Sequence[float]] = {"median_filter_ms": (250,), "min_duration": (125, 250)}
"""What event tasks that name nothing else choose among at every validation [source heareval]."""


@dataclass(frozen=True)
class Setting:
    """One point of the grid. ``validate_every`` and ``max_epochs`` are epochs."""

    hidden_layers: int
    learning_rate: float
    initialization: str
    validate_every: int
    max_epochs: int


@dataclass(frozen=True, order=True)
class Postprocessing:
    """How frame-wise probabilities become events; both in milliseconds."""

    median_filter_ms: float
    min_duration_ms: float


def draw_settings(
    grid: str, task_name: str, changes: Mapping[str, Sequence[Any]], count: int, seed: int
) -> list[Setting]:
    """``count`` points of a grid in random order without repetition.

    The order is heareval's for the same seed: its grid is enumerated with names in alphabetical order, the last varying
    fastest, and shuffled by Python's ``random`` [source heareval, which uses seed 42].

    Args:
        grid: a name in ``GRIDS``.
        task_name: some tasks have changes of their own, see ``TASK_GRIDS``.
        changes: further ones, from the task's metadata.
        count: at most so many.
        seed: of the order.

    Raises:
        UserError: ``changes`` has a name that the grid lacks.
    """
    entries = {**GRIDS[grid], **TASK_GRIDS.get(task_name, {}), **changes}
    if unknown := sorted(set(entries) - set(GRID)):
        raise UserError(f"task {task_name}: task_specific_param_grid has {unknown[0]!r}; known: {', '.join(GRID)}")
    names = sorted(entries)
    points = [dict(zip(names, p, strict=True)) for p in itertools.product(*(entries[name] for name in names))]
    random.Random(seed).shuffle(points)
    return [
        Setting(p["hidden_layers"], p["lr"], p["initialization"], p["check_val_every_n_epoch"], p["max_epochs"])
        for p in points[:count]
    ]


def postprocessing_grid(entries: Mapping[str, Sequence[float]]) -> list[Postprocessing]:
    """Every combination of the values named in a task's metadata.

    Raises:
        UserError: a name other than ``median_filter_ms`` and ``min_duration``, or one of them is missing.
    """
    if set(entries) != set(POSTPROCESSING):
        raise UserError(f"event_postprocessing_grid has {sorted(entries)}, it needs {' and '.join(POSTPROCESSING)}")
    pairs = itertools.product(entries["median_filter_ms"], entries["min_duration"])
    return [Postprocessing(float(median), float(shortest)) for median, shortest in pairs]
