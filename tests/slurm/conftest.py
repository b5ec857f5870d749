"""A private SLURM for the whole session, and ``slurm/submit.py`` as a person calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tools.slurm_sandbox.configuration import Cluster
from tools.slurm_sandbox.sandbox import missing, start, stop

ROOT = Path(__file__).parents[2]
NODES = 2
STEPS_OF = "metrics.jsonl"


@dataclass
class Answer:
    """What a person sees."""

    code: int
    out: str
    err: str

    @property
    def jobs(self) -> list[str]:
        """Numbers of the jobs that were submitted."""
        assert self.code == 0, self.err
        return [line.split(" ")[0] for line in self.out.splitlines()]


@dataclass
class Desk:
    """A folder to submit from; ``environment`` decides which SLURM there is, and whether mavil is the real one."""

    folder: Path
    environment: dict[str, str]

    def submit(self, *arguments: object, timeout: float = 120.0) -> Answer:
        command = [sys.executable, str(ROOT / "slurm" / "submit.py"), *map(str, arguments)]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=timeout
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    def slurm(self, *command: object) -> str:
        return subprocess.run(
            list(map(str, command)), env=self.environment, capture_output=True, text=True, check=True, cwd=self.folder
        ).stdout

    def states(self) -> dict[str, str]:
        """State by job number, for every job this SLURM remembers."""
        lines = self.slurm("squeue", "-h", "-r", "-t", "all", "-o", "%i %T").splitlines()
        return {line.split()[0]: line.split()[1] for line in lines}

    def wait(self, *jobs: str, timeout: float = 120.0) -> dict[str, str]:
        """Until all have ended for good; their states."""
        states: dict[str, str] = {}

        def ended() -> bool:
            states.update(self.states())
            # Tasks of an array that were cancelled before they began are known by the array's number alone.
            for job in jobs:
                states.setdefault(job, states.get(job.partition("_")[0], "UNKNOWN"))
            return all(states[job] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL") for job in jobs)

        until(ended, timeout, lambda: f"{states}\n" + self.logs())
        return {job: states[job] for job in jobs}

    def logs(self) -> str:
        files = sorted(self.folder.rglob("slurm/*.out"))
        return "\n".join(f"== {file}\n{file.read_text(errors='replace')[-3000:]}" for file in files)

    def history(self, run: str, job: str) -> list[dict[str, Any]]:
        """What was decided after each start."""
        path = self.folder / run / "slurm" / f"{job}.history.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def steps(self, run: str) -> list[int]:
        path = self.folder / run / STEPS_OF
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line)["step"] for line in lines if line.endswith("}")]

    def wait_for_step(self, run: str, step: int, timeout: float = 90.0) -> None:
        until(lambda: max(self.steps(run), default=0) >= step, timeout, self.logs)

    def metrics(self, run: str) -> dict[int, dict[str, float]]:
        """What must repeat exactly, by step; a step that is there twice is a mistake."""
        lines = [json.loads(line) for line in (self.folder / run / STEPS_OF).read_text().splitlines()]
        assert len({line["step"] for line in lines}) == len(lines), [line["step"] for line in lines]
        return {line["step"]: line["metrics"] for line in lines}

    def checkpoints(self, run: str) -> list[int]:
        return sorted(int(path.name[5:]) for path in (self.folder / run / "checkpoints").glob("step_*"))


def until(is_true: Callable[[], bool], timeout: float, explain: Callable[[], str] = lambda: "") -> None:
    """Wait for something, and fail with an explanation."""
    deadline = time.monotonic() + timeout
    while not is_true():
        assert time.monotonic() < deadline, f"not within {timeout:.0f} s\n{explain()}"
        time.sleep(0.1)


def processes_with(text: str) -> list[int]:
    """Numbers of the Python processes whose command line holds the text."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if "python" in Path(command[0]).name and text in " ".join(command):
            found.append(int(path.parent.name))
    return sorted(found)


def rank_processes(job: str) -> dict[int, int]:
    """Process number by rank, of the `mavil train` that each rank of a job has started."""
    found = {}
    for process in processes_with("-m mavil train"):
        try:
            lines = Path(f"/proc/{process}/environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        variables = dict(line.split("=", 1) for line in lines if "=" in line)
        # Loader workers have a command line of their own; the task that started it has another one, too.
        if variables.get("SLURM_JOB_ID") == job:
            found[int(variables["SLURM_PROCID"])] = process
    return found


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Path]:
    """The folder of a running SLURM with two nodes of eight CPUs."""
    problem = missing()
    if problem is not None:
        pytest.skip(f"no private SLURM: {problem}")
    with short_folder() as folder:
        start(Cluster(folder, NODES, 8, 0, False))
        yield folder
        stop(folder)


@contextmanager
def short_folder() -> Iterator[Path]:
    """For a SLURM: pytest's own folders may be too deep for its sockets."""
    with tempfile.TemporaryDirectory(prefix="slurm", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder).resolve()


def own_environment(**variables: str) -> dict[str, str]:
    """This process's variables without SLURM's and torchrun's."""
    hidden = ("SLURM_", "SBATCH_", "SUBMITIT_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    return kept | variables


def put_stand_in(folder: Path) -> None:
    """Make ``python -m mavil``, called in this folder, the stand-in."""
    (folder / "mavil").mkdir()
    (folder / "mavil" / "__init__.py").touch()
    (folder / "mavil" / "__main__.py").write_text((Path(__file__).parent / "stand_in.py").read_text())
    (folder / "tiny.yaml").write_text("name: tiny\n")


@pytest.fixture(scope="module")
def desk(sandbox: Path, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A folder where mavil is the stand-in and ``tiny.yaml`` a recipe, with the sandbox as SLURM."""
    folder = tmp_path_factory.mktemp("desk")
    put_stand_in(folder)
    return Desk(folder, own_environment(SLURM_CONF=str(sandbox / "slurm.conf")))


@pytest.fixture
def lonely_desk(tmp_path: Path) -> Desk:
    """The same without any SLURM."""
    put_stand_in(tmp_path)
    path = os.pathsep.join([str(Path(sys.executable).parent), "/nowhere"])
    return Desk(tmp_path, own_environment(PATH=path))
