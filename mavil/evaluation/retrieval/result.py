"""Numbers of a search: recall, ranks, precision by class, each with chance and, where asked for, an interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mavil.evaluation.classification import BOOTSTRAP_SEED, LEVEL
from mavil.evaluation.nearest import BLOCK, Progress
from mavil.evaluation.retrieval.class_precision import class_precisions
from mavil.evaluation.retrieval.standings import Standings, compute_standings

RECALL_AT = (1, 5, 10)


@dataclass(frozen=True)
class RetrievalResult:
    """One direction of retrieval.

    ``recall`` and ``chance`` are percent by k; ranks are 1-based; ``chance_rank`` is the mean rank of a random order.
    ``gallery_size`` is the mean number of candidates per query: n, or the size of the query's group. ``class_map`` and its
    chance are percent, ``None`` without labels. ``intervals`` are 95 % ones by the name of :meth:`to_dict`. ``num_missed``
    queries have no sound or picture, or their answer has none; they count as not found.
    """

    recall: dict[int, float]
    chance: dict[int, float]
    median_rank: float
    mean_rank: float
    chance_rank: float
    num_queries: int
    gallery_size: float
    num_missed: int = 0
    class_map: float | None = None
    chance_class_map: float | None = None
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Flat names with units, for JSON and the metrics log."""
        named: dict[str, Any] = {
            **{f"recall_at_{k}_percent": value for k, value in self.recall.items()},
            **{f"chance_at_{k}_percent": value for k, value in self.chance.items()},
            "median_rank": self.median_rank,
            "mean_rank": self.mean_rank,
            "chance_rank": self.chance_rank,
            "num_queries": self.num_queries,
            "gallery_size": self.gallery_size,
        }
        if self.num_missed:
            named["num_missed"] = self.num_missed
        if self.class_map is not None:
            named |= {"class_map_percent": self.class_map, "chance_class_map_percent": self.chance_class_map}
        for name, (low, high) in self.intervals.items():
            named |= {f"{name}_low": low, f"{name}_high": high}
        return named


@dataclass(frozen=True)
class Search:
    """How a search is judged, beside its embeddings.

    Attributes:
        groups: see :func:`compute_standings`.
        query_present: ``[n]`` bool, likewise.
        gallery_present: ``[n]`` bool, likewise.
        labels: of each clip, for the precision by class; ``None`` leaves it out.
        bootstrap: resamples of the queries for the intervals; 0: none.
        device: where it is computed.
        block: rows of either side compared at once.
        progress: told after each block of queries.
    """

    groups: Sequence[str] | None = None
    query_present: Tensor | None = None
    gallery_present: Tensor | None = None
    labels: Sequence[Sequence[str]] | None = None
    bootstrap: int = 0
    device: torch.device | str = "cpu"
    block: int = BLOCK
    progress: Progress = lambda done, total: None


def retrieval_metrics(
    queries: Tensor, gallery: Tensor, groups: Sequence[str] | None = None, search: Search | None = None
) -> RetrievalResult:
    """Recall at 1, 5 and 10, median and mean rank, with the chance level of exactly this gallery.

    Args:
        queries: ``[n, Z]`` or, with W windows of each clip, ``[n, W, Z]``; normalised here.
        gallery: of the same shape; item i is the right answer of query i.
        groups: one name per clip. Each query then only searches the items of its own group: what is left of the retrieval
            once the cue that the groups share (the speaker, the class) no longer helps.
        search: everything else; its own groups count where ``groups`` is ``None``.

    Raises:
        UserError: an embedding is not finite.
        ValueError: shapes or lengths differ, or there is nothing to retrieve.
    """
    search = search or Search()
    standings = compute_standings(
        queries,
        gallery,
        search.groups if groups is None else groups,
        search.query_present,
        search.gallery_present,
        search.device,
        search.block,
        search.progress,
    )
    rows = {f"recall_at_{k}_percent": 100 * standings.hits(k).numpy() for k in RECALL_AT}
    chances: Tensor | None = None
    if search.labels is not None and any(search.labels):
        precisions, chances = class_precisions(queries, gallery, search.labels, search.device)
        rows["class_map_percent"] = 100 * precisions.numpy()
    ranks = standings.ranks
    return RetrievalResult(
        recall={k: float(rows[f"recall_at_{k}_percent"].mean()) for k in RECALL_AT},
        chance={k: 100 * standings.chance(k).mean().item() for k in RECALL_AT},
        median_rank=float(np.median(ranks.numpy())),
        mean_rank=ranks.mean().item(),
        chance_rank=standings.chance_ranks.mean().item(),
        num_queries=len(ranks),
        gallery_size=standings.candidates.double().mean().item(),
        num_missed=int(standings.missed.sum()),
        class_map=None if chances is None else float(np.nanmean(rows["class_map_percent"])),
        chance_class_map=None if chances is None else 100 * chances.nanmean().item(),
        intervals=_intervals(rows, standings, search.bootstrap),
    )


def both_directions(
    audio: Tensor, video: Tensor, groups: Sequence[str] | None = None, search: Search | None = None
) -> dict[str, dict[str, Any]]:
    """:func:`retrieval_metrics` from ``audio`` ``[n, Z]`` to ``video`` ``[n, Z]`` and back, ready for JSON.

    Of ``search`` the queries are ``audio`` and the gallery is ``video``; they change places on the way back.
    """
    there = search or Search()
    back = replace(there, query_present=there.gallery_present, gallery_present=there.query_present)
    return {
        "audio_to_video": retrieval_metrics(audio, video, groups, search).to_dict(),
        "video_to_audio": retrieval_metrics(video, audio, groups, back).to_dict(),
    }


def _intervals(rows: dict[str, np.ndarray], standings: Standings, num_resamples: int) -> dict[str, tuple[float, float]]:
    """Bootstrap over the queries, the gallery as it is; two runs are judged on the same resamples."""
    if num_resamples == 0 or len(standings.better) < 2:
        return {}
    generator, ranks, number = np.random.default_rng(BOOTSTRAP_SEED), standings.ranks.numpy(), len(standings.better)
    columns = {**rows, "mean_rank": ranks}
    values = np.stack(list(columns.values()), axis=1)
    means, medians = [], []
    for _ in range(num_resamples):
        drawn = generator.integers(0, number, number)
        means.append(np.nanmean(values[drawn], axis=0))
        medians.append(np.median(ranks[drawn]))
    tails = [50 - LEVEL / 2, 50 + LEVEL / 2]
    found = {name: np.percentile([mean[i] for mean in means], tails) for i, name in enumerate(columns)}
    found["median_rank"] = np.percentile(medians, tails)
    return {name: (float(low), float(high)) for name, (low, high) in found.items()}
