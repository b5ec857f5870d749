"""What a split says about a predictor's logits: the loss, the metrics, and the way to make events of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from mavil.evaluation.hear.embeddings import SplitEmbeddings
from mavil.evaluation.hear.event_scores import Events
from mavil.evaluation.hear.events import Event, events_of, frame_targets
from mavil.evaluation.hear.grid import Postprocessing
from mavil.evaluation.hear.predictor import Verdict, loss_of
from mavil.evaluation.hear.scores import METRICS, event_metrics, scene_metrics
from mavil.evaluation.hear.tasks import HearTask


def targets_of(task: HearTask, split: str, stored: SplitEmbeddings) -> np.ndarray:
    """``[rows, classes]`` float32 multi-hot, a row for every embedding of the split."""
    truth = task.truth[split]
    if task.is_event:
        assert stored.timestamps_ms is not None
        times = stored.timestamps_ms
        return np.concatenate(
            [frame_targets(truth[name], times[rows], task.labels) for name, rows in stored.per_file()]
        )
    index = {label: i for i, label in enumerate(task.labels)}
    targets = np.zeros((len(stored.files), len(task.labels)), dtype=np.float32)
    for row, name in enumerate(stored.files):
        targets[row, [index[label] for label in truth[name]]] = 1.0
    return targets


@dataclass(frozen=True)
class Judge:
    """One split of a task, with the targets ``[rows, classes]`` on the device of the logits it is asked about."""

    task: HearTask
    split: str
    stored: SplitEmbeddings
    targets: Tensor

    def verdict(self, logits: Tensor) -> Verdict:
        """What early stopping looks at: the task's first metric, or its loss where the task says so.

        For events the choice is the post-processing with the best value of that metric; of equal ones that with the longer
        shortest event [source heareval].
        """
        task = self.task
        if task.monitors_loss:
            choice = task.postprocessing[0] if task.is_event else None
            return Verdict(self._loss(logits), is_maximised=False, choice=choice)
        name = task.metrics[0]
        is_maximised = METRICS[name].is_maximised
        if not task.is_event:
            return Verdict(self._scene_metrics(logits, (name,))[name], is_maximised)
        probabilities = logits.sigmoid().cpu().numpy()
        best: Verdict | None = None
        for how in sorted(task.postprocessing, reverse=True):
            value = event_metrics((name,), self._reference, self._events(probabilities, how), task.labels)[name]
            verdict = Verdict(value, is_maximised, how)
            if best is None or verdict.beats(best):
                best = verdict
        assert best is not None
        return best

    def results(self, logits: Tensor, choice: object) -> dict[str, float]:
        """All metrics of the task, and the ``loss``; ``choice`` is what the best verdict chose."""
        task = self.task
        if task.is_event:
            assert isinstance(choice, Postprocessing)
            events = self._events(logits.sigmoid().cpu().numpy(), choice)
            metrics = event_metrics(task.metrics, self._reference, events, task.labels)
        else:
            metrics = self._scene_metrics(logits, task.metrics)
        return {"loss": self._loss(logits), **metrics, "score": metrics[task.metrics[0]]}

    @property
    def _reference(self) -> Events:
        return self.task.reference(self.split)

    def _loss(self, logits: Tensor) -> float:
        value = float(loss_of(logits, self.targets, self.task.is_multilabel))
        return value if math.isfinite(value) else math.nan

    def _scene_metrics(self, logits: Tensor, names: tuple[str, ...]) -> dict[str, float]:
        scores = logits.sigmoid() if self.task.is_multilabel else logits.softmax(1)
        return scene_metrics(names, scores.cpu().numpy(), self.targets.cpu().numpy())

    def _events(self, probabilities: np.ndarray, how: Postprocessing) -> dict[str, list[Event]]:
        times = self.stored.timestamps_ms
        assert times is not None
        return {
            name: events_of(probabilities[rows], times[rows], self.task.labels, how)
            for name, rows in self.stored.per_file()
        }
