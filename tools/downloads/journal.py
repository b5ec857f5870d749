"""What became of every clip: one JSON line per clip that was tried, written at once, so that a kill loses nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tools.downloads.causes import OF_THE_CLIP, PERMANENT

MOST_RUNS = 3
"""A clip that fails in so many runs, for a reason of its own, is given up [our choice]."""


@dataclass(frozen=True)
class Attempt:
    """``cause`` is ``ok`` or why there is no file; ``time`` is UTC; ``seconds`` what it took."""

    name: str
    cause: str
    message: str = ""
    time: str = ""
    seconds: float = 0.0
    num_bytes: int = 0

    @property
    def is_ok(self) -> bool:
        """The clip was fetched."""
        return self.cause == "ok"

    @property
    def is_permanent(self) -> bool:
        """Another try would fail in the same way."""
        return self.cause in PERMANENT


class Journal:
    """``journal.jsonl`` in the folder of the clips, or ``journal-3-of-8.jsonl`` where machines share a list.

    Every machine reads all journals of the folder and writes its own.
    """

    def __init__(self, folder: Path, part: tuple[int, int] = (1, 1)) -> None:
        number, parts = part
        self.path = folder / ("journal.jsonl" if parts == 1 else f"journal-{number}-of-{parts}.jsonl")
        self._folder = folder

    def read(self) -> dict[str, Attempt]:
        """The last attempt at each clip by its name; a line that a kill cut short is left out."""
        return {attempt.name: attempt for attempt in sorted(self._attempts(), key=lambda attempt: attempt.time)}

    def _attempts(self) -> Iterator[Attempt]:
        for path in sorted(self._folder.glob("journal*.jsonl")):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                attempt = _attempt_of(line)
                if attempt is not None:
                    yield attempt

    def given_up(self) -> frozenset[str]:
        """Clips whose last :data:`MOST_RUNS` runs all ended in the same way, for a reason of their own."""
        in_a_row: dict[str, tuple[str, int]] = {}
        for attempt in sorted(self._attempts(), key=lambda attempt: attempt.time):
            cause, count = in_a_row.get(attempt.name, ("", 0))
            in_a_row[attempt.name] = attempt.cause, count + 1 if attempt.cause == cause else 1
        return frozenset(
            name for name, (cause, count) in in_a_row.items() if cause in OF_THE_CLIP and count >= MOST_RUNS
        )

    def add(self, attempt: Attempt) -> None:
        """Append one line; whole or not at all, and never glued to one that was cut short."""
        line = json.dumps(asdict(attempt), ensure_ascii=False)
        with self.path.open("ab+") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else "\n" + line
            file.write(line.encode("utf-8", errors="replace") + b"\n")


def _attempt_of(line: str) -> Attempt | None:
    try:
        row: dict[str, Any] = json.loads(line)
        return Attempt(**row)
    except (ValueError, TypeError):
        return None
