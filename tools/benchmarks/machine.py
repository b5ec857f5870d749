"""What a measurement ran on, without which its numbers say nothing."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import av
import torch

from tools.benchmarks.processes import BYTES_PER_MIB


def describe_machine() -> dict[str, str]:
    """Command, date, commit, hardware, versions, and how busy the machine was when the measurement began."""
    libraries = ", ".join(f"{name} {'.'.join(map(str, version))}" for name, version in av.library_versions.items())
    return {
        "command": " ".join(["python", "tools/benchmark.py", *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "processor": f"{_processor()}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / BYTES_PER_MIB / 1024:.0f} GiB",
        "load": f"{os.getloadavg()[0]:.2f} programs on average in the last minute",
        "software": f"Python {platform.python_version()}, torch {torch.__version__}, PyAV {av.__version__} ({libraries})",
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    repository = Path(__file__).resolve().parents[2]
    answer = subprocess.run(
        ["git", "-C", str(repository), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() or "unknown"
