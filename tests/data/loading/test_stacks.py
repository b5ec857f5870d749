"""A worker process says where it stands, also while it hangs in code that lets no Python run."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from multiprocessing.connection import Connection
from typing import Any

import pytest

from mavil.data.loading import stacks
from mavil.data.loading.stacks import answer_with_stacks, stacks_of_workers
from mavil.data.worker_processes import worker_context

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="files in memory exist on Linux only")


def hang_in_a_decoder(ready: Connection, can_answer: bool) -> None:
    if can_answer:
        answer_with_stacks()
    ready.send(True)
    while True:  # a signal wakes it
        ctypes.PyDLL(None).sleep(60)  # keeps Python's lock: no other thread can run


def started(can_answer: bool) -> Any:
    context: Any = worker_context("mavil")
    here, there = context.Pipe()
    process = context.Process(target=hang_in_a_decoder, args=(there, can_answer))
    process.start()
    assert here.recv()
    time.sleep(0.2)
    return process


def test_workers_that_hang_are_asked_where_and_others_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "_SECONDS_TO_ANSWER", 0.3)
    worker, other = started(can_answer=True), started(can_answer=False)
    try:
        for _ in range(2):  # the second answer is not the first one's
            text = stacks_of_workers()
            assert text.count("in hang_in_a_decoder") == 1
            assert f"({worker.pid})" in text
            assert f"({other.pid})" not in text
        assert worker.is_alive()
        # The signal would have ended a process that does not know it.
        assert other.is_alive()
        worker.kill()
        worker.join()
        assert stacks_of_workers() == ""
    finally:
        for process in (worker, other):
            process.kill()
            process.join()


def test_the_signal_is_none_that_stops_or_preempts_a_run() -> None:
    assert stacks._SIGNAL not in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)
