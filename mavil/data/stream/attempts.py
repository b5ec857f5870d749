"""Requests that may fail: made again after growing pauses, given up when nothing comes, and one clear line in the end."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import TypeVar

from mavil.structs import UserError

logger = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_PAUSE_SECONDS = 1.0
"""Before the second try; every further pause is twice as long, up to the longest."""
LONGEST_PAUSE_SECONDS = 60.0
WARNING_SECONDS = 10.0
"""A process writes at most one line about failed tries in this time."""


@dataclass(frozen=True)
class RemoteOptions:
    """How shards at an address are read.

    Attributes:
        cache: local folder to keep shards in.
        cache_gib: size it may reach, GiB.
        tries: attempts per request.
        timeout_seconds: a server that is silent for so long has failed.
        allow_shell: permit ``pipe:COMMAND {name}`` addresses.
    """

    cache: str | None = None
    cache_gib: float = 100.0
    tries: int = 5
    timeout_seconds: float = 30.0
    allow_shell: bool = False


class FailedTry(Exception):  # noqa: N818 - it is no error before the last try
    """One attempt failed, and another may not. ``wait_seconds``: the server asked for so long a pause."""

    advice = "check the server or raise data.remote.tries"

    def __init__(self, what: str, wait_seconds: float = 0.0) -> None:
        super().__init__(what)
        self.wait_seconds = wait_seconds


class Silence(FailedTry):
    """Nothing came within the time limit."""

    advice = "check the server or raise data.remote.timeout_seconds"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"no answer for {seconds:g} s")


class MissingFileError(UserError):
    """There is no such file at the address."""


class AccessDeniedError(UserError):
    """The address exists, but not for us."""


def missing(address: str, status: str) -> MissingFileError:
    """The error for a file that is not there; ``status`` is what the server said."""
    return MissingFileError(
        f"{address}: not found ({status}): check the address, and that the upload of the shards is complete"
    )


def denied(address: str, status: str) -> AccessDeniedError:
    """The error for a file we may not read; ``status`` is what the server said."""
    return AccessDeniedError(
        f"{address}: access denied ({status}): check the credentials and the rights of this account"
    )


def with_tries(action: Callable[[], T], address: str, options: RemoteOptions, recover: Callable[[], None]) -> T:
    """The result of ``action``, which is called again when it raises :class:`FailedTry`.

    Args:
        action: one attempt.
        address: of the file, for messages.
        options: number of tries.
        recover: called after a failed try, to close connections that may be broken.

    Raises:
        UserError: no try succeeded.
    """
    for number in range(1, options.tries + 1):
        try:
            return action()
        except FailedTry as failure:
            recover()
            if number == options.tries:
                tries = "1 try" if number == 1 else f"{number} tries"
                what = " ".join(str(failure).split())  # on one line, whatever a library wrote
                raise UserError(f"{address}: {what}, {tries}: {failure.advice}") from None
            # The system's generator: the seeded ones belong to the run, and all workers of a server that is back should
            # not come at the same moment.
            pause = min(FIRST_PAUSE_SECONDS * 2 ** (number - 1), LONGEST_PAUSE_SECONDS)
            pause *= random.SystemRandom().uniform(0.5, 1.0)
            pause = max(pause, min(failure.wait_seconds, LONGEST_PAUSE_SECONDS))
            _warnings.add(f"{address}: {failure}; try {number + 1} of {options.tries} in {pause:.1f} s")
            time.sleep(pause)
    raise AssertionError("options.tries is at least 1")


class _RetryWarnings:
    def __init__(self) -> None:
        self._next_at = 0.0
        self._num_silent = 0

    def add(self, text: str) -> None:
        now = time.monotonic()
        if now < self._next_at:
            self._num_silent += 1
            return
        more = f" ({self._num_silent} more retries since the last such line)" if self._num_silent else ""
        logger.warning("%s%s", text, more)
        self._next_at, self._num_silent = now + WARNING_SECONDS, 0


_warnings = _RetryWarnings()


def in_background(action: Callable[[], T]) -> Future[T]:
    """Start ``action`` in a thread of its own, which never keeps the process from ending, unlike those of an executor."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(action())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name="mavil-request").start()
    return future


def within(seconds: float, action: Callable[[], T]) -> T:
    """The result of ``action``, which may hang: its thread is left to itself after ``seconds``.

    Raises:
        Silence: it took longer.
    """
    try:
        return in_background(action).result(timeout=seconds)
    except (TimeoutError, FutureTimeout):  # one class from Python 3.11 on
        raise Silence(seconds) from None
