"""Where the right answer of each query stands among the gallery, block by block on both sides.

Protocol of CAV-MAE's zero-shot retrieval [source CAV-MAE]: cosine similarity of embeddings, the i-th query's only right
answer is the i-th gallery item. Equal similarities are broken neither for nor against the model: every order of the equals
is taken as equally likely, so a collapsed model scores chance.

Which items are better is decided in float64: float32 products only sort out those that are farther from the answer's similarity
than rounding can be, see :mod:`mavil.evaluation.nearest`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mavil.evaluation.nearest import (
    BLOCK,
    Progress,
    UnitRows,
    blocks_of,
    full_float32,
    pair_cosines,
    rounding_bound,
)

SAME = 1e-9
"""Cosine similarities (float64) closer than this are equal: one product may round the same pair in two ways."""
_DENSE = 16
"""A block of which more than one pair in so many is in doubt is compared again as a whole, not pair by pair [our choice]."""


@dataclass(frozen=True)
class Standings:
    """Where the right answer of each query stands, all ``[n]``, int64 but the last.

    ``better``: gallery items more similar than the right answer; ``equal``: others exactly as similar;
    ``candidates``: gallery items compared, the right answer included; ``missed`` bool: the query or its answer does not exist,
    and ``better`` is then all of the candidates.
    """

    better: Tensor
    equal: Tensor
    candidates: Tensor
    missed: Tensor

    @property
    def ranks(self) -> Tensor:
        """``[n]`` float64: 1-based rank, the midpoint among equals; of what was missed behind all candidates."""
        return self.better + 1 + self.equal.double() / 2

    def hits(self, k: int) -> Tensor:
        """``[n]`` float64: probability in [0, 1] that the answer is among the first ``k`` (0 or 1 unless there are equals)."""
        return ((k - self.better).double() / (self.equal + 1)).clamp(0, 1) * ~self.missed

    def chance(self, k: int) -> Tensor:
        """``[n]`` float64: that probability for a random order."""
        return (k / self.candidates.double()).clamp(max=1) * ~self.missed

    @property
    def chance_ranks(self) -> Tensor:
        """``[n]`` float64: the mean of :attr:`ranks` over random orders."""
        return torch.where(self.missed, self.ranks, (self.candidates.double() + 1) / 2)


@dataclass(frozen=True)
class Sides:
    """Both sides of a search on one device, and how two clips are compared.

    Attributes:
        queries: rows of all windows of the clips, clip by clip.
        gallery: likewise.
        windows: W of each clip. The similarity of two clips is that of their most similar pair of windows.
    """

    queries: UnitRows
    gallery: UnitRows
    windows: int

    @classmethod
    def of(cls, queries: Tensor, gallery: Tensor, device: torch.device) -> Sides:
        """``[n, Z]`` or ``[n, W, Z]`` each.

        Raises:
            UserError: an embedding is not finite.
            ValueError: shapes differ, or there is nothing to retrieve.
        """
        if queries.ndim not in (2, 3) or queries.shape != gallery.shape or len(queries) == 0:
            raise ValueError(
                f"queries {tuple(queries.shape)} and gallery {tuple(gallery.shape)} must both be [clips, width] or "
                "[clips, windows, width]"
            )
        windows = 1 if queries.ndim == 2 else queries.shape[1]
        rows = [side.flatten(0, -2) for side in (queries, gallery)]
        return cls(UnitRows.of(rows[0], "query", device), UnitRows.of(rows[1], "gallery", device), windows)

    @property
    def num_clips(self) -> int:
        """n of each side."""
        return len(self.queries) // self.windows

    @property
    def width(self) -> int:
        """Z."""
        return self.queries.rows.shape[1]

    def rough(self, some: slice, others: slice) -> Tensor:
        """Similarities ``[b, g]`` float32 of blocks of clips."""
        return self._best(self.queries.rough(self._rows(some)) @ self.gallery.rough(self._rows(others)).T)

    def exact(self, some: slice, others: slice) -> Tensor:
        """Likewise in float64."""
        return self._best(self.queries.exact(self._rows(some)) @ self.gallery.exact(self._rows(others)).T)

    def pairs(self, i: Tensor, j: Tensor) -> Tensor:
        """Similarities ``[p]`` float64 of clips ``i`` of the queries and ``j`` of the gallery, each pair by itself."""
        if self.windows == 1:
            return pair_cosines(self.queries, i, self.gallery, j)
        number = torch.arange(self.windows, device=i.device)
        first = (i[:, None, None] * self.windows + number[None, :, None]).expand(-1, -1, self.windows)
        second = (j[:, None, None] * self.windows + number[None, None, :]).expand(-1, self.windows, -1)
        cosines = pair_cosines(self.queries, first.flatten(), self.gallery, second.flatten())
        return cosines.view(len(i), self.windows**2).amax(dim=1)

    def _rows(self, clips: slice) -> slice:
        return slice(clips.start * self.windows, clips.stop * self.windows)

    def _best(self, cosines: Tensor) -> Tensor:
        if self.windows == 1:
            return cosines
        return cosines.unflatten(1, (-1, self.windows)).unflatten(0, (-1, self.windows)).amax(dim=(1, 3))


def compute_standings(
    queries: Tensor,
    gallery: Tensor,
    groups: Sequence[str] | None = None,
    query_present: Tensor | None = None,
    gallery_present: Tensor | None = None,
    device: torch.device | str = "cpu",
    block: int = BLOCK,
    progress: Progress = lambda done, total: None,
) -> Standings:
    """Where each query's right answer stands. Memory: both sides and some arrays of ``block`` x ``block``.

    Args:
        queries: ``[n, Z]``, normalised here; or ``[n, W, Z]``: of each clip W windows, see :class:`Sides`.
        gallery: of the same shape; item i is the right answer of query i.
        groups: one name per clip. Each query then only searches the items of its own group.
        query_present: ``[n]`` bool: queries that exist; the others are missed.
        gallery_present: ``[n]`` bool: gallery items that exist. The others are no candidates, and their queries are missed.
        device: where products are computed. Both sides are moved there whole.
        block: rows of either side compared at once.
        progress: told after each block of queries.

    Returns:
        On the CPU.

    Raises:
        UserError: an embedding is not finite.
        ValueError: shapes or lengths differ, or there is nothing to retrieve.
    """
    place = torch.device(device)
    sides = Sides.of(queries, gallery, place)
    if groups is not None and len(groups) != len(queries):
        raise ValueError(f"{len(groups)} group names for {len(queries)} queries: give one per clip")
    numbers = {name: i for i, name in enumerate(dict.fromkeys(groups))} if groups is not None else {}
    group_ids = torch.tensor([numbers[name] for name in groups], device=place) if groups is not None else None
    everywhere = torch.ones(len(queries), dtype=torch.bool, device=place)
    asks = everywhere if query_present is None else query_present.to(place)
    answers = everywhere if gallery_present is None else gallery_present.to(place)
    size = max(1, block // sides.windows)
    counted = []
    with full_float32(place), torch.no_grad():
        for some in blocks_of(sides.num_clips, size):
            counted.append(_counts_of(sides, some, group_ids, answers, size).cpu())
            progress(some.stop, sides.num_clips)
    better, equal, candidates = torch.cat(counted, dim=1)
    missed = ~(asks & answers).cpu()
    # The answer itself was counted among the equals.
    return Standings(torch.where(missed, candidates, better), torch.where(missed, 0, equal - 1), candidates, missed)


def _counts_of(sides: Sides, some: slice, group_ids: Tensor | None, exists: Tensor, size: int) -> Tensor:
    """Better, equal (the answer included) and compared items, ``[3, b]`` int64, of the queries ``some``."""
    own = torch.arange(some.start, some.stop, device=exists.device)
    answer = sides.pairs(own, own)[:, None]
    bound = rounding_bound(sides.width)
    better, equal, candidates = torch.zeros(3, len(own), dtype=torch.int64, device=exists.device)
    for others in blocks_of(sides.num_clips, size):
        is_candidate = exists[others].expand(len(own), -1)
        if group_ids is not None:
            is_candidate = is_candidate & (group_ids[some, None] == group_ids[others])
        candidates += is_candidate.sum(dim=1)
        above = sides.rough(some, others) - answer.float()
        better += ((above > bound) & is_candidate).sum(dim=1)
        in_doubt = (above.abs() <= bound) & is_candidate
        if int(in_doubt.sum()) * _DENSE > in_doubt.numel():
            above = sides.exact(some, others) - answer
            better += ((above > SAME) & in_doubt).sum(dim=1)
            equal += ((above.abs() <= SAME) & in_doubt).sum(dim=1)
            continue
        row, column = in_doubt.nonzero(as_tuple=True)
        exactly = sides.pairs(own[row], column + others.start) - answer[row, 0]
        better.index_add_(0, row, (exactly > SAME).long())
        equal.index_add_(0, row, (exactly.abs() <= SAME).long())
    return torch.stack([better, equal, candidates])
