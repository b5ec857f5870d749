"""``mavil train --check``: what it finds, that it finds all of it at once, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mavil import distributed
from mavil.commands import checks
from mavil.commands.assemble import read_recipe
from mavil.commands.checks import run as run_checks
from mavil.data.shards.index import INDEX
from mavil.engine.run import lock as run_lock
from mavil.structs import UserError
from tests.commands.conftest import NUM_TRAIN, Outcome
from tests.support.ranks import run_in_ranks

Mavil = Callable[..., Outcome]
Recipe = Callable[..., Path]


def lines_of(outcome: Outcome, kind: str) -> list[str]:
    """What was said of one kind, without the kind."""
    return [line[len(kind) :].strip() for line in outcome.out.splitlines() if line.startswith(f"{kind} ")]


def everything_below(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_recipe_that_would_train(mavil: Mavil, recipe: Recipe, tmp_path: Path) -> None:
    path = recipe("stage1", steps=30)
    before = everything_below(tmp_path)
    told = mavil("train", path, "--check")
    assert (told.code, told.err) == (0, "")
    good = lines_of(told, "good")
    assert "batch               8 clips per step = 1 rank(s) x 8 clips" in good
    assert any(line.startswith("steps               30 steps (10 epochs of 24 samples), warm-up 1,") for line in good)
    assert any("10 checkpoints, every 3 steps and every 30 min, 2 kept; 1 evaluation" in line for line in good)
    assert sum(line.startswith("a clip (") for line in good) == 2
    assert lines_of(told, "wrong") == []
    assert everything_below(tmp_path) == before


def test_everything_that_is_wrong_is_told_at_once(mavil: Mavil, recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    arguments = ("trainer.global_batch=12", "--ranks", "5", "data.evaluation=nowhere", "--out", "file/run")
    told = mavil("train", recipe("stage1", task={"kind": "pretrain", "weights": "runs/none"}), "--check", *arguments)
    assert told.code == 2
    assert told.err == "mavil: 4 check(s) failed; nothing was trained\n"
    wrong = dict(line.split(maxsplit=1) for line in lines_of(told, "wrong"))
    assert set(wrong) == {"batch", "shards", "model", "run"}
    assert "trainer.global_batch=10 or 15, 3 or 4 or 6 rank(s)" in wrong["batch"]
    assert "nowhere: no such folder of shards" in wrong["shards"]
    assert "runs/none" in wrong["model"]
    assert "file/run: the run folder cannot be written" in wrong["run"]
    assert any("5 rank(s) are assumed" in line for line in lines_of(told, "skipped"))


def test_assumed_ranks_change_the_batch_and_the_steps(mavil: Mavil, recipe: Recipe) -> None:
    path = recipe("stage1", schedule={"length": "10 epochs", "warmup": "1 epochs"})
    told = mavil("train", path, "--check", "--ranks", "3", "trainer.device_batch=4")
    assert told.code == 0
    assert any("12 clips per step = 3 rank(s) x 4 clips" in line for line in lines_of(told, "good"))
    assert any("20 steps (10 epochs of 24 samples), warm-up 2" in line for line in lines_of(told, "good"))
    few = mavil("train", path, "--check", "--ranks", "4")
    assert (few.code, len(lines_of(few, "wrong"))) == (2, 1)
    assert f"{NUM_TRAIN} clips are fewer than one training batch of 32" in few.out


def test_a_folder_that_holds_a_run(mavil: Mavil, recipe: Recipe, tmp_path: Path) -> None:
    path = recipe("stage1", steps=3)
    assert mavil("train", path).code == 0
    before = everything_below(tmp_path)
    assert "already holds a run (step_00000003): pass --resume" in mavil("train", path, "--check").out
    goes_on = mavil("train", path, "--check", "--resume")
    assert goes_on.code == 0
    assert any("goes on from step_00000003" in line for line in lines_of(goes_on, "good"))
    other = mavil("train", path, "--check", "--resume", "optimizer.base_lr=0.5")
    assert other.code == 2
    assert "optimizer.base_lr was 0.02, is 0.5" in other.out
    forced = mavil("train", path, "--check", "--resume", "--force", "optimizer.base_lr=0.5")
    assert forced.code == 0
    assert any("by force" in line and "optimizer.base_lr" in line for line in lines_of(forced, "odd"))
    smaller = mavil("train", path, "--check", "--resume", "--ranks", "2")
    assert smaller.code == 2
    assert "the run's steps had 8 clips over all ranks, with 2 ranks they would have 16" in smaller.out
    after = everything_below(tmp_path)
    assert {path for path in after if after[path] != before.get(path) and path.is_file()} == set()


def test_a_run_to_start_from_that_is_not_finished(mavil: Mavil, recipe: Recipe, tmp_path: Path) -> None:
    assert mavil("train", recipe("stage1", steps=3)).code == 0
    path = recipe("stage2", task={"kind": "pretrain", "teacher": {"run": "runs/stage1"}})
    finished = mavil("train", path, "--check")
    assert finished.code == 0
    assert any(line.startswith("model ") and "from runs/stage1" in line for line in lines_of(finished, "good"))
    config = tmp_path / "runs/stage1/config.yaml"
    config.write_text(config.read_text().replace("length: 3 steps", "length: 2 epochs"))
    cut_off = mavil("train", path, "--check")
    assert cut_off.code == 0
    assert any("runs/stage1 is not finished" in line and "of step 3 of 6" in line for line in lines_of(cut_off, "odd"))
    assert (
        "not finished"
        in mavil("train", recipe("after", task={"kind": "pretrain", "weights": "runs/stage1"}), "--check").out
    )
    shutil.rmtree(tmp_path / "runs/stage1/checkpoints")
    none_left = mavil("train", path, "--check")
    assert none_left.code == 2
    assert any("runs/stage1" in line and "checkpoint" in line for line in lines_of(none_left, "wrong"))


def test_clips_with_nothing_to_compare_them_with(mavil: Mavil, recipe: Recipe) -> None:
    path = recipe("stage1")
    alone = mavil("train", path, "--check", "trainer.device_batch=1")
    assert alone.code == 2
    assert any(
        "1 clip per rank and 1 rank a contrastive loss has no other clip" in line for line in lines_of(alone, "wrong")
    )
    local = ("trainer.device_batch=1", "task.contrast.negatives=local")
    of_four = mavil("train", path, "--check", "--ranks", "4", *local)
    assert any("task.contrast.negatives=local a contrastive" in line for line in lines_of(of_four, "wrong"))
    assert mavil("train", path, "--check", "--ranks", "4", "trainer.device_batch=1").code == 0
    assert mavil("train", path, "--check", "trainer.device_batch=1", "task.contrast=null").code == 0
    cached = ("trainer.accumulation=2", "trainer.accumulation_negatives=cached")
    assert mavil("train", path, "--check", "trainer.device_batch=1", *cached).code == 0


def test_gradients_of_terms_where_weights_are_cut(mavil: Mavil, recipe: Recipe) -> None:
    arguments = ("--check", "trainer.term_gradients_every=2 steps", "trainer.parallel=fsdp")
    cut = mavil("train", recipe("stage1"), "--ranks", "2", *arguments)
    assert cut.code == 2
    assert any(
        "term_gradients_every=2 steps does not work with trainer.parallel=fsdp on 2" in line
        for line in lines_of(cut, "wrong")
    )
    assert mavil("train", recipe("stage1"), "--ranks", "1", *arguments).code == 0


def test_a_run_that_another_job_writes(mavil: Mavil, recipe: Recipe, tmp_path: Path) -> None:
    path = recipe("stage1")
    (tmp_path / "runs/stage1").mkdir(parents=True)
    with run_lock.holding(tmp_path / "runs/stage1"):
        told = mavil("train", path, "--check")
    assert told.code == 2
    assert "is being written by" in told.out


def test_a_disk_that_is_too_small(mavil: Mavil, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(run_checks.shutil, "disk_usage", lambda path: usage._replace(free=2**20))
    told = mavil("train", recipe("stage1"), "--check")
    assert told.code == 2
    assert "there may be 4 at a time: make space" in told.out


def test_classes_that_training_does_not_know(mavil: Mavil, recipe: Recipe, shards: Path, tmp_path: Path) -> None:
    shutil.copytree(shards / "gallery", tmp_path / "gallery")
    index = json.loads((tmp_path / "gallery" / INDEX).read_text())
    index["label_counts"] = {**index["label_counts"], "zebra": 1}
    (tmp_path / "gallery" / INDEX).write_text(json.dumps(index))
    path = recipe("finetune", task={"kind": "classify", "modalities": ["audio"]}, fusion=None)
    told = mavil("train", path, "--check", "data.evaluation=gallery")
    assert told.code == 2
    assert "classes are unknown to the " in told.out
    assert "(zebra)" in told.out


def test_shards_cut_off_in_a_copy(mavil: Mavil, recipe: Recipe, shards: Path, tmp_path: Path) -> None:
    shutil.copytree(shards / "train", tmp_path / "cut")
    victim = sorted((tmp_path / "cut").glob("*.tar"))[1]
    os.truncate(victim, victim.stat().st_size - 512)
    told = mavil("train", recipe("stage1"), "--check", "data.train=cut")
    assert told.code == 2
    assert "1 of 3 shards looked at do not have the size" in told.out
    assert victim.name in told.out
    started = mavil("train", recipe("stage1"), "data.train=cut")
    assert started.code == 2
    assert victim.name in started.err


def test_an_unwritable_run_folder_is_found_before_the_model_is_made(
    mavil: Mavil, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("mavil.commands.train.task_for", lambda *_: pytest.fail("a model was made"))
    told = mavil("train", recipe("stage1"), "--out", "file/run")
    assert told.code == 2
    assert told.err.count("\n") == 1
    assert "file/run: the run folder cannot be written" in told.err


def _start_where_rank_1_has(recipe_path: Path, shards: str, run: Path, node: str, others_node: str) -> str:
    """Start as on two nodes; on the second the shards are ``shards``."""
    rank = distributed.rank()
    os.environ["SLURMD_NODENAME"] = others_node if rank else node
    try:
        changes = [f"data.train={shards}"] if rank else []
        checks.check_start(read_recipe(recipe_path, changes), run, torch.device("cpu"))
        return "started"
    except UserError as error:
        return str(error)
    finally:
        del os.environ["SLURMD_NODENAME"]


def test_shards_that_one_node_lacks_or_has_others_of(recipe: Recipe, shards: Path, tmp_path: Path) -> None:
    path = recipe("stage1")
    shutil.copytree(shards / "train", tmp_path / "partial")
    sorted((tmp_path / "partial").glob("*.tar"))[0].unlink()
    cases = {
        str(shards / "train"): "started",
        str(tmp_path / "none"): f"n2: {tmp_path / 'none'}: no such folder of shards; make one with mavil shards make",
        str(tmp_path / "partial"): f"n2: {tmp_path / 'partial'}: 1 shards are missing",
        str(shards / "gallery"): "holds other shards on n1 and n2: copy the same ones to every node",
    }
    for place, expected in cases.items():
        for told in run_in_ranks(
            _start_where_rank_1_has, path, place, tmp_path / "run", "n1", "n2", timeout_seconds=240
        ):
            assert expected in told
            assert "\n" not in told
    assert not (tmp_path / "run").exists()


def _global_batch_over_ranks(recipe_path: Path, run: Path) -> str:
    try:
        checks.check_start(read_recipe(recipe_path, ["trainer.global_batch=9"]), run, torch.device("cpu"))
        return "started"
    except UserError as error:
        return str(error)


def test_a_batch_that_does_not_divide(recipe: Recipe, tmp_path: Path) -> None:
    for told in run_in_ranks(_global_batch_over_ranks, recipe("stage1"), tmp_path / "run", timeout_seconds=240):
        assert (
            "trainer.global_batch 9 does not divide among 2 rank(s): take trainer.global_batch=8 or 10, 1 or 3" in told
        )


def test_two_processes_check_together(recipe: Recipe, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mavil"]
    arguments = ["train", str(recipe("stage1")), "--check", "data.evaluation=nowhere", "trainer.device_batch=4"]
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=300, cwd=tmp_path, check=False
    )
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("wrong")] == [
        "wrong   shards (evaluation) nowhere: no such folder of shards; make one with mavil shards make"
    ]
    assert sum("2 rank(s) on 1 node(s)" in line for line in lines) == 1
    assert any(line.startswith("good    seen by all") for line in lines)
    assert done.stderr.count("mavil: 1 check(s) failed; nothing was trained") == 1
    assert "exitcode  : 2" in done.stderr.replace("exitcode :", "exitcode  :")
    assert not (tmp_path / "runs").exists()
