"""Small networks on stored features, several at once: every batch is read from disk one time for all points of a grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mavil.evaluation.frozen.labelled import Features, Labelled

Progress = Callable[[int, int], None]
"""Called with what is done and of how much."""
Apply = Callable[[Sequence[Any], Sequence[Tensor]], list[Tensor]]
"""Probes and features, one tensor per modality, to logits ``[b, C]`` of each probe."""
WARM_UP = 0.05
"""Share of the steps in which the learning rate rises; then it falls along a cosine to 0 [our choice, as in training]."""


@dataclass(frozen=True)
class Point:
    """Of a grid."""

    learning_rate: float
    weight_decay: float


@dataclass(frozen=True)
class Budget:
    """How long networks are trained: ``epochs`` passes in batches of ``batch_rows``, but ``least_steps`` at any rate."""

    batch_rows: int
    epochs: int
    least_steps: int

    def steps(self, num_rows: int) -> int:
        """Updates for so many clips."""
        return max(self.least_steps, self.epochs * math.ceil(num_rows / self.batch_rows))


def fit_together(
    apply: Apply,
    probes: Sequence[nn.Module],
    optimizers: Sequence[torch.optim.Optimizer],
    train: Labelled,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    budget: Budget,
    seed: int,
    device: torch.device,
    progress: Progress,
) -> None:
    """Train every probe by itself on the same batches, in place; each is then as if it had been alone.

    Args:
        apply: all probes at once; each one's logits must depend on no other.
        probes: on ``device``.
        optimizers: of each, at its highest learning rate.
        train: clips to learn from.
        loss_of: logits and targets ``[b, C]`` to a scalar.
        budget: how long.
        seed: of the orders.
        device: where.
        progress: told after every step.
    """
    steps = budget.steps(len(train))
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: _rate(step, steps)) for o in optimizers]
    order = _Orders(len(train), budget.batch_rows, seed)
    for probe in probes:
        probe.train()
    for step in range(steps):
        rows = order.next()
        inputs, targets = train.features.take(rows, device), train.targets[torch.from_numpy(rows)].to(device).float()
        for optimizer in optimizers:
            optimizer.zero_grad()
        # Of a sum each probe gets the gradient of its own loss.
        torch.stack([loss_of(logits, targets) for logits in apply(probes, inputs)]).sum().backward()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        progress(step + 1, steps)
    for probe in probes:
        probe.eval()


def class_loss(is_multi_label: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy of the one label, or binary cross-entropy summed over the classes; means over the clips.

    The sum makes every class a logistic regression of its own, whatever number of others there are.
    """
    if is_multi_label:
        return lambda logits, targets: (
            functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(dim=1).mean()
        )
    return lambda logits, targets: functional.cross_entropy(logits, targets.argmax(dim=1))


def one_by_one(probes: Sequence[nn.Module], inputs: Sequence[Tensor]) -> list[Tensor]:
    """:data:`Apply` of probes that have nothing to share."""
    return [probe(inputs) for probe in probes]


@torch.no_grad()
def logits_of(
    apply: Apply, probes: Sequence[nn.Module], features: Features, batch_rows: int, device: torch.device
) -> list[Tensor]:
    """``[n, C]`` float32 on the CPU of each probe, of all rows in order, which are read once."""
    found = [[logits.cpu() for logits in apply(probes, inputs)] for inputs in features.batches(batch_rows, device)]
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


class _Orders:
    """Batches of row numbers: one random order after the other, short last batches included."""

    def __init__(self, num_rows: int, batch_rows: int, seed: int) -> None:
        self._generator = np.random.default_rng(seed)
        self._num_rows, self._batch_rows = num_rows, batch_rows
        self._left: list[np.ndarray] = []

    def next(self) -> np.ndarray:
        if not self._left:
            order = self._generator.permutation(self._num_rows)
            self._left = [order[i : i + self._batch_rows] for i in range(0, self._num_rows, self._batch_rows)][::-1]
        return self._left.pop()


def _rate(step: int, steps: int) -> float:
    warm_up = max(1, int(WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))
