"""``mavil pipeline`` and ``mavil ablate`` with real trainings as children: slow, for each imports torch anew."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mavil.engine.metrics.tracker import read_metrics
from tests.commands.conftest import Outcome

Mavil = Callable[..., Outcome]
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def test_three_stages_stopped_half_way_and_gone_on(mavil: Mavil, recipe: Callable[..., Path], tmp_path: Path) -> None:
    recipe("tiny", steps=300)
    (tmp_path / "p.yaml").write_text(
        """
        stages:
          stage1: {recipe: tiny.yaml}
          stage2: {recipe: tiny.yaml, depends_on: stage1, changes: {schedule.length: 3 steps, task.teacher.run: "{stage1}"}}
          stage3: {recipe: tiny.yaml, depends_on: stage2, changes: {schedule.length: 3 steps, task.teacher.run: "{stage2}"}}
          find: {command: "retrieve {stage3}", depends_on: stage3}
        """
    )
    run = Path("runs/stage1")

    def interrupt() -> None:
        while len(read_metrics(run)) < 5:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    person = threading.Thread(target=interrupt)
    person.start()
    stopped = mavil("pipeline", "p.yaml")
    person.join()
    assert stopped.code == 75, stopped.out
    reached = read_metrics(run)[-1]["step"]
    assert 5 <= reached < 300
    assert (run / f"checkpoints/step_{reached:08d}").is_dir()
    done = mavil("pipeline", "p.yaml")
    assert done.code == 0, done.out
    assert [line["step"] for line in read_metrics(run) if "loss/total" in line["metrics"]] == list(range(1, 301))
    assert "runs/stage2" in Path("runs/stage3/config.yaml").read_text()
    assert Path("runs/stage3/retrieval/retrieval.json").is_file()
    again = mavil("pipeline", "p.yaml")
    assert (again.code, again.out.count("finished before")) == (0, 8)


def test_an_ablation_with_a_teacher_from_the_same_seed(
    mavil: Mavil, recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe("tiny", steps=3)
    (tmp_path / "f.yaml").write_text(
        """
        recipe: tiny.yaml
        out: there
        seeds: [1]
        variants:
          stage2: {changes: {task.teacher.run: "{base}", task.contrast: null}}
          base: {}
        baseline: base
        measure: {probes: [label]}
        """
    )
    outcome = mavil("ablate", "f.yaml", "--jobs", 2)
    assert outcome.code == 0, outcome.out + outcome.err
    rows = {row["variant"]: row for row in json.loads(Path("there/table.json").read_text())["rows"]}
    assert rows["stage2"]["runs"] == {"1": "finished"}
    measures = {name: row["measures"] for name, row in rows.items()}
    name = "cost/G multiply-adds per clip"
    assert measures["stage2"][name]["difference"] == pytest.approx(
        measures["stage2"][name]["mean"] - measures["base"][name]["mean"]
    )
    assert measures["stage2"]["probe/label/both"]["pairs"] == 1
    assert "there/base/seed_1" in Path("there/stage2/seed_1/config.yaml").read_text()
    before = {path: path.stat().st_mtime_ns for path in Path("there").rglob("pipeline.log")}
    assert len(before) == 2
    again = mavil("ablate", "f.yaml")
    assert again.code == 0
    assert {path: path.stat().st_mtime_ns for path in Path("there").rglob("pipeline.log")} == before
