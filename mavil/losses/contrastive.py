"""InfoNCE between modalities and between views, with candidates from every rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mavil import distributed

Directions = Literal["both", "first_for_second"]


@dataclass
class ContrastResult:
    """``loss`` and ``accuracy`` (share of rows whose partner ranks first, over the directions asked for) are scalars.

    ``num_negatives``: candidates of a row beside its partner; a scalar on the device where ``present`` decides about them.
    """

    loss: Tensor
    accuracy: Tensor
    num_negatives: int | Tensor


def symmetric_info_nce(
    first: Tensor,
    second: Tensor,
    temperature: float,
    across_ranks: bool = True,
    present: Tensor | None = None,
    directions: Directions = "both",
) -> ContrastResult:
    """InfoNCE on cosine similarity; row i of ``first`` belongs to row i of ``second``, both ``[B, D]``.

    Each rank scores its own rows against the candidates of all ranks and returns the mean over its own rows. Together with a
    gather whose backward sums over ranks and DDP's mean over ranks, the gradient equals that of the one-process loss on the
    joined batch [form: recalled; candidates from all ranks: our choice, MAViL's is unknown]. Computed in float32 (float64
    stays), whatever autocast says: cosine differences at small temperatures need it.

    Args:
        first: as above; all ranks hold the same number of rows.
        second: likewise.
        temperature: divisor of the similarity.
        across_ranks: candidates of all ranks, or of this one only.
        present: ``[B]`` bool, rows that have both sides; the others are neither rows nor candidates, and get a gradient of
            exactly 0. The sum over own rows is then divided by the mean number of such rows over ranks, so that DDP's mean
            still is the mean over all rows; a rank without any contributes 0. Collective: ``None`` on every rank or on none,
            so it must follow from the settings, never from what a batch happens to hold.
        directions: the mean of both [SimCLR, CLIP], or only the right ``first`` for each ``second`` [source CAV-MAE, whose
            softmax runs over the sounds for each video].
    """
    with torch.autocast(first.device.type, enabled=False):
        if present is not None:
            # Before they are normalised: whatever an absent side holds, even NaN, must not reach a gradient.
            first, second = (torch.where(present[:, None], side, 0.0) for side in (first, second))
        first, second = (F.normalize(x if x.dtype == torch.float64 else x.float(), dim=1) for x in (first, second))
        start = distributed.rank() * len(first) if across_ranks else 0
        partners = torch.arange(start, start + len(first), device=first.device)
        queries = {"first": first, "second": second} if directions == "both" else {"second": second}
        # One after the other and in this order on every rank: each is a collective, and so is its backward.
        candidates = {
            query: distributed.gather_with_gradient(other) if across_ranks else other
            for query, other in (("second", first), ("first", second))
            if query in queries
        }
        logits = [queries[query] @ candidates[query].T / temperature for query in queries]  # [B, R * B] each
        if present is None:
            loss = torch.stack([F.cross_entropy(each, partners) for each in logits]).sum() / len(logits)
            hits = torch.cat([each.argmax(1) == partners for each in logits])
            return ContrastResult(loss, hits.float().mean(), len(candidates["second"]) - 1)
        return _among_present(logits, partners, present, across_ranks)


def _among_present(logits: list[Tensor], partners: Tensor, present: Tensor, across_ranks: bool) -> ContrastResult:
    candidates = distributed.gather_with_gradient(present.to(logits[0].dtype)) > 0 if across_ranks else present
    # Rows of absent clips keep all candidates, for a row without any would be NaN; they are left out of the sum below.
    is_left_out = present[:, None] & ~candidates
    logits = [each.masked_fill(is_left_out, -torch.inf) for each in logits]
    num_rows = distributed.mean_over_ranks(present.sum().to(logits[0].dtype))
    num_rows = num_rows.clamp(min=1 / distributed.world_size())  # nobody has any: 0, not 0 / 0
    losses = torch.stack([F.cross_entropy(each, partners, reduction="none") for each in logits])
    loss = torch.where(present, losses, 0.0).sum() / (len(logits) * num_rows)
    hits = torch.stack([each.argmax(1) == partners for each in logits]) & present
    return ContrastResult(loss, hits.sum() / (len(logits) * num_rows), (candidates.sum() - 1).clamp(min=0))
