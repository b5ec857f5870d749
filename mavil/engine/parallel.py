"""Several ranks, one model: wrapping for gradient averaging, and leaving it out on all but the last micro-step."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mavil import distributed


def wrap_model(model: nn.Module) -> nn.Module:
    """The same model, its gradients averaged over ranks; with one rank the model itself.

    Weights and buffers of rank 0 are copied to every rank. The model must already be on its device and take its inputs there.
    """
    if distributed.world_size() == 1:
        return model
    # A false alarm: the gradient of the patch embedding of mono spectrograms differs only in the stride of an axis of size 1.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    return DistributedDataParallel(model, gradient_as_bucket_view=True)


def averaging(model: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Around one micro-step's forward and backward: gradients are averaged over ranks only in the last of a step."""
    if isinstance(model, DistributedDataParallel) and not is_last:
        return model.no_sync()
    return nullcontext()
