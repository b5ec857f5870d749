"""Evaluations during training: in evaluation mode, without touching what training goes on with; and which one was the best."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from mavil import distributed
from mavil.engine.metrics.tracker import EVALUATION as PREFIX
from mavil.engine.metrics.tracker import read_metrics
from mavil.engine.precision import autocast
from mavil.engine.update import Updater
from mavil.structs import Inputs, UserError


@dataclass(frozen=True)
class Evaluator:
    """Evaluates a task with the weights of the moment, or with their moving average where there is one.

    Attributes:
        batches: this rank's share of the evaluation set, made anew for each evaluation.
        best_metric: the metric whose best checkpoint is kept; ``None`` keeps the newest ones only.
        best_is: which value of it is the best.
    """

    batches: Callable[[], Iterable[Inputs]]
    best_metric: str | None = None
    best_is: Literal["highest", "lowest"] = "highest"

    def evaluate(self, updater: Updater, beat: Callable[[str], None]) -> dict[str, float]:
        """The task's metrics, the same on every rank; ``beat`` is told of every batch."""
        model, device = updater.parallel.model, updater.device
        # Module by module, because a task may keep frozen parts in evaluation mode while it trains.
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            with ExitStack() as around:
                around.enter_context(torch.no_grad())
                # An evaluation may draw random numbers, the training that follows must not notice.
                around.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
                if updater.average is not None:
                    around.enter_context(updater.average.in_place_of_weights())
                around.enter_context(updater.parallel.complete())
                around.enter_context(autocast(device, updater.precision))
                return updater.task.evaluate(_with_beats(self.batches(), beat))
        finally:
            for module, was_training in modes:
                module.training = was_training

    def is_best(self, metrics: dict[str, float], best: float | None) -> bool:
        """Whether this evaluation beats the ``best`` value before; never where no metric was named.

        Raises:
            UserError: the evaluation gives no such metric.
        """
        if self.best_metric is None:
            return False
        if self.best_metric not in metrics:
            raise UserError(
                f"trainer.best_metric is {self.best_metric}, but the evaluation gives {', '.join(sorted(metrics))}: "
                "name one of these"
            )
        value = metrics[self.best_metric]
        return best is None or (value > best if self.best_is == "highest" else value < best)


def evaluation_of(run: Path, step: int) -> dict[str, float]:
    """The metrics of the evaluation of that step, the same on every rank; empty where there was none."""
    lines = read_metrics(run) if distributed.is_main() else []
    found: dict[str, float] = {}
    for line in lines:
        if line["step"] == step:
            names = [name for name in line["metrics"] if name.startswith(PREFIX)]
            found |= {name.removeprefix(PREFIX): line["metrics"][name] for name in names}
    return dict(distributed.broadcast_object(found))


def _with_beats(batches: Iterable[Inputs], beat: Callable[[str], None]) -> Iterator[Inputs]:
    for inputs in batches:
        beat("evaluating")
        yield inputs
    beat("gathering the evaluation")
