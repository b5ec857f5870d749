"""A list of clips on a few threads: tried again where that helps, journalled one by one, stopped where it is hopeless."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from mavil.engine.trainer import Interrupted
from mavil.structs import UserError
from tools.downloads.causes import BLOCKS, PERMANENT
from tools.downloads.journal import Attempt, Journal
from tools.downloads.segments import Segment
from tools.downloads.youtube import ClipFailure, Stopped

Fetch = Callable[[Segment, threading.Event], Path]
"""Fetches one clip and returns its file; raises ClipFailure or Stopped."""

LONGEST_PAUSE_SECONDS = 300.0
_NOT_NOW = frozenset({"ok", "disk_full", "not_started"})
# After this a worker that has not come back from a silent connection is left behind; it ends with the process.
_PATIENCE_SECONDS = 5.0


@dataclass(frozen=True)
class RunOptions:
    """``retries`` of one clip for causes that pass; ``sleep_seconds`` between two clips of a worker."""

    workers: int = 2
    retries: int = 3
    sleep_seconds: float = 0.0
    first_pause_seconds: float = 5.0
    stop_after_blocks: int = 20


@dataclass
class Outcome:
    """What a run did: clips by cause (``ok`` among them), and why it ended early."""

    causes: Counter[str] = field(default_factory=Counter)
    ended_early: str = ""
    is_interrupted: bool = False


def pending_segments(
    segments: Sequence[Segment],
    names_on_disk: frozenset[str],
    file_of: Callable[[Segment], str],
    journal: Journal,
    retry: bool,
) -> tuple[list[Segment], Counter[str]]:
    """What is left to do, and what is left out by its cause: ``ok`` is what is on disk, the rest what failed for good.

    The disk decides what is there: a clip whose file was removed is fetched again, one put there by hand is taken.
    """
    earlier, given_up = journal.read(), journal.given_up()
    pending, done = [], Counter[str]()
    for segment in segments:
        attempt = earlier.get(segment.name)
        if file_of(segment) in names_on_disk:
            done["ok"] += 1
        elif attempt is not None and (attempt.is_permanent or segment.name in given_up) and not retry:
            done[attempt.cause] += 1
        else:
            pending.append(segment)
    return pending, done


class ClipRun:
    """Fetches segments; :meth:`run` returns when all were tried, the site blocks, the disk is full, or on Ctrl-C."""

    def __init__(self, fetch: Fetch, journal: Journal, options: RunOptions) -> None:
        self._fetch = fetch
        self._journal = journal
        self._options = options
        self._stop = threading.Event()
        self._todo: queue.SimpleQueue[Segment] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Attempt | BaseException | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._blocks_in_a_row = 0

    def run(self, segments: Sequence[Segment], on_result: Callable[[Attempt], None] = lambda attempt: None) -> Outcome:
        """Try every segment; the journal is written by the calling thread alone.

        Raises:
            UserError: the disk is full.
        """
        for segment in segments:
            self._todo.put(segment)
        workers = [
            threading.Thread(target=self._work, name=f"clips-{number}", daemon=True)
            for number in range(min(self._options.workers, max(1, len(segments))))
        ]
        outcome = Outcome()
        for worker in workers:
            worker.start()
        try:
            self._collect(len(workers), outcome, on_result)
        except (KeyboardInterrupt, Interrupted):
            outcome.is_interrupted = True
        finally:
            self._stop.set()
            deadline = time.monotonic() + _PATIENCE_SECONDS
            for worker in workers:
                worker.join(max(0.0, deadline - time.monotonic()))
            self._take_rest(outcome, on_result)
        if not outcome.is_interrupted and self._is_blocked():
            outcome.ended_early = (
                f"the site turned us away {self._blocks_in_a_row} times in a row (bot check or request limit): stopped. "
                "Wait some hours, or pass --cookies of a signed-in browser, fewer --workers and --sleep-seconds 10; "
                "then run the same command to go on"
            )
        return outcome

    def _collect(self, num_workers: int, outcome: Outcome, on_result: Callable[[Attempt], None]) -> None:
        while num_workers:
            result = self._results.get()
            if result is None:
                num_workers -= 1
            elif isinstance(result, BaseException):
                raise result
            else:
                self._note(result, outcome, on_result)

    def _take_rest(self, outcome: Outcome, on_result: Callable[[Attempt], None]) -> None:
        """What workers finished while the run was ending: a file on disk must not lack its line."""
        while not self._results.empty():
            result = self._results.get()
            if isinstance(result, Attempt):
                self._note(result, outcome, on_result)

    def _note(self, attempt: Attempt, outcome: Outcome, on_result: Callable[[Attempt], None]) -> None:
        self._journal.add(attempt)
        outcome.causes[attempt.cause] += 1
        on_result(attempt)
        if attempt.cause == "disk_full":
            raise UserError(
                f"{self._journal.path.parent}: {attempt.message}; make room or choose another --out, then run the same "
                "command to go on"
            )

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    segment = self._todo.get_nowait()
                except queue.Empty:
                    break
                self._results.put(self._try(segment))
                self._stop.wait(self._options.sleep_seconds)
        except Stopped:
            pass
        except BaseException as error:  # a mistake of ours must end the run, not one of its threads
            self._results.put(error)
        finally:
            self._results.put(None)

    def _try(self, segment: Segment) -> Attempt:
        begin = time.monotonic()
        for failures in range(1, self._options.retries + 2):
            num_bytes = 0
            try:
                num_bytes = self._fetch(segment, self._stop).stat().st_size
                cause, message = "ok", ""
            except ClipFailure as error:
                cause, message = error.cause, str(error)
            self._look_ahead(cause)
            is_over = cause in _NOT_NOW or cause in PERMANENT
            if is_over or failures > self._options.retries or self._stop.is_set():
                break
            pause = self._options.first_pause_seconds * 2 ** (failures - 1)
            self._stop.wait(min(pause, LONGEST_PAUSE_SECONDS))
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        return Attempt(segment.name, cause, message, now, round(time.monotonic() - begin, 1), num_bytes)

    def _look_ahead(self, cause: str) -> None:
        """Stop every worker where the next clips would fail like this one."""
        if cause == "disk_full":
            self._stop.set()
        with self._lock:
            if self._is_blocked():
                return
            self._blocks_in_a_row = self._blocks_in_a_row + 1 if cause in BLOCKS else 0
            if self._is_blocked():
                self._stop.set()

    def _is_blocked(self) -> bool:
        return self._blocks_in_a_row >= self._options.stop_after_blocks
