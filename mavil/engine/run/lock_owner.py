"""Which process a lock belongs to, and whether it is still there."""

from __future__ import annotations

import json
import os
import socket
import uuid
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path


@dataclass(frozen=True)
class Owner:
    """One claim of one process; empty text where the system does not tell.

    Attributes:
        token: no two claims have the same.
        host, boot, namespace: the machine, which start of it, and whose process numbers ``pid`` is one of.
        pid, started: the process, and when it started in the kernel's ticks: numbers are used again.
        job, restart: SLURM job, and how often it was requeued.
        since: UTC.
    """

    token: str
    host: str
    boot: str
    namespace: str
    pid: int
    started: str
    job: str
    restart: int
    since: str

    @classmethod
    def this_process(cls) -> Owner:
        """A new claim of the running process."""
        restart = os.environ.get("SLURM_RESTART_COUNT", "")
        return cls(
            token=uuid.uuid4().hex,
            host=socket.gethostname(),
            boot=_text_of(Path("/proc/sys/kernel/random/boot_id")),
            namespace=_namespace(),
            pid=os.getpid(),
            started=_start_of(os.getpid()),
            job=os.environ.get("SLURM_JOB_ID", ""),
            restart=int(restart) if restart.isdecimal() else 0,
            since=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S"),
        )

    @classmethod
    def parse(cls, text: str) -> Owner | None:
        """The owner in a lock file, ``None`` where it was cut off before it was written."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None

    def text(self) -> str:
        """What a lock file holds."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def is_gone(self, me: Owner) -> bool | None:
        """Whether this process has ended, as far as ``me`` can know; ``None``: only its signs of life can tell."""
        if self.job and self.job == me.job and me.restart > self.restart:
            return True
        is_here = (self.host, self.boot, self.namespace) == (me.host, me.boot, me.namespace)
        if not is_here or not self.boot or not self.namespace or not self.started:
            return None
        return _start_of(self.pid) != self.started

    def __str__(self) -> str:
        job = f"SLURM job {self.job}, " if self.job else ""
        return f"process {self.pid} on {self.host} ({job}since {self.since} UTC)"


def _start_of(pid: int) -> str:
    """When a process started, empty where there is none or one that has ended and was not waited for."""
    # proc(5): the name in brackets may hold anything; the state is the first field behind it, the start the 20th.
    behind_name = _text_of(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return behind_name[19] if len(behind_name) > 19 and behind_name[0] not in "ZX" else ""


def _namespace() -> str:
    # Two containers on one machine see different processes under the same numbers.
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _text_of(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
