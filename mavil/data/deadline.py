"""A limit on how long one clip may take to decode.

Most endless work is a loop over a clip's packets or frames: an alarm interrupts it, and the clip is left out. Where a decoder
hangs inside its own code no signal is looked at; there, in a worker process, a second and longer limit ends the process, and
the loader starts a new one.

The clock of both goes on where the process does not: it was stopped, its virtual machine was, or others had the processor. Such
a clip is not to blame, and an evaluation that left it out would be of other clips than the next one. So work that has hardly
run when its time is over is given the same time once more.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

HARD_LIMIT_FACTOR = 2.0
"""The process ends when a clip takes so many times its limit."""
LEAST_WORK = 0.5
"""Share of its time in which endless work has kept the processor busy, even beside others; less is hardly any [our choice]."""


class TimeLimitExceeded(BaseException):
    """The work inside :func:`time_limit` took too long."""


@contextmanager
def time_limit(seconds: float, ends_process: bool) -> Iterator[None]:
    """Raise :class:`TimeLimitExceeded` in the work inside after ``seconds``; ``ends_process`` adds the second limit.

    Both begin anew, once, if the process has had the processor for less than :data:`LEAST_WORK` of the time. Outside the main
    thread, where Python takes no signals, the first limit does not exist, and the second does not begin anew.
    """
    had_at_start, is_second_time = time.process_time(), False

    def ring(_signal: int, _frame: FrameType | None) -> None:
        nonlocal is_second_time
        if is_second_time or time.process_time() - had_at_start >= LEAST_WORK * seconds:
            raise TimeLimitExceeded
        is_second_time = True
        begin()

    def begin() -> None:
        if ends_process:
            faulthandler.dump_traceback_later(HARD_LIMIT_FACTOR * seconds, exit=True, file=_nowhere())
        if has_alarm:
            signal.setitimer(signal.ITIMER_REAL, seconds)

    has_alarm = threading.current_thread() is threading.main_thread()
    if has_alarm:
        previous = signal.signal(signal.SIGALRM, ring)
    begin()
    try:
        yield
    finally:
        if has_alarm:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
        if ends_process:
            faulthandler.cancel_dump_traceback_later()


_DEV_NULL: list[int] = []


def _nowhere() -> int:
    """Where the stack of a stuck process goes: the loader says in one line what happened."""
    if not _DEV_NULL:
        _DEV_NULL.append(os.open(os.devnull, os.O_WRONLY))
    return _DEV_NULL[0]
