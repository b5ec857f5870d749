"""The loop. It takes its parts from outside, knows a task only by its five members, and is the same for all of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, perf_counter

import torch

from mavil import distributed
from mavil.engine.checkpoints.reading import Checkpoint
from mavil.engine.checkpoints.saving import Saver
from mavil.engine.evaluating import Evaluator, evaluation_of
from mavil.engine.health import Health
from mavil.engine.intervals import Intervals as Intervals
from mavil.engine.metrics.meter import Meter
from mavil.engine.metrics.tracker import Averages, Tracker, read_metrics
from mavil.engine.nonfinite import refuse_update
from mavil.engine.process.runtime import random_state, set_random_state
from mavil.engine.process.stopping import Interrupted, StopRequest
from mavil.engine.process.watchdog import Watchdog
from mavil.engine.update import Attempt, Updater, Verdict, Wishes
from mavil.structs import Batch, TrainState, UserError

logger = logging.getLogger(__name__)


@dataclass
class Trainer:
    """Trains for ``num_steps`` optimizer updates.

    Args:
        updater: how a step is computed, with the task, its model over the ranks and the optimizer.
        batches: endless; one batch is one micro-step of this rank, and all have the same number of clips.
        learning_rate: rate of the update after ``step`` finished ones; a pure function, nothing is replayed on resume.
        num_steps: optimizer updates in total, those before a resume included.
        run: the run folder, as :func:`mavil.engine.run.folder.start_run` left it.
        tracker: where metrics go; entered and left by the caller.
        saver: where checkpoints go.
        request: filled in when somebody asks this process to stop.
        watchdog: told of every bit of progress; entered and left by the caller.
        intervals: what is due when.
        evaluator: ``None`` never evaluates.
        health: looks at what is logged; with limits it may end the run.
    """

    updater: Updater
    batches: Iterable[Batch]
    learning_rate: Callable[[int], float]
    num_steps: int
    run: Path
    tracker: Tracker
    saver: Saver
    request: StopRequest = field(default_factory=StopRequest)
    watchdog: Watchdog | None = None
    intervals: Intervals = field(default_factory=Intervals)
    evaluator: Evaluator | None = None
    health: Health = field(default_factory=Health)
    state: TrainState = field(default_factory=TrainState, init=False)
    _averages: Averages = field(default_factory=Averages, init=False)
    _meter: Meter = field(default_factory=Meter, init=False)
    _unread: tuple[Attempt, TrainState] | None = field(default=None, init=False)
    _is_stopping: bool = field(default=False, init=False)
    _is_save_due: bool = field(default=False, init=False)
    _saved: tuple[int, float] = field(default_factory=lambda: (0, monotonic()), init=False)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint whose model weights are in place; call it last before :meth:`fit`.

        Last because it sets the random generators.

        Raises:
            UserError: the optimizer's state belongs to another model.
        """
        updater = self.updater
        updater.parallel.load_optimizer_state(checkpoint.optimizer)
        updater.load_average(checkpoint.averaged, checkpoint.state.step)
        if checkpoint.loss_scale is not None:
            updater.loss_scale.load_state_dict(checkpoint.loss_scale)
        self.state = checkpoint.state
        self._saved = checkpoint.state.step, monotonic()
        self._averages.load_state_dict(checkpoint.averages)
        self.health.replay(read_metrics(self.run) if distributed.is_main() else [], self.state.step)
        if checkpoint.random is not None:
            set_random_state(checkpoint.random, updater.device)

    def fit(self) -> dict[str, float]:
        """Train up to ``num_steps`` and return the metrics of the last evaluation (empty without one).

        An evaluation that was due when the run was cut off comes first; a run that is complete has nothing else left to do.

        Raises:
            UserError: a loss or gradient was not finite (raised on every rank before the update, the clips are named), or
                the last checkpoint could not be written, or embeddings collapsed and that is to end the run.
            Interrupted: a signal asked for it; a checkpoint of the last finished step is saved.
        """
        if not self.updater.parallel.model.training:
            raise ValueError(
                "the task's model is in evaluation mode: hand it over in training mode (frozen parts aside)"
            )
        batches = self._batches_apart()
        self._meter = Meter()
        metrics: dict[str, float] = {}
        if self._owes_evaluation():
            metrics = self._evaluate()
        elif self.state.step >= self.num_steps and self.evaluator is not None:
            metrics = evaluation_of(self.run, self.state.step)
        while self.state.step < self.num_steps:
            self._step(batches)
            step = self.state.step
            is_last = step == self.num_steps
            is_evaluated = is_last or self._is_due(self.intervals.evaluate)
            self.tracker.advance(step)
            if step == 1 or is_last or step % self.intervals.log == 0:
                self._read_unread()
                self._log()
            is_over = is_last or self._is_stopping or self._has_to_end
            if is_over or self._is_save_due or self._is_due(self.intervals.save):
                self._save()
            if self._is_stopping and not is_last:
                self._leave()
            if is_evaluated:
                metrics = self._evaluate()
            if self._has_to_end:
                self._end()
        problem = self.saver.settle()
        if problem is not None:
            raise UserError(
                f"{problem}; all {self.num_steps} steps are done: make space, then --resume repeats those after the last "
                "complete checkpoint"
            )
        return metrics

    def _is_due(self, every: int | None) -> bool:
        return every is not None and self.state.step % every == 0

    def _step(self, batches: Iterator[Batch]) -> None:
        """One optimizer update, or an error on every rank."""
        before = self.state
        self._beat("computing")
        attempt = self.updater.attempt(batches, before.step, self._wishes)
        self._read_unread()
        is_applied = True
        if not self.updater.reads_late:
            is_applied = self._heed(attempt.verdict(), attempt, before)
        if is_applied:
            self.updater.apply(attempt, self.learning_rate(before.step), is_known_good=not self.updater.reads_late)
        else:
            self.updater.leave_out()
        num_clips = len(attempt.keys) * distributed.world_size()
        self.state = TrainState(before.step + 1, before.samples_seen + num_clips, attempt.batches[-1].position)
        self.updater.end_step(self.state.step)
        if self.updater.reads_late:
            self._unread = attempt, before
        for values in attempt.metrics:
            self._averages.add(values)
        if is_applied:
            self._averages.add({"optim/gradient_norm": attempt.norm} | attempt.term_norms)
        if self.updater.loss_scale.is_adaptive:
            self._averages.add({"optim/loss_scale": self.updater.loss_scale.factor, "optim/left_out": not is_applied})
        self._meter.clips += num_clips

    def _wishes(self) -> Wishes:
        minutes = self.intervals.save_minutes
        is_overdue = minutes is not None and monotonic() - self._saved[1] > 60 * minutes
        return Wishes(self.request.is_made, is_overdue and distributed.is_main())

    def _read_unread(self) -> None:
        """What the ranks agreed on about the step before, where it was not read at once."""
        if self._unread is None:
            return
        (attempt, before), self._unread = self._unread, None
        self._heed(attempt.verdict(), attempt, before)

    def _heed(self, verdict: Verdict, attempt: Attempt, before: TrainState) -> bool:
        """Note the wishes; whether the update may be applied, or an error on every rank."""
        self._is_stopping = self._is_stopping or verdict.wishes.stop
        self._is_save_due = self._is_save_due or verdict.wishes.save
        is_good = verdict.loss_is_finite and verdict.gradient_is_finite
        scale = self.updater.loss_scale
        # A smaller scale mends a gradient that overflowed, never a loss that did.
        if not is_good and not (verdict.loss_is_finite and scale.is_adaptive and scale.can_back_off):
            self.state = before
            refuse_update(
                self.run,
                before.step + 1,
                attempt.batches,
                float(attempt.loss),
                float(attempt.norm),
                attempt.metrics,
                random=attempt.random,
                precision=self.updater.precision,
                loss_scale=scale.factor,
                model_state=self.updater.parallel.model_state,
            )
        scale.after_step(is_good)
        return is_good

    def _batches_apart(self) -> Iterator[Batch]:
        """The batches, drawn without touching this process's generators, and the time they are waited for.

        A DataLoader draws a number whenever it starts its workers, at other steps in a resumed run than in one that never
        stopped; dropped paths must not depend on that.
        """
        batches: Iterator[Batch] | None = None
        while True:
            self._beat("waiting for clips")
            waiting = perf_counter()
            with torch.random.fork_rng(devices=[]):
                batches = iter(self.batches) if batches is None else batches
                batch = next(batches, None)
            if batch is None:
                raise ValueError(f"the training batches ended at step {self.state.step}: the loader must be endless")
            self._meter.waiting += perf_counter() - waiting
            self._beat("computing")
            yield batch

    def _log(self) -> None:
        metrics = self._averages.read(self.updater.device)  # waits for the device: before the clock is read
        metrics["optim/lr"] = self.learning_rate(self.state.step - 1)
        metrics["progress/samples_seen"] = self.state.samples_seen
        metrics |= self.health.look_at(self.state.step, metrics)
        conditions = self._meter.conditions()
        self._meter = Meter()
        self.tracker.log(self.state.step, metrics, conditions)

    def _evaluate(self) -> dict[str, float]:
        if self.evaluator is None:
            return {}
        self._read_unread()
        started = perf_counter()
        metrics = self.evaluator.evaluate(self.updater, self._beat)
        self._meter.evaluating += perf_counter() - started
        # A resumed run may look at another metric than before.
        best = self.saver.best if self.saver.best_metric == self.evaluator.best_metric else None
        if self.evaluator.is_best(metrics, best):
            if self._saved[0] != self.state.step:
                self._save()
            metric = self.evaluator.best_metric
            assert metric is not None
            self.saver.mark_best(self.state.step, metric, metrics[metric])
        # Last: an evaluation that is there is not made up for after a crash.
        self.tracker.log_evaluation(self.state.step, metrics)
        return metrics

    def _owes_evaluation(self) -> bool:
        """Whether the run was cut off between a checkpoint and the evaluation of the same step."""
        step = self.state.step
        is_due = step > 0 and (step >= self.num_steps or self._is_due(self.intervals.evaluate))
        return self.evaluator is not None and is_due and not evaluation_of(self.run, step)

    def _save(self) -> None:
        self._read_unread()
        started = perf_counter()
        self._beat("saving")
        updater = self.updater
        checkpoint = Checkpoint(
            model=updater.parallel.model_state(),
            optimizer=updater.parallel.optimizer_state(),
            state=self.state,
            random=random_state(updater.device),
            averages=self._averages.state_dict(),
            averaged=updater.average_state(),
            loss_scale=updater.loss_scale.state_dict() if updater.loss_scale.is_adaptive else None,
        )
        self.saver.save(checkpoint)
        self._saved = self.state.step, monotonic()
        self._is_save_due = False
        self._meter.saving += perf_counter() - started

    def _leave(self) -> None:
        """Wait for the checkpoint and raise Interrupted."""
        problem = self.saver.settle()
        step = self.state.step
        how = (
            f"stopped by {self.request.signal_name or 'a signal to another rank'} after step {step} of {self.num_steps}"
        )
        if problem is not None:
            raise Interrupted(f"{how}; {problem}: --resume goes on from the last complete one")
        raise Interrupted(f"{how}; the checkpoint in {self.run} is complete, --resume continues from it")

    @property
    def _has_to_end(self) -> bool:
        return self.health.stops and self.health.problem is not None

    def _end(self) -> None:
        """Wait for the checkpoint and say what has collapsed; after the last step too, for a next stage would start from it."""
        problem = self.saver.settle()
        state = f"the checkpoint in {self.run} is complete" if problem is None else problem
        raise UserError(
            f"{self.health.problem}. Stopped after step {self.state.step} of {self.num_steps}; {state}: change what the advice "
            "says in a new run, or go on all the same with --resume --force trainer.on_collapse=warn"
        )

    def _beat(self, doing: str) -> None:
        if self.watchdog is not None:
            self.watchdog.beat(f"step {self.state.step + 1}: {doing}")
