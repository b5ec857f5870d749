"""What the trainer asks of a task; the trainer knows nothing else about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

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


@runtime_checkable
class CoupledTask(Task, Protocol):
    """A task some of whose terms compare clips with each other, and see them only through small representations.

    Then a step can be cut into micro-steps and still compare all of its clips (:mod:`mavil.engine.cached`). For a batch
    ``loss`` equals the terms of ``own_loss`` together with those of ``coupled_loss`` of its representations. The number of
    clips is the first axis of every representation, and a mean over clips is what both kinds of terms are.
    """

    @property
    def couples_clips(self) -> bool:
        """Whether any term does, with the settings at hand."""
        ...

    def representations(self, inputs: Inputs, step: int) -> dict[str, Tensor]:
        """``[B, ...]`` by name: all that the coupled terms look at. The model is called once, without gradient."""
        ...

    def own_loss(self, inputs: Inputs, step: int) -> tuple[LossReport, dict[str, Tensor]]:
        """The terms of each clip by itself, and the representations, both with gradient; the model is called once."""
        ...

    def coupled_loss(self, representations: dict[str, Tensor]) -> LossReport:
        """The terms that compare clips, over all given ones and, where the task says so, those of all ranks."""
        ...


@dataclass(frozen=True)
class Limit:
    """Where a metric has collapsed.

    Attributes:
        least: the smallest healthy value.
        meaning: what a smaller one says, as the end of a sentence.
        advice: what to do about it.
    """

    least: float
    meaning: str
    advice: str


@runtime_checkable
class Monitored(Protocol):
    """A task that says which of its metrics must not stay low, so that a run that learns nothing any more is noticed."""

    def collapse_limits(self) -> dict[str, Limit]:
        """By the name they are logged under, e.g. ``train/audio_embedding_std``; with the settings at hand."""
        ...


def group_parameters(
    model: nn.Module,
    weight_decay: float,
    lr_scale_of: Callable[[str], float] = lambda _: 1.0,
    undecayed: tuple[str, ...] = (),
) -> list[ParameterGroup]:
    """Group trained parameters by learning-rate factor and decay; tensors of one dimension are not decayed [source MAE].

    ``lr_scale_of`` maps a parameter's dotted name to its factor; ``undecayed`` are last names of further ones without decay. The
    order of groups follows the model's definition.
    """
    groups: dict[tuple[float, float], ParameterGroup] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_decayed = parameter.ndim > 1 and name.rpartition(".")[2] not in undecayed
        decay = weight_decay if is_decayed else 0.0
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
