"""How far predictions are from what was masked."""

from __future__ import annotations

from torch import Tensor


def normalise_patches(patches: Tensor) -> Tensor:
    """Zero mean and unit variance per patch: ``(x - mean) / sqrt(var + 1e-6)`` with the unbiased variance [source MAE].

    ``[B, N, P]`` to the same. A constant patch (silence, padding) becomes zero.
    """
    centred = patches - patches.mean(dim=-1, keepdim=True)
    # Tensor.var over short rows is several times slower than this on a CPU.
    variance = centred.square().sum(dim=-1, keepdim=True) / (patches.shape[-1] - 1)
    return centred * (variance + 1e-6).rsqrt()


def masked_mse(predictions: Tensor, targets: Tensor, is_masked: Tensor) -> Tensor:
    """Squared error, mean over a token's values, then mean over all masked tokens of the batch [source MAE, Audio-MAE].

    ``predictions`` and ``targets`` ``[B, N, values]``; ``is_masked`` ``[B, N]`` bool, True = masked.
    """
    error = (predictions.float() - targets.float()).square().mean(dim=-1)
    return (error * is_masked).sum() / is_masked.sum()
