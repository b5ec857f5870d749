"""Where a process stands among those that train together, told from what its launcher put into the environment.

torchrun's variables come first (``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK`` ...), then those of a SLURM step, else it is one
process. What SLURM sets was looked at in 22.05: a batch script, an ``salloc`` shell and a task of a step all have
``SLURM_PROCID`` or ``SLURM_NTASKS``; only ``srun`` sets ``SLURM_STEP_NUM_TASKS``. All of it is passed on to whatever the
task starts, another job's batch script among them, so the variables of a step must also agree with each other.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from mavil.structs import UserError

FIRST_PORT, NUM_PORTS = 20_000, 9_000
"""Ports of SLURM jobs, 20000 to 28999: not reserved, below those Linux deals out by itself (32768 and up, and srun's are of
those), and without torchrun's own 29500."""
_PRIMES = (1, 97, 389)
"""Of job, step and restart in the port: two steps of a job, or a job and its predecessor that is slow to end, must not meet."""
_FIRST_SPECIAL_STEP = 0xFFFF_FFF0
"""From here on step numbers stand for batch script, ``salloc`` shell and the like, which are no tasks (slurm.h)."""


@dataclass(frozen=True)
class Standing:
    """One process among ``world_size``; the default is one alone.

    Attributes:
        rank: its number among all, from 0.
        local_rank: its number on its node.
        local_world_size: processes on its node, ``None`` where nobody says.
        address, port: where rank 0 waits for the others; empty and 0 with one process.
        node: what its machine is called there.
        launcher: who started it.
        is_met: the meeting place is open already: torchrun itself keeps it.
        meeting: tells this start of this job from every other that might use the same port.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int | None = 1
    address: str = ""
    port: int = 0
    node: str = ""
    launcher: str = "a person"
    is_met: bool = False
    meeting: str = ""


def here() -> Standing:
    """Where this process stands.

    Raises:
        UserError: as :func:`standing`.
    """
    return standing(os.environ, _has_terminal(), os.getpid())


def standing(environment: Mapping[str, str], has_terminal: bool = False, process: int = 0) -> Standing:
    """Where a process with this environment stands.

    Args:
        environment: as ``os.environ``.
        has_terminal: whether a person types into or reads from it.
        process: its process number.

    Raises:
        UserError: variables are missing, or are no numbers.
    """
    if "RANK" in environment:
        return _from_torchrun(environment)
    if _is_task(environment, has_terminal, process):
        return _from_slurm(environment)
    if _number(environment, "WORLD_SIZE", 1) > 1:
        raise UserError(
            f"WORLD_SIZE is {environment['WORLD_SIZE']} but RANK is not set: start the processes with torchrun or srun, or "
            "unset WORLD_SIZE"
        )
    return Standing(node=_node(environment))


def _from_torchrun(environment: Mapping[str, str]) -> Standing:
    world_size, rank = _number(environment, "WORLD_SIZE", None), _number(environment, "RANK", None)
    if not 0 <= rank < world_size:
        raise UserError(f"RANK is {rank} and WORLD_SIZE {world_size}: ranks count from 0 to WORLD_SIZE - 1")
    if world_size > 1 and not environment.get("MASTER_ADDR"):
        raise UserError("RANK and WORLD_SIZE are set but MASTER_ADDR is not: set it to the machine of rank 0")
    return Standing(
        rank=rank,
        world_size=world_size,
        local_rank=_number(environment, "LOCAL_RANK", 0),
        local_world_size=_number(environment, "LOCAL_WORLD_SIZE", 0) or None,
        address=environment.get("MASTER_ADDR", ""),
        port=_number(environment, "MASTER_PORT", None) if world_size > 1 else 0,
        node=_node(environment),
        launcher="torchrun",
        is_met=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        meeting="/".join(environment.get(f"TORCHELASTIC_{name}", "") for name in ("RUN_ID", "RESTART_COUNT")),
    )


def _is_task(environment: Mapping[str, str], has_terminal: bool, process: int) -> bool:
    """Whether the process is a task of a step that ``srun`` started, and not something a task started."""
    needed = ("SLURM_PROCID", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST")
    if any(not environment.get(name) for name in needed):
        return False  # a batch script, an salloc shell or no job at all
    if _number(environment, "SLURM_STEP_ID", None) >= _FIRST_SPECIAL_STEP:
        return False
    num_tasks = _number(environment, "SLURM_STEP_NUM_TASKS", None)
    if _number(environment, "SLURM_NTASKS", num_tasks) != num_tasks:
        return False  # a batch script or an salloc shell that a task submitted
    own = environment.get("SLURM_GTIDS", "")
    if own and len(own.split(",")) != _tasks_on_node(environment):
        return False  # a batch script counts as the one task of its node
    is_interactive = "SLURM_PTY_PORT" in environment and has_terminal
    # In the shell of `srun --pty -n 8` a person stands in task 0, and the seven others have nobody who types.
    return not (is_interactive and environment.get("SLURM_TASK_PID") != str(process))


def _from_slurm(environment: Mapping[str, str]) -> Standing:
    world_size = _number(environment, "SLURM_STEP_NUM_TASKS", None)
    is_one_node = _number(environment, "SLURM_STEP_NUM_NODES", 0) == 1
    first = "127.0.0.1" if is_one_node else first_node(environment["SLURM_STEP_NODELIST"])
    numbers = [_number(environment, name, 0) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")]
    port = FIRST_PORT + sum(prime * number for prime, number in zip(_PRIMES, numbers, strict=True)) % NUM_PORTS
    return Standing(
        rank=_number(environment, "SLURM_PROCID", None),
        world_size=world_size,
        local_rank=_number(environment, "SLURM_LOCALID", 0),
        local_world_size=_tasks_on_node(environment),
        address=(environment.get("MASTER_ADDR") or first) if world_size > 1 else "",
        port=_number(environment, "MASTER_PORT", port) if world_size > 1 else 0,
        node=_node(environment),
        launcher="slurm",
        meeting=".".join(map(str, numbers)),
    )


def first_node(nodes: str) -> str:
    """The first of the nodes in SLURM's short form: ``n[07-12,20],m5`` is ``n07``, ``rack[1-2]n[1-4]-ib`` is ``rack1n1-ib``."""
    entry = re.match(r"(?:[^,\[\]]|\[[^\]]*\])*", nodes)
    assert entry is not None  # it matches the empty text
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", entry.group())


def _tasks_on_node(environment: Mapping[str, str]) -> int | None:
    """How many tasks the step has on this node, from ``2(x3),1``: three nodes with two and one with one."""
    numbers: list[int] = []
    for entry in environment.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", entry)
        if found is None:
            return None
        numbers += [int(found[1])] * int(found[2] or 1)
    place = _number(environment, "SLURM_NODEID", 0)
    return numbers[place] if place < len(numbers) else None


def _node(environment: Mapping[str, str]) -> str:
    return environment.get("SLURMD_NODENAME") or socket.gethostname()


def _number(environment: Mapping[str, str], name: str, default: int | None) -> int:
    text = environment.get(name) or None
    if text is None and default is not None:
        return default
    if text is None or not text.isdigit():
        raise UserError(
            f"the environment variable {name} should be a number and is {text or 'not set'}: set or unset it"
        )
    return int(text)


def _has_terminal() -> bool:
    streams = (sys.stdin, sys.stdout, sys.stderr)
    return any(stream is not None and not stream.closed and stream.isatty() for stream in streams)
