"""The loop. It takes its parts from outside, knows a task only by its five members, and is the same for all of them."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import ClassVar, NoReturn

import torch
from torch import Tensor, nn

from mavil import distributed
from mavil.engine.checkpoint import Checkpoint, load_state, save_checkpoint, write_text
from mavil.engine.optim import set_learning_rate, trained_parameters
from mavil.engine.parallel import averaging, wrap_model
from mavil.engine.runtime import Precision, StopRequest, random_state, set_random_state, stop_on_signals
from mavil.engine.tracker import Averages, Tracker
from mavil.engine.wording import first_names
from mavil.structs import Batch, Inputs, LossReport, TrainState, UserError
from mavil.tasks.base import Task

logger = logging.getLogger(__name__)


class Interrupted(Exception):  # noqa: N818 (nothing went wrong)
    """Somebody asked the run to stop; it saved a checkpoint and ``--resume`` goes on from it."""

    exit_code: ClassVar[int] = 75
    """``EX_TEMPFAIL`` of sysexits.h: not an error, try again later. A queue can requeue on it."""


@dataclass
class _Meter:
    """Times and clips since the last log; evaluation and saving are not in it."""

    seconds: float = 0.0
    waiting_seconds: float = 0.0
    clips: int = 0


@dataclass
class Trainer:
    """Trains ``task`` for ``num_steps`` optimizer updates.

    Args:
        task: what a step computes; see :class:`mavil.tasks.base.Task`.
        batches: endless; one batch is one micro-step of this rank, and all have the same number of clips.
        prepare: turns a batch of the loader into the model's inputs on ``device``; runs without gradient in fp32.
        optimizer: from :func:`mavil.engine.optim.build_optimizer`.
        learning_rate: rate of the update after ``step`` finished ones; a pure function, nothing is replayed on resume.
        num_steps: optimizer updates in total, those before a resume included.
        run: the run folder, as :func:`mavil.engine.run_folder.start_run` left it.
        tracker: where metrics go; entered and left by the caller.
        device: of this rank; the model is moved there.
        precision: ``bf16`` runs the task's loss and evaluation under autocast; weights stay fp32.
        accumulation: micro-steps per step; their mean loss is differentiated.
        clip_norm: largest gradient norm; ``None`` only measures it.
        log_every: steps between metric lines; the first and the last step are always logged.
        checkpoint_every: steps between checkpoints; the last step always has one.
        keep_checkpoints: older ones are deleted.
        evaluate_every: steps between evaluations, ``None`` only after the last step.
        evaluation: this rank's share of the evaluation set, made anew for each evaluation; ``None`` never evaluates.
    """

    task: Task
    batches: Iterable[Batch]
    prepare: Callable[[Batch], Inputs]
    optimizer: torch.optim.Optimizer
    learning_rate: Callable[[int], float]
    num_steps: int
    run: Path
    tracker: Tracker
    device: torch.device
    precision: Precision = "fp32"
    accumulation: int = 1
    clip_norm: float | None = None
    log_every: int = 20
    checkpoint_every: int | None = None
    keep_checkpoints: int = 2
    evaluate_every: int | None = None
    evaluation: Callable[[], Iterable[Inputs]] | None = None
    state: TrainState = field(default_factory=TrainState, init=False)
    _averages: Averages = field(default_factory=Averages, init=False)
    _meter: _Meter = field(default_factory=_Meter, init=False)

    def __post_init__(self) -> None:
        self.model = self.task.model.to(self.device)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint; call it last before :meth:`fit`, because it sets the random generators.

        Raises:
            UserError: the checkpoint belongs to another model.
        """
        load_state(self.model, checkpoint.model, checkpoint.source or "the checkpoint")
        self.optimizer.load_state_dict(checkpoint.optimizer)
        self.state = checkpoint.state
        self._averages.load_state_dict(checkpoint.averages)
        if checkpoint.random is not None:
            set_random_state(checkpoint.random, self.device)

    def fit(self) -> dict[str, float]:
        """Train up to ``num_steps`` and return the metrics of the last evaluation (empty without one).

        A run that is already complete is only evaluated.

        Raises:
            UserError: a loss or gradient was not finite; raised on every rank before the update, the clips are named.
            Interrupted: a signal asked for it; a checkpoint of the last finished step is saved.
        """
        if not self.model.training:
            raise ValueError(
                "the task's model is in evaluation mode: hand it over in training mode (frozen parts aside)"
            )
        wrapped = wrap_model(self.model)
        batches = self._batches_apart()
        metrics = self._evaluate() if self.state.step >= self.num_steps else {}
        with stop_on_signals() as request:
            while self.state.step < self.num_steps:
                is_stopping = self._step(wrapped, batches, request)
                step = self.state.step
                is_last = step == self.num_steps
                self.tracker.advance(step)
                if step == 1 or is_last or step % self.log_every == 0:
                    self._log()
                if is_last or is_stopping or self._is_due(self.checkpoint_every):
                    self._save()
                if is_stopping and not is_last:
                    raise Interrupted(
                        f"stopped by {request.signal_name or 'a signal to another rank'} after step {step} of "
                        f"{self.num_steps}; the checkpoint in {self.run} is complete, --resume continues from it"
                    )
                if is_last or self._is_due(self.evaluate_every):
                    metrics = self._evaluate()
        return metrics

    def _is_due(self, every: int | None) -> bool:
        return every is not None and self.state.step % every == 0

    def _step(self, wrapped: nn.Module, batches: Iterator[Batch], request: StopRequest) -> bool:
        """One optimizer update, or an error on every rank; returns whether some rank was asked to stop."""
        started = perf_counter()
        set_learning_rate(self.optimizer, self.learning_rate(self.state.step))
        self.optimizer.zero_grad()
        keys: list[str] = []
        metrics: list[dict[str, Tensor | float]] = []
        for micro_step in range(self.accumulation):
            waiting = perf_counter()
            batch = next(batches)
            self._meter.waiting_seconds += perf_counter() - waiting
            keys += batch.keys
            with averaging(wrapped, is_last=micro_step == self.accumulation - 1):
                metrics.append(self._forward_backward(wrapped, batch))
        loss = torch.stack([torch.as_tensor(values["loss/total"]) for values in metrics]).mean()
        norm = torch.nn.utils.get_total_norm(self._gradients())
        # The one device read of a step, and it is needed: after the update it would be too late. It also carries the vote
        # on stopping, so that all ranks leave after the same step.
        is_finite = torch.isfinite(loss) & torch.isfinite(norm)
        is_going_on = torch.full_like(is_finite, request.signal_name is None)
        all_finite, all_going_on = distributed.agree_all(torch.stack([is_finite, is_going_on]))
        if not all_finite:
            self._refuse_update(keys, float(loss), float(norm), metrics)
        if self.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(trained_parameters(self.optimizer), self.clip_norm, norm)
        self.optimizer.step()
        num_clips = len(keys) * distributed.world_size()
        self.state = TrainState(self.state.step + 1, self.state.samples_seen + num_clips, batch.position)
        for values in metrics:
            self._averages.add(values)
        self._averages.add({"optim/gradient_norm": norm})
        self._meter.clips += num_clips
        self._meter.seconds += perf_counter() - started
        return not all_going_on

    def _batches_apart(self) -> Iterator[Batch]:
        """The batches, drawn without touching this process's generators.

        A DataLoader draws a number whenever it starts its workers, at other steps in a resumed run than in one that never
        stopped; dropped paths must not depend on that.
        """
        batches: Iterator[Batch] | None = None
        while True:
            with torch.random.fork_rng(devices=[]):
                batches = iter(self.batches) if batches is None else batches
                batch = next(batches, None)
            if batch is None:
                raise ValueError(f"the training batches ended at step {self.state.step}: the loader must be endless")
            yield batch

    def _forward_backward(self, wrapped: nn.Module, batch: Batch) -> dict[str, Tensor | float]:
        """Add one micro-step's gradient and return what is logged about it, still on the device."""
        with torch.no_grad():
            inputs = self.prepare(batch)
        # Only here: evaluation and export see the task's own model, which talks to no other rank.
        self.task.model = wrapped
        try:
            with self._autocast():
                report = self.task.loss(inputs, self.state.step)
                total = report.total
            (total / self.accumulation).backward()
        finally:
            self.task.model = self.model
        return _metrics_of(report, total.detach())

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in trained_parameters(self.optimizer) if p.grad is not None]

    def _refuse_update(
        self, keys: list[str], loss: float, norm: float, metrics: list[dict[str, Tensor | float]]
    ) -> NoReturn:
        """Write the clips of this step to the run folder and raise, on every rank alike."""
        terms = [{name: str(float(value)) for name, value in values.items()} for values in metrics]
        own = {"loss": str(loss), "gradient_norm": str(norm), "keys": keys, "micro_steps": terms}
        ranks = distributed.gather_objects(own)
        step = self.state.step + 1
        path = self.run / f"nonfinite_step_{step:08d}.json"
        if distributed.is_main():
            write_text(path, json.dumps({"step": step, "ranks": ranks}, indent=2) + "\n")
        # The first rank to leave may end the others, and the file must be there by then.
        distributed.barrier()
        # The gradient is averaged over ranks, so it tells nothing about whose clips spoilt it; the loss may.
        guilty = [r for r, other in enumerate(ranks) if not math.isfinite(float(other["loss"]))] or range(len(ranks))
        named = [f"rank {r}: {first_names(ranks[r]['keys'])}" for r in guilty]
        raise UserError(
            f"step {step}: the loss ({loss:g} on rank {distributed.rank()}) or its gradient (norm {norm:g}) is not finite; "
            f"nothing was updated. Clips: {'; '.join(named)} (all in {path}). Look at these clips, or lower optimizer.base_lr"
        )

    def _log(self) -> None:
        metrics = self._averages.read(self.device)
        metrics["optim/lr"] = self.learning_rate(self.state.step - 1)
        metrics["progress/samples_seen"] = self.state.samples_seen
        conditions = {
            "speed/clips_per_second": self._meter.clips / self._meter.seconds if self._meter.seconds else 0.0,
            "speed/data_wait_share": self._meter.waiting_seconds / self._meter.seconds if self._meter.seconds else 0.0,
        }
        if self.device.type == "cuda":
            conditions["memory/peak_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        self._meter = _Meter()
        self.tracker.log(self.state.step, metrics, conditions)

    def _evaluate(self) -> dict[str, float]:
        if self.evaluation is None:
            return {}
        # Module by module, because a task may keep frozen parts in evaluation mode while it trains.
        modes = [(module, module.training) for module in self.model.modules()]
        devices = [self.device] if self.device.type == "cuda" else []
        self.model.eval()
        try:
            # An evaluation may draw random numbers, the training that follows must not notice.
            with torch.no_grad(), self._autocast(), torch.random.fork_rng(devices=devices):
                metrics = self.task.evaluate(self.evaluation())
        finally:
            for module, was_training in modes:
                module.training = was_training
        self.tracker.log_evaluation(self.state.step, metrics)
        return metrics

    def _save(self) -> None:
        checkpoint = Checkpoint(
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            state=self.state,
            random=random_state(self.device),
            averages=self._averages.state_dict(),
        )
        path = save_checkpoint(self.run, checkpoint, self.task.export_modules(), self.keep_checkpoints)
        logger.info("step %d: checkpoint %s", self.state.step, path)


def _metrics_of(report: LossReport, total: Tensor) -> dict[str, Tensor | float]:
    metrics: dict[str, Tensor | float] = {"loss/total": total}
    for name, value in report.terms.items():
        metrics[f"loss/{name}"] = value.detach()
        metrics[f"loss_weighted/{name}"] = value.detach() * report.weights[name]
    for name, scalar in report.scalars.items():
        metrics[f"train/{name}"] = scalar.detach() if isinstance(scalar, Tensor) else scalar
    return metrics
