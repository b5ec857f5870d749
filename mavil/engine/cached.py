"""Accumulation with the candidates of the whole step: two forward passes per micro-step [GradCache, Gao et al. 2021].

Terms that compare clips with each other see them only through small representations. Write ``r_m`` for those of micro-step m
of M, ``C(r_1 .. r_M)`` for the coupled terms over all of them and all ranks, ``O_m`` for the terms of each clip by itself::

    first pass    r_m without gradient, for every m;  C and g_m = dC / dr_m
    second pass   r_m(weights) again; gradient of  O_m / M + sum(r_m(weights) * g_m)

By the chain rule the gradients of the second pass add up to that of ``mean O_m + C``: the step of one large batch, while the
device never holds the activations of more than one micro-step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from mavil.structs import Batch, Inputs, LossReport
from mavil.tasks.base import CoupledTask


def cached_micro_steps(
    task: CoupledTask,
    wrapped: nn.Module,
    batches: Sequence[Batch],
    prepare: Callable[[Batch], Inputs],
    step: int,
    device: torch.device,
    *,
    averaging: Callable[[bool], AbstractContextManager[None]],
    autocast: Callable[[], AbstractContextManager[Any]],
    factor: float = 1.0,
) -> list[LossReport]:
    """Add the gradient of all micro-steps of a step, times ``factor``, and return what each contributed, detached.

    The mean of the reports' totals is what was differentiated: each holds its own terms and the common, coupled ones.
    Inputs are prepared twice rather than kept, because device memory is why a step is cut into micro-steps; ``prepare``
    must depend on nothing but the batch. Dropout draws the same numbers in both passes.

    Args:
        task: its model is replaced by ``wrapped`` meanwhile.
        wrapped: what training calls.
        batches: of the micro-steps, each with the same number of clips.
        prepare: inputs of a batch on ``device``.
        step: finished steps.
        device: whose random generator the model draws from, beside that of the CPU.
        averaging: ``averaging(is_last)`` around a forward and backward pass, see :meth:`Parallel.averaging`.
        autocast: around a forward pass and its loss.
        factor: the loss scale.
    """
    plain = task.model
    task.model = wrapped
    try:
        states, parts = [], []
        for batch in batches:
            states.append(_generators(device))
            with torch.no_grad(), averaging(False), autocast():
                parts.append(task.representations(prepare(batch), step))
        coupled, gradients = _coupled_gradients(task, parts, autocast)
        reports = []
        for number, (batch, state) in enumerate(zip(batches, states, strict=True)):
            _set_generators(state, device)
            with torch.no_grad():
                inputs = prepare(batch)
            with averaging(number == len(batches) - 1):
                with autocast():
                    own, representations = task.own_loss(inputs, step)
                    # A task may have no terms of its own: then all that is differentiated is the surrogate.
                    loss = own.total / len(batches) if own.terms else 0.0
                total = loss + _surrogate(representations, {name: parts[number] for name, parts in gradients.items()})
                (total * factor).backward()
            reports.append(_detached(own, coupled))
    finally:
        task.model = plain
    return reports


def _coupled_gradients(
    task: CoupledTask, parts: list[dict[str, Tensor]], autocast: Callable[[], AbstractContextManager[Any]]
) -> tuple[LossReport, dict[str, list[Tensor]]]:
    """The coupled terms of all micro-steps' representations, and their gradient for each name and micro-step."""
    sizes = {len(values) for part in parts for values in part.values()}
    if len(sizes) != 1:
        raise ValueError(f"micro-steps have {sorted(sizes)} clips: all must have the same number")
    with torch.enable_grad(), autocast():
        joined = {name: torch.cat([_exact(part[name]) for part in parts]).requires_grad_() for name in parts[0]}
        report = task.coupled_loss(joined)
        # Where ranks exchange representations this backward pass is collective: it sums over them.
        found = torch.autograd.grad(report.total, list(joined.values()), allow_unused=True)
    gradients = {
        name: list((torch.zeros_like(values) if gradient is None else gradient).split(len(parts[0][name])))
        for (name, values), gradient in zip(joined.items(), found, strict=True)
    }
    return report, gradients


def _surrogate(representations: dict[str, Tensor], gradients: dict[str, Tensor]) -> Tensor:
    """A number whose gradient with respect to the representations is ``gradients``; its value means nothing."""
    return torch.stack([(_exact(representations[name]) * value).sum() for name, value in gradients.items()]).sum()


def _exact(values: Tensor) -> Tensor:
    """In float32, whatever autocast gave; float64 stays."""
    return values if values.dtype == torch.float64 else values.float()


def _detached(own: LossReport, coupled: LossReport) -> LossReport:
    terms = {name: value.detach() for name, value in (own.terms | coupled.terms).items()}
    scalars = {
        name: value.detach() if isinstance(value, Tensor) else value
        for name, value in (own.scalars | coupled.scalars).items()
    }
    return LossReport(terms, own.weights | coupled.weights, scalars)


def _generators(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_generators(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
