"""Metrics out: JSONL and TensorBoard in the run folder, services that a recipe names, a bar or plain lines on the console.

One line of ``metrics.jsonl``::

    {"step": 20, "metrics": {"loss/total": 1.2, ...}, "conditions": {"time": 1.7e9, "speed/clips_per_second": 31.0, ...}}

``metrics`` repeat exactly when a run is repeated on the CPU; ``conditions`` depend on the machine and the moment. Names are
``group/name``. A line reaches the file in one write: a process that is killed leaves whole lines and at most one cut off.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from mavil import distributed
from mavil.atomic_files import write_text

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0
"""Shortest time between two plain lines, s; the first and the last step always get one."""
SHOWN_WAIT_SHARE = 0.1
"""The console tells of waiting for data above this share of the time."""
_OF_RANK_0 = ("speed/clips_per_second",)
"""Conditions that are the same on every rank; of the others the highest is logged, because the slowest rank sets the pace."""


EVALUATION = "evaluation/"
"""What the names of an evaluation's metrics begin with."""


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
        """``{name: [sum, count]}`` of this rank, so that a resumed run logs the same means. Reads the device once."""
        on_device = {name: value for name, value in self._sums.items() if isinstance(value, Tensor)}
        read = torch.stack(list(on_device.values())).tolist() if on_device else []
        sums = self._sums | dict(zip(on_device, read, strict=True))
        return {name: [float(value), float(self._counts[name])] for name, value in sums.items()}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        self._sums = {name: value for name, (value, _) in state.items()}
        self._counts = Counter({name: int(count) for name, (_, count) in state.items()})


class Output(Protocol):
    """Somewhere that metrics go, beside the console."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of one step; they may come in several calls with the same step."""
        ...

    def close(self) -> None:
        """No more will come."""
        ...


class Tracker:
    """Writes on rank 0 only, but every rank calls it at the same steps.

    Args:
        run: the run folder.
        total_steps: where the progress bar ends.
        console: where bar and lines go; a bar only on a terminal.
        resumed_step: the step the run goes on from; later lines of an interrupted run are dropped, they come again.
        counts: what this rank's loader has counted so far, logged as the sum over ranks ``data/<name>``; with
            ``samples`` and ``bytes_read`` among them also ``data/bytes_per_sample``.
        loggers: from :func:`mavil.engine.metrics.loggers.open_loggers`; closed with the tracker.
    """

    def __init__(
        self,
        run: Path,
        total_steps: int,
        console: Console,
        resumed_step: int = 0,
        counts: Callable[[], dict[str, int]] | None = None,
        loggers: Sequence[Output] = (),
    ) -> None:
        self._total_steps = total_steps
        self._counts = counts
        self._resumed = resumed_step, time.monotonic()
        self._line_after = 0.0
        self._outputs: list[Output] = list(loggers)
        self._is_writing = distributed.is_main()
        if not self._is_writing:
            return
        self._lines = _Lines(run, resumed_step)
        self._outputs.insert(0, TensorBoard(run, resumed_step))
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
            self._lines.close()
        for output in self._outputs:
            with suppress(OSError):  # a full disk; what is lost was told
                output.close()

    def advance(self, step: int) -> None:
        """Move the progress bar; reads nothing from the device."""
        if self._is_writing:
            self._bar.update(self._bar_task, completed=step)

    def log(self, step: int, metrics: dict[str, float], conditions: dict[str, float]) -> None:
        """Write the training metrics of a log step and show loss and speed. Memory is added here.

        Of ``conditions`` other than the speed the highest of all ranks is written.
        """
        conditions = self._over_ranks(conditions | memory())
        if not self._is_writing:
            return
        self._write(step, metrics, conditions)
        shown = f"loss {metrics['loss/total']:.4f}  {conditions['speed/clips_per_second']:.1f} clips/s"
        if (share := conditions.get("speed/data_wait_share", 0.0)) > SHOWN_WAIT_SHARE:
            shown += f"  {share:.0%} waiting for data"
        self._bar.update(self._bar_task, numbers=shown)
        is_due = time.monotonic() >= self._line_after or step == self._total_steps
        if self._bar.disable and is_due:
            self._line_after = time.monotonic() + SECONDS_BETWEEN_LINES
            logger.info("step %d/%d  %s  %s left", step, self._total_steps, shown, self._time_left(step))

    def log_evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Write the metrics of an evaluation, as ``evaluation/<name>``, and show all of them."""
        if not self._is_writing:
            return
        self._write(step, {f"{EVALUATION}{name}": value for name, value in metrics.items()}, {})
        logger.info("step %d evaluation: %s", step, "  ".join(f"{name} {value:.4g}" for name, value in metrics.items()))

    def _write(self, step: int, metrics: dict[str, float], conditions: dict[str, float]) -> None:
        self._lines.write({"step": step, "metrics": metrics, "conditions": {"time": time.time(), **conditions}})
        for output in list(self._outputs):
            try:
                output.log(step, metrics | conditions)
            except OSError as error:  # TensorBoard on a full disk
                self._outputs.remove(output)
                logger.warning("%s takes no more metrics: %s; training goes on", type(output).__name__, error)

    def _over_ranks(self, conditions: dict[str, float]) -> dict[str, float]:
        """Counts summed, conditions of the rank where they are highest. Called by every rank together."""
        own = conditions, self._counts() if self._counts is not None else {}
        ranks: list[tuple[dict[str, float], dict[str, int]]] = distributed.gather_objects(own)
        highest = {name: max(other[name] for other, _ in ranks if name in other) for name in conditions}
        highest |= {name: conditions[name] for name in _OF_RANK_0 if name in conditions}
        total: Counter[str] = Counter()
        for _, counts in ranks:
            total.update(counts)
        if total["samples"]:
            total["bytes_per_sample"] = total["bytes_read"] // total["samples"]
        return highest | {f"data/{name}": count for name, count in sorted(total.items())}

    def _time_left(self, step: int) -> str:
        first_step, since = self._resumed
        seconds = (self._total_steps - step) * (time.monotonic() - since) / max(1, step - first_step)
        return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"


class _Lines:
    """``metrics.jsonl``, one line per record."""

    def __init__(self, run: Path, resumed_step: int) -> None:
        path = run / "metrics.jsonl"
        if path.exists():
            write_text(path, "".join(json.dumps(r) + "\n" for r in read_metrics(run) if r["step"] <= resumed_step))
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (closed with the tracker)
        self._has_failed = False

    def write(self, record: dict[str, Any]) -> None:
        """Append a line or nothing: a full disk costs lines, not the run."""
        line = json.dumps(record).encode() + b"\n"
        end = self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(line) == len(line):
                return
            problem = "no space left"
        except OSError as error:
            problem = str(error)
        # Or the next line would be glued to the piece of this one.
        self._file.truncate(end)
        if not self._has_failed:
            logger.warning(
                "%s: step %d was not written: %s; training goes on", self._file.name, record["step"], problem
            )
        self._has_failed = True

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """The event file in the run folder."""

    def __init__(self, run: Path, resumed_step: int) -> None:
        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=resumed_step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point per name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is still in memory."""
        self._writer.close()


def memory() -> dict[str, float]:
    """GiB of this process: ``memory/resident_gib`` now, and on CUDA ``memory/peak_gib`` of the current device since the start.

    Resident is what lies in RAM, loader workers not counted; only where Linux tells. Reads nothing from the device.
    """
    numbers = {}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        numbers["memory/peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        numbers["memory/resident_gib"] = pages * os.sysconf("SC_PAGE_SIZE") / 2**30
    except OSError:  # another system
        pass
    return numbers


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``, oldest first; a last line cut off by a crash is left out, no file is no lines."""
    path = run / "metrics.jsonl"
    records = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:  # also bytes that are no text
            break
    return records
