"""A rank that stands still ends by itself: in a wait that lets other threads run, and in one that does not."""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mavil.data.worker_processes import worker_context
from mavil.engine.process import watchdog
from mavil.engine.process.watchdog import EXIT_HUNG, Watchdog

STACKS = "stacks.rank0.txt"


def start(scene: Callable[[Path], None], run: Path) -> tuple[int | None, str]:
    """A scene in a process of its own, which may end in any way: its exit code and error output."""
    errors = run.with_name("errors.txt")
    # From the loader's fork server: torch is imported once for all scenes.
    process = worker_context("mavil").Process(target=_play, args=(scene, run, errors))  # type: ignore[attr-defined]
    process.start()
    process.join(60)
    process.kill()
    return process.exitcode, errors.read_text()


def _play(scene: Callable[[Path], None], run: Path, errors: Path) -> None:
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    logging.basicConfig(format="%(levelname)s %(message)s")
    watchdog.GRACE_SECONDS = 0.5
    scene(run)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def wait_for_the_others(run: Path) -> None:
    with Watchdog(run, 0.03, others=lambda: "worker 3 stands in a decoder") as watched:
        watched.beat("step 12: waiting for clips")
        threading.Event().wait()


def test_a_rank_that_waits_for_ever_writes_its_stacks_and_ends(run: Path) -> None:
    (run / STACKS).write_text("from before\n")
    code, errors = start(wait_for_the_others, run)
    assert code == EXIT_HUNG == 70, errors
    first, last = errors.splitlines()
    assert re.fullmatch(
        r"WARNING rank 0 has made no progress for 0\.0[12]\d* min \(step 12: waiting for clips\); it ends after 0\.03 min .*",
        first,
    )
    assert re.match(r"ERROR rank 0 has made no progress for 0\.0[3-9]\d* min", last)
    assert last.endswith(f"(step 12: waiting for clips) and ends; stacks in {run / STACKS}")
    text = (run / STACKS).read_text()
    assert text.startswith("from before\n")
    assert "rank 0, no progress for 0.0" in text
    assert "wait_for_the_others" in text
    assert "_write_stacks" in text  # every thread
    assert "worker 3 stands in a decoder" in text


def keep_pythons_lock(run: Path) -> None:
    with Watchdog(run, 0.01):
        ctypes.PyDLL(None).sleep(60)  # unlike CDLL it does not let go


def stuck_log(run: Path) -> None:
    class Stuck(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            time.sleep(60)

    logging.getLogger("mavil").addHandler(Stuck())
    with Watchdog(run, 0.01):
        time.sleep(60)


@pytest.mark.parametrize(("scene", "where"), [(keep_pythons_lock, "keep_pythons_lock"), (stuck_log, "in emit")])
def test_where_the_thread_cannot_act_a_timer_does(scene: Callable[[Path], None], where: str, run: Path) -> None:
    """Code that keeps Python's lock, and a log on a disk that does not answer."""
    code, errors = start(scene, run)
    assert code == 1
    assert "Timeout" in errors
    assert where in errors


def stand_still(run: Path) -> None:
    with Watchdog(run, 0.01):
        time.sleep(60)


def test_stacks_that_cannot_be_written_go_to_the_error_output(tmp_path: Path) -> None:
    code, errors = start(stand_still, tmp_path / "gone")
    assert code == EXIT_HUNG
    assert "stacks could not be written" in errors
    assert "in stand_still" in errors


def beat_for_longer_than_the_limit(run: Path) -> None:
    with Watchdog(run, 0.05) as watched:
        for number in range(45):
            watched.beat(f"step {number}")
            time.sleep(0.1)
    assert not [thread for thread in threading.enumerate() if thread.name == "watchdog"]
    time.sleep(4)  # more than the limit and the timer's grace


def test_beats_keep_it_alive_and_leaving_disarms_it(run: Path) -> None:
    assert start(beat_for_longer_than_the_limit, run) == (0, "")
    assert not list(run.iterdir())


def stand_still_twice(run: Path) -> None:
    watchdog._LONGEST_PAUSE_SECONDS = 0.02  # one warning per look would show
    with Watchdog(run, 0.08) as watched:
        for doing in ("reading", "computing"):
            watched.beat(doing)
            time.sleep(2.9)


def test_one_warning_for_each_time_it_stands_still(run: Path) -> None:
    code, errors = start(stand_still_twice, run)
    assert code == 0
    assert [line[line.index("(") :] for line in errors.splitlines()] == [
        f"({doing}); it ends after 0.08 min (trainer.hang_minutes)" for doing in ("reading", "computing")
    ]


def test_without_a_limit_nothing_is_watched(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda *_, **__: pytest.fail("armed"))
    num_threads = threading.active_count()
    with Watchdog(run, None) as watched:
        watched.beat("anything")
        assert threading.active_count() == num_threads
