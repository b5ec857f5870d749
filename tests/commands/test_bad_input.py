"""Mistakes people make: each gets one line that says what to do, a code that is not zero, and loses nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mavil.engine.checkpoints.folder import checkpoints
from mavil.engine.health import LINES_IN_A_ROW
from mavil.evaluation import collapse
from tests.commands.conftest import NUM_TRAIN, Outcome

Mavil = Callable[..., Outcome]
Recipe = Callable[..., Path]


def assert_told(outcome: Outcome, *words: str) -> None:
    """One line on stderr, no traceback, exit code 2, every word in it."""
    assert outcome.code == 2, outcome
    lines = outcome.err.strip().splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("mavil: ")
    for word in words:
        assert word in lines[0]


def test_no_such_recipe_run_or_shards(mavil: Mavil, recipe: Recipe) -> None:
    assert_told(mavil("train", "nowhere.yaml"), "nowhere.yaml", "no such recipe")
    assert_told(mavil("evaluate", "runs/nowhere"), "runs/nowhere")
    assert_told(mavil("retrieve", "runs/nowhere"), "runs/nowhere")
    assert_told(mavil("train", recipe("stage1"), "data.train=nowhere"), "nowhere")
    assert_told(mavil("train", recipe("stage1"), "data.train=null"), "data.train")


def test_unknown_setting_and_wrong_type(mavil: Mavil, recipe: Recipe, tmp_path: Path) -> None:
    path = recipe("stage1")
    assert_told(mavil("train", path, "optimizer.bse_lr=1"), "optimizer.bse_lr", "did you mean optimizer.base_lr?")
    assert_told(mavil("train", path, "seed=many"), "seed", "'many'")
    assert_told(mavil("train", path, "schedule.length=4"), "'4 steps'")
    assert not (tmp_path / "runs").exists()


def test_fewer_clips_than_a_batch(mavil: Mavil, recipe: Recipe, tmp_path: Path) -> None:
    path = recipe("stage1")
    assert_told(mavil("train", path, "trainer.device_batch=64"), str(NUM_TRAIN), "64", "device_batch")
    assert not (tmp_path / "runs").exists()


def test_one_clip_has_nothing_to_be_compared_with(mavil: Mavil, recipe: Recipe, tmp_path: Path) -> None:
    told = mavil("train", recipe("stage1"), "trainer.device_batch=1")
    assert_told(told, "1 clip per rank", "1 rank ", "trainer.device_batch")
    assert not (tmp_path / "runs").exists()


def test_a_run_that_collapses_ends_with_its_checkpoint(
    mavil: Mavil, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe("stage1", steps=12)
    assert mavil("train", path, "trainer.on_collapse=stop", "--out", "runs/healthy").code == 0
    # What every embedding is below of.
    monkeypatch.setattr(collapse, "EMBEDDING_STD_LEAST", 2.0)
    told = mavil("train", path, "trainer.on_collapse=stop")
    last = 1 + LINES_IN_A_ROW  # after a warm-up of one step
    assert_told(told, "train/audio_embedding_std is ", "below 2 in", "train/video_embedding_std", "optimizer.base_lr")
    assert f"Stopped after step {last} of 12" in told.err
    assert [folder.name for folder in checkpoints(tmp_path / "runs/stage1")][-1] == f"step_{last:08d}"
    goes_on = mavil("train", path, "--resume", "--force", "trainer.on_collapse=warn")
    assert goes_on.code == 0
    assert (goes_on.out + goes_on.err).replace("\n", " ").count("collapse: ") == 1


def test_a_run_is_not_overwritten(mavil: Mavil, recipe: Recipe, tmp_path: Path) -> None:
    path = recipe("stage1", steps=3)
    assert mavil("train", path).code == 0
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*") if p.is_file()}
    assert_told(mavil("train", path), "already holds a run (step 3)", "--resume", "--out")
    assert_told(mavil("train", path, "--resume", "audio.mask_ratio=0.5"), "audio.mask_ratio", "0.5")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*") if p.is_file()} == before


def test_a_checkpoint_of_another_shape(mavil: Mavil, recipe: Recipe, tmp_path: Path) -> None:
    assert mavil("train", recipe("stage1", steps=3)).code == 0
    task = {"kind": "classify", "modalities": ["audio"], "weights": "runs/stage1"}
    path = recipe("finetune", task=task)
    wider = "audio.encoder={width: 64, depth: 2, num_heads: 2}"
    told = mavil("train", path, "fusion=null", wider)
    assert_told(told, "audio_encoder.cls_token", "(1, 1, 32)", "(1, 1, 64)")
    teacher = {"kind": "pretrain", "teacher": {"run": "runs/stage1"}}
    told = mavil("train", recipe("stage2", task=teacher), "video.size=48")
    assert_told(told, "task.teacher.run", "video.size was 32, is 48", "set video.size=32")
    told = mavil("train", recipe("stage2", task=teacher), "audio.mean=-9.0", "audio.std=4.0")
    assert_told(told, "task.teacher.run", "audio.mean was -4.", "is -9.0", "audio.std=4.5")
    told = mavil(
        "train", recipe("stage2", task={"kind": "pretrain", "teacher": {"run": "runs/stage1", "last_layers": 3}})
    )
    assert_told(told, "task.teacher.last_layers=3", "fusion.depth is 2")
    told = mavil("train", recipe("stage2"), "task.teacher.last_layers=1")
    assert_told(told, "task.teacher.run")
    assert_told(
        mavil("train", recipe("other", task={"kind": "pretrain", "teacher": {"run": "runs/none"}})), "runs/none"
    )
    assert not (tmp_path / "runs/finetune").exists()


def test_a_damaged_checkpoint_names_the_file(mavil: Mavil, recipe: Recipe, tmp_path: Path) -> None:
    mavil("train", recipe("stage1", steps=3))
    (state,) = (tmp_path / "runs/stage1/checkpoints").glob("*/model.pt")
    state.write_bytes(state.read_bytes()[:-100])
    assert_told(mavil("retrieve", "runs/stage1"), "model.pt")


def test_clips_that_cannot_be_used_end_the_run_with_their_causes(
    mavil: Mavil, recipe: Recipe, shards: Path, tmp_path: Path
) -> None:
    shutil.copytree(shards / "train", tmp_path / "broken")
    for shard in sorted((tmp_path / "broken").glob("*.tar"))[:2]:
        data = bytearray(shard.read_bytes())
        for place in range(2048, len(data) - 2048, 512):  # scribble over media, leave the tar headers alone
            if data[place + 257 : place + 262] != b"ustar" and data[place : place + 1] != b"{":
                data[place : place + 512] = b"\x55" * 512
        shard.write_bytes(data)
    told = mavil("train", recipe("stage1", steps=30), f"data.train={tmp_path / 'broken'}")
    assert told.code == 2
    assert "undecodable" in told.err
    assert "max_skip_ratio" in told.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("shards", "make", "nowhere", "out"), ("nowhere",)),
        (("shards", "check", "nowhere"), ("nowhere",)),
        (("demo", "--clips", "nowhere"), ("nowhere",)),
        (("demo", "--train-shards", "nowhere"), ("--evaluation-shards",)),
    ],
)
def test_missing_sources(mavil: Mavil, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    assert_told(mavil(*arguments), *words)


def test_empty_folder_and_too_few_clips(mavil: Mavil, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert_told(mavil("shards", "make", "empty", "out"), "empty", "mp4")
    assert_told(mavil("demo", "--clips", "empty"), "empty")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "runs").exists()


def test_a_foreign_folder_is_not_taken_for_a_demo(mavil: Mavil, tmp_path: Path) -> None:
    (tmp_path / "runs/demo").mkdir(parents=True)
    (tmp_path / "runs/demo/thesis.txt").write_text("mine")
    assert_told(mavil("demo"), "runs/demo", "--out")
    assert (tmp_path / "runs/demo/thesis.txt").read_text() == "mine"
