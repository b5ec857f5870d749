"""Where the time between two metric lines went."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter


@dataclass
class Meter:
    """Seconds and clips since the last metric line.

    Attributes:
        since: when it began.
        evaluating: which is no training.
        saving: for as long as training waits for it.
        waiting: for the loader.
        clips: over all ranks.
    """

    since: float = field(default_factory=perf_counter)
    evaluating: float = 0.0
    saving: float = 0.0
    waiting: float = 0.0
    clips: int = 0

    def conditions(self) -> dict[str, float]:
        """Speed and shares; read the device before, for its work is part of the time."""
        everything = max(perf_counter() - self.since, 1e-9)
        training = max(everything - self.evaluating - self.saving, 1e-9)
        return {
            "speed/clips_per_second": self.clips / training,
            "speed/data_wait_share": self.waiting / training,
            "speed/checkpoint_share": self.saving / max(everything - self.evaluating, 1e-9),
        }
