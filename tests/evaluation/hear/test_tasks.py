"""Task folders: what is read, which folds follow, and that every damage is told with its file before any work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mavil.evaluation.hear.tasks import Fold, find_tasks, read_task, sounds_of
from mavil.structs import UserError
from tests.evaluation.hear.task_folders import change_metadata, event_task, scene_task


def test_folds_test_on_one_and_validate_on_the_next(tmp_path: Path) -> None:
    task = read_task(scene_task(tmp_path / "tones-v1-full", num_folds=4, clips=4))
    assert (task.name, task.mode, task.key) == ("tones", "full", "tones-v1-full")
    assert task.folds[0] == Fold(("fold02", "fold03"), valid="fold01", test="fold00")
    assert task.folds[3] == Fold(("fold01", "fold02"), valid="fold00", test="fold03")
    assert {fold.test for fold in task.folds} == set(task.splits)
    assert task.labels == ("low", "middle", "high", "highest")


def test_an_event_task_has_one_fold_and_its_postprocessing(tmp_path: Path) -> None:
    task = read_task(event_task(tmp_path / "events"))
    assert task.folds == (Fold(("train",), "valid", "test"),)
    assert [how.min_duration_ms for how in task.postprocessing] == [125, 250]
    assert task.reference("test")["test0.wav"][0].start_ms == 200.0
    grid = {"median_filter_ms": [150], "min_duration": [50]}
    change_metadata(
        task.folder, use_scoring_for_early_stopping=False, evaluation_params={"event_postprocessing_grid": grid}
    )
    changed = read_task(task.folder)
    assert changed.monitors_loss
    assert [(how.median_filter_ms, how.min_duration_ms) for how in changed.postprocessing] == [(150, 50)]


def _drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _write(name: str, value: object) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(value if isinstance(value, str) else json.dumps(value)) and None


def _set(**changes: object) -> Callable[[Path], None]:
    return lambda folder: change_metadata(folder, **changes)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_drop("fold01.json"), "fold01.json: cannot be read"),
        (_drop("labelvocabulary.csv"), "labelvocabulary.csv: cannot be read"),
        (_write("fold01.json", "{"), "fold01.json: not JSON"),
        (_write("fold01.json", {}), "fold01.json: no clip"),
        (_write("fold01.json", {"a.wav": ["loud"]}), "a.wav has label 'loud'"),
        (_write("fold01.json", {"a.wav": []}), "a.wav has [], exactly one label"),
        (_write("fold01.json", {"../a.wav": ["low"]}), "'../a.wav' is not the name of a file"),
        (_write("labelvocabulary.csv", "idx,label\n0,low\n2,high\n"), "indices of the 2 labels"),
        (_set(evaluation=["accuracy"]), "unknown metric 'accuracy' for a scene task; known: top1_acc"),
        (_set(evaluation=["segment_1s_er"]), "unknown metric 'segment_1s_er' for a scene task"),
        (_set(split_mode="kfold"), "split_mode is 'kfold'"),
        (_set(split_mode="trainvaltest"), "lack 'train'"),
        (_set(splits=["fold00", "fold01"]), "three different folds"),
        (_set(embedding_type="event"), "events need multilabel"),
    ],
)
def test_damaged_folders_are_told_with_their_file(tmp_path: Path, damage: Callable[[Path], None], told: str) -> None:
    folder = scene_task(tmp_path / "tones", clips=4)
    damage(folder)
    with pytest.raises(UserError) as error:
        read_task(folder)
    assert told in str(error.value)


def test_sounds_are_those_of_the_models_rate_or_else_of_the_largest(tmp_path: Path) -> None:
    task = read_task(scene_task(tmp_path / "tones", rates=(16000, 48000), clips=4))
    assert sounds_of(task, 16000) == (task.folder / "16000", 16000)
    assert sounds_of(task, 32000) == (task.folder / "48000", 48000)
    (task.folder / "16000" / "fold01" / "1_2.wav").unlink()
    with pytest.raises(UserError, match=r"fold01: 1 of 4 sound files are missing, first 1_2\.wav"):
        sounds_of(task, 16000)


def test_tasks_are_found_by_folder_and_by_name(tmp_path: Path) -> None:
    first, second = scene_task(tmp_path / "tones-v1-5h", clips=4), event_task(tmp_path / "events-v1-full")
    assert find_tasks(tmp_path) == [second, first]
    assert find_tasks(tmp_path, ["tones"]) == [first]
    assert find_tasks(tmp_path, ["events-v1-full", "events"]) == [second]
    assert find_tasks(first) == [first]
    with pytest.raises(UserError, match="has no task 'tone'; it has events-v1-full, tones-v1-5h"):
        find_tasks(tmp_path, ["tone"])
    with pytest.raises(UserError, match="no HEAR task in it"):
        find_tasks(first / "16000")
