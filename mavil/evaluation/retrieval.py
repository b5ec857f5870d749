"""Retrieval between modalities: from the sound of a clip to its picture and back, in a gallery of clips.

Protocol of CAV-MAE's zero-shot retrieval [source CAV-MAE]: cosine similarity of embeddings, the i-th query's only right
answer is the i-th gallery item. Equal similarities are broken neither for nor against the model: every order of the equals
is taken as equally likely, so a collapsed model scores chance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mavil.structs import UserError

RECALL_AT = (1, 5, 10)
_ROWS_AT_ONCE = 1024
"""Queries compared with the gallery in one product: bounds memory for galleries of tens of thousands."""
_SAME = 1e-9
"""Cosine similarities (float64) closer than this are equal: one product may round the same pair in two ways."""


@dataclass(frozen=True)
class Standings:
    """Where the right answer of each query stands, all ``[n]`` int64.

    ``better``: gallery items more similar than the right answer; ``equal``: others exactly as similar;
    ``candidates``: gallery items compared, the right answer included.
    """

    better: Tensor
    equal: Tensor
    candidates: Tensor

    @property
    def ranks(self) -> Tensor:
        """``[n]`` float64: 1-based rank, the midpoint among equals."""
        return self.better + 1 + self.equal.double() / 2

    def hits(self, k: int) -> Tensor:
        """``[n]`` float64: probability in [0, 1] that the answer is among the first ``k`` (0 or 1 unless there are equals)."""
        return ((k - self.better).double() / (self.equal + 1)).clamp(0, 1)

    def chance(self, k: int) -> Tensor:
        """``[n]`` float64: that probability for a random order."""
        return (k / self.candidates.double()).clamp(max=1)


@dataclass(frozen=True)
class RetrievalResult:
    """One direction of retrieval.

    ``recall`` and ``chance`` are percent by k; ranks are 1-based; ``chance_rank`` is the mean rank of a random order.
    ``gallery_size`` is the mean number of candidates per query: n, or the size of the query's group.
    """

    recall: dict[int, float]
    chance: dict[int, float]
    median_rank: float
    mean_rank: float
    chance_rank: float
    num_queries: int
    gallery_size: float

    def to_dict(self) -> dict[str, Any]:
        """Flat names with units, for JSON and the metrics log."""
        return {
            **{f"recall_at_{k}_percent": value for k, value in self.recall.items()},
            **{f"chance_at_{k}_percent": value for k, value in self.chance.items()},
            "median_rank": self.median_rank,
            "mean_rank": self.mean_rank,
            "chance_rank": self.chance_rank,
            "num_queries": self.num_queries,
            "gallery_size": self.gallery_size,
        }


def retrieval_metrics(queries: Tensor, gallery: Tensor, groups: Sequence[str] | None = None) -> RetrievalResult:
    """Recall at 1, 5 and 10, median and mean rank, with the chance level of exactly this gallery.

    Args:
        queries: ``[n, Z]``; normalised here.
        gallery: ``[n, Z]``; item i is the right answer of query i.
        groups: one name per clip. Each query then only searches the items of its own group: what is left of the retrieval
            once the cue that the groups share (the speaker, the class) no longer helps.

    Raises:
        UserError: an embedding is not finite.
        ValueError: shapes or lengths differ, or there is nothing to retrieve.
    """
    standings = compute_standings(queries, gallery, groups)
    ranks, candidates = standings.ranks, standings.candidates.double()
    return RetrievalResult(
        recall={k: 100 * standings.hits(k).mean().item() for k in RECALL_AT},
        chance={k: 100 * standings.chance(k).mean().item() for k in RECALL_AT},
        median_rank=ranks.quantile(0.5).item(),
        mean_rank=ranks.mean().item(),
        chance_rank=((candidates + 1) / 2).mean().item(),
        num_queries=len(ranks),
        gallery_size=candidates.mean().item(),
    )


def both_directions(audio: Tensor, video: Tensor, groups: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """:func:`retrieval_metrics` from ``audio`` ``[n, Z]`` to ``video`` ``[n, Z]`` and back, ready for JSON."""
    return {
        "audio_to_video": retrieval_metrics(audio, video, groups).to_dict(),
        "video_to_audio": retrieval_metrics(video, audio, groups).to_dict(),
    }


def compute_standings(queries: Tensor, gallery: Tensor, groups: Sequence[str] | None = None) -> Standings:
    """Where each query's right answer stands; arguments and errors as in :func:`retrieval_metrics`."""
    if queries.ndim != 2 or queries.shape != gallery.shape or len(queries) == 0:
        raise ValueError(
            f"queries {tuple(queries.shape)} and gallery {tuple(gallery.shape)} must both be [clips, width]"
        )
    if groups is not None and len(groups) != len(queries):
        raise ValueError(f"{len(groups)} group names for {len(queries)} queries: give one per clip")
    numbers = {name: i for i, name in enumerate(dict.fromkeys(groups))} if groups is not None else {}
    group_ids = torch.tensor([numbers[name] for name in groups] if groups is not None else [0] * len(queries))
    pieces = []
    for rows, similarity in _similarities(queries, gallery):
        answer = similarity.gather(1, rows[:, None])
        is_candidate = group_ids[rows, None] == group_ids
        better = (similarity > answer + _SAME) & is_candidate
        equal = ((similarity - answer).abs() <= _SAME) & is_candidate
        pieces.append(torch.stack([better.sum(1), equal.sum(1) - 1, is_candidate.sum(1)]))
    return Standings(*torch.cat(pieces, dim=1))


def nearest(queries: Tensor, gallery: Tensor, k: int) -> Tensor:
    """``[queries, min(k, items)]`` int64: the most similar gallery items of each query, best first; equals in gallery order.

    ``queries`` ``[q, Z]`` and ``gallery`` ``[n, Z]`` may differ in number.
    """
    best = [
        similarity.argsort(dim=1, descending=True, stable=True)[:, :k]
        for _, similarity in _similarities(queries, gallery)
    ]
    return torch.cat(best)


def _similarities(queries: Tensor, gallery: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield query numbers ``[r]`` and their cosine similarity to the whole gallery ``[r, n]``, float64."""
    queries, gallery = _normalised(queries, "query"), _normalised(gallery, "gallery")
    for rows in torch.arange(len(queries)).split(_ROWS_AT_ONCE):
        yield rows, queries[rows] @ gallery.T


def _normalised(embeddings: Tensor, side: str) -> Tensor:
    embeddings = embeddings.detach().double().cpu()
    bad = (~embeddings.isfinite()).any(1).sum().item()
    if bad:
        raise UserError(
            f"{bad} of {len(embeddings)} {side} embeddings are not finite: the model has diverged, use an earlier checkpoint"
        )
    return F.normalize(embeddings, dim=1)
