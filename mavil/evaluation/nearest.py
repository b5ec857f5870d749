"""Exact search by cosine, block by block: the nearest gallery items of every query, in memory that both numbers leave alone.

float32 products sort out what is clearly worse. Whatever comes within their proven rounding error of a decision is computed
again in float64, pair by pair. So the result depends neither on the sizes of the blocks nor on the order of the gallery, as
one product of two large matrices does: it rounds the same pair differently in different places.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mavil.structs import UserError

Embeddings = Tensor | np.ndarray
"""``[n, Z]``; an array may be mapped from a file."""
Progress = Callable[[int, int], None]
"""Told how many of how many queries are done."""
BLOCK = 4096
"""Rows of either side that are compared at once: similarities of 64 MiB [our choice]."""
_SPARE = 16
"""Further candidates that are scored again beside the best k, and one for every eighth of k."""
_SHORTEST = 1e-12
"""A shorter row is no direction: it is left as it is, and its similarity to everything is about 0."""
_VALUES_AT_ONCE = 2**22
"""Numbers gathered for pairs that are scored again: 32 MiB in float64 per side."""


@dataclass(frozen=True)
class UnitRows:
    """One side of a comparison, which is brought to length one where it is read, a block at a time.

    Attributes:
        rows: ``[n, Z]`` on the device, in the precision in which they came.
        lengths: ``[n]`` float64.
    """

    rows: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, embeddings: Embeddings, side: str, device: torch.device) -> UnitRows:
        """Raises UserError if an embedding is not finite; ``side`` names it (query, gallery)."""
        rows = (_mapped(embeddings) if isinstance(embeddings, np.ndarray) else embeddings.detach()).to(device)
        if rows.ndim != 2 or not len(rows):
            raise ValueError(f"{side} embeddings {tuple(rows.shape)} must be [items, width] with at least one item")
        lengths = torch.cat([rows[part].double().norm(dim=1) for part in blocks_of(len(rows), BLOCK)])
        bad = int((~lengths.isfinite()).sum())
        if bad:
            raise UserError(
                f"{bad} of {len(rows)} {side} embeddings are not finite: the model has diverged, use an earlier checkpoint"
            )
        return cls(rows, lengths.clamp(min=_SHORTEST))

    def __len__(self) -> int:
        return len(self.rows)

    def exact(self, where: slice | Tensor) -> Tensor:
        """``[b, Z]`` float64, of length one."""
        return self.rows[where].double() / self.lengths[where, None]

    def rough(self, where: slice | Tensor) -> Tensor:
        """``[b, Z]`` float32, of length one."""
        return self.exact(where).float()


def nearest(
    queries: Embeddings,
    gallery: Embeddings | UnitRows,
    k: int,
    device: torch.device | str = "cpu",
    block: int = BLOCK,
    progress: Progress = lambda done, total: None,
) -> tuple[Tensor, Tensor]:
    """The most similar gallery items of each query, best first; equal scores in the gallery's order.

    Nothing of the size queries x gallery is ever held: beside the two sides, as they were given, there are some arrays of
    ``block`` x ``block``. Where many items are as good as the k-th, the queries concerned are compared once more in float64.

    Args:
        queries: ``[q, Z]``, normalised here; float16, float32 or float64.
        gallery: ``[n, Z]``, likewise; or what :meth:`UnitRows.of` made of it on the device, where it is searched again and again.
        k: how many of the gallery, at least 1; all where it has fewer.
        device: where products are computed. Both sides are moved there whole.
        block: rows of either side compared at once.
        progress: told after each block of queries.

    Returns:
        Scores ``[q, min(k, n)]`` float32, cosines in [-1, 1] up to rounding, and gallery rows of the same shape, int64; both on
        the CPU.

    Raises:
        UserError: an embedding is not finite.
        ValueError: shapes do not fit, a side is empty, or ``k`` is below 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}: ask for at least 1")
    place = torch.device(device)
    asked = UnitRows.of(queries, "query", place)
    held = gallery if isinstance(gallery, UnitRows) else UnitRows.of(gallery, "gallery", place)
    if asked.rows.shape[1] != held.rows.shape[1]:
        raise ValueError(f"queries of width {asked.rows.shape[1]} and a gallery of {held.rows.shape[1]} do not compare")
    scores, rows = [], []
    with full_float32(place), torch.no_grad():
        for part in blocks_of(len(asked), block):
            some = torch.arange(part.start, part.stop, device=place)
            best = _nearest_to(asked, some, held, min(k, len(held)), block)
            scores.append(best[0].cpu())
            rows.append(best[1].cpu())
            progress(part.stop, len(asked))
    return torch.cat(scores), torch.cat(rows)


def blocks_of(number: int, size: int) -> Iterator[slice]:
    """``number`` rows as slices of at most ``size``."""
    for start in range(0, number, size):
        yield slice(start, min(start + size, number))


def rounding_bound(width: int) -> float:
    """How far a float32 product of two unit vectors of ``width`` numbers can be from their cosine, in any order of its sum.

    [source Higham, Accuracy and Stability of Numerical Algorithms, section 3.1: n u for a sum of products; a few u more for
    rounding the vectors themselves]
    """
    return (width + 8) * 2.0**-24


def pair_cosines(first: UnitRows, i: Tensor, second: UnitRows, j: Tensor) -> Tensor:
    """Cosines ``[p]`` float64 of rows ``i`` ``[p]`` of one side and rows ``j`` ``[p]`` of the other, each pair by itself."""
    size = max(1, _VALUES_AT_ONCE // max(1, first.rows.shape[1]))
    parts = [(first.exact(i[part]) * second.exact(j[part])).sum(dim=1) for part in blocks_of(len(i), size)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64, device=first.rows.device)


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """float32 products in float32: neither TF32 nor bf16, whatever the caller computes in."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _nearest_to(asked: UnitRows, some: Tensor, held: UnitRows, k: int, block: int) -> tuple[Tensor, Tensor]:
    """Scores and rows ``[b, k]`` for the queries ``some`` ``[b]``."""
    kept = min(k + _SPARE + k // 8, len(held))
    rough, rows = _best(asked.rough(some), held, kept, block)
    pairs = pair_cosines(asked, some.repeat_interleave(kept), held, rows.flatten())
    scores, order = _first(pairs.float().view_as(rough), k, rows)
    rows = rows.gather(1, order)
    if kept < len(held):
        # The best one that was not scored again may still be as good as the k-th.
        unsettled = rough[:, -1] >= scores[:, -1] - 2 * rounding_bound(held.rows.shape[1])
        if unsettled.any():
            scores[unsettled], rows[unsettled] = _best(asked.exact(some[unsettled]), held, k, block)
    return scores, rows


def _best(queries: Tensor, held: UnitRows, k: int, block: int) -> tuple[Tensor, Tensor]:
    """The ``k`` best of one pass over the gallery, in the precision of ``queries`` ``[b, Z]``: scores float32 and rows."""
    scores = torch.zeros(len(queries), 0, device=queries.device)
    rows = torch.zeros(len(queries), 0, dtype=torch.int64, device=queries.device)
    for part in blocks_of(len(held), block):
        items = held.exact(part) if queries.dtype == torch.float64 else held.rough(part)
        products = (queries @ items.T).float()
        if scores.shape[1] < k:
            scores, rows = _joined(scores, rows, products, part.start, k)
            continue
        # Most blocks of a large gallery have nothing better for most queries. Equals stand later, and change nothing.
        open_rows = (products.amax(dim=1) > scores[:, -1]).nonzero().flatten()
        if len(open_rows):
            better = _joined(scores[open_rows], rows[open_rows], products[open_rows], part.start, k)
            scores[open_rows], rows[open_rows] = better
    return scores, rows


def _joined(scores: Tensor, rows: Tensor, products: Tensor, start: int, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` best of what was found so far and of the next block, whose first item is ``start``."""
    found, order = _first(products, k)
    # What was found before stands earlier in the gallery, so that joining keeps equals in its order.
    scores, rows = torch.cat([scores, found], dim=1), torch.cat([rows, order + start], dim=1)
    scores, order = _first(scores, k)
    return scores, rows.gather(1, order)


def _first(values: Tensor, k: int, places: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The ``k`` largest of each row of ``values`` ``[b, n]`` and their columns; equals in the order of ``places`` ``[b, n]``.

    Without ``places`` in the order of the columns. ``topk`` alone takes any of several that equal the last.
    """
    if places is not None:
        by_place = places.argsort(dim=1)
        found, order = _first(values.gather(1, by_place), k)
        return found, by_place.gather(1, order)
    columns = values.topk(min(k + 1, values.shape[1]), dim=1)
    picked = columns.indices[:, :k].clone()
    if columns.values.shape[1] > k:
        is_open = columns.values[:, k - 1] == columns.values[:, k]
        if is_open.any():
            picked[is_open] = values[is_open].argsort(dim=1, descending=True, stable=True)[:, :k]
    picked = picked.sort(dim=1).values
    found, order = values.gather(1, picked).sort(dim=1, descending=True, stable=True)
    return found, picked.gather(1, order)


def _mapped(array: np.ndarray) -> Tensor:
    """The same memory as a tensor; nothing writes to it, so that a file mapped for reading will do."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
