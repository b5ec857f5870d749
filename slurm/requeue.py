"""What the batch script does after srun: is the job done, does it go on later, or has it failed?

This file is copied beside the logs at submission and run there by itself, outside any container: it needs Python 3.6 and the
standard library. It says what it decided on its standard output and in ``JOB.history.jsonl``, and exits with what the job's
state is to follow from (0: COMPLETED, else FAILED).

- All ranks stopped as asked, or a rank crashed: ``scontrol requeue``, and the command goes on with ``--resume``.
- More than ``--max-restarts`` in a row without a newer checkpoint: failed. Preemption is not counted.
- A person's mistake (exit 2 or 3 of any rank): failed at once.
- SLURM is already requeueing or cancelling the job: nothing, or it would be done twice.
"""

# ruff: noqa: UP006, UP035, UP045 (the Python of a compute node may be as old as 3.6)

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

EXITS_OF_MISTAKES = (2, 3)
EXIT_STOPPED = 75


def decide(code: int, ends: Dict[int, Dict[str, Any]]) -> Tuple[str, int]:
    """``(verdict, exit code)`` from srun's exit code and from how ranks of this start ended.

    The verdict is ``done``, ``stopped``, ``crashed`` or ``refused``.
    """
    crashes = [end["code"] for end in ends.values() if end["code"] != 0 and not end["is_stopped"]]
    mistakes = [one for one in crashes if one in EXITS_OF_MISTAKES]
    killed = [one for one in crashes if one < 0]
    # Ranks that lose one which was killed may take it for a mistake (nobody came to the meeting place), and ranks that lose
    # one which refused end with 1.
    if mistakes and not killed:
        return "refused", mistakes[0]
    if code != 0 or crashes or 0 not in ends:
        first = (killed or crashes or [code or 1])[0]
        return "crashed", first if first > 0 else 128 - first
    return ("stopped", EXIT_STOPPED) if ends[0]["is_stopped"] else ("done", 0)


def ends_of(logs: Path, job: str, restart: int) -> Dict[int, Dict[str, Any]]:
    """How ranks of this start ended, by rank; only rank 0 and ranks that went wrong say so."""
    ends = {}
    for path in logs.glob(job + "_*.ended.json"):
        end = json.loads(path.read_text())
        if end["restart"] == restart:
            ends[int(path.name[len(job) + 1 :].partition(".")[0])] = end
    return ends


def newest_checkpoint(run: Path) -> str:
    """Name of the newest checkpoint folder, ``""`` without one. Half-written ones have other names."""
    names = [path.name for path in (run / "checkpoints").glob("step_*") if re.fullmatch(r"step_\d+", path.name)]
    return max(names, default="", key=lambda name: int(name[len("step_") :]))


def starts_without_progress(history: List[Dict[str, Any]], newest: str, is_preempted: bool) -> int:
    """How many starts in a row have ended with the same newest checkpoint as the one before; preempted ones do not count."""
    before: Dict[str, Any] = history[-1] if history else {"newest": "", "without_progress": 0}
    if newest != before["newest"]:
        return 0
    return int(before["without_progress"]) + (0 if is_preempted else 1)


def job_fields(number: str) -> Dict[str, str]:
    """What SLURM knows about the job; ``{}`` where it does not answer."""
    words = _slurm(["scontrol", "show", "job", "-o", number])[1].split()
    return {word.partition("=")[0]: word.partition("=")[2] for word in words if "=" in word}


def main(arguments: Optional[List[str]] = None) -> int:
    """Decide, requeue if that is the decision, and return the exit code of the job."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--job", required=True, help="as in the names of the logs; of an array ARRAY_INDEX")
    parser.add_argument("--code", type=int, required=True, help="srun's exit code")
    parser.add_argument("--max-restarts", type=int, required=True)
    chosen = parser.parse_args(arguments)
    # scontrol requeue ends the batch script as well, perhaps before it has written what it did.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logs = chosen.run / "slurm"
    restart = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    verdict, code = decide(chosen.code, ends_of(logs, chosen.job, restart))
    history_file = logs / (chosen.job + ".history.jsonl")
    history = _lines(history_file)
    newest = newest_checkpoint(chosen.run)
    fields = job_fields(os.environ["SLURM_JOB_ID"])
    is_preempted = fields.get("PreemptTime", "None") not in ("None", "Unknown")
    count = starts_without_progress(history, newest, is_preempted)
    action = "ended"
    if verdict in ("stopped", "crashed"):
        action, code = _requeue(fields, count, chosen.max_restarts, code)
    line = {"time": time.time(), "restart": restart, "verdict": verdict, "code": code, "action": action}
    line.update(newest=newest, without_progress=count, is_preempted=is_preempted)
    with history_file.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(f"{verdict} (srun ended with {chosen.code}), newest checkpoint {newest or 'none'}: {action}")
    sys.stdout.flush()
    return code


def _requeue(fields: Dict[str, str], count: int, limit: int, code: int) -> Tuple[str, int]:
    """``(what was done, exit code)``."""
    state = fields.get("JobState", "not known to SLURM")
    if state != "RUNNING":
        return f"left to SLURM, for which the job is {state}", code
    if count > limit:
        return f"not requeued: {count} starts in a row without a new checkpoint", code
    failed, words = _slurm(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]])
    if failed:
        return f"could not be requeued: {' '.join(words.split())}", code
    return "requeued", 0


def _lines(path: Path) -> List[Dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.startswith("{") and line.endswith("}")]


def _slurm(command: List[str]) -> Tuple[int, str]:
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, done.stdout.decode(errors="replace")


if __name__ == "__main__":
    sys.exit(main())
