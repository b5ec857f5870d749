"""The command line where there is no cluster: dry runs, mistakes, the local and the debug executor."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from slurm import submit as submit_module
from tests.slurm.conftest import ROOT, Desk, processes_with, until


def test_a_dry_run_prints_everything_and_touches_nothing(lonely_desk: Desk) -> None:
    (lonely_desk.folder / "mine.yaml").write_text(
        "{partition: gpu, account: me, gpus_per_node: 8, gpu_type: h100, cpus_per_task: 12, time: 2-00:00:00, modules: [cuda],"
        " setup: [ulimit -n 9999], sbatch: {mail-type: FAIL}, srun: [--cpu-bind=none], signal_seconds: 300}"
    )
    before = sorted(lonely_desk.folder.rglob("*"))
    answer = lonely_desk.submit(
        "tiny.yaml", "steps=3", "--profile", "mine.yaml", "--nodes", 16, "--out", "my run", "--dry-run", "--qos", "high"
    )
    assert answer.code == 0, answer.err
    lines = answer.out.splitlines()
    for option in (
        "--partition=gpu",
        "--account=me",
        "--qos=high",
        "--nodes=16",
        "--ntasks-per-node=8",
        "--gpus-per-node=h100:8",
        "--cpus-per-task=12",
        "--time=2880",
        "--signal=USR2@300",
        "--requeue",
        "--mail-type=FAIL",
        "--job-name=tiny",
    ):
        assert f"#SBATCH {option}" in lines
    assert (
        lines.index("module load cuda") < lines.index("ulimit -n 9999") < lines.index("export SUBMITIT_EXECUTOR=slurm")
    )
    assert f"runs=('{lonely_desk.folder}/my run')" in lines
    srun = next(line for line in lines if line.startswith("srun "))
    # srun of SLURM 22.05 and later gives each task one core unless it is told again.
    assert "--kill-on-bad-exit=1 --wait=300 --cpus-per-task=12 --cpu-bind=none" in srun
    # A job that was given no GPU must say so and not train on the CPU.
    command = f"{sys.executable} -m mavil train tiny.yaml steps=3 trainer.device=cuda --out 'my run' --resume"
    assert command in lines
    assert sorted(lonely_desk.folder.rglob("*")) == before
    script = answer.out.partition("\n\n")[2].partition("# each rank runs")[0]
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


def test_in_a_container_the_ranks_take_its_python_and_the_decision_the_hosts(lonely_desk: Desk) -> None:
    answer = lonely_desk.submit(
        "tiny.yaml", "trainer.device=cpu", "--profile", "gpu_container", "--container-image", "here.sqsh", "--dry-run"
    )
    assert "--container-image=here.sqsh --container-mounts=" in answer.out
    assert f"--container-workdir={lonely_desk.folder} --no-container-mount-home python -u -m submitit" in answer.out
    assert '\npython3 "$run/slurm/requeue.py"' in answer.out
    assert "\npython -m mavil train tiny.yaml trainer.device=cpu --out runs/tiny --resume\n" in answer.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny.yaml"], "there is no sbatch on this machine"),
        (["no.yaml"], "no.yaml: no such recipe or pipeline"),
        (["tiny.yaml", "--acount", "x"], "no option '--acount': did you mean --account?"),
        (["tiny.yaml", "--nodes", "two"], "argument --nodes: invalid int value: 'two'"),
        (["tiny.yaml", "stray"], "'stray' is not a KEY=VALUE"),
        (["tiny.yaml", "--profile", "cpus"], "no profile 'cpus': did you mean cpu?"),
        (["tiny.yaml", "wrong=1"], "tiny: the shards are not there (found by mavil train tiny.yaml wrong=1"),
        (["tiny.yaml", "--out", "old"], "old already holds a run: pass --resume"),
        (["tiny.yaml", "--executor", "debug", "--nodes", "2"], "debug is one process in the foreground, not 2 ranks"),
        (["tiny.yaml", "--executor", "local", "--nodes", "2"], "local is one run on one node"),
        (["tiny.yaml", "--out", "tiny.yaml/x"], "cannot be made: Not a directory"),
        (["status", "elsewhere"], "elsewhere: neither a job nor a run folder that was submitted from here"),
        (["cancel"], "name the runs or jobs to cancel, or --all"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(lonely_desk: Desk, arguments: list[str], message: str) -> None:
    (lonely_desk.folder / "old").mkdir()
    (lonely_desk.folder / "old" / "config.yaml").touch()
    if "tiny.yaml/x" in arguments:
        arguments = [*arguments, "--executor", "local"]
    answer = lonely_desk.submit(*arguments)
    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err
    assert answer.err.startswith("submit: ")
    assert answer.err.count("\n") == 1
    assert not (lonely_desk.folder / "runs").exists()


def test_an_allocation_without_gpus_is_not_asked_for_the_device_the_recipe_names(lonely_desk: Desk) -> None:
    (lonely_desk.folder / "cpu.yaml").write_text("{name: x, trainer: {device: cpu}}")
    assert "trainer.device" not in lonely_desk.submit("cpu.yaml", "--gpus-per-node", 2, "--dry-run").out
    assert "trainer.device" not in lonely_desk.submit("tiny.yaml", "--nodes", 2, "--dry-run").out


def test_debug_runs_here_and_returns_what_the_command_returned(lonely_desk: Desk) -> None:
    done = lonely_desk.submit("tiny.yaml", "seconds=0", "--executor", "debug")
    assert done.code == 0, done.err
    assert lonely_desk.checkpoints("runs/tiny") == [5, 10]
    (lonely_desk.folder / "p.yaml").write_text(
        "{out: there, stages: {a: {recipe: tiny.yaml, sweep: {steps: [1, 2]}},"
        " b: {command: 'evaluate x', depends_on: a}, c: {recipe: missing/../tiny.yaml}}}"
    )
    assert "no such recipe" in lonely_desk.submit("p.yaml", "--executor", "debug").err
    (lonely_desk.folder / "p.yaml").write_text(
        "{out: there, stages: {a: {recipe: tiny.yaml, sweep: {steps: [1, 2]}}, b: {command: 'evaluate x', depends_on: a}}}"
    )
    piped = lonely_desk.submit("p.yaml", "--executor", "debug")
    assert piped.code == 0, piped.err
    assert lonely_desk.steps("there/a/steps_2") == [1, 2]
    assert "ran evaluate x" in piped.out


def test_local_starts_ranks_in_the_background_and_goes_on_after_its_time_limit(lonely_desk: Desk) -> None:
    options = ["--executor", "local", "--tasks-per-node", "2", "--time", "1", "--signal-seconds", "54"]
    (job,) = lonely_desk.submit("tiny.yaml", "steps=90", *options).jobs
    shown = lonely_desk.submit("status").out
    assert all(word in shown for word in (job, "RUNNING", "runs/tiny")), shown + lonely_desk.logs()
    until(lambda: not processes_with(f"{lonely_desk.folder}/runs/tiny"), 60, lonely_desk.logs)
    log = (lonely_desk.folder / f"runs/tiny/slurm/{job}_0_log.out").read_text()
    assert log.count("rank 0 of 2") >= 2, log
    assert lonely_desk.steps("runs/tiny") == list(range(1, 91))
    assert "COMPLETED" in lonely_desk.submit("status", "runs/tiny").out


def test_cancelling_a_local_job_lets_it_save_and_does_not_start_it_again(lonely_desk: Desk) -> None:
    (job,) = lonely_desk.submit("tiny.yaml", "steps=600", "--executor", "local", "--tasks-per-node", 2).jobs
    lonely_desk.wait_for_step("runs/tiny", 2)
    assert lonely_desk.submit("cancel", "runs/tiny").out == f"cancelled {job} tiny runs/tiny\n"
    until(lambda: not processes_with(f"{lonely_desk.folder}/runs/tiny"), 30, lonely_desk.logs)
    assert lonely_desk.checkpoints("runs/tiny")[-1] == lonely_desk.steps("runs/tiny")[-1]
    assert lonely_desk.submit("cancel", job).out == "nothing to cancel: none of them waits or runs\n"


@pytest.mark.slow
def test_a_local_rank_that_dies_ends_the_others(lonely_desk: Desk) -> None:
    lonely_desk.submit("tiny.yaml", "steps=900", "die_at=3", "--executor", "local", "--tasks-per-node", 2)
    until(lambda: lonely_desk.steps("runs/tiny") != [], 30)
    until(lambda: not processes_with(f"{lonely_desk.folder}/runs/tiny"), 40, lonely_desk.logs)
    assert max(lonely_desk.steps("runs/tiny")) < 300


def test_killing_a_task_leaves_no_command_behind(lonely_desk: Desk) -> None:
    lonely_desk.submit("tiny.yaml", "steps=900", "--executor", "local")
    lonely_desk.wait_for_step("runs/tiny", 1)
    (command,) = [
        p for p in processes_with("steps=900") if os.getpgid(p) and "mavil" in Path(f"/proc/{p}/cmdline").read_text()
    ]
    task = int(Path(f"/proc/{command}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(task, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{command}").exists(), 5)


def test_commands_in_the_document_are_taken() -> None:
    text = (ROOT / "docs" / "clusters.md").read_text()
    lines = re.findall(r"^(?:sudo )?python (?:slurm/submit|tools/slurm_sandbox/sandbox)\.py (.*)$", text, re.MULTILINE)
    spans = re.findall(r"`submit\.py ([^`]*)`", text)
    assert len(lines) >= 9
    assert len(spans) >= 5
    parser = submit_module._submit_parser()
    for words in map(shlex.split, [*lines, *spans]):
        if words[0] in ("status", "cancel", "start", "stop", "kill-node"):
            assert not [word for word in words if word.startswith("--") and word not in ("--nodes", "--cpus", "--all")]
        else:
            parser.parse_intermixed_args(words if words[0].endswith("L") or "." in words[0] else ["RECIPE", *words])


def test_what_runs_inside_a_job_imports_nothing_of_ours() -> None:
    """The rank is pickled and the decision is a copy of its file: neither has a repository around it."""
    for name in ("rank", "requeue"):
        text = (ROOT / "slurm" / f"{name}.py").read_text()
        assert not re.search(r"^\s*(from|import) (mavil|slurm)", text, re.MULTILINE), name
