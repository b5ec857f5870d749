"""What only rank 0 does, and every rank must know about."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

from mavil import distributed
from mavil.structs import UserError

T = TypeVar("T")


def on_main(work: Callable[[], T]) -> T:
    """Let rank 0 do some work and return its result on every rank; called by every rank together.

    An error is everybody's too: a rank that did not hear of it would wait in the next exchange until the timeout.

    Raises:
        UserError: rank 0 raised it; the same text on every rank.
        RuntimeError: on the other ranks, where rank 0 raised anything else; rank 0 raises what it was.
    """
    result: T | None = None
    error: Exception | None = None
    if distributed.is_main():
        try:
            result = work()
        except Exception as raised:
            error = raised
    told = (result, None if error is None else (isinstance(error, UserError), f"{error}", type(error).__name__))
    answer, failure = distributed.broadcast_object(told)
    if error is not None:
        raise error
    if failure is not None:
        is_for_people, text, kind = failure
        raise UserError(text) if is_for_people else RuntimeError(f"rank 0 failed: {kind}: {text}")
    return cast(T, answer)
