"""From stages to jobs: the command line of a rank, the batch script, and its submission through submitit."""

from __future__ import annotations

import io
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.slurm.slurm import _make_sbatch_string

from mavil.pipelines.stages import Point, Stage, recipe_setting
from slurm import rank as rank_module
from slurm import requeue
from slurm.profiles import Profile, SubmitError
from slurm.rank import Rank

LOGS = "slurm"
"""Below the run folder: logs, submitit's files, how the ranks ended, what was decided afterwards."""
STOP_SHARE = 0.8
"""Of the time between the signal and the limit: how long a command may save before it is killed. What is left is for srun to
end and for the job to be requeued; a job that reaches its limit is not."""
STRAGGLER_SECONDS = 300
"""How long srun waits for the last rank of a training after the first one has ended. They end together, after one agreement;
a process that cannot leave would hold all nodes until the time limit."""
_TRAP = "trap : TERM USR1 USR2  # the shell outlives the ranks, to decide what comes next"


@dataclass(frozen=True)
class Submitted:
    """One job, or one task of an array.

    Attributes:
        job: its number, ``ARRAY_INDEX`` for a task of an array; a process number for a local job.
        point: what it runs.
        command: of each rank.
    """

    job: str
    point: Point
    command: list[str]


def commands_of(stage: Stage, profile: Profile, force: bool = False) -> list[list[str]]:
    """What each rank of each point's job starts, program first."""
    container = profile.container
    python = container.python if container else profile.python or sys.executable
    return [[python, "-m", "mavil", *arguments_of(stage, point, profile, force)] for point in stage.points]


def arguments_of(stage: Stage, point: Point, profile: Profile, force: bool = False) -> list[str]:
    """The arguments of ``mavil``: training always goes on where it stopped, and never silently on the CPU."""
    if not stage.is_training:
        return point.arguments
    recipe, *changes = point.arguments
    # Relative to the folder of the submission, in which the job runs.
    if profile.gpus_per_node and recipe_setting(Path(recipe), changes, "trainer.device") in (None, "auto"):
        changes = [*changes, "trainer.device=cuda"]
    return ["train", recipe, *changes, "--out", str(point.run), "--resume", *(["--force"] if force else [])]


class ProfileExecutor(submitit.SlurmExecutor):
    """submitit's executor with the ``srun`` line written by us: logs in each point's own run folder, arguments of the profile.

    Args:
        folder: of submitit's files.
        profile: what the job asks for.
        is_training: whether ranks end together.
    """

    def __init__(self, folder: Path, profile: Profile, is_training: bool) -> None:
        python = profile.container.python if profile.container else profile.python
        super().__init__(folder, python=None if python is None else shlex.quote(python))
        self._profile = profile
        self._is_training = is_training

    @property
    def _submitit_command_str(self) -> str:
        return f"{srun_line(self._profile, self._is_training)} {super()._submitit_command_str}"


def srun_line(profile: Profile, is_training: bool) -> str:
    """``srun`` with everything but the program; ``$run`` and ``$job`` are set in the batch script."""
    arguments = ["--unbuffered", "--open-mode=append", "--kill-on-bad-exit=1"]
    if is_training:
        arguments.append(f"--wait={STRAGGLER_SECONDS}")
    if profile.cpus_per_task is not None:
        # Since SLURM 22.05 srun does not take it from the job any more, and a rank would get one core.
        arguments.append(f"--cpus-per-task={profile.cpus_per_task}")
    if profile.container is not None:
        arguments.append(f"--container-image={profile.container.image}")
        if profile.container.mounts is not None:
            arguments.append(f"--container-mounts={profile.container.mounts}")
        arguments.append(f"--container-workdir={profile.container.workdir or Path.cwd()}")
    return f'srun --output "$run/{LOGS}/${{job}}_%t_log.out" {shlex.join([*arguments, *profile.srun])}'


def sbatch_parameters(stage: Stage, profile: Profile, after: list[str]) -> dict[str, Any]:
    """What submitit writes the batch script from.

    Args:
        stage: what is submitted.
        profile: what it asks for.
        after: job numbers of the stages it waits for.
    """
    extra: dict[str, Any] = {"requeue": True, "output": f"{stage.folder.resolve()}/{LOGS}/%j_batch.out"}
    if stage.is_sweep and len(stage.points) > 1:
        extra["output"] = f"{stage.folder.resolve()}/{LOGS}/%A_%a_batch.out"
    if after:
        # A job that can never start would wait for ever.
        extra["kill-on-invalid-dep"] = "yes"
    gpus: int | str | None = profile.gpus_per_node or None
    if gpus and profile.gpu_type:
        gpus = f"{profile.gpu_type}:{gpus}"
    return {
        "job_name": stage.name,
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "constraint": profile.constraint,
        "time": profile.minutes,
        "nodes": profile.nodes,
        "ntasks_per_node": profile.ranks_per_node,
        "gpus_per_node": gpus,
        "cpus_per_task": profile.cpus_per_task,
        "mem": profile.memory,
        "exclusive": profile.exclusive or None,
        "signal_delay_s": profile.signal_seconds,
        "array_parallelism": profile.array_parallelism,
        "dependency": f"{_waiting(stage)}:{':'.join(after)}" if after else None,
        "wckey": None,
        "stderr_to_stdout": True,
        "use_srun": False,  # the line is ours, see srun_line
        "setup": _setup(stage, profile),
        "teardown": _teardown(profile),
        "additional_parameters": extra | profile.sbatch,
    }


def _waiting(stage: Stage) -> str:
    """SLURM's word for what a stage waits for."""
    if stage.waits == "for any end":
        return "afterany"
    # A task of an array waits for the task of the same number; one run is no array.
    return "aftercorr" if stage.waits == "for the same point" and len(stage.points) > 1 else "afterok"


def _setup(stage: Stage, profile: Profile) -> list[str]:
    runs = " ".join(shlex.quote(str(point.run.resolve())) for point in stage.points)
    lines = [_TRAP, f"runs=({runs})", "run=${runs[${SLURM_ARRAY_TASK_ID:-0}]}"]
    lines.append("job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}; job=${job:-$SLURM_JOB_ID}")
    return [*lines, *(f"module load {name}" for name in profile.modules), *profile.setup]


def _teardown(profile: Profile) -> list[str]:
    python = profile.host_python or ("python3" if profile.container else profile.python or sys.executable)
    decide = f'{shlex.quote(python)} "$run/{LOGS}/requeue.py" --run "$run" --job "$job" --code $code'
    return ["code=$?", f"{decide} --max-restarts {profile.max_restarts}", "exit $?"]


def batch_script(stage: Stage, profile: Profile, after: list[str]) -> str:
    """The batch script as submitit will write it, for people to read; needs no SLURM."""
    python = profile.container.python if profile.container else profile.python or sys.executable
    folder = stage.folder.resolve() / LOGS
    program = f"{shlex.quote(python)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    command = f"{srun_line(profile, stage.is_training)} {program}"
    count = len(stage.points) if len(stage.points) > 1 else None
    return _make_sbatch_string(
        command=command, folder=folder, map_count=count, **sbatch_parameters(stage, profile, after)
    )


def submit_to_slurm(stage: Stage, profile: Profile, after: list[str], force: bool) -> list[Submitted]:
    """Submit a stage: one job, or an array with a task for each point.

    Raises:
        SubmitError: there is no SLURM here, or it refuses; nothing is left behind.
    """
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise SubmitError(
            "there is no sbatch on this machine: submit from a login node of the cluster, or take --executor local or debug"
        )
    commands = commands_of(stage, profile, force)
    with _folders(stage) as ranks_of, _own_environment():
        executor = ProfileExecutor(stage.folder / LOGS, profile, stage.is_training)
        executor.update_parameters(**sbatch_parameters(stage, profile, after))
        ranks = ranks_of(commands, STOP_SHARE * profile.signal_seconds)
        try:
            # submitit prints sbatch's words before it raises them.
            with redirect_stderr(io.StringIO()):
                jobs = executor.submit_array(ranks)
        except (FailedJobError, FailedSubmissionError) as error:
            raise SubmitError(_in_slurms_words(str(error))) from None
    return [
        Submitted(str(job.job_id), *pair)
        for job, pair in zip(jobs, zip(stage.points, commands, strict=True), strict=True)
    ]


def start_here(stage: Stage, profile: Profile, force: bool) -> list[Submitted]:
    """Start a stage's one run on this machine, in the background, with as many ranks as a node would have.

    Raises:
        SubmitError: several nodes or several points.
    """
    if profile.nodes > 1 or len(stage.points) > 1:
        raise SubmitError("--executor local is one run on one node: this machine; take --nodes 1, and debug for sweeps")
    commands = commands_of(stage, profile, force)
    with _folders(stage) as ranks_of, _own_environment():
        executor = submitit.LocalExecutor(stage.folder / LOGS, python=profile.python)
        executor.update_parameters(
            tasks_per_node=profile.ranks_per_node,
            gpus_per_node=profile.gpus_per_node,
            timeout_min=profile.minutes,
            signal_delay_s=profile.signal_seconds,
            stderr_to_stdout=True,
            setup=[*(f"module load {name}" for name in profile.modules), *profile.setup],
        )
        rank = ranks_of(commands, STOP_SHARE * profile.signal_seconds)[0]
        with _streams_to(stage.folder / LOGS / "local.out"):
            job = executor.submit(rank)
    return [Submitted(str(job.job_id), stage.points[0], commands[0])]


def run_in_foreground(stage: Stage, profile: Profile, force: bool) -> int:
    """Run a stage's points one after another as one process each, here; the first exit code that is not 0, else 0.

    Raises:
        SubmitError: the profile asks for several ranks.
    """
    if profile.num_ranks > 1:
        raise SubmitError(
            f"--executor debug is one process in the foreground, not {profile.num_ranks} ranks: take --nodes 1 "
            "--tasks-per-node 1, or --executor local"
        )
    commands = commands_of(stage, profile, force)
    with _folders(stage) as ranks_of:
        for one in ranks_of(commands, STOP_SHARE * profile.signal_seconds):
            try:
                submitit.DebugExecutor(stage.folder / LOGS).submit(one).results()
            except SystemExit as leaving:
                return int(leaving.code or 0)
    return 0


@contextmanager
def _folders(stage: Stage) -> Iterator[Any]:
    """Make the folders for logs, with what the batch script runs; take them away again when nothing was submitted."""
    cloudpickle.register_pickle_by_value(rank_module)  # a compute node need not find this file
    folders = dict.fromkeys([stage.folder / LOGS, *(point.run / LOGS for point in stage.points)])
    made: list[Path] = []
    before = {folder: set(folder.iterdir()) for folder in folders if folder.is_dir()}

    def ranks_of(commands: list[list[str]], stop_seconds: float) -> list[Rank]:
        for folder in folders:
            made.extend(_make(folder))
            shutil.copyfile(requeue.__file__, folder / "requeue.py")
        pairs = zip(commands, stage.points, strict=True)
        return [Rank(command, str((point.run / LOGS).resolve()), stop_seconds) for command, point in pairs]

    try:
        # submitit makes its folder itself.
        made.extend(_make(stage.folder / LOGS))
        yield ranks_of
        for link in (stage.folder / LOGS).glob(".submission_file_*"):
            link.unlink()  # a second name of the batch script
    except Exception:
        for folder, files in before.items():
            for new in set(folder.iterdir()) - files:
                new.unlink()
        for folder in made:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _make(folder: Path) -> list[Path]:
    """Make a folder and those above it; return the uppermost that was not there."""
    missing = [path for path in [folder, *folder.parents] if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SubmitError(f"{folder}: cannot be made: {error.strerror or error}") from None
    return missing[-1:]


@contextmanager
def _streams_to(path: Path) -> Iterator[None]:
    """Let processes that are started inside write to a file: with our own pipe open they would keep its reader waiting."""
    kept = [(number, os.dup(number)) for number in (1, 2)]
    with path.open("ab") as file:
        for number, _ in kept:
            os.dup2(file.fileno(), number)
        try:
            yield
        finally:
            for number, copy in kept:
                os.dup2(copy, number)
                os.close(copy)


@contextmanager
def _own_environment() -> Iterator[None]:
    """Hide what an allocation or a launcher around this program has set: sbatch hands the environment on to the job."""
    kept = dict(os.environ)
    launcher = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    for name in kept:
        if name in launcher or (name.startswith("SLURM_") and name != "SLURM_CONF"):
            del os.environ[name]
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


def _in_slurms_words(text: str) -> str:
    words = "; ".join(line.removeprefix("sbatch: error: ").strip() for line in text.splitlines() if line.strip())
    if "partition" in words.lower():
        names = _answer(["sinfo", "-h", "-o", "%R"])
        return f"SLURM refuses: {words}. The partitions here are {', '.join(sorted(set(names.split())))}"
    return f"SLURM refuses: {words}"


def _answer(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
