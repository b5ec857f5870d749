"""One task from embeddings to a score: search the grid on the first fold, train the best setting on the others, test.

fits/GRID-ORDER-seedN/FOLD.POINT.json     one training: its best validation and its test metrics
test.predicted-scores.json                the task's result, laid out as heareval lays out its own
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mavil.evaluation.hear.embeddings import Progress, SplitEmbeddings
from mavil.evaluation.hear.grid import NUM_POINTS, Postprocessing, Setting, draw_settings
from mavil.evaluation.hear.judging import Judge, targets_of
from mavil.evaluation.hear.predictor import BATCH_ROWS, DROPOUT, HIDDEN_WIDTH, PATIENCE, Rows, fit, logits_of
from mavil.evaluation.hear.stored import digest, read_json, write_json
from mavil.evaluation.hear.tasks import Fold, HearTask
from mavil.seeds import sample_seed

SEED = 42
"""Of the benchmark [source heareval]; further repetitions count on from it."""
RESULT_FILE = "test.predicted-scores.json"


@dataclass(frozen=True)
class Options:
    """How to train predictors: a grid of ``GRIDS``, how many of its points, shuffled in every epoch or not, and where."""

    grid: str = "default"
    num_points: int = NUM_POINTS
    shuffles: bool = True
    seed: int = SEED
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (a device does not change)

    @property
    def folder(self) -> str:
        """Where trainings of these options are kept."""
        return f"{self.grid}-{'shuffled' if self.shuffles else 'unshuffled'}-seed{self.seed}"


def score_task(
    task: HearTask, splits: Mapping[str, SplitEmbeddings], folder: Path, options: Options, progress: Progress
) -> dict[str, Any]:
    """The task's result as written to ``folder``; trainings found there from before are not repeated.

    The setting is chosen by validation on the first fold alone; a test split decides nothing [source heareval].

    Raises:
        UserError: a split is too small to train on, or a metric has no value on it.
    """
    settings = draw_settings(options.grid, task.name, task.grid_changes, options.num_points, options.seed)
    total = len(settings) + len(task.folds) - 1
    work = _Work(task, splits, folder / "fits" / options.folder, options)
    tried = []
    for number, setting in enumerate(settings):
        progress("grid search", number, total)
        tried.append(work.trained(task.folds[0], setting))
    best = _best(tried)
    chosen = [best]
    for number, fold in enumerate(task.folds[1:]):
        progress(f"fold {fold.test}", len(settings) + number, total)
        chosen.append(work.trained(fold, Setting(**best["setting"])))
    progress("done", total, total)
    result = _result(task, chosen)
    write_json(folder / _result_name(options), result)
    return result


@dataclass(frozen=True)
class _Work:
    task: HearTask
    splits: Mapping[str, SplitEmbeddings]
    folder: Path
    options: Options

    def trained(self, fold: Fold, setting: Setting) -> dict[str, Any]:
        """The record of one training, from disk if it was done before on the same embeddings and truth."""
        names = (*fold.train, fold.valid, fold.test)
        data = [(name, self.splits[name].digest, digest(_plain_truth(self.task, name))) for name in names]
        key = digest(
            asdict(fold), data, asdict(setting), self.task.metrics, [asdict(p) for p in self.task.postprocessing]
        )
        path = self.folder / f"{fold.test}.{digest(asdict(setting))[:8]}.json"
        record = read_json(path)
        if record is None or record.get("key") != key:
            record = {"key": key, "setting": asdict(setting), "fold": fold.test, **self._train(fold, setting)}
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, record)
        return record

    def _train(self, fold: Fold, setting: Setting) -> dict[str, Any]:
        start = time.monotonic()
        task, options = self.task, self.options
        rows = {kind: self._rows(names) for kind, names in (("train", fold.train), ("valid", (fold.valid,)))}
        judge = Judge(task, fold.valid, self.splits[fold.valid], rows["valid"].targets)
        seed = sample_seed(options.seed, task.key, fold.test, *asdict(setting).values())
        fitted = fit(rows["train"], rows["valid"], judge.verdict, setting, task.is_multilabel, options.shuffles, seed)
        tested = self._rows((fold.test,))
        test = Judge(task, fold.test, self.splits[fold.test], tested.targets)
        choice = fitted.verdict.choice
        return {
            "validation_score": fitted.verdict.monitored,
            "score_mode": "max" if fitted.verdict.is_maximised else "min",
            "epochs": fitted.epochs,
            "postprocessing": asdict(choice) if isinstance(choice, Postprocessing) else None,
            "test": test.results(logits_of(fitted.predictor, tested), choice),
            "classes_without_test_rows": int((tested.targets.sum(0) == 0).sum()),
            "seconds": time.monotonic() - start,
        }

    def _rows(self, names: tuple[str, ...]) -> Rows:
        targets = [targets_of(self.task, name, self.splits[name]) for name in names]
        return Rows([self.splits[name].embeddings for name in names], targets, self.options.device)


def _best(records: list[dict[str, Any]]) -> dict[str, Any]:
    """By validation; of equal ones the one that was drawn first."""
    sign = 1.0 if records[0]["score_mode"] == "max" else -1.0
    return max(records, key=lambda record: sign * record["validation_score"])


def _result(task: HearTask, records: list[dict[str, Any]]) -> dict[str, Any]:
    folds = {record["fold"]: _tested(record) for record in records}
    result: dict[str, Any] = dict(folds)
    if len(folds) > 1:
        names = list(next(iter(folds.values())))
        result["aggregated_scores"] = {
            f"{name}_{part}": value
            for name in names
            for part, value in _mean_and_deviation([fold[name] for fold in folds.values()]).items()
        }
    best = records[0]
    setting = best["setting"]
    return result | {
        "hparams": {
            **{"hidden_layers": setting["hidden_layers"], "lr": setting["learning_rate"]},
            **{"initialization": setting["initialization"], "max_epochs": setting["max_epochs"]},
            **{"check_val_every_n_epoch": setting["validate_every"], "hidden_dim": HIDDEN_WIDTH},
            **{"dropout": DROPOUT, "batch_size": BATCH_ROWS, "patience": PATIENCE},
        },
        "postprocessing": _heareval_postprocessing(best["postprocessing"]),
        "score_mode": best["score_mode"],
        "metric": task.metrics[0],
        "classes_without_test_rows": max(record["classes_without_test_rows"] for record in records),
    }


def _tested(record: dict[str, Any]) -> dict[str, float]:
    """Under heareval's names; it counts epochs from 0."""
    return {f"test_{name}": _number(value) for name, value in record["test"].items()} | {
        "validation_score": record["validation_score"],
        "epoch": record["epochs"] - 1,
        "time_in_min": record["seconds"] / 60,
    }


def _mean_and_deviation(values: list[float]) -> dict[str, float]:
    """Over folds; the deviation is the sample's (n - 1) [source heareval]."""
    return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1))}


def _heareval_postprocessing(how: dict[str, float] | None) -> list[list[object]]:
    if how is None:
        return []
    return [["median_filter_ms", how["median_filter_ms"]], ["min_duration", how["min_duration_ms"]]]


def _result_name(options: Options) -> str:
    if options.seed == SEED:
        return RESULT_FILE
    return RESULT_FILE.replace(".json", f".seed{options.seed}.json")


def _number(value: float | None) -> float:
    """What was not a number came back from JSON as ``null``."""
    return float("nan") if value is None else value


def _plain_truth(task: HearTask, split: str) -> dict[str, Any]:
    if not task.is_event:
        return task.truth[split]
    return {name: [asdict(event) for event in events] for name, events in task.reference(split).items()}
