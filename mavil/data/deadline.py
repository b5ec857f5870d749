"""A limit on how long one clip may take to decode.

Most endless work is a loop over a clip's packets or frames: an alarm interrupts it, and the clip is left out. Where a decoder
hangs inside its own code no signal is looked at; there, in a worker process, a second and longer limit ends the process, and
the loader starts a new one.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

HARD_LIMIT_FACTOR = 2.0
"""The process ends when a clip takes so many times its limit."""


class TimeLimitExceeded(BaseException):
    """The work inside :func:`time_limit` took too long."""


@contextmanager
def time_limit(seconds: float, ends_process: bool) -> Iterator[None]:
    """Raise :class:`TimeLimitExceeded` in the work inside after ``seconds``; ``ends_process`` adds the second limit.

    Outside the main thread, where Python takes no signals, the first limit does not exist.
    """
    if ends_process:
        faulthandler.dump_traceback_later(HARD_LIMIT_FACTOR * seconds, exit=True, file=_nowhere())
    has_alarm = threading.current_thread() is threading.main_thread()
    if has_alarm:
        previous = signal.signal(signal.SIGALRM, _raise)
        signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        if has_alarm:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
        if ends_process:
            faulthandler.cancel_dump_traceback_later()


def _raise(_signal: int, _frame: FrameType | None) -> None:
    raise TimeLimitExceeded


_DEV_NULL: list[int] = []


def _nowhere() -> int:
    """Where the stack of a stuck process goes: the loader says in one line what happened."""
    if not _DEV_NULL:
        _DEV_NULL.append(os.open(os.devnull, os.O_WRONLY))
    return _DEV_NULL[0]
