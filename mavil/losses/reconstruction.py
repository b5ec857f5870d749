"""How far predictions are from what was masked."""

from __future__ import annotations

from torch import Tensor


def normalise_patches(patches: Tensor) -> Tensor:
    """Zero mean and unit variance per patch: ``(x - mean) / sqrt(var + 1e-6)`` with the unbiased variance [source MAE].

    ``[B, N, P]`` to the same. A constant patch (silence, padding) becomes zero.
    """
    mean = patches.mean(dim=-1, keepdim=True)
    variance = patches.var(dim=-1, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


def masked_mse(predictions: Tensor, targets: Tensor, is_masked: Tensor) -> Tensor:
    """Squared error, mean over a token's values, then mean over all masked tokens of the batch [source MAE, Audio-MAE].

    ``predictions`` and ``targets`` ``[B, N, values]``; ``is_masked`` ``[B, N]`` bool, True = masked.
    """
    error = (predictions.float() - targets.float()).square().mean(dim=-1)
    return (error * is_masked).sum() / is_masked.sum()
