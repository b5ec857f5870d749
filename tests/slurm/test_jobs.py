"""Jobs on a real SLURM, with a stand-in for mavil: what becomes of them, arrays, pipelines, status and cancel.

All jobs of this file are submitted together and looked at one by one: what they take is mostly waiting.
"""

from __future__ import annotations

import json

import pytest

from tests.slurm.conftest import Desk, processes_with, until

TWO_RANKS = ("--nodes", 2, "--time", 5, "--signal-seconds", 30)
PIPELINE = """
name: demo
out: pipe
resources: {nodes: 1, time: 00:05:00, signal_seconds: 30}
changes: {seconds: 0.02}
stages:
  evaluate: {command: "evaluate {stage1} here", depends_on: stage1}
  stage1: {recipe: tiny.yaml, changes: {steps: 8}}
  tune:
    recipe: tiny.yaml
    depends_on: [stage1]
    changes: {task.weights: "{stage1}"}
    sweep: {optimizer.base_lr: [1e-4, 2e-4], seed: [0, 1]}
  broken: {recipe: tiny.yaml, depends_on: tune, changes: {seconds: 0.3, exit_at: 2, exit: 2}, resources: {nodes: 2}}
  never: {recipe: tiny.yaml, depends_on: broken}
"""


@pytest.fixture(scope="module")
def jobs(desk: Desk) -> dict[str, str]:
    """Job number by run folder; all have ended."""
    found: dict[str, str] = {}

    def submit(run: str, *settings: object, options: tuple[object, ...] = TWO_RANKS) -> None:
        (found[run],) = desk.submit("tiny.yaml", *settings, "--out", run, "--no-check", *options).jobs

    submit("well")
    submit("refused", "exit_at=3", "exit=2", "steps=300")  # on a busy machine one rank is seconds behind the other
    submit("crashed_once", "die_at=8", "once=1")
    submit("crash_loop", "die_at=2", "checkpointless=1", options=(*TWO_RANKS, "--max-restarts", 1))
    submit("requeued", "steps=150")
    (desk.folder / "p.yaml").write_text(PIPELINE)
    answer = desk.submit("p.yaml")
    for line in answer.out.splitlines():
        found[line.split("run ")[1].split(",")[0]] = line.split(" ")[0]
    desk.wait_for_step("requeued", 10)
    desk.slurm("scontrol", "requeue", found["requeued"])
    states = desk.wait(*found.values())
    (desk.folder / "states.json").write_text(json.dumps(states))
    return found


def state(desk: Desk, job: str) -> str:
    return str(json.loads((desk.folder / "states.json").read_text())[job])


def test_a_job_ends_well_and_its_logs_lie_in_its_run(desk: Desk, jobs: dict[str, str]) -> None:
    job = jobs["well"]
    assert state(desk, job) == "COMPLETED"
    assert desk.steps("well") == list(range(1, 11))
    logs = desk.folder / "well" / "slurm"
    assert {f"{job}_0_log.out", f"{job}_1_log.out", f"{job}_batch.out"} <= {path.name for path in logs.iterdir()}
    assert "rank 0 of 2, start 0" in (logs / f"{job}_0_log.out").read_text()
    assert [line["verdict"] for line in desk.history("well", job)] == ["done"]


def test_a_mistake_of_one_rank_fails_the_job_at_once(desk: Desk, jobs: dict[str, str]) -> None:
    job = jobs["refused"]
    assert state(desk, job) == "FAILED"
    assert [(line["verdict"], line["code"]) for line in desk.history("refused", job)] == [("refused", 2)]


def test_after_a_crash_the_job_goes_on_from_the_checkpoint(desk: Desk, jobs: dict[str, str]) -> None:
    job = jobs["crashed_once"]
    assert state(desk, job) == "COMPLETED"
    first, second = desk.history("crashed_once", job)
    assert (first["verdict"], first["action"], second["verdict"]) == ("crashed", "requeued", "done")
    # Step 8 was never reached by both; what rank 0 did alone after its last checkpoint came again.
    steps = desk.steps("crashed_once")
    assert steps[-1] == 10
    assert sorted(set(steps)) == list(range(1, 11))
    log = (desk.folder / f"crashed_once/slurm/{job}_1_log.out").read_text()
    assert "rank 1: the command ended with -9" in log


def test_a_job_that_gains_nothing_is_given_up(desk: Desk, jobs: dict[str, str]) -> None:
    job = jobs["crash_loop"]
    assert state(desk, job) == "FAILED"
    history = desk.history("crash_loop", job)
    assert [line["verdict"] for line in history] == ["crashed"] * len(history)
    assert history[-1]["action"] == "not requeued: 2 starts in a row without a new checkpoint"


def test_requeued_by_hand_it_saves_first_and_goes_on_there(desk: Desk, jobs: dict[str, str]) -> None:
    job = jobs["requeued"]
    assert state(desk, job) == "COMPLETED"
    assert desk.steps("requeued") == list(range(1, 151))
    first, second = desk.history("requeued", job)
    assert (first["verdict"], second["restart"]) == ("stopped", 1)
    # SLURM was doing it: a second request would have taken the job off its nodes again.
    assert first["action"].startswith("left to SLURM")


@pytest.mark.slow
def test_before_its_time_limit_it_saves_and_requeues_itself(desk: Desk) -> None:
    # The signal comes within the first 60 s before the time it was asked for: SLURM looks once in a while.
    options = ("--out", "limit", "--no-check", "--nodes", 2, "--time", 1, "--signal-seconds", 45)
    (job,) = desk.submit("tiny.yaml", "steps=600", *options).jobs
    assert desk.wait(job)[job] == "COMPLETED"
    assert desk.steps("limit") == list(range(1, 601))
    history = desk.history("limit", job)
    assert len(history) >= 2
    assert {(line["verdict"], line["action"]) for line in history[:-1]} == {("stopped", "requeued")}
    assert history[-1]["verdict"] == "done"


def test_stages_run_in_order_and_a_failed_one_takes_the_later_ones_away(desk: Desk, jobs: dict[str, str]) -> None:
    assert state(desk, jobs["pipe/evaluate"]) == "COMPLETED"
    log = next((desk.folder / "pipe/evaluate/slurm").glob("*_0_log.out")).read_text()
    assert "ran evaluate pipe/stage1 here" in log
    assert state(desk, jobs["pipe/broken"]) == "FAILED"
    assert state(desk, jobs["pipe/never"]) == "CANCELLED"
    times = {
        name: desk.history(f"pipe/{name}", jobs[f"pipe/{name}"])[-1]["time"]
        for name in ("stage1", "evaluate", "tune/base_lr_1e-4-seed_0", "tune/base_lr_2e-4-seed_1", "broken")
    }
    assert times["stage1"] < times["evaluate"]
    assert times["stage1"] < times["tune/base_lr_1e-4-seed_0"] < times["broken"]
    assert times["tune/base_lr_2e-4-seed_1"] < times["broken"]


def test_a_sweep_is_an_array_with_a_run_folder_for_each_combination(desk: Desk, jobs: dict[str, str]) -> None:
    sweep = {run: job for run, job in jobs.items() if run.startswith("pipe/tune/")}
    assert [job.partition("_")[2] for job in sweep.values()] == ["0", "1", "2", "3"]
    assert len({job.partition("_")[0] for job in sweep.values()}) == 1
    for run, job in sweep.items():
        assert state(desk, job) == "COMPLETED"
        assert desk.steps(run) == list(range(1, 11))
        lr, seed = run.removeprefix("pipe/tune/base_lr_").split("-seed_")
        log = (desk.folder / run / "slurm" / f"{job}_0_log.out").read_text()
        assert f"optimizer.base_lr={lr} seed={seed} name=tune-base_lr_{lr}-seed_{seed} --out {run} --resume" in log
        assert "task.weights=pipe/stage1" in log


def test_status_shows_everything_a_run_or_a_job(desk: Desk, jobs: dict[str, str]) -> None:
    shown = desk.submit("status").out.splitlines()
    assert len(shown) == 1 + len(jobs)
    line = next(line for line in shown if line.startswith(f"{jobs['requeued']} "))
    assert line.split()[:5] == [jobs["requeued"], "tiny", "COMPLETED", "150", "1"]
    assert f"requeued/slurm/{jobs['requeued']}_0_log.out" in line
    refused = desk.submit("status", "refused").out.splitlines()[1]
    assert "FAILED" in refused
    assert refused.endswith("refused (2): ended")
    array = jobs["pipe/tune/base_lr_1e-4-seed_0"].partition("_")[0]
    assert len(desk.submit("status", array).out.splitlines()) == 5
    assert "DependencyNeverSatisfied" in desk.submit("status", "pipe/never").out


def test_what_slurm_has_forgotten_is_read_from_the_run(desk: Desk, jobs: dict[str, str]) -> None:
    path = desk.folder / "runs/.submitted.jsonl"
    before = path.read_text()
    for run in ("well", "refused"):
        logs = desk.folder / run / "slurm"
        for file in (path, logs / "submitted.jsonl"):
            file.write_text(file.read_text().replace(f'"job": "{jobs[run]}"', f'"job": "9{jobs[run]}"'))
        for file in logs.glob(f"{jobs[run]}.*"):
            file.rename(logs / f"9{file.name}")
    assert "COMPLETED" in desk.submit("status", "well").out
    assert "FAILED" in desk.submit("status", "refused").out
    path.write_text(before)


def test_slurms_refusal_is_one_line_and_nothing_is_recorded(desk: Desk, jobs: dict[str, str]) -> None:
    before = (desk.folder / "runs/.submitted.jsonl").read_text()
    answer = desk.submit("tiny.yaml", "--out", "new/run", "--partition", "nowhere", "--no-check")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err == (
        "submit: SLURM refuses: invalid partition specified: nowhere; Batch job submission failed: Invalid partition name "
        "specified. The partitions here are high, main\n"
    )
    no_gpus = desk.submit("tiny.yaml", "--out", "new/run", "--gpus-per-node", 1, "--no-check")
    assert (no_gpus.code, no_gpus.err.count("\n")) == (2, 1)
    assert "Invalid generic resource (gres) specification" in no_gpus.err
    assert not (desk.folder / "new").exists()
    # A later stage that is refused takes the earlier ones with it.
    (desk.folder / "q.yaml").write_text(
        "{out: new, stages: {a: {recipe: tiny.yaml, changes: {steps: 900}},"
        " b: {recipe: tiny.yaml, depends_on: a, resources: {partition: nowhere}}}}"
    )
    answer = desk.submit("q.yaml", "--no-check")
    assert answer.code == 2
    assert "(stage b; a were cancelled again)" in answer.err
    (desk.folder / "runs/.submitted.jsonl").write_text(before)


def test_cancel_takes_what_waits_for_it_as_well(desk: Desk) -> None:
    (desk.folder / "c.yaml").write_text(
        "{out: cancelled, resources: {nodes: 2}, stages: {a: {recipe: tiny.yaml, changes: {steps: 900}},"
        " b: {recipe: tiny.yaml, depends_on: a, sweep: {seed: [0, 1]}}, c: {recipe: tiny.yaml, depends_on: b},"
        " d: {recipe: tiny.yaml, changes: {steps: 900}}}}"
    )
    numbers = desk.submit("c.yaml", "--no-check").jobs
    desk.wait_for_step("cancelled/a", 1)
    waiting = desk.submit("status", "cancelled/c").out.splitlines()[1]
    assert "PENDING" in waiting
    assert waiting.endswith("Dependency")
    cancelled = desk.submit("cancel", "cancelled/a")
    assert [line.split()[1] for line in cancelled.out.splitlines()] == [numbers[0], *numbers[1:3], numbers[3]]
    states = desk.wait(*numbers[:4])
    assert set(states.values()) == {"CANCELLED"}
    until(lambda: not processes_with("cancelled/a"), 20)
    assert desk.states()[numbers[4]] == "RUNNING"
    # It was told to stop and saved, but it is over.
    assert [line["action"] for line in desk.history("cancelled/a", numbers[0])] in (
        [],
        ["left to SLURM, for which the job is COMPLETING"],
        ["left to SLURM, for which the job is CANCELLED"],
    )
    assert desk.submit("cancel", "cancelled").out.split()[1] == numbers[4]
