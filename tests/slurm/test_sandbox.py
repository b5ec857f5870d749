"""The private SLURM itself: two at a time, nothing left behind, and clear words where it cannot be."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.slurm.conftest import ROOT, own_environment, short_folder, until
from tools.slurm_sandbox import sandbox as sandbox_module
from tools.slurm_sandbox.configuration import Cluster
from tools.slurm_sandbox.processes import belonging_to, node_processes
from tools.slurm_sandbox.sandbox import SandboxError, kill_node, longest_folder, missing, start, start_node, stop


def ask(folder: Path, *command: str) -> str:
    environment = own_environment(SLURM_CONF=str(folder / "slurm.conf"))
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.fixture
def folder() -> Iterator[Path]:
    """Of a sandbox that the test starts; a failing test leaves none running."""
    with short_folder() as place:
        yield place
        stop(place)


def test_a_second_one_beside_the_first_and_nothing_is_left_of_it(sandbox: Path, folder: Path) -> None:
    hosts = Path("/etc/hosts").read_text()
    start(Cluster(folder, 1, 2, 2, False))
    assert ask(folder, "srun", "-G", "2", "sh", "-c", "echo $SLURM_STEP_GPUS $SLURMD_NODENAME").split() == [
        "0,1",
        "127.0.0.1",
    ]
    assert len(ask(sandbox, "sinfo", "-h", "-N", "-p", "main").splitlines()) == 2
    ask(folder, "sbatch", "--output=/dev/null", "--wrap", "setsid sleep 600")
    # As if this program had been killed with -9 and somebody had ended the controller: no pid file tells the truth.
    for file in folder.glob("*.pid"):
        file.unlink()
    assert stop(folder) >= 3
    assert not list(belonging_to(folder))
    assert list(belonging_to(sandbox))
    assert stop(folder) == 0
    assert Path("/etc/hosts").read_text() == hosts


def test_a_node_can_be_killed_and_comes_back(sandbox: Path, folder: Path) -> None:
    """In a folder whose path is as long as it may be."""
    cluster = Cluster(folder, 2, 1, 0, False)
    deep = folder / ("x" * (longest_folder(cluster.nodes) - len(f"{folder}/")))
    start(replace(cluster, folder=deep))
    try:
        ask(deep, "sbatch", "-N2", "--output=/dev/null", "--wrap", "srun sleep 600")
        until(lambda: len(list(node_processes(deep, "127.0.0.2"))) > 1, 20)  # its daemon, and now the job
        assert kill_node(deep, "127.0.0.2") >= 2
        until(lambda: not list(node_processes(deep, "127.0.0.2")), 10)
        assert list(belonging_to(deep))
        start_node(deep, "127.0.0.2")
    finally:
        stop(deep)


def test_this_shell_is_not_part_of_it(tmp_path: Path) -> None:
    variables = own_environment(SLURM_CONF=f"{tmp_path}/slurm.conf")
    with (
        subprocess.Popen(["sleep", "60"], env=variables) as shell,
        subprocess.Popen(["sleep", "60"], env=variables | {"SLURM_JOB_ID": "1"}) as task,
    ):
        assert list(belonging_to(tmp_path)) == [task.pid]
        assert stop(tmp_path) == 1
        assert shell.poll() is None
        shell.kill()


def test_without_slurm_or_root_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_module, "_program", lambda name: None if name == "munged" else "/x")
    problem = missing()
    assert problem is not None
    assert "not installed here: munge (apt-get install" in problem
    monkeypatch.setattr(sandbox_module, "_program", lambda name: "/x")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SandboxError, match="must be started as root"):
        start(Cluster(tmp_path, 1, 1, 0, False))
    assert not list(tmp_path.iterdir())


def test_the_command_line_tells_a_mistake_in_one_line(tmp_path: Path) -> None:
    script = ROOT / "tools" / "slurm_sandbox" / "sandbox.py"
    done = subprocess.run([sys.executable, script, "start", tmp_path / ("x" * 90)], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("slurm sandbox: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_with_accounting_sacct_answers(folder: Path) -> None:
    problem = missing(has_accounting=True)
    if problem is not None:
        pytest.skip(f"no accounting: {problem}")
    start(Cluster(folder, 1, 2, 0, True))
    ask(folder, "sbatch", "--wait", "--output=/dev/null", "--wrap", "true")
    # What ends is handed on a little later.
    until(lambda: "1|COMPLETED" in ask(folder, "sacct", "-n", "-X", "-P", "-o", "JobID,State"), 30)
