"""One task to its score: what chooses the setting, what is kept, and how the result is laid out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mavil.evaluation.hear import folds, predictor
from mavil.evaluation.hear.embeddings import SplitEmbeddings, embed_task
from mavil.evaluation.hear.folds import RESULT_FILE, Options, score_task
from mavil.evaluation.hear.judging import Judge, targets_of
from mavil.evaluation.hear.results import ANCHORS, anchors_of, failed_row, markdown, row_of
from mavil.evaluation.hear.tasks import HearTask, read_task
from tests.evaluation.hear.task_folders import change_metadata, embedder, event_task, nobody_looks, scene_task

OPTIONS = Options(num_points=2)
QUICKLY = {"task_specific_param_grid": {"max_epochs": [30], "lr": [1e-2]}}
"""For those tests in which something must be learned."""


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor, "HIDDEN_WIDTH", 32)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Fold and setting of every training that really happens."""
    happened: list[tuple[str, Any]] = []
    train = folds._Work._train

    def watched(self: Any, fold: Any, setting: Any) -> dict[str, Any]:
        happened.append((fold.test, setting))
        return train(self, fold, setting)

    monkeypatch.setattr(folds._Work, "_train", watched)
    return happened


def embedded(folder: Path) -> tuple[HearTask, dict[str, SplitEmbeddings]]:
    task = read_task(folder)
    return task, embed_task(task, embedder(), folder.with_name(f"{folder.name}-embedded"), nobody_looks)


def test_the_best_setting_of_the_first_fold_goes_to_the_others(
    tmp_path: Path, trainings: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    task, splits = embedded(scene_task(tmp_path / "tones", evaluation_params=QUICKLY))
    out = tmp_path / "out"
    result = score_task(task, splits, out, OPTIONS, nobody_looks)
    assert [fold for fold, _ in trainings] == ["fold00", "fold00", "fold01", "fold02"]
    assert trainings[2][1] == trainings[3][1] in (trainings[0][1], trainings[1][1])
    assert json.loads((out / RESULT_FILE).read_text()) == result
    scores = [result[fold]["test_top1_acc"] for fold in task.splits]
    total = result["aggregated_scores"]
    assert total["test_score_mean"] == total["test_top1_acc_mean"] == pytest.approx(np.mean(scores))
    assert total["test_score_std"] == pytest.approx(np.std(scores, ddof=1))
    assert total["test_score_mean"] > 0.8  # pitches are easy to tell apart; chance is 0.25
    trainings.clear()
    # A second time nothing is trained; after one lost record only that one; on other embeddings all.
    assert score_task(task, splits, out, OPTIONS, nobody_looks) == result
    assert not trainings
    next((out / "fits").rglob("fold02.*.json")).unlink()
    again = score_task(task, splits, out, OPTIONS, nobody_looks)
    assert [fold for fold, _ in trainings] == ["fold02"]
    assert again["fold02"]["test_loss"] == result["fold02"]["test_loss"]
    changed = {name: SplitEmbeddings(s.embeddings, s.files, s.num_rows, None, "other") for name, s in splits.items()}
    score_task(task, changed, out, OPTIONS, nobody_looks)
    assert len(trainings) == 1 + 4


def test_each_training_learns_validates_and_tests_on_splits_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, splits = embedded(scene_task(tmp_path / "tones", num_folds=4, clips=4))
    read: list[tuple[str, ...]] = []
    judged: list[str] = []
    rows = folds._Work._rows

    def watched(self: Any, names: tuple[str, ...]) -> Any:
        read.append(names)
        return rows(self, names)

    def judge(task: Any, split: str, *rest: Any) -> Judge:
        judged.append(split)
        return Judge(task, split, *rest)

    monkeypatch.setattr(folds._Work, "_rows", watched)
    monkeypatch.setattr(folds, "Judge", judge)
    score_task(task, splits, tmp_path / "out", Options(num_points=1), nobody_looks)
    assert read == [names for fold in task.folds for names in (fold.train, (fold.valid,), (fold.test,))]
    assert judged == [name for fold in task.folds for name in (fold.valid, fold.test)]


@pytest.mark.parametrize("mode", ["max", "min"])
def test_validation_chooses_and_not_the_test(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, splits = embedded(scene_task(tmp_path / "tones"))
    first, second = (0.2, 0.7) if mode == "max" else (0.7, 0.2)
    drawn = iter([(first, 0.9), (second, 0.1), (0.5, 0.5), (0.5, 0.6)])

    def invented(self: Any, fold: Any, setting: Any) -> dict[str, Any]:
        valid, test = next(drawn)
        metrics = {"loss": 1.0, "top1_acc": test, "score": test}
        return {
            "validation_score": valid,
            "score_mode": mode,
            "epochs": 3,
            "postprocessing": None,
            "test": metrics,
            "classes_without_test_rows": 0,
            "seconds": 60.0,
        }

    monkeypatch.setattr(folds._Work, "_train", invented)
    result = score_task(task, splits, tmp_path / "out", OPTIONS, nobody_looks)
    assert result["fold00"] == {
        "test_loss": 1.0,
        "test_top1_acc": 0.1,
        "test_score": 0.1,
        "validation_score": second,
        "epoch": 2,
        "time_in_min": 1.0,
    }
    total = result["aggregated_scores"]
    # The deviation of a sample: sqrt((0.09 + 0.01 + 0.04) / 2).
    assert (total["test_score_mean"], total["test_score_std"]) == pytest.approx((0.4, np.sqrt(0.07)))


def test_options_do_not_mix(tmp_path: Path, trainings: list[tuple[str, Any]]) -> None:
    task, splits = embedded(scene_task(tmp_path / "tones", clips=4))
    for options in (OPTIONS, Options(num_points=2, shuffles=False), Options(num_points=2, seed=43)):
        score_task(task, splits, tmp_path / "out", options, nobody_looks)
    assert len(trainings) == 3 * 4
    assert sorted(path.name for path in (tmp_path / "out" / "fits").iterdir()) == [
        "default-shuffled-seed42",
        "default-shuffled-seed43",
        "default-unshuffled-seed42",
    ]
    assert (tmp_path / "out" / "test.predicted-scores.seed43.json").is_file()


def test_events_are_found_and_their_postprocessing_is_told(tmp_path: Path) -> None:
    folder = event_task(tmp_path / "events", clips=6)
    change_metadata(folder, evaluation_params={"task_specific_param_grid": {"max_epochs": [60], "lr": [1e-2]}})
    task, splits = embedded(folder)
    result = score_task(task, splits, tmp_path / "out", Options(num_points=1), nobody_looks)
    test = result["test"]
    assert test["test_score"] == test["test_event_onset_200ms_fms"] > 0.8
    assert test["test_segment_1s_er"] < 0.5
    assert result["postprocessing"] in (
        [["median_filter_ms", 250.0], ["min_duration", shortest]] for shortest in (125, 250)
    )


def perfect_logits(task: HearTask, split: str, stored: SplitEmbeddings) -> torch.Tensor:
    return (torch.from_numpy(targets_of(task, split, stored)) - 0.5) * 8


def test_judging_perfect_and_silent_predictions(tmp_path: Path) -> None:
    task, splits = embedded(event_task(tmp_path / "events"))
    logits = perfect_logits(task, "valid", splits["valid"])
    judge = Judge(task, "valid", splits["valid"], torch.from_numpy(targets_of(task, "valid", splits["valid"])))
    verdict = judge.verdict(logits)
    # Of equally good ones the longer shortest event is chosen.
    assert (verdict.monitored, verdict.is_maximised, verdict.choice) == (1.0, True, task.postprocessing[1])
    results = judge.results(logits, verdict.choice)
    assert results["segment_1s_er"] == 0.0
    assert judge.verdict(torch.full_like(logits, -8.0)).monitored == 0.0
    change_metadata(task.folder, evaluation=["segment_1s_er"])
    silent = Judge(read_task(task.folder), "valid", splits["valid"], judge.targets).verdict(
        torch.full_like(logits, -8.0)
    )
    assert (silent.monitored, silent.is_maximised) == (1.0, False)
    one = {"event_postprocessing_grid": {"median_filter_ms": [150], "min_duration": [50]}}
    change_metadata(task.folder, use_scoring_for_early_stopping=False, evaluation_params=one)
    loss = Judge(read_task(task.folder), "valid", splits["valid"], judge.targets).verdict(logits)
    assert (loss.monitored, loss.is_maximised) == (pytest.approx(results["loss"]), False)


def test_rows_of_the_table() -> None:
    fold = {"test_score": 0.5}
    results = [
        {"fold00": fold, "aggregated_scores": {"test_score_mean": mean, "test_score_std": 0.1}, "metric": "top1_acc"}
        for mean in (0.5, 0.7)
    ]
    row = row_of("esc50-v2-full", "esc50", "full", results)
    assert (row.score, row.over_folds, row.over_seeds) == pytest.approx((0.6, 0.1, np.sqrt(0.02)))
    assert row.anchors["CED base"] == 0.966
    single = row_of("x-v1-5h", "x", "5h", [{"test": fold, "metric": "mAP"}])
    assert (single.score, single.over_folds, single.over_seeds, single.anchors) == (0.5, None, None, {})
    text = markdown([row, failed_row("y", "mAP", "it broke")], ["about"])
    assert "| esc50-v2-full | top1_acc | 0.600 | 0.100 | 0.141 | 0.561 |" in text
    assert "- y: it broke" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert widths == {6 + len(ANCHORS)}


def test_anchors_are_of_the_tasks_size() -> None:
    assert anchors_of("nsynth_pitch", "5h")["OpenL3"] == 0.56
    assert anchors_of("nsynth_pitch", "50h") == {}
