"""Training on a real SLURM, two nodes with two ranks each: whatever happens to the job, its losses are those of a quiet one.

``mavil train`` is the real one here. A start costs seconds of imports for each of four processes, so one run bears most of
what can happen, one thing after another.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import yaml

from mavil.data.synthetic import make_synthetic_shards
from mavil.recipe import dump_recipe
from tests.slurm.conftest import Desk, own_environment, rank_processes, until
from tests.support.recipes import tiny_recipe
from tools.slurm_sandbox.configuration import KILL_WAIT_SECONDS
from tools.slurm_sandbox.sandbox import kill_node, start_node

STEPS, EVERY = 60, 12
RANKS = ("--nodes", 2, "--tasks-per-node", 2, "--time", 20, "--signal-seconds", 60)
PATIENCE = 300.0
"""Seconds for a start of four processes and some steps, on a machine that has other things to do."""


@pytest.fixture(scope="module")
def trainer(sandbox: Path, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A folder with a recipe and shards, and the real mavil."""
    folder = tmp_path_factory.mktemp("training")
    make_synthetic_shards(24, folder / "train", clips_per_shard=6, show_progress=False)
    recipe = tiny_recipe(
        name="tiny",
        data={"train": "train", "num_workers": 0, "cache_gib": 0.5},
        schedule={"length": f"{STEPS} steps", "warmup": "1 step"},
        optimizer={"base_lr": 0.02},
        trainer={
            "device_batch": 2,
            "device": "cpu",
            "num_threads": 1,
            "checkpoint_every": f"{EVERY} steps",
            "keep_checkpoints": 20,
            "log_every": 1,
        },
    )
    (folder / "tiny.yaml").write_text(yaml.safe_dump(yaml.safe_load(dump_recipe(recipe))))
    return Desk(folder, own_environment(SLURM_CONF=str(sandbox / "slurm.conf")))


@pytest.fixture(scope="module")
def quiet(trainer: Desk) -> dict[int, dict[str, float]]:
    """Metrics of a run that nothing happens to."""
    (job,) = trainer.submit("tiny.yaml", "--out", "quiet", *RANKS, timeout=PATIENCE).jobs
    assert trainer.wait(job, timeout=PATIENCE)[job] == "COMPLETED", trainer.logs()
    assert [line["verdict"] for line in trainer.history("quiet", job)] == ["done"]
    metrics = trainer.metrics("quiet")
    assert list(metrics) == list(range(1, STEPS + 1))
    return metrics


def start(trainer: Desk, run: str, *options: object) -> str:
    (job,) = trainer.submit("tiny.yaml", "--out", run, "--no-check", *RANKS, *options).jobs
    return job


def wait_for_start(trainer: Desk, run: str, job: str, restart: int) -> None:
    """Until the job has begun for the ``restart``-th time and has done a step there."""
    words = f"start {restart}:"
    log = trainer.folder / run / "slurm" / f"{job}_0_log.out"
    until(lambda: log.exists() and words in log.read_text(), PATIENCE, trainer.logs)
    before = max(trainer.steps(run), default=0)
    until(lambda: max(trainer.steps(run), default=0) > before + 3, PATIENCE, trainer.logs)


@pytest.mark.slow  # more than two minutes, nearly all of it SLURM's own waits
def test_preempted_requeued_and_a_rank_killed(trainer: Desk, quiet: dict[int, dict[str, float]]) -> None:
    job = start(trainer, "busy")

    trainer.wait_for_step("busy", 4, PATIENCE)
    trainer.slurm("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    until(lambda: trainer.history("busy", job) != [], PATIENCE, trainer.logs)
    first = trainer.history("busy", job)[0]
    assert (first["verdict"], first["is_preempted"]) == ("stopped", True), trainer.logs()
    assert first["action"] == "requeued"
    # One checkpoint was written for it, of the last step that was done.
    last = trainer.steps("busy")[-1]
    assert first["newest"] == f"step_{last:08d}"
    assert [step for step in trainer.checkpoints("busy") if step % EVERY] in ([last], [])

    wait_for_start(trainer, "busy", job, 1)
    trainer.slurm("scontrol", "requeue", job)
    # What was saved in the seconds before SLURM kills counts; a slow machine's batch script may not come to say so.

    wait_for_start(trainer, "busy", job, 2)
    ranks = rank_processes(job)
    assert sorted(ranks) == [0, 1, 2, 3]
    os.kill(ranks[3], signal.SIGKILL)
    killed_at = time.monotonic()
    until(lambda: not any(Path(f"/proc/{process}").exists() for process in ranks.values()), 60, trainer.logs)
    assert time.monotonic() - killed_at < KILL_WAIT_SECONDS + 15  # SLURM's own wait, and a slow machine's
    until(lambda: trainer.history("busy", job)[-1]["restart"] == 2, PATIENCE, trainer.logs)
    third = next(line for line in trainer.history("busy", job) if line["restart"] == 2)
    assert (third["verdict"], third["action"]) == ("crashed", "requeued"), trainer.logs()

    assert trainer.wait(job, timeout=PATIENCE)[job] == "COMPLETED", trainer.logs()
    assert trainer.metrics("busy") == quiet
    assert trainer.submit("status", "busy").out.splitlines()[1].split()[:5] == [
        job,
        "tiny",
        "COMPLETED",
        str(STEPS),
        "3",
    ]


def test_mistakes_are_found_before_anything_is_queued(trainer: Desk) -> None:
    answer = trainer.submit("tiny.yaml", "data.train=nowhere", "--out", "never", *RANKS)
    assert answer.code == 2
    assert answer.err.startswith("submit: tiny: ")
    assert "nowhere" in answer.err
    assert answer.err.count("\n") == 1
    assert not (trainer.folder / "never").exists()


@pytest.mark.slow
def test_stopped_before_its_time_limit(trainer: Desk, quiet: dict[int, dict[str, float]]) -> None:
    job = start(trainer, "limited")
    trainer.wait_for_step("limited", 4, PATIENCE)
    # Not less than what has passed: SLURM would end the job at once.
    minutes = trainer.slurm("squeue", "-h", "-j", job, "-o", "%M").strip().split(":")[-2]
    trainer.slurm("scontrol", "update", f"JobId={job}", f"TimeLimit={int(minutes) + 2}")
    until(lambda: trainer.history("limited", job) != [], PATIENCE, trainer.logs)
    first = trainer.history("limited", job)[0]
    if first["verdict"] == "stopped":  # a fast machine may be done before the signal comes
        assert (first["action"], first["is_preempted"]) == ("requeued", False)
        assert int(first["newest"][5:]) > 0
        trainer.slurm("scontrol", "update", f"JobId={job}", "TimeLimit=20")
    assert trainer.wait(job, timeout=PATIENCE)[job] == "COMPLETED", trainer.logs()
    assert trainer.metrics("limited") == quiet


@pytest.mark.slow
def test_a_node_dies(trainer: Desk, sandbox: Path, quiet: dict[int, dict[str, float]]) -> None:
    job = start(trainer, "bereft")
    trainer.wait_for_step("bereft", EVERY + 2, PATIENCE)
    ranks = rank_processes(job)
    assert kill_node(sandbox, "127.0.0.2") >= 4
    # The ranks of the other node end although nobody tells them to.
    until(lambda: not any(Path(f"/proc/{process}").exists() for process in ranks.values()), 90, trainer.logs)
    until(lambda: trainer.states()[job] == "PENDING", 120, trainer.logs)
    start_node(sandbox, "127.0.0.2")
    assert trainer.wait(job, timeout=PATIENCE)[job] == "COMPLETED", trainer.logs()
    assert trainer.metrics("bereft") == quiet
