"""Metrics out: JSONL and TensorBoard in the run folder, a progress bar or plain lines on the console.

One line of ``metrics.jsonl``::

    {"step": 20, "metrics": {"loss/total": 1.2, ...}, "conditions": {"time": 1.7e9, "speed/clips_per_second": 31.0, ...}}

``metrics`` repeat exactly when a run is repeated on the CPU; ``conditions`` depend on the machine and the moment. Names are
``group/name``.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from mavil import distributed
from mavil.engine.checkpoint import write_text

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0
"""Shortest time between two plain lines, s; the first and the last step always get one."""


class Averages:
    """Means of scalars since the last read. They stay on the device until then, so adding costs no device read."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor | float] = {}
        self._counts: Counter[str] = Counter()

    def add(self, values: Mapping[str, Tensor | float]) -> None:
        """Add one observation of each name. Ranks must add the same names."""
        for name, value in values.items():
            number = value.detach().double() if isinstance(value, Tensor) else float(value)
            self._sums[name] = self._sums.get(name, 0.0) + number
            self._counts[name] += 1

    def read(self, device: torch.device) -> dict[str, float]:
        """The mean of every name over its observations and over ranks; starts anew. Called by every rank together."""
        names = sorted(self._sums)
        means = [torch.as_tensor(self._sums[n], dtype=torch.float64, device=device) / self._counts[n] for n in names]
        self.load_state_dict({})
        return dict(zip(names, distributed.mean_over_ranks(torch.stack(means)).tolist(), strict=True)) if names else {}

    def state_dict(self) -> dict[str, list[float]]:
        """``{name: [sum, count]}`` of this rank, so that a resumed run logs the same means."""
        return {name: [float(value), float(self._counts[name])] for name, value in self._sums.items()}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        self._sums = {name: value for name, (value, _) in state.items()}
        self._counts = Counter({name: int(count) for name, (_, count) in state.items()})


class Tracker:
    """Writes on rank 0 only, but every rank calls it at the same steps.

    Args:
        run: the run folder.
        total_steps: where the progress bar ends.
        console: where bar and lines go; a bar only on a terminal.
        resumed_step: the step the run goes on from; later lines of an interrupted run are dropped, they come again.
        counts: what this rank's loader has counted so far, logged as the sum over ranks ``data/<name>``; with
            ``samples`` and ``bytes_read`` among them also ``data/bytes_per_sample``.
    """

    def __init__(
        self,
        run: Path,
        total_steps: int,
        console: Console,
        resumed_step: int = 0,
        counts: Callable[[], dict[str, int]] | None = None,
    ) -> None:
        self._total_steps = total_steps
        self._counts = counts
        self._resumed = resumed_step, time.monotonic()
        self._line_after = 0.0
        self._is_writing = distributed.is_main()
        if not self._is_writing:
            return
        path = run / "metrics.jsonl"
        if path.exists():
            write_text(path, "".join(json.dumps(r) + "\n" for r in read_metrics(run) if r["step"] <= resumed_step))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed with the tracker)
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=resumed_step + 1)
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._bar_task = self._bar.add_task("", total=total_steps, completed=resumed_step, numbers="")

    def __enter__(self) -> Tracker:
        if self._is_writing:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_writing:
            self._bar.stop()
            self._board.close()
            self._file.close()

    def advance(self, step: int) -> None:
        """Move the progress bar; reads nothing from the device."""
        if self._is_writing:
            self._bar.update(self._bar_task, completed=step)

    def log(self, step: int, metrics: dict[str, float], conditions: dict[str, float]) -> None:
        """Write the training metrics of a log step and show loss and speed."""
        counts = self._gather_counts()
        if not self._is_writing:
            return
        self._write(step, metrics, conditions | counts)
        shown = f"loss {metrics['loss/total']:.4f}  {conditions['speed/clips_per_second']:.1f} clips/s"
        self._bar.update(self._bar_task, numbers=shown)
        is_due = time.monotonic() >= self._line_after or step == self._total_steps
        if self._bar.disable and is_due:
            self._line_after = time.monotonic() + SECONDS_BETWEEN_LINES
            logger.info("step %d/%d  %s  %s left", step, self._total_steps, shown, self._time_left(step))

    def log_evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Write the metrics of an evaluation, as ``evaluation/<name>``, and show all of them."""
        if not self._is_writing:
            return
        self._write(step, {f"evaluation/{name}": value for name, value in metrics.items()}, {})
        logger.info("step %d evaluation: %s", step, "  ".join(f"{name} {value:.4g}" for name, value in metrics.items()))

    def _write(self, step: int, metrics: dict[str, float], conditions: dict[str, float]) -> None:
        record = {"step": step, "metrics": metrics, "conditions": {"time": time.time(), **conditions}}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for name, value in (metrics | conditions).items():
            self._board.add_scalar(name, value, step)

    def _gather_counts(self) -> dict[str, float]:
        if self._counts is None:
            return {}
        total: Counter[str] = Counter()
        for counts in distributed.gather_objects(self._counts()):
            total.update(counts)
        if total["samples"]:
            total["bytes_per_sample"] = total["bytes_read"] // total["samples"]
        return {f"data/{name}": count for name, count in sorted(total.items())}

    def _time_left(self, step: int) -> str:
        first_step, since = self._resumed
        seconds = (self._total_steps - step) * (time.monotonic() - since) / max(1, step - first_step)
        return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``, oldest first; a last line cut off by a crash is left out, no file is no lines."""
    path = run / "metrics.jsonl"
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records
