"""How large the gradient of each loss term is by itself: which of them a step follows."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mavil import distributed
from mavil.structs import LossReport


def term_gradient_norms(report: LossReport, trained: Mapping[str, nn.Parameter], factor: float) -> dict[str, Tensor]:
    """2-norm over all trained parameters of the gradient of each weighted term, averaged over ranks, as ``gradient/<term>``.

    Call it between a forward pass and its backward pass, which it leaves exactly as it would be: the graph is kept, nothing is
    added to ``.grad``, and hooks that wait for gradients, such as those of several ranks, are not run. A backward pass per term;
    collective, and nothing is read from the device. Terms of weight 0 are left out.

    Args:
        report: of one micro-step, with its graph.
        trained: by name; whole on every rank.
        factor: the loss scale, which keeps fp16 gradients from vanishing here too.
    """
    return {
        f"gradient/{name}": _norm(value * report.weights[name] * factor, list(trained.values())) / factor
        for name, value in report.terms.items()
        if report.weights[name] != 0
    }


def _norm(value: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    if not value.requires_grad:
        return torch.zeros((), device=value.device)
    gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    # One after the other: all at once would take as much memory as the model again.
    norms = [
        distributed.mean_over_ranks(torch.zeros_like(parameter) if gradient is None else gradient).float().norm()
        for parameter, gradient in zip(parameters, gradients, strict=True)
    ]
    return torch.stack(norms).norm()
