"""``mavil hear evaluate`` from task folders to its table, with a model of a few sine waves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from mavil.commands.hear_evaluate import evaluate
from mavil.evaluation.hear import predictor
from mavil.structs import UserError
from tests.evaluation.hear.task_folders import event_task, scene_task, tone, write_wav

MODULE = "tests.evaluation.hear.tone_model"


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor, "HIDDEN_WIDTH", 32)


def run(tmp_path: Path, *arguments: str, checkpoint: str = "1") -> Result:
    app = typer.Typer()
    app.command()(evaluate)
    places = ("--tasks", str(tmp_path / "tasks"), "--out", str(tmp_path / "out"), "--device", "cpu")
    return CliRunner().invoke(app, [checkpoint, *places, "--module", MODULE, "--grid-points", "1", *arguments])


def test_all_tasks_to_a_table_and_again_without_work(tmp_path: Path) -> None:
    scene_task(tmp_path / "tasks" / "esc50-v1-full", rates=(48000,), clips=4)
    event_task(tmp_path / "tasks" / "events-v1-full")
    done = run(tmp_path, "--seeds", "2")
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["tasks"]) == ["esc50-v1-full", "events-v1-full"]
    assert results["tasks"]["esc50-v1-full"]["anchors"]["PaSST base"] == 0.947
    assert results["tasks"]["esc50-v1-full"]["over_seeds"] is not None
    assert results["settings"] == {"grid": "default", "grid_points": 1, "shuffle": True, "seeds": 2}
    assert "| esc50-v1-full | top1_acc |" in (tmp_path / "out" / "results.md").read_text()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("fits/**/*.json")}
    assert len(before) == 2 * (3 + 1)
    assert run(tmp_path, "--seeds", "2").exit_code == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("fits/**/*.json")}
    with pytest.raises(UserError, match=r"out holds results of another model \(1\): choose another folder with --out"):
        raise run(tmp_path, checkpoint="1.001").exception  # type: ignore[misc]


def test_one_task_that_fails_does_not_take_the_others_along(tmp_path: Path) -> None:
    first = scene_task(tmp_path / "tasks" / "first", clips=4)
    scene_task(tmp_path / "tasks" / "second", clips=4)
    write_wav(first / "16000" / "fold01" / "1_0.wav", tone(500.0, 0.05, 16000), 16000)
    done = run(tmp_path)
    assert done.exit_code == 4, done.output
    tasks = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]
    assert "1_0.wav: 800 samples are shorter" in tasks["first"]["error"]
    assert tasks["first"]["score"] is None
    assert tasks["second"]["score"] is not None


def test_damaged_folders_are_all_told_before_anything_is_done(tmp_path: Path) -> None:
    for name in ("first", "second", "third"):
        scene_task(tmp_path / "tasks" / name, clips=4)
    (tmp_path / "tasks" / "first" / "fold00.json").unlink()
    (tmp_path / "tasks" / "third" / "16000" / "fold02" / "2_1.wav").unlink()
    error = run(tmp_path).exception
    assert isinstance(error, UserError)
    assert "fold00.json: cannot be read" in str(error)
    assert "1 more" in str(error)
    assert "2_1.wav" in str(error)
    assert not (tmp_path / "out").exists()
    assert run(tmp_path, "--task", "second").exit_code == 0
