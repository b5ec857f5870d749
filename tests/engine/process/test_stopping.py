"""Signals become one request: what the first, the repeated and the impatient one do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mavil.engine.process import stopping
from mavil.engine.process.stopping import Interrupted, StopRequest, stop_on_signals

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


@pytest.fixture(autouse=True)
def _usual_handlers() -> Iterator[None]:
    # A test run in the background of a script starts with SIGINT ignored.
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_the_request(number: signal.Signals) -> None:
    before = {other: signal.getsignal(other) for other in SIGNALS}
    with stop_on_signals() as request:
        assert not request.is_made
        request.leave_if_made()
        send(signal.SIGCONT)
        assert not request.is_made
        send(number)
        assert request.is_made
        assert request.signal_name == number.name
        with pytest.raises(Interrupted, match=f"stopped by {number.name} while starting"):
            request.leave_if_made()
    assert {other: signal.getsignal(other) for other in SIGNALS} == before


def test_a_scheduler_may_repeat_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "SAME_REQUEST_SECONDS", 0.0)
    with stop_on_signals() as request:
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            send(number)
        send(signal.SIGINT)  # a person's first
        assert request.signal_name == "SIGUSR2"


def test_ctrl_c_again_acts_but_torchruns_copy_of_the_first_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with stop_on_signals() as request:
        send(signal.SIGINT)
        send(signal.SIGINT)  # torchrun passing it on
        send(signal.SIGTERM)
        assert request.signal_name == "SIGINT"
        monkeypatch.setattr(stopping, "SAME_REQUEST_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_ctrl_c_again_acts_also_in_a_job_of_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "SAME_REQUEST_SECONDS", 0.0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stop_on_signals():
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_outside_the_main_thread_nothing_is_requested() -> None:
    requests: list[StopRequest] = []
    before = signal.getsignal(signal.SIGTERM)

    def enter() -> None:
        with stop_on_signals() as request:
            requests.append(request)
            assert signal.getsignal(signal.SIGTERM) is before

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert not requests[0].is_made


PROGRAM = """
import os, signal, sys
sys.path.insert(0, {root!r})
from mavil.engine.process.stopping import Interrupted, ignore_until_exit, stop_on_signals
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, signal.SIG_DFL)  # whatever it inherited
with stop_on_signals() as request:
    os.kill(os.getpid(), signal.SIGTERM)
    assert request.is_made
{ignore}
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    os.kill(os.getpid(), number)
sys.exit(Interrupted.exit_code)
"""


@pytest.mark.parametrize(("ignore", "code"), [("ignore_until_exit()", 75), ("", -signal.SIGTERM)])
def test_a_signal_at_the_end_does_not_change_the_exit_code(ignore: str, code: int) -> None:
    program = PROGRAM.format(root=str(Path(__file__).parents[3]), ignore=ignore)
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == code
