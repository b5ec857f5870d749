"""From stages to jobs on this machine: one command for each run, and whether a command that trains nothing has been run."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mavil.pipelines.stages import Point, Stage

FINISHED = "finished.json"
"""In the folder of a stage that is a command: what was run, on which checkpoints."""
_TAIL_BYTES = 65536


@dataclass(frozen=True)
class Job:
    """One command on this machine.

    Attributes:
        name: for people, its own among all jobs.
        stage: the stage it is of.
        command: program first.
        run: the folder it writes to; its log is there.
        arguments: of ``mavil``, without what was added to start it.
        is_training: whether it is a run that can go on.
        after: names of the jobs that must have ended well before.
    """

    name: str
    stage: str
    command: list[str]
    run: Path
    arguments: list[str]
    is_training: bool
    after: tuple[str, ...] = ()


def jobs_of(stages: Sequence[Stage], ranks: int | None = None) -> list[Job]:
    """Jobs for all points of all stages, in an order in which they could run.

    ``ranks``: processes of each training, started through torchrun; ``None`` is one, without it.
    """
    by_name = {stage.name: stage for stage in stages}
    jobs = []
    for stage in stages:
        for i, point in enumerate(stage.points):
            awaited = [by_name[name] for name in stage.depends_on]
            if stage.waits == "for the same point":
                after = [_name(one, one.points[i]) for one in awaited]
            else:
                after = [_name(one, other) for one in awaited for other in one.points]
            command = [sys.executable, "-m", "mavil", *point.arguments]
            if stage.is_training:
                command = [*_launcher(ranks), "mavil", "train", *point.arguments, "--out", str(point.run), "--resume"]
            name = _name(stage, point)
            jobs.append(Job(name, stage.name, command, point.run, point.arguments, stage.is_training, tuple(after)))
    return jobs


def _name(stage: Stage, point: Point) -> str:
    return " ".join(part for part in (stage.name, point.label) if part)


def _launcher(ranks: int | None) -> list[str]:
    if ranks is None:
        return [sys.executable, "-m"]
    # --standalone: a free port of this machine, so that several at a time do not meet.
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]


def mark_finished(job: Job, before: Sequence[Job]) -> None:
    """Note that a command has been run on what the jobs ``before`` it have left."""
    path = job.run / FINISHED
    aside = path.with_name(f".{FINISHED}.partial")
    aside.write_text(json.dumps(_note(job, before), indent=2) + "\n")
    os.replace(aside, path)


def is_marked_finished(job: Job, before: Sequence[Job]) -> bool:
    """Whether this very command has been run on these very checkpoints."""
    try:
        return bool(json.loads((job.run / FINISHED).read_text()) == _note(job, before))
    except (OSError, ValueError):
        return False


def _note(job: Job, before: Sequence[Job]) -> dict[str, Any]:
    return {"command": job.arguments, "checkpoints": {str(one.run): _newest(one.run) for one in before}}


def _newest(run: Path) -> str | None:
    """Of the newest checkpoint of a run a digest of its manifest, which has those of all its files."""
    manifests = sorted(run.glob("checkpoints/step_*/manifest.json"))
    return hashlib.sha256(manifests[-1].read_bytes()).hexdigest() if manifests else None


def step_reached(run: Path) -> int | None:
    """Step of the last whole line of ``metrics.jsonl``; reads the end of the file only."""
    try:
        with (run / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            continue
    return None
