"""What a person sees while probes are made: bars on a terminal, a line now and then in a file or a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

Show = Callable[[str, int, int], None]
"""Called with what is done, how much of it, and of how much."""
PERCENT = 100
SECONDS_BETWEEN_LINES = 10.0
"""Where nobody looks at bars, as in training."""


@contextmanager
def shown(console: Console) -> Iterator[Show]:
    """Shows progress as long as it is open."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bars: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what, total=total)
            progress.update(bars[what], completed=done, total=total)

        yield show


class Pieces:
    """Several pieces of work of one kind, told as percent of all of them.

    Args:
        number: of pieces; each tells its own progress from its first part to its last.
        tell: is told the percentage when it grows.
    """

    def __init__(self, number: int, tell: Callable[[int, int], None]) -> None:
        self._number, self._tell = number, tell
        self._finished = self._percent = 0

    def __call__(self, done: int, total: int) -> None:
        """So much of the present piece."""
        percent = int(PERCENT * (self._finished + done / total) / self._number)
        self._finished += done >= total
        if percent > self._percent:
            self._percent = percent
            self._tell(percent, PERCENT)


class _Lines:
    """One line for whatever is under way, when some seconds have passed since the last one."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next = time.monotonic() + SECONDS_BETWEEN_LINES

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now >= self._next and done < total:
            self._next = now + SECONDS_BETWEEN_LINES
            self._console.print(f"{what}: {done} of {total}", highlight=False, markup=False, soft_wrap=True)
