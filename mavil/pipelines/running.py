"""Start jobs on this machine, each when those it needs have ended well, and see to it that none is left behind.

What a job prints goes to ``pipeline.log`` in its folder. A job that fails stops those that need it; the others go on. A request
to stop is passed on as SIGTERM, at which a training saves a checkpoint, and all jobs are waited for.
"""

from __future__ import annotations

import ctypes
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

from mavil.pipelines.jobs import Job

LOG = "pipeline.log"
POLL_SECONDS = 0.1
EXIT_STOPPED = 75
"""Of ``mavil`` when it was asked to stop and can go on."""
_PR_SET_PDEATHSIG = 1
_PRCTL = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
"""Looked up before the fork: between fork and exec a process with threads must not load a library."""

NOT_CHOSEN, STOPPED_BEFORE = "not chosen", "stopped before it began"
"""Reasons of jobs that were not started and that no other job kept from it."""

State = Literal["finished before", "done", "failed", "not started", "stopped"]


@dataclass(frozen=True)
class Result:
    """What became of a job.

    Attributes:
        state: ``finished before``: there was nothing left to do; ``stopped``: it was asked to, and can go on.
        seconds: how long it ran this time.
        reason: why it is not done; empty where it is.
    """

    state: State
    seconds: float = 0.0
    reason: str = ""

    @property
    def is_good(self) -> bool:
        """Whether what needs it may start."""
        return self.state in ("finished before", "done")


@dataclass
class Running:
    """A job that runs, since when (``time.monotonic``)."""

    job: Job
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    since: float = field(default_factory=time.monotonic)

    def close(self) -> float:
        """Close the log; return the seconds the job ran."""
        self.log.close()
        return time.monotonic() - self.since


@dataclass
class Jobs:
    """Jobs to run.

    Attributes:
        jobs: all of them, each after those it needs.
        chosen: names of those that may be started; the others count only if they are finished.
        is_finished: whether nothing is left to do for a job; asked when those it needs have ended well.
        finish: called when a job has ended well.
        num_parallel: how many may run at the same time.
        is_stopping: whether somebody asked this program to stop.
        show: called about ten times a second with what runs, and with what has ended so far.
        tell: one line for people.
    """

    jobs: Sequence[Job]
    chosen: Set[str]
    is_finished: Callable[[Job], bool]
    finish: Callable[[Job], None] = lambda job: None
    num_parallel: int = 1
    is_stopping: Callable[[], bool] = lambda: False
    show: Callable[[Sequence[Running], Mapping[str, Result]], None] = lambda running, results: None
    tell: Callable[[str], None] = lambda text: None
    _results: dict[str, Result] = field(default_factory=dict, init=False)
    _running: list[Running] = field(default_factory=list, init=False)
    _to_do: set[str] = field(default_factory=set, init=False)

    def run(self) -> dict[str, Result]:
        """Run them; what became of each by name, in the order of ``jobs``."""
        is_passed_on = False
        try:
            while len(self._results) < len(self.jobs):
                if self.is_stopping() and not is_passed_on:
                    is_passed_on = True
                    self._pass_on()
                self._collect()
                self._start_ready()
                self.show(self._running, self._results)
                if self._running:
                    time.sleep(POLL_SECONDS)
        finally:
            # Only where something unexpected happens, e.g. Ctrl-C for the second time.
            for one in self._running:
                one.process.kill()
        return {job.name: self._results[job.name] for job in self.jobs}

    def _pass_on(self) -> None:
        if self._running:
            self.tell(f"stopping: waiting for {', '.join(one.job.name for one in self._running)}")
        for one in self._running:
            one.process.send_signal(signal.SIGTERM)

    def _collect(self) -> None:
        for one in list(self._running):
            code = one.process.poll()
            if code is None:
                continue
            self._running.remove(one)
            self._note(one.job, self._ended(one, code))

    def _ended(self, one: Running, code: int) -> Result:
        seconds = one.close()
        if code == 0:
            self.finish(one.job)
            return Result("done", seconds)
        if code == EXIT_STOPPED or self.is_stopping():
            return Result("stopped", seconds, "the same command goes on with it")
        cause = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return Result("failed", seconds, f"{cause}: {_last_words(one.job.run / LOG)}")

    def _start_ready(self) -> None:
        """Start what can be, and note what never can."""
        for job in self.jobs:
            if job.name in self._results or any(one.job is job for one in self._running):
                continue
            missing = [name for name in job.after if name not in self._results or not self._results[name].is_good]
            if any(name not in self._results for name in missing) and not self.is_stopping():
                continue
            if missing:
                self._note(job, Result("not started", 0.0, f"needs {missing[0]}"))
            elif self._has_finished_before(job):
                self._note(job, Result("finished before"))
            elif job.name not in self.chosen:
                self._note(job, Result("not started", 0.0, NOT_CHOSEN))
            elif self.is_stopping():
                self._note(job, Result("not started", 0.0, STOPPED_BEFORE))
            elif len(self._running) < self.num_parallel:
                self._start(job)

    def _has_finished_before(self, job: Job) -> bool:
        """Asked once: a job may then have to wait for another one to end."""
        if job.name not in self._to_do and self.is_finished(job):
            return True
        self._to_do.add(job.name)
        return False

    def _start(self, job: Job) -> None:
        try:
            job.run.mkdir(parents=True, exist_ok=True)
            log = (job.run / LOG).open("ab")
        except OSError as error:
            self._note(job, Result("failed", 0.0, f"{job.run} cannot be written: {error.strerror or error}"))
            return
        log.write(f"### {time.strftime('%Y-%m-%d %H:%M:%S')} {shlex.join(job.command)}\n".encode())
        log.flush()
        process = subprocess.Popen(
            job.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=_end_with_parent
        )
        self._running.append(Running(job, process, log))
        self.tell(f"{job.name}: started, log {job.run / LOG}")

    def _note(self, job: Job, result: Result) -> None:
        self._results[job.name] = result
        if result.state != "not started":
            after = f" after {result.seconds:.0f} s" if result.seconds else ""
            self.tell(f"{job.name}: {result.state}{after}{f' ({result.reason})' if result.reason else ''}")


def _end_with_parent() -> None:
    # Whoever kills this program with -9 must not find its trainings at work an hour later; they save and stop.
    if _PRCTL is not None:
        _PRCTL(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _last_words(log: Path) -> str:
    """The last line of a log that says something."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - 8192))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
