"""Run a function in R real processes that form a gloo group.

The processes are spawned (a fork after torch has started threads can deadlock), meet through a file (no port to collide
on) and serve every test of the session, because importing torch is most of what a new process does.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

_GRACE_SECONDS = 5.0
"""How long the other ranks may take to notice that one of them failed."""

_pools: dict[int, list[_Worker]] = {}


def run_in_ranks(
    function: Callable[..., Any], *arguments: Any, ranks: int = 2, timeout_seconds: float = 60.0
) -> list[Any]:
    """Call ``function(*arguments)`` in every rank of a gloo group and return what each returned, in rank order.

    ``function`` must be importable (top level of a test module); arguments and results must pickle.

    Raises:
        AssertionError: a rank raised, died or did not answer in time; the message holds each rank's traceback.
    """
    workers = _pools.get(ranks) or [_Worker() for _ in range(ranks)]
    _pools[ranks] = workers
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = str(Path(folder) / "rendezvous")
        for rank, worker in enumerate(workers):
            worker.send((function, arguments, rank, ranks, rendezvous, timeout_seconds))
        answers = _collect(workers, timeout_seconds)
    if not all(answer is not None and answer[0] for answer in answers):
        stop_ranks(ranks)  # nobody knows what a rank that failed has left behind
        told = ["no answer" if answer is None else answer[1] for answer in answers]
        raise AssertionError("\n".join(f"rank {rank}: {text}" for rank, text in enumerate(told)))
    return [answer[1] for answer in answers if answer is not None]


def stop_ranks(ranks: int | None = None) -> None:
    """End the processes of one group size, or all of them."""
    for size in [ranks] if ranks is not None else list(_pools):
        for worker in _pools.pop(size, []):
            worker.stop()


def _collect(workers: list[_Worker], timeout_seconds: float) -> list[tuple[bool, Any] | None]:
    answers: list[tuple[bool, Any] | None] = [None] * len(workers)
    waiting: dict[Any, int] = {worker.pipe: rank for rank, worker in enumerate(workers)}
    deadline = time.monotonic() + timeout_seconds
    while waiting and (ready := wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))):
        for pipe in ready:
            rank = waiting.pop(pipe)
            answers[rank] = workers[rank].receive()
            answer = answers[rank]
            if answer is None or not answer[0]:
                deadline = min(deadline, time.monotonic() + _GRACE_SECONDS)
    return answers


class _Worker:
    """One process and the pipe to it."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,))
        self._process.start()
        theirs.close()

    def send(self, job: tuple[Any, ...]) -> None:
        self.pipe.send_bytes(pickle.dumps(job))

    def receive(self) -> tuple[bool, Any] | None:
        """``(succeeded, result or traceback)``, or ``None`` from a process that died."""
        try:
            answer: tuple[bool, Any] = pickle.loads(self.pipe.recv_bytes())
        except (EOFError, ConnectionResetError):
            return None
        return answer

    def stop(self) -> None:
        self.pipe.close()
        self._process.kill()
        self._process.join()


def _serve(pipe: Connection) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    while True:
        try:
            job = pipe.recv_bytes()
        except EOFError:
            return
        arguments = pickle.loads(job)
        # A rank that hangs says where, before the test that waits for it gives up.
        faulthandler.dump_traceback_later(0.8 * arguments[-1])
        try:
            answer = (True, _join_and_call(*arguments))
        except BaseException:
            answer = (False, traceback.format_exc())
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
            faulthandler.cancel_dump_traceback_later()
        pipe.send_bytes(pickle.dumps(answer))


def _join_and_call(
    function: Callable[..., Any], arguments: tuple[Any, ...], rank: int, ranks: int, rendezvous: str, timeout: float
) -> Any:
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=ranks, timeout=timedelta(seconds=timeout)
    )
    dist.barrier()  # a function may leave the group at once, while another rank still connects
    torch.manual_seed(0)
    return function(*arguments)
