"""HEAR task folders as published, checked before hours are spent on them.

TASK/task_metadata.json        what kind of task, its splits and metrics
TASK/labelvocabulary.csv       idx,label
TASK/SPLIT.json                scenes: {file: [label, ...]}; events: {file: [{label, start, end in ms}, ...]}
TASK/SAMPLE_RATE/SPLIT/*.wav   the same clips at one or several sample rates
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mavil.evaluation.hear.events import Event
from mavil.evaluation.hear.grid import POSTPROCESSING, Postprocessing, postprocessing_grid
from mavil.evaluation.hear.scores import METRICS
from mavil.structs import UserError

METADATA = "task_metadata.json"
VOCABULARY = "labelvocabulary.csv"


@dataclass(frozen=True)
class Fold:
    """Names of the splits for one training; ``test`` also names the fold."""

    train: tuple[str, ...]
    valid: str
    test: str


@dataclass(frozen=True)
class HearTask:
    """One task folder.

    ``labels`` are in the order of their indices. ``truth[split][file]`` are the labels of a scene, or its events.
    ``monitors_loss``: stop early on the validation loss and not on the first metric. ``grid_changes`` replace entries of
    the predictor's grid.
    """

    folder: Path
    name: str
    mode: str
    is_event: bool
    is_multilabel: bool
    duration_seconds: float | None
    metrics: tuple[str, ...]
    labels: tuple[str, ...]
    splits: tuple[str, ...]
    folds: tuple[Fold, ...]
    truth: dict[str, dict[str, list[Any]]]
    monitors_loss: bool
    postprocessing: tuple[Postprocessing, ...]
    grid_changes: dict[str, list[Any]]

    @property
    def key(self) -> str:
        """The folder's name, which tells versions and sizes of a task apart."""
        return self.folder.name

    def reference(self, split: str) -> dict[str, list[Event]]:
        """The events of every file of a split of an event task."""
        return self.truth[split]


def find_tasks(folder: Path, names: Sequence[str] = ()) -> list[Path]:
    """Task folders in ``folder`` (or itself, if it is one), all or those named by folder or by task.

    Raises:
        UserError: there is none, or a name fits none.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder that holds HEAR's task folders")
    found = [folder] if (folder / METADATA).is_file() else sorted(p.parent for p in folder.glob(f"*/{METADATA}"))
    if not found:
        raise UserError(f"{folder}: no HEAR task in it: none of its folders has a {METADATA}")
    if not names:
        return found
    chosen = []
    for name in names:
        fitting = [path for path in found if path.name == name] or [p for p in found if _task_name(p) == name]
        if not fitting:
            raise UserError(f"{folder} has no task {name!r}; it has {', '.join(path.name for path in found)}")
        chosen += [path for path in fitting if path not in chosen]
    return chosen


def read_task(folder: Path) -> HearTask:
    """Read a task folder and check that its parts fit together, all but the sound files.

    Raises:
        UserError: a file is missing or damaged, a label or a metric is unknown; the message names the file and the value.
    """
    metadata = _object(folder / METADATA)
    labels = _vocabulary(folder / VOCABULARY)
    kind = _one_of(folder, metadata, "embedding_type", ("scene", "event"))
    is_multilabel = _one_of(folder, metadata, "prediction_type", ("multiclass", "multilabel")) == "multilabel"
    if kind == "event" and not is_multilabel:
        raise UserError(f"{folder / METADATA}: prediction_type is multiclass, events need multilabel")
    splits = _names(folder, metadata, "splits")
    monitors_loss = not metadata.get("use_scoring_for_early_stopping", True)
    parameters = metadata.get("evaluation_params") or {}
    candidates = tuple(postprocessing_grid(parameters.get("event_postprocessing_grid", POSTPROCESSING)))
    if monitors_loss and kind == "event" and len(candidates) != 1:
        raise UserError(
            f"{folder / METADATA}: {len(candidates)} settings in event_postprocessing_grid, but "
            "use_scoring_for_early_stopping is false, so nothing chooses among them: leave one"
        )
    read_truth = _events if kind == "event" else _scenes
    return HearTask(
        folder=folder,
        name=str(metadata.get("task_name", folder.name)),
        mode=str(metadata.get("mode") or folder.name.rpartition("-")[2]),
        is_event=kind == "event",
        is_multilabel=is_multilabel,
        duration_seconds=metadata.get("sample_duration"),
        metrics=_metrics(folder, metadata, kind),
        labels=labels,
        splits=splits,
        folds=_folds(folder, metadata, splits),
        truth={split: read_truth(folder / f"{split}.json", set(labels), is_multilabel) for split in splits},
        monitors_loss=monitors_loss,
        postprocessing=candidates,
        grid_changes=dict(parameters.get("task_specific_param_grid", {})),
    )


def sounds_of(task: HearTask, sample_rate_hz: int) -> tuple[Path, int]:
    """Where the task's clips are, and their sample rate: the one asked for, else the largest there is (to resample).

    Raises:
        UserError: no sample rate folder has a file for every clip; the message names the first that is missing.
    """
    rates = sorted(int(path.name) for path in task.folder.iterdir() if path.name.isdigit() and path.is_dir())
    if not rates:
        raise UserError(f"{task.folder}: no folder of sounds, e.g. {sample_rate_hz}/{task.splits[0]}/*.wav")
    rate = sample_rate_hz if sample_rate_hz in rates else rates[-1]
    for split in task.splits:
        folder = task.folder / str(rate) / split
        there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        missing = [name for name in task.truth[split] if name not in there]
        if missing:
            raise UserError(
                f"{folder}: {len(missing)} of {len(task.truth[split])} sound files are missing, first {missing[0]}; "
                "unpack the task again"
            )
    return task.folder / str(rate), rate


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); unpack the task again") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); unpack the task again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: a JSON object is expected, not a {type(value).__name__}")
    return value


def _vocabulary(path: Path) -> tuple[str, ...]:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            labels = {int(row["idx"]): str(row["label"]) for row in csv.DictReader(file)}
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); unpack the task again") from None
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: lines of idx,label are expected, idx a whole number") from None
    if sorted(labels) != list(range(len(labels))) or len(set(labels.values())) != len(labels) or not labels:
        raise UserError(f"{path}: the indices of the {len(labels)} labels must be 0, 1, 2, ... and no label come twice")
    return tuple(labels[index] for index in range(len(labels)))


def _one_of(folder: Path, metadata: dict[str, Any], name: str, choices: tuple[str, ...]) -> str:
    value = metadata.get(name)
    if value not in choices:
        raise UserError(f"{folder / METADATA}: {name} is {value!r}, it must be one of {', '.join(choices)}")
    return str(value)


def _names(folder: Path, metadata: dict[str, Any], name: str) -> tuple[str, ...]:
    value = metadata.get(name)
    if not isinstance(value, list) or not value or not all(isinstance(entry, str) for entry in value):
        raise UserError(f"{folder / METADATA}: {name} is {value!r}, a list of names is expected")
    return tuple(value)


def _metrics(folder: Path, metadata: dict[str, Any], kind: str) -> tuple[str, ...]:
    names = _names(folder, metadata, "evaluation")
    known = [name for name, metric in METRICS.items() if metric.is_event == (kind == "event")]
    for name in names:
        if name not in known:
            raise UserError(
                f"{folder / METADATA}: unknown metric {name!r} for a {kind} task; known: {', '.join(known)}"
            )
    return names


def _folds(folder: Path, metadata: dict[str, Any], splits: tuple[str, ...]) -> tuple[Fold, ...]:
    """Test on fold i, validate on i + 1, train on the rest, in the order of their names [source heareval]."""
    mode = _one_of(folder, metadata, "split_mode", ("trainvaltest", "new_split_kfold", "presplit_kfold"))
    if mode == "trainvaltest":
        if missing := [name for name in ("train", "valid", "test") if name not in splits]:
            raise UserError(f"{folder / METADATA}: splits {', '.join(splits)} lack {missing[0]!r}")
        return (Fold(("train",), "valid", "test"),)
    names = sorted(set(splits))
    if len(names) < 3 or len(names) != len(splits):
        raise UserError(f"{folder / METADATA}: cross-validation needs three different folds or more, not {splits}")
    pairs = zip(names, [*names[1:], names[0]], strict=True)
    return tuple(Fold(tuple(n for n in names if n not in (test, valid)), valid, test) for test, valid in pairs)


def _scenes(path: Path, known: set[str], is_multilabel: bool) -> dict[str, list[Any]]:
    truth: dict[str, list[Any]] = {}
    for name, labels in _files(path).items():
        if not isinstance(labels, list) or (not is_multilabel and len(labels) != 1):
            wanted = "a list of labels" if is_multilabel else "exactly one label"
            raise UserError(f"{path}: {name} has {labels!r}, {wanted} is expected")
        truth[name] = [_known(path, name, label, known) for label in labels]
    return truth


def _events(path: Path, known: set[str], _: bool) -> dict[str, list[Any]]:
    truth: dict[str, list[Any]] = {}
    for name, entries in _files(path).items():
        try:
            events = [Event(str(e["label"]), float(e["start"]), float(e["end"])) for e in entries]
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{path}: the events of {name} need label, start and end (ms)") from None
        for event in events:
            _known(path, name, event.label, known)
            if not 0 <= event.start_ms <= event.end_ms:
                raise UserError(f"{path}: {name} has an event from {event.start_ms} to {event.end_ms} ms")
        truth[name] = list(events)
    return truth


def _files(path: Path) -> dict[str, Any]:
    files = _object(path)
    if not files:
        raise UserError(f"{path}: no clip in it; unpack the task again")
    if bad := [name for name in files if Path(name).name != name]:
        raise UserError(f"{path}: {bad[0]!r} is not the name of a file")
    return files


def _known(path: Path, name: str, label: object, known: set[str]) -> str:
    if str(label) not in known:
        raise UserError(f"{path}: {name} has label {str(label)!r}, which {VOCABULARY} lacks")
    return str(label)


def _task_name(folder: Path) -> str | None:
    try:
        return _object(folder / METADATA).get("task_name")
    except UserError:  # told when it is read
        return None
