"""What a scheduler, a terminal or a kill sends to a program and all of its processes, while loader workers are at work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import _utils

from tests.data.loading.test_faults import fragile
from tests.data.loading.test_loader import loader_of, sounds, take
from tests.data.test_isolation import is_alive, wait_for

PROGRAM = """
import signal, sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from mavil.engine.process.stopping import stop_on_signals
from tests.data.loading import test_signals
if __name__ == "__main__":
    with stop_on_signals() as request:
        test_signals.{function}(Path({folder!r}))
"""
NUM_BATCHES = 12
ALL = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT, signal.SIGTERM, signal.SIGINT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sounds(tmp_path_factory.mktemp("sounds"), shards=4, clips=6)


def start(function: str, folder: Path, tmp_path: Path) -> subprocess.Popen[str]:
    """A function of this module in a program of its own, in its own process group."""
    path = tmp_path / f"{function}.py"
    path.write_text(PROGRAM.format(root=str(Path(__file__).parents[3]), function=function, folder=str(folder)))
    return subprocess.Popen(
        [sys.executable, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def processes_of_group(group: int) -> set[int]:
    """All processes of a process group that have not ended."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == group and fields[0] != "Z":
                found.add(int(entry.name))
    return found


def print_batches(folder: Path) -> None:
    """A line of clips per batch; the next batch is asked for when a line is typed."""
    loader = loader_of(folder, num_workers=2)
    batches = iter(loader)
    for _ in range(NUM_BATCHES):
        sys.stdin.readline()
        print(*next(batches).keys, flush=True)
    running: Any = loader._processes._iterator
    print(*(process.pid for process in running._workers), flush=True)


def test_signals_to_all_processes_change_no_batch_and_end_no_worker(folder: Path, tmp_path: Path) -> None:
    expected = [batch.keys for batch in take(loader_of(folder, num_workers=2), NUM_BATCHES)]
    program = start("print_batches", folder, tmp_path)
    assert program.stdin is not None
    assert program.stdout is not None
    seen, processes = [], set[int]()
    for number in range(NUM_BATCHES):
        program.stdin.write("\n")
        program.stdin.flush()
        seen.append(program.stdout.readline().split())
        if number == 1:
            processes = processes_of_group(program.pid)
        if 1 <= number <= len(ALL):
            os.killpg(program.pid, ALL[number - 1])
            time.sleep(0.1)
    workers = [int(pid) for pid in program.stdout.readline().split()]
    errors = program.communicate(timeout=60)[1]
    assert seen == expected
    assert len(processes) == 5  # the program, two workers, their fork server, Python's resource tracker
    assert set(workers) <= processes
    assert program.returncode == 0, errors
    assert errors == ""


def test_signals_while_the_workers_start_end_none(folder: Path, tmp_path: Path) -> None:
    program = start("print_batches", folder, tmp_path)
    assert program.stdin is not None
    program.stdin.write("\n" * NUM_BATCHES)
    program.stdin.flush()
    wait_for(lambda: len(processes_of_group(program.pid)) >= 3, seconds=60)
    while len(processes_of_group(program.pid)) < 5 and program.poll() is None:
        for number in ALL[:4]:  # Ctrl-C again and again acts
            os.killpg(program.pid, number)
        time.sleep(0.02)
    out, errors = program.communicate(timeout=60)
    assert program.returncode == 0, errors
    assert len(out.splitlines()) == NUM_BATCHES + 1
    assert errors == ""


def hang_in_a_worker(folder: Path) -> None:
    """Begin a pass in which a worker hangs, then end, in the way that the file ``ending`` says."""
    _utils.MP_STATUS_CHECK_INTERVAL = 0.5  # so long torch waits for each worker to end by itself
    loader = fragile(folder, folder.parent / "notes", "deaf", times=99, clip_seconds_limit=300)
    batches = iter(loader)
    next(batches)
    wait_for(lambda: any((folder.parent / "notes").iterdir()), seconds=30)
    ending = (folder.parent / "ending").read_text()
    print("hanging", flush=True)
    if ending == "wait":
        time.sleep(300)
    if ending == "close":
        del batches
        loader.close()
        wait_for(
            lambda: len(processes_of_group(os.getpgid(0))) == 3, seconds=5
        )  # fork server and resource tracker stay
    if ending == "error":
        raise KeyError("a mistake of ours")


def folder_and(ending: str, tmp_path: Path) -> Path:
    """Shards, and beside them how the program is to end."""
    folder = tmp_path / "sounds"
    folder.mkdir()
    (tmp_path / "ending").write_text(ending)
    return sounds(folder, shards=4, clips=6)


@pytest.mark.parametrize("ending", ["return", pytest.param("error", marks=pytest.mark.slow)])
def test_a_program_ends_although_a_worker_hangs(tmp_path: Path, ending: str) -> None:
    program = start("hang_in_a_worker", folder_and(ending, tmp_path), tmp_path)
    assert program.stdout is not None
    assert program.stdout.readline() == "hanging\n", program.communicate()[1]
    begun = time.monotonic()
    program.communicate(timeout=25)  # the worker hangs 30 s
    assert time.monotonic() - begun < 20
    wait_for(lambda: not processes_of_group(program.pid), seconds=5)


@pytest.mark.slow
def test_closing_a_loader_ends_a_worker_that_hangs(tmp_path: Path) -> None:
    program = start("hang_in_a_worker", folder_and("close", tmp_path), tmp_path)
    out, errors = program.communicate(timeout=60)
    assert (out, program.returncode) == ("hanging\n", 0), errors


def test_a_killed_program_leaves_no_process_behind(tmp_path: Path) -> None:
    program = start("hang_in_a_worker", folder_and("wait", tmp_path), tmp_path)
    assert program.stdout is not None
    assert program.stdout.readline() == "hanging\n"
    group = processes_of_group(program.pid)
    assert len(group) == 5
    program.kill()
    program.communicate(timeout=20)
    wait_for(lambda: not any(is_alive(pid) for pid in group), seconds=5)


def die_before_the_first_batch(folder: Path) -> None:
    """Killed when the workers have been started and were given nothing to do yet."""
    running: Any = torch.utils.data.dataloader._MultiProcessingDataLoaderIter
    running._reset = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
    next(iter(loader_of(folder, num_workers=2)))


def test_a_program_killed_before_its_first_batch_leaves_no_process_behind(folder: Path, tmp_path: Path) -> None:
    program = start("die_before_the_first_batch", folder, tmp_path)
    # Not its output: a worker that is left would keep the pipes open.
    assert program.wait(timeout=60) == -signal.SIGKILL
    wait_for(lambda: not processes_of_group(program.pid), seconds=15)
