"""Whether a run has anything left to do, from what lies in its folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mavil.commands.finished import is_finished, num_steps
from mavil.config import Recipe
from mavil.engine.checkpoints.folder import FORMAT, sealed
from mavil.recipe import change_recipe, dump_recipe
from tests.support.recipes import tiny_recipe

STEPS = 4
RANKS = 2


@pytest.fixture
def recipe(shards: Path) -> Recipe:
    data = {"train": str(shards / "train"), "evaluation": str(shards / "gallery")}
    return tiny_recipe(data=data, schedule={"length": f"{STEPS} steps"}, trainer={"device_batch": 4})


@pytest.fixture
def run(tmp_path: Path, recipe: Recipe) -> Path:
    """What a finished run leaves behind."""
    return leave_run(tmp_path / "run", recipe, STEPS)


def leave_run(folder: Path, recipe: Recipe, step: int) -> Path:
    """What a run that has come to a step leaves behind, as far as it matters here."""
    checkpoint = folder / "checkpoints" / f"step_{step:08d}"
    checkpoint.mkdir(parents=True)
    manifest = sealed({"format": FORMAT, "step": step, "ranks": RANKS, "files": {}})
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    (folder / "config.yaml").write_text(dump_recipe(change_recipe(recipe, "audio.mean=-3", "audio.std=2")))
    line = {"step": step, "metrics": {"evaluation/recall": 1.0}, "conditions": {}}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    return folder


def test_a_run_at_its_last_step_with_its_evaluation_is_finished(run: Path, recipe: Recipe) -> None:
    assert is_finished(run, recipe)
    assert is_finished(run, change_recipe(recipe, "trainer.log_every=7"))  # which a run may change


def test_a_run_that_was_stopped_before_its_last_step_is_not(tmp_path: Path, recipe: Recipe) -> None:
    assert not is_finished(leave_run(tmp_path / "stopped", recipe, STEPS - 1), recipe)


@pytest.mark.parametrize("change", ["schedule.length=5 steps", "optimizer.base_lr=0.5", "seed=3"])
def test_a_run_of_other_settings_is_not(run: Path, recipe: Recipe, change: str) -> None:
    assert not is_finished(run, change_recipe(recipe, change))


def test_a_run_that_lacks_its_evaluation_is_not(run: Path, recipe: Recipe) -> None:
    (run / "metrics.jsonl").write_text("")
    assert not is_finished(run, recipe)
    assert is_finished(run, change_recipe(recipe, "data.evaluation=null"))


def test_a_run_that_cannot_be_read_is_not(run: Path, recipe: Recipe, tmp_path: Path) -> None:
    assert not is_finished(tmp_path / "nowhere", recipe)
    manifest = run / "checkpoints" / f"step_{STEPS:08d}" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"ranks": {RANKS}', '"ranks": 3'))
    assert not is_finished(run, recipe)
    (run / "config.yaml").unlink()
    assert not is_finished(run, recipe)


def test_epochs_are_counted_on_the_shards_with_the_ranks_of_the_run(run: Path, recipe: Recipe) -> None:
    epochs = change_recipe(recipe, "schedule.length=2 epochs")
    # 24 clips, twice, in batches of 4 on each rank
    assert (num_steps(epochs, 1), num_steps(epochs, RANKS)) == (12, 6)
