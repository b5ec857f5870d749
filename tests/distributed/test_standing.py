"""Where a process stands, told from environments that a real SLURM and torchrun have set."""

from __future__ import annotations

import pytest

from mavil.distributed.standing import FIRST_PORT, NUM_PORTS, Standing, first_node, standing
from mavil.structs import UserError

JOB = {
    "SLURMD_NODENAME": "n2",
    "SLURM_JOB_ID": "12",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_NNODES": "2",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "4",
    "SLURM_TASKS_PER_NODE": "2(x2)",
}
TASK = JOB | {
    "SLURM_GTIDS": "2,3",
    "SLURM_LOCALID": "1",
    "SLURM_PROCID": "3",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_TASK_PID": "100",
}
"""Rank 3 of ``srun --nodes 2 --ntasks-per-node 2``."""
BATCH_SCRIPT = JOB | {
    "SLURMD_NODENAME": "n1",
    "SLURM_GTIDS": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_PROCID": "0",
    "SLURM_TASK_PID": "99",
}
SALLOC_SHELL = {name: value for name, value in JOB.items() if name not in ("SLURMD_NODENAME", "SLURM_NODEID")}
STEP = {name: value for name, value in TASK.items() if name.startswith("SLURM_STEP")}
TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node-7",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "TORCHELASTIC_RUN_ID": "abc",
    "TORCHELASTIC_RESTART_COUNT": "0",
}


def test_a_task_of_a_step_stands_where_slurm_says() -> None:
    place = standing(TASK)
    assert (place.rank, place.world_size, place.local_rank, place.local_world_size) == (3, 4, 1, 2)
    assert (place.address, place.node, place.launcher) == ("n1", "n2", "slurm")
    assert FIRST_PORT <= place.port < FIRST_PORT + NUM_PORTS
    assert place.port == standing(TASK | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}).port


@pytest.mark.parametrize(
    "other", [{"SLURM_JOB_ID": "13"}, {"SLURM_STEP_ID": "1"}, {"SLURM_RESTART_COUNT": "1"}], ids=str
)
def test_jobs_steps_and_restarts_meet_at_other_ports(other: dict[str, str]) -> None:
    assert standing(TASK | other).port != standing(TASK).port
    assert standing(TASK | other).meeting != standing(TASK).meeting


def test_the_persons_own_meeting_place_comes_first() -> None:
    place = standing(TASK | {"MASTER_ADDR": "fe80::1", "MASTER_PORT": "4242"})
    assert (place.address, place.port) == ("fe80::1", 4242)


def test_a_step_on_one_node_meets_on_that_node_whatever_its_name() -> None:
    one = {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NODELIST": "n2", "SLURM_NODEID": "0", "SLURM_GTIDS": "0,1,2,3"}
    place = standing(TASK | one | {"SLURM_STEP_TASKS_PER_NODE": "4"})
    assert (place.address, place.local_world_size) == ("127.0.0.1", 4)


@pytest.mark.parametrize(
    ("environment", "process"),
    [
        ({}, 0),
        (SALLOC_SHELL, 0),
        (BATCH_SCRIPT, 0),
        # Submitted from inside a task: the step's variables are still there.
        (BATCH_SCRIPT | STEP | {"SLURM_STEP_TASKS_PER_NODE": "2"}, 0),
        (SALLOC_SHELL | STEP | {"SLURM_PROCID": "1", "SLURM_NTASKS": "1", "SLURM_GTIDS": "2,3"}, 0),
        # A shell that salloc started as a step of its own.
        (TASK | {"SLURM_STEP_ID": "4294967290"}, 0),
        # In the shell of `srun --pty`, whose own process is 100.
        (TASK | {"SLURM_PTY_PORT": "4242"}, 101),
    ],
    ids=[
        "login node",
        "salloc",
        "batch script",
        "sbatch in a task",
        "salloc in a task",
        "interactive step",
        "pty shell",
    ],
)
def test_one_process_where_nobody_started_the_others(environment: dict[str, str], process: int) -> None:
    place = standing(environment, has_terminal=True, process=process)
    assert (place.rank, place.world_size, place.launcher) == (0, 1, "a person")


def test_tasks_of_an_interactive_step_are_tasks() -> None:
    pty = TASK | {"SLURM_PTY_PORT": "4242"}
    assert standing(pty, has_terminal=True, process=100).world_size == 4  # srun --pty python ...
    assert standing(pty, has_terminal=False, process=101).world_size == 4  # srun in the shell of srun --pty


def test_one_task_is_one_process() -> None:
    one = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    place = standing(TASK | one | {"SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_GTIDS": "0", "SLURM_NODEID": "0"})
    assert (place.world_size, place.address, place.port) == (1, "", 0)


@pytest.mark.parametrize("around", [{}, BATCH_SCRIPT, TASK], ids=["alone", "in a batch script", "in a task"])
def test_torchrun_comes_before_slurm(around: dict[str, str]) -> None:
    place = standing(around | TORCHRUN)
    assert (place.rank, place.world_size, place.local_rank, place.local_world_size) == (5, 8, 1, 4)
    assert (place.address, place.port, place.is_met, place.launcher) == ("node-7", 29500, True, "torchrun")
    assert standing(TORCHRUN | {"TORCHELASTIC_RESTART_COUNT": "1"}).meeting != place.meeting


def test_variables_set_by_hand_do() -> None:
    by_hand = {name: TORCHRUN[name] for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    place = standing(by_hand)
    assert (place.rank, place.local_rank, place.local_world_size, place.is_met) == (5, 0, None, False)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2 but RANK is not set"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2 and WORLD_SIZE 2"),
        ({"RANK": "0"}, "WORLD_SIZE should be a number and is not set"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR is not"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}, "MASTER_PORT should be a number"),
        (TORCHRUN | {"LOCAL_RANK": "first"}, "LOCAL_RANK should be a number and is first"),
    ],
)
def test_half_an_announcement_is_refused(environment: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        standing(environment)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n[1-3,07],m5", "n1"),
        ("m5,n[1-3]", "m5"),
        ("n[07-12,20]", "n07"),
        ("gpu[003,005]", "gpu003"),
        ("rack[1-2]n[1-4]-ib", "rack1n1-ib"),
        ("a-b.example.org,c", "a-b.example.org"),
    ],
)
def test_the_first_node_of_a_short_list(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


def test_nodes_with_different_numbers_of_tasks() -> None:
    uneven = TASK | {"SLURM_STEP_TASKS_PER_NODE": "2(x3),1", "SLURM_STEP_NUM_NODES": "4"}
    assert standing(uneven | {"SLURM_NODEID": "2", "SLURM_GTIDS": "4,5"}).local_world_size == 2
    assert standing(uneven | {"SLURM_NODEID": "3", "SLURM_GTIDS": "6"}).local_world_size == 1


def test_alone_is_the_default() -> None:
    assert standing({"SLURMD_NODENAME": "n9"}) == Standing(node="n9")
