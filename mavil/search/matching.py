"""From nearest rows to best clips: an index has a row for every window, a person wants every clip once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

QUERY_ROWS_AT_ONCE = 16
"""Windows of a query that are compared at once: memory is this times the rows asked for, not times a query's length."""
FIRST_ROWS = 64
"""Rows asked for at first, where more are needed four times as many, and so on [our choice]."""

Nearest = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
"""Queries ``[q, Z]`` and k to scores ``[q, k]``, falling, and rows ``[q, k]``; -1 where an index found fewer than k."""


@dataclass(frozen=True)
class Hit:
    """The best pair of a query's window and a clip's row: both numbers, and their score."""

    score: float
    query: int
    row: int


def best_clips(nearest: Nearest, queries: np.ndarray, clip_of_row: np.ndarray, top: int, most_rows: int) -> list[Hit]:
    """The ``top`` clips whose best row fits any of the queries best, the best first; equal scores by row.

    Nearest rows are asked for until no clip that was not seen can be among the best. So the result is that of a comparison
    with every row, if ``nearest`` is exact and ``most_rows`` all of them.

    Args:
        nearest: the search.
        queries: ``[q, Z]``.
        clip_of_row: ``[n]`` the number of each row's clip.
        top: clips wanted; fewer come back where there are fewer.
        most_rows: asked for at the most.
    """
    found: dict[int, Hit] = {}
    for first in range(0, len(queries), QUERY_ROWS_AT_ONCE):
        block = queries[first : first + QUERY_ROWS_AT_ONCE]
        for hit in _of_block(nearest, block, clip_of_row, top, most_rows):
            clip = int(clip_of_row[hit.row])
            if clip not in found or hit.score > found[clip].score:
                found[clip] = Hit(hit.score, first + hit.query, hit.row)
    return sorted(found.values(), key=lambda hit: (-hit.score, hit.row))[:top]


def _of_block(nearest: Nearest, queries: np.ndarray, clip_of_row: np.ndarray, top: int, most_rows: int) -> list[Hit]:
    k = min(most_rows, max(FIRST_ROWS, top))
    while True:
        scores, rows = nearest(queries, k)
        hits = _merged(scores, rows, clip_of_row)[:top]
        # What was not returned scores at most as the last row that was.
        unseen = float(scores[:, -1].max()) if (rows[:, -1] >= 0).any() else -np.inf
        if k >= most_rows or (rows < 0).any() or (len(hits) == top and hits[-1].score > unseen):
            return hits
        k = min(most_rows, 4 * k)


def _merged(scores: np.ndarray, rows: np.ndarray, clip_of_row: np.ndarray) -> list[Hit]:
    """The best hit of every clip, the best clip first."""
    query_of, place_of = np.nonzero(rows >= 0)
    score, row = scores[query_of, place_of], rows[query_of, place_of]
    order = np.lexsort((query_of, row, -score))
    _, first = np.unique(clip_of_row[row[order]], return_index=True)
    best = order[np.sort(first)]
    return [Hit(float(score[i]), int(query_of[i]), int(row[i])) for i in best]
