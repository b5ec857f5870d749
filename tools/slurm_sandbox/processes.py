"""Which processes belong to a sandbox, and how they are ended: found by what they carry, so a crash leaves none behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

_DAEMONS = {"munged", "slurmctld", "slurmd", "slurmstepd", "slurmdbd", "mariadbd", "slurmctld-wlm", "slurmd-wlm"}


def end_all(folder: Path, patience_seconds: float = 3.0) -> int:
    """End the sandbox's daemons and jobs: SIGTERM, then SIGKILL; return how many processes there were."""
    first = list(belonging_to(folder))
    for pid in first:
        _signal(pid, signal.SIGTERM)
    deadline = time.monotonic() + patience_seconds
    while (left := list(belonging_to(folder))) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        _signal(pid, signal.SIGKILL)
    while left and list(belonging_to(folder)) and time.monotonic() < deadline + 5:
        time.sleep(0.05)
    return len(first)


def belonging_to(folder: Path) -> Iterator[int]:
    """Daemons that were started for this folder, and whatever runs inside a job of its cluster; never ourselves."""
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid() and _is_of(process, folder):
            yield int(process.name)


def node_processes(folder: Path, node: str) -> Iterator[int]:
    """A node's slurmd, its step daemons, and every process of its jobs."""
    for pid in belonging_to(folder):
        process = Path(f"/proc/{pid}")
        if _name(process).startswith("slurmd") and _command(process)[-2:] == ["-N", node]:
            yield pid
        elif _variables(process).get("SLURMD_NODENAME") == node:
            yield pid
            # A step daemon writes its title over its own variables, so it is known by its task.
            if _name(parent := _parent(process)) == "slurmstepd":
                yield int(parent.name)


def _is_of(process: Path, folder: Path) -> bool:
    conf = f"{folder}/slurm.conf"
    if _name(process) in _DAEMONS:
        carried = [*_command(process), *(f"{k}={v}" for k, v in _variables(process).items()), str(_cwd(process))]
        return any(f"{folder}/" in text or text == str(folder) for text in carried)
    # A shell in which somebody has set SLURM_CONF is theirs; inside a job there is a job number, too.
    variables = _variables(process)
    return variables.get("SLURM_CONF") == conf and "SLURM_JOB_ID" in variables


def _name(process: Path) -> str:
    try:
        return (process / "comm").read_text().strip()
    except OSError:
        return ""


def _command(process: Path) -> list[str]:
    try:
        return (process / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return []


def _variables(process: Path) -> dict[str, str]:
    try:
        lines = (process / "environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(line.split("=", 1) for line in lines if "=" in line)


def _parent(process: Path) -> Path:
    try:
        fields = (process / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return process
    return process.with_name(fields[1])


def _cwd(process: Path) -> Path | None:
    try:
        return (process / "cwd").readlink()
    except OSError:
        return None


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return
