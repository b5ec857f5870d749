"""Whether embeddings or targets collapse: scalars of one batch that training logs, never part of a loss.

Everything stays on the device as tensors of no dimension, in float32 (float64 stays) whatever autocast says, and without
gradient. A batch is the own clips of one rank; logged values are means over ranks.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from mavil.structs import Modality
from mavil.tasks.base import Limit

UNIFORMITY_SHARPNESS = 2.0
"""The factor ``t`` of the Gaussian potential [Wang & Isola 2020, section 4: 2]."""

EMBEDDING_STD_LEAST = 0.02
"""Embeddings with a smaller :func:`embedding_std` are all but one point [our choice]. Cosines of different clips then lie within
about 0.02^2 of 1; divided by a temperature of 0.1 their logits differ by 0.004, so that a softmax over any number of candidates
is uniform. Random weights of ViT-B give 0.1 and more, trained embeddings near 1."""
TARGET_STD_LEAST = 0.05
"""Of targets that passed a LayerNorm, whose mean square is 1: with a smaller deviation less than 0.3 % of it tells tokens apart
[our choice]. Random weights give 0.2 and more."""


def collapse_limits(modalities: Iterable[Modality], compares: bool, has_normalised_targets: bool) -> dict[str, Limit]:
    """Limits of what is logged of each modality, by the name it is logged under.

    Args:
        modalities: of the model.
        compares: pooled tokens are compared, so that a force keeps them apart; the pooled tokens of a model that only
            reconstructs may be as alike as they please.
        has_normalised_targets: they come from a teacher and passed a LayerNorm. Raw patches, and targets of unknown scale,
            have no limit.
    """
    limits: dict[str, Limit] = {}
    for modality in modalities:
        if compares:
            limits[f"train/{modality}_embedding_std"] = Limit(
                EMBEDDING_STD_LEAST,
                f"the {modality} embeddings of all clips are nearly the same",
                "lower optimizer.base_lr, lengthen schedule.warmup, or give task.contrast more weight or candidates",
            )
        if has_normalised_targets:
            limits[f"train/{modality}_target_std"] = Limit(
                TARGET_STD_LEAST,
                f"the teacher gives nearly the same {modality} target for every token",
                "take another task.teacher.run or task.teacher.last_layers",
            )
    return limits


@torch.no_grad()
def normalised(rows: Tensor) -> Tensor:
    """``[B, D]`` pooled encoder outputs to embeddings of length 1."""
    return F.normalize(_precise(rows), dim=1)


@torch.no_grad()
def embedding_std(embeddings: Tensor, present: Tensor | None = None) -> Tensor:
    """How far ``[B, D]`` embeddings spread: 1 like points all over the sphere, 0 all the same.

    With ``present`` ``[B]`` bool only those of clips that have the modality count. Fewer than two cannot spread: they are 1, so
    that gaps may hide a collapse and never make one up.

    The deviation over the clips of each value, averaged over values, times ``sqrt(D)`` [SimSiam, Chen & He 2021, section 4.1:
    the deviation of normalised outputs is ``1 / sqrt(D)`` where they do not collapse; VICReg, Bardes et al. 2022, keeps a
    deviation per dimension up]. The variance is unbiased, so small batches say the same as large ones.
    """
    factor = embeddings.shape[1] ** 0.5
    if present is None:
        return embeddings.std(dim=0).mean() * factor
    count = present.sum()
    mean = torch.where(present[:, None], embeddings, 0.0).sum(dim=0) / count.clamp(min=1)
    squares = torch.where(present[:, None], embeddings - mean, 0.0).square().sum(dim=0)
    deviation = (squares / (count - 1).clamp(min=1)).sqrt().mean()
    return torch.where(count < 2, 1.0, deviation * factor)


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


@torch.no_grad()
def agreement(predictions: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
    """Mean cosine between predictions and targets over the counted tokens: 1 the same direction, 0 nothing in common.

    ``predictions`` ``[B, N, values]`` or ``[V, B, N, values]``, ``targets`` ``[B, N, values]``, ``counted`` bool like the
    predictions without values. 0 where nothing is counted. Read it beside the targets' deviation: where every target is the
    same, agreement is easy and worth nothing.
    """
    cosines = F.cosine_similarity(_precise(predictions), _precise(targets).expand(predictions.shape), dim=-1)
    return (cosines * counted).sum() / counted.sum().clamp(min=1)


def _precise(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
