"""The run lock: one job at a time, whoever is gone is succeeded by exactly one, and whoever was succeeded stops writing."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from mavil.engine.run import lock as run_lock
from mavil.engine.run import lock_owner
from mavil.engine.run.lock import holding, lost, owner_of
from mavil.engine.run.lock_owner import Owner
from mavil.structs import UserError
from tests.support.ranks import run_in_ranks


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(run_lock, "STALE_SECONDS", 1.5)
    monkeypatch.setattr(run_lock, "_WATCH_SECONDS", 0.05)
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


def locks(run: Path) -> list[str]:
    return sorted(path.name for path in run.iterdir() if path.name != "checkpoints")


def leave_lock(run: Path, number: int = 1, age: float = 0.0, **changes: Any) -> Path:
    """A lock as another process left it, last touched ``age`` seconds ago."""
    path = run / f"lock.{number}.json"
    path.write_text(dataclasses.replace(Owner.this_process(), **changes).text())
    now = time.time()
    os.utime(path, (now - age, now - age))
    return path


def ended_process() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_run_is_held_and_given_back(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "x"
    with holding(run):
        assert locks(run) == ["lock.1.json"]
        assert lost(run) is None
        owner = json.loads((run / "lock.1.json").read_text())
        assert (owner["pid"], owner["job"], owner["restart"]) == (os.getpid(), "", 0)
        assert f"process {os.getpid()} on " in (owner_of(run) or "")
    assert locks(run) == []
    assert owner_of(run) is None
    assert lost(run) is None
    with pytest.raises(RuntimeError, match="training failed"), holding(run):
        raise RuntimeError("training failed")
    assert locks(run) == []


def test_a_second_job_is_refused_with_who_it_is_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    with holding(tmp_path):
        started = time.monotonic()
        with pytest.raises(UserError) as caught, holding(tmp_path):
            pass
        assert time.monotonic() - started < 1.4  # a process of this machine need not be watched
        assert locks(tmp_path) == ["lock.1.json"]
        assert lost(tmp_path) is None
    message = str(caught.value)
    assert f"is being written by process {os.getpid()} on {os.uname().nodename} (SLURM job 4711, since 20" in message
    assert "end it (scancel 4711), or choose another folder with --out" in message
    assert f"remove {tmp_path}/lock.1.json" in message


def test_a_process_that_is_gone_from_this_machine_is_succeeded_at_once(tmp_path: Path) -> None:
    leave_lock(tmp_path, pid=ended_process())
    with holding(tmp_path):
        assert locks(tmp_path) == ["lock.2.json"]
    assert locks(tmp_path) == []


def test_a_process_that_was_killed_and_not_waited_for_is_gone(tmp_path: Path) -> None:
    process = subprocess.Popen(["sleep", "60"])
    try:
        leave_lock(tmp_path, pid=process.pid, started=lock_owner._start_of(process.pid))
        with pytest.raises(UserError, match=f"process {process.pid}"), holding(tmp_path):
            pass
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie now
        with holding(tmp_path):
            assert locks(tmp_path) == ["lock.2.json"]
    finally:
        process.kill()
        process.wait()


def test_another_process_with_the_same_number_is_not_the_owner(tmp_path: Path) -> None:
    leave_lock(tmp_path, started="1")
    with holding(tmp_path):
        assert locks(tmp_path) == ["lock.2.json"]


@pytest.mark.parametrize("elsewhere", [{"host": "node7"}, {"boot": "another"}, {"namespace": "pid:[1]"}])
def test_what_another_machine_or_container_runs_is_judged_by_its_signs_of_life(
    tmp_path: Path, elsewhere: dict[str, str]
) -> None:
    path = leave_lock(tmp_path, pid=ended_process(), **elsewhere)
    started = time.monotonic()
    with holding(tmp_path):
        assert 0.5 < time.monotonic() - started < 10
        assert locks(tmp_path) == ["lock.2.json"]
    leave_lock(tmp_path, age=10, pid=ended_process(), **elsewhere)
    started = time.monotonic()
    with holding(tmp_path):
        assert time.monotonic() - started < 1.4
    leave_lock(tmp_path, pid=ended_process(), **elsewhere)
    alive = threading.Timer(0.1, os.utime, [path])
    alive.start()
    with pytest.raises(UserError, match="is being written by process"), holding(tmp_path):
        pass
    alive.join()
    assert locks(tmp_path) == ["lock.1.json"]


def test_a_clock_that_goes_ahead_does_not_lock_for_ever(tmp_path: Path) -> None:
    leave_lock(tmp_path, age=-3600, host="node7")
    with holding(tmp_path):
        assert locks(tmp_path) == ["lock.2.json"]


def test_a_requeued_job_succeeds_itself_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "STALE_SECONDS", 60.0)
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    leave_lock(tmp_path, host="node7", job="4711", restart=1)
    started = time.monotonic()
    with holding(tmp_path):
        assert locks(tmp_path) == ["lock.2.json"]
    assert time.monotonic() - started < 5
    me = Owner.this_process()
    for same_or_other in ({"restart": 2}, {"restart": 3}, {"restart": 1, "job": "4712"}, {"restart": 1, "job": ""}):
        assert dataclasses.replace(me, host="node7", **same_or_other).is_gone(me) is None


@pytest.mark.parametrize("text", ["", '{"pid": 1}'])
def test_a_lock_that_was_cut_off_while_it_was_written_becomes_stale(tmp_path: Path, text: str) -> None:
    (tmp_path / "lock.3.json").write_text(text)
    with holding(tmp_path):
        assert locks(tmp_path) == ["lock.4.json"]


def test_an_owner_who_was_succeeded_learns_it_and_leaves_the_other_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with holding(tmp_path):
        own = (tmp_path / "lock.1.json").read_text()
        (tmp_path / "lock.1.json").unlink()
        leave_lock(tmp_path, number=2, host="node7", pid=99)
        deadline = time.monotonic() + 10
        while not caplog.text and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "now written by process 99 on node7" in caplog.text  # it noticed by itself
        (tmp_path / "lock.2.json").unlink()
        # Another one has written meanwhile: that it has left again changes nothing.
        (tmp_path / "lock.1.json").write_text(own)
        assert "must not write to it" in (lost(tmp_path) or "")
    assert locks(tmp_path) == ["lock.1.json"]


def test_signs_of_life_are_given(tmp_path: Path) -> None:
    with holding(tmp_path):
        lock = tmp_path / "lock.1.json"
        os.utime(lock, (0, 0))
        deadline = time.monotonic() + 10
        while lock.stat().st_mtime < 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert time.time() - lock.stat().st_mtime < 60


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_text("")
    with (
        pytest.raises(UserError, match=r"x: the run folder cannot be written \(File exists\); it is a file"),
        holding(tmp_path / "x"),
    ):
        pass
    with pytest.raises(UserError, match=r"y: the run folder .*a part of it is a file"), holding(tmp_path / "x" / "y"):
        pass

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=r"No space left on device\); make space"), holding(tmp_path):
        pass
    assert locks(tmp_path) == ["x"]


def _hold(run: Path, seconds: float) -> str:
    try:
        with holding(run):
            time.sleep(seconds)
            return "held"
    except UserError as error:
        return str(error)


def test_every_rank_hears_the_same(tmp_path: Path) -> None:
    assert run_in_ranks(_hold, tmp_path, 0.0) == ["held", "held"]
    assert locks(tmp_path) == []
    with holding(tmp_path):
        first, second = run_in_ranks(_hold, tmp_path, 0.0)
    assert first == second
    assert f"process {os.getpid()}" in first


RACE = """
import os, random, sys, time
from pathlib import Path
from mavil.engine.run import lock as run_lock
from mavil.structs import UserError
run_lock.STALE_SECONDS, run_lock.BEAT_SECONDS, run_lock._WATCH_SECONDS = 30.0, 1.0, 0.01
run, inside = Path(sys.argv[1]), Path(sys.argv[2])
pauses = random.Random()

def compete(number, deadline):
    held = 0
    while time.monotonic() < deadline:
        try:
            with run_lock.holding(run):
                held += 1
                # Exclusive by itself: fails if somebody else is inside.
                os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
                time.sleep(pauses.uniform(0, 0.01))
                os.unlink(inside)
                if run_lock.lost(run):
                    raise RuntimeError("lost while alive")
                if pauses.random() < 0.4:
                    os._exit(min(held, 100))  # dies with its lock
        except UserError:
            pass
    os._exit(min(held, 100))

children = {}
deadline = time.monotonic() + float(sys.argv[3])
total = failures = deaths = 0
while time.monotonic() < deadline or children:
    while len(children) < 6 and time.monotonic() < deadline:
        pid = os.fork()
        if pid == 0:
            try:
                compete(len(children), deadline)
            except BaseException as error:
                print("failed", repr(error), flush=True)
                os._exit(255)
        children[pid] = True
    pid, status = os.waitpid(-1, 0)
    del children[pid]
    code = os.waitstatus_to_exitcode(status)
    failures += code == 255
    total += code if code != 255 else 0
    deaths += 1
print(total, deaths, failures)
"""


def test_of_many_that_race_for_a_lock_one_has_it_at_a_time(tmp_path: Path) -> None:
    """Six processes claim, hold, give back or die with the lock, for three seconds; somebody is always found dead."""
    inside = tmp_path / "inside"
    done = subprocess.run(
        [sys.executable, "-c", RACE, str(tmp_path / "run"), str(inside), "3"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[3],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stdout, done.stdout
    total, deaths, failures = map(int, done.stdout.split())
    assert failures == 0
    assert total > 10
    assert deaths > 5


def test_two_that_find_the_same_dead_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one took over, worked and left between our look and our claim; and one that is still there."""
    leave_lock(tmp_path, pid=ended_process())
    create, calls = run_lock._create, [0]

    def late(path: Path, owner: Owner) -> bool:
        calls[0] += 1
        if calls[0] == 1:  # somebody was quicker, and has left again
            (tmp_path / "lock.1.json").unlink()
        return create(path, owner)

    monkeypatch.setattr(run_lock, "_create", late)
    with holding(tmp_path):
        assert locks(tmp_path) == ["lock.1.json"]  # not 2: it judged anew
    assert calls[0] == 2

    leave_lock(tmp_path, pid=ended_process())

    def too_late(path: Path, owner: Owner) -> bool:
        if path.name == "lock.2.json" and not path.exists():
            leave_lock(tmp_path, number=2)
            (tmp_path / "lock.1.json").unlink()
        return create(path, owner)

    monkeypatch.setattr(run_lock, "_create", too_late)
    with pytest.raises(UserError, match="is being written"), holding(tmp_path):
        pass
    assert locks(tmp_path) == ["lock.2.json"]


def test_an_owner_that_wakes_while_it_is_succeeded_keeps_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = leave_lock(tmp_path, age=10, host="node7")
    create = run_lock._create

    def wake(new: Path, owner: Owner) -> bool:
        os.utime(path)
        return create(new, owner)

    monkeypatch.setattr(run_lock, "_create", wake)
    beating = threading.Event()

    def beat() -> None:
        while not beating.wait(0.1):
            os.utime(path)

    thread = threading.Thread(target=beat)
    with monkeypatch.context() as patch:
        patch.setattr(run_lock, "_create", lambda *a: (thread.start() if not thread.is_alive() else None, wake(*a))[1])
        with pytest.raises(UserError, match="node7"), holding(tmp_path):
            pass
    beating.set()
    thread.join()
    assert locks(tmp_path) == ["lock.1.json"]


def test_a_job_that_was_killed_is_succeeded(tmp_path: Path) -> None:
    """The whole way with a real process and kill -9."""
    program = (
        "import sys, time; from pathlib import Path; from mavil.engine.run.lock import holding\n"
        "with holding(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {process.pid}"), holding(tmp_path):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close() if process.stdout else None
    with holding(tmp_path):
        assert locks(tmp_path) == ["lock.2.json"]


def test_without_proc_signs_of_life_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_owner, "_text_of", lambda path: "")
    me = Owner.this_process()
    assert (me.boot, me.started) == ("", "")
    assert me.is_gone(me) is None
