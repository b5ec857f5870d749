"""What the trainer asks of a task; the trainer knows nothing else about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from mavil.structs import Inputs, LossReport


@dataclass
class ParameterGroup:
    """Parameters that share a learning-rate factor and a weight decay; ``names`` lists them for the log."""

    parameters: list[nn.Parameter]
    names: list[str]
    lr_scale: float
    weight_decay: float


class Task(Protocol):
    """Five members. Wrapping, precision, the optimizer and saving belong to the engine.

    ``model`` is called exactly once per ``loss``; the engine may replace it by a wrapped one with the same call.
    """

    model: nn.Module

    def loss(self, inputs: Inputs, step: int) -> LossReport:
        """The loss of one micro-step, as it is differentiated and as it is logged."""
        ...

    def parameter_groups(self, weight_decay: float, layer_decay: float) -> list[ParameterGroup]:
        """Every trained parameter in exactly one group."""
        ...

    def evaluate(self, batches: Iterable[Inputs]) -> dict[str, float]:
        """Metrics over this rank's share of an evaluation set, gathered exactly once at the end. Same on every rank."""
        ...

    def export_modules(self) -> dict[str, nn.Module]:
        """The parts other runs start from, by name; their weights are a checkpoint's ``weights``."""
        ...
