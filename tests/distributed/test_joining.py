"""How ranks meet: real processes that stand where their environment says, and those that never come."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from mavil import distributed
from mavil.distributed import joining
from mavil.distributed.standing import Standing
from mavil.structs import UserError
from tests.support.ranks import run_in_ranks

CPU = torch.device("cpu")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def slurm_task(rank: int, world_size: int, port: int, nodes: list[int]) -> dict[str, str]:
    """The environment of a task, with ``nodes[i]`` tasks on the i-th node; all meet on this machine."""
    node = next(i for i in range(len(nodes)) if rank < sum(nodes[: i + 1]))
    first = sum(nodes[:node])
    return {
        "SLURMD_NODENAME": f"n{node}",
        "SLURM_JOB_ID": "7",
        "SLURM_NODEID": str(node),
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank - first),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NODELIST": f"n[0-{len(nodes) - 1}]",
        "SLURM_STEP_NUM_TASKS": str(world_size),
        "SLURM_STEP_TASKS_PER_NODE": ",".join(map(str, nodes)),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _join(port: int, world_size: int, nodes: list[int], join_minutes: float, compares: bool = True) -> list[Any]:
    """In a rank of the test's own group: leave it, and join the one that SLURM announces, twice."""
    rank = distributed.rank()
    dist.destroy_process_group()
    before = dict(os.environ)
    os.environ.update(slurm_task(rank, world_size, port, nodes))
    try:
        found: list[Any] = []
        for turn in range(2):
            # The meeting place of the first turn closes a moment after rank 0 has left it.
            time.sleep(1.0 * turn * rank)
            with distributed.process_group(CPU, None, join_minutes=join_minutes, compares=compares):
                found.append(distributed.gather_objects(distributed.rank()))
        return found
    except UserError as error:
        return [str(error)]
    finally:
        os.environ.clear()
        os.environ.update(before)


def test_tasks_of_a_slurm_step_join_and_can_do_so_again() -> None:
    assert run_in_ranks(_join, free_port(), 2, [1, 1], 1.0) == [[[0, 1], [0, 1]]] * 2


def test_ranks_that_never_come_are_named_by_all_that_did() -> None:
    port = free_port()
    for told in run_in_ranks(_join, port, 4, [2, 2], 0.06):
        assert f"only 2 of 4 ranks came to 127.0.0.1:{port} in time; missing: 2, 3" in told[0]


def test_nodes_with_different_numbers_of_ranks_are_refused_before_anything_else() -> None:
    expected = "the nodes have different numbers of processes (n0: 2, n1: 1)"
    for told in run_in_ranks(_join, free_port(), 3, [2, 1], 1.0, ranks=3):
        assert told[0].startswith(expected)
    assert run_in_ranks(_join, free_port(), 3, [2, 1], 1.0, False, ranks=3)[2] == [[0, 1, 2]] * 2


@pytest.fixture
def announce(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def announce(rank: int, address: str, port: int) -> None:
        for name, value in {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": address, "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, str(value))

    return announce


def refused(join_minutes: float = 0.005, look_up: Callable[[], None] = lambda: None) -> str:
    with (
        pytest.raises(UserError) as caught,
        distributed.process_group(CPU, join_minutes=join_minutes, look_up=look_up),
    ):
        pytest.fail("the run went on alone")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_rank_0_that_nobody_started_is_missed(announce: Callable[..., None]) -> None:
    announce(rank=1, address="127.0.0.1", port=9)
    assert "could not reach rank 0 at 127.0.0.1:9 in time (Connection refused)" in refused()


def test_a_name_that_is_not_known_is_told_early(announce: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "_NAME_SECONDS", 0.3)
    announce(rank=1, address="no-such-node.invalid", port=9)
    begun = time.monotonic()
    assert "the name of rank 0's machine, no-such-node.invalid, is not known there" in refused(join_minutes=2.0)
    assert time.monotonic() - begun < 30


def test_a_taken_port_is_named(announce: Callable[..., None]) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        announce(rank=0, address="127.0.0.1", port=port)
        assert f"port {port} of" in refused()
        assert "set MASTER_PORT to a free one" in refused()


def test_rank_0_alone_names_the_other(announce: Callable[..., None]) -> None:
    announce(rank=0, address="localhost", port=free_port())
    assert "only 1 of 2 ranks came to localhost:" in refused()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_wait_for_the_others_is_looked_up_from(announce: Callable[..., None], rank: int) -> None:
    announce(rank=rank, address="127.0.0.1", port=free_port())
    looks = []

    def look_up() -> None:
        looks.append(1)
        if len(looks) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), distributed.process_group(CPU, look_up=look_up):
        pass
    assert len(looks) == 2


def _cannot_connect() -> str:
    def fail(*_: Any, **__: Any) -> None:
        time.sleep(1.0)  # or rank 0 would take the meeting place away before the other has read that all is well
        raise RuntimeError("no way")

    rank = distributed.rank()
    dist.destroy_process_group()
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=os.environ["TEST_PORT"])
    whole, dist.init_process_group = dist.init_process_group, fail
    try:
        with distributed.process_group(CPU):
            return "went on"
    except RuntimeError as error:
        return str(error)
    finally:
        dist.init_process_group = whole
        for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            del os.environ[name]


def test_ranks_that_meet_and_cannot_connect_are_no_mistake_of_a_person() -> None:
    for rank, told in enumerate(run_in_ranks(_on_port, free_port())):
        assert told.startswith(f"rank {rank} of 2 on ")
        assert told.endswith("could not join the process group over gloo: no way")


def _on_port(port: int) -> str:
    os.environ["TEST_PORT"] = str(port)
    return _cannot_connect()


def test_one_process_joins_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    with distributed.process_group(CPU):
        assert distributed.world_size() == 1


@pytest.mark.parametrize(
    ("resolved", "words"),
    [
        ("192.0.2.7", "which none of its interfaces has: set GLOO_SOCKET_IFNAME"),
        ("127.0.0.1", "which no other node reaches: set GLOO_SOCKET_IFNAME"),
        (None, "is not known there: set GLOO_SOCKET_IFNAME"),
    ],
)
def test_an_address_that_gloo_cannot_use_is_explained(
    monkeypatch: pytest.MonkeyPatch, resolved: str | None, words: str
) -> None:
    def resolve(*_: Any) -> list[Any]:
        if resolved is None:
            raise socket.gaierror
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (resolved, 0))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert words in joining.address_problem(Standing(node="n1", address="n0"))
    assert joining.address_problem(Standing(node="n1", address="localhost")) == ""
