"""Claiming a run folder: never over another run, never on with other settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from mavil.engine.run_folder import CHANGEABLE, start_run
from mavil.recipe import setting_paths
from mavil.structs import UserError
from tests.engine.test_checkpoint import save
from tests.support.ranks import run_in_ranks

RECIPE = "name: x\nfusion: {kind: joint}\noptimizer: {base_lr: 0.1}\ntrainer: {log_every: 20}\n"


def test_a_new_run_gets_its_recipe_and_starts_at_step_0(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "x"
    assert start_run(run, RECIPE, resume=False) is None
    assert (run / "config.yaml").read_text() == RECIPE
    assert [p.name for p in run.iterdir()] == ["config.yaml"]


def test_resume_without_a_run_or_a_checkpoint_starts_at_step_0(tmp_path: Path) -> None:
    assert start_run(tmp_path, RECIPE, resume=True) is None
    assert start_run(tmp_path, RECIPE, resume=True) is None


def test_resume_gives_the_newest_checkpoint(tmp_path: Path) -> None:
    start_run(tmp_path, RECIPE, resume=False)
    save(tmp_path, 3)
    newest = save(tmp_path, 12)
    assert start_run(tmp_path, RECIPE, resume=True) == newest


def test_another_run_is_not_touched(tmp_path: Path) -> None:
    start_run(tmp_path, RECIPE, resume=False)
    with pytest.raises(UserError, match=r"already holds a run \(no checkpoint yet\)"):
        start_run(tmp_path, "name: other\n", resume=False)
    save(tmp_path, 300)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(UserError, match=r"already holds a run \(step 300\): pass --resume .* --out"):
        start_run(tmp_path, "name: other\n", resume=False)
    with pytest.raises(UserError, match="was started with other settings"):
        start_run(tmp_path, "name: other\n", resume=True)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_differing_settings_are_named(tmp_path: Path) -> None:
    start_run(tmp_path, RECIPE, resume=False)
    other = "name: x\nfusion: null\noptimizer: {base_lr: 0.2}\ntrainer: {log_every: 5}\n"
    with pytest.raises(UserError) as caught:
        start_run(tmp_path, other, resume=True)
    message = str(caught.value)
    assert "optimizer.base_lr was 0.1, is 0.2" in message
    assert "fusion.kind was joint, is not set" in message
    assert "log_every" not in message


def test_what_does_not_enter_the_numbers_may_change(tmp_path: Path) -> None:
    start_run(tmp_path, RECIPE, resume=False)
    other = RECIPE.replace("log_every: 20", "log_every: 5")
    start_run(tmp_path, other, resume=True)
    assert (tmp_path / "config.yaml").read_text() == other
    assert set(setting_paths()) >= CHANGEABLE


def test_checkpoints_without_a_recipe_are_not_resumed(tmp_path: Path) -> None:
    save(tmp_path, 3)
    with pytest.raises(UserError, match=r"no config\.yaml"):
        start_run(tmp_path, RECIPE, resume=True)


def test_a_file_in_the_way_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(UserError, match="x"):
        start_run(tmp_path / "x", RECIPE, resume=False)


def _start(run: Path) -> str:
    try:
        return str(start_run(run, "name: other\n", resume=False))
    except UserError as error:
        return str(error)


def test_every_rank_hears_the_same(tmp_path: Path) -> None:
    assert run_in_ranks(_start, tmp_path / "new") == ["None", "None"]
    first, second = run_in_ranks(_start, tmp_path / "new")
    assert "already holds a run" in first
    assert first == second
