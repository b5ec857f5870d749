"""What a step gives and where a run is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class LossReport:
    """The loss of one micro-step.

    ``terms`` are unweighted scalars on the device, by name; ``weights`` their factors. ``scalars`` are logged only
    (number of negatives, accuracies). Every term is logged as it is and times its weight; ``total`` is their sum.
    """

    terms: dict[str, Tensor]
    weights: dict[str, float]
    scalars: dict[str, float | Tensor] = field(default_factory=dict)

    @property
    def total(self) -> Tensor:
        """The number that is differentiated."""
        return torch.stack([self.weights[name] * value for name, value in self.terms.items()]).sum()


@dataclass
class TrainState:
    """Where a run is: ``step`` optimizer updates done, ``samples_seen`` over all ranks, the loader's ``position``."""

    step: int = 0
    samples_seen: int = 0
    position: dict[str, Any] | None = None
