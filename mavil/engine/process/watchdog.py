"""A rank that makes no progress writes where it stands and ends, so that a job that hangs becomes a job that failed.

Two lines of defence. A thread looks at the time of the last beat: it can say what the rank was doing, and works while the
main thread waits in a collective or in a read, for those let other threads run. Where one does not (code that keeps Python's
lock, a log file on a disk that does not answer), a timer of :mod:`faulthandler`, which needs no lock, writes the stacks to
the process's error output and ends it some time later.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType

from mavil import distributed

logger = logging.getLogger(__name__)

EXIT_HUNG = 70
"""``EX_SOFTWARE`` of sysexits.h: the exit code of a rank that stood still."""
GRACE_SECONDS = 60.0
"""So much later than the thread the timer acts: time for the thread to write, if it can."""
_LOOKS_PER_PERIOD = 60
_LONGEST_PAUSE_SECONDS = 10.0


class Watchdog:
    """Ends this process with :data:`EXIT_HUNG` when :meth:`beat` was not called for ``minutes``; a context manager.

    At half the time it warns. At the end every thread's Python stack goes to ``stacks.rank{r}.txt`` in the run folder, with
    what the rank was doing, and one line to the log. There is no clean-up: a rank that hangs cannot be asked to leave, and
    the others notice that it is gone.

    Args:
        run: the run folder.
        minutes: ``None`` watches nothing.
        others: the stacks of processes that work for this one, as text; asked last, in at most a few seconds.
    """

    def __init__(self, run: Path, minutes: float | None, others: Callable[[], str] | None = None) -> None:
        self._path = run / f"stacks.rank{distributed.rank()}.txt"
        self._seconds = None if minutes is None else 60.0 * minutes
        self._others = others
        # One tuple, replaced as a whole: the thread never sees the time of one beat with the words of another.
        self._last = (time.monotonic(), "starting")
        self._is_left = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Watchdog:
        if self._seconds is not None:
            self.beat("starting")
            self._arm_timer(self._seconds)
            self._thread = threading.Thread(target=self._watch, args=(self._seconds,), name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._is_left.set()
            self._thread.join()
            self._thread = None
            faulthandler.cancel_dump_traceback_later()

    def beat(self, doing: str) -> None:
        """Say that there is progress and what comes next, e.g. ``step 12: waiting for clips``. Costs nothing measurable."""
        self._last = (time.monotonic(), doing)

    def _watch(self, seconds: float) -> None:
        pause = min(seconds / _LOOKS_PER_PERIOD, _LONGEST_PAUSE_SECONDS)
        warned_of: float | None = None
        while not self._is_left.wait(pause):
            since, doing = self._last
            still = time.monotonic() - since
            self._arm_timer(seconds - still)
            if still >= seconds:
                self._end(doing, still)
            if still >= seconds / 2 and warned_of != since:
                warned_of = since
                logger.warning(
                    "rank %d has made no progress for %.3g min (%s); it ends after %.3g min (trainer.hang_minutes)",
                    distributed.rank(),
                    still / 60,
                    doing,
                    seconds / 60,
                )

    def _arm_timer(self, seconds_left: float) -> None:
        """Set the second line of defence anew; it exists once per process."""
        if sys.__stderr__ is not None:
            faulthandler.dump_traceback_later(max(seconds_left, 0.0) + GRACE_SECONDS, exit=True, file=sys.__stderr__)

    def _end(self, doing: str, still: float) -> None:
        rank, minutes = distributed.rank(), still / 60
        where = self._path
        try:
            self._write_stacks(doing, minutes)
            told = f"stacks in {where}"
        except (OSError, ValueError) as error:
            told = f"stacks could not be written to {where} ({error})"
            with contextlib.suppress(OSError, ValueError):
                faulthandler.dump_traceback(all_threads=True)
        logger.error("rank %d has made no progress for %.3g min (%s) and ends; %s", rank, minutes, doing, told)
        os._exit(EXIT_HUNG)

    def _write_stacks(self, doing: str, minutes: float) -> None:
        with open(self._path, "a", encoding="utf-8") as file:
            now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            file.write(f"{now} rank {distributed.rank()}, no progress for {minutes:.3g} min: {doing}\n\n")
            # It writes past Python's buffer.
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
            if self._others is not None:
                file.write(self._others())
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
