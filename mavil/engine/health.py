"""Whether a run still learns something: metrics that a task says must not stay low, looked at whenever metrics are logged."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mavil import distributed
from mavil.tasks.base import Limit

logger = logging.getLogger(__name__)

LINES_IN_A_ROW = 5
"""Log lines below a limit before it counts, 100 steps with the default ``trainer.log_every`` [our choice]: a line is already a
mean over its steps, and what recovers by itself within five was no collapse."""
COLLAPSED = "health/collapsed"


@dataclass
class Health:
    """Collapsed is what was below its limit in the last :data:`LINES_IN_A_ROW` log lines, all after the warm-up.

    Before the end of the warm-up nothing counts: embeddings of random weights are nearly the same for every clip, and the
    first steps may bring them closer still. Decided from logged means over ranks alone, which are the same on every rank;
    therefore all ranks decide alike, and nothing is exchanged or read from the device for it.

    Attributes:
        limits: by the name of the metric, see :class:`mavil.tasks.base.Monitored`; without any nothing is looked at.
        warmup_steps: lines up to this step do not count.
        stops: whether the run is to end; otherwise it is only told.
        problem: what has collapsed, for people; ``None`` if nothing has.
    """

    limits: Mapping[str, Limit] = field(default_factory=dict)
    warmup_steps: int = 0
    stops: bool = False
    problem: str | None = field(default=None, init=False)
    _lines_below: dict[str, int] = field(default_factory=dict, init=False)

    def look_at(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """Take the means of one log line; what is to be logged with them. Warns once, until everything has recovered."""
        if not self.limits:
            return {}
        self._count(step, metrics)
        collapsed = self._collapsed()
        before, self.problem = self.problem, self._told(step, metrics, collapsed) if collapsed else None
        if self.problem is not None and before is None and not self.stops:
            logger.warning("%s. Training goes on (trainer.on_collapse=warn)", self.problem)
        if self.problem is None and before is not None:
            logger.info("step %d: recovered from collapse", step)
        return {COLLAPSED: float(bool(collapsed))}

    def replay(self, lines: Sequence[Mapping[str, Any]], step: int) -> None:
        """Go on where a run was at ``step``, from its log lines, which rank 0 alone needs to see; collective."""
        if not self.limits:
            return
        for line in lines if distributed.is_main() else ():
            if line["step"] <= step:
                self._count(line["step"], line["metrics"])
        self._lines_below = distributed.broadcast_object(self._lines_below)

    def _count(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, limit in self.limits.items():
            if name in metrics and step > self.warmup_steps:
                is_below = metrics[name] < limit.least
                self._lines_below[name] = self._lines_below.get(name, 0) + 1 if is_below else 0

    def _collapsed(self) -> list[str]:
        return [name for name in self.limits if self._lines_below.get(name, 0) >= LINES_IN_A_ROW]

    def _told(self, step: int, metrics: Mapping[str, float], collapsed: list[str]) -> str:
        parts = []
        for name in collapsed:
            limit = self.limits[name]
            value = f"{metrics[name]:.3g}" if name in metrics else "not logged any more"
            parts.append(
                f"{name} is {value}, below {limit.least:g} in {self._lines_below[name]} log lines in a row: {limit.meaning}; "
                f"{limit.advice}"
            )
        return f"step {step}: collapse: {'; '.join(parts)}"
