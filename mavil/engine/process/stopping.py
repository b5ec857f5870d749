"""Requests to stop: signals become a note that the loop reads between two steps, so that the run ends with a checkpoint.

Who sends what: SLURM sends SIGCONT and SIGTERM to every process of a job that is preempted, cancelled or at its time limit,
and SIGKILL ``KillWait`` or ``GraceTime`` seconds later; with ``--signal`` the one that was asked for, some time before; submitit
asks for SIGUSR2. torchrun passes SIGTERM and SIGINT on to its ranks and kills them 30 s later. A terminal sends SIGINT.
SIGCONT needs no handler: a process that runs takes no notice of it.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import ClassVar

_POLITE = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
SAME_REQUEST_SECONDS = 3.0
"""torchrun passes on a Ctrl-C that the terminal has already sent to its ranks: two signals, one request."""


class Interrupted(Exception):  # noqa: N818 (nothing went wrong)
    """Somebody asked the run to stop; what it had finished is saved, and ``--resume`` goes on from it."""

    exit_code: ClassVar[int] = 75
    """``EX_TEMPFAIL`` of sysexits.h: not an error, try again later. A queue can requeue on it."""


@dataclass
class StopRequest:
    """Whether somebody asked this process to stop, by which signal, and when (``time.monotonic``)."""

    signal_name: str | None = None
    at: float = 0.0

    @property
    def is_made(self) -> bool:
        """Whether to stop at the next chance."""
        return self.signal_name is not None

    def leave_if_made(self) -> None:
        """For the time before the first step, when there is nothing to save.

        Raises:
            Interrupted: somebody asked this process to stop.
        """
        if self.is_made:
            raise Interrupted(f"stopped by {self.signal_name} while starting; nothing was lost, --resume begins again")


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn SIGTERM, SIGUSR1, SIGUSR2 and SIGINT into a request; enter it around everything a run does.

    The first is the request. Later ones change nothing, for a scheduler repeats itself and must not cut off the checkpoint
    that it asked for; only Ctrl-C again, more than :data:`SAME_REQUEST_SECONDS` after the first, acts as usual: a person who
    does not want to wait. Python runs a handler in the main thread between two of its own instructions: a signal that comes
    during a long operation of torch is noted after it, and a wait for other ranks is not cut short.

    Loader workers are sent the same signals and must take no notice, or the step could not be finished
    (:mod:`mavil.data.worker_processes`). Outside the main thread Python cannot handle signals, and nothing is requested.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    interrupted_at: float | None = None

    def note(number: int, _frame: FrameType | None) -> None:
        nonlocal interrupted_at
        now = time.monotonic()
        if not request.is_made:
            request.signal_name, request.at = signal.Signals(number).name, now
        if number != signal.SIGINT:
            return
        if interrupted_at is None:
            interrupted_at = now
        elif now - interrupted_at > SAME_REQUEST_SECONDS:
            as_before = before[signal.SIGINT]
            # A shell starts jobs in its background deaf to Ctrl-C, but this person insists.
            signal.signal(signal.SIGINT, as_before if callable(as_before) else signal.default_int_handler)
            signal.raise_signal(signal.SIGINT)

    # None is a handler that is not Python's, which cannot be put back.
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in (*_POLITE, signal.SIGINT)}
    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_until_exit() -> None:
    """For a process that is ending because it was asked to: a scheduler's next signal must not change its exit code."""
    for number in _POLITE:
        signal.signal(number, signal.SIG_IGN)
