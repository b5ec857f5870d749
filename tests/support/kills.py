"""Kill a training run with SIGKILL again and again, continue it every time, and see whether anything was lost or repeated."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from mavil.engine.checkpoints.reading import load_checkpoint, load_weights
from mavil.engine.metrics.tracker import read_metrics
from tests.support.processes import Running, Starter, survivors, wait_for, wait_until

Event = Literal["start", "step", "save", "evaluation"]
LONGEST_ATTEMPT_SECONDS = 180.0
ORPHAN_SECONDS = 30.0
"""So long after the death of the training process nothing that it started may be left."""
USUAL_SECONDS: dict[Event, float] = {"step": 0.05, "save": 0.02, "evaluation": 0.2}
"""From an event of a tiny run to the next. How long a start takes is measured as the runs go on."""
PERIOD: Sequence[Event] = ("step", "save", "start", "evaluation", "save")
SHARE_OF_WHOLE_GROUPS = 0.3


@dataclass(frozen=True)
class Moment:
    """When to kill: at the ``number``-th event of a kind since the process was started, and a little later.

    Attributes:
        event: the ``start`` of the process, the line of a ``step`` in the metrics, the hidden folder of a ``save``, or the
            last line before an ``evaluation``.
        number: of events to wait for, from 1.
        delay: share, 0 to 1, of what usually lies between this event and the next.
        takes_all: kill every process of the run at once, as a machine that fails does; otherwise only the training process,
            and what it has started must notice.
    """

    event: Event
    number: int
    delay: float
    takes_all: bool


def draw_moments(seed: int, count: int) -> list[Moment]:
    """Random moments over the whole life of a process: of five, two in saves, one each in start-up, steps, evaluation."""
    generator = random.Random(seed)
    moments = []
    for i in range(count):
        event = PERIOD[i % len(PERIOD)]
        number = generator.randint(1, {"step": 5, "save": 2}.get(event, 1))
        moments.append(Moment(event, number, generator.random(), generator.random() < SHARE_OF_WHOLE_GROUPS))
    return moments


@dataclass
class Sight:
    """What a process has done since it was started, as far as it can be seen from outside."""

    steps: list[int] = field(default_factory=list)
    evaluated: set[int] = field(default_factory=set)
    saves: set[int] = field(default_factory=set)
    """Inodes of the hidden folders seen."""
    is_saving: bool = False

    def count(self, event: Event, evaluations: set[int]) -> int:
        begun = evaluations & set(self.steps)
        return {"start": 1, "step": len(self.steps), "save": len(self.saves), "evaluation": len(begun)}[event]

    def busy_with(self, evaluations: set[int]) -> Event:
        """What the process was at when it was last looked at."""
        if self.is_saving:
            return "save"
        if not self.steps:
            return "start"
        is_evaluating = self.steps[-1] in evaluations and self.steps[-1] not in self.evaluated
        return "evaluation" if is_evaluating else "step"


class Watch:
    """Looks at a run folder while a process is at work in it."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._since = time.time()
        self._leftovers = self._hidden_folders()
        self._metrics_then: tuple[int, int] | None = None
        self.sight = Sight()

    def look(self) -> Sight:
        hidden = self._hidden_folders() - self._leftovers
        self.sight.saves |= {inode for name, inode in hidden if name.endswith(".partial")}
        self.sight.is_saving = bool(hidden)
        try:
            found = os.stat(self.run / "metrics.jsonl")
        except FileNotFoundError:
            return self.sight
        if self._metrics_then != (found.st_ino, found.st_size):
            self._metrics_then = (found.st_ino, found.st_size)
            lines = [line for line in read_metrics(self.run) if line["conditions"]["time"] >= self._since]
            self.sight.steps = [line["step"] for line in lines if not is_evaluation(line)]
            self.sight.evaluated = {line["step"] for line in lines if is_evaluation(line)}
        return self.sight

    def _hidden_folders(self) -> set[tuple[str, int]]:
        try:
            with os.scandir(self.run / "checkpoints") as entries:
                return {(entry.name, entry.inode()) for entry in entries if entry.name.startswith(".step_")}
        except FileNotFoundError:
            return set()


def is_evaluation(line: dict[str, Any]) -> bool:
    """Whether a line of the metrics is that of an evaluation."""
    return any(name.startswith("evaluation/") for name in line["metrics"])


@dataclass
class Attempt:
    """One process at work in a run folder.

    Attributes:
        resumed_step: of the checkpoint it could go on from, 0 without one.
        batches: clips of every training batch it drew, where that was asked for.
        killed: (event that was waited for, what the process was at when it died), ``None`` for one that ended by itself.
    """

    resumed_step: int
    batches: list[list[str]]
    killed: tuple[Event, Event] | None


class Torture:
    """Runs ``mavil ARGUMENTS`` in one run folder, killed at one moment after the other.

    Args:
        run: the run folder; it need not exist.
        starter: how processes are started.
        arguments: of ``mavil``, with ``--resume`` among them.
        evaluations: steps after which there is an evaluation.
        notes_batches: have the processes say which clips they draw.
        batches_per_step: that one process draws.
        start_seconds: from the start of a process to its first step; 0: it is measured with the first one.
    """

    def __init__(
        self,
        run: Path,
        starter: Starter,
        arguments: Sequence[object],
        evaluations: set[int],
        notes_batches: bool = False,
        start_seconds: float = 0.0,
        batches_per_step: int = 1,
    ) -> None:
        self.run, self._starter, self._arguments = run, starter, arguments
        self._evaluations, self._notes_batches = evaluations, notes_batches
        self.start_seconds, self._batches_per_step = start_seconds, batches_per_step
        self.log = run.with_name(f"{run.name}.log")
        self.attempts: list[Attempt] = []
        self._killed_sessions: dict[int, float] = {}

    @property
    def kills(self) -> list[tuple[Event, Event]]:
        return [attempt.killed for attempt in self.attempts if attempt.killed is not None]

    def attempt(self, moment: Moment | None = None) -> bool:
        """Start or continue the run and kill it at that moment; returns whether it came to its end before.

        Raises:
            AssertionError: it ended by itself with another exit code than 0.
        """
        resumed = newest_step(self.run)
        drawn = self.run.with_name(f"{self.run.name}.batches{len(self.attempts)}") if self._notes_batches else None
        watch = Watch(self.run)
        process = self._starter.start(self._arguments, self.run.parent, self.log, drawn)
        if self._waits_for(moment, process, watch) and moment is not None:
            (os.killpg if moment.takes_all else os.kill)(process.pid, signal.SIGKILL)
            self._killed_sessions[process.pid] = time.monotonic()
        code = wait_for(process, LONGEST_ATTEMPT_SECONDS)
        assert code in (0, -signal.SIGKILL if moment else 0), f"exit code {code}: {self.log.read_text()[-3000:]}"
        batches = [json.loads(line) for line in drawn.read_text().splitlines()] if drawn and drawn.exists() else []
        killed = (moment.event, watch.look().busy_with(self._evaluations)) if moment and code else None
        self.attempts.append(Attempt(resumed, batches, killed))
        return code == 0

    def _waits_for(self, moment: Moment | None, process: Running, watch: Watch) -> bool:
        """Until the moment has come; returns whether the process still ran then."""
        began = time.monotonic()
        while moment is None or watch.sight.count(moment.event, self._evaluations) < moment.number:
            if process.code() is not None or time.monotonic() > began + LONGEST_ATTEMPT_SECONDS:
                return False
            if watch.look().steps and not self.start_seconds:
                self.start_seconds = time.monotonic() - began
            time.sleep(0.001)
        usual = self.start_seconds if moment.event == "start" else USUAL_SECONDS[moment.event]
        return wait_until(process.code, moment.delay * usual, pause=0.001) is None

    def orphans(self) -> list[str]:
        """What is left of the processes that were killed; each had :data:`ORPHAN_SECONDS` to end."""
        left: list[str] = []
        for session, killed_at in self._killed_sessions.items():
            rest = ORPHAN_SECONDS - (time.monotonic() - killed_at)
            wait_until(partial(_is_gone, session), max(0.0, rest), pause=0.1)
            left += survivors(session)
        return left

    def batches(self) -> list[list[str]]:
        """The clips of every batch that entered the weights, from the first step to the last.

        A process that was killed had drawn more than what its successor's checkpoint knew; those are drawn again.
        """
        kept: list[list[str]] = []
        for attempt in self.attempts:
            kept = kept[: attempt.resumed_step * self._batches_per_step] + attempt.batches
        return kept


def _is_gone(session: int) -> bool | None:
    return None if survivors(session) else True


def newest_step(run: Path) -> int:
    """The step of the newest complete checkpoint, 0 without one."""
    folders = [path.name for path in (run / "checkpoints").glob("step_*")]
    return max((int(name.removeprefix("step_")) for name in folders if re.fullmatch(r"step_\d+", name)), default=0)


def differences(one: Path, other: Path) -> list[str]:
    """In what two finished runs differ: logged lines, all of the last checkpoint to the bit, the best, what is exported."""
    found = _differing_lines(read_metrics(one), read_metrics(other))
    if newest_step(one) != newest_step(other):
        return [*found, f"last checkpoint of step {newest_step(one)} and {newest_step(other)}"]
    name = f"checkpoints/step_{newest_step(one):08d}"
    ends = [load_checkpoint(run / name) for run in (one, other)]
    for part in fields(ends[0]):
        if part.name != "source":
            found += _differing(part.name, *(getattr(end, part.name) for end in ends))
    bests = [(run / "checkpoints/best.json") for run in (one, other)]
    found += _differing("best", *(json.loads(best.read_text()) if best.exists() else None for best in bests))
    return found + _differing("exported", *(load_weights(run) for run in (one, other)))


def _differing_lines(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> list[str]:
    runs = [
        [("evaluation " if is_evaluation(line) else "step ") + str(line["step"]) for line in run]
        for run in (one, other)
    ]
    names = list(dict.fromkeys([*runs[0], *runs[1]]))
    counts = {name: [run.count(name) for run in runs] for name in names}
    found = [
        f"metrics: {first} and {second} lines of {name}" for name, (first, second) in counts.items() if first != second
    ]
    if not found and runs[0] != runs[1]:
        found = [f"metrics: lines in another order, {runs[0]} and {runs[1]}"]
    values = [dict(zip(names, run, strict=True)) for names, run in zip(runs, (one, other), strict=True)]
    for name in values[0].keys() & values[1].keys():
        found += _differing(f"metrics of {name}", values[0][name]["metrics"], values[1][name]["metrics"])
    return found


def _differing(name: str, one: Any, other: Any) -> list[str]:
    """The places, below ``name``, where two nested values are not the same to the bit."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [text for key in one for text in _differing(f"{name}.{key}", one[key], other[key])]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        return [
            text for i, pair in enumerate(zip(one, other, strict=True)) for text in _differing(f"{name}[{i}]", *pair)
        ]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        is_same = one.dtype == other.dtype and torch.equal(one, other)
        return [] if is_same else [f"{name} differs"]
    return [] if type(one) is type(other) and one == other else [f"{name}: {str(one)[:80]} and {str(other)[:80]}"]
