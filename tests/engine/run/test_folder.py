"""Taking a run folder into use: never over another run, never on with other settings unless forced, seen by every rank."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mavil.engine.run import folder as run_folder
from mavil.engine.run.folder import CHANGEABLE, compare, start_run
from mavil.recipe import dump_recipe, load_recipe, setting_paths
from mavil.structs import UserError
from tests.engine.checkpoints.test_reading import save
from tests.support.ranks import run_in_ranks

RECIPE = "name: x\nfusion: {kind: joint}\noptimizer: {base_lr: 0.1}\ntrainer: {log_every: 20}\n"
COMPLETE = dump_recipe(load_recipe(Path(__file__).parents[3] / "configs/tiny/stage1.yaml"))


def changed(**settings: Any) -> str:
    """The complete recipe with other settings, ``__`` for the dot; ``...`` leaves one out."""
    tree = yaml.safe_load(COMPLETE)
    for path, value in settings.items():
        *groups, last = path.split("__")
        group = tree
        for name in groups:
            group = group[name]
        if value is ...:
            del group[last]
        else:
            group[last] = value
    return yaml.safe_dump(tree, sort_keys=False)


def test_a_new_run_gets_its_recipe(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "x"
    start_run(run, RECIPE, resume=False)
    assert (run / "config.yaml").read_text() == RECIPE
    assert [p.name for p in run.iterdir()] == ["config.yaml"]


def test_resume_without_a_run_or_a_checkpoint_begins(tmp_path: Path) -> None:
    start_run(tmp_path, RECIPE, resume=True)
    start_run(tmp_path, RECIPE, resume=True)
    assert (tmp_path / "config.yaml").read_text() == RECIPE


def test_another_run_is_not_touched(tmp_path: Path) -> None:
    start_run(tmp_path, RECIPE, resume=False)
    with pytest.raises(UserError, match=r"already holds a run \(no checkpoint yet\)"):
        start_run(tmp_path, "name: other\n", resume=False)
    save(tmp_path, 300)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(UserError, match=r"already holds a run \(step 300\): pass --resume .* --out"):
        start_run(tmp_path, "name: other\n", resume=False)
    with pytest.raises(UserError, match=r"was started with other settings: .*name was x, is other.*pass --force"):
        start_run(tmp_path, "name: other\n", resume=True)
    with pytest.raises(UserError, match="already holds a run"):
        start_run(tmp_path, "name: other\n", resume=False, force=True)
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
    assert compare(tmp_path, other) == [
        "fusion.kind was joint, is not set",
        "optimizer.base_lr was 0.1, is 0.2",
        "fusion was not set, is None",
    ]
    assert compare(tmp_path, RECIPE.replace("log_every: 20", "log_every: 5")) == []
    assert compare(tmp_path / "nowhere", RECIPE) == []


def test_by_force_a_run_goes_on_with_other_settings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    start_run(tmp_path, RECIPE, resume=False)
    other = RECIPE.replace("0.1", "0.2").replace("20", "5")
    start_run(tmp_path, other, resume=True, force=True)
    assert (tmp_path / "config.yaml").read_text() == other
    first, second = caplog.messages
    assert first.endswith(
        "goes on by force with other settings than it was started with: optimizer.base_lr was 0.1, is 0.2"
    )
    assert second.endswith("goes on with changed settings: trainer.log_every was 20, is 5")


def test_what_does_not_enter_the_numbers_may_change(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    start_run(tmp_path, RECIPE, resume=False)
    other = RECIPE.replace("log_every: 20", "log_every: 5")
    with caplog.at_level(logging.WARNING):
        start_run(tmp_path, other, resume=True)
    assert (tmp_path / "config.yaml").read_text() == other
    assert len(caplog.messages) == 1
    assert set(setting_paths()) >= CHANGEABLE
    assert not {"trainer.precision", "trainer.ema_decay", "seed"} & CHANGEABLE


@pytest.mark.parametrize(
    ("before", "now", "against"),
    [
        ({"accumulation": 1}, {"accumulation": 2}, []),
        ({"accumulation": 2, "accumulation_negatives": "cached"}, {"accumulation": 1}, []),
        ({"device_batch": 4}, {"device_batch": 2, "accumulation": 2, "accumulation_negatives": "cached"}, []),
        (
            {"accumulation": 2, "accumulation_negatives": "fewer"},
            {"accumulation": 2, "accumulation_negatives": "cached"},
            ["accumulation_negatives was fewer, is cached"],
        ),
        ({"accumulation": 1}, {"accumulation": 2, "accumulation_negatives": "fewer"}, ["accumulation was 1, is 2"]),
        (
            {"accumulation": 2, "accumulation_negatives": "fewer", "device_batch": 4},
            {"accumulation": 2, "accumulation_negatives": "fewer", "device_batch": 2},
            ["device_batch was 4, is 2"],
        ),
        ({"accumulation": 1, "accumulation_negatives": "fewer"}, {"accumulation": 1}, []),
    ],
)
def test_how_a_step_is_cut_up_may_change_while_its_candidates_stay(
    tmp_path: Path, before: dict[str, Any], now: dict[str, Any], against: list[str]
) -> None:
    start_run(tmp_path, changed(**{f"trainer__{name}": value for name, value in before.items()}), resume=False)
    found = compare(tmp_path, changed(**{f"trainer__{name}": value for name, value in now.items()}))
    assert [text for text in against if f"trainer.{text}" not in found] == []
    assert bool(found) == bool(against)


def test_a_run_survives_settings_that_did_not_exist_when_it_began(tmp_path: Path) -> None:
    """With their defaults; with anything else the run would change unnoticed."""
    old = changed(trainer__ema_decay=..., optimizer__layer_decay=..., schedule__min_lr=..., data__remote=...)
    start_run(tmp_path, old, resume=False)
    assert compare(tmp_path, COMPLETE) == []
    assert compare(tmp_path, changed(trainer__ema_decay=0.99)) == ["trainer.ema_decay was not set, is 0.99"]
    start_run(tmp_path, COMPLETE, resume=True)
    assert (tmp_path / "config.yaml").read_text() == COMPLETE


def test_a_setting_that_no_longer_exists_is_a_difference(tmp_path: Path) -> None:
    start_run(tmp_path, changed(trainer__magic=3), resume=False)
    assert compare(tmp_path, COMPLETE) == ["trainer.magic was 3, is not set"]


def test_checkpoints_without_a_recipe_are_not_resumed(tmp_path: Path) -> None:
    save(tmp_path, 3)
    with pytest.raises(UserError, match=r"no config\.yaml"):
        start_run(tmp_path, RECIPE, resume=True)


def test_a_recipe_that_cannot_be_read_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: [")
    for call in (lambda: start_run(tmp_path, RECIPE, resume=True), lambda: compare(tmp_path, RECIPE)):
        with pytest.raises(
            UserError, match=r"config\.yaml cannot be read as YAML .*put the recipe of the run back"
        ) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(UserError, match=r"x: the run folder cannot be written \(File exists\); it is a file"):
        start_run(tmp_path / "x", RECIPE, resume=False)
    for number, expected in (
        (errno.ENOSPC, r"No space left on device\); make space, or"),
        (errno.EACCES, r"Permission denied\); choose a folder you may write to with --out"),
        (errno.EROFS, r"Read-only file system\); choose a folder you may write to with --out"),
    ):

        def fail(_: int, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(UserError, match=f"y: the run folder cannot be written .{expected}") as caught:
                start_run(tmp_path / "y", RECIPE, resume=False)
        assert "\n" not in str(caught.value)


def _start(run: Path, other: Path | None = None) -> str:
    """Start a run; ``other`` is the folder of the same name on the second machine."""
    patience = run_folder.SEEN_SECONDS
    if other is not None:
        run_folder.SEEN_SECONDS = 0.3
        run = other if torch.distributed.get_rank() == 1 else run
    try:
        start_run(run, "name: other\n", resume=False)
    except UserError as error:
        return str(error)
    finally:
        run_folder.SEEN_SECONDS = patience
    return "started"


def test_every_rank_hears_the_same(tmp_path: Path) -> None:
    assert run_in_ranks(_start, tmp_path / "new") == ["started", "started"]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["config.yaml"]
    first, second = run_in_ranks(_start, tmp_path / "new")
    assert "already holds a run" in first
    assert first == second
    (tmp_path / "file").write_text("")
    first, second = run_in_ranks(_start, tmp_path / "file")
    assert "it is a file" in first
    assert first == second


def test_a_run_folder_on_the_disk_of_one_machine_is_refused(tmp_path: Path) -> None:
    for exists in (False, True):
        if exists:
            (tmp_path / "second").mkdir()
        first, second = run_in_ranks(_start, tmp_path / f"first{exists}", tmp_path / "second")
        assert first.partition(":")[2] == second.partition(":")[2]
        assert f"is not there for rank 1 on {os.uname().nodename}: choose a folder that all machines share" in first
        assert [p.name for p in (tmp_path / f"first{exists}").iterdir()] == ["config.yaml"]
