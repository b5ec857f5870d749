"""Which hidden patch belongs to a prediction, among all hidden patches of its clip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mavil import distributed

SoftmaxOver = Literal["targets", "predictions"]


@dataclass
class DiscriminationResult:
    """``loss`` and ``accuracy``, the share of predictions that are most like their own patch, are scalars."""

    loss: Tensor
    accuracy: Tensor


def patch_discrimination(
    predictions: Tensor,
    targets: Tensor,
    masked_ids: Tensor,
    softmax_over: SoftmaxOver = "targets",
    present: Tensor | None = None,
    across_ranks: bool = False,
) -> DiscriminationResult:
    """InfoNCE within a clip, mean over the masked tokens of the batch [source MAE-AST, SSAST].

    Predictions and patches are compared by their dot product as it is, without a norm and without a temperature [source].

    Args:
        predictions, targets, masked_ids, softmax_over: as in :func:`clip_discrimination`.
        present: ``[B]`` bool, clips that have the modality; the others count nowhere.
        across_ranks: ranks hold different numbers of such clips. The sum is then divided by their mean number over ranks, so
            that DDP's mean is the mean over all of them, as in one process; a rank without any contributes 0. Collective: all
            ranks or none.
    """
    losses, hits = clip_discrimination(predictions, targets, masked_ids, softmax_over)
    if present is None:
        return DiscriminationResult(losses.mean(), hits.mean())
    # All clips hide equally many tokens, so that the mean over clips is the mean over tokens.
    number = present.sum().to(losses.dtype)
    if across_ranks:
        number = distributed.mean_over_ranks(number)
    shares = present / (len(losses) * number.clamp(min=1 / distributed.world_size()))  # nobody is there: 0, not 0 / 0
    return DiscriminationResult((losses * shares).sum(), (hits * shares).sum())


def clip_discrimination(
    predictions: Tensor, targets: Tensor, masked_ids: Tensor, softmax_over: SoftmaxOver = "targets"
) -> tuple[Tensor, Tensor]:
    """Loss and accuracy of every view of every clip, means over its masked tokens, ``[V, B]`` each.

    Computed in float32 (float64 stays), whatever autocast says.

    Args:
        predictions: ``[V, B, N, P]``; those of visible tokens are not looked at.
        targets: raw patches ``[B, N, P]``, the same for every view.
        masked_ids: ``[V, B, N-K]``.
        softmax_over: for each prediction over the clip's masked patches [source MAE-AST], or for each masked patch over the
            clip's predictions [source SSAST].
    """
    views, clips = masked_ids.shape[:2]
    with torch.autocast(predictions.device.type, enabled=False):
        predicted = _precise(_gathered(predictions, masked_ids))  # [V, B, N-K, P]
        patches = _precise(_gathered(targets.expand(views, *targets.shape), masked_ids))
        scores = torch.bmm(predicted.flatten(0, 1), patches.flatten(0, 1).transpose(1, 2))
        own = scores.diagonal(dim1=1, dim2=2)
        losses = (scores.logsumexp(dim=2 if softmax_over == "targets" else 1) - own).mean(dim=1)
        places = torch.arange(scores.shape[1], device=scores.device)
        hits = (scores.detach().argmax(dim=2) == places).to(losses.dtype).mean(dim=1)
    return losses.unflatten(0, (views, clips)), hits.unflatten(0, (views, clips))


def _gathered(values: Tensor, ids: Tensor) -> Tensor:
    return values.gather(2, ids.unsqueeze(-1).expand(*ids.shape, values.shape[-1]))


def _precise(values: Tensor) -> Tensor:
    """In float32 whatever autocast gave; float64 stays."""
    return values if values.dtype == torch.float64 else values.float()
