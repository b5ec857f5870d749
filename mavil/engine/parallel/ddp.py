"""Every rank a whole model: one process alone, or torch's DistributedDataParallel."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mavil.engine.optim import ADAM_EPS, build_optimizer
from mavil.engine.parallel.base import Groups, Parallel


class OneProcess(Parallel):
    """The plain model and AdamW, for a run of one rank."""

    def __init__(
        self,
        model: nn.Module,
        groups: Groups,
        betas: tuple[float, float],
        device: torch.device,
        eps: float = ADAM_EPS,
    ) -> None:
        super().__init__(model, model, build_optimizer(groups(), betas, model, eps), device)

    def averaging(self, is_last: bool) -> AbstractContextManager[None]:
        """Nothing to average."""
        return nullcontext()


class DistributedCopies(Parallel):
    """Whole weights, gradients and moments on every rank; gradients are averaged while the backward pass runs.

    Every trained parameter must take part in every step; one that does not is torch's error in the step after (but where
    kernels are deterministic, its gradient is zero).
    """

    wrapped: DistributedDataParallel

    def __init__(
        self,
        model: nn.Module,
        groups: Groups,
        betas: tuple[float, float],
        device: torch.device,
        eps: float = ADAM_EPS,
    ) -> None:
        # A false alarm: the gradient of the patch embedding of mono spectrograms differs only in the stride of an axis of size 1.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        # Buffers are constant tables here: equal from the start on, not sent again in every forward pass.
        wrapped = DistributedDataParallel(
            model,
            gradient_as_bucket_view=True,
            broadcast_buffers=False,
            # Otherwise buckets are filled anew after the first step of each start, in the order in which gradients came. With
            # three and more ranks sums are then added in another order, and a resumed run differs in the last bit.
            find_unused_parameters=torch.are_deterministic_algorithms_enabled(),
        )
        super().__init__(model, wrapped, build_optimizer(groups(), betas, model, eps), device)

    def averaging(self, is_last: bool) -> AbstractContextManager[None]:
        """Gradients stay on the rank in all but the last micro-step."""
        return nullcontext() if is_last else self.wrapped.no_sync()
