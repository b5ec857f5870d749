"""The runner, with programs of some milliseconds: order, failures, what is left out, and requests to stop."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mavil.pipelines.jobs import Job, is_marked_finished, jobs_of, mark_finished, step_reached
from mavil.pipelines.running import LOG, Jobs, Result
from mavil.pipelines.stages import Point, Stage

ROOT = Path(__file__).parents[2]
NOTE = "import sys, time; open('order', 'a').write(sys.argv[1] + '\\n'); "
PATIENCE = 90.0


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def job(name: str, *after: str, program: str = "") -> Job:
    """A job that writes its name into ``order`` and then does something."""
    return Job(name, name, [sys.executable, "-c", NOTE + program, name], Path("runs") / name, [name], True, after)


def run(jobs: list[Job], **options: object) -> dict[str, Result]:
    chosen = options.pop("chosen", {one.name for one in jobs})
    is_finished = options.pop("is_finished", lambda job: False)
    return Jobs(jobs, chosen, is_finished, **options).run()  # type: ignore[arg-type]


def order() -> list[str]:
    return Path("order").read_text().split() if Path("order").exists() else []


def states(results: dict[str, Result]) -> list[str]:
    return [result.state for result in results.values()]


def until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_jobs_come_after_what_they_need() -> None:
    results = run([job("late", "middle"), job("middle", "early"), job("early", program="time.sleep(0.3)")])
    assert order() == ["early", "middle", "late"]
    assert states(results) == ["done"] * 3
    assert list(results) == ["late", "middle", "early"]
    assert results["early"].seconds > 0.25


def test_a_failure_stops_those_that_need_it_and_no_others() -> None:
    jobs = [job("bad", program="sys.exit('mavil: no shards')"), job("other"), job("next", "bad"), job("last", "next")]
    results = run(jobs)
    assert order() == ["bad", "other"]
    assert states(results) == ["failed", "done", "not started", "not started"]
    assert results["bad"].reason == "exit code 1: mavil: no shards"
    assert results["next"].reason == "needs bad"
    assert results["last"].reason == "needs next"
    assert "mavil: no shards" in Path("runs/bad", LOG).read_text()


def test_a_signal_and_a_folder_that_cannot_be_made_are_failures() -> None:
    Path("runs").mkdir()
    Path("runs/file").touch()
    results = run([job("killed", program="import os; os.kill(os.getpid(), 9)"), job("file")])
    assert results["killed"].reason.startswith("killed by SIGKILL: ")
    assert results["file"].reason == "runs/file cannot be written: File exists"


def test_what_is_finished_is_left_out_and_asked_once_after_what_it_needs() -> None:
    asked = []

    def is_finished(job: Job) -> bool:
        asked.append(job.name)
        return job.name == "b"

    results = run(
        [job("a", program="time.sleep(0.3)"), job("b", "a"), job("c", "b"), job("d")], is_finished=is_finished
    )
    assert order() == ["a", "c", "d"]
    assert states(results) == ["done", "finished before", "done", "done"]
    assert sorted(asked) == ["a", "b", "c", "d"]
    assert asked.index("a") < asked.index("b")


def test_what_was_not_chosen_counts_if_it_is_finished() -> None:
    jobs = [job("a"), job("b", "a"), job("c"), job("d", "c")]
    results = run(jobs, chosen={"b", "d"}, is_finished=lambda job: job.name == "a")
    assert order() == ["b"]
    assert states(results) == ["finished before", "done", "not started", "not started"]
    assert [results[name].reason for name in "cd"] == ["not chosen", "needs c"]


def test_so_many_run_at_the_same_time_and_no_more() -> None:
    most: list[int] = []
    jobs = [job(str(i), program="time.sleep(0.3)") for i in range(5)]
    run(jobs, num_parallel=2, show=lambda running, results: most.append(len(running)))
    assert max(most) == 2
    assert run([job("x")])["x"].state == "done"  # one by default
    assert len(order()) == 6


WAITS = (
    "import signal; signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), open('saved', 'w'), sys.exit(75))); "
    "open('ready', 'w'); time.sleep(60)"
)


def test_a_request_to_stop_reaches_what_runs_is_waited_for_and_nothing_else_begins() -> None:
    jobs = [job("a", program=WAITS), job("b", "a"), job("c")]
    results = run(jobs, is_stopping=Path("ready").exists)
    assert states(results) == ["stopped", "not started", "not started"]
    assert Path("saved").exists()
    assert results["b"].reason == "needs a"
    assert results["c"].reason == "stopped before it began"
    assert order() == ["a"]


def test_a_training_that_somebody_else_stopped_has_not_failed() -> None:
    assert states(run([job("a", program="sys.exit(75)"), job("b", "a")])) == ["stopped", "not started"]


def test_an_error_in_the_runner_leaves_no_process_behind() -> None:
    def show(running: object, results: object) -> None:
        if Path("ready").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run([job("a", program="open('ready', 'w'); time.sleep(1); open('late', 'w')")], show=show)
    time.sleep(1.2)
    assert not Path("late").exists()


def test_whoever_kills_the_runner_stops_its_jobs() -> None:
    program = (
        "import sys; from pathlib import Path; from mavil.pipelines.jobs import Job; from mavil.pipelines.running import Jobs; "
        f"job = Job('a', 'a', [sys.executable, '-c', {'import sys, time; ' + WAITS!r}], Path('runs/a'), [], True); "
        "Jobs([job], {'a'}, lambda job: False).run()"
    )
    runner = subprocess.Popen([sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {program}"])
    until(Path("ready").exists)
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    until(Path("saved").exists)


def test_commands_of_stages_are_those_a_person_would_type() -> None:
    stages = [
        Stage("a", [Point(Path("r/0"), ["x.yaml", "seed=0"], "seed=0")], True, Path("r"), is_sweep=True),
        Stage("b", [Point(Path("b"), ["evaluate", "r/0"])], False, Path("b"), depends_on=["a"]),
    ]
    a, b = jobs_of(stages)
    assert a.command == [sys.executable, "-m", "mavil", "train", "x.yaml", "seed=0", "--out", "r/0", "--resume"]
    assert b.command == [sys.executable, "-m", "mavil", "evaluate", "r/0"]
    assert b.after == ("a seed=0",)
    a, b = jobs_of(stages, ranks=4)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]
    assert a.command[1:7] == [*launcher, "-m", "mavil"]
    assert "torch.distributed.run" not in b.command


def test_a_command_is_finished_until_it_or_what_it_reads_changes() -> None:
    before = Job("t", "t", [], Path("t"), [], True)
    manifest = Path("t/checkpoints/step_00000004/manifest.json")
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    command = Job("e", "e", [], Path("e"), ["evaluate", "t"], False)
    command.run.mkdir()
    assert not is_marked_finished(command, [before])
    mark_finished(command, [before])
    assert is_marked_finished(command, [before])
    assert not is_marked_finished(Job("e", "e", [], Path("e"), ["evaluate", "t", "s"], False), [before])
    manifest.write_text('{"sha256": "another one"}')
    assert not is_marked_finished(command, [before])


def test_the_step_of_a_run_is_that_of_its_last_whole_line() -> None:
    assert step_reached(Path("nowhere")) is None
    Path("metrics.jsonl").write_text('{"step": 1}\n{"step": 20}\n{"ste')
    assert step_reached(Path()) == 20
