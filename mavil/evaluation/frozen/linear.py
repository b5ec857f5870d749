"""The linear probe: logistic regression on standardised features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mavil.evaluation.frozen.fitting import Budget, Point, Progress, class_loss, fit_together, logits_of, one_by_one
from mavil.evaluation.frozen.labelled import ROWS_AT_ONCE, Features, Labelled
from mavil.evaluation.frozen.selection import Scorer

SMALL_GRID = tuple(Point(rate, decay) for decay in (1e-1, 1e-2, 1e-3, 1e-4) for rate in (1e-1, 1e-2, 1e-3))
"""From the strongest regularisation to the weakest: of equal scores the first counts [our choice]."""
NO_GRID = (Point(1e-2, 1e-2),)
BUDGET = Budget(batch_rows=1024, epochs=30, least_steps=400)
"""[our choice: the fits of a few hundred clips agree with scikit-learn's, see the tests]"""
LEAST_STD = 1e-6
"""A feature that varies less is constant, and is not blown up."""


class LinearProbe(nn.Module):
    """``[b, D_m]`` of each modality, side by side and standardised, to logits ``[b, C]``; begins at zero.

    Args:
        mean, std: of each feature over the training clips, ``[D]`` float32.
        num_classes: C.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.head = nn.Linear(len(mean), num_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Logits; see the class."""
        return self.head((torch.cat(list(inputs), dim=1) - self.mean) / self.std)


@dataclass(frozen=True)
class Linear:
    """Logistic regression, multinomial or one per class, with ``weight_decay / 2 * |W|^2`` in the loss.

    Adam with the penalty's gradient, not AdamW: what it comes to is then the ridge-penalised optimum, scikit-learn's with
    ``C = 1 / (n weight_decay)`` [our choice because it can be checked].
    """

    is_multi_label: bool
    device: torch.device
    progress: Progress
    points: Sequence[Point]
    budget: Budget
    name: str = "linear"

    def trials(self, train: Labelled, features: Features, seed: int) -> Iterator[tuple[Point, Tensor]]:
        """Every point of the grid with its scores ``[n, C]`` of ``features`` after learning from ``train``."""
        probes = self._fitted(self.points, train, seed)
        yield from zip(self.points, self._scores(probes, features), strict=True)

    def fit(self, train: Labelled, point: Point, seed: int) -> Scorer:
        """One point, fitted."""
        probes = self._fitted([point], train, seed)
        return lambda features: self._scores(probes, features)[0]

    def _scores(self, probes: Sequence[LinearProbe], features: Features) -> list[Tensor]:
        return logits_of(one_by_one, probes, features, ROWS_AT_ONCE, self.device)

    def _fitted(self, points: Sequence[Point], train: Labelled, seed: int) -> list[LinearProbe]:
        mean, std = moments(train.features, self.device)
        probes = [LinearProbe(mean, std, train.targets.shape[1]).to(self.device) for _ in points]
        optimizers = [_optimizer(probe, point) for probe, point in zip(probes, points, strict=True)]
        loss_of = class_loss(self.is_multi_label)
        fit_together(one_by_one, probes, optimizers, train, loss_of, self.budget, seed, self.device, self.progress)
        return probes


def moments(features: Features, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation ``[D]`` float32 of all modalities' features side by side; constant ones have deviation 1."""
    total, squares = torch.zeros(0), torch.zeros(0)
    for number, inputs in enumerate(features.batches(ROWS_AT_ONCE, device)):
        values = torch.cat(inputs, dim=1).double()
        if number == 0:
            # Sums of squared differences from some clip: those of large means would lose digits.
            shift, total = values[0].clone(), torch.zeros_like(values[0])
            squares = torch.zeros_like(total)
        total += (values - shift).sum(dim=0)
        squares += (values - shift).square().sum(dim=0)
    mean = total / len(features)
    std = (squares / len(features) - mean.square()).clamp(min=0).sqrt()
    return (mean + shift).float(), torch.where(std < LEAST_STD, 1.0, std).float()


def _optimizer(probe: LinearProbe, point: Point) -> torch.optim.Optimizer:
    groups = [
        {"params": [probe.head.weight], "weight_decay": point.weight_decay},
        {"params": [probe.head.bias], "weight_decay": 0.0},
    ]
    return torch.optim.Adam(groups, lr=point.learning_rate)
