"""``mavil pipeline`` from outside: order, what is left out the second time, failures, Ctrl-C. Its children are stand-ins."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mavil.commands import pipeline
from mavil.config import Recipe
from tests.commands.conftest import Outcome

Mavil = Callable[..., Outcome]

CHILD = """
import json, os, signal, sys, time
from pathlib import Path
verb, *rest = sys.argv[1:]
with open("order", "a") as file:
    file.write(" ".join([verb, *rest]) + "\\n")
if verb == "train":
    run = Path(rest[rest.index("--out") + 1])
    stops = []
    signal.signal(signal.SIGTERM, lambda *_: stops.append(1))
    signal.signal(signal.SIGINT, lambda *_: stops.append(1))
    if (run / "bad").exists():
        sys.exit("mavil: there is something wrong")
    for step in range(len(list(run.glob("step_*"))), int(os.environ.get("STEPS", "2"))):
        (run / f"step_{step}").touch()
        (run / "metrics.jsonl").write_text(json.dumps({"step": step}) + "\\n")
        time.sleep(0.1)
        if stops:
            sys.exit(75)
    (run / "complete").touch()
"""
FILE = """
out: there
changes: {data.train: shards}
stages:
  look: {command: "evaluate {stage2} 'my shards'", depends_on: stage2}
  stage1: {recipe: a.yaml}
  stage2: {recipe: a.yaml, depends_on: stage1, changes: {task.teacher.run: "{stage1}"}}
  stage3: {recipe: a.yaml, depends_on: stage2, changes: {task.teacher.run: "{stage2}", task.weights: "{stage1}"}}
  alone: {recipe: a.yaml}
"""


@pytest.fixture(autouse=True)
def _desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder where ``python -m mavil`` is a stand-in, and a run is finished when that says so."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    Path("mavil").mkdir()
    Path("mavil/__init__.py").touch()
    Path("mavil/__main__.py").write_text(CHILD)
    Path("a.yaml").write_text("{audio: {}, video: {}}")
    Path("p.yaml").write_text(FILE)

    def is_finished(run: Path, recipe: Recipe) -> bool:
        assert recipe.data.train == "shards"
        return (run / "complete").exists()

    monkeypatch.setattr(pipeline, "is_finished", is_finished)


def order() -> list[str]:
    """What was started, by the last part of its folder or its verb."""
    lines = Path("order").read_text().splitlines() if Path("order").exists() else []
    Path("order").unlink(missing_ok=True)
    return [re.sub(r".*--out there/(\w+) --resume", r"\1", line) for line in lines]


def test_stages_run_in_order_and_a_second_time_nothing_does(mavil: Mavil) -> None:
    first = mavil("pipeline", "p.yaml")
    assert first.code == 0, first.out + first.err
    assert order() == ["stage1", "stage2", "evaluate there/stage2 my shards", "stage3", "alone"]
    log = Path("there/stage3/pipeline.log").read_text()
    command = (
        "-m mavil train a.yaml data.train=shards task.teacher.run=there/stage2 task.weights=there/stage1 name=stage3"
    )
    assert f"{command} --out there/stage3 --resume\n" in log
    second = mavil("pipeline", "p.yaml")
    assert (second.code, order()) == (0, [])
    assert second.out.count("finished before") == 10  # a line and a row of each
    Path("there/alone/complete").unlink()
    assert (mavil("pipeline", "p.yaml").code, order()) == (0, ["alone"])


def test_a_failure_stops_what_needs_it_and_the_exit_code_says_so(mavil: Mavil) -> None:
    Path("there/stage2").mkdir(parents=True)
    Path("there/stage2/bad").touch()
    outcome = mavil("pipeline", "p.yaml")
    assert outcome.code == 4
    assert order() == ["stage1", "stage2", "alone"]
    rows = {line.split()[1]: line for line in outcome.out.splitlines() if line.startswith("│")}
    assert "exit code 1: mavil: there is something wrong" in rows["stage2"]
    assert "not started" in rows["stage3"]
    assert "needs stage2" in rows["look"]
    Path("there/stage2/bad").unlink()
    assert mavil("pipeline", "p.yaml").code == 0
    assert order()[0] == "stage2"


def test_ctrl_c_reaches_the_stage_and_the_same_command_goes_on(mavil: Mavil, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPS", "100")
    before = signal.getsignal(signal.SIGINT)

    def interrupt() -> None:
        while not Path("there/stage1/step_1").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    person = threading.Thread(target=interrupt)
    person.start()
    outcome = mavil("pipeline", "p.yaml", "--only", "stage1", "--only", "stage2")
    person.join()
    assert outcome.code == 75
    assert "the same command goes on" in outcome.err
    assert signal.getsignal(signal.SIGINT) is before
    reached = len(list(Path("there/stage1").glob("step_*")))
    assert 1 < reached < 100
    assert order() == ["stage1"]
    monkeypatch.setenv("STEPS", str(reached + 2))
    outcome = mavil("pipeline", "p.yaml", "--only", "stage1")
    assert outcome.code == 0, outcome.out
    assert len(list(Path("there/stage1").glob("step_*"))) == reached + 2


def test_only_and_jobs_choose_what_runs(mavil: Mavil) -> None:
    outcome = mavil("pipeline", "p.yaml", "--only", "stage2")
    assert (outcome.code, order()) == (4, [])
    assert "needs stage1" in outcome.out
    outcome = mavil("pipeline", "p.yaml", "--jobs", 2, "--only", "stage1", "--only", "alone")
    assert (outcome.code, sorted(order())) == (0, ["alone", "stage1"])
    lines = outcome.out.splitlines()
    assert next(i for i, line in enumerate(lines) if line.startswith("alone: started")) == 1  # at once


def test_a_dry_run_tells_the_commands_and_runs_none(mavil: Mavil) -> None:
    before = sorted(Path().rglob("*"))
    outcome = mavil("pipeline", "p.yaml", "--dry-run", "--ranks-per-stage", 8, "--only", "stage1", "--out", "other")
    assert outcome.code == 0, outcome.err
    assert "# stage1: to do\n" in outcome.out
    assert "# stage2: not chosen; after stage1\n" in outcome.out
    start = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node=8 -m mavil train a.yaml"
    assert f"\n{start} data.train=shards name=stage1 --out other/stage1 --resume\n" in outcome.out
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            "stages: {x: {recipe: a.yaml, changes: {trainer.devise: cpu}}}",
            (),
            "trainer.devise is not a setting; did you mean",
        ),
        ("stages: {x: {recipe: a.yaml}, y: {recipe: a.yaml, changes: {seed: one}}}", (), "seed = 'one'"),
        ("stages: {x: {recipe: a.yaml, depends_on: z}}", (), "depends on the unknown stage 'z'"),
        ("stages: {stage1: {recipe: a.yaml}}", ("--only", "stage"), "no stage 'stage': did you mean stage1?"),
        ("stages: {", (), "cannot be read as YAML"),
    ],
)
def test_a_mistake_is_one_line_before_anything_starts(
    mavil: Mavil, text: str, options: tuple[str, ...], message: str
) -> None:
    Path("p.yaml").write_text(text)
    outcome = mavil("pipeline", "p.yaml", *options)
    assert (outcome.code, outcome.out, order()) == (2, "", [])
    assert message in outcome.err
    assert outcome.err.count("\n") == 1


def test_a_command_is_repeated_when_what_it_reads_was_trained_anew(mavil: Mavil) -> None:
    assert mavil("pipeline", "p.yaml").code == 0
    order()
    manifest = Path("there/stage2/checkpoints/step_00000001/manifest.json")
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"sha256": "another"}))
    assert mavil("pipeline", "p.yaml").code == 0
    assert order() == ["evaluate there/stage2 my shards"]
