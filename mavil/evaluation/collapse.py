"""Whether embeddings or targets collapse: scalars of one batch that training logs, never part of a loss.

Everything stays on the device as tensors of no dimension, in float32 (float64 stays) whatever autocast says, and without
gradient. A batch is the own clips of one rank; logged values are means over ranks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

UNIFORMITY_SHARPNESS = 2.0
"""The factor ``t`` of the Gaussian potential [Wang & Isola 2020, section 4: 2]."""


@torch.no_grad()
def normalised(rows: Tensor) -> Tensor:
    """``[B, D]`` pooled encoder outputs to embeddings of length 1."""
    return F.normalize(_precise(rows), dim=1)


@torch.no_grad()
def embedding_std(embeddings: Tensor) -> Tensor:
    """How far ``[B, D]`` embeddings spread: 1 like points all over the sphere, 0 all the same.

    The deviation over the clips of each value, averaged over values, times ``sqrt(D)`` [SimSiam, Chen & He 2021, section 4.1:
    the deviation of normalised outputs is ``1 / sqrt(D)`` where they do not collapse; VICReg, Bardes et al. 2022, keeps a
    deviation per dimension up]. The variance is unbiased, so small batches say the same as large ones.
    """
    return embeddings.std(dim=0).mean() * embeddings.shape[1] ** 0.5


@torch.no_grad()
def uniformity(embeddings: Tensor) -> Tensor:
    """``log E exp(-2 |x - y|^2)`` over the pairs of different rows of ``[B, D]`` embeddings [Wang & Isola 2020].

    0 where all are the same; about -4 for points all over a sphere of many dimensions.
    """
    return torch.pdist(embeddings).square().mul(-UNIFORMITY_SHARPNESS).exp().mean().log()


@torch.no_grad()
def alignment(first: Tensor, second: Tensor) -> Tensor:
    """``E |x - y|^2`` over the pairs that belong together, rows i of two ``[B, D]`` embeddings [Wang & Isola 2020].

    0 where partners are the same, 2 where they have nothing to do with each other, 4 where they are opposite.
    """
    return (first - second).square().sum(dim=1).mean()


@torch.no_grad()
def target_statistics(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of ``[B, N, values]`` targets, and their deviation over clips and tokens, averaged over values.

    The deviation is 0 where every token has the same target: a prediction then needs no input. A token's own deviation
    would not show it, a LayerNorm over the token keeps that at 1 [data2vec, Baevski et al. 2022, watches the same number].
    """
    tokens = _precise(targets).flatten(0, 1)
    mean = tokens.mean(dim=0)
    # torch.std over the first axis takes ten times as long on the CPU, several percent of a small step.
    deviation = ((tokens - mean).square_().sum(dim=0) / max(1, len(tokens) - 1)).sqrt()
    return mean.mean(), deviation.mean()


def _precise(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
