"""This process and the loader's workers, as Linux sees them: time on a core, memory."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

BYTES_PER_MIB = 2**20
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_BYTES_PER_PAGE = os.sysconf("SC_PAGE_SIZE")
_IDLE_CHECK_SECONDS = 0.05


def worker_pids() -> set[int]:
    """The processes that this one has started through :mod:`multiprocessing`, as the loader does, and that still run."""
    return {process.pid for process in multiprocessing.active_children() if process.pid is not None}


def cpu_seconds(pids: set[int]) -> float:
    """What these processes, and this one, have used of any core so far."""
    return time.process_time() + sum(_cpu_seconds_of(pid) for pid in pids)


def resident_mib(pid: int) -> float:
    """Memory of a process that lies in RAM, pages shared with others included."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _BYTES_PER_PAGE / BYTES_PER_MIB


def wait_until_idle(pids: set[int], longest_seconds: float = 30.0) -> None:
    """Return when these processes have stopped working: their queues are full."""
    end, before = time.monotonic() + longest_seconds, -1.0
    while pids and time.monotonic() < end:
        now = sum(_cpu_seconds_of(pid) for pid in pids)
        if now == before:
            return
        before = now
        time.sleep(_IDLE_CHECK_SECONDS)


def _cpu_seconds_of(pid: int) -> float:
    # The name in brackets may hold anything; behind it, user and system time are the 12th and 13th field.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND
