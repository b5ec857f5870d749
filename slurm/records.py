"""What was submitted, and what has become of it.

Every job is one line in two files: ``RUN/slurm/submitted.jsonl`` and ``runs/.submitted.jsonl`` below the folder one submits
from. States come from squeue, for old jobs from sacct, and without accounting from what the job itself has written.
"""

from __future__ import annotations

import getpass
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mavil.pipelines.jobs import step_reached
from slurm.profiles import SubmitError

INDEX = Path("runs/.submitted.jsonl")


@dataclass(frozen=True)
class Record:
    """One submission.

    Attributes:
        job: number, ``ARRAY_INDEX`` for a task of an array, a process number for a local job.
        stage: its name, with the values of a sweep.
        run: the run folder, absolute.
        executor: slurm or local.
        ranks: how many.
        command: of each rank.
        depends_on: numbers of the jobs it waits for.
        submitted: seconds since 1970.
    """

    job: str
    stage: str
    run: str
    executor: str
    ranks: int
    command: list[str]
    depends_on: list[str] = field(default_factory=list)
    submitted: float = 0.0


@dataclass(frozen=True)
class Status:
    """A record and what is known of it now.

    Attributes:
        record: what was submitted.
        state: SLURM's word; UNKNOWN where nobody knows.
        nodes: where it runs or ran.
        step: the last one in ``metrics.jsonl``, ``None`` before the first.
        restarts: how often it was started again.
        reason: why it waits, or what its end was.
        log: of rank 0.
    """

    record: Record
    state: str
    nodes: str
    step: int | None
    restarts: int
    reason: str
    log: Path


def record(job: str, stage: str, run: Path, executor: str, ranks: int, command: list[str], after: list[str]) -> None:
    """Note a submission in both files; lines of programs that write at the same time do not mix."""
    one = Record(job, stage, str(run.resolve()), executor, ranks, command, after, time.time())
    for path in (INDEX, run / "slurm" / "submitted.jsonl"):
        path.parent.mkdir(parents=True, exist_ok=True)
        line = (json.dumps(asdict(one)) + "\n").encode()
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line)  # one write in append mode is one piece
        finally:
            os.close(descriptor)


def find_records(names: Iterable[str]) -> list[Record]:
    """Records by job number (an array's stands for its tasks) or run folder; of all where nothing is named.

    Raises:
        SubmitError: something was named that was not submitted from here.
    """
    known = _read(INDEX)
    names = list(names)
    if not names:
        return known
    found: list[Record] = []
    for name in names:
        folder = Path(name)
        here = _read(folder / "slurm" / "submitted.jsonl")
        run = str(folder.resolve())
        matching = here or [
            one for one in known if name in (one.job, one.job.partition("_")[0]) or f"{one.run}/".startswith(f"{run}/")
        ]
        if not matching:
            raise SubmitError(f"{name}: neither a job nor a run folder that was submitted from here (see {INDEX})")
        found += [one for one in matching if one not in found]
    return found


def statuses(records: list[Record]) -> list[Status]:
    """What has become of the jobs, in the order given."""
    on_cluster = [one.job for one in records if one.executor == "slurm"]
    queue = _squeue() if on_cluster else {}
    gone = [job for job in on_cluster if job not in queue]
    old = _sacct(gone) if gone else {}
    # Tasks of an array that were cancelled one by one before they began are known by the array's number alone.
    return [
        _status(one, queue.get(one.job) or old.get(one.job) or queue.get(one.job.partition("_")[0])) for one in records
    ]


def cancel(records: list[Record]) -> list[Record]:
    """Cancel the jobs that wait or run, and those that wait for them; return what was cancelled.

    Raises:
        SubmitError: SLURM refuses.
    """
    chosen = {one.job: one for one in records}
    everything = {one.job: one for one in [*_read(INDEX), *records]}
    while more := {
        job: one
        for job, one in everything.items()
        if job not in chosen and any(_is_same_job(needed, of) for needed in one.depends_on for of in chosen)
    }:
        chosen |= more
    alive = [one.record for one in statuses(list(chosen.values())) if one.state in ("PENDING", "RUNNING", "COMPLETING")]
    numbers = [one.job for one in alive if one.executor == "slurm"]
    if numbers:
        done = subprocess.run(["scancel", *numbers], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SubmitError(f"SLURM refuses: {' '.join(done.stderr.split())}")
    for one in alive:
        if one.executor == "local":
            (Path(one.run) / "slurm" / f"{one.job}.cancelled").touch()
            os.kill(int(one.job), signal.SIGTERM)
    return alive


def _is_same_job(needed: str, job: str) -> bool:
    """A dependency on an array names the array, a record one of its tasks."""
    return needed in (job, job.partition("_")[0])


def _status(one: Record, known: dict[str, str] | None) -> Status:
    logs = Path(one.run) / "slurm"
    history = _json_lines(logs / f"{one.job}.history.jsonl")
    last = history[-1] if history else {}
    state, nodes, reason = "UNKNOWN", "", ""
    if one.executor == "local" and _is_controller(one.job):
        state = "RUNNING"
    elif known is not None:
        state, nodes, reason = known["state"], known["nodes"], known["reason"]
    elif last.get("verdict") == "done" or (logs / f"{one.job}_0_result.pkl").exists():
        state = "COMPLETED"
    elif last and last["action"] != "requeued" and not str(last["action"]).startswith("left to SLURM"):
        state = "FAILED"
    elif one.executor == "local":
        state = "ENDED"
    if state not in ("PENDING", "RUNNING") and last:
        reason = f"{last['verdict']} ({last['code']}): {last['action']}"
    restarts = max([int((known or {}).get("restarts") or 0), *(int(line["restart"]) for line in history), 0])
    return Status(one, state, nodes, step_reached(Path(one.run)), restarts, reason, logs / f"{one.job}_0_log.out")


def _squeue() -> dict[str, dict[str, str]]:
    """What SLURM's controller remembers of this person's jobs, ended ones of the last minutes included."""
    columns = "ArrayJobID:64,ArrayTaskID:64,JobID:64,State:64,NodeList:4096,Reason:256,RestartCnt:16"
    command = ["squeue", "-h", "-r", "-t", "all", "-u", getpass.getuser(), "-O", columns]
    widths = [int(column.partition(":")[2]) for column in columns.split(",")]
    found = {}
    for line in _answer(command).splitlines():
        values, start = [], 0
        for width in widths:
            values.append(line[start : start + width].strip())
            start += width
        array, index, number, state, nodes, reason, restarts = values
        job = f"{array}_{index}" if index.isdigit() else array or number
        found[job] = {
            "state": state,
            "nodes": nodes,
            "reason": "" if reason == "None" else reason,
            "restarts": restarts,
        }
    return found


def _sacct(jobs: list[str]) -> dict[str, dict[str, str]]:
    """What the accounting database knows, if there is one."""
    if shutil.which("sacct") is None:
        return {}
    answer = _answer(["sacct", "-n", "-X", "-P", "-j", ",".join(jobs), "-o", "JobID,State,NodeList"])
    found = {}
    for line in answer.splitlines():
        job, state, nodes = line.split("|")[:3]
        # "CANCELLED by 1000"
        found[job] = {"state": state.split(" ")[0], "nodes": nodes, "reason": "", "restarts": "0"}
    return found


def _is_controller(process: str) -> bool:
    """Whether a process number is still submitit's local controller, and not somebody else's by now."""
    try:
        return b"submitit.local._local" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False


def _answer(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _read(path: Path) -> list[Record]:
    return [Record(**line) for line in _json_lines(path)]


def _json_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.startswith("{") and line.endswith("}")]
