"""A task of three parameters and endless batches for it: everything the trainer touches, in microseconds."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from mavil.distributed import rank, world_size
from mavil.engine.checkpoints.reading import load_state, newest_checkpoint
from mavil.engine.checkpoints.saving import Saver, prefixes_of
from mavil.engine.evaluating import Evaluator
from mavil.engine.health import Health
from mavil.engine.metrics.tracker import Tracker
from mavil.engine.optim import warmup_cosine
from mavil.engine.parallel import ParallelKind, parallelise
from mavil.engine.process.stopping import stop_on_signals
from mavil.engine.run.folder import start_run
from mavil.engine.stand_in import StandIn
from mavil.engine.trainer import Intervals, Trainer
from mavil.engine.update import Updater
from mavil.engine.weight_average import MeanOfLast, WeightAverage
from mavil.seeds import sample_seed
from mavil.structs import Batch, Inputs, LossReport
from mavil.tasks.base import ParameterGroup

NUM_STEPS = 6


class FakeModel(nn.Module):
    """``scale * (weights . x + bias)``, with dropout so that a wrong random state shows."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([0.5, -0.25]))
        self.bias = nn.Parameter(torch.tensor(0.1))
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.dropout = nn.Dropout(dropout)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.scale * (self.dropout(inputs) @ self.weights + self.bias)


class FakeTask:
    """Regression of the sum of two numbers."""

    def __init__(self, dropout: float = 0.0) -> None:
        self.model: nn.Module = FakeModel(dropout)
        self.evaluated_in_training_mode: list[bool] = []

    def loss(self, inputs: Inputs, step: int) -> LossReport:
        values = inputs.of("audio").flatten(1)
        error = F.mse_loss(self.model(values), values.sum(dim=1))
        return LossReport({"error": error, "zero": error * 0}, {"error": 2.0, "zero": 1.0}, {"num_clips": len(inputs)})

    def parameter_groups(self, weight_decay: float, layer_decay: float) -> list[ParameterGroup]:
        named = dict(self.model.named_parameters())
        return [
            ParameterGroup([named["weights"]], ["weights"], layer_decay, weight_decay),
            ParameterGroup([named["bias"], named["scale"]], ["bias", "scale"], 1.0, 0.0),
        ]

    def evaluate(self, batches: Iterable[Inputs]) -> dict[str, float]:
        self.evaluated_in_training_mode.append(self.model.training)
        torch.rand(3)  # an evaluation may use random numbers; the training must not notice
        values = torch.cat([inputs.of("audio").flatten(1) for inputs in batches])
        return {"error": float(F.mse_loss(self.model(values), values.sum(dim=1)))}

    def export_modules(self) -> dict[str, nn.Module]:
        return {"whole": self.model}


@dataclass
class FakeBatches:
    """Clips ``clip_<n>`` in order, split over the ranks; what happens at a given clip is part of it.

    ``spoilt`` becomes NaN; reading ``stopped_at`` sends this process a signal; reading ``lost_at`` raises.
    """

    clips_per_batch: int = 2
    first: int = 0
    spoilt: int | None = None
    stopped_at: int | None = None
    lost_at: int | None = None

    def __iter__(self) -> Iterator[Batch]:
        torch.rand(5)  # a DataLoader draws a number when it starts
        first = self.first
        while True:
            numbers = [first + rank() * self.clips_per_batch + i for i in range(self.clips_per_batch)]
            first += self.clips_per_batch * world_size()
            if self.stopped_at in numbers:
                os.kill(os.getpid(), signal.SIGTERM)
            if self.lost_at in numbers:
                raise RuntimeError("the disk went away")
            yield self._batch(numbers, {"first": first})

    def _batch(self, numbers: list[int], position: dict[str, Any]) -> Batch:
        waveforms = torch.stack([clip_values(n) for n in numbers])
        for i, number in enumerate(numbers):
            if number == self.spoilt:
                waveforms[i] = torch.nan
        return Batch([f"clip_{n}" for n in numbers], torch.tensor(numbers), waveforms, position=position)


def clip_values(number: int) -> Tensor:
    return torch.randn(2, generator=torch.Generator().manual_seed(sample_seed("clip", number)))


def prepare(batch: Batch) -> Inputs:
    assert batch.waveforms is not None
    return Inputs(batch.keys, batch.seeds, audio=batch.waveforms[:, None, None, :])


def assert_same_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def evaluation() -> list[Inputs]:
    return [prepare(next(iter(FakeBatches(first=1000))))]


def train(
    run: Path, batches: FakeBatches | None = None, resume: bool = False, dropout: float = 0.0, **settings: Any
) -> Trainer:
    """Put the parts together as a command does, train to the end and return the trainer."""
    with assembled(run, batches, resume, dropout, **settings) as trainer:
        trainer.fit()
    return trainer


@contextmanager
def assembled(
    run: Path,
    batches: FakeBatches | None = None,
    resume: bool = False,
    dropout: float = 0.0,
    *,
    kind: ParallelKind = "ddp",
    num_steps: int = NUM_STEPS,
    keep: int = 2,
    ema_decay: float | None = None,
    mean: tuple[int, int] | None = None,
    best: tuple[str, Literal["highest", "lowest"]] | None = None,
    evaluation: Callable[[], Iterable[Inputs]] | None = None,
    intervals: Intervals = Intervals(),  # noqa: B008 (frozen)
    make_task: Callable[[float], FakeTask] = FakeTask,
    health: Health | None = None,
    **update: Any,
) -> Iterator[Trainer]:
    """A trainer of the fake task, at its start or where the run in the folder was cut off; stopped by signals."""
    batches = batches or FakeBatches()
    torch.manual_seed(rank())
    start_run(run, "name: fake\nseed: 0\n", resume)
    checkpoint = newest_checkpoint(run)
    task = make_task(dropout)
    if checkpoint is not None:
        load_state(task.model, checkpoint.model, "the checkpoint")
        if checkpoint.state.position is not None:
            batches.first = checkpoint.state.position["first"]
    saver = Saver(run, prefixes_of(task.model, task.export_modules()), keep)
    parallel = parallelise(kind, task.model, lambda: task.parameter_groups(0.1, 0.5), (0.9, 0.95), torch.device("cpu"))
    average: StandIn | None = WeightAverage(parallel, ema_decay) if ema_decay is not None else None
    if mean is not None:
        average = MeanOfLast(parallel, num_steps, *mean)
    step = checkpoint.state.step if checkpoint else 0
    with stop_on_signals() as request, Tracker(run, num_steps, Console(file=io.StringIO()), step) as tracker:
        trainer = Trainer(
            updater=Updater(task, parallel, prepare, torch.device("cpu"), average=average, **update),
            batches=batches,
            learning_rate=partial(warmup_cosine, peak=0.1, warmup_steps=2, total_steps=NUM_STEPS, minimum=0.01),
            num_steps=num_steps,
            run=run,
            tracker=tracker,
            saver=saver,
            request=request,
            intervals=intervals,
            evaluator=Evaluator(evaluation, *(best or ())) if evaluation else None,
            health=health or Health(),
        )
        if checkpoint is not None:
            trainer.restore(checkpoint)
        try:
            yield trainer
        finally:
            saver.close()
