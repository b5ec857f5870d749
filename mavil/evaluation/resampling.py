"""Metrics of many bootstrap resamples at once: a resample is how often each clip was drawn, and that is its weight.

Average precision and the area under the ROC curve depend on the order of the scores only. So every class is sorted once, and
the weights of all resamples are summed over the stretches between its positives: a class of 20,000 clips takes some hundredths
of a second for 2,000 resamples, where sorting each resample anew takes minutes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from mavil.evaluation.decisions import hits_at

Progress = Callable[[int, int], None]
"""Told how much of how much is done."""
AT_ONCE = 8_000_000
"""Clips times resamples summed at once: a few arrays of so many numbers are in memory."""
MOST_DRAWS = 255
"""Of one clip in one resample, what a byte holds; the chance of more is less than 1e-300."""


def draw_counts(num_clips: int, num_resamples: int, seed: int) -> np.ndarray:
    """``[n, 1 + resamples]`` uint8: how often each clip is in each resample of ``n`` clips drawn with replacement.

    The first column is all ones: the clips as they are, so that the value itself comes out of the same sums.
    """
    generator = np.random.default_rng(seed)
    counts = np.ones((num_clips, 1 + num_resamples), dtype=np.uint8)
    for number in range(num_resamples):
        drawn = np.bincount(generator.integers(0, num_clips, num_clips), minlength=num_clips)
        counts[:, 1 + number] = np.minimum(drawn, MOST_DRAWS)
    return counts


def resampled_metrics(
    scores: np.ndarray,
    targets: np.ndarray,
    counts: np.ndarray,
    multi_label: bool,
    progress: Progress = lambda done, total: None,
) -> dict[str, np.ndarray]:
    """Metrics of every column of ``counts``, ``[resamples]`` float64 by name; the same as those of an evaluation.

    Args:
        scores: ``[n, classes]`` float64, finite.
        targets: ``[n, classes]`` bool; exactly one class per row unless ``multi_label``.
        counts: ``[n, resamples]`` of :func:`draw_counts`.
        multi_label: leave out the accuracy.
        progress: told of every class.

    Returns:
        ``accuracy`` (equal best scores share the point), ``map`` and ``auc``: means over the classes that a resample has both
        positive and negative clips of. NaN where it has no such class.
    """
    found: dict[str, np.ndarray] = {}
    if not multi_label:
        hits = hits_at(scores, targets, 1)
        found["accuracy"] = np.concatenate([hits @ counts[:, block] for block in _blocks(counts)]) / len(scores)
    return found | means_over_classes(scores, targets, counts, progress)[0]


def means_over_classes(
    scores: np.ndarray, targets: np.ndarray, counts: np.ndarray, progress: Progress = lambda done, total: None
) -> tuple[dict[str, np.ndarray], list[tuple[float, float]]]:
    """``map`` and ``auc`` of :func:`resampled_metrics`, and each class's own (average precision, area) in the first column.

    The own numbers are NaN where nothing defines them. ``progress`` is told of every class.
    """
    blocks = _blocks(counts)
    sums, numbers = np.zeros((2, counts.shape[1])), np.zeros(counts.shape[1])
    own = [(math.nan, math.nan)] * scores.shape[1]
    for place, block in enumerate(blocks):
        drawn = counts[:, block].astype(np.int32)
        for number in range(scores.shape[1]):
            if targets[:, number].any():
                both = np.stack(class_metrics(scores[:, number], targets[:, number], drawn))
                if place == 0:
                    own[number] = (float(both[0, 0]), float(both[1, 0]))
                # Without a negative clip the area is not defined, and the precision is 1 whatever the scores.
                is_defined = ~np.isnan(both).any(axis=0)
                sums[:, block] += np.where(is_defined, both, 0)
                numbers[block] += is_defined
            progress(place * scores.shape[1] + number + 1, len(blocks) * scores.shape[1])
    with np.errstate(invalid="ignore", divide="ignore"):
        means = sums / numbers
    return {"map": means[0], "auc": means[1]}, own


def _blocks(counts: np.ndarray) -> list[slice]:
    """Columns that are summed at once."""
    size = max(1, AT_ONCE // len(counts))
    return [slice(start, start + size) for start in range(0, counts.shape[1], size)]


def class_metrics(scores: np.ndarray, is_positive: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average precision and area under the ROC curve of one class, ``[resamples]`` each.

    Equal scores are one threshold, as in scikit-learn [source: its average_precision_score and roc_auc_score with weights].

    Args:
        scores: ``[n]``.
        is_positive: ``[n]`` bool with at least one positive.
        counts: ``[n, resamples]`` weights, whole numbers.

    Returns:
        NaN where a resample has no positive clip, for the area also where it has no negative one.
    """
    return _Ranked.of(scores, is_positive).metrics(counts)


@dataclass(frozen=True)
class _Ranked:
    """The clips of a class, best score first; of equal scores the positives first.

    ``marks`` are the places in that order at which something ends, ascending, the last one ``n``. Of every group of equal
    scores with a positive ``begin``, ``middle`` and ``end`` are where it, its negatives, and the next group begin, as numbers
    of marks, 0 being the very first place.
    """

    order: np.ndarray
    marks: np.ndarray
    begin: np.ndarray
    middle: np.ndarray
    end: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, is_positive: np.ndarray) -> _Ranked:
        order = np.lexsort((~is_positive, -scores))
        ranked, positive = scores[order], is_positive[order]
        starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
        ends = np.r_[starts[1:], len(ranked)]
        num_positive = np.add.reduceat(positive.astype(np.int64), starts)
        chosen = num_positive > 0
        places = [starts[chosen], (starts + num_positive)[chosen], ends[chosen]]
        marks = np.unique(np.concatenate([*places, [len(ranked)]]))
        marks = marks[marks > 0]
        begin, middle, end = (np.searchsorted(marks, place, side="right") for place in places)
        return cls(order, marks, begin, middle, end)

    def metrics(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See :func:`class_metrics`."""
        # A sparse matrix of ones: ten times as fast as numpy's sums over stretches, and as exact.
        ones = np.ones(len(self.order), dtype=np.int32)
        stretches = csr_array((ones, self.order, np.r_[0, self.marks]), shape=(len(self.marks), len(self.order)))
        upto = np.zeros((len(self.marks) + 1, counts.shape[1]))
        np.cumsum(stretches @ counts.astype(np.int32, copy=False), axis=0, out=upto[1:])
        positive = upto[self.middle] - upto[self.begin]  # of each group
        negative = upto[self.end] - upto[self.middle]
        positive_upto = positive.cumsum(axis=0)
        num_positive = positive_upto[-1]
        num_negative = upto[-1] - num_positive
        with np.errstate(invalid="ignore", divide="ignore"):
            # A group that a resample has nobody of adds nothing, whatever its precision.
            precision = positive_upto / np.maximum(upto[self.end], 1)
            average = (positive * precision).sum(axis=0) / num_positive
            before = upto[self.begin] - (positive_upto - positive)  # negatives with better scores
            won = positive * (num_negative - before - negative / 2)
            return average, won.sum(axis=0) / (num_positive * num_negative)
