"""Files that appear only when they are complete: written under another name first."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mavil.atomic_files import sync
from mavil.structs import UserError

PARTIAL = ".partial"
STALE_SECONDS = 3600.0
"""A partial file that nobody has written to for so long was left behind by a process that was killed [our choice]."""


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[BinaryIO]:
    """A new file, under a name of its own beside ``path``; it becomes ``path`` when the block ends without an error.

    Raises:
        UserError: the folder cannot be written to, or is full.
    """
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        with writing_to(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("xb") as file:
                yield file
                file.flush()
            sync(partial)
            os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


@contextlib.contextmanager
def writing_to(folder: Path | str) -> Iterator[None]:
    """Turn what the file system refuses into an error for people.

    Raises:
        UserError: the folder cannot be written to, or is full.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written to ({error.strerror or error}); make room or name another data.remote.cache"
        ) from None


def is_stale(entry: os.stat_result) -> bool:
    """Whether a partial file was left behind."""
    return entry.st_mtime < time.time() - STALE_SECONDS


def remove_stale(folder: Path) -> None:
    """Remove partial files that were left behind."""
    for path in folder.glob(f"*{PARTIAL}"):
        with contextlib.suppress(FileNotFoundError):
            if is_stale(path.stat()):
                path.unlink()
