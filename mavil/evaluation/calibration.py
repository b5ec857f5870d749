"""Whether probabilities mean what they say: of decisions made with 80 % confidence, 80 % should be right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, softmax

from mavil.evaluation.decisions import decided

NUM_BINS = 15
"""Bins of equal width [source Guo et al. 2017, "On Calibration of Modern Neural Networks"]."""


@dataclass(frozen=True)
class Bin:
    """Decisions with a probability above ``low`` and up to ``high``.

    Attributes:
        low, high: bounds; 0 itself belongs to the first bin.
        count: decisions in it.
        confidence: their mean probability; NaN in an empty bin.
        outcome: the share of them that is true; NaN in an empty bin.
    """

    low: float
    high: float
    count: int
    confidence: float
    outcome: float


@dataclass(frozen=True)
class Calibration:
    """How far probabilities are from what happens.

    Attributes:
        ece: expected calibration error, the mean of |confidence - outcome| over all decisions, bin by bin.
        brier: mean squared error of the probabilities: with several labels per clip over all decisions, otherwise summed over
            the classes of a clip (0 best, 2 worst) [source Brier 1950].
        decisions: number of decisions that were binned.
        bins: for the reliability diagram.
    """

    ece: float
    brier: float
    decisions: int
    bins: tuple[Bin, ...]


def calibration(scores: np.ndarray, is_positive: np.ndarray, multi_label: bool) -> Calibration:
    """Calibration of logits.

    With several labels per clip every (clip, class) is one decision with the sigmoid as its probability. Otherwise every clip is
    one decision: its best class with the softmax as its probability; equal best classes share the point.

    Args:
        scores: ``[n, classes]`` logits.
        is_positive: ``[n, classes]`` bool; exactly one class per row unless ``multi_label``.
        multi_label: see above.
    """
    if multi_label:
        shares = expit(scores)
        confidence, outcome = shares.ravel(), is_positive.astype(np.float64).ravel()
        brier = float(np.mean((shares - is_positive) ** 2))
    else:
        shares = softmax(scores, axis=1)
        confidence, outcome = shares.max(axis=1), (decided(scores, False) * is_positive).sum(axis=1)
        brier = float(((shares - is_positive) ** 2).sum(axis=1).mean())
    bins = reliability(confidence, outcome)
    ece = sum(b.count * abs(b.confidence - b.outcome) for b in bins if b.count) / len(confidence)
    return Calibration(ece, brier, len(confidence), bins)


def reliability(confidence: np.ndarray, outcome: np.ndarray, num_bins: int = NUM_BINS) -> tuple[Bin, ...]:
    """Bins of decisions by their probability ``[m]`` in [0, 1] and what came of them ``[m]``, 1 true and 0 not."""
    edges = np.linspace(0, 1, num_bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, num_bins - 1)
    counts = np.bincount(place, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(place, values, num_bins) / counts for values in (confidence, outcome)]
    return tuple(
        Bin(float(edges[i]), float(edges[i + 1]), int(counts[i]), float(means[0][i]), float(means[1][i]))
        for i in range(num_bins)
    )
