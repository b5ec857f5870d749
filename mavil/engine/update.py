"""One optimizer update over all ranks: micro-steps, what the ranks agree on, clipping, the update itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from mavil import distributed
from mavil.engine.cached import cached_micro_steps
from mavil.engine.optim import set_learning_rate
from mavil.engine.parallel import Parallel
from mavil.engine.precision import LossScale, Precision, autocast
from mavil.engine.process.runtime import random_state
from mavil.engine.stand_in import StandIn
from mavil.engine.term_gradients import term_gradient_norms
from mavil.structs import Batch, Inputs, LossReport
from mavil.tasks.base import CoupledTask, Task

_CLIP_EPSILON = 1e-6
"""Added to the norm before dividing by it, as in :func:`torch.nn.utils.clip_grad_norm_`."""

Metrics = dict[str, "Tensor | float"]


@dataclass(frozen=True)
class Wishes:
    """What this rank wants of all: each becomes true everywhere where one rank says so."""

    stop: bool = False
    save: bool = False


@dataclass(frozen=True)
class Verdict:
    """What all ranks know after a step: is the mean loss of each finite, is the gradient, and somebody's wishes."""

    loss_is_finite: bool
    gradient_is_finite: bool
    wishes: Wishes


@dataclass
class Attempt:
    """A step whose gradients are there; its votes may still be on the device.

    ``random``: the generators before it. ``term_norms``: of each loss term's own gradient, where they were measured.
    """

    batches: list[Batch]
    metrics: list[Metrics]
    loss: Tensor
    norm: Tensor
    votes: Tensor
    random: dict[str, Any]
    on_host: Tensor | None = None
    landed: torch.cuda.Event | None = None
    term_norms: Metrics = field(default_factory=dict)

    @property
    def keys(self) -> list[str]:
        """The clips of this rank."""
        return [key for batch in self.batches for key in batch.keys]

    def verdict(self) -> Verdict:
        """Read the votes: the one thing a step reads from the device."""
        if self.landed is not None:
            self.landed.synchronize()
        votes = self.votes if self.on_host is None else self.on_host
        loss_is_finite, gradient_is_finite, nobody_stops, nobody_saves = (bool(vote) for vote in votes.tolist())
        return Verdict(loss_is_finite, gradient_is_finite, Wishes(not nobody_stops, not nobody_saves))


@dataclass
class Updater:
    """Computes steps and applies them.

    ``is_cached``: accumulated micro-steps are compared with each other, see :mod:`mavil.engine.cached`; the task must be a
    :class:`mavil.tasks.base.CoupledTask`.

    ``reads_late``: the verdict of a step is read only when the next one has been launched, so that the device never waits
    for this process; a bad update has been left out on the device by then. Only where :attr:`Parallel.can_skip`.

    ``term_gradients_every``: steps between measurements of each loss term's own gradient, on the first micro-step as if it
    were the whole step; ``None`` never. Only where :attr:`Parallel.has_whole_weights`, and not with ``is_cached``: a term that
    compares the clips of all micro-steps has no gradient in any one of them.
    """

    task: Task
    parallel: Parallel
    prepare: Callable[[Batch], Inputs]
    device: torch.device
    precision: Precision = "fp32"
    accumulation: int = 1
    is_cached: bool = False
    clip_norm: float | None = None
    average: StandIn | None = None
    reads_late: bool = False
    term_gradients_every: int | None = None
    loss_scale: LossScale = field(init=False)

    def __post_init__(self) -> None:
        if self.term_gradients_every is not None and (self.is_cached or not self.parallel.has_whole_weights):
            raise ValueError("gradients of single terms need whole weights on every rank and micro-steps by themselves")
        self.loss_scale = LossScale(self.precision)
        # A scale that adapts needs the verdict before the next forward pass.
        self.reads_late = self.reads_late and self.parallel.can_skip and not self.loss_scale.is_adaptive

    def attempt(self, batches: Iterator[Batch], step: int, wishes: Callable[[], Wishes]) -> Attempt:
        """Compute the gradients of the step that follows ``step`` finished ones, and have all ranks vote on it.

        ``wishes`` is asked last: what came up meanwhile counts.
        """
        random = random_state(self.device)
        taken = [next(batches) for _ in range(self.accumulation)] if self.is_cached else []
        term_norms: Metrics = {}
        if self.is_cached:
            metrics = self._cached(taken, step)
        else:
            metrics = []
            for micro_step in range(self.accumulation):
                taken.append(next(batches))
                with self.parallel.averaging(is_last=micro_step == self.accumulation - 1):
                    measured = term_norms if micro_step == 0 else None
                    metrics.append(self._forward_backward(taken[-1], step, measured))
        loss = torch.stack([torch.as_tensor(values["loss/total"], device=self.device) for values in metrics]).mean()
        norm = self.parallel.gradient_norm() / self.loss_scale.factor
        attempt = Attempt(taken, metrics, loss, norm, self._vote(loss, norm, wishes()), random, term_norms=term_norms)
        if self.reads_late and self.device.type == "cuda":
            attempt.on_host = torch.empty_like(attempt.votes, device="cpu", pin_memory=True)
            attempt.on_host.copy_(attempt.votes, non_blocking=True)
            attempt.landed = torch.cuda.Event()
            attempt.landed.record()
        return attempt

    def apply(self, attempt: Attempt, learning_rate: float, is_known_good: bool) -> None:
        """Clip and update; an attempt that is not known to be good updates nothing if it was bad, and nobody waits to know."""
        factor = torch.full_like(attempt.norm, 1.0 / self.loss_scale.factor)
        if self.clip_norm is not None:
            factor = factor * (self.clip_norm / (attempt.norm + _CLIP_EPSILON)).clamp(max=1.0)
        if self.clip_norm is not None or self.loss_scale.is_adaptive:
            self.parallel.multiply_gradients(factor)
        # From the votes: all ranks must leave out the same updates.
        is_bad = None if is_known_good else (attempt.votes[:2] < 1).any().float()
        set_learning_rate(self.parallel.optimizer, learning_rate)
        self.parallel.update(is_bad)
        if self.average is not None:
            self.average.update(is_bad)

    def end_step(self, step: int) -> None:
        """After the step that makes ``step`` finished ones, whether its update was applied or left out."""
        if self.average is not None:
            self.average.take(step)

    def average_state(self) -> dict[str, Tensor]:
        """Collective. What is evaluated and exported in place of the weights; ``{}`` where nothing is."""
        return {} if self.average is None else self.average.state()

    def load_average(self, state: dict[str, Tensor], step: int) -> None:
        """Go on with what :meth:`average_state` gave after ``step``; an empty one, or one nobody wants, changes nothing."""
        if self.average is not None and state:
            self.average.load(state, step)

    def leave_out(self) -> None:
        """Drop the gradients of an attempt whose scaled gradient overflowed."""
        self.parallel.optimizer.zero_grad(set_to_none=True)

    def _vote(self, loss: Tensor, norm: Tensor, wishes: Wishes) -> Tensor:
        """``[4]`` int32, the same on every rank; filled in on the device, for a copy to it would wait."""
        yes_or_no = [torch.isfinite(loss), torch.isfinite(norm)]
        yes_or_no += [torch.full_like(yes_or_no[0], not wish) for wish in (wishes.stop, wishes.save)]
        return distributed.agreed(torch.stack(yes_or_no))

    def _cached(self, batches: list[Batch], step: int) -> list[Metrics]:
        reports = cached_micro_steps(
            cast(CoupledTask, self.task),
            self.parallel.wrapped,
            batches,
            self.prepare,
            step,
            self.device,
            averaging=self.parallel.averaging,
            autocast=lambda: autocast(self.device, self.precision),
            factor=self.loss_scale.factor,
        )
        return [metrics_of(report, report.total) for report in reports]

    def _forward_backward(self, batch: Batch, step: int, term_norms: Metrics | None) -> Metrics:
        """Add one micro-step's gradient and return what is logged about it, still on the device.

        ``term_norms`` is filled in where this step measures them.
        """
        with torch.no_grad():
            inputs = self.prepare(batch)
        plain = self.task.model
        # Only here: evaluation and export see the task's own model, which talks to no other rank.
        self.task.model = self.parallel.wrapped
        try:
            with autocast(self.device, self.precision):
                report = self.task.loss(inputs, step)
                total = report.total
            every = self.term_gradients_every
            if term_norms is not None and every is not None and (step + 1) % every == 0:
                term_norms |= term_gradient_norms(report, self.parallel.trained, self.loss_scale.factor)
            (total * self.loss_scale.factor / self.accumulation).backward()
        finally:
            self.task.model = plain
        return metrics_of(report, total.detach())


def metrics_of(report: LossReport, total: Tensor) -> Metrics:
    """What is logged of a loss, by name; nothing is read from the device."""
    metrics: Metrics = {"loss/total": total}
    for name, value in report.terms.items():
        metrics[f"loss/{name}"] = value.detach()
        metrics[f"loss_weighted/{name}"] = value.detach() * report.weights[name]
    for name, scalar in report.scalars.items():
        metrics[f"train/{name}"] = scalar.detach() if isinstance(scalar, Tensor) else scalar
    return metrics
