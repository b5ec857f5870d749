"""How far predictions are from what was masked."""

from __future__ import annotations

import torch
from torch import Tensor

from mavil import distributed


def normalise_patches(patches: Tensor) -> Tensor:
    """Zero mean and unit variance per patch: ``(x - mean) / sqrt(var + 1e-6)`` with the unbiased variance [source MAE].

    ``[B, N, P]`` to the same. A constant patch (silence, padding) becomes zero.
    """
    centred = patches - patches.mean(dim=-1, keepdim=True)
    # Tensor.var over short rows is several times slower than this on a CPU.
    variance = centred.square().sum(dim=-1, keepdim=True) / (patches.shape[-1] - 1)
    return centred * (variance + 1e-6).rsqrt()


def masked_mse(predictions: Tensor, targets: Tensor, counted: Tensor, across_ranks: bool = False) -> Tensor:
    """Squared error, mean over a token's values, then mean over all counted tokens of the batch [source MAE, Audio-MAE].

    Args:
        predictions: ``[B, N, values]``, or ``[V, B, N, values]`` of several views.
        targets: ``[B, N, values]``, the same for every view.
        counted: ``[B, N]`` or ``[V, B, N]`` bool, like the predictions: the masked tokens, those of absent clips left out.
        across_ranks: ranks count different numbers of tokens. The sum is then divided by their mean number over ranks, so
            that DDP's mean is the mean over all counted tokens, as in one process; a rank without any contributes 0.
            Collective: all ranks or none. Without it each rank takes its own mean, which is the same where all count alike.
    """
    error = (_precise(predictions) - _precise(targets)).square().mean(dim=-1)
    num_counted = counted.sum()
    if across_ranks:
        mean = distributed.mean_over_ranks(num_counted.to(error.dtype))
        # Nobody counts any: 0, not 0 / 0.
        return (error * counted).sum() / mean.clamp(min=1 / distributed.world_size())
    return (error * counted).sum() / num_counted.clamp(min=1)


def _precise(values: Tensor) -> Tensor:
    """In float32 whatever autocast gave; float64 stays."""
    return values if values.dtype == torch.float64 else values.float()
