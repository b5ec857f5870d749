"""What the trainer asks of a task; the trainer knows nothing else about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
        """Metrics over this rank's share of an evaluation set, gathered exactly once at the end. Same on every rank.

        The caller has put the model into evaluation mode.
        """
        ...

    def export_modules(self) -> dict[str, nn.Module]:
        """The parts other runs start from, by name; their weights are a checkpoint's ``weights``."""
        ...


def group_parameters(
    model: nn.Module, weight_decay: float, lr_scale_of: Callable[[str], float] = lambda _: 1.0
) -> list[ParameterGroup]:
    """Group trained parameters by learning-rate factor and decay; tensors of one dimension are not decayed [source MAE].

    ``lr_scale_of`` maps a parameter's dotted name to its factor. The order of groups follows the model's definition.
    """
    groups: dict[tuple[float, float], ParameterGroup] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = weight_decay if parameter.ndim > 1 else 0.0
        scale = lr_scale_of(name)
        group = groups.setdefault((scale, decay), ParameterGroup([], [], scale, decay))
        group.parameters.append(parameter)
        group.names.append(name)
    return list(groups.values())


def unwrapped(model: nn.Module) -> nn.Module:
    """The task's own model, also after the engine has wrapped it for several ranks."""
    inner = getattr(model, "module", model)
    assert isinstance(inner, nn.Module)
    return inner
