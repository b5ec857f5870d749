"""InfoNCE between modalities and between views, with candidates from every rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mavil import distributed


@dataclass
class ContrastResult:
    """``loss`` and ``accuracy`` (share of rows whose partner ranks first, both directions) are scalars."""

    loss: Tensor
    accuracy: Tensor
    num_negatives: int


def symmetric_info_nce(first: Tensor, second: Tensor, temperature: float, across_ranks: bool = True) -> ContrastResult:
    """Symmetric InfoNCE on cosine similarity; row i of ``first`` belongs to row i of ``second``, both ``[B, D]``.

    Each rank scores its own rows against the candidates of all ranks, in both directions, and returns the mean over its own
    rows. Together with a gather whose backward sums over ranks and DDP's mean over ranks, the gradient equals that of the
    one-process loss on the joined batch [form: recalled; candidates from all ranks: our choice, MAViL's is unknown].
    Computed in float32 (float64 stays), whatever autocast says: cosine differences at small temperatures need it.
    """
    device_type = first.device.type
    with torch.autocast(device_type, enabled=False):
        first, second = (F.normalize(x if x.dtype == torch.float64 else x.float(), dim=1) for x in (first, second))
        if across_ranks:
            all_first, all_second = distributed.gather_with_gradient(first), distributed.gather_with_gradient(second)
            start = distributed.rank() * len(first)
        else:
            all_first, all_second, start = first, second, 0
        partners = torch.arange(start, start + len(first), device=first.device)
        forward = first @ all_second.T / temperature  # [B, R * B]
        backward = second @ all_first.T / temperature
        loss = (F.cross_entropy(forward, partners) + F.cross_entropy(backward, partners)) / 2
    hits = torch.cat([forward.argmax(1) == partners, backward.argmax(1) == partners])
    return ContrastResult(loss, hits.float().mean(), len(all_second) - 1)
