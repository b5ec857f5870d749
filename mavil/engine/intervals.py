"""What a run does after how many steps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Intervals:
    """After how many steps what is due; the first and the last step are always logged, the last always saved and evaluated.

    Attributes:
        log: steps between metric lines.
        save: steps between checkpoints, ``None`` only after the last.
        save_minutes: longest time without a checkpoint by the clock of rank 0, min.
        evaluate: steps between evaluations, ``None`` only after the last.
    """

    log: int = 20
    save: int | None = None
    save_minutes: float | None = None
    evaluate: int | None = None
