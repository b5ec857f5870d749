"""Which classes are taken for which others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mavil.evaluation.decisions import decided

MOST_PAIRS = 20


@dataclass(frozen=True)
class Pair:
    """Two classes of which the second gets in the way of the first.

    Attributes:
        true, other: class names.
        clips: clips with the label ``true`` and not ``other``.
        wrong: how many of them were taken for ``other``; a tie counts as a share.
        together: clips that have both labels; 0 where a clip has one.
    """

    true: str
    other: str
    clips: int
    wrong: float
    together: int = 0

    @property
    def share(self) -> float:
        """``wrong`` of ``clips``."""
        return self.wrong / self.clips


def confusion_pairs(scores: np.ndarray, is_positive: np.ndarray, classes: Sequence[str]) -> list[Pair]:
    """With one label per clip: how often a class was taken for another one, the most frequent first, at most 20.

    Args:
        scores: ``[n, classes]``; equal best classes share the clip.
        is_positive: ``[n, classes]`` bool, one class per row.
        classes: names.
    """
    matrix = is_positive.astype(np.float64).T @ decided(scores, False)
    counts = np.broadcast_to(is_positive.sum(axis=0)[:, None], matrix.shape)
    return _most(matrix, counts, np.zeros_like(counts), classes)


def outranking_pairs(scores: np.ndarray, is_positive: np.ndarray, classes: Sequence[str]) -> list[Pair]:
    """With several labels per clip: of the clips that have A and not B, in how many B scored above A. At most 20 pairs.

    Equal scores count one half. The pairs with the most such clips come first; ``together`` tells how often the two labels
    occur in one clip, because classes that often do are ranked alike by right as well [our choice].

    Args:
        scores: ``[n, classes]``.
        is_positive: ``[n, classes]`` bool.
        classes: names.
    """
    together = is_positive.T.astype(np.int64) @ is_positive.astype(np.int64)
    counts = together.diagonal()[:, None] - together
    wrong = np.zeros(together.shape)
    for number in range(len(classes)):
        rows = is_positive[:, number]
        own, others = scores[rows, number, None], scores[rows]
        above = (others > own) + 0.5 * (others == own)
        wrong[number] = (above * ~is_positive[rows]).sum(axis=0)
    return _most(wrong, counts, together, classes)


def _most(wrong: np.ndarray, counts: np.ndarray, together: np.ndarray, classes: Sequence[str]) -> list[Pair]:
    wrong = wrong.copy()
    np.fill_diagonal(wrong, 0)
    # Stable: among equals the order of the classes decides, so that two runs print the same.
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_PAIRS]
    places = [divmod(int(place), len(classes)) for place in order]
    return [
        Pair(classes[a], classes[b], int(counts[a, b]), float(wrong[a, b]), int(together[a, b]))
        for a, b in places
        if wrong[a, b] > 0
    ]
