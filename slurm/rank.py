"""What each task of a job does: start the command line, pass signals on, and say how it ended.

submitit pickles a :class:`Rank` by value and calls it in every task. What the end of the ranks means for the job is decided
in ``requeue.py``, by the batch script after ``srun``: there it is decided once, also when rank 0 was the one that died.

::

    end of `mavil train`        exit code of the task   what the job does
    0                           0                       done
    75, or stopped by a signal
    that this task got as well  0                       goes on later, from the checkpoint
    2, 3 (a person's mistake)   the same                fails
    anything else               the same                srun ends the other ranks; goes on later, a limited number of times

A task that stopped as asked ends with 0 because srun takes every other code for a reason to end the other ranks, which may
still be saving.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

EXIT_STOPPED = 75
EXIT_LOCAL_REQUEUE = 144
"""What submitit's local executor takes for "start me again"."""
STOP_SIGNALS = (signal.SIGUSR2, signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
"""SLURM sends USR2 before the time limit (``--signal``) and USR2 or TERM on preemption; a person sends any of them."""
LOCAL_GRACE_SECONDS = 10.0
"""How long ranks of a local job go on after another one crashed; on a cluster srun ends them."""
_PR_SET_PDEATHSIG = 1


class Rank:
    """One rank of a job.

    Args:
        command: what the task starts, program first.
        logs: the folder for logs and for how the ranks ended.
        stop_seconds: how long the command may take to save a checkpoint after a signal before it is killed, s; less than
            the time SLURM leaves, or the whole job ends at its time limit instead of being requeued.
    """

    def __init__(self, command: list[str], logs: str, stop_seconds: float) -> None:
        self.command = command
        self.logs = logs
        self.stop_seconds = stop_seconds
        self._asked_at: float | None = None
        self._child: subprocess.Popen[bytes] | None = None

    def __call__(self) -> None:
        """Run the command to its end.

        Raises:
            SystemExit: it did not simply succeed; with the code from the table above.
        """
        where = Place(os.environ)
        # What a start that was killed while it wrote its result has left; submitit stumbles over it.
        Path(self.logs, f"{where.job}_{where.rank}_result.pkl.save_tmp").unlink(missing_ok=True)
        ended = Path(self.logs) / f"{where.job}_{where.rank}.ended.json"
        for number in STOP_SIGNALS:
            signal.signal(number, self._note)
        if where.rank == 0:
            print(f"rank 0 of {where.num_ranks}, start {where.restart}: {' '.join(self.command)}", flush=True)
        code = self._run(where)
        was_asked = self._asked_at is not None
        # Whoever was asked to stop may end with anything: killed while it starts, or left alone by ranks that stopped earlier.
        is_stopped = code == EXIT_STOPPED or (was_asked and code != 0)
        if where.rank == 0 or not (code == 0 or is_stopped):
            record = {"restart": where.restart, "code": code, "was_asked": was_asked, "is_stopped": is_stopped}
            write_whole(ended, json.dumps(record) + "\n")
        if code == 0:
            return
        print(f"rank {where.rank}: the command ended with {code}{' after a signal' if was_asked else ''}", flush=True)
        if is_stopped and where.is_local:
            is_cancelled = Path(self.logs, f"{where.job}.cancelled").exists()
            sys.exit(EXIT_STOPPED if is_cancelled else EXIT_LOCAL_REQUEUE)
        if where.is_debug:
            sys.exit(shell_code(code))
        sys.exit(0 if is_stopped else shell_code(code))

    def _note(self, number: int, frame: FrameType | None) -> None:
        """Pass the first signal on. SLURM sends it to every process, a person perhaps only to this one; twice is harmless."""
        if self._asked_at is not None:
            return
        self._asked_at = time.monotonic()
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)

    def _run(self, where: Place) -> int:
        """Start the command and wait; its exit code, negative for a signal."""
        if self._asked_at is not None:
            return EXIT_STOPPED
        environment = dict(os.environ) | where.variables()
        self._child = subprocess.Popen(self.command, env=environment, preexec_fn=_die_with_parent)
        if self._asked_at is not None:  # between the two lines above
            self._child.send_signal(signal.SIGTERM)
        crash_seen_at: float | None = None
        while True:
            try:
                return self._child.wait(timeout=1.0)
            except subprocess.TimeoutExpired:
                pass
            now = time.monotonic()
            if self._asked_at is not None and now - self._asked_at > self.stop_seconds:
                print(f"rank {where.rank}: no end {self.stop_seconds:.0f} s after the signal, killed", flush=True)
                self._child.kill()
            if where.is_local and crash_seen_at is None and self._another_crashed(where):
                crash_seen_at = now
            if crash_seen_at is not None and now - crash_seen_at > LOCAL_GRACE_SECONDS:
                self._child.kill()

    def _another_crashed(self, where: Place) -> bool:
        ends = [json.loads(path.read_text()) for path in Path(self.logs).glob(f"{where.job}_*.ended.json")]
        return any(end["restart"] == where.restart and not end["is_stopped"] and end["code"] != 0 for end in ends)


class Place:
    """Which rank of which job this process is, from what SLURM or submitit's other executors have set."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.is_local = variables.get("SUBMITIT_EXECUTOR") == "local"
        self.is_debug = "SUBMITIT_DEBUG_JOB_ID" in variables
        if self.is_debug:
            self.job, self.rank, self.num_ranks = variables["SUBMITIT_DEBUG_JOB_ID"], 0, 1
        elif self.is_local:
            self.job = variables["SUBMITIT_LOCAL_JOB_ID"]
            self.rank = int(variables["SUBMITIT_LOCAL_GLOBALID"])
            self.num_ranks = int(variables["SUBMITIT_LOCAL_NTASKS"])
        else:
            array, index = variables.get("SLURM_ARRAY_JOB_ID"), variables.get("SLURM_ARRAY_TASK_ID")
            self.job = f"{array}_{index}" if array else variables["SLURM_JOB_ID"]
            self.rank, self.num_ranks = int(variables["SLURM_PROCID"]), int(variables["SLURM_NTASKS"])
        self.restart = int(variables.get("SLURM_RESTART_COUNT", "0"))

    def variables(self) -> dict[str, str]:
        """What the command needs beside its environment: nothing on a cluster, where it reads SLURM's own variables."""
        if not (self.is_local or self.is_debug):
            return {}
        if self.is_debug:
            return {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        # The job number of a local job is a process number; below the ports that the system hands out by itself.
        port = 20000 + int(self.job) % 12000
        ranks = {"RANK": str(self.rank), "LOCAL_RANK": str(self.rank), "WORLD_SIZE": str(self.num_ranks)}
        return ranks | {"LOCAL_WORLD_SIZE": str(self.num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def shell_code(code: int) -> int:
    """An exit code as a shell tells it: 128 + n for signal n."""
    return code if code >= 0 else 128 - code


def write_whole(path: Path, text: str) -> None:
    """Write a file that is never seen half written."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.aside")
    aside.write_text(text)
    os.replace(aside, path)


def _die_with_parent() -> None:
    # A task that is killed with -9 must not leave its command behind, which would hold the GPU and the run folder.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
