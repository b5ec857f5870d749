"""Where a worker process stands, asked from outside: Python stacks through a file in memory, on Linux.

A worker that hangs in a decoder answers too: :mod:`faulthandler` writes in the signal handler itself, without Python.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import time
from pathlib import Path

_FILE_NAME = "mavil-worker-stacks"
_SIGNAL = getattr(signal, "SIGQUIT", None)
"""Schedulers send other signals; a Ctrl-backslash in a terminal reaches workers too, and their training process ends."""
_SECONDS_TO_ANSWER = 1.0


def answer_with_stacks() -> None:
    """Called in a worker process: from now on it can be asked for its stacks. Does nothing where that cannot be done."""
    if hasattr(os, "memfd_create") and _SIGNAL is not None:
        # The file lives as long as this process and lies nowhere on a disk.
        faulthandler.register(_SIGNAL, file=os.memfd_create(_FILE_NAME), all_threads=True, chain=False)


def stacks_of_workers() -> str:
    """The Python stacks of this process's workers, as text; those that cannot be asked are left out."""
    files = {child: file for child in multiprocessing.active_children() if (file := _file_of(child.pid)) is not None}
    asked = {}
    for child, file in files.items():
        with contextlib.suppress(OSError):
            asked[child] = len(file.read_bytes())
            os.kill(child.pid or 0, _SIGNAL or 0)
    if asked:
        time.sleep(_SECONDS_TO_ANSWER)
    parts = []
    for child, num_old in asked.items():
        try:
            text = files[child].read_bytes()[num_old:].decode(errors="replace")
        except OSError as error:
            text = f"it ended while it was asked ({error})\n"
        parts.append(f"\nworker process {child.name} ({child.pid}):\n{text}")
    return "".join(parts)


def _file_of(process: int | None) -> Path | None:
    """The file in memory that a process answers in; ``None`` if it was never told to."""
    try:
        for file in Path(f"/proc/{process}/fd").iterdir():
            if os.readlink(file).startswith(f"/memfd:{_FILE_NAME}"):
                return file
    except OSError:
        pass
    return None
